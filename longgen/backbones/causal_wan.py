"""Causal Wan, rolled out chunk by chunk: Self-Forcing, Causal Forcing, LongLive, and the built-in `tiny-causal`. The rest is as in
Wan."""

from __future__ import annotations

from dataclasses import replace

from longgen.backbones import wan
from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import FIRST_FRAME, KV_CACHE, RELATIVE_POSITIONS, TINY_CAUSAL_FOLDER, BackboneSpec
from longgen.backbones.wan import TINY, WAN_1_3B, WAN_2_2_5B

TINY_CAUSAL = replace(
    TINY, name="tiny-causal", family="causal-wan", checkpoint=str(TINY_CAUSAL_FOLDER), steps=6, guidance_scale=1.0,
    flow_shift=5.0, scheduler="FlowMatchEulerDiscreteScheduler", checkpoint_shift=None,
    about="the causal sibling of tiny: three latent frames at a time, of any number; runs on a CPU in seconds",
    capabilities=(RELATIVE_POSITIONS, KV_CACHE, FIRST_FRAME), clean_lat=0,
)  # fmt: skip
# Self-Forcing 33593df, configs/self_forcing_dmd.yaml: four steps, shift 5, chunks of three latent frames; its guidance and its
# negative prompt are those of training. LongLive e52d9ef (v1.0), configs/longlive_inference.yaml: the same.
SELF_FORCING = replace(
    WAN_1_3B, name="self-forcing", family="causal-wan", checkpoint="gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt",
    about="Self-Forcing: Wan 2.1 of 1.3 billion parameters made causal, four steps, three latent frames at a time", steps=4,
    guidance_scale=1.0, negative_prompt="", capabilities=(RELATIVE_POSITIONS, KV_CACHE, FIRST_FRAME), verdicts={}, flow_shift=5.0,
    scheduler="FlowMatchEulerDiscreteScheduler", checkpoint_shift=None, advised=(), advised_in="",
)  # fmt: skip
LONGLIVE = replace(
    SELF_FORCING, name="longlive", checkpoint="Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt",
    lora="Efficient-Large-Model/LongLive-1.3B/models/lora.pt",
    about="LongLive: Self-Forcing tuned for minutes, with a sink of three latent frames and prompts that change",
)  # fmt: skip
# Causal Forcing, arXiv 2602.02214, and Causal Forcing++, 2605.15141, code thu-ml/Causal-Forcing 1fc7bbc: README.md names the files,
# configs/causal_forcing_dmd_*.yaml have the settings, of which only chunks and steps are others than Self-Forcing's. 2 and 1 steps
# are denoising_step_list, 4 for the first chunk denoising_step_list_first_chunk. Its chunkwise/longvideo.pt is for Rolling Forcing:
# a loop that denoises several chunks together at rising noise levels, and which longgen does not have.
CAUSAL_FORCING = replace(
    SELF_FORCING, name="causal-forcing", checkpoint="zhuhz22/Causal-Forcing/chunkwise/causal_forcing.pt",
    about="Causal Forcing: as Self-Forcing, distilled from an autoregressive teacher; four steps, three latent frames at a time",
)  # fmt: skip
CAUSAL_FORCING_FRAMEWISE = replace(
    CAUSAL_FORCING, name="causal-forcing-framewise", checkpoint="zhuhz22/Causal-Forcing/framewise/causal_forcing.pt", chunk_lat=1,
    about="Causal Forcing, frame-wise: four steps, one latent frame at a time, and so made to begin with a picture",
)  # fmt: skip
CAUSAL_FORCING_2STEP = replace(
    CAUSAL_FORCING_FRAMEWISE, name="causal-forcing-2step", steps=2, first_steps=4,
    checkpoint="zhuhz22/Causal-Forcing/causal-forcing++/framewise-2step.pt",
    about="Causal Forcing++: one latent frame at a time in two steps, the first of a video in four",
)  # fmt: skip
CAUSAL_FORCING_1STEP = replace(
    CAUSAL_FORCING_2STEP, name="causal-forcing-1step", steps=1,
    checkpoint="zhuhz22/Causal-Forcing/causal-forcing++/framewise-1step.pt",
    about="Causal Forcing++: one latent frame at a time in one step, the first of a video in four",
)  # fmt: skip
# LongLive 2.0, arXiv 2605.18739, code NVlabs/LongLive 7860ad9: configs/inference.yaml, and configs/train_dmd.yaml for the 32 latent
# frames of a training clip. Its file holds the LoRA, of rank 128, already merged. Its sampler, UniPC, is a multistep solver. Not
# built: its sink of each shot with positions 8 further on at a cut, NVFP4, and a picture held within the first chunk of eight: here
# a picture is a chunk of its own before it.
LONGLIVE_2 = replace(
    WAN_2_2_5B, name="longlive-2", family="causal-wan", checkpoint="Efficient-Large-Model/LongLive-2.0-5B/model_bf16.pt",
    about="LongLive 2.0: Wan 2.2 of 5 billion parameters made causal, four steps, eight latent frames at a time, 24 fps",
    native_px=125, steps=4, guidance_scale=1.0, negative_prompt="", capabilities=SELF_FORCING.capabilities, clean_lat=0,
    chunk_lat=8, flow_shift=5.0, checkpoint_shift=None,
)  # fmt: skip
_SIZES = ("source", "stride_t", "stride_hw", "patch", "fps", "size", "layers", "heads", "head_dim", "ffn_dim", "latent_channels",
          "rotary_dims", "rotary_base", "intrinsic_component", "parameters", "companions")  # fmt: skip


def resized(spec: BackboneSpec, base: BackboneSpec) -> BackboneSpec:
    """The causal `spec` with the sizes, the VAE and the text encoder of `base`."""
    return replace(spec, **{name: getattr(base, name) for name in _SIZES})


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    base = wan.from_configs(configs)
    if base.condition_channels:
        configs.transformer.refuse("in_channels", f"{base.latent_channels}, as out_channels: a rollout has no condition beside it")
    return replace(resized(SELF_FORCING, base), checkpoint=f"{configs.source}/transformer", lora=None)


FAMILY = replace(
    wan.FAMILY, name="causal-wan", adapter="longgen.pipelines.causal_wan:CausalWan",
    specs=(TINY_CAUSAL, SELF_FORCING, CAUSAL_FORCING, CAUSAL_FORCING_FRAMEWISE, CAUSAL_FORCING_2STEP, CAUSAL_FORCING_1STEP,
           LONGLIVE, LONGLIVE_2), picture_pipelines=(),
    marker="CausalWanTransformer3DModel", from_configs=from_configs, broken_caches=(),
)  # fmt: skip
