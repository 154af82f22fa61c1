"""LTX-2. Two streams, video and audio, in one transformer: each has self-attention and text, and each attends to the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import (
    FIRST_FRAME,
    RELATIVE_POSITIONS,
    WHOLE_CLIP,
    BackboneSpec,
    Family,
    Sound,
    TokenShift,
    substitute,
    transformer_sizes,
)

AUDIO_CHANNELS, MEL_BINS, SAMPLE_RATE, HOP, AUDIO_STRIDE = 8, 64, 16000, 160, 4  # of its audio VAE, by diffusers' script
_NEGATIVE = (
    "has_subtitles, has_blurbox, transition from black, transition to black, speech_ending_short, blurry, out of focus, "
    "overexposed, underexposed, low contrast, washed out colors, excessive noise, grainy texture, poor lighting, "
    "flickering, motion blur, distorted proportions, unnatural skin tones, deformed facial features, asymmetrical face, "
    "missing facial features, extra limbs, disfigured hands, wrong hand count, artifacts around text, inconsistent "
    "perspective, camera shake, incorrect depth of field, background too sharp, background clutter, distracting "
    "reflections, harsh shadows, inconsistent lighting direction, color banding, cartoonish rendering, 3D CGI look, "
    "unrealistic materials, uncanny valley effect, incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze "
    "direction, mismatched lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, "
    "off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, awkward pauses, incorrect "
    "timing, unnatural transitions, inconsistent framing, tilted camera, flat lighting, inconsistent tone, cinematic "
    "oversaturation, stylized filters, or AI artifacts."
)
# Lightricks/LTX-2 400fd31, ltx_pipelines/utils/constants.py: 768x512 in one stage, 121 frames at 24 fps, 40 steps; guidance 3 of
# the video and 7 of the audio, 3 between the two, rescaled by 0.7. Its spatiotemporal guidance needs layers that diffusers builds
# for LTX-2.3 alone: on this one diffusers' call would repeat the conditional one. Its shift is that at 4,096 tokens, at any size.
# Companions: Gemma 3 12B, connectors, both VAEs and the vocoder, counted by their configs. Clean frames: as many as leave half a
# clip. The rate factor of pictures: DEFAULT_IMAGE_CRF there.
LTX_2 = BackboneSpec(
    name="ltx-2", family="ltx2", source="Lightricks/LTX-2", license="LTX-2 Community License",
    about="LTX-2, 19 billion parameters; makes sound with the video, begins with a picture or the end of another video",
    stride_t=8, stride_hw=32, patch=(1, 1, 1), native_px=121, fps=24, size=(768, 512), steps=40, guidance_scale=3.0,
    negative_prompt=_NEGATIVE,
    dtype="bf16", layers=48, heads=32, head_dim=128, ffn_dim=16384, latent_channels=128, rotary_dims=1364, rotary_span_s=20,
    rotary_base=10000.0, intrinsic_component=None, text_tokens=1024, parameters=18_876_174_592,
    companions=14_950_121_301, least_steps=2,
    scheduler="FlowMatchEulerDiscreteScheduler", token_shift=TokenShift(0.95, 2.05, 1024, 4096),
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME), clean_lat=8, picture_crf=33, sound=Sound(2048, 25.0), more_calls=1,
    advised=(("flow_shift", 7.77),), advised_in="ti2vid_one_stage.py",
)  # fmt: skip
# diffusers 0.42.1, pipelines/ltx2/utils.py, DISTILLED_SIGMA_VALUES: LTX-2 distilled, LTX-2.3 distilled, LTX-2.5. Without guidance.
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    _, index, transformer, vae = configs
    heads, head_dim = transformer.heads(multiple_of=2)
    layers, width = transformer.integer("num_layers"), heads * head_dim
    audio = transformer.integer("audio_num_attention_heads") * transformer.integer("audio_attention_head_dim")
    if transformer.get("rope_type", "interleaved") not in ("interleaved", "split"):
        transformer.refuse("rope_type", "interleaved or split")
    if transformer.get("vae_scale_factors", [8, 32, 32])[0] != (stride := vae.integer("temporal_compression_ratio")):
        transformer.refuse("vae_scale_factors", f"{stride} first, as {vae.file} says temporal_compression_ratio")
    perturbed = transformer.get("perturbed_attn") is True
    newer = "Gemma4" in str(index.get("text_encoder"))  # LTX-2.5's, trained on pictures at 18: diffusers' resolve_default_image_crf
    rate, hop, scale = (
        transformer.integer(f"audio_{name}", default=default)
        for name, default in (("sampling_rate", SAMPLE_RATE), ("hop_length", HOP), ("scale_factor", AUDIO_STRIDE))
    )
    return replace(
        LTX_2, stride_t=stride, stride_hw=vae.integer("spatial_compression_ratio"), layers=layers, heads=heads,
        head_dim=head_dim, ffn_dim=4 * width, latent_channels=transformer.integer("in_channels"), rotary_dims=2 * (width // 6),
        rotary_span_s=transformer.integer("pos_embed_max_pos", default=20), sound=Sound(audio, rate / hop / scale),
        rotary_base=transformer.number("rope_theta", 1e12), more_calls=1 + perturbed, picture_crf=18 if newer else 33,
        parameters=layers * (16 * width**2 + 20 * audio**2 + 4 * width * audio),
    )  # fmt: skip


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    assert spec.sound is not None
    return transformer_sizes(spec) | dict(
        num_layers=spec.layers, cross_attention_dim=spec.width, audio_num_attention_heads=spec.heads,
        audio_attention_head_dim=spec.sound.width // spec.heads, audio_cross_attention_dim=spec.sound.width, rope_type="split",
    )  # fmt: skip


class _Stand(SimpleNamespace):
    """The numbers of a part that the pipeline reads."""


class _Connectors:
    """Stands in for the connectors: random embeddings of the text for each stream, and a mask that shows all of them."""

    def __init__(self, spec: BackboneSpec, channels: int, text: Any) -> None:
        self.spec, self.channels, self.text = spec, channels, text

    def __call__(self, embeds: Any, mask: Any, padding_side: str) -> Any:
        words = self.text.embeddings(len(embeds), self.spec.text_tokens, self.channels, device=embeds.device)
        return words, words, mask.new_ones(len(embeds), self.spec.text_tokens).long()


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers
    import torch

    (transformer,), channels = transformers, spec.latent_channels
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    vae = _Stand(
        spatial_compression_ratio=spec.stride_hw, temporal_compression_ratio=spec.stride_t, config=_Stand(scaling_factor=1.0),
        latents_mean=torch.zeros(channels), latents_std=torch.ones(channels),
    )  # fmt: skip
    audio = AUDIO_CHANNELS * MEL_BINS // AUDIO_STRIDE
    audio_vae = _Stand(
        mel_compression_ratio=AUDIO_STRIDE, temporal_compression_ratio=AUDIO_STRIDE, latents_mean=torch.zeros(audio),
        latents_std=torch.ones(audio),
        config=_Stand(sample_rate=SAMPLE_RATE, mel_hop_length=HOP, mel_bins=MEL_BINS, latent_channels=AUDIO_CHANNELS),
    )  # fmt: skip
    connectors = _Connectors(spec, transformer.config.caption_channels, text)
    pipe = diffusers.LTX2Pipeline(scheduler, vae, audio_vae, text, None, connectors, transformer, None)
    pipe._get_gemma_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(1, spec.text_tokens, 1, device=device), text.mask(spec.text_tokens, device)
    )  # fmt: skip
    return pipe


_AUTHOR_NAMES = [
    ("proj_in", "patchify_proj"), ("av_cross_attn_video_scale_shift.", "av_ca_video_scale_shift_adaln_single."),
    ("av_cross_attn_audio_scale_shift.", "av_ca_audio_scale_shift_adaln_single."),
    ("av_cross_attn_video_a2v_gate.", "av_ca_a2v_gate_adaln_single."),
    ("av_cross_attn_audio_v2a_gate.", "av_ca_v2a_gate_adaln_single."), ("time_embed.", "adaln_single."),
    (".norm_q", ".q_norm"), (".norm_k", ".k_norm"),
]  # fmt: skip


def author_layers(layers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    return {substitute(layer, _AUTHOR_NAMES): (layer,) for layer in layers}


FAMILY = Family(
    name="ltx2", title="LTX-2", specs=(LTX_2,), adapter="longgen.pipelines.ltx2:Ltx2", pipeline="LTX2Pipeline",
    from_configs=from_configs, transformer="LTX2VideoTransformer3DModel", transformer_config=transformer_config,
    random_pipeline=random_pipeline, peak_activations=(14.3, 10.3), token_modulation=13.0, moved=180, batches_guidance=True,
    folders=("audio_vae", "connectors", "scheduler", "text_encoder", "tokenizer", "vae", "vocoder"),
    broken_caches=("first-block", "mag", "fastercache", "taylorseer", "seacache", "pyramid-attention-broadcast"),
    author_layers=author_layers, context_parallel=True, picture_pipelines=("LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
    distilled=DISTILLED_SIGMAS,
)  # fmt: skip
