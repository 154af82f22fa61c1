"""The executor against one dense softmax over [T n, T n], on random tables and on every structure it recognises.

Legend: B batch, T frames, n tokens per frame, H heads, D head dim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from longgen.attention import executor, lowering, sequential
from longgen.attention.context import LayerInputs
from longgen.attention.rotary import Rotary
from longgen.frameplan import FramePlan, Pass, full_attention, visible_from_ranges
from longgen.frames import local_windows
from longgen.pipelines.processors import LayerCall
from longgen.program import Program
from longgen.technique import Step
from tests.attention.dense import dense

B, T, SIDE, H, D = 2, 9, 3, 3, 24
N_FRAME = SIDE * SIDE
T_DIM = D - 4 * (D // 6)


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, T * N_FRAME, H, D, generator=generator) for _ in range(3))
    return q, k, v


@pytest.fixture
def ctx() -> LayerCall:
    rope = WanRotaryPosEmbed(D, (1, 1, 1), 64)
    cos, sin = rope(torch.zeros(1, 1, T, SIDE, SIDE))
    frequencies = 10000.0 ** (-np.arange(0, T_DIM, 2) / T_DIM)
    rotary = Rotary(frequencies, np.arange(len(frequencies)))
    return LayerCall((T, SIDE, SIDE), torch.zeros(0), rotary, (cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]), None, None)


def plan_of(rel: Any = None, visible: Any = None, scale: Any = None) -> FramePlan:
    plain = full_attention(T).passes[0]
    one = Pass(plain.rel if rel is None else rel, plain.visible if visible is None else visible, np.ones(T))
    return FramePlan((one,), scale)


def separable(positions: np.ndarray) -> np.ndarray:
    return positions[:, None] - positions[None, :]


RANDOM = np.random.default_rng(0)
SEEN = RANDOM.random((T, T)) < 0.5
SEEN[np.diag_indices(T)] = True
REL = RANDOM.uniform(-30, 30, (T, T))
HALF = RANDOM.random(T)
SINK = visible_from_ranges(local_windows(T, 3, "clip"))
SINK[:, 0] = True
BAND = np.where(RANDOM.random((T, T)) < 0.5, 1.0, RANDOM.choice([0.2, 0.4], (T, T)))
HOLES = np.array([0, 0.5, 1, 1, 1, 0.25, 0, 1, 1])  # weights
BLOCKS = Pass(full_attention(T).passes[0].rel, visible_from_ranges(local_windows(T, 5, "shift")) & (HOLES > 0)[:, None], HOLES)
PLANS = {
    "neutral": plan_of(),
    "scaled": plan_of(scale=np.array([1.0, 0.5, 1.3, 1.0])),
    "interpolated": plan_of(rel=separable(np.arange(T) / 3)),
    "any positions": plan_of(rel=separable(RANDOM.uniform(-9, 9, T))),
    "shifted window": plan_of(visible=visible_from_ranges(local_windows(T, 5, "shift"))),
    "clipped window": plan_of(visible=visible_from_ranges(local_windows(T, 4, "clip"))),
    "interpolated, scaled window": plan_of(
        separable(np.arange(T) / 3), visible_from_ranges(local_windows(T, 5, "shift")), np.array([1.0, 0.5, 1.3, 1.0])
    ),
    "sink and window": plan_of(visible=SINK),
    "blocks": plan_of(visible=np.kron(np.eye(3, dtype=bool), np.ones((3, 3), dtype=bool))),
    "random visible": plan_of(visible=SEEN),
    "random rel": plan_of(rel=REL),
    "random rel and visible, scaled": plan_of(REL, SEEN, np.array([1.0, 0.5, 1.3, 1.0])),
    "gain": dataclasses.replace(plan_of(), logit_scale=1.7),
    "bands": FramePlan((Pass(full_attention(T).passes[0].rel, SEEN, np.ones(T), {"band": BAND}),)),
    "bands, random rel, scaled": FramePlan((Pass(REL, SEEN, np.ones(T), {"band": BAND}),), np.array([1.0, 0.5, 1.3, 1.0])),
    "bands beyond a window": FramePlan((Pass(full_attention(T).passes[0].rel, SINK | (BAND < 1), np.ones(T), {"band": BAND}),)),
    "overlapping blocks of some frames each": FramePlan((BLOCKS, Pass(BLOCKS.rel, SINK & (HOLES < 1)[:, None], 1 - HOLES))),
    "a pass of some frames, with random rel": FramePlan((Pass(REL, SEEN & (HOLES > 0)[:, None], np.sign(HOLES)),)),
    "two weighted passes": FramePlan((Pass(REL, SEEN, HALF), Pass(full_attention(T).passes[0].rel, SINK, 1 - HALF))),
}


@pytest.mark.parametrize("name", PLANS)
def test_equals_dense_softmax(name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    difference = (
        (executor.run_plan(PLANS[name], LayerInputs(ctx, *qkv)).double() - dense(PLANS[name], *qkv, ctx.rotary, ctx.stock))
        .abs()
        .max()
        .item()
    )
    print(f"{name}: max difference {difference:.2e}")
    assert difference < 1e-5


def test_neutral_is_the_stock_call(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    stock = ctx.attend(ctx.rotate(q, None, None), ctx.rotate(k, None, None), v)
    assert torch.equal(executor.run_plan(full_attention(T), LayerInputs(ctx, q, k, v)), stock)


def test_rotation_to_native_positions_is_the_stock_rotation(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    native = np.arange(T, dtype=np.float64)
    assert torch.equal(ctx.rotate(qkv[0], native, None), ctx.rotate(qkv[0], None, None))
    assert torch.equal(ctx.rotate(qkv[0], None, np.ones(T_DIM // 2)), ctx.rotate(qkv[0], None, None))


def test_the_tables_matter(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """Each plan differs from the neutral one, so that the comparisons above are not empty."""
    plain = executor.run_plan(full_attention(T), LayerInputs(ctx, *qkv))
    for name, plan in PLANS.items():
        if name != "neutral":
            assert (executor.run_plan(plan, LayerInputs(ctx, *qkv)) - plain).abs().max() > 1e-2, name


@pytest.mark.parametrize(
    ("name", "calls", "sliding", "rotated_once"),
    [
        ("neutral", 1, 0, True),
        ("interpolated", 1, 0, True),
        ("shifted window", 3, 1, True),
        ("clipped window", 4, 1, True),
        ("blocks", 3, 0, True),
        ("sink and window", 9, 0, True),
        ("random rel", T, 0, False),
    ],
)
def test_structure_is_recognised(name: str, calls: int, sliding: int, rotated_once: bool) -> None:
    lowered = lowering.lower(PLANS[name].passes[0])
    assert len(lowered.calls) == calls
    assert sum(call.sliding for call in lowered.calls) == sliding
    assert lowered.rotates_keys != rotated_once


@pytest.mark.parametrize("name", PLANS)
def test_calls_cover_each_query_frame_once(name: str) -> None:
    for one in PLANS[name].passes:
        rebuilt = np.zeros_like(one.visible)
        counts = np.zeros(T, dtype=int)
        for call in lowering.lower(one).calls:
            for moved, i in enumerate(range(*call.queries)):
                assert one.weight[i] > 0
                counts[i] += 1
                for start, stop in call.keys:
                    rebuilt[i, start + moved * call.sliding : stop + moved * call.sliding] = True
        assert np.array_equal(rebuilt, one.visible)
        assert (counts == (one.weight > 0)).all()


class EveryThird:
    """A chooser of key frames that reads the features: frame 0, and the frame in which they are largest."""

    def count(self, frames_lat: int) -> int:
        return 2

    def choose(self, features: Tensor) -> Tensor:
        largest = features.sum(dim=(1, 2)).argmax()
        return torch.stack([torch.zeros_like(largest), largest])


def test_key_frames_are_chosen_for_each_sample_from_its_features(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    features = torch.zeros(B, T * N_FRAME, 5)
    features[0, 4 * N_FRAME], features[1, 7 * N_FRAME + 2] = 1, 1
    window = visible_from_ranges(local_windows(T, 3, "clip"))
    plan = dataclasses.replace(plan_of(visible=window), key_frames=EveryThird())
    assert plan.density == pytest.approx(window.mean() + 2 / T * (1 - window.mean()))
    output = executor.run_plan(plan, LayerInputs(dataclasses.replace(ctx, features=features), *qkv))
    for sample, key in enumerate([4, 7]):
        seen = window.copy()
        seen[:, [0, key]] = True
        one = slice(sample, sample + 1)
        expected = dense(plan_of(visible=seen), *(x[one] for x in qkv), ctx.rotary, ctx.stock)
        difference = (output[one].double() - expected).abs().max().item()
        print(f"sample {sample}: max difference {difference:.2e}")
        assert difference < 1e-5


def test_a_fusion_s_branches_are_computed_when_they_are_asked_for(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    class Difference:
        def fuse(self, attend: Any, step: Step, grid: tuple[int, int, int]) -> Tensor:
            assert (step.index, grid) == (0, (T, SIDE, SIDE))
            return attend("one") - attend("other")

    branches = {"one": PLANS["shifted window"], "other": PLANS["interpolated"]}
    fused = executor.run(Program(branches, Difference()), ctx, *qkv, Step(0, (1000.0,)))  # type: ignore[arg-type]
    parts = [executor.run_plan(plan, LayerInputs(ctx, *qkv)).flatten(2) for plan in branches.values()]
    assert torch.equal(fused, parts[0] - parts[1])


def test_windows_are_views(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    x = qkv[0][0]
    windows = sequential.windows_of(x, N_FRAME, 3 * N_FRAME, 4, N_FRAME)
    assert windows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    for index, window in enumerate(windows):
        assert torch.equal(window, x[(1 + index) * N_FRAME : (4 + index) * N_FRAME])
