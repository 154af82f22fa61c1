"""Tables on a device: sent there once, the one not used for longest freed first; and no copies from the host in a second layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longgen import device_tables
from longgen.attention.context import LayerInputs
from longgen.attention.rotary import Rotary
from longgen.attention.sequential import run_passes
from longgen.device_tables import forget, on_device
from longgen.frameplan import FramePlan, Pass, full_attention
from longgen.fusion.freelong import add_low_pass
from longgen.fusion.freespec import reconstruct
from longgen.pipelines.processors import LayerCall

DEVICE = torch.device("meta")  # a device of its own, with nothing to compute
T, ROWS, COLUMNS, H, D = 6, 2, 3, 2, 12
N = T * ROWS * COLUMNS


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    forget()
    yield
    forget()


class HostCopies(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(values) if isinstance(x, Tensor)] for values in ((args, kwargs), out))
        if any(x.device.type == "meta" for x in (*given, *made)) and any(x.device.type == "cpu" and x.ndim for x in given):
            self.names.append(func._schema.name)
        return out


def test_equal_tables_are_sent_once() -> None:
    table = np.arange(6.0)
    sent = on_device(table, DEVICE)
    assert on_device(table.copy(), DEVICE) is sent
    others = [
        on_device(table + 1, DEVICE),
        on_device(table.reshape(2, 3), DEVICE),
        on_device(table, DEVICE, torch.float32),
        on_device(table.astype(np.float32), DEVICE),
    ]
    assert len({id(tensor) for tensor in (sent, *others)}) == 5
    assert [x.dtype for x in (sent, *others)] == [torch.float64] * 3 + [torch.float32] * 2
    assert on_device(table, DEVICE) is sent


def test_the_table_not_used_for_longest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_tables, "MOST_BYTES", 3 * 80)
    first = on_device(np.zeros(10), DEVICE)
    second = on_device(np.ones(10), DEVICE)
    for value in range(2, 9):
        on_device(np.full(10, float(value)), DEVICE)
        assert on_device(np.zeros(10), DEVICE) is first
        assert sum(tensor.nbytes for tensor in device_tables._tables.values()) <= 240
    assert on_device(np.ones(10), DEVICE) is not second
    large = on_device(np.zeros(1000), DEVICE)  # more than all may have: it is kept alone
    assert on_device(np.zeros(1000), DEVICE) is large


def test_the_cpu_reads_a_copy() -> None:
    table = np.broadcast_to(np.arange(3.0), (2, 3))  # not writable
    tensor = on_device(table, torch.device("cpu"), torch.float32)
    tensor.zero_()
    assert (table == np.arange(3.0)).all()
    assert not device_tables._tables


def layer() -> tuple[LayerCall, tuple[Tensor, Tensor, Tensor]]:
    rotary = Rotary(10000.0 ** (-np.arange(3) / 3), np.arange(3))
    stock = (torch.ones(N, D // 2, device=DEVICE), torch.zeros(N, D // 2, device=DEVICE))
    qkv = tuple(torch.zeros(1, N, H, D, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    features = torch.zeros(1, N, H * D, device=DEVICE)
    return LayerCall((T, ROWS, COLUMNS), features, rotary, stock, None, None), qkv  # type: ignore[return-value]


def weighted() -> Callable[[], Any]:
    """Two passes with weights that differ, logit columns, and keys at times that are rotated again for each query frame."""
    call, qkv = layer()
    native = full_attention(T).passes[0]
    rel = np.tanh(native.rel / 3) * 3
    half = np.linspace(0.2, 0.8, T)
    columns = {"logit_scale": 1 + 0.1 * np.eye(T), "logit_bias": -np.eye(T)}
    plan = FramePlan((Pass(native.rel, native.visible, half), Pass(rel, native.visible, 1 - half, columns)))
    return lambda: run_passes(plan, LayerInputs(call, *qkv))


def moved() -> Callable[[], Any]:
    call, (q, _, _) = layer()
    return lambda: call.rotate(q, np.arange(T) / 2, np.array([1, 0.5, 0.25]))


def some_moved() -> Callable[[], Any]:
    call, (q, k, _) = layer()
    return lambda: call.rotate_time(q, k, np.array([0, 2, 5]), np.array([1.0, 2.0, 4.0]), None)


def filtered() -> Callable[[], Any]:
    total, coarse, fine = (torch.zeros(1, N, 7, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    return lambda: add_low_pass(total, coarse, fine, (T, ROWS, COLUMNS), 0.25, 0.25, "reflect")


def blended() -> Callable[[], Any]:
    one, other = (torch.zeros(1, N, 7, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return lambda: reconstruct(one, other, 1.0, 2.0, "local")


@pytest.mark.parametrize("work", [weighted, moved, some_moved, filtered, blended], ids=lambda work: work.__name__)
def test_a_second_layer_copies_nothing_from_the_host(work: Callable[[], Callable[[], Any]]) -> None:
    run = work()
    with HostCopies() as first:
        run()
    assert bool(first.names) == (work is not blended)
    with HostCopies() as second:
        run()
    assert second.names == []
