"""MagCache: a step cache that reuses the last residual in steps where calibrated magnitude ratios predict little change.

Paper: MagCache, arXiv 2506.09045. diffusers' own hook does the skipping; this module measures and stores the ratios it needs.

Legend: R_k what a transformer's blocks add to their input in step k, r_k the mean over tokens of |R_k| / |R_(k-1)|.

    a step takes R of the last computed one, while over the steps since then the sum of |1 - product of r| is at most the threshold,
    3 of them at the most, and never in the first fifth                                                              [diffusers]

r depends on weights, plan, steps and size, and hardly on prompt, picture and seed. So it is calibrated once, on first use, by an
ordinary generation with a fixed prompt and seed, and the picture of that first use, and stored in

    ~/.cache/longgen/magcache/<fingerprint of the weights>/<settings>.json

The hook takes one list of ratios for all calls of a step. Where there are several, for guidance or clips, each step takes the ratio
farthest from 1, so that all skip together and none beyond the threshold [derived]. Each of two experts has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic_core
import torch
from diffusers import MagCacheConfig
from pydantic import ConfigDict, Field, ValidationError

from longgen import __version__, disk, ranks
from longgen.backbones import tiny_grammar
from longgen.backbones.settings import STEP_RATIO_SETTINGS, ModelSettings, parse_cache
from longgen.cache_folder import cache_folder
from longgen.closed import ClosedModel
from longgen.errors import LonggenError, UsageError
from longgen.layers.fingerprint import fingerprint
from longgen.loops import PROMPTS, State, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.hook_removal import keep_hooks
from longgen.plan import Plan
from longgen.planner import build
from longgen.sampling.multidiffusion import MultiDiffusion

_HOOK = "mag_cache_block_hook"
Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Ratios(ClosedModel):
    """The file. settings: see `dependencies`. ratios: per transformer, by name of the call, one per step; the first is 1."""

    model_config = ConfigDict(strict=True)

    schema_: Literal[1] = Field(1, alias="schema")
    longgen: str
    backbone: str
    weights: str
    settings: dict[str, Any]
    ratios: list[dict[str, list[Ratio]]]


Report = Callable[[int], None]  # is told how many steps are done


@contextmanager
def skipping(backbone: PipelineBackbone, plan: Plan, calibrating: Callable[[], Report]) -> Iterator[None]:
    """Within the context, the backbone's transformers skip steps of `plan` if the model settings say `--cache mag`.

    calibrating: called if the ratios have to be measured first. Raises UsageError for a plan that cannot skip steps.
    """
    if backbone.model_settings.cache is None or (cache := parse_cache(backbone.model_settings.cache, backbone.spec))[0] != "mag":
        yield
        return
    if isinstance(plan.sampling, MultiDiffusion) and plan.sampling.shifts(plan.call_geometry.frames_lat) > 1:
        raise UsageError(f"--cache {backbone.model_settings.cache} takes what a step before added to a clip, and the clips of "
                         f"{plan.preset.name} move from step to step", expected="no --cache", hint="leave it out")  # fmt: skip
    stored = ratios_of(backbone, plan.first, calibrating)  # every clip of a chain takes all steps
    configs = [
        MagCacheConfig(threshold=cache[1], num_inference_steps=len(ratios), mag_ratios=ratios) if ratios else None
        for ratios in map(_farthest, stored.ratios)
    ]
    with _enabled(backbone, configs):
        yield


def dependencies(plan: Plan, model_settings: ModelSettings) -> dict[str, Any]:
    """What the ratios of a model's weights depend on, as JSON: techniques with all parameters, sampling, and model settings."""
    sample = plan.sample.model_dump(mode="json", exclude={"fps"}) | {"frames": plan.frames_px, "size": [*plan.size]}
    model = model_settings.model_dump(mode="json", include={*STEP_RATIO_SETTINGS})
    lists_last = dict(sorted(model.items(), key=lambda item: isinstance(item[1], list)))  # files of before are named by this order
    given = {"given": plan.given_lat} if plan.given_lat else {}
    return {"techniques": plan.preset.as_dict().get("technique", []), **sample, **lists_last, **given}


def ratios_of(backbone: PipelineBackbone, plan: Plan, calibrating: Callable[[], Report]) -> Ratios:
    """The ratios of `plan`: those on disk, or measured now and stored."""
    weights, settings = fingerprint(backbone.spec, backbone.model_settings.lora), dependencies(plan, backbone.model_settings)
    digest = hashlib.sha256(pydantic_core.to_json(settings)).hexdigest()
    path = cache_folder("magcache") / weights[:16] / f"{digest[:16]}.json"
    team = ranks.join(backbone.model_settings.gpus, backbone.model_settings.device)
    stored = team.decide(lambda: read(path) if path.is_file() else None)
    if stored is not None:
        # group offload once cut files short
        steps = sum(len(next(iter(expert.values()), ())) for expert in stored.ratios)
        if (stored.weights, stored.settings, steps) == (weights, settings, plan.steps):
            return stored
    measured = measure(backbone, build(plan.preset, plan.spec, conditions=plan.conditions).first, calibrating())
    ratios = Ratios(schema=1, longgen=__version__, backbone=backbone.spec.name, weights=weights, settings=settings, ratios=measured)
    if team.writes:
        disk.make_folder(path.parent)
        disk.save_json(path, ratios.model_dump(mode="json", by_alias=True))
    return ratios


def read(path: Path) -> Ratios:
    """The ratios in the file at `path`. Raises LonggenError if it holds none."""
    try:
        return Ratios.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"].lower()
        raise LonggenError(f"{path} holds no ratios of MagCache: {reason}", expected="a file as --cache mag writes it",
                           hint="delete it, and they are measured again") from None  # fmt: skip


def measure(backbone: PipelineBackbone, plan: Plan, report: Report) -> list[dict[str, list[float]]]:
    """The ratios of each transformer, by the name of the call, measured in one generation that computes every step."""
    ratios: list[dict[str, list[float]]] = []

    def after_step(state: State) -> None:
        report(state.done)
        if state.done == plan.steps:  # the pipeline then forgets what its hooks hold
            ratios.extend(
                {name: block.calibration_ratios for name, block in hook.state_manager._state_cache.items()}
                for hook in map(_last_hook, backbone.transformers)
            )

    generator = torch.Generator().manual_seed(0)
    prompt = tiny_grammar.HELD_OUT[-1].prompt if backbone.spec.built_in else PROMPTS[0]
    denoiser = Denoiser(backbone, plan, prompt, backbone.given(plan, generator))
    # one step more than there are, or diffusers would print the ratios and forget them
    config = MagCacheConfig(calibrate=True, num_inference_steps=plan.steps + 1)
    with _enabled(backbone, [config] * len(backbone.transformers)):
        sample(denoiser, denoiser.initial_noise(generator), generator, after_step)
    return ratios


def _farthest(ratios: dict[str, list[float]]) -> list[float]:
    """For each step the ratio farthest from 1; empty for an expert that had no step."""
    return [max(step, key=lambda ratio: abs(1 - ratio)) for step in zip(*ratios.values(), strict=True)]


def _last_hook(transformer: Any) -> Any:
    """The hook of the last block, which sees the residual of all blocks."""
    registries = [module._diffusers_hook for module in transformer.modules() if hasattr(module, "_diffusers_hook")]
    return next(hook for hook in (registry.get_hook(_HOOK) for registry in registries) if hook is not None and hook.is_tail)


@contextmanager
def _enabled(backbone: PipelineBackbone, configs: list[MagCacheConfig | None]) -> Iterator[None]:
    """With a configuration for each transformer; None leaves it alone."""
    enabled = []
    try:
        for transformer, config in zip(backbone.transformers, configs, strict=True):
            if config is not None:
                transformer.enable_cache(config)  # type: ignore[operator]
                keep_hooks(transformer)  # type: ignore[arg-type]
                enabled.append(transformer)
        yield
    finally:
        for transformer in enabled:
            transformer.disable_cache()  # type: ignore[operator]
