"""The account of live tensors against allocations that are known."""

from __future__ import annotations

import torch

from longgen.bench.memory import AllocationTracker, weight_bytes


def test_a_tensor_counts_until_its_last_view_is_gone() -> None:
    account = AllocationTracker()
    with account:
        made = torch.empty(1000)
        view = made.view(10, 100)[2:]
        assert account.now == 4000
        del made
        assert account.now == 4000
        del view
        assert account.now == 0
    assert account.peak == 4000


def test_the_peak_is_the_most_since_the_mark() -> None:
    account = AllocationTracker()
    with account:
        kept = torch.ones(100)
        for _ in range(3):
            kept = kept * 2 + 1  # three at a time: what it was, its double, the sum
        assert account.peak == 3 * 400
        account.mark()
        assert account.peak == account.now == 400


def test_what_was_there_before_is_not_counted_nor_what_is_changed_in_place() -> None:
    before, account = torch.ones(100), AllocationTracker()
    with account:
        before.add_(1)
        before[10:].mul_(2)
        before.expand(50, 100)
        assert account.peak == 0


def test_attention_counts_what_it_gives_back() -> None:
    q, account = torch.randn(1, 2, 64, 32), AllocationTracker()
    with account, torch.no_grad():
        output = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert output.nbytes <= account.now <= output.nbytes + 4 * 2 * 64 + 64


def test_weights_that_are_shared_count_once() -> None:
    one, other = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)
    other.weight = one.weight
    assert weight_bytes([one, other]) == 4 * (100 + 10 + 10)
