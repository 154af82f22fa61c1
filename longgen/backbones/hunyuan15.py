"""HunyuanVideo-1.5. Text of two encoders and tokens of a picture share self-attention with the video; guidance is a second call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import FIRST_FRAME, RELATIVE_POSITIONS, WHOLE_CLIP, BackboneSpec, Family, Tokenized, transformer_sizes

PROMPT_TOKENS, GLYPH_TOKENS, PICTURE_TOKENS = 1000, 256, 729  # of diffusers 0.42.1; the last two may be all padding
# HunyuanVideo-1.5 60783e7, README.md: 480p and 720p, 50 steps, guidance 6, 121 frames, no negative prompt; shift 5 at 480p, 9 at
# 720p, 7 for a picture there; generate.py writes 24 fps. Size: diffusers' buckets for 16:9. Hub ids: the README's, with `Diffusers`
# in them, which those in diffusers' examples lack, and do not exist. Rotary base and channels of time are HunyuanVideo's, and so
# RIFLEx's component [derived]; the repetitions that UltraViCo measured there nobody published for this model. Parameters of the
# companions: Qwen2.5-VL-7B's text half and the VAE by their configs, byT5 with Glyph-SDXL-v2's vocabulary, which is not at hand and
# counted as 1,510.
HUNYUANVIDEO_1_5 = BackboneSpec(
    name="hunyuanvideo-1.5", family="hunyuan15", source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
    license="Tencent Hunyuan Community", about="HunyuanVideo-1.5, 8.3 billion parameters, 480p, VAE with 16x16 pixels a cell",
    stride_t=4, stride_hw=16, patch=(1, 1, 1), native_px=121, fps=24, size=(848, 480), steps=50, guidance_scale=6.0,
    negative_prompt="", dtype="bf16", layers=54, heads=16, head_dim=128, ffn_dim=8192, latent_channels=32, rotary_dims=16,
    rotary_base=256.0, intrinsic_component=4, text_tokens=PROMPT_TOKENS, image_tokens=GLYPH_TOKENS + PICTURE_TOKENS,
    condition_channels=33,
    parameters=8_326_608_160, companions=8_550_568_195, capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP), joint_text=True,
    scheduler="FlowMatchEulerDiscreteScheduler", checkpoint_shift=5.0,
)  # fmt: skip
# The same, for 480p I2V. Encoder of the picture: SigLIP, by its config.
HUNYUANVIDEO_1_5_I2V = replace(
    HUNYUANVIDEO_1_5, name="hunyuanvideo-1.5-i2v", source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v",
    about="HunyuanVideo-1.5 image-to-video, 8.3 billion parameters, 480p", clean_lat=1, companions=8_978_793_795,
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME), picture_needed=True,
)  # fmt: skip
HUNYUANVIDEO_1_5_720P = replace(
    HUNYUANVIDEO_1_5, name="hunyuanvideo-1.5-720p", source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v",
    about="HunyuanVideo-1.5, 8.3 billion parameters, 720p", size=(1280, 720), checkpoint_shift=9.0,
)  # fmt: skip
HUNYUANVIDEO_1_5_I2V_720P = replace(
    HUNYUANVIDEO_1_5_I2V, name="hunyuanvideo-1.5-i2v-720p", source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_i2v",
    about="HunyuanVideo-1.5 image-to-video, 8.3 billion parameters, 720p", size=(1280, 720), checkpoint_shift=7.0,
)  # fmt: skip
# hyvideo/commons/__init__.py: 12 steps, no guidance, shift 7; README.md: 8 or 12 steps, 4 with slightly reduced quality.
HUNYUANVIDEO_1_5_I2V_FAST = replace(
    HUNYUANVIDEO_1_5_I2V, name="hunyuanvideo-1.5-i2v-fast",
    source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v_step_distilled",
    about="HunyuanVideo-1.5 image-to-video, 8.3 billion parameters, 480p, distilled to 8 or 12 steps without guidance",
    steps=12, guidance_scale=1.0, meanflow=True, checkpoint_shift=7.0, parameters=8_331_330_848,
)  # fmt: skip


def _published(pictured: bool, target_size: Any, meanflow: bool) -> BackboneSpec:
    """target_size: of the transformer's config, 640 for 480p and 960 for 720p. meanflow: distilled to few steps."""
    if meanflow:
        return HUNYUANVIDEO_1_5_I2V_FAST
    if target_size == 960:
        return HUNYUANVIDEO_1_5_I2V_720P if pictured else HUNYUANVIDEO_1_5_720P
    return HUNYUANVIDEO_1_5_I2V if pictured else HUNYUANVIDEO_1_5


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    _, index, transformer, vae = configs
    pictured = index["_class_name"] in FAMILY.picture_pipelines
    meanflow = transformer.get("use_meanflow") is True  # task_type says nothing: diffusers' script writes i2v for 480p T2V
    if meanflow and not pictured:
        transformer.refuse("use_meanflow", f"false: diffusers' {index['_class_name']} gives no timestep_r")
    heads, head_dim = transformer.heads(multiple_of=2)
    layers, channels = transformer.integer("num_layers"), transformer.get("out_channels")
    axes, patch = transformer.integers("rope_axes_dim", count=3), transformer.integer("patch_size")
    if sum(axes) != head_dim or axes[0] % 2:
        transformer.refuse("rope_axes_dim", f"even numbers that add up to attention_head_dim, {head_dim}")
    if type(channels) is not int or transformer.integer("in_channels") != 2 * channels + 1:
        transformer.refuse("in_channels", "twice out_channels, and one for a mask")
    ratio, base = transformer.number("mlp_ratio", 64), _published(pictured, transformer.get("target_size"), meanflow)
    stride_t, stride_hw = (vae.integer(f"{kind}_compression_ratio") for kind in ("temporal", "spatial"))
    return replace(
        base, stride_t=stride_t, stride_hw=stride_hw, patch=(transformer.integer("patch_size_t"), patch, patch), layers=layers,
        heads=heads, head_dim=head_dim,
        ffn_dim=round(ratio * heads * head_dim), latent_channels=channels, condition_channels=channels + 1, rotary_dims=axes[0],
        rotary_base=transformer.number("rope_theta", 1e12), intrinsic_component=min(4, axes[0] // 2),
        parameters=round(layers * (20 + 4 * ratio) * (heads * head_dim) ** 2),
    )  # fmt: skip


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    side = (spec.head_dim - spec.rotary_dims) // 2
    return transformer_sizes(spec) | dict(
        num_layers=spec.layers, mlp_ratio=spec.ffn_dim / spec.width, rope_axes_dim=(spec.rotary_dims, side, side),
        task_type="i2v" if spec.picture_needed else "t2v", use_meanflow=spec.meanflow,
    )  # fmt: skip


class _Sizes(SimpleNamespace):
    """The numbers of a VAE that the pipelines read when they are made."""


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers

    config = transformers[0].config
    vae = _Sizes(temporal_compression_ratio=spec.stride_t, spatial_compression_ratio=spec.stride_hw,
                 config=_Sizes(latent_channels=spec.latent_channels))  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=spec.checkpoint_shift or HUNYUANVIDEO_1_5.checkpoint_shift)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=spec.guidance_scale)
    kind = diffusers.HunyuanVideo15ImageToVideoPipeline if spec.picture_needed else diffusers.HunyuanVideo15Pipeline
    pipe = kind(text, None, transformers[0], vae, scheduler, None, None, guider, *((None, None) if spec.picture_needed else ()))
    pipe.vae = None
    words, glyphs = spec.text_tokens, min(GLYPH_TOKENS, spec.image_tokens // 2)
    pictures = pipe.vision_num_semantic_tokens = spec.image_tokens - glyphs
    pipe._get_mllm_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(1, words, config.text_embed_dim, device=device), text.mask(words, device)
    )  # fmt: skip
    pipe._get_byt5_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(1, glyphs, config.text_embed_2_dim, device=device), 0 * text.mask(glyphs, device)
    )  # fmt: skip
    pipe.encode_image = lambda *_, device=None, **__: text.embeddings(1, pictures, config.image_embed_dim, device=device)
    return pipe


def tokenized(prompt: str, spec: BackboneSpec) -> Tokenized:
    """Within the chat that the pipelines put around prompts, in the words of Qwen2.5-VL's template."""
    from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline

    system = HunyuanVideo15Pipeline._get_mllm_prompt_embeds.__defaults__[2]  # (length, hidden layers, system message, start)
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    text = f"{before}{prompt or ' '}<|im_end|>\n<|im_start|>assistant\n"
    return Tokenized(text, len(before), 108)


# (layer in diffusers, its name in the authors' code)
_AUTHOR_LAYERS = [
    ("attn.to_q", "img_attn_q"), ("attn.to_k", "img_attn_k"), ("attn.to_v", "img_attn_v"), ("attn.to_out.0", "img_attn_proj"),
    ("attn.add_q_proj", "txt_attn_q"), ("attn.add_k_proj", "txt_attn_k"), ("attn.add_v_proj", "txt_attn_v"),
    ("attn.to_add_out", "txt_attn_proj"), ("ff.net.0.proj", "img_mlp.fc1"), ("ff.net.2", "img_mlp.fc2"),
    ("ff_context.net.0.proj", "txt_mlp.fc1"), ("ff_context.net.2", "txt_mlp.fc2"), ("norm1.linear", "img_mod.linear"),
    ("norm1_context.linear", "txt_mod.linear"),
]  # fmt: skip


def author_layers(layers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for number in {layer.split(".")[1] for layer in layers if layer.startswith("transformer_blocks.")}:
        for own, name in _AUTHOR_LAYERS:
            if (layer := f"transformer_blocks.{number}.{own}") in layers:
                table[f"double_blocks.{number}.{name}"] = (layer,)
    return table


FAMILY = Family(
    name="hunyuan15", title="HunyuanVideo-1.5",
    specs=(HUNYUANVIDEO_1_5, HUNYUANVIDEO_1_5_I2V, HUNYUANVIDEO_1_5_720P, HUNYUANVIDEO_1_5_I2V_720P,
           HUNYUANVIDEO_1_5_I2V_FAST),
    adapter="longgen.pipelines.hunyuan15:Hunyuan15", pipeline="HunyuanVideo15Pipeline", from_configs=from_configs,
    transformer="HunyuanVideo15Transformer3DModel", transformer_config=transformer_config, random_pipeline=random_pipeline,
    peak_activations=(15.3, 4.4), moved=117,
    folders=("guider", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"),
    picture_folders=("feature_extractor", "image_encoder"), picture_pipelines=("HunyuanVideo15ImageToVideoPipeline",),
    broken_caches=("fastercache", "seacache", "pyramid-attention-broadcast"),
    tokenized=tokenized, author_layers=author_layers,
)  # fmt: skip
