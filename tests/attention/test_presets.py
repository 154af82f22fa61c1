"""Every shipped preset on every family: the executor against one dense softmax, on the family's own rotary tables.

Also every pair of techniques: it runs, equal to the dense form, or is refused with a reason.

Legend: B batch, T frames, n tokens per frame, L text tokens, H heads, D head dim.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from longgen import catalog, planner, preset
from longgen.attention import executor
from longgen.attention.context import LayerInputs
from longgen.attention.rotary import Rotary
from longgen.backbones.cogvideox import COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V
from longgen.backbones.hunyuan import HUNYUANVIDEO, HUNYUANVIDEO_I2V
from longgen.backbones.hunyuan15 import HUNYUANVIDEO_1_5
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.ltx2 import LTX_2
from longgen.backbones.ltx_condition import LTX_2B_0_9_5
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import UsageError
from longgen.frameplan import FramePlan
from longgen.pipelines.ltx_condition import tables_for
from longgen.pipelines.processors import LayerCall
from longgen.plan import Plan
from longgen.program import Program
from tests.attention.dense import dense
from tests.stacks import STACKS

B, H, L, ROWS, COLUMNS = 2, 2, 5, 2, 4
SHAPES = {"layers": 2, "heads": H, "verdicts": {"position-sensitive": (0,), "context-sensitive": (1,)}}
SPECS = {
    "wan": replace(WAN_1_3B, head_dim=24, rotary_dims=8, intrinsic_component=1, **SHAPES),  # type: ignore[arg-type]
    "ltx": replace(LTX_2B, head_dim=16, rotary_base=100.0, intrinsic_component=5, **SHAPES),  # type: ignore[arg-type]
    "cogvideox": replace(COGVIDEOX_5B, head_dim=32, rotary_dims=8, intrinsic_component=1, **SHAPES),  # type: ignore[arg-type]
    "cogvideox-2b": replace(COGVIDEOX_2B, head_dim=16, **SHAPES),  # type: ignore[arg-type]
    "hunyuan": replace(HUNYUANVIDEO, head_dim=24, rotary_dims=8, intrinsic_component=2, **SHAPES),  # type: ignore[arg-type]
    "ltx-condition": replace(LTX_2B_0_9_5, head_dim=16, rotary_base=100.0, intrinsic_component=5, **SHAPES),  # type: ignore[arg-type]
    "cogvideox-i2v": replace(COGVIDEOX_5B_I2V, head_dim=32, rotary_dims=8, intrinsic_component=1, **SHAPES),  # type: ignore[arg-type]
    "ltx2": replace(LTX_2, head_dim=16, rotary_base=100.0, intrinsic_component=5, sound=None, **SHAPES),  # type: ignore[arg-type]
    "hunyuan15": replace(HUNYUANVIDEO_1_5, head_dim=24, rotary_dims=8, intrinsic_component=2, **SHAPES),  # type: ignore[arg-type]
    "hunyuan-i2v": replace(HUNYUANVIDEO_I2V, head_dim=24, rotary_dims=8, intrinsic_component=2, **SHAPES),  # type: ignore[arg-type]
}


def call_of(family: str, spec: BackboneSpec, frames_lat: int, seed: int) -> tuple[LayerCall, tuple[Tensor, Tensor, Tensor]]:
    """A layer's call with the family's own rotary tables, and random q, k, v."""
    generator = torch.Generator().manual_seed(seed)
    tokens, width = frames_lat * ROWS * COLUMNS, spec.head_dim
    frequencies = np.array(spec.frequencies)
    rotary: Rotary | None = Rotary(frequencies, np.arange(len(frequencies)))
    if family == "wan":
        cos, sin = (
            table[0, :, 0] for table in WanRotaryPosEmbed(width, (1, 1, 1), 256)(torch.zeros(1, 1, frames_lat, ROWS, COLUMNS))
        )
    elif family == "ltx2":
        rope = LTX2AudioVideoRotaryPosEmbed(spec.width, theta=spec.rotary_base, num_attention_heads=H)
        seconds = rope.prepare_video_coords(1, frames_lat, ROWS, COLUMNS, torch.device("cpu"), spec.fps)
        cos, sin = (table[0] for table in rope(seconds))
        rotary = Rotary(frequencies, spec.width % 6 // 2 + 3 * np.arange(len(frequencies)))
    elif family.startswith("ltx"):
        rope = LTXVideoRotaryPosEmbed(spec.width, theta=spec.rotary_base)  # at 10,000 its float32 angles are off by 1e-3
        seconds = None
        if family == "ltx-condition":
            ids = LTXConditionPipeline._prepare_video_ids(1, frames_lat, ROWS, COLUMNS)
            seconds = LTXConditionPipeline._scale_video_ids(ids).float() / torch.tensor([spec.fps, 1, 1])[None, :, None]
        cos, sin = rope(torch.zeros(1, tokens, 1), frames_lat, ROWS, COLUMNS, (spec.stride_t / spec.fps, 32, 32), seconds)
        cos, sin = cos[0], sin[0]
        rotary = Rotary(frequencies, spec.width % 6 // 2 + 3 * np.arange(len(frequencies)))
    elif family.startswith("hunyuan"):
        cos, sin = HunyuanVideoRotaryPosEmbed(1, 1, [8, 8, 8])(torch.zeros(1, 1, frames_lat, ROWS, COLUMNS))
    else:
        cos, sin = get_3d_rotary_pos_embed(width, ((0, 0), (ROWS, COLUMNS)), (ROWS, COLUMNS), frames_lat)
    q, k, v = (torch.randn(B, tokens, H, width, generator=generator) for _ in range(3))
    features = torch.randn(B, tokens, spec.width, generator=generator)
    text = (torch.randn(B, L, H, width, generator=generator), torch.randn(B, L, H, width, generator=generator))
    if not spec.rotary_dims:
        rotary = None
    tables = None if rotary is None else (cos[:, 0::2], sin[:, 0::2])
    grid = (frames_lat, ROWS, COLUMNS)
    return LayerCall(grid, features, rotary, tables, None, None, text if spec.joint_text else None), (q, k, v)


def expected(frame_plan: FramePlan, call: LayerCall, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The dense form, with the key frames that each sample's features choose."""
    rotary = call.rotary or Rotary(np.zeros(0), np.zeros(0, dtype=int))
    stock = call.stock or (torch.ones(qkv[0].shape[1], qkv[0].shape[3] // 2), torch.zeros(qkv[0].shape[1], qkv[0].shape[3] // 2))
    if frame_plan.key_frames is None:
        return dense(frame_plan, *qkv, rotary, stock, call.text)
    outputs = []
    for index in range(B):
        one, sample = slice(index, index + 1), call.sample(index)
        seen = np.zeros(frame_plan.frames_lat, dtype=bool)
        seen[frame_plan.key_frames.choose(sample.features[0].unflatten(0, (frame_plan.frames_lat, -1))).tolist()] = True
        chosen = replace(frame_plan, key_frames=None).see_also(np.broadcast_to(seen, (len(seen), len(seen))))
        outputs.append(dense(chosen, *(x[one] for x in qkv), rotary, stock, sample.text))
    return torch.cat(outputs)


def worst_difference(made: Plan, family: str) -> float:
    """The largest difference between the executor and the dense form, over every branch of the plan."""
    call, qkv = call_of(family, made.spec, made.call_geometry.frames_lat, seed=0)
    worst = 0.0
    for frame_plan, _, _ in made.branches().values():
        used, wanted = call, call
        if family in ("ltx-condition", "ltx2"):  # its own positions, or evenly spaced ones where a plan moves any
            used = replace(call, stock=tables_for(Program({"main": frame_plan}), call.stock, call.rotary))
            wanted = replace(used, rotary=None) if used.stock is call.stock else used
        output = executor.run_plan(frame_plan, LayerInputs(used, *qkv))
        worst = max(worst, (output.double() - expected(frame_plan, wanted, qkv)).abs().max().item())
    return worst


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("family", SPECS)
def test_every_preset_on_every_family_equals_the_dense_form(family: str, name: str) -> None:
    spec = replace(SPECS[family], native_px=8 * SPECS[family].stride_t + 1)  # nine latent frames, so that four times is quick
    steps = None if name == "fifo" else 2  # its queue decides
    chosen = preset.load(name, sample=preset.Sample(frames=32 * spec.stride_t + 1, steps=steps))
    absent = [need for technique in chosen.techniques for need in technique.requires if need not in spec.capabilities]
    conditions = planner.stand_in(spec)
    if absent:
        with pytest.raises(UsageError, match=f"needs {absent[0]}"):
            planner.build(chosen, spec, conditions=conditions)
        return
    made = planner.build(chosen, spec, conditions=conditions)
    assert name == "direct" or made.table.any() or made.sampling is not None or made.noise is not None
    difference = worst_difference(made, family)
    print(f"{name} on {family}: max difference {difference:.1e}")
    assert difference < 2e-5


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(catalog.TECHNIQUES, 2)))
def test_every_pair_of_techniques_runs_or_is_refused_with_a_reason(one: str, other: str) -> None:
    spec = replace(SPECS["wan"], native_px=33)
    sample = {"frames": 97} if "fifo" in (one, other) else {"frames": 97, "steps": 2}
    tables = {"name": "pair", "sample": sample, "technique": [{"name": one}, {"name": other}]}
    try:
        made = planner.build(preset.from_tables(tables, "pair"), spec)
    except UsageError as caught:
        refused = caught
        print(f"{one} + {other}: refused: {refused.given}")
    else:
        refused = None
    if refused is not None:
        assert one in refused.given or other in refused.given
        assert refused.expected
        assert refused.hint
        return
    assert len(made.techniques) == 2
    difference = worst_difference(made, "wan")
    print(f"{one} + {other}: max difference {difference:.1e}")
    assert difference < 2e-5
