"""SkyReels-V2 with diffusion forcing: latent frames have noise levels of their own, so that clips can begin with clean ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones import skyreels
from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import FIRST_FRAME, FRAME_TIMESTEPS, RELATIVE_POSITIONS, WHOLE_CLIP, BackboneSpec
from longgen.backbones.wan import WAN_1_3B

# SkyReels-V2 abed76f, README.md: 97 frames of 960x544, 24 fps, 50 steps, guidance 6, shift 8; videos go on from 17 or 37 frames,
# which are 5 or 10 latent ones. Only the model of 1.3 billion is told the rate of frames, as diffusers' script has it.
SKYREELS_V2_DF_1_3B = replace(
    skyreels.SKYREELS_V2, name="skyreels-v2-df-1.3b", family="skyreels-df", source="Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers",
    about="SkyReels-V2 with a noise level for each latent frame (diffusion forcing), 1.3 billion parameters, 540p", layers=30,
    heads=12, ffn_dim=8960, parameters=1_435_525_696, clean_lat=10,
    capabilities=(RELATIVE_POSITIONS, FRAME_TIMESTEPS, WHOLE_CLIP, FIRST_FRAME),
)  # fmt: skip
SKYREELS_V2_DF_14B = replace(
    SKYREELS_V2_DF_1_3B, name="skyreels-v2-df-14b", source="Skywork/SkyReels-V2-DF-14B-540P-Diffusers", layers=40, heads=40,
    about="SkyReels-V2 with a noise level for each latent frame (diffusion forcing), 14 billion parameters, 540p", ffn_dim=13824,
    parameters=skyreels.SKYREELS_V2.parameters,
)  # fmt: skip


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    return skyreels.sizes(configs, SKYREELS_V2_DF_1_3B)


def transformer_config(spec: BackboneSpec) -> dict[str, Any]:
    return skyreels.transformer_config(spec) | dict(inject_sample_info=spec.width <= WAN_1_3B.width)


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    return skyreels.random_pipeline(spec, transformers, text, FAMILY.pipeline)


FAMILY = replace(
    skyreels.FAMILY, name="skyreels-df", title="SkyReels-V2 DF", specs=(SKYREELS_V2_DF_1_3B, SKYREELS_V2_DF_14B),
    adapter="longgen.pipelines.skyreels:SkyReelsForcing", pipeline="SkyReelsV2DiffusionForcingPipeline",
    picture_pipelines=("SkyReelsV2DiffusionForcingImageToVideoPipeline", "SkyReelsV2DiffusionForcingVideoToVideoPipeline"),
    from_configs=from_configs, transformer_config=transformer_config, random_pipeline=random_pipeline,
    peak_activations=(32.1, 23.3),  # with the modulation of every token, at any step
)  # fmt: skip
