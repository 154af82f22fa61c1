"""One pass in few batched calls: what the calls cover, in integers, and their outputs against one dense softmax.

Legend: B batch, T frames, n tokens per frame, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import planner, preset
from longgen.attention import batched as batched_lowering
from longgen.attention import executor
from longgen.attention.batched import BatchedPass, lower_batched
from longgen.attention.context import LayerInputs
from longgen.attention.streaming import attend_batched
from longgen.backbones.registry import SPECS
from longgen.context.keyframes import Keyframes
from longgen.context.sink import Sink
from longgen.device_costs import ACCELERATOR
from longgen.frameplan import FramePlan, Geometry, Pass, distances, full_attention
from longgen.pipelines.processors import LayerCall
from longgen.positions.vrpr import Vrpr
from tests.attention import test_presets
from tests.attention.dense import dense
from tests.attention.test_executor import HOLES, N_FRAME, PLANS, T, ctx, plan_of, qkv
from tests.attention.test_merge import CLIP, LOGITS, MERGED, SCALE, with_columns, with_text

__all__ = ["ctx", "qkv"]

SINGLE = {name: plan for name, plan in {**PLANS, **MERGED}.items() if len(plan.passes) == 1 and plan.passes[0].band is None}


def covered(pass_: Pass, with_text: bool = False) -> BatchedPass:
    """The lowered pass, after a look at every pair of every call: each that is seen once, at its time and with its columns."""
    lowered, seen = lower_batched(pass_, with_text), pass_.visible & (pass_.weight > 0)[:, None]
    factor, addend = (np.ones_like(pass_.rel), np.zeros_like(pass_.rel)) if pass_.logits is None else pass_.logits
    order = np.arange(len(seen)) if lowered.order is None else lowered.order
    assert sorted(order) == list(range(len(seen)))
    counts, begun = np.zeros(seen.shape, dtype=int), np.zeros(len(seen), dtype=bool)
    for group in lowered.groups:
        for call in group.calls:
            assert call.fresh == (not begun[call.rows].any())
            assert len(set(call.rows)) == call.count * call.queries
            begun[call.rows] = True
            if group.table is None:
                assert np.array_equal(group.times, pass_.rel[:, 0] - pass_.rel[0, 0])
            for i, place in call.pairs():
                j = order[place] if group.table is not None else place
                counts[i, j] += 1
                assert group.table is not None
                assert group.times[i] - lowered.tables[group.table][j] == pytest.approx(pass_.rel[i, j], abs=1e-6)
                assert group.logits == (factor[i, j], addend[i, j])
    assert np.array_equal(counts, seen)
    return lowered


def random_pass(seed: int) -> Pass:
    """Holes, windows that come and go, groups, tiers, causal tails; weights of zero; columns."""
    rng = np.random.default_rng(seed)
    frames_lat = int(rng.integers(1, 24))
    frame, rel, group = np.arange(frames_lat), distances(frames_lat), int(rng.integers(2, 6))
    first, stop = (np.sort(rng.integers(0, frames_lat + 1, frames_lat)) for _ in range(2))
    kind = seed % 6
    visible = {
        0: rng.random(rel.shape) < 0.5,
        1: (frame >= first[:, None]) & (frame < stop[:, None]),
        2: np.abs(frame[:, None] // group - frame // group) <= rng.integers(0, 4),
        3: rel >= -rng.integers(0, frames_lat),
        4: rel <= rng.integers(0, frames_lat),
        5: np.ones(rel.shape, dtype=bool),
    }[kind]
    if kind == 2:
        rel = (frame[:, None] // group - frame // group).astype(np.float64)
    elif kind == 3:
        rel = np.where(np.abs(rel) < 3, rel, np.floor(rel / group))
    elif kind == 5:
        rel = rng.uniform(-3, 3, rel.shape)
    if seed % 7 == 1:
        visible = visible | (rng.random(frames_lat) < 0.3)  # frames that all see
    weight = np.ones(frames_lat) if seed % 4 else (rng.random(frames_lat) < 0.8).astype(float)
    pass_ = Pass(rel, visible, weight)
    return pass_ if seed % 5 else pass_.with_columns(logit_bias=rng.choice([0, 0.5], rel.shape))


@pytest.mark.parametrize("many", [0, batched_lowering.MANY])
@pytest.mark.parametrize("seed", range(60))
def test_every_pair_is_computed_once_whatever_the_table(seed: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_lowering, "MANY", many)  # 0: key times that fit diagonals are looked for
    covered(random_pass(seed), with_text=bool(seed % 3))


@pytest.mark.parametrize(("frames_lat", "calls"), [(2, 2), (9, 5), (61, 9), (64, 7), (81, 9)])
def test_a_triangle_is_a_call_for_each_size_of_tile(frames_lat: int, calls: int) -> None:
    rel = distances(frames_lat)
    for visible in (rel >= 0, rel <= 0):
        lowered = covered(Pass(rel, visible, np.ones(frames_lat)))
        assert len(lowered.calls) <= calls


def test_grouped_frames_share_a_call() -> None:
    group = np.arange(64) // 8
    rel = (group[:, None] - group).astype(np.float64)
    window, causal = (covered(Pass(rel, visible, np.ones(64))) for visible in (np.abs(rel) <= 0, rel >= 0))
    assert [(call.count, call.queries, call.keys) for call in window.calls] == [(8, 8, 8)]
    assert len(causal.calls) <= 5


MOST_CALLS = {"vrpr": 45, "sink-window": 7, "keyframes": 12, "sliding-window": 3, "lvsa": 14}
SETS = {"vrpr": ("vrpr.layers=all",), "lvsa": ("lvsa.rotate=false", "lvsa.offset=2")}


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "ltx-2b", "cogvideox-5b", "cogvideox-2b", "hunyuanvideo"])
@pytest.mark.parametrize("technique", MOST_CALLS)
def test_calls_at_published_sizes(name: str, technique: str) -> None:
    spec = SPECS[name]
    if technique == "vrpr" and not spec.rotary_dims:
        pytest.skip("has no relative positions")
    sample = preset.Sample(frames=4 * (spec.native_px - 1) + 1)
    plan = planner.build(preset.load(technique, SETS.get(technique, ()), sample), spec)
    ((frame_plan, _, _),) = plan.branches().values()
    lowered = covered(frame_plan.passes[0], spec.joint_text)
    print(f"{technique} on {name}, T {frame_plan.frames_lat}: {len(lowered.calls)} calls, {lowered.rotations} rotations")
    assert len(lowered.calls) <= MOST_CALLS[technique] + spec.joint_text
    assert lowered.rotations <= 2 + (9 if technique == "vrpr" else 0)


@pytest.mark.parametrize(("variant", "calls"), [("code", 30), ("paper", 51)])
def test_tiers_that_round_frames_take_few_calls(variant: str, calls: int) -> None:
    """Neighbouring key frames of floor(i / 2) - floor(j / 2) agree on a time in every second frame only, diagonals throughout."""
    rel = Vrpr(variant=variant, w1=10, w2=14, g1=2, g2=8).times(Geometry(81, 21, (1.0,)))  # type: ignore[arg-type]
    lowered = covered(Pass(rel, np.ones(rel.shape, dtype=bool), np.ones(81)))
    assert len(lowered.calls) <= calls
    assert lowered.rotations <= 21


def batched(plan: FramePlan, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """`plan` in batched calls, whether or not that is the cheaper way."""
    kernel = ctx.attention_with_lse(qkv[0])
    assert kernel is not None
    lowered = lower_batched(plan.passes[0], ctx.text is not None, plan.key_frames is not None)
    return attend_batched(plan, lowered, LayerInputs(ctx, *qkv), kernel)


def error(plan: FramePlan, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> float:
    before = [x.clone() for x in qkv]
    output = batched(plan, ctx, qkv)
    assert output.shape == qkv[0].shape
    assert output.dtype == qkv[0].dtype
    assert all(torch.equal(x, y) for x, y in zip(qkv, before, strict=True))
    return (output.double() - dense(plan, *qkv, ctx.rotary, ctx.stock, ctx.text)).abs().max().item()  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("logit_scale", [1.0, 0.8])
def test_scattered_frames_that_all_see_are_read_once_for_all(
    text: bool, logit_scale: float, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]
) -> None:
    """By order of the keys, on a CPU too where they are most of what a frame sees."""
    all_see = np.arange(T) % 3 == 1
    visible = all_see | (distances(T) == 0)
    plan = replace(plan_of(visible=visible), logit_scale=logit_scale)
    lowered = covered(plan.passes[0])
    assert lowered.order is not None
    assert lowered.order[: all_see.sum()].tolist() == np.flatnonzero(all_see).tolist()
    inputs = with_text(ctx) if text else ctx
    assert error(plan, inputs, qkv) < 1e-5
    assert torch.equal(executor.run_plan(plan, LayerInputs(inputs, *qkv)), batched(plan, inputs, qkv))
    few = replace(plan.passes[0], visible=np.isin(np.arange(T), (0, 3)) | (distances(T) >= 0))
    assert executor.seen_by_all(plan.passes[0])
    assert not executor.seen_by_all(few)  # less than half of what a frame sees
    window = np.isin(np.arange(T), (0, *range(3, T - 2))) | (distances(T) == 0)
    assert not executor.seen_by_all(replace(plan.passes[0], visible=window))  # a sink and overlapping windows, not scattered
    covered(few)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_equals_dense_softmax(name: str, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    difference = error(SINGLE[name], with_text(ctx) if text else ctx, qkv)
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("columns", LOGITS)
@pytest.mark.parametrize("name", ["shifted window", "random rel and visible, scaled", "gain", "tiers"])
def test_logit_columns(name: str, columns: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    assert error(with_columns(SINGLE[name], columns), with_text(ctx), qkv) < 1e-5


def test_an_addend_of_minus_infinity_hides_a_frame(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden = np.where(distances(T) > 2, -np.inf, 0.0)
    assert error(plan_of().each(lambda pass_: pass_.with_columns(logit_bias=hidden)), ctx, qkv) < 1e-5


def test_strided_queries_and_one_sample(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """q, k and v as views of one projection, as fused projections give them."""
    q, k, v = torch.cat([x[:1].flatten(2) for x in qkv], dim=2).chunk(3, dim=2)
    parts = tuple(x.unflatten(2, qkv[0].shape[2:]) for x in (q, k, v))
    assert not parts[0].is_contiguous()
    assert error(SINGLE["tiers"], ctx, parts) < 1e-5  # type: ignore[arg-type]


def test_large_logits_neither_overflow_nor_vanish(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    k = k * torch.linspace(0.1, 60, T).repeat_interleave(N_FRAME)[:, None, None]
    assert error(SINGLE["tiers"], ctx, (q, k, v)) < 1e-4


def test_half_precision_is_merged_in_single(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    half = tuple(x.bfloat16() for x in qkv)
    stock = (ctx.attend(*(ctx.rotate(x, None, None) for x in half[:2]), half[2]).double()
             - dense(full_attention(T), *half, ctx.rotary, ctx.stock)).abs().max().item()  # type: ignore[arg-type]  # fmt: skip
    assert error(SINGLE["tiers"], ctx, half) < 3 * stock  # type: ignore[arg-type]


WINDOW = replace(Keyframes(window=1, segments=3).apply(full_attention(T), CLIP), logit_scale=1.3, frequency_scale=SCALE)
CHOSEN = {
    "window": WINDOW,
    "window, columns": with_columns(WINDOW, "scale and bias"),
    "window, weights of zero": WINDOW.each(lambda pass_: replace(pass_, weight=HOLES)),
    "window, tiers": Keyframes(window=2, segments=2).apply(Vrpr().apply(full_attention(T), replace(CLIP, native_lat=5)), CLIP),
    "window and sink": Sink(frames=1).apply(WINDOW, CLIP),
}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", CHOSEN)
def test_key_frames_that_are_chosen_at_run_time(name: str, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    generator, plan = torch.Generator().manual_seed(3), CHOSEN[name]
    assert plan.key_frames is not None
    ctx = replace(with_text(ctx) if text else ctx, features=torch.randn(len(qkv[0]), T * N_FRAME, 5, generator=generator))
    chosen = [plan.key_frames.choose(sample.unflatten(0, (T, -1))).tolist() for sample in ctx.features]
    assert chosen[0] != chosen[1]
    output = batched(plan, ctx, qkv)
    for index, frames in enumerate(chosen):
        seen = replace(plan, key_frames=None).see_also(np.broadcast_to(np.isin(np.arange(T), frames), (T, T)))
        sample = ctx.sample(index)
        exact = dense(seen, *(x[index : index + 1] for x in qkv), ctx.rotary, ctx.stock, sample.text)  # type: ignore[arg-type]
        assert (output[index : index + 1].double() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("frames_lat", [9, 33])
@pytest.mark.parametrize("name", ["vrpr", "sink-window", "keyframes", "sliding-window", "freelong", "flex-positions"])
@pytest.mark.parametrize("family", test_presets.SPECS)
def test_presets_on_an_accelerator(family: str, name: str, frames_lat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "costs_on", lambda device_type: ACCELERATOR)
    monkeypatch.setattr(executor, "sequential_cost", lambda *_: np.inf)  # at so few tokens
    spec = replace(test_presets.SPECS[family], native_px=8 * test_presets.SPECS[family].stride_t + 1)
    sets = ("vrpr.layers=all",) if name == "vrpr" else ()
    sample = preset.Sample(frames=(frames_lat - 1) * spec.stride_t + 1, steps=2)
    chosen = preset.load(name, sets, sample)
    if any(need not in spec.capabilities for technique in chosen.techniques for need in technique.requires):
        pytest.skip("refused")
    difference = test_presets.worst_difference(planner.build(chosen, spec, conditions=planner.stand_in(spec)), family)
    print(f"{name} on {family}, T {frames_lat}: max difference {difference:.1e}")
    assert difference < 2e-5


@pytest.mark.parametrize(("name", "expected"), [("neutral", False), ("shifted window", True), ("random rel", False)])
def test_where_it_is_used(
    name: str, expected: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On accelerators alone, where it is cheaper, and where the backend has log-sum-exp."""
    used: list[FramePlan] = []

    def spy(plan: FramePlan, *rest: Any) -> Tensor:
        used.append(plan)
        return attend_batched(plan, *rest)

    monkeypatch.setattr(executor, "attend_batched", spy)
    inputs = LayerInputs(with_text(ctx), *qkv)
    executor.run_plan(SINGLE[name], inputs)
    assert used == []
    monkeypatch.setattr(executor, "costs_on", lambda device_type: ACCELERATOR)
    executor.run_plan(SINGLE[name], inputs)
    assert used == [SINGLE[name]] * expected
    monkeypatch.setattr(LayerCall, "attention_with_lse", lambda self, q, masked=False: None)
    executor.run_plan(SINGLE[name], inputs)
    assert len(used) == expected
