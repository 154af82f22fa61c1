"""Merged passes against one dense softmax, and against the sequential way; and what a partition computes.

Legend: B batch, T frames, n tokens per frame, H heads, D head dim, P passes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.attention import executor, lowering, lse_kernels, lse_merge, partition
from longgen.attention.context import LayerInputs
from longgen.attention.lse_kernels import attention_with_lse
from longgen.attention.sequential import run_passes
from longgen.context.freenoise import FreeNoise
from longgen.context.keyframes import Keyframes
from longgen.context.sink import Sink
from longgen.context.tsa import Tsa
from longgen.frameplan import PAIR_COLUMNS, FramePlan, Geometry, full_attention
from longgen.fusion.freepca import FreePca
from longgen.pipelines.processors import LayerCall
from longgen.positions.longdiff import LongDiff
from longgen.positions.vrpr import Vrpr
from longgen.program import Program
from tests.attention import test_executor
from tests.attention.dense import dense
from tests.attention.test_executor import N_FRAME, PLANS, T, ctx, plan_of, qkv

__all__ = ["ctx", "qkv"]

CLIP = Geometry(T, 4, (1.0,))
SCALE = np.array([1.0, 0.5, 1.3, 1.0])
FREEPCA = FreePca(window=4, stride=3)
MERGED = {
    **{name: plan for name, plan in PLANS.items() if all(one.band is None for one in plan.passes)},
    "windows": FreeNoise(window=4, stride=1).apply(full_attention(T), CLIP),
    "windows, a stride that does not fit": FreeNoise(window=4, stride=3).apply(full_attention(T), CLIP),
    "windows, uniform": FreeNoise(window=5, stride=2, weights="uniform").apply(full_attention(T), CLIP),
    "windows, gain and scale": replace(
        FreeNoise(window=4, stride=3).apply(full_attention(T), CLIP), logit_scale=1.7, frequency_scale=SCALE
    ),
    "windows with a sink": Sink(frames=1).apply(FreeNoise(window=4, stride=2).apply(full_attention(T), CLIP), CLIP),
    "windows at random times": FreeNoise(window=4, stride=3).apply(PLANS["random rel"], CLIP),
    "tiers": Vrpr().apply(full_attention(T), Geometry(T, 5, (1.0,))),
    "tiers, floors": Vrpr(variant="code").apply(full_attention(T), Geometry(T, 5, (1.0,))),
    "tiers, other floors": Vrpr(variant="paper").apply(full_attention(T), Geometry(T, 5, (1.0,))),
    "tiers in windows": FreeNoise(window=6, stride=2).apply(Vrpr().apply(full_attention(T), Geometry(T, 5, (1.0,))), CLIP),
    "shifted groups": LongDiff().apply(full_attention(T), CLIP),
    "shifted groups, clipped": LongDiff(mode="clip").apply(full_attention(T), CLIP),
    "a sink at its own times": Tsa(dense=2, stripe=2).apply(full_attention(T), CLIP),
    "windows of a fusion": FREEPCA.branches(full_attention(T), CLIP, 0, 2)["local"],
    "windows of a fusion, groups": FREEPCA.branches(LongDiff().apply(full_attention(T), CLIP), CLIP, 0, 2)["local"],
}
BANDED = {
    **{name: plan for name, plan in PLANS.items() if any(one.band is not None for one in plan.passes)},
    "bands of nine tokens": Tsa(dense=1, stripe=4, stripe_share=0.3).apply(full_attention(T), CLIP),
    "bands, with a tail": Tsa(dense=0, stripe=3, stripe_share=0.5, tail=True).apply(full_attention(T), CLIP),
    "bands, gain and scale": replace(Tsa(dense=1, stripe=4).apply(full_attention(T), CLIP), logit_scale=1.7, frequency_scale=SCALE),
    "bands in tiers": Tsa(dense=1, stripe=4, reencode="vrpr").apply(
        Vrpr().apply(full_attention(T), Geometry(T, 5, (1.0,))), Geometry(T, 5, (1.0,))
    ),
}


TEXT_TOKENS = 5
RANDOM = np.random.default_rng(1)
LOGIT_SCALE, LOGIT_BIAS = RANDOM.choice([0.5, 1.0, 1.7], (T, T)), RANDOM.choice([-1.5, 0.0, 0.8], (T, T))
DISTANCE = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
LOGITS = {
    "scale": {"logit_scale": LOGIT_SCALE},
    "bias": {"logit_bias": LOGIT_BIAS},
    "scale and bias": {"logit_scale": LOGIT_SCALE, "logit_bias": LOGIT_BIAS},
    "decay": {"logit_bias": -0.3 * np.maximum(DISTANCE - 1, 0)},
}
WITH_COLUMNS = ["neutral", "interpolated", "shifted window", "random rel and visible, scaled", "gain", "two weighted passes",
                "windows, a stride that does not fit", "windows, gain and scale", "tiers", "shifted groups"]  # fmt: skip


def with_columns(plan: FramePlan, columns: str) -> FramePlan:
    return plan.each(lambda pass_: pass_.with_columns(**LOGITS[columns]))


def with_text(ctx: LayerCall) -> LayerCall:
    generator = torch.Generator().manual_seed(2)
    return replace(ctx, text=tuple(torch.randn(2, TEXT_TOKENS, 3, 24, generator=generator) for _ in range(2)))  # type: ignore[arg-type]


def merged(plan: FramePlan, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], seen: np.ndarray | None = None) -> Tensor:
    """`plan` merged, whether or not that is the cheaper way."""
    operator = ctx.attention_with_lse(qkv[0])
    assert operator is not None
    text_tokens = 0 if ctx.text is None else TEXT_TOKENS
    parts = partition.partition(plan.passes, N_FRAME, seen is not None, text_tokens)
    return lse_merge.PlanMerge(plan, parts, operator).mean(LayerInputs(ctx, *qkv), chosen=seen)


@pytest.mark.parametrize("name", MERGED)
def test_equals_dense_softmax(name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    exact = dense(MERGED[name], *qkv, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    before = [x.clone() for x in qkv]
    difference = (merged(MERGED[name], ctx, qkv).double() - exact).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 5e-6
    assert all(torch.equal(x, y) for x, y in zip(qkv, before, strict=True))


@pytest.mark.parametrize("name", MERGED)
def test_text_in_self_attention_is_one_more_part(name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    joint = with_text(ctx)
    exact = dense(MERGED[name], *qkv, ctx.rotary, ctx.stock, joint.text)  # type: ignore[arg-type]
    plain = dense(MERGED[name], *qkv, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    difference = (merged(MERGED[name], joint, qkv).double() - exact).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 5e-6
    assert (exact - plain).abs().max() > 1e-2


@pytest.mark.parametrize("text", [False, True], ids=["no text", "text"])
@pytest.mark.parametrize("columns", LOGITS)
@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_logit_columns_equal_dense_softmax_merged_and_one_after_the_other(
    name: str, columns: str, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]
) -> None:
    plan = with_columns(MERGED[name], columns)
    ctx = with_text(ctx) if text else ctx
    exact = dense(plan, *qkv, ctx.rotary, ctx.stock, ctx.text)  # type: ignore[arg-type]
    outputs = merged(plan, ctx, qkv), run_passes(plan, LayerInputs(ctx, *qkv)), executor.run_plan(plan, LayerInputs(ctx, *qkv))
    differences = [(output.double() - exact).abs().max().item() for output in outputs]
    print(f"{name}, {columns}: max difference {max(differences):.1e}")
    assert max(differences) < 5e-6
    assert (exact - dense(MERGED[name], *qkv, ctx.rotary, ctx.stock, ctx.text)).abs().max() > 1e-2  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["bands apart", "one after the other"])
@pytest.mark.parametrize("text", [False, True], ids=["no text", "text"])
@pytest.mark.parametrize("columns", [None, *LOGITS])
@pytest.mark.parametrize("name", ["bands of nine tokens", "bands, gain and scale", "bands, random rel, scaled"])
def test_logit_columns_of_bands_equal_dense_softmax(
    name: str,
    columns: str | None,
    text: bool,
    way: str,
    ctx: LayerCall,
    qkv: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, ctx = BANDED[name] if columns is None else with_columns(BANDED[name], columns), with_text(ctx) if text else ctx
    if way != "bands apart":
        monkeypatch.setattr(LayerCall, "attention_with_lse", lambda self, q, masked=False: None)
    assert (executor._banded(plan, LayerInputs(ctx, *qkv)) is not None) == (
        way == "bands apart" and name != "bands, random rel, scaled"
    )
    exact = dense(plan, *qkv, ctx.rotary, ctx.stock, ctx.text)  # type: ignore[arg-type]
    assert (executor.run_plan(plan, LayerInputs(ctx, *qkv)).double() - exact).abs().max() < 5e-6


def test_a_neutral_column_is_none(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    for plan in (full_attention(T), MERGED["shifted groups"], BANDED["bands of nine tokens"]):
        neutral = plan.each(lambda p: p.with_columns(**{name: np.full((T, T), c.neutral) for name, c in PAIR_COLUMNS.items()}))
        assert (neutral.key, neutral.density, neutral.is_stock) == (plan.key, plan.density, plan.is_stock)
        assert torch.equal(executor.run_plan(neutral, LayerInputs(ctx, *qkv)), executor.run_plan(plan, LayerInputs(ctx, *qkv)))


@pytest.mark.parametrize("name", [*MERGED, *BANDED])
def test_a_backend_without_log_sum_exp_gives_the_same(
    name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerCall, "attention_with_lse", lambda self, q, masked=False: None)
    plan = (MERGED | BANDED)[name]
    exact = dense(plan, *qkv, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    assert (executor.run_plan(plan, LayerInputs(ctx, *qkv)).double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("chunk", [1, 2, 16])
@pytest.mark.parametrize("name", BANDED)
def test_bands_apart_equal_dense_softmax(
    name: str, chunk: int, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longgen.frameplan.SMALLEST_CHUNK", chunk)
    exact = dense(BANDED[name], *qkv, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    assert (executor.run_plan(BANDED[name], LayerInputs(ctx, *qkv)).double() - exact).abs().max() < 5e-6
    apart = executor._banded(BANDED[name], LayerInputs(ctx, *qkv)) is not None
    assert apart == (name not in ("bands, random rel, scaled", "bands in tiers"))


@pytest.mark.parametrize("name", ["windows", "windows, gain and scale", "tiers", "shifted groups"])
def test_half_precision_is_rounded_once(name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    half = tuple(x.bfloat16() for x in qkv)
    exact = dense(MERGED[name], *half, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    output = merged(MERGED[name], ctx, half)  # type: ignore[arg-type]
    difference = (output.double() - exact).abs().max().item()
    direct = replace(full_attention(T), logit_scale=MERGED[name].logit_scale, frequency_scale=MERGED[name].frequency_scale)
    plain = dense(direct, *half, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    stock = (executor.run_plan(direct, LayerInputs(ctx, *half)).double() - plain).abs().max().item()  # type: ignore[arg-type]
    print(f"{name}: max difference {difference:.1e}, of the stock call {stock:.1e}")
    assert output.dtype == torch.bfloat16
    assert difference < 3 * stock


def test_bands_in_half_precision(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    half = tuple(x.bfloat16() for x in qkv)
    plan = BANDED["bands of nine tokens"]
    output = executor._banded(plan, LayerInputs(ctx, *half))  # type: ignore[arg-type]
    assert output is not None
    assert output.dtype == torch.bfloat16
    assert (output.double() - dense(plan, *half, ctx.rotary, ctx.stock)).abs().max() < 0.03  # type: ignore[arg-type]


def test_large_logits_neither_overflow_nor_vanish(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """Windows whose sums differ by more than a float can hold."""
    q, k, v = qkv
    k = k * torch.linspace(0.1, 60, T).repeat_interleave(N_FRAME)[:, None, None]
    exact = dense(MERGED["windows"], q, k, v, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    assert (merged(MERGED["windows"], ctx, (q, k, v)).double() - exact).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["shifted groups", "tiers"])
def test_key_frames_that_are_chosen_at_run_time(name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    plan = Keyframes(window=1, segments=3).apply(MERGED[name], CLIP)
    seen = np.isin(np.arange(T), [0, 4, 8])
    exact = dense(
        replace(plan, key_frames=None).see_also(np.broadcast_to(seen, (T, T))), *qkv, ctx.rotary, ctx.stock  # type: ignore[arg-type]
    )  # fmt: skip
    assert (merged(plan, ctx, qkv, seen).double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("way", ["merged", "one after the other"])
@pytest.mark.parametrize("name", ["windows of a fusion", "windows of a fusion, groups"])
def test_windows_come_apart(
    name: str, way: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "merged":
        monkeypatch.setattr(LayerCall, "attention_with_lse", lambda self, q, masked=False: None)
    plan = MERGED[name]
    starts = FREEPCA.starts(T)
    branches = executor.Branches(Program({"local": plan}), LayerInputs(ctx, *qkv))
    windows = dict(branches.apart("local", len(starts)))
    assert sorted(windows) == list(range(len(starts)))
    size = len(plan.passes) // len(starts)
    for index, start in enumerate(starts):
        one = replace(plan, passes=plan.passes[index * size : (index + 1) * size])
        exact = dense(one, *qkv, ctx.rotary, ctx.stock)[:, start * N_FRAME : (start + 4) * N_FRAME].flatten(2)  # type: ignore[arg-type]
        assert (windows[index].double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("name", MERGED)
def test_every_pair_is_computed_once_for_each_relative_time(name: str) -> None:
    passes = MERGED[name].passes
    parts = partition.partition(passes, N_FRAME)
    shown = [set() for _ in passes]  # type: list[set[tuple[int, int]]]
    computed: Counter[tuple[int, int, float]] = Counter()
    for block in parts.blocks:
        for part in block.parts:
            rows = parts.order[slice(*part.queries)]
            times = block.times[part.query_times][part.queries[0] - block.queries[0] : part.queries[1] - block.queries[0]]
            for row, time, members in zip(rows, times, part.members.T, strict=True):
                for key in part.keys:
                    rel = time - parts.tables[part.table][key]
                    computed[int(row), int(parts.order[key]), round(rel, 5)] += 1
                    for index in np.flatnonzero(members):
                        assert passes[index].rel[row, parts.order[key]] == pytest.approx(rel, abs=1e-6)
                        shown[index].add((int(row), int(parts.order[key])))
    for one, own in zip(passes, shown, strict=True):
        assert own == {(int(i), int(j)) for i, j in np.argwhere(one.visible & (one.weight > 0)[:, None])}
    assert set(computed.values()) == {1}
    assert len(computed) == pytest.approx(MERGED[name].density * T**2)


@pytest.mark.parametrize("name", ["windows", "shifted groups", "two weighted passes"])
def test_pairs_with_other_logits_are_apart(name: str) -> None:
    """Each part has one factor and one addend, and density counts what passes no longer share."""
    plan = with_columns(MERGED[name], "scale and bias")
    parts = partition.partition(plan.passes, N_FRAME)
    pairs = 0
    for block in parts.blocks:
        for part in block.parts:
            pairs += part.members.shape[1] * len(part.keys)
            for row, members in zip(parts.order[slice(*part.queries)], part.members.T, strict=True):
                for pass_ in (plan.passes[index] for index in np.flatnonzero(members)):
                    assert pass_.logits is not None
                    assert (pass_.logits[:, row, parts.order[part.keys]] == np.array(part.logits)[:, None]).all()
    assert pairs == pytest.approx(plan.density * T**2)
    first = replace(plan, passes=(plan.passes[0], *(replace(p, columns={}) for p in plan.passes[1:])))
    assert first.density >= plan.density
    assert (first.density > plan.density) == (name != "two weighted passes")  # their times differ already


def test_tiers_and_shifted_groups_are_recognised() -> None:
    long = Geometry(81, 21, (1.0,))
    tiers = partition.partition(Vrpr().apply(full_attention(81), long).passes, 1560)
    assert {tuple(np.unique(np.diff(table).round(6))) for table in tiers.tables} >= {(0.125,), (0.5,), (1.0,)}
    groups = LongDiff().apply(full_attention(81), long)
    parts = partition.partition(groups.passes, 1560)
    assert (parts.order[1], len(parts.tables)) == (4, 1)
    pairs = sum(len(part.keys) * part.members.shape[1] for block in parts.blocks for part in block.parts)
    assert pairs / 81**2 == pytest.approx(groups.density) == pytest.approx(1.75, abs=0.02)
    assert partition.partition(FreeNoise().apply(full_attention(81), long).passes, 1560).positions is not None


def test_merging_is_taken_where_it_is_cheaper(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    long = replace(ctx, grid=(81, 4, 4))
    q = torch.zeros(1, 81 * 64, 2, 24)
    inputs = LayerInputs(long, q, q, q)
    clip = Geometry(81, 21, (1.0,))
    assert executor.merge_if_cheaper(FreeNoise().apply(full_attention(81), clip), inputs) is not None
    assert executor.merge_if_cheaper(LongDiff().apply(full_attention(81), clip), inputs) is not None
    assert executor.merge_if_cheaper(full_attention(81), inputs) is None
    assert executor.merge_if_cheaper(plan_of(test_executor.REL), LayerInputs(ctx, *qkv)) is None


def test_only_the_native_backend_returns_the_log_sum_exp(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    text = (qkv[1][:, :5], qkv[2][:, :5])
    assert ctx.attention_with_lse(qkv[0]) is not None
    assert replace(ctx, backend="native").attention_with_lse(qkv[0]) is not None
    assert replace(ctx, backend="flash").attention_with_lse(qkv[0]) is None
    assert replace(ctx, text=text).attention_with_lse(qkv[0]) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_kernel_returns_the_log_sum_exp(dtype: torch.dtype) -> None:
    operator = attention_with_lse(torch.device("cpu"), dtype, 24)
    assert operator is not None
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, tokens, 3, 24, generator=generator).to(dtype) for tokens in (7, 70, 70))
    output, log_sum = operator(q, k, v)
    logits = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / 24**0.5
    assert (output.shape, log_sum.shape) == (q.shape, (2, 3, 7))
    assert (log_sum - logits.logsumexp(-1)).abs().max() < (1e-5 if dtype.itemsize > 2 else 1e-3)


def test_an_operator_that_refuses_or_lies_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention_with_lse(torch.device("meta"), torch.float32, 24) is None

    def wrong(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        output, log_sum = operator(q, k, v)
        return output, log_sum / np.log(2)

    def refusing(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("no kernel for it")

    operator = attention_with_lse(torch.device("cpu"), torch.float32, 24)
    assert operator is not None
    assert lse_kernels._works(operator, torch.device("cpu"), torch.float32, 24)
    assert not lse_kernels._works(wrong, torch.device("cpu"), torch.float32, 24)
    assert not lse_kernels._works(refusing, torch.device("cpu"), torch.float32, 24)


def test_costs_agree_with_what_is_computed() -> None:
    plan = FreeNoise().apply(full_attention(81), Geometry(81, 21, (1.0,)))
    call_lists = [lowering.lower(one) for one in plan.passes]
    parts = partition.partition(plan.passes, 1560)
    per_pair = 81**2 * 1560**2
    assert parts.cost(1560) / per_pair == pytest.approx(plan.density, rel=0.05)
    assert partition.sequential_cost(call_lists, 1560) / per_pair == pytest.approx(
        sum(one.density for one in plan.passes), rel=0.05
    )


def test_a_block_holds_outputs_of_at_most_one_and_a_half_times_all_frames() -> None:
    """What is held beside q, k and v is memory that a plan's estimate counts on; more query frames are fewer calls.

    Halved again and again, blocks are the first that hold no more: 61 frames in strides of 3 just fit, at 1.41 times, and 41
    frames do not, at 1.54.
    """
    largest = {}
    for frames_lat, window, stride in ((81, 21, 1), (61, 21, 3), (61, 21, 2), (41, 21, 3), (41, 9, 1), (81, 17, 1)):
        plan = FreeNoise(window=window, stride=stride).apply(full_attention(frames_lat), Geometry(frames_lat, 21, (1.0,)))
        blocks = partition.partition(plan.passes, 1560).blocks
        assert max(block.outputs for block in blocks if block.queries[1] - block.queries[0] > 1) <= 1.5 * frames_lat
        largest[frames_lat, window, stride] = max(block.queries[1] - block.queries[0] for block in blocks)
    assert largest == {(81, 21, 1): 2, (61, 21, 3): 6, (61, 21, 2): 4, (41, 21, 3): 4, (41, 9, 1): 2, (81, 17, 1): 2}
