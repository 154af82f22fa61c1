"""HunyuanVideo. Text and video share self-attention, and guidance is an input of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import FIRST_FRAME, RELATIVE_POSITIONS, WHOLE_CLIP, BackboneSpec, Family, Tokenized, transformer_sizes
from longgen.errors import UsageError

# HunyuanVideo fa14b00, hyvideo/config.py: 50 steps, embedded guidance 6 and no other, shift 7 as the checkpoint's own, 1280x720,
# 129 frames; sample_video.py writes 24 fps. Its negative prompt is for guidance by two calls, which this model does not have.
HUNYUANVIDEO = BackboneSpec(
    name="hunyuanvideo", family="hunyuan", source="hunyuanvideo-community/HunyuanVideo", license="Tencent Hunyuan Community",
    about="HunyuanVideo, 13 billion parameters",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=129, fps=24, size=(1280, 720), steps=50, guidance_scale=6.0,
    negative_prompt="", dtype="bf16", layers=60, heads=24, head_dim=128, ffn_dim=12288, latent_channels=16, rotary_dims=16,
    rotary_base=256.0, intrinsic_component=4, repetition_lat=50, text_tokens=256, parameters=12_821_012_544,
    companions=7_874_726_099, capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP), joint_text=True, embedded_guidance=True,
    scheduler="FlowMatchEulerDiscreteScheduler", checkpoint_shift=7.0,
)  # fmt: skip
# HunyuanVideo-I2V 1481c1d, its README: 50 steps, embedded guidance 6, 129 frames, shift 7 for its stable mode, in which the noise
# has a share of the picture in, as it always has in diffusers; hyvideo/config.py: 1280x720; sample_image2video.py writes 24 fps.
HUNYUANVIDEO_I2V = replace(
    HUNYUANVIDEO, name="hunyuanvideo-i2v", source="hunyuanvideo-community/HunyuanVideo-I2V", picture_needed=True, clean_lat=1,
    image_tokens=140,  # 144, without four of the prompt's template, which go
    about="HunyuanVideo image-to-video, 13 billion parameters; its text encoder sees the picture too",
    companions=8_724_811_987, capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME),
)  # fmt: skip


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    _, index, transformer, vae = configs
    condition, pictured = transformer.get("image_condition_type"), index["_class_name"] in FAMILY.picture_pipelines
    if condition == "latent_concat":
        raise UsageError(f"--backbone {configs.source} is the first HunyuanVideo-I2V, to which a picture is further channels "
                         "(latent_concat): longgen cannot drive it", expected=f"{HUNYUANVIDEO_I2V.source}, which is newer",
                         hint=f"--backbone {HUNYUANVIDEO_I2V.name}")  # fmt: skip
    if condition != ("token_replace" if pictured else None):
        transformer.fail(f"says image_condition_type = {condition!r}, and {index.file} {index['_class_name']}",
                         "token_replace in an image-to-video model, and none in a text-to-video one")  # fmt: skip
    heads, head_dim = transformer.heads(multiple_of=2)
    dual, single = (transformer.integer(key) for key in ("num_layers", "num_single_layers"))
    ratio, base = transformer.number("mlp_ratio", 64), transformer.number("rope_theta", 1e12)
    axes, patch = transformer.integers("rope_axes_dim", count=3), transformer.integer("patch_size")
    if sum(axes) != head_dim or axes[0] % 2:
        transformer.refuse("rope_axes_dim", f"even numbers that add up to attention_head_dim, {head_dim}")
    stride_t, stride_hw = (vae.integer(f"{kind}_compression_ratio") for kind in ("temporal", "spatial"))
    return replace(
        HUNYUANVIDEO_I2V if pictured else HUNYUANVIDEO, stride_t=stride_t, stride_hw=stride_hw,
        patch=(transformer.integer("patch_size_t"), patch, patch), layers=dual + single, heads=heads, head_dim=head_dim,
        ffn_dim=round(ratio * heads * head_dim), latent_channels=transformer.integer("in_channels"), rotary_dims=axes[0],
        rotary_base=base, intrinsic_component=min(4, axes[0] // 2),
        parameters=round((dual * (20 + 4 * ratio) + single * (7 + 2 * ratio)) * (heads * head_dim) ** 2),
    )  # fmt: skip


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    dual, side = max(1, spec.layers // 3), (spec.head_dim - spec.rotary_dims) // 2
    return transformer_sizes(spec) | dict(
        num_layers=dual, num_single_layers=spec.layers - dual, mlp_ratio=spec.ffn_dim / spec.width,
        rope_axes_dim=(spec.rotary_dims, side, side), image_condition_type="token_replace" if spec.picture_needed else None,
    )  # fmt: skip


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers

    config, scheduler = (
        transformers[0].config,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=spec.checkpoint_shift or HUNYUANVIDEO.checkpoint_shift),
    )
    parts = (text, None, transformers[0], None, scheduler, None, None)
    if spec.picture_needed:
        pipe = diffusers.HunyuanVideoImageToVideoPipeline(*parts, None)
    else:
        pipe = diffusers.HunyuanVideoPipeline(*parts)
    tokens = spec.image_tokens + spec.text_tokens  # those of the picture come first, and are all seen
    pipe._get_llama_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(1, tokens, config.text_embed_dim, device=device), text.mask(tokens, device, spec.image_tokens)
    )  # fmt: skip
    pipe._get_clip_prompt_embeds = lambda *_, device=None, **__: text.embeddings(1, config.pooled_projection_dim, device=device)
    return pipe


def tokenized(prompt: str, spec: BackboneSpec) -> Tokenized:
    """Within the instruction that the pipelines put around prompts; that of I2V takes the last four tokens out, its own or not."""
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video

    pipeline = pipeline_hunyuan_video_image2video if spec.picture_needed else pipeline_hunyuan_video
    template = pipeline.DEFAULT_PROMPT_TEMPLATE
    before, _, after = template["template"].partition("{}")
    return Tokenized(f"{before}{prompt}{after}", len(before), template["crop_start"], 4 if spec.picture_needed else 0)


# (block in diffusers, block in the authors' code, (layers in diffusers that the authors fuse, their names; the second ComfyUI's))
_AUTHOR_BLOCKS: list[tuple[str, str, list[tuple[tuple[str, ...], tuple[str, ...]]]]] = [
    ("transformer_blocks.{}.", "double_blocks.{}.", [
        (("attn.to_q", "attn.to_k", "attn.to_v"), ("img_attn_qkv", "img_attn.qkv")),
        (("attn.to_out.0",), ("img_attn_proj", "img_attn.proj")),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), ("txt_attn_qkv", "txt_attn.qkv")),
        (("attn.to_add_out",), ("txt_attn_proj", "txt_attn.proj")), (("ff.net.0.proj",), ("img_mlp.fc1", "img_mlp.0")),
        (("ff.net.2",), ("img_mlp.fc2", "img_mlp.2")), (("ff_context.net.0.proj",), ("txt_mlp.fc1", "txt_mlp.0")),
        (("ff_context.net.2",), ("txt_mlp.fc2", "txt_mlp.2")), (("norm1.linear",), ("img_mod.linear", "img_mod.lin")),
        (("norm1_context.linear",), ("txt_mod.linear", "txt_mod.lin"))]),
    ("single_transformer_blocks.{}.", "single_blocks.{}.", [
        (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), ("linear1",)), (("proj_out",), ("linear2",)),
        (("norm.linear",), ("modulation.linear", "modulation.lin"))]),
]  # fmt: skip


def author_layers(layers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for block, author_block, rows in _AUTHOR_BLOCKS:
        for number in {layer.split(".")[1] for layer in layers if layer.startswith(block.partition("{")[0])}:
            for parts, names in rows:
                targets = tuple(block.format(number) + part for part in parts)
                if set(targets) <= set(layers):
                    table |= {author_block.format(number) + name: targets for name in names}
    return table


FAMILY = Family(
    name="hunyuan", title="HunyuanVideo", specs=(HUNYUANVIDEO, HUNYUANVIDEO_I2V), adapter="longgen.pipelines.hunyuan:Hunyuan",
    pipeline="HunyuanVideoPipeline", from_configs=from_configs, transformer="HunyuanVideoTransformer3DModel",
    transformer_config=transformer_config, random_pipeline=random_pipeline, peak_activations=(16.8, 10.2), moved=125,
    folders=("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"),
    picture_folders=("image_processor",), picture_pipelines=("HunyuanVideoImageToVideoPipeline",),
    broken_caches=("fastercache", "seacache"), tokenized=tokenized, author_layers=author_layers,
)  # fmt: skip
