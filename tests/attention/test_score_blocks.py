"""Factors on positive logits against one dense softmax, on every way in which a plan is executed.

Legend: B batch, T frames, n tokens per frame, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.attention import executor, partition, score_blocks, tiling
from longgen.attention.banded import split
from longgen.attention.batched import lower_batched
from longgen.attention.context import LayerInputs
from longgen.attention.lowering import lower
from longgen.attention.score_blocks import SignFactors, attend_by_sign
from longgen.context.keyframes import Keyframes
from longgen.device_costs import ACCELERATOR
from longgen.frameplan import FramePlan, full_attention
from longgen.pipelines.processors import LayerCall
from longgen.program import Program
from tests.attention.dense import dense
from tests.attention.test_executor import N_FRAME, T, ctx, plan_of, qkv
from tests.attention.test_merge import BANDED, CLIP, FREEPCA, LOGITS, MERGED, WITH_COLUMNS, with_text

__all__ = ["ctx", "qkv"]

Tensors = tuple[Tensor, Tensor, Tensor]
FACTORS = np.random.default_rng(5).choice([0.0, 0.4, 1.0, 1.0, 1.6], (T, T))
FAR = np.where(np.abs(np.subtract.outer(np.arange(T), np.arange(T))) > 2, 0.5, 1.0)
COLUMNS = {
    "far": {"positive_logit_scale": FAR},
    "random": {"positive_logit_scale": FACTORS},
    "with scale and bias": {"positive_logit_scale": FACTORS, **LOGITS["scale and bias"]},
}


def signed(plan: FramePlan, columns: str, centred: bool = False) -> FramePlan:
    return replace(plan.each(lambda pass_: pass_.with_columns(**COLUMNS[columns])), centred=centred)


def error(plan: FramePlan, ctx: LayerCall, qkv: Tensors) -> float:
    exact = dense(plan, *qkv, ctx.rotary, ctx.stock, ctx.text)  # type: ignore[arg-type]
    return (executor.run_plan(plan, LayerInputs(ctx, *qkv)).double() - exact).abs().max().item()


@pytest.mark.parametrize("centred", [False, True], ids=["", "centred"])
@pytest.mark.parametrize("columns", ["far", "with scale and bias"])
@pytest.mark.parametrize("name", [*WITH_COLUMNS, *BANDED])
def test_equals_dense_softmax(name: str, columns: str, centred: bool, ctx: LayerCall, qkv: Tensors) -> None:
    plain = (MERGED | BANDED)[name]
    for call in (ctx, with_text(ctx)):
        assert error(signed(plain, columns, centred), call, qkv) < 5e-6
    exact, without = (dense(plan, *qkv, ctx.rotary, ctx.stock) for plan in (signed(plain, columns, centred), plain))  # type: ignore[arg-type]
    assert (exact - without).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["neutral", "shifted window", "tiers", "windows, gain and scale", "bands of nine tokens"])
def test_an_accelerator_takes_the_same_way(name: str, ctx: LayerCall, qkv: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "costs_on", lambda _: ACCELERATOR)
    assert error(signed((MERGED | BANDED)[name], "random", centred=True), with_text(ctx), qkv) < 5e-6


def test_the_mean_that_is_taken_off_matters(ctx: LayerCall, qkv: Tensors) -> None:
    q, k, v = qkv
    biased = q, k + 2 * torch.randn(1, 1, *k.shape[2:], generator=torch.Generator().manual_seed(1)), v
    plans = [signed(full_attention(T), "far", centred) for centred in (False, True)]
    assert all(error(plan, ctx, biased) < 5e-6 for plan in plans)
    centred, plain = (executor.run_plan(plan, LayerInputs(ctx, *biased)) for plan in plans)
    assert (centred - plain).abs().max() > 1e-2


@pytest.mark.parametrize("block", [1, 7 * 81 * 4, 2 * 4 * 81 * 4, 10**9])
def test_blocks_of_any_size_give_the_same(block: int, ctx: LayerCall, qkv: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "CPU_BYTES", block)
    monkeypatch.setattr(score_blocks, "FEWEST_QUERIES", 2)
    assert error(signed(full_attention(T), "random"), with_text(ctx), qkv) < 5e-6


def test_nothing_larger_than_a_block_is_written_down(qkv: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, bmm = [], torch.bmm

    def watched(x: Tensor, y: Tensor) -> Tensor:
        product = bmm(x, y)
        sizes.append(product.nbytes)
        return product

    monkeypatch.setattr(score_blocks, "CPU_BYTES", 8 * 81 * 4)
    monkeypatch.setattr(score_blocks, "FEWEST_QUERIES", 4)
    monkeypatch.setattr(torch, "bmm", watched)
    attend_by_sign(*qkv, SignFactors(FAR))
    assert max(sizes) == 8 * 81 * 4


def test_query_frames_that_see_the_same_keys_share_a_call() -> None:
    (call,) = lower(signed(full_attention(T), "random").passes[0]).calls
    assert np.array_equal(call.positive, FACTORS)
    assert len(lower(signed(full_attention(T), "with scale and bias").passes[0]).calls) == T


@pytest.mark.parametrize("device", ["cpu", "accelerator"])
def test_key_frames_that_are_chosen_at_run_time(device: str, ctx: LayerCall, qkv: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "accelerator":
        monkeypatch.setattr(executor, "costs_on", lambda _: ACCELERATOR)
    plan = signed(Keyframes(window=1, segments=3).apply(full_attention(T), CLIP), "random", centred=True)
    features = torch.randn(2, T * N_FRAME, 5, generator=torch.Generator().manual_seed(3))
    call = replace(ctx, features=features)
    output = executor.run_plan(plan, LayerInputs(call, *qkv))
    assert plan.key_frames is not None
    for sample in range(2):
        seen = np.zeros(T, dtype=bool)
        seen[plan.key_frames.choose(features[sample].unflatten(0, (T, -1))).tolist()] = True
        shown = replace(plan, key_frames=None).see_also(np.broadcast_to(seen, (T, T)))
        one = slice(sample, sample + 1)
        exact = dense(shown, *(x[one] for x in qkv), ctx.rotary, ctx.stock)  # type: ignore[arg-type]
        assert (output[one].double() - exact).abs().max() < 5e-6


def test_branches_of_a_fusion_come_apart(ctx: LayerCall, qkv: Tensors) -> None:
    plan = signed(MERGED["windows of a fusion"], "random")
    starts = FREEPCA.starts(T)
    branches = executor.Branches(Program({"local": plan}), LayerInputs(ctx, *qkv))
    windows = dict(branches.apart("local", len(starts)))
    for index, start in enumerate(starts):
        exact = dense(replace(plan, passes=plan.passes[index : index + 1]), *qkv, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
        assert (windows[index].double() - exact[:, start * N_FRAME : (start + 4) * N_FRAME].flatten(2)).abs().max() < 5e-6


def test_half_precision_is_rounded_once(ctx: LayerCall, qkv: Tensors) -> None:
    """Of rounded q, k and v, logits and their signs are those of single precision; the output is rounded."""
    half = [x.bfloat16() for x in qkv]
    q, k, v = (x.double().transpose(1, 2) for x in half)
    logits = q @ k.mT / q.shape[3] ** 0.5
    factors = torch.from_numpy(FACTORS).repeat_interleave(N_FRAME, 0).repeat_interleave(N_FRAME, 1)
    exact = (torch.where(logits > 0, factors * logits, logits).softmax(-1) @ v).transpose(1, 2)
    output = attend_by_sign(*half, SignFactors(FACTORS))
    assert output.dtype == torch.bfloat16
    assert ((output.double() - exact).abs() <= exact.abs() / 2**8 + 1e-6).all()


def test_large_logits_neither_overflow_nor_vanish(ctx: LayerCall, qkv: Tensors) -> None:
    q, k, v = qkv
    k = k * torch.linspace(0.1, 60, T).repeat_interleave(N_FRAME)[:, None, None]
    assert error(signed(full_attention(T), "far"), ctx, (q, k, v)) < 1e-4


def test_ways_that_know_no_signs_refuse_them() -> None:
    whole, banded = signed(plan_of(), "far").passes, signed(BANDED["bands of nine tokens"], "far").passes[0]
    for refused in (lambda: partition.partition(whole, N_FRAME), lambda: lower_batched(whole[0]), lambda: split(banded),
                    lambda: tiling.tile(whole, N_FRAME, ACCELERATOR)):  # fmt: skip
        with pytest.raises(AssertionError):
            refused()


def test_a_column_of_signs_shares_nothing_between_passes() -> None:
    plan = MERGED["windows"]
    assert signed(plan, "far").density == pytest.approx(sum(pass_.density for pass_ in plan.passes))
    assert signed(plan, "far").density > plan.density
    assert signed(full_attention(T), "far").density == 1
