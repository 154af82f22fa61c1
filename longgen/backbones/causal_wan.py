"""Causal Wan, rolled out chunk by chunk: Self-Forcing, LongLive, and the built-in `tiny-causal`. The rest is as in Wan."""

from __future__ import annotations

from dataclasses import replace

from longgen.backbones import wan
from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import FIRST_FRAME, KV_CACHE, RELATIVE_POSITIONS, TINY_CAUSAL_FOLDER, BackboneSpec
from longgen.backbones.wan import TINY, WAN_1_3B

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
    wan.FAMILY, name="causal-wan", specs=(TINY_CAUSAL, SELF_FORCING, LONGLIVE), adapter="longgen.pipelines.causal_wan:CausalWan",
    picture_pipelines=(),
    marker="CausalWanTransformer3DModel", from_configs=from_configs, broken_caches=(),
)  # fmt: skip
