"""SVI 2.0 Pro: what its clips are given, by the definition in its code, and what its preset says."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longgen import pictures, planner, preset
from longgen.backbones.wan import TINY
from longgen.conditions import Conditions
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.sampling.svi import Svi

PROMPT = "a large red circle bouncing on a navy background"
ABLE = dataclasses.replace(TINY, capabilities=(*TINY.capabilities, "latent-condition"), clean_lat=1)


def planned(frames: int, picture: pictures.Picture) -> Plan:
    made = preset.load("svi", ("svi.frames=5",), preset.Sample(frames=frames, steps=2))
    return planner.build(made, ABLE, conditions=Conditions(image=picture))


@pytest.fixture
def picture(tmp_path: Path) -> pictures.Picture:
    Image.fromarray(np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)).save(tmp_path / "picture.png")
    return pictures.read(tmp_path / "picture.png")


def test_clips_begin_with_the_picture_then_the_last_latent_frame(tiny: Any, picture: pictures.Picture) -> None:
    """y = [anchor, prev_last_latent[:, -1:], zeros], the mask on the anchor alone, and 5 pixel frames dropped at a join."""
    handed: list[Given] = []
    watched = copy.copy(tiny)

    @contextmanager
    def conditioned(plan: Plan, given: Given | None) -> Any:
        assert given is not None
        handed.append(given)
        with tiny.conditioned(plan, given) as arguments:
            watched.pipe = tiny.pipe
            yield arguments
        watched.pipe = tiny.pipe

    watched.conditioned = conditioned
    plan = planned(53, picture)  # 14 latent frames: 5, and 3 from each clip after it
    generator = torch.Generator().manual_seed(1)
    denoiser = Denoiser(watched, plan, PROMPT, tiny.given(plan, generator))
    made = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert [(clip.start, clip.new, clip.given) for clip in plan.clips] == [(0, 5, 0), (5, 3, 2), (8, 3, 2), (11, 3, 2)]
    anchor = tiny.encoded_frames(np.asarray(pictures.fitted(picture, (64, 64), "crop"))[None], torch.Generator())
    assert all(given.zero_padded and given.image is not None for given in handed)
    assert torch.equal(handed[0].latents, anchor)
    for clip, given in zip(plan.clips[1:], handed[1:], strict=True):
        assert torch.equal(given.latents, torch.cat([anchor, made[:, :, clip.start - 1 : clip.start]], dim=2))


def test_a_video_of_one_clip_is_padded_with_zeros_too(picture: pictures.Picture) -> None:
    assert len(planned(17, picture).clips) == 1


def test_the_preset_is_the_code_s(picture: pictures.Picture) -> None:
    shipped = preset.load("svi")
    assert shipped.techniques == (Svi(overlap=1, reference=True),)
    assert (shipped.sample.steps, shipped.sample.guidance_scale, shipped.sample.flow_shift) == (50, 5.0, 5.0)
    assert "1=SVI_Wan2.2-I2V-A14B_high_noise_lora_v2.0_pro.safetensors" in shipped.description
    assert "2=SVI_Wan2.2-I2V-A14B_low_noise_lora_v2.0_pro.safetensors" in shipped.description
