"""Wan 2.1 and 2.2, and the built-in `tiny`, which has their architecture.

Sizes, frames, fps, steps, guidance, negative prompts and shifts are those of the authors' own scripts, named at each row.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import (
    FIRST_FRAME,
    FRAME_TIMESTEPS,
    LAST_FRAME,
    LATENT_CONDITION,
    RELATIVE_POSITIONS,
    TINY_FOLDER,
    WHOLE_CLIP,
    BackboneSpec,
    Family,
    Tokenized,
    substitute,
    transformer_sizes,
)

# Wan 2.1 9737cba and 2.2 42bf4cf, wan/configs/shared_config.py: sample_neg_prompt, whole. Their scripts use it for every size.
_WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)
_I2V_PIPELINE = "WanImageToVideoPipeline"
CLIP_TOKENS = 257  # of a picture: 16x16 patches and one for the whole, of CLIP's ViT-H/14 at 224x224

TINY = BackboneSpec(
    name="tiny", family="wan", source=str(TINY_FOLDER), license="Apache-2.0, with the package",
    about="a small text-to-video model of our own, trained on rendered clips; runs on a CPU in seconds",
    stride_t=4, stride_hw=16, patch=(1, 1, 1), native_px=81, fps=16, size=(64, 64), steps=20, guidance_scale=3.0,
    negative_prompt="", dtype="fp32", layers=6, heads=4, head_dim=64, ffn_dim=768, latent_channels=48, rotary_dims=24,
    rotary_base=10000.0, intrinsic_component=3, text_tokens=24, parameters=6_126_896, companions=4_566_960, checkpoint_shift=3.0,
    capabilities=(RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP, FIRST_FRAME), clean_lat=6,
    cpu_threads=1,  # two are barely faster on two idle cores and many times slower on busy ones
)  # fmt: skip
# FreeLOC's code ships these lists for Wan2.1-1.3B: a layer is in one of them. In its paper layer 28 is highly
# position-sensitive and 18 is not; nobody has published lists for other models.
_FREELOC = {
    "position-sensitive": (2, 3, 5, 8, 12, 17, 19, 20, 21, 26, 27, 28, 29),
    "context-sensitive": (0, 1, 4, 6, 7, 9, 10, 11, 13, 14, 15, 16, 18, 22, 23, 24, 25),
}
# Wan 2.1 9737cba, generate.py: 50 steps, guidance 5, shift 5 for text-to-video of every size. Its README: for this model guidance
# 6 and shift 8 to 12; with diffusers guidance 5, and shift 3 for 480p and 5 for 720p. The checkpoint's own scheduler has 3.
WAN_1_3B = BackboneSpec(
    name="wan2.1-1.3b", family="wan", source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", license="Apache-2.0",
    about="Wan 2.1 text-to-video, 1.3 billion parameters, 480p",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=81, fps=16, size=(832, 480), steps=50, guidance_scale=5.0,
    negative_prompt=_WAN_NEGATIVE, dtype="bf16", layers=30, heads=12, head_dim=128, ffn_dim=8960, latent_channels=16,
    rotary_dims=44, rotary_base=10000.0, intrinsic_component=6, text_tokens=512, parameters=1_418_996_800, companions=5_807_802_867,
    verdicts=_FREELOC, checkpoint_shift=3.0, advised=(("guidance_scale", 6.0), ("flow_shift", 8.0)),
    advised_in="its README (shift 8 to 12, by the result)",
)  # fmt: skip
WAN_14B = replace(
    WAN_1_3B, name="wan2.1-14b", source="Wan-AI/Wan2.1-T2V-14B-Diffusers", size=(832, 480), layers=40, heads=40,
    about="Wan 2.1 text-to-video, 14 billion parameters, 480p and 720p", ffn_dim=13824, parameters=14_288_491_584, verdicts={},
    advised=(("flow_shift", 5.0),), advised_in="its script, and diffusers' example for 720p",
)  # fmt: skip
# Wan 2.2 42bf4cf, wan/configs/wan_t2v_A14B.py: 40 steps, guidance 4 at high noise and 3 at low, boundary 0.875, shift 12.
WAN_2_2_A14B = replace(
    WAN_14B, name="wan2.2-t2v-a14b", source="Wan-AI/Wan2.2-T2V-A14B-Diffusers", steps=40, guidance_scale=4.0, guidance_scale_2=3.0,
    about="Wan 2.2 text-to-video, two experts of 14 billion parameters, 480p and 720p", experts=2, parameters=2 * 14_288_491_584,
    boundary=0.875, advised=(("flow_shift", 12.0),), advised_in="its script",
)  # fmt: skip
# Wan 2.1 9737cba, generate.py: 40 steps, guidance 5, shift 3 for 480p and 5 for 720p; wan_i2v_14B.py: the negative prompt. Sizes of
# the condition: diffusers 58eb52c, scripts/convert_wan_to_diffusers.py. Companions: with CLIP's ViT-H/14, which sees the picture.
WAN_I2V_480P = replace(
    WAN_14B, name="wan2.1-i2v-14b-480p", source="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", steps=40, picture_needed=True, clean_lat=1,
    about="Wan 2.1 image-to-video, 14 billion parameters, 480p", negative_prompt=f"镜头晃动，{_WAN_NEGATIVE}",
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME, LATENT_CONDITION), condition_channels=20, image_tokens=CLIP_TOKENS,
    parameters=16_394_878_784, companions=WAN_14B.companions + 630_766_080, advised=(), advised_in="",
)  # fmt: skip
WAN_I2V_720P = replace(
    WAN_I2V_480P, name="wan2.1-i2v-14b-720p", source="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", size=(1280, 720),
    about="Wan 2.1 image-to-video, 14 billion parameters, 720p", advised=(("flow_shift", 5.0),), advised_in="its script",
)  # fmt: skip
# The same for flf2v: 50 steps, shift 16, and wan/configs/__init__.py: its negative prompt.
WAN_FLF2V = replace(
    WAN_I2V_720P, name="wan2.1-flf2v-14b", source="Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", steps=50, last_picture_needed=True,
    about="Wan 2.1 from a first and a last picture, 14 billion parameters, 720p", clean_lat=0,
    negative_prompt=f"镜头切换，镜头晃动，{_WAN_NEGATIVE}",
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME, LAST_FRAME), image_tokens=2 * CLIP_TOKENS,
    parameters=16_395_536_704, checkpoint_shift=16.0, advised=(), advised_in="",
)  # fmt: skip
# Wan 2.2 42bf4cf, wan/configs/wan_i2v_A14B.py: 40 steps, guidance 3.5, boundary 0.9, shift 5; it reads no CLIP features. The last
# picture: as ComfyUI runs it (Comfy-Org/docs 042c42f, tutorials/video/wan/wan2_2.mdx), and diffusers' pipeline takes one.
WAN_2_2_I2V = replace(
    WAN_2_2_A14B, name="wan2.2-i2v-a14b", source="Wan-AI/Wan2.2-I2V-A14B-Diffusers", guidance_scale=3.5, guidance_scale_2=3.5,
    about="Wan 2.2 image-to-video, two experts of 14 billion parameters, 480p and 720p", boundary=0.9, picture_needed=True,
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME, LAST_FRAME, LATENT_CONDITION), clean_lat=1, condition_channels=20,
    parameters=2 * 14_288_901_184, advised=(("flow_shift", 5.0),),
)  # fmt: skip
# The same, wan_ti2v_5B.py: 50 steps, guidance 5, 121 frames at 24 fps, shift 5, 1280x704. A picture is its first latent frame.
WAN_2_2_5B = replace(
    WAN_1_3B, name="wan2.2-ti2v-5b", source="Wan-AI/Wan2.2-TI2V-5B-Diffusers", native_px=121, fps=24, size=(1280, 704),
    about="Wan 2.2 text- and image-to-video, 5 billion parameters, 720p, VAE with 16x16 pixels a cell", stride_hw=16,
    latent_channels=48, clean_lat=1, capabilities=(RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP, FIRST_FRAME),
    heads=24, ffn_dim=14336, parameters=4_999_787_712, companions=6_385_599_004, verdicts={},
    checkpoint_shift=5.0, advised=(), advised_in="",
)  # fmt: skip


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    _, index, transformer, vae = configs
    heads, head_dim = transformer.heads(multiple_of=2)
    if head_dim < 6:
        transformer.refuse("attention_head_dim", "at least 6: time, rows and columns share it")
    ffn_dim, layers = transformer.integer("ffn_dim"), transformer.integer("num_layers")
    width, rotary_dims = head_dim * heads, head_dim - 4 * (head_dim // 6)
    experts = 2 if index.get("transformer_2", [None])[0] is not None else 1
    patch_t, patch_h, patch_w = transformer.integers("patch_size", count=3)
    channels, condition, image_tokens = _inputs(configs)
    base = WAN_2_2_5B if index.get("expand_timesteps") else WAN_2_2_A14B if experts == 2 else WAN_1_3B
    if condition:
        base = WAN_2_2_I2V if not image_tokens else WAN_FLF2V if image_tokens == WAN_FLF2V.image_tokens else WAN_I2V_480P
    share = index.get("boundary_ratio")
    return replace(
        base, boundary=share if type(share) is float and 0 < share < 1 else base.boundary,
        stride_t=vae.integer("scale_factor_temporal", default=4),
        stride_hw=vae.integer("scale_factor_spatial", default=8), patch=(patch_t, patch_h, patch_w),
        most_lat=transformer.integer("rope_max_seq_len", default=base.most_lat), layers=layers,
        heads=heads, head_dim=head_dim, ffn_dim=ffn_dim, latent_channels=channels, rotary_dims=rotary_dims, experts=experts,
        intrinsic_component=min(WAN_1_3B.intrinsic_component or 1, rotary_dims // 2), condition_channels=condition,
        image_tokens=image_tokens, parameters=experts * layers * ((10 if image_tokens else 8) * width**2 + 2 * width * ffn_dim),
    )  # fmt: skip


def _inputs(configs: ModelConfigs) -> tuple[int, int, int]:
    """The channels of the latents, those of a condition beside them, and the tokens of pictures. Raises UsageError.

    Image-to-video models have a mask for each of the four frames of a latent, and the latents of the picture.
    """
    index, transformer = configs.model_index, configs.transformer
    channels, out = transformer.integer("in_channels"), transformer.get("out_channels")
    of_pictures = index["_class_name"] == _I2V_PIPELINE and not index.get("expand_timesteps")
    if type(out) is not int or not 0 < out < channels:
        if of_pictures:
            transformer.fail(f"says in_channels = {channels}, and {index.file} names the {_I2V_PIPELINE}",
                             "as many as out_channels, once more, and 4 for a mask")  # fmt: skip
        return channels, 0, 0
    stride_t = configs.vae.integer("scale_factor_temporal", default=4)
    if not of_pictures or channels != 2 * out + stride_t:
        transformer.fail(f"says in_channels = {channels} and out_channels = {out}, as control models do",
                         f"as many in as out for text-to-video; twice as many and {stride_t} for image-to-video, with a "
                         f"{_I2V_PIPELINE} in {index.file}")  # fmt: skip
    if transformer.get("pos_embed_seq_len") not in (None, 2 * CLIP_TOKENS):
        transformer.refuse("pos_embed_seq_len", f"null, or {2 * CLIP_TOKENS} for a first and a last picture")
    pictures = 0 if transformer.get("image_dim") is None else 1 if transformer.get("pos_embed_seq_len") is None else 2
    return out, channels - out, pictures * CLIP_TOKENS


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    text = dict(text_dim=64, freq_dim=64) if spec.built_in else {}
    if spec.image_tokens:
        text |= dict(image_dim=1280, added_kv_proj_dim=spec.width)
    if spec.image_tokens > CLIP_TOKENS:
        text |= dict(pos_embed_seq_len=spec.image_tokens)
    return transformer_sizes(spec) | text | dict(patch_size=spec.patch, ffn_dim=spec.ffn_dim, num_layers=spec.layers)


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers

    shift = spec.checkpoint_shift or WAN_1_3B.checkpoint_shift
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    second, boundary = (transformers[1], spec.boundary) if spec.experts == 2 else (None, None)
    kind = diffusers.WanImageToVideoPipeline if spec.picture_needed else diffusers.WanPipeline
    pipe = kind(
        tokenizer=None, text_encoder=text, vae=None, scheduler=scheduler, transformer=transformers[0], transformer_2=second,
        boundary_ratio=boundary, expand_timesteps=spec.latent_channels == 48 and spec.stride_hw == 16 and spec.patch[1] == 2,
    )  # fmt: skip
    pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial = spec.stride_t, spec.stride_hw
    shape = (1, spec.text_tokens, transformers[0].config.text_dim)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: text.embeddings(*shape, device=device)
    pipe.encode_image = lambda *_: text.embeddings(max(1, spec.image_tokens // CLIP_TOKENS), CLIP_TOKENS, 1280)
    return pipe


def tokenized(prompt: str, _: BackboneSpec) -> Tokenized:
    """As WanPipeline cleans prompts."""
    import ftfy

    return Tokenized(" ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split()))


_AUTHOR_NAMES = [  # in diffusers -> in Wan's own code
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("attn1.", "self_attn."), ("attn2.", "cross_attn."), (".to_q", ".q"), (".to_k", ".k"), (".to_v", ".v"), (".to_out.0", ".o"),
    ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), (".norm2", ".norm3"), (".scale_shift_table", ".modulation"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"), ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    (".add_k_proj", ".k_img"), (".add_v_proj", ".v_img"), (".norm_added_k", ".norm_k_img"),
]  # fmt: skip
_AUTHOR_HEAD = {"proj_out": "head.head", "scale_shift_table": "head.modulation"}


def author_layers(layers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    names = {layer: substitute(layer, _AUTHOR_NAMES) for layer in layers}
    return {_AUTHOR_HEAD.get(name, name): (layer,) for layer, name in names.items()}


FAMILY = Family(
    name="wan", title="Wan", adapter="longgen.pipelines.wan:Wan",
    specs=(TINY, WAN_1_3B, WAN_14B, WAN_I2V_480P, WAN_I2V_720P, WAN_FLF2V, WAN_2_2_A14B, WAN_2_2_I2V, WAN_2_2_5B),
    pipeline="WanPipeline", picture_pipelines=(_I2V_PIPELINE,), picture_folders=("image_encoder", "image_processor"),
    from_configs=from_configs, transformer="WanTransformer3DModel",
    transformer_config=transformer_config, random_pipeline=random_pipeline, peak_activations=(11.2, 4.0), moved=185,
    token_modulation=21.0, vae_float32=True, broken_caches=("pyramid-attention-broadcast", "fastercache", "taylorseer"),
    tokenized=tokenized, author_layers=author_layers,
    context_parallel=True,
)  # fmt: skip
