"""Backbones of random weights: every family runs as its published one does, and the same at every call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from longgen import planner, preset
from longgen.backbones.registry import FAMILIES, SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import FIRST_FRAME, BackboneSpec, Sound
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import random_weights

WAN = dict(layers=2, heads=2, head_dim=24, ffn_dim=32, rotary_dims=8, intrinsic_component=1, text_tokens=32)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": WAN,
    "wan2.1-1.3b": WAN,
    "wan2.2-t2v-a14b": WAN,
    "wan2.2-ti2v-5b": WAN,
    "skyreels-v2": WAN,
    "skyreels-v2-df-1.3b": WAN,
    "self-forcing": WAN,
    "causal-forcing-2step": WAN,
    "longlive-2": WAN,
    "ltx-2b": dict(layers=2, heads=2, head_dim=32, ffn_dim=256),
    "ltx-2b-0.9.5": dict(layers=2, heads=2, head_dim=32, ffn_dim=256),
    "cogvideox-2b": dict(layers=2, heads=2, head_dim=32, ffn_dim=256),
    "cogvideox-5b": dict(layers=2, heads=2, head_dim=64, ffn_dim=512),
    "cogvideox-5b-i2v": dict(layers=2, heads=2, head_dim=64, ffn_dim=512),
    "cogvideox-1.5": dict(layers=2, heads=2, head_dim=64, ffn_dim=512),
    "hunyuanvideo": dict(layers=3, heads=2, head_dim=24, ffn_dim=96, rotary_dims=8, intrinsic_component=1),
    "hunyuanvideo-i2v": dict(layers=3, heads=2, head_dim=24, ffn_dim=96, rotary_dims=8, intrinsic_component=1),
    "ltx-2": dict(layers=2, heads=2, head_dim=32, ffn_dim=256, text_tokens=32, sound=Sound(32, 25.0)),
    "hunyuanvideo-1.5": dict(layers=2, heads=2, head_dim=24, ffn_dim=96, rotary_dims=8, intrinsic_component=1),
    "hunyuanvideo-1.5-i2v": dict(layers=2, heads=2, head_dim=24, ffn_dim=96, rotary_dims=8, intrinsic_component=1),
}


def small(name: str) -> BackboneSpec:
    return replace(SPECS[name], size=(64, 64), parameters=0, verdicts={}, **SIZES[name])


def sampled(spec: BackboneSpec, name: str = "direct", model_settings: ModelSettings | None = None) -> torch.Tensor:
    """The latents of two steps, 33 frames."""
    model = random_weights.build(spec, model_settings or ModelSettings("cpu", "fp32"))
    conditions = planner.stand_in(replace(spec, picture_needed=FIRST_FRAME in spec.capabilities and not spec.causal))
    made = planner.build(preset.load(name, (), preset.Sample(frames=33, steps=2)), spec, conditions=conditions)
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(model, made, "a", model.given(made, generator))
    return sample(denoiser, denoiser.initial_noise(generator), generator)


@pytest.mark.parametrize("name", SIZES)
def test_every_family_runs_and_activations_stay_as_they_are(name: str) -> None:
    spec = small(name)
    latents = sampled(spec)
    rows, columns = spec.size[1] // spec.stride_hw, spec.size[0] // spec.stride_hw
    assert latents.shape == (1, spec.latent_channels, 32 // spec.stride_t + 1, rows, columns)
    assert 0.2 < latents.float().std() < 5


def test_the_same_weights_come_every_time_and_no_two_experts_alike() -> None:
    spec = small("wan2.2-t2v-a14b")
    assert torch.equal(sampled(spec), sampled(spec))
    one, other = random_weights.build(spec, ModelSettings("cpu", "fp32")).transformers
    assert not torch.equal(one.blocks[0].attn1.to_q.weight, other.blocks[0].attn1.to_q.weight)


def test_techniques_act_on_it() -> None:
    spec = replace(small("tiny"), native_px=9)
    assert not torch.equal(sampled(spec), sampled(spec, "freespec"))


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "ltx-2b", "cogvideox-5b", "hunyuanvideo"])
def test_weights_have_the_dtypes_that_loading_gives_them(name: str) -> None:
    model = random_weights.build(small(name), ModelSettings("cpu", "bf16"))
    dtypes = {key: weight.dtype for key, weight in model.pipe.transformer.named_parameters()}
    precise = {key for key, dtype in dtypes.items() if dtype == torch.float32}
    kept = model.pipe.transformer._keep_in_fp32_modules or ()
    assert precise == {key for key in dtypes if set(kept) & set(key.split("."))}
    assert set(dtypes.values()) == {torch.bfloat16} | ({torch.float32} if kept else set())
    assert sampled(small(name), model_settings=ModelSettings("cpu", "bf16")).isfinite().all()


def test_flags_act_as_on_a_loaded_model() -> None:
    """mag waits for its plan; there is no VAE to tile."""

    def hooked(cache: str | None) -> bool:
        model = random_weights.build(small("tiny"), ModelSettings("cpu", "fp32", cache=cache, vae_tiling=True))
        return any(hasattr(block, "_diffusers_hook") for block in model.transformers[0].blocks)

    assert [hooked(cache) for cache in (None, "mag", "first-block")] == [False, False, True]
    with pytest.raises(UsageError, match="no such attention backend"):
        random_weights.build(small("tiny"), ModelSettings("cpu", "fp32", attention="quick"))


def test_every_family_is_here() -> None:
    assert {SPECS[name].family for name in SIZES} == {*FAMILIES}
