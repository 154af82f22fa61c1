"""LTX-Video from 0.9.5 on, which can begin with several clean frames. The transformer is that of 0.9, the VAE another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longgen.backbones import ltx
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.model_config import ModelConfigs
from longgen.backbones.spec import BackboneSpec

# LTX-Video 5260738: configs/ltxv-2b-0.9.5.yaml (40 steps, guidance 3; and spatiotemporal guidance, which diffusers lacks),
# ltx_video/inference.py (1216x704, 121 frames at 30 fps, the negative prompt). Clean frames: as many as leave half a clip.
LTX_2B_0_9_5 = replace(
    LTX_2B, name="ltx-2b-0.9.5", family="ltx-condition", source="Lightricks/LTX-Video-0.9.5", license="LTX-Video Open Weights",
    about="LTX-Video 0.9.5, 2 billion parameters; begins with a picture or with the end of another video",
    fps=30, size=(1216, 704), text_tokens=256, companions=6_009_224_434, token_shift=None, checkpoint_shift=1.0, clean_lat=8,
    fixed_shift="its pipeline hands over noise levels of its own, linear at first and then quadratic",
)  # fmt: skip


def from_configs(configs: ModelConfigs) -> BackboneSpec:
    return ltx.from_configs(configs, LTX_2B_0_9_5)


def random_pipeline(spec: BackboneSpec, transformers: Sequence[Any], text: Any) -> Any:
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return ltx.with_text(diffusers.LTXConditionPipeline(scheduler, None, text, None, transformers[0]), spec, text)


FAMILY = replace(
    ltx.FAMILY, name="ltx-condition", title="LTX-Video 0.9.5", specs=(LTX_2B_0_9_5,), pipeline="LTXConditionPipeline",
    adapter="longgen.pipelines.ltx_condition:LtxCondition", from_configs=from_configs, random_pipeline=random_pipeline,
    picture_pipelines=(),
)  # fmt: skip
