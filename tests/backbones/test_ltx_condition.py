"""LTX-Video 0.9.5 against the stock LTXConditionPipeline and against one dense softmax. More with pictures: test_image_models.py.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXConditionPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from torch import Tensor

from longgen.attention.rotary import Rotary
from longgen.frameplan import FramePlan, distances, full_attention
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.given import Given
from tests.attention.dense import dense
from tests.backbones import family

FRAMES_PX, T = 41, 6
PLANS = {"neutral": full_attention(T)} | family.plans(T, 10)


@pytest.fixture(scope="module")
def backbone(model_folder: Callable[[str], Path]) -> Any:
    return family.loaded(model_folder("ltx-condition"))


@pytest.fixture(scope="module")
def stock(model_folder: Callable[[str], Path]) -> Any:
    """The pipeline in the hands of a user who has never heard of longgen."""
    pipe = LTXConditionPipeline.from_pretrained(model_folder("ltx-condition"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def inputs(backbone: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    picture = family.pictured(tmp_path_factory.mktemp("pictures"))
    return family.layer_inputs(backbone, family.made(backbone, "direct", FRAMES_PX, 2, conditions=picture))


def test_text_alone_is_the_stock_pipeline_bit_for_bit(backbone: Any, stock: Any) -> None:
    plan = family.made(backbone, "direct", FRAMES_PX, 3)
    latents = family.sampled(backbone, plan)
    assert torch.equal(latents, family.stock_call(stock, plan, output_type="latent"))
    frames = (family.stock_call(stock, plan, output_type="np")[0] * 255).round().astype(np.uint8)
    assert np.array_equal(np.concatenate(list(backbone.decode(latents))), frames)


def test_several_clean_frames_are_the_stock_pipeline_s_video_condition(backbone: Any, stock: Any) -> None:
    """The noise is drawn first there, and the VAE's distribution of the frames after it."""
    plan = family.made(backbone, "direct", FRAMES_PX, 3)
    video = np.random.default_rng(0).integers(0, 256, (17, *reversed(family.SIZE), 3), dtype=np.uint8)
    condition = LTXVideoCondition(video=[Image.fromarray(frame) for frame in video], frame_index=0)
    generator, ahead = (torch.Generator().manual_seed(family.SEED) for _ in range(2))
    backbone.noise(plan, ahead)
    given = Given(backbone.encoded_frames(video, ahead))
    assert given.latents is not None
    assert given.latents.shape[2] == 3
    noise = backbone.noise(plan, generator)
    latents = sample(Denoiser(backbone, plan, family.PROMPT, given), noise, generator, lambda state: None)
    assert torch.equal(latents, family.stock_call(stock, plan, conditions=[condition], output_type="latent"))


def test_frames_with_levels_of_their_own_stand_where_the_pipeline_puts_them(backbone: Any) -> None:
    """A queue: its schedule is the pipeline's too."""
    backbone = type(backbone)(replace(backbone.spec, native_px=33), backbone.pipe, backbone.model_settings)
    plan = family.made(backbone, "fifo", 65, None, ("fifo.partitions=2",))
    assert torch.isfinite(family.sampled(backbone, plan)).all()
    direct = family.made(backbone, "direct", FRAMES_PX, plan.steps)
    family.sampled(backbone, direct)
    assert torch.equal(backbone.frame_schedule(plan).timesteps, backbone.pipe.scheduler.timesteps)


def expected(backbone: Any, attn: Any, plan: FramePlan, inputs: dict[str, Any]) -> Tensor:
    """The layer's answer by the dense form: at the model's own times, or at evenly spaced ones where `plan` moves any frame."""
    hidden, (cos, sin) = inputs["hidden_states"], inputs["image_rotary_emb"]
    own = plan.frequency_scale is None and all(np.array_equal(one.rel, distances(T)) for one in plan.passes)
    rotary = Rotary(np.zeros(0), np.zeros(0, dtype=int)) if own else backbone.rotary()
    with torch.no_grad():
        q, k, v = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        return attn.to_out[0](dense(plan, q, k, v, rotary, (cos[0, :, 0::2], sin[0, :, 0::2])).flatten(2).float())


@pytest.mark.parametrize("name", PLANS)
def test_a_planned_layer_equals_one_dense_softmax(backbone: Any, inputs: list[dict[str, Any]], name: str) -> None:
    plan = family.programmed(family.made(backbone, "direct", FRAMES_PX, 2), PLANS[name])
    for index, given in enumerate(inputs):
        attn = backbone.layers(backbone.pipe.transformer)[index]
        output = family.through(backbone, plan, index, given)
        difference = (output - expected(backbone, attn, PLANS[name], given)).abs().max().item()
        with torch.no_grad():
            change = (output - attn(**given)).abs().max().item()
        print(f"{name}, layer {index}: max difference {difference:.1e}, from stock {change:.1e}")
        assert difference < 1e-5
        assert (change > 1e-3) == (name != "neutral")


def test_the_first_two_frames_are_a_pixel_frame_apart(backbone: Any, inputs: list[dict[str, Any]]) -> None:
    """In turns of the slowest temporal pair a latent frame; all later ones are eight."""
    cos, sin = (table[0, :, 0::2].double() for table in inputs[0]["image_rotary_emb"])
    turn, rotary = torch.complex(cos, sin).unflatten(0, (T, -1)), backbone.rotary()
    place, theta = rotary.pairs[0], rotary.frequencies[0]
    turns = (turn[1:, 0, place] * turn[:-1, 0, place].conj()).angle() / theta
    assert torch.allclose(turns, torch.tensor([1 / 8, *[1.0] * (T - 2)], dtype=torch.float64), atol=1e-4)
