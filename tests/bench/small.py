"""Shapes small enough for a benchmark in a test: random weights, a native length of nine latent frames, four tokens in each."""

from __future__ import annotations

from dataclasses import replace

from longgen import preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.bench.run import Plans, plans
from longgen.bench.synthetic import CPU_ATTENTION
from longgen.pipelines import random_weights
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.resolve import PlanRequest

SMALL = dict(layers=2, heads=2, head_dim=24, ffn_dim=32, rotary_dims=8, intrinsic_component=1, text_tokens=8, size=(32, 32),
             native_px=33, parameters=0)  # fmt: skip
SHAPE = replace(CPU_ATTENTION, name="small", verdicts={"position-sensitive": (0,), "context-sensitive": (1,)}, **SMALL)
CAUSAL = replace(SELF_FORCING, **SMALL)
SETUP = ModelSettings("cpu", "fp32")


def built(spec: BackboneSpec = SHAPE, model_settings: ModelSettings = SETUP) -> PipelineBackbone:
    return random_weights.build(spec, model_settings)


def planned(*names: str, spec: BackboneSpec = SHAPE, frames: int = 81, steps: int | None = 4, sets: tuple[str, ...] = ()) -> Plans:
    return plans(names, PlanRequest("", spec, sets, preset.Sample(frames=frames, steps=steps), probe="published"))


def plan_of(name: str, **kwargs: object) -> Plan:
    made = planned(name, **kwargs)[name]  # type: ignore[arg-type]
    assert isinstance(made, Plan), made
    return made
