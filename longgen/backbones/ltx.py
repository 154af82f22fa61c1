"""LTX-Video 0.9."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import (
    FIRST_FRAME,
    FRAME_TIMESTEPS,
    RELATIVE_POSITIONS,
    WHOLE_CLIP,
    BackboneSpec,
    Family,
    TokenShift,
    substitute,
    transformer_sizes,
)

# LTX-Video 5a592aa (the release of 0.9), inference.py: 40 steps, guidance 3, 704x480, 121 frames at 25 fps, this negative prompt;
# configs/ltxv-2b-0.9.yaml adds spatiotemporal guidance, which diffusers' LTXPipeline does not have.
LTX_2B = BackboneSpec(
    name="ltx-2b", family="ltx", source="Lightricks/LTX-Video", license="LTX-Video Open Weights",
    about="LTX-Video 0.9, 2 billion parameters",
    stride_t=8, stride_hw=32, patch=(1, 1, 1), native_px=121, fps=25, size=(704, 480), steps=40, guidance_scale=3.0,
    negative_prompt="worst quality, inconsistent motion, blurry, jittery, distorted", dtype="bf16", layers=28, heads=32,
    head_dim=64, ffn_dim=8192, latent_channels=128, rotary_dims=682, rotary_span_s=20, rotary_base=10000.0,
    intrinsic_component=None, text_tokens=128, parameters=1_923_385_472, companions=5_181_504_561, least_steps=2,
    scheduler="FlowMatchEulerDiscreteScheduler", token_shift=TokenShift(0.95, 2.05, 1024, 4096),
    capabilities=(RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP, FIRST_FRAME), clean_lat=1,
)  # fmt: skip


def from_configs(configs: ModelConfigs, base: BackboneSpec = LTX_2B) -> BackboneSpec:
    _, _, transformer, vae = configs
    heads, head_dim = transformer.heads(multiple_of=2)
    layers, width = transformer.integer("num_layers"), heads * head_dim
    scaling = vae["spatio_temporal_scaling"]
    if not isinstance(scaling, list) or not all(type(halves) is bool for halves in scaling) or sum(scaling) > 8:
        vae.refuse("spatio_temporal_scaling", "a list of true and false, at most 8 of them true")
    stride = 2 ** sum(scaling)
    strides = {"temporal": vae.integer("patch_size_t") * stride, "spatial": vae.integer("patch_size") * stride}
    for axis, default in strides.items():  # from 0.9.5 on the VAE says them, and halves time and space in different blocks
        if vae.get(key := f"{axis}_compression_ratio") is not None:
            strides[axis] = vae.integer(key, default=default)
    return replace(
        base, stride_t=strides["temporal"], stride_hw=strides["spatial"],
        layers=layers, heads=heads, head_dim=head_dim, ffn_dim=4 * width,
        latent_channels=transformer.integer("in_channels"), rotary_dims=2 * (width // 6),
        parameters=layers * 16 * width**2,
    )  # fmt: skip


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    return transformer_sizes(spec) | dict(num_layers=spec.layers, cross_attention_dim=spec.width)


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers

    shift = spec.token_shift or LTX_2B.token_shift
    assert shift is not None
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=shift.base_log, max_shift=shift.most_log, base_image_seq_len=shift.base_tokens,
        max_image_seq_len=shift.most_tokens, shift_terminal=0.1,
    )  # fmt: skip
    return with_text(diffusers.LTXPipeline(scheduler, None, text, None, transformers[0]), spec, text)


def with_text(pipe: Any, spec: BackboneSpec, text: Any) -> Any:
    """`pipe`, whose prompts are `text`."""
    shape = (1, spec.text_tokens, pipe.transformer.config.caption_channels)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(*shape, device=device), text.mask(spec.text_tokens, device)
    )  # fmt: skip
    return pipe


_AUTHOR_NAMES = [("proj_in", "patchify_proj"), ("time_embed.", "adaln_single."), (".norm_q", ".q_norm"), (".norm_k", ".k_norm")]


def author_layers(layers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    return {substitute(layer, _AUTHOR_NAMES): (layer,) for layer in layers}


FAMILY = Family(
    name="ltx", title="LTX-Video", specs=(LTX_2B,), adapter="longgen.pipelines.ltx:Ltx", pipeline="LTXPipeline",
    from_configs=from_configs, transformer="LTXVideoTransformer3DModel", transformer_config=transformer_config,
    random_pipeline=random_pipeline, peak_activations=(15.2, 8.0), token_modulation=13.0, moved=180, batches_guidance=True,
    broken_caches=("fastercache", "taylorseer", "seacache"), author_layers=author_layers,
    picture_pipelines=("LTXImageToVideoPipeline",),
    context_parallel=True,
)  # fmt: skip
