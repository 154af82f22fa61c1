"""MagCache: a step cache that reuses the last residual in steps where calibrated magnitude ratios predict little change.

Paper: MagCache, arXiv 2506.09045. diffusers' own hook does the skipping; this module measures and stores the ratios it needs.

Legend: R_k what a transformer's blocks add to their input in step k, r_k the mean over tokens of |R_k| / |R_(k-1)|.

    a step takes R of the last computed one, while over the steps since then the sum of |1 - product of r| is at most the threshold,
    3 of them at the most, and never in the first fifth                                                              [diffusers]

r depends on weights, plan, steps and size, and hardly on prompt and seed. So it is calibrated once, on first use, by an ordinary
generation with a fixed prompt and seed, and stored in

    ~/.cache/longgen/magcache/<fingerprint of the weights>/<settings>.json

The hook takes one list of ratios for all calls of a step. Where there are several, for guidance or clips, each step takes the ratio
farthest from 1, so that all skip together and none beyond the threshold [derived]. Each of two experts has its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import MagCacheConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longgen import __version__, disk
from longgen.backbones.settings import parse_cache
from longgen.backbones.tiny import grammar
from longgen.errors import LonggenError, UsageError
from longgen.layers.fingerprint import fingerprint
from longgen.loops import PROMPTS, sample
from longgen.loops.denoiser import Denoiser
from longgen.loops.state import State
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.planner import build
from longgen.sampling.multidiffusion import MultiDiffusion

_HOOK = "mag_cache_block_hook"
Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Settings(_Closed):
    """What the ratios depend on. techniques: as the preset has them, complete."""

    techniques: list[dict[str, Any]]
    frames: int
    size: Annotated[tuple[int, int], Field(strict=False)]
    steps: int
    guidance_scale: float | None
    negative_prompt: str | None
    flow_shift: float | None
    dtype: str
    quantize: str | None
    lora: Annotated[tuple[str, ...], Field(strict=False)]


class Ratios(_Closed):
    """The file. ratios: for each transformer, by the name of the call, one for each of its steps; the first is 1."""

    schema_: Literal[1] = Field(1, alias="schema")
    longgen: str
    backbone: str
    weights: str
    settings: Settings
    ratios: list[dict[str, list[Ratio]]]


Report = Callable[[int], None]  # is told how many steps are done


@contextmanager
def skipping(backbone: PipelineBackbone, plan: Plan, calibrating: Callable[[], Report]) -> Iterator[None]:
    """Within the context, the backbone's transformers skip steps of `plan`, where its setup says `mag`.

    calibrating: called where the ratios have to be measured first. Raises UsageError for a plan that cannot skip so.
    """
    if backbone.model_settings.cache is None or (cache := parse_cache(backbone.model_settings.cache, backbone.spec))[0] != "mag":
        yield
        return
    if isinstance(plan.sampling, MultiDiffusion) and plan.sampling.shifts(plan.call_geometry.frames_lat) > 1:
        raise UsageError(f"--cache {backbone.model_settings.cache} takes what a step before added to a clip, and the clips of "
                         f"{plan.preset.name} move from step to step", expected="no --cache", hint="leave it out")  # fmt: skip
    kept = ratios_of(backbone, plan, calibrating)
    configs = [
        MagCacheConfig(threshold=cache[1], num_inference_steps=len(ratios), mag_ratios=ratios) if ratios else None
        for ratios in map(_farthest, kept.ratios)
    ]
    with _enabled(backbone, configs):
        yield


def ratios_of(backbone: PipelineBackbone, plan: Plan, calibrating: Callable[[], Report]) -> Ratios:
    """The ratios of `plan`: those that are kept, or measured now and kept."""
    model_settings, sample = backbone.model_settings, plan.sample
    weights = fingerprint(backbone.spec, model_settings.lora)
    settings = Settings(
        techniques=plan.preset.as_dict().get("technique", []), frames=plan.frames_px, size=plan.size, steps=plan.steps,
        guidance_scale=sample.guidance_scale, negative_prompt=sample.negative_prompt, flow_shift=sample.flow_shift,
        dtype=model_settings.dtype, quantize=model_settings.quantize, lora=model_settings.lora,
    )  # fmt: skip
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
    path = cache / "longgen" / "magcache" / weights[:16] / f"{digest[:16]}.json"
    if path.is_file():
        kept = read(path)
        if (kept.weights, kept.settings) == (weights, settings):
            return kept
    measured = measure(backbone, build(plan.preset, plan.spec), calibrating())
    made = Ratios(schema=1, longgen=__version__, backbone=backbone.spec.name, weights=weights, settings=settings, ratios=measured)
    disk.make_folder(path.parent)
    disk.save_json(path, made.model_dump(mode="json", by_alias=True))
    return made


def read(path: Path) -> Ratios:
    """Raises LonggenError for a file that is none of these."""
    try:
        return Ratios.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"].lower()
        raise LonggenError(f"{path} holds no ratios of MagCache: {reason}", expected="a file as --cache mag writes it",
                           hint="delete it: it is then measured anew") from None  # fmt: skip


def measure(backbone: PipelineBackbone, plan: Plan, report: Report) -> list[dict[str, list[float]]]:
    """The ratios of each transformer, by the name of the call, of one generation that computes every step."""
    found: list[dict[str, list[float]]] = []

    def after_step(state: State) -> None:
        report(state.done)
        if state.done == plan.steps:  # the pipeline then forgets what its hooks hold
            found.extend(
                {name: block.calibration_ratios for name, block in hook.state_manager._state_cache.items()}
                for hook in map(_last_hook, backbone.transformers)
            )

    generator = torch.Generator().manual_seed(0)
    prompt = grammar.HELD_OUT[-1].prompt if backbone.spec.built_in else PROMPTS[0]
    denoiser = Denoiser(backbone, plan, prompt)
    # one step more than there are, or diffusers would print the ratios and forget them
    config = MagCacheConfig(calibrate=True, num_inference_steps=plan.steps + 1)
    with _enabled(backbone, [config] * len(backbone.transformers)):
        sample(denoiser, denoiser.initial_noise(generator), generator, after_step)
    return found


def _farthest(ratios: dict[str, list[float]]) -> list[float]:
    """Of each step the ratio farthest from 1; empty for an expert that had no step."""
    return [max(step, key=lambda ratio: abs(1 - ratio)) for step in zip(*ratios.values(), strict=True)]


def _last_hook(transformer: Any) -> Any:
    """The hook of the block that tells what all of them added."""
    registries = [module._diffusers_hook for module in transformer.modules() if hasattr(module, "_diffusers_hook")]
    return next(hook for hook in (registry.get_hook(_HOOK) for registry in registries) if hook is not None and hook.is_tail)


@contextmanager
def _enabled(backbone: PipelineBackbone, configs: list[MagCacheConfig | None]) -> Iterator[None]:
    """With a configuration for each transformer; None leaves it alone."""
    on = []
    try:
        for transformer, config in zip(backbone.transformers, configs, strict=True):
            if config is not None:
                transformer.enable_cache(config)  # type: ignore[operator]
                on.append(transformer)
        yield
    finally:
        for transformer in on:
            transformer.disable_cache()  # type: ignore[operator]
