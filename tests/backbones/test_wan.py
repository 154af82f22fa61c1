"""The Wan backbone against stock WanPipeline, bit for bit where nothing is asked of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import preset
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS, adapter_of
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY
from longgen.errors import LonggenError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import wan
from longgen.pipelines.loading import load
from longgen.plan import Plan
from tests import warm
from tests.models import published
from tests.stacks import STACKS

PROMPT = "a small cyan triangle orbiting on a sand background"


def noise(tiny: Any, plan: Plan, seed: int = 3) -> Tensor:
    return torch.randn(tiny.latent_shape(plan), generator=torch.Generator().manual_seed(seed))


def stock(tiny: Any, plan: Plan, **arguments: Any) -> Any:
    """The pipeline as any diffusers user would call it."""
    return tiny.pipe(
        prompt=PROMPT, negative_prompt=plan.sample.negative_prompt, height=plan.size[1], width=plan.size[0],
        num_frames=plan.frames_px, num_inference_steps=plan.steps, guidance_scale=plan.sample.guidance_scale,
        max_sequence_length=24, generator=torch.Generator().manual_seed(3), **arguments,
    ).frames  # fmt: skip


@pytest.mark.parametrize("frames_px", [17, 101])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(tiny: Any, tiny_plan: Callable[..., Plan], frames_px: int) -> None:
    plan = tiny_plan("direct", frames=frames_px, steps=3)
    latents = sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator())
    assert torch.equal(latents, stock(tiny, plan, output_type="latent"))
    frames = np.concatenate(list(wan.Wan.decoded(tiny.pipe.vae, latents, tiny.device)))
    assert np.array_equal(frames, (stock(tiny, plan, output_type="np")[0] * 255).round().astype(np.uint8))


@pytest.fixture(scope="module")
def native(tiny: Any, tiny_plan: Callable[..., Plan]) -> Tensor:
    """The stock pipeline's latents at native length."""
    return stock(tiny, tiny_plan("direct", steps=2), output_type="latent")


# by their definitions, TSA keeps its sparse context at any length, and VMCR acts on any latent
@pytest.mark.parametrize("name", [
    name for name in STACKS if name not in ("tsa", "freeloc", "glc-diffusion")
    and all(need in TINY.capabilities for technique in preset.load(name).techniques for need in technique.requires)
])  # fmt: skip
def test_at_native_length_every_preset_is_the_identity(
    tiny: Any, tiny_plan: Callable[..., Plan], native: Tensor, name: str
) -> None:
    plan = tiny_plan(name, steps=2)
    assert not plan.table.any()
    generator = torch.Generator().manual_seed(3)
    start = tiny.noise(plan, generator)
    if plan.noise is not None:
        start = plan.noise.mix(start, plan.geometry, generator)
    assert torch.equal(sample(Denoiser(tiny, plan, PROMPT), start, torch.Generator()), native)


NEUTRAL = {  # a stack, and settings of it with which it is not there
    "window": ("sliding-window", ("window.frames=31", "window.edge=shift")),
    "freespec": ("freespec", ("freespec.alpha=0", "freespec.lambda_start=0", "freespec.lambda_end=0", "freespec.window=31")),
    "freelong": ("freelong", ("freelong.window=31", "freenoise.noise=false")),
    "freelongpp": ("freelongpp", ("freelongpp.window=31", "freelongpp.noise=false")),
    "freepca": ("freepca", ("freepca.window=31", "freepca.noise=false")),
    "freenoise": ("freenoise", ("freenoise.window=31", "freenoise.noise=false")),
    "tsa": ("tsa", ("tsa.dense=30", "tsa.stripe=30")),
    "keyframes": ("keyframes", ("keyframes.window=30",)),
    "longdiff": ("longdiff", ("longdiff.group=31", "keyframes.layers=[]")),
    "vrpr": ("vrpr", ("vrpr.layers=[]",)),
    "flex": ("flex-positions", ("flex.horizon=31",)),
    "ntk": ("ntk", ("ntk.factor=1",)),
    "yarn": ("yarn", ("yarn.factor=1",)),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_setting_is_no_technique(tiny_plan: Callable[..., Plan], name: str) -> None:
    """Then no processor is installed, which is the stock pipeline, bit for bit (above)."""
    chosen, sets = NEUTRAL[name]
    assert tiny_plan(chosen, frames=121, steps=4).table.any()
    plan = tiny_plan(chosen, sets, frames=121, steps=4)
    assert plan.frames_lat == 31
    assert not plan.table.any()


def test_freespec_without_guidance_is_the_sliding_window(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    zero = ("freespec.alpha=0", "freespec.lambda_start=0", "freespec.lambda_end=0")
    plans = [tiny_plan("freespec", zero, frames=121, steps=2), tiny_plan("sliding-window", frames=121, steps=2)]
    one, other = (sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator()) for plan in plans)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sliding-window", "freespec", "riflex"])
def test_techniques_change_a_long_clip_and_leave_no_trace(tiny: Any, tiny_plan: Callable[..., Plan], name: str) -> None:
    plan, plain = tiny_plan(name, frames=121, steps=2), tiny_plan("direct", frames=121, steps=2)
    before = sample(Denoiser(tiny, plain, PROMPT), noise(tiny, plan), torch.Generator())
    processors = [block.attn1.processor for block in tiny.pipe.transformer.blocks]
    changed = sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator())
    assert not torch.allclose(changed, before, atol=1e-4)
    assert all(block.attn1.processor is stock for block, stock in zip(tiny.pipe.transformer.blocks, processors, strict=True))
    assert torch.equal(sample(Denoiser(tiny, plain, PROMPT), noise(tiny, plan), torch.Generator()), before)


def test_layers_with_equal_programs_share_one_processor(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    plan = tiny_plan("sliding-window", ("window.layers=[0,2,5]",), frames=121)
    with tiny.installed(plan):
        processors = [block.attn1.processor for block in tiny.pipe.transformer.blocks]
    planned = [i for i, processor in enumerate(processors) if isinstance(processor, wan.WanAttentionPlan)]
    assert planned == [0, 2, 5]
    assert len({id(processors[i]) for i in planned}) == 1


def test_layers_and_steps_are_obeyed(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    """A technique that acts on one layer in the last step leaves the latents of the steps before as they are."""
    plain = tiny_plan("direct", frames=121, steps=4)
    late = tiny_plan("sliding-window", ("window.layers=[1]", "window.steps=[0.75, 1.0]"), frames=121, steps=4)
    traces: list[list[Tensor]] = [[], []]
    for plan, trace in zip((plain, late), traces, strict=True):
        denoiser, on_step = Denoiser(tiny, plan, PROMPT), lambda state, trace=trace: trace.append(state.latents.clone())
        sample(denoiser, noise(tiny, plan), torch.Generator(), on_step)
    assert [torch.equal(a, b) for a, b in zip(*traces, strict=True)] == [True, True, True, False]


@pytest.mark.parametrize("changed", [{"negative_prompt": "a small blue square"}, {"guidance_scale": 1.5}, {"size": (48, 64)}])
def test_sampling_settings_reach_the_pipeline(tiny: Any, tiny_plan: Callable[..., Plan], changed: dict[str, Any]) -> None:
    plain, other = (tiny_plan("direct", frames=17, steps=2, **setting) for setting in ({}, changed))
    latents = [sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator()) for plan in (plain, other)]
    assert latents[1].shape == tiny.latent_shape(other)
    assert latents[0].shape != latents[1].shape or not torch.allclose(*latents, atol=1e-3)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dtype_is_the_transformer_s_and_the_vae_stays_in_float32(dtype: str, expected: torch.dtype) -> None:
    backbone = load(TINY, ModelSettings("cpu", dtype))
    assert (backbone.pipe.transformer.dtype, backbone.pipe.vae.dtype) == (expected, torch.float32)


def test_streaming_decode_is_the_full_decode(tiny: Any) -> None:
    latents = torch.randn(1, TINY.latent_channels, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    config = tiny.pipe.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        full = tiny.pipe.vae.decode(latents / (1.0 / std) + mean).sample
    full = tiny.pipe.video_processor.postprocess_video(full, output_type="np")[0]
    chunks = list(wan.Wan.decoded(tiny.pipe.vae, latents, tiny.device))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4, 4, 4, 4, 4]
    assert np.array_equal(np.concatenate(chunks), (full * 255).round().astype(np.uint8))


def test_fused_projections_serve_too(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    plan = tiny_plan("sliding-window", frames=121, steps=1)
    apart = sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator())
    for block in tiny.pipe.transformer.blocks:
        block.attn1.fuse_projections()
    try:
        fused = sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator())
    finally:
        for block in tiny.pipe.transformer.blocks:
            block.attn1.unfuse_projections()
    assert torch.allclose(apart, fused, atol=1e-5)


def test_group_offload_changes_nothing(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    """From host to host, as no GPU is here: the hooks are diffusers' own, the transfers are not tested."""
    plan = tiny_plan("freespec", frames=121, steps=2)
    latents = sample(Denoiser(tiny, plan, PROMPT), noise(tiny, plan), torch.Generator())
    frames = np.concatenate(list(wan.Wan.decoded(tiny.pipe.vae, latents, tiny.device)))
    offloaded = load(TINY, ModelSettings("cpu", "fp32"))
    offloaded.pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    again = sample(Denoiser(offloaded, plan, PROMPT), noise(tiny, plan), torch.Generator())
    assert torch.equal(again, latents)
    assert np.array_equal(np.concatenate(list(wan.Wan.decoded(offloaded.pipe.vae, again, offloaded.device))), frames)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_spec_counts_the_parameters_of_the_real_transformer(spec: BackboneSpec) -> None:
    model = published.transformer(spec)
    stored = model.state_dict().values()  # learned positions, a buffer in CogVideoX, among them
    assert spec.experts * sum(weight.numel() for weight in stored) == spec.parameters
    assert len(adapter_of(spec).layers(model)) == spec.layers
    if hasattr(getattr(model, "rope", None), "t_dim"):
        assert model.rope.t_dim == spec.rotary_dims


def test_the_shipped_model_is_what_its_spec_says(tiny: Any) -> None:
    config, vae = tiny.pipe.transformer.config, tiny.pipe.vae.config
    assert (config.num_layers, config.num_attention_heads, config.attention_head_dim) == (TINY.layers, TINY.heads, TINY.head_dim)
    assert (vae.scale_factor_temporal, vae.scale_factor_spatial, vae.z_dim) == (TINY.stride_t, TINY.stride_hw, TINY.latent_channels)
    companions = sum(p.numel() for model in (tiny.pipe.vae, tiny.pipe.text_encoder) for p in model.parameters())
    assert companions == TINY.companions
    assert sum(f.stat().st_size for f in Path(TINY.source).rglob("*")) < 24e6


def test_tiny_runs_on_one_thread_unless_told_otherwise(tmp_path: Path) -> None:
    script = "import os, torch; from longgen.pipelines.loading import decoder; from longgen.backbones.wan import TINY\n"
    script += "torch.set_num_threads(2); os.environ['OMP_NUM_THREADS'] = '2'\n"
    script += "decoder(TINY, 'cpu'); print(torch.get_num_threads())\n"
    script += "del os.environ['OMP_NUM_THREADS']; decoder(TINY, 'cpu'); print(torch.get_num_threads())"
    done = warm.run(tmp_path, [], script)
    assert done.stdout.split() == ["2", "1"], done.stderr


def test_a_folder_is_read_without_loading_it() -> None:
    spec = find(TINY.source)
    for name in ("stride_t", "stride_hw", "patch", "layers", "heads", "head_dim", "ffn_dim", "latent_channels", "rotary_dims",
                 "parameters", "companions"):  # fmt: skip
        assert getattr(spec, name) == getattr(TINY, name), name


def test_a_damaged_weight_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY.source, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(LonggenError, match=r"diffusion_pytorch_model.safetensors is incomplete or damaged"):
        find(str(folder))
    weights.unlink()
    with pytest.raises(LonggenError, match="missing or damaged"):
        load(find(str(folder)), ModelSettings("cpu", "fp32"))
