"""CogVideoX 2B, 5B and 5B-I2V, and 1.5. Text and video share self-attention.

2B and 5B-I2V have absolute positions, added to their input. A token of 1.5 holds two latent frames: frames are counted by tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import FIRST_FRAME, RELATIVE_POSITIONS, WHOLE_CLIP, BackboneSpec, Family, transformer_sizes

# CogVideo 7a1af71, inference/cli_demo.py: 50 steps, guidance 6, no negative prompt, 720x480; 49 frames at 8 fps are its README's.
# The script also raises guidance over the steps (use_dynamic_cfg), which the model card's own example does not.
COGVIDEOX_5B = BackboneSpec(
    name="cogvideox-5b", family="cogvideox", source="zai-org/CogVideoX-5b", license="CogVideoX License",
    about="CogVideoX, 5 billion parameters",
    stride_t=4, stride_hw=8, patch=(1, 2, 2), native_px=49, fps=8, size=(720, 480), steps=50, guidance_scale=6.0,
    negative_prompt="", dtype="bf16", layers=42, heads=48, head_dim=64, ffn_dim=12288, latent_channels=16, rotary_dims=16,
    rotary_base=10000.0, intrinsic_component=2, text_tokens=226, parameters=5_570_283_072, companions=4_977_894_563,
    capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP), joint_text=True, first_order="the DDIM scheduler",
    fixed_shift="its scheduler takes evenly spaced timesteps of a DDPM schedule, whose shift (snr_shift_scale) the model was "
    "trained with", scheduler="CogVideoXDPMScheduler",
)  # fmt: skip
COGVIDEOX_2B = replace(
    COGVIDEOX_5B, name="cogvideox-2b", source="zai-org/CogVideoX-2b", license="Apache-2.0", dtype="fp16", layers=30, heads=30,
    about="CogVideoX, 2 billion parameters; absolute positions, so no technique can move its frames in time", ffn_dim=7680,
    rotary_dims=0, intrinsic_component=None, parameters=1_693_783_872, capabilities=(WHOLE_CLIP,),
    scheduler="CogVideoXDDIMScheduler",
)  # fmt: skip
# The same, with its list of sizes (RESOLUTION_MAP). Beside rotary positions it has learned ones, of this size and length alone:
# other lengths get sinusoidal ones from diffusers, which refuses other sizes.
COGVIDEOX_5B_I2V = replace(
    COGVIDEOX_5B, name="cogvideox-5b-i2v", source="zai-org/CogVideoX-5b-I2V", picture_needed=True, clean_lat=1, fixed_size=True,
    condition_channels=16,
    about="CogVideoX image-to-video, 5 billion parameters; absolute positions beside the rotary ones, which stay where they are",
    parameters=5_625_087_552, capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME),
)  # fmt: skip
# The same for 1.5: 1360x768, 81 frames (161 too), 16 fps; README.md: 224 tokens of text; sat/configs/cogvideox1.5_5b.yaml: tables
# of positions for 300x300 cells, which are 2400x2400 pixels. diffusers joins latent frames in pairs, of which the first begins with
# padding: of 8k + 1 frames there are k + 1 pairs. RIFLEx's component nobody has published.
COGVIDEOX_1_5 = replace(
    COGVIDEOX_5B, name="cogvideox-1.5", source="zai-org/CogVideoX1.5-5B",
    about="CogVideoX 1.5, 5 billion parameters, 768p; two latent frames a token", stride_t=8, native_px=81,
    fps=16, size=(1360, 768), latent_channels=32, intrinsic_component=None, text_tokens=224, parameters=5_570_676_352, token_lat=2,
    most_size=(2400, 2400),
)  # fmt: skip
# README.md: no learned positions here. The picture stands where the first pair has its padding, as diffusers puts it; of an earlier
# video the last latent frame does [derived].
COGVIDEOX_1_5_I2V = replace(
    COGVIDEOX_1_5, name="cogvideox-1.5-i2v", source="zai-org/CogVideoX1.5-5B-I2V", picture_needed=True, clean_lat=1,
    about="CogVideoX 1.5 image-to-video, 5 billion parameters, 768p; two latent frames a token", condition_channels=32,
    parameters=5_571_594_880, capabilities=(RELATIVE_POSITIONS, WHOLE_CLIP, FIRST_FRAME),
)  # fmt: skip


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    _, index, transformer, vae = configs
    heads, head_dim = transformer.heads(multiple_of=4)
    layers, width = transformer.integer("num_layers"), heads * head_dim
    pair = 1 if transformer.get("patch_size_t") is None else transformer.integer("patch_size_t")
    rotary, patch = transformer["use_rotary_positional_embeddings"], transformer.integer("patch_size")
    if type(rotary) is not bool:
        transformer.refuse("use_rotary_positional_embeddings", "true or false")
    pictured = index["_class_name"] in FAMILY.picture_pipelines
    channels = transformer.integer("in_channels", multiple_of=2 if pictured else 1) // (2 if pictured else 1)
    halvings = len(vae.integers("block_out_channels")) - 1
    if halvings > 8:
        vae.refuse("block_out_channels", "a list of at most 9 integers")
    base = COGVIDEOX_5B if rotary else COGVIDEOX_2B
    if pair > 1:
        base = _of_pairs(configs, 2**halvings)
    elif pictured:
        learned = transformer.get("use_learned_positional_embeddings") is True
        size = tuple(transformer.integer(side) * 2**halvings for side in ("sample_width", "sample_height"))
        base = replace(COGVIDEOX_5B_I2V, fixed_size=learned, size=size if learned else COGVIDEOX_5B_I2V.size)
    return replace(
        base, stride_t=pair * transformer.integer("temporal_compression_ratio"), stride_hw=2**halvings,
        patch=(1, patch, patch), native_px=transformer.integer("sample_frames"), layers=layers, heads=heads,
        head_dim=head_dim, ffn_dim=4 * width, latent_channels=pair * channels,
        condition_channels=pair * channels if pictured else 0,
        rotary_dims=head_dim // 4 if rotary else 0, text_tokens=transformer.integer("max_text_seq_length"),
        parameters=layers * 12 * width * (width + transformer.integer("time_embed_dim")),
    )  # fmt: skip


def _of_pairs(configs: ModelConfigs, stride_hw: int) -> BackboneSpec:
    """CogVideoX 1.5 with the size that its tables of positions are made for. Raises UsageError for what it is not."""
    transformer = configs.transformer
    if transformer["patch_size_t"] != 2 or transformer["use_rotary_positional_embeddings"] is not True:
        transformer.refuse("patch_size_t", "2, with use_rotary_positional_embeddings = true, as CogVideoX 1.5 has them")
    pictured = configs.model_index["_class_name"] in FAMILY.picture_pipelines
    width, height = (transformer.integer(side) * stride_hw for side in ("sample_width", "sample_height"))
    return replace(COGVIDEOX_1_5_I2V if pictured else COGVIDEOX_1_5, most_size=(width, height))


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    width, height = (side // spec.stride_hw for side in spec.most_size or spec.size)
    config = transformer_sizes(spec) | dict(
        num_layers=spec.layers, use_rotary_positional_embeddings=spec.rotary_dims > 0, max_text_seq_length=spec.text_tokens
    )
    places = dict(sample_width=width, sample_height=height, sample_frames=spec.native_px)
    if spec.token_lat > 1:
        ofs = 512 if spec.picture_needed else None
        return config | places | dict(patch_size_t=spec.token_lat, patch_bias=False, ofs_embed_dim=ofs)
    return config | (places | dict(use_learned_positional_embeddings=True) if spec.picture_needed else {})


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers

    published = dict(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                     timestep_spacing="trailing")  # fmt: skip
    if spec.rotary_dims:
        scheduler = diffusers.CogVideoXDPMScheduler(snr_shift_scale=1.0, **published)
    else:
        scheduler = diffusers.CogVideoXDDIMScheduler(**published)
    kind = diffusers.CogVideoXImageToVideoPipeline if spec.picture_needed else diffusers.CogVideoXPipeline
    pipe = kind(None, text, None, transformers[0], scheduler)
    shape = (1, spec.text_tokens, transformers[0].config.text_embed_dim)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: text.embeddings(*shape, device=device)
    return pipe


FAMILY = Family(
    name="cogvideox", title="CogVideoX", specs=(COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V, COGVIDEOX_1_5, COGVIDEOX_1_5_I2V),
    adapter="longgen.pipelines.cogvideox:CogVideoX", pipeline="CogVideoXPipeline", from_configs=from_configs,
    transformer="CogVideoXTransformer3DModel", transformer_config=transformer_config,
    random_pipeline=random_pipeline, peak_activations=(12.2, 4.7), moved=95, batches_guidance=True,
    broken_caches=("taylorseer", "seacache"), picture_pipelines=("CogVideoXImageToVideoPipeline",),
)  # fmt: skip
