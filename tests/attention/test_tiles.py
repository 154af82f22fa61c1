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
from longgen.attention.device_costs import ACCELERATOR, CPU, CallCosts
from longgen.context.freenoise import FreeNoise
from longgen.context.keyframes import Keyframes
from longgen.frameplan import FramePlan, Geometry, full_attention
from longgen.fusion.freepca import FreePca
from longgen.pipelines.processors import LayerCall
from longgen.positions.longdiff import LongDiff
from longgen.program import Program
from tests.attention.dense import dense
from tests.attention.test_executor import N_FRAME, T, ctx, qkv
from tests.attention.test_merge import CLIP, FREEPCA, LOGITS, MERGED, TEXT_TOKENS, WITH_COLUMNS, with_columns, with_text

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
