"""Passes computed by tiles, as on accelerators, against one dense softmax; and how many calls they take at published sizes.

Legend: T frames, n tokens per frame, B batch, P passes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.attention import executor, tile_merge, tiling
from longgen.attention.context import LayerInputs
from longgen.attention.device_costs import ACCELERATOR, CPU
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


def tiled(plan: FramePlan, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor], chosen: list[Tensor] | None = None, costs=ACCELERATOR) -> Tensor:
    kernel = ctx.attention_with_lse(qkv[0])
    assert kernel is not None
    text_tokens = 0 if ctx.text is None else TEXT_TOKENS
    parts = tiling.tile(plan.passes, N_FRAME, costs, 0 if chosen is None else len(chosen[0]), text_tokens)
    assert parts is not None
    return tile_merge.TileMerge(plan, parts, kernel).mean(LayerInputs(ctx, *qkv), chosen)


@pytest.mark.parametrize("text", [False, True], ids=["no text", "text"])
@pytest.mark.parametrize("costs", [ACCELERATOR, CPU], ids=["calls cost much", "calls cost little"])
@pytest.mark.parametrize("name", MERGED)
def test_equals_dense_softmax(name: str, costs, text: bool, ctx: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx = with_text(ctx) if text else ctx
    exact = dense(MERGED[name], *qkv, ctx.rotary, ctx.stock, ctx.text)  # type: ignore[arg-type]
    before = [x.clone() for x in qkv]
    difference = (tiled(MERGED[name], ctx, qkv, costs=costs).double() - exact).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 5e-6
    assert all(torch.equal(x, y) for x, y in zip(qkv, before, strict=True))
