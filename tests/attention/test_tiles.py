"""Passes computed by tiles, as on accelerators, against one dense softmax; and how many calls they take at published sizes.

Legend: T frames, n tokens per frame, B batch, P passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.attention import executor, tile_merge, tiling
from longgen.attention.context import LayerInputs
from longgen.context.freenoise import FreeNoise
from longgen.context.keyframes import Keyframes
from longgen.device_costs import ACCELERATOR, CPU, CallCosts
from longgen.frameplan import FramePlan, Geometry, full_attention
from longgen.fusion.freepca import FreePca
from longgen.pipelines.processors import LayerCall
from longgen.positions.longdiff import LongDiff
from longgen.program import Program
from tests.attention.dense import dense
from tests.attention.test_executor import N_FRAME, T, ctx, qkv
from tests.attention.test_merge import FREEPCA, LOGITS, MERGED, TEXT_TOKENS, WITH_COLUMNS, with_columns, with_text

__all__ = ["ctx", "qkv"]


def tiled(plan: FramePlan, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], costs: CallCosts = ACCELERATOR) -> Tensor:
    kernel = ctx.attention_with_lse(qkv[0])
    assert kernel is not None
    text_tokens, chosen = 0 if ctx.text is None else TEXT_TOKENS, 0 if plan.key_frames is None else plan.key_frames.count(T)
    parts = tiling.tile(plan.passes, N_FRAME, costs, chosen, text_tokens)
    assert parts is not None
    return tile_merge.TileMerge(plan, parts, kernel).mean(LayerInputs(ctx, *qkv))


@pytest.mark.parametrize("text", [False, True], ids=["no text", "text"])
@pytest.mark.parametrize("costs", [ACCELERATOR, CPU], ids=["calls cost much", "calls cost little"])
@pytest.mark.parametrize("name", MERGED)
def test_equals_dense_softmax(name: str, costs: CallCosts, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx = with_text(ctx) if text else ctx
    exact = dense(MERGED[name], *qkv, ctx.rotary, ctx.stock, ctx.text)  # type: ignore[arg-type]
    before = [x.clone() for x in qkv]
    difference = (tiled(MERGED[name], ctx, qkv, costs=costs).double() - exact).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 5e-6
    assert all(torch.equal(x, y) for x, y in zip(qkv, before, strict=True))


@dataclass(frozen=True)
class Chosen:
    """Key frames of sample 0 and sample 1 of a test (`longgen.frameplan.KeyFrames`), whose features tell them apart."""

    frames: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 4, 8), (1, 2, 7))

    def count(self, frames_lat: int) -> int:
        return len(self.frames[0])

    def choose(self, features: Tensor) -> Tensor:
        return torch.tensor(self.frames[int(features[0, 0, 0])])


@pytest.mark.parametrize("text", [False, True], ids=["no text", "text"])
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("name", ["shifted groups", "two weighted passes", "windows, gain and scale", "interpolated", "random rel"])
def test_key_frames_of_each_sample(name: str, window: int, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    near = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) <= window
    plan = replace(MERGED[name].see_only(near), key_frames=Chosen())
    features = torch.arange(2.0)[:, None, None].expand(2, T * N_FRAME, 1)
    ctx = replace(with_text(ctx) if text else ctx, features=features)
    output = tiled(plan, ctx, qkv).double()
    for index, frames in enumerate(Chosen().frames):
        seen = np.broadcast_to(np.isin(np.arange(T), frames), (T, T))
        sample = replace(plan, key_frames=None).see_also(seen)
        exact = dense(sample, *(x[index : index + 1] for x in qkv), ctx.rotary, ctx.stock, ctx.sample(index).text)  # type: ignore[arg-type]
        assert (output[index] - exact[0]).abs().max() < 5e-6


@pytest.mark.parametrize("columns", LOGITS)
@pytest.mark.parametrize("name", [name for name in WITH_COLUMNS if name != "gain"])
def test_logit_columns(name: str, columns: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    plan, ctx = with_columns(MERGED[name], columns), with_text(ctx)
    exact = dense(plan, *qkv, ctx.rotary, ctx.stock, ctx.text)  # type: ignore[arg-type]
    assert (tiled(plan, ctx, qkv).double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("name", ["windows", "windows, gain and scale", "shifted groups"])
def test_half_precision_is_rounded_as_in_the_stock_call(name: str, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    half = tuple(x.bfloat16() for x in qkv)
    exact = dense(MERGED[name], *half, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    output = tiled(MERGED[name], ctx, half)  # type: ignore[arg-type]
    direct = replace(full_attention(T), logit_scale=MERGED[name].logit_scale, frequency_scale=MERGED[name].frequency_scale)
    plain = dense(direct, *half, ctx.rotary, ctx.stock)  # type: ignore[arg-type]
    stock = (executor.run_plan(direct, LayerInputs(ctx, *half)).double() - plain).abs().max()  # type: ignore[arg-type]
    assert output.dtype == torch.bfloat16
    assert (output.double() - exact).abs().max() < 3 * stock


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of an accelerator, on the CPU."""
    monkeypatch.setattr(executor, "costs_on", lambda device_type: ACCELERATOR)


@pytest.mark.parametrize("text", [False, True], ids=["no text", "text"])
@pytest.mark.parametrize("name", ["windows of a fusion", "windows of a fusion, groups"])
def test_windows_come_apart(name: str, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], accelerator: None) -> None:
    plan, starts, ctx = MERGED[name], FREEPCA.starts(T), with_text(ctx) if text else ctx
    size = len(plan.passes) // len(starts)
    tiles = tiling.tile(plan.passes, N_FRAME, ACCELERATOR, 0, TEXT_TOKENS if text else 0, len(starts))
    kernel = ctx.attention_with_lse(qkv[0])
    assert tiles is not None
    assert kernel is not None
    merge = tile_merge.TileMerge(plan, tiles, kernel)
    branches = executor.Branches(Program({"local": plan}), LayerInputs(ctx, *qkv))
    for windows in (dict(merge.groups(len(starts), LayerInputs(ctx, *qkv))), dict(branches.apart("local", len(starts)))):
        assert sorted(windows) == list(range(len(starts)))
        for index, start in enumerate(starts):
            one = replace(plan, passes=plan.passes[index * size : (index + 1) * size])
            exact = dense(one, *qkv, ctx.rotary, ctx.stock, ctx.text).flatten(2)  # type: ignore[arg-type]
            output = windows[index].flatten(2) if windows[index].ndim == 4 else windows[index]
            assert (output.double() - exact[:, start * N_FRAME : (start + 4) * N_FRAME]).abs().max() < 5e-6


LONG = {  # latent frames, native ones, tokens of a frame and of text: the published sizes at about four times the native length
    "wan2.1-1.3b": (81, 21, 1560, 0), "ltx-2b": (61, 16, 330, 0), "cogvideox-5b": (49, 13, 1350, 226),
    "hunyuanvideo": (129, 33, 3600, 256),
}  # fmt: skip
MOST = {"freenoise": (60, 7), "freepca": (90, 12), "longdiff": (240, 16), "longdiff and key frames": (260, 24)}


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("backbone", LONG)
def test_few_calls_at_published_sizes(backbone: str, name: str) -> None:
    frames_lat, native, tokens, text_tokens = LONG[backbone]
    clip, full = Geometry(frames_lat, native, (1.0,)), full_attention(frames_lat)
    plan = {
        "freenoise": lambda: FreeNoise().apply(full, clip),
        "freepca": lambda: FreePca().branches(full, clip, 0, 50)["local"],
        "longdiff": lambda: LongDiff().apply(full, clip),
        "longdiff and key frames": lambda: Keyframes().apply(LongDiff().apply(full, clip), clip),
    }[name]()
    chosen = 0 if plan.key_frames is None else plan.key_frames.count(frames_lat)
    groups = len(plan.passes) if name == "freepca" else 1
    parts = tiling.tile(plan.passes, tokens, ACCELERATOR, chosen, text_tokens, groups)
    assert parts is not None
    calls = sum(len(blocks.tiles) for blocks in parts.blocks)
    pairs = sum(blocks.count * (tile.rows[1] - tile.rows[0]) * (tile.keys[1] - tile.keys[0])
                for blocks in parts.blocks for tile in blocks.tiles)  # fmt: skip
    held = max(blocks.count * sum(tile.rows[1] - tile.rows[0] for tile in blocks.tiles) for blocks in parts.blocks)
    print(f"{calls} calls in {len(parts.blocks)} blocks, {pairs / frames_lat**2:.3f} of all pairs")
    assert calls <= MOST[name][0]
    assert len(parts.blocks) <= MOST[name][1]
    assert held <= tiling.HELD * frames_lat
    if not chosen:
        assert pairs == pytest.approx(plan.density * frames_lat**2, rel=1e-3)


def test_the_queries_of_blocks_are_all_frames_once() -> None:
    plan = Keyframes().apply(LongDiff().apply(full_attention(81), Geometry(81, 21, (1.0,))), Geometry(81, 21, (1.0,)))
    parts = tiling.tile(plan.passes, 1560, ACCELERATOR, 8)
    assert parts is not None
    assert sorted(np.concatenate([blocks.queries for blocks in parts.blocks])) == list(range(81))
    assert max(blocks.count for blocks in parts.blocks) > 1


def test_plans_of_too_many_rows_are_left_to_the_other_way(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], accelerator: None,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(tiling, "ENTRIES", 10)
    tiling.tile.cache_clear()
    plan = MERGED["windows at random times"]
    assert executor.tiles_if_cheaper(plan, LayerInputs(ctx, *qkv)) is None
    assert (executor.run_plan(plan, LayerInputs(ctx, *qkv)).double() - dense(plan, *qkv, ctx.rotary, ctx.stock)).abs().max() < 5e-6  # type: ignore[arg-type]
    tiling.tile.cache_clear()


def test_a_query_that_sees_nothing_and_a_bias_that_hides(ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    plan, blind = MERGED["windows"], np.ones((T, T), dtype=bool)
    blind[4] = False
    output = tiled(plan.see_only(blind), ctx, qkv).unflatten(1, (T, -1))
    exact = dense(plan, *qkv, ctx.rotary, ctx.stock).unflatten(1, (T, -1))  # type: ignore[arg-type]
    others = np.arange(T) != 4
    assert (output[:, 4] == 0).all()
    assert (output[:, others].double() - exact[:, others]).abs().max() < 5e-6
    bias = np.where(np.arange(T) == 3, -np.inf, 0.0) + np.zeros((T, T))
    hidden = replace(plan, passes=plan.passes).each(lambda pass_: pass_.with_columns(logit_bias=bias))
    seen = np.broadcast_to(np.arange(T) != 3, (T, T))
    assert (tiled(hidden, ctx, qkv) - tiled(plan.see_only(seen), ctx, qkv)).abs().max() < 1e-6
