"""SkyReels-V2 text-to-video, whose transformer is Wan's in a class of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import RELATIVE_POSITIONS, WHOLE_CLIP, BackboneSpec, Family, transformer_sizes
from longgen.backbones.wan import WAN_1_3B, WAN_14B, author_layers, tokenized

# SkyReels-V2 abed76f, generate_video.py: the negative prompt. README.md: 97 frames of 960x544 for the 540P models (121 of 1280x720
# for the 720P ones, whose configs are alike), 24 fps, 50 steps, guidance 6 and shift 8 for text-to-video. The shift that the
# checkpoint's scheduler has is diffusers' default [assumed]: its examples set 8 by hand, which is the default here. Positions are
# Wan's, and so RIFLEx's component [derived].
NEGATIVE = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall gray, worst "
    "quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly drawn faces, "
    "deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three legs, many people in the "
    "background, walking backwards"
)
SKYREELS_V2 = replace(
    WAN_14B, name="skyreels-v2", family="skyreels", source="Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
    license="Skywork Community", about="SkyReels-V2 text-to-video, 14 billion parameters, 540p", native_px=97, fps=24,
    size=(960, 544), guidance_scale=6.0, negative_prompt=NEGATIVE, flow_shift=8.0, checkpoint_shift=1.0,
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP), advised=(), advised_in="",
)  # fmt: skip


def sizes(configs: ModelConfigs, base: BackboneSpec) -> BackboneSpec:
    """`base` with the sizes in `configs`. Raises UsageError."""
    transformer, vae = configs.transformer, configs.vae
    heads, head_dim = transformer.heads(multiple_of=2)
    if head_dim < 6:
        transformer.refuse("attention_head_dim", "at least 6: time, rows and columns share it")
    if transformer.get("num_frame_per_block", 1) != 1:
        transformer.refuse("num_frame_per_block", "1: blocks of frames that see the past only are not driven")
    patch_t, patch_h, patch_w = transformer.integers("patch_size", count=3)
    if patch_t != 1:
        transformer.refuse("patch_size", "1 for time")
    ffn_dim, layers, rotary_dims = transformer.integer("ffn_dim"), transformer.integer("num_layers"), head_dim - 4 * (head_dim // 6)
    width = heads * head_dim
    return replace(
        base, stride_t=vae.integer("scale_factor_temporal", default=4), stride_hw=vae.integer("scale_factor_spatial", default=8),
        patch=(1, patch_h, patch_w), most_lat=transformer.integer("rope_max_seq_len", default=base.most_lat), layers=layers,
        heads=heads, head_dim=head_dim, ffn_dim=ffn_dim, rotary_dims=rotary_dims,
        latent_channels=transformer.integer("in_channels"),
        intrinsic_component=min(WAN_1_3B.intrinsic_component or 1, rotary_dims // 2),
        parameters=layers * (8 * width**2 + 2 * width * ffn_dim),
    )  # fmt: skip


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    return sizes(configs, SKYREELS_V2)


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    return transformer_sizes(spec) | dict(patch_size=spec.patch, ffn_dim=spec.ffn_dim, num_layers=spec.layers)


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any, kind: str = "SkyReelsV2Pipeline") -> Any:
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                                  flow_shift=spec.checkpoint_shift or SKYREELS_V2.checkpoint_shift)  # fmt: skip
    pipe = getattr(diffusers, kind)(None, text, transformers[0], None, scheduler)
    pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial = spec.stride_t, spec.stride_hw
    shape = (1, spec.text_tokens, transformers[0].config.text_dim)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: text.embeddings(*shape, device=device)
    return pipe


FAMILY = Family(
    name="skyreels", title="SkyReels-V2", specs=(SKYREELS_V2,), adapter="longgen.pipelines.skyreels:SkyReels",
    pipeline="SkyReelsV2Pipeline", from_configs=from_configs, transformer="SkyReelsV2Transformer3DModel",
    transformer_config=transformer_config, random_pipeline=random_pipeline, peak_activations=(11.2, 4.0), moved=185,
    vae_float32=True, broken_caches=("pyramid-attention-broadcast", "fastercache", "taylorseer", "seacache"), tokenized=tokenized,
    author_layers=author_layers,
)  # fmt: skip
