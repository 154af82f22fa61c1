"""The anchor of clips against its equation, on a layer's own keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longgen import planner, preset
from longgen.backbones.wan import TINY
from longgen.context.anchor import Anchor
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.processors import LayerCall
from longgen.pipelines.step_state import ClipBatch
from longgen.plan import Plan

CLIP = Geometry(5, 5, (1.0, 0.1), in_clips=True)


def stacked(*tables: dict[str, Any], frames: int = 241, steps: int = 2) -> Plan:
    return planner.build(
        preset.from_tables({"name": "a", "sample": {"frames": frames, "steps": steps}, "technique": list(tables)}, "a"), TINY
    )


def sampled(tiny: Any, made: Plan, clip_batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = tiny.noise(made, generator)
    before, tiny.model_settings = tiny.model_settings, tiny.model_settings.replace(clip_batch=clip_batch)
    try:
        return sample(Denoiser(tiny, made, "a large red circle bouncing on a navy background"), noise, generator)
    finally:
        tiny.model_settings = before


@pytest.mark.parametrize("weight", [0.1, 0.9, 1.0])
def test_keys_and_values_are_mixed_with_those_of_the_anchor(weight: float) -> None:
    """Two paths of three clips and two samples; calls of two clips each, as batches of clips are made."""
    anchors, samples = [0, 0, 0, 3, 3, 3], 2
    k, v = torch.randn(2, 6, samples, 4, 2, 3).unbind(0)  # [clip, sample, tokens, heads, D]
    kept: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    for first in range(0, 6, 2):
        rows = [(clip, anchors[clip], index) for clip in (first, first + 1) for index in range(samples)]
        call = LayerCall((1, 2, 2), torch.zeros(0), None, None, None, None, layer=7, clips=ClipBatch(rows, kept))
        mixed = call.anchored(k[first : first + 2].flatten(0, 1), v[first : first + 2].flatten(0, 1), weight)
        for own, made in zip((k, v), mixed, strict=True):
            for row, (clip, anchor, index) in enumerate(rows):
                expected = own[clip, index] if clip == anchor else (1 - weight) * own[clip, index] + weight * own[anchor, index]
                assert torch.allclose(made[row], expected, atol=1e-6)
                assert clip != anchor or torch.equal(made[row], own[clip, index])


def test_without_clips_and_with_weight_zero_it_is_not_there() -> None:
    flat = full_attention(5)
    assert Anchor().apply(flat, CLIP).anchor == 0.1
    assert Anchor(weight=0).apply(flat, CLIP) is flat
    assert Anchor().apply(flat, dataclasses.replace(CLIP, in_clips=False)) is flat
    assert any("anchor changes nothing" in note for note in stacked({"name": "anchor"}).notes)
    assert not stacked({"name": "gen-l-video"}, {"name": "anchor", "weight": 0}).table.any()


def test_clips_with_an_anchor_differ_and_batches_of_them_do_not(tiny: Any) -> None:
    tables = ({"name": "glcd"}, {"name": "anchor", "weight": 0.5})
    plain, one, three = (sampled(tiny, stacked(*chosen, frames=161), batch) for chosen, batch in
                         ((tables[:1], 1), (tables, 1), (tables, 3)))  # fmt: skip
    assert (one - plain).abs().max() > 1e-2
    print(f"max difference of batches {(one - three).abs().max():.1e}")
    assert (one - three).abs().max() < 1e-3
    assert tiny.step_state.clips is None


def test_the_first_clip_is_as_it_would_be_alone(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    """With clips side by side nothing but the anchor ties them, and the anchor takes nothing from the others."""
    made = stacked({"name": "gen-l-video", "stride": 21}, {"name": "anchor", "weight": 1.0}, frames=165)
    alone = stacked({"name": "gen-l-video", "stride": 21}, frames=165)
    one, other = (sampled(tiny, chosen)[:, :, :21] for chosen in (made, alone))
    assert np.allclose(one, other, atol=1e-5)


def test_a_step_cache_is_refused_beside_it(tiny: Any) -> None:
    import copy

    cached = copy.copy(tiny)
    cached.model_settings = tiny.model_settings.replace(cache="first-block:0.1")
    made = stacked({"name": "gen-l-video"}, {"name": "anchor"})
    with pytest.raises(UsageError, match="skips layers whose keys and values the anchor lends"):
        sample(Denoiser(cached, made, "x"), tiny.noise(made, torch.Generator()), torch.Generator())


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"anchor.weight = 1.5: .*less than or equal to 1"):
        stacked({"name": "anchor", "weight": 1.5})
