"""Attention statistics against dense computation in double precision.

Legend: B batch, K key frames, Q query frames, n tokens per frame, H heads, D head dim, L text tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from longgen.attention.observer import AttentionInputs
from longgen.attention.rotary import Rotary
from longgen.probe import attention_stats

B, K, SIDE, H, D, L = 2, 7, 3, 2, 24, 5
N = SIDE * SIDE
T_DIM = D - 4 * (D // 6)
ROTARY = Rotary(10000.0 ** (-np.arange(0, T_DIM, 2) / T_DIM), np.arange(T_DIM // 2))
COS, SIN = (
    table[0, :, 0, offset::2] for offset, table in enumerate(WanRotaryPosEmbed(D, (1, 1, 1), 64)(torch.zeros(1, 1, K, SIDE, SIDE)))
)


def attention_inputs(queries: int = K, text: bool = False) -> AttentionInputs:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, frames * N, H, D, generator=generator) for frames in (queries, K, K))
    words = (torch.randn(B, L, H, D, generator=generator), torch.randn(B, L, H, D, generator=generator)) if text else None
    frame = COS[:N], SIN[:N]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if words is not None:
            k, v = torch.cat([k, words[0]], dim=1), torch.cat([v, words[1]], dim=1)
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return AttentionInputs(
        0, (queries, K), q, k, v, lambda x, times: ROTARY.rotate(x, ROTARY.frame_tables_at(frame, times, None)), attend, words
    )


def dense_logits(seen: AttentionInputs, shift: float = 0.0) -> Tensor:
    """[B, H, Q n, K n (+ L)]: every pair of tokens, turned by the difference of their times and places."""
    queries = seen.shape[0]
    angle = torch.atan2(SIN.double(), COS.double())[:N]
    theta = torch.zeros(angle.shape[1], dtype=torch.float64)
    theta[ROTARY.pairs] = torch.from_numpy(ROTARY.frequencies)
    place = angle.clone()
    place[:, ROTARY.pairs] = 0
    time_q = torch.arange(K - queries, K, dtype=torch.float64).repeat_interleave(N)
    time_k = torch.arange(K, dtype=torch.float64).repeat_interleave(N) + shift
    own_q = time_q[:, None] * theta + place.repeat(queries, 1)
    own_k = time_k[:, None] * theta + place.repeat(K, 1)
    q, k = (torch.view_as_complex(x.double().transpose(1, 2).unflatten(-1, (-1, 2)).contiguous()) for x in (seen.q, seen.k))
    q, k = q * torch.exp(1j * own_q), k * torch.exp(1j * own_k)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k.conj()).real
    if seen.text is not None:
        words = torch.view_as_complex(seen.text[0].double().transpose(1, 2).unflatten(-1, (-1, 2)).contiguous())
        logits = torch.cat([logits, torch.einsum("bhqd,bhkd->bhqk", q, words.conj()).real], dim=-1)
    return logits / D**0.5


@pytest.mark.parametrize("shift", [-14.0, 7.0, 0.5])
@pytest.mark.parametrize("queries", [K, 3])
def test_the_logit_change_is_that_of_the_dense_logits(shift: float, queries: int) -> None:
    seen = attention_inputs(queries)
    own, moved = dense_logits(seen), dense_logits(seen, shift)
    change, total = attention_stats.logit_change(seen, shift)
    assert change / D == pytest.approx(float((moved - own).square().sum()), rel=1e-5)
    assert total / D == pytest.approx(float(own.square().sum()), rel=1e-5)


def test_no_shift_changes_no_logit() -> None:
    assert attention_stats.logit_change(attention_inputs(), 0.0)[0] == 0.0


def visible(queries: int) -> np.ndarray:
    """A window of three frames that moves, with the first frame for all."""
    seen = np.zeros((queries, K), dtype=bool)
    for row, frame in enumerate(range(K - queries, K)):
        seen[row, max(0, frame - 1) : frame + 2] = True
        seen[row, 0] = True
    return seen


def dense_part(seen: AttentionInputs, shown: np.ndarray) -> Tensor:
    """The dense logits with what is not shown at minus infinity; text is shown to all."""
    logits = dense_logits(seen)
    mask = torch.from_numpy(shown).repeat_interleave(N, dim=0).repeat_interleave(N, dim=1)
    mask = torch.cat([mask, mask.new_ones(len(mask), logits.shape[-1] - mask.shape[1])], dim=1)
    return logits.masked_fill(~mask, -torch.inf)


def dense_entropy(logits: Tensor) -> Tensor:
    return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("queries", [K, 3])
def test_the_entropy_change_is_that_of_the_dense_softmax(queries: int, text: bool) -> None:
    seen, shown = attention_inputs(queries, text), visible(queries)
    whole, part = dense_entropy(dense_logits(seen)), dense_entropy(dense_part(seen, shown))
    change, total = attention_stats.entropy_change(seen, shown)
    assert change == pytest.approx(float((part - whole).square().sum()), rel=1e-4)
    assert total == pytest.approx(float(whole.square().sum()), rel=1e-5)


def test_entropies_are_of_some_tokens_of_every_frame_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_stats, "QUERIES", 3)
    seen = attention_inputs()
    whole = dense_entropy(dense_logits(seen)).unflatten(-1, (K, N))[..., [0, 4, 8]]
    assert attention_stats.entropy_change(seen, np.ones((K, K), dtype=bool)) == (
        0.0,
        pytest.approx(float(whole.square().sum()), rel=1e-5),
    )


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("queries", [K, 3])
def test_the_effective_rank_is_that_of_the_singular_values_of_the_dense_output(queries: int, text: bool) -> None:
    seen, shown = attention_inputs(queries, text), visible(queries)
    values = seen.v.double() if seen.text is None else torch.cat([seen.v, seen.text[1]], dim=1).double()
    output = torch.einsum("bhqk,bkhd->bqhd", dense_part(seen, shown).softmax(dim=-1), values).flatten(2)
    singular = torch.linalg.svdvals(output)
    share = singular / singular.sum(dim=-1, keepdim=True)
    expected = (-share * share.log()).sum(dim=-1).exp()
    torch.testing.assert_close(
        attention_stats.effective_rank(attention_stats.output_gram(seen, shown)), expected, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("queries", [K - 2, 3])
def test_the_shares_of_heads_are_those_of_the_dense_softmax(queries: int) -> None:
    seen = attention_inputs(queries)
    rows = np.linspace(0, queries * N - 1, N // 3).round().astype(int)
    attention = dense_logits(seen).softmax(dim=-1)[:, :, rows].mean(dim=(0, 2)).float()  # [H, K n]
    past = (K - queries) * N
    expected = torch.stack([part.sum(dim=1) for part in (attention[:, :N], attention[:, N:past], attention[:, past:])], dim=1)
    torch.testing.assert_close(attention_stats.head_shares(seen), expected, rtol=1e-4, atol=1e-6)


def test_effective_ranks_of_known_features() -> None:
    equal = torch.eye(6, dtype=torch.float64)[None] * 4  # six equal singular values
    one = torch.zeros(1, 6, 6, dtype=torch.float64)
    one[0, 2, 2] = 9
    assert attention_stats.effective_rank(torch.cat([equal, one, 0 * one])).tolist() == pytest.approx([6, 1, 0])
