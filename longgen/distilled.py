"""Models and LoRAs that are distilled, by what they are called: no config says so, and the defaults are those of other models."""

from __future__ import annotations

import re
from collections.abc import Iterable

from longgen.backbones.registry import SPECS, family_of
from longgen.plan import Plan

MOST_STEPS = 12  # that such models are published for
_NAMES = re.compile(r"distil|turbo|lightning|dmd|lightx2v|causvid|fastwan|fasthunyuan|(?<!\d)[1248][-_]?steps?", re.IGNORECASE)


def notes(plan: Plan, names: Iterable[str]) -> list[str]:
    """What is to be said where one of the files or hub ids `names` is distilled and `plan` samples as models that are not.

    Not of longgen's own backbones, nor where a config decides: a guider's scale, a rollout's steps.
    """
    spec = plan.spec
    if spec.sigmas:
        return []
    known = spec.causal or ("guider" in family_of(spec).folders and not plan.guided)
    name = next((name for name in (re.split(r"[/\\]", name)[-1] for name in names) if _NAMES.search(name)), None)
    if known or name is None or (plan.steps <= MOST_STEPS and not plan.guided):
        return []
    without = "" if spec.embedded_guidance else " and no guidance (--guidance-scale 1)"
    return [f"{name} is distilled, judging by its name: most such weights take at most {MOST_STEPS} steps (--steps){without}; "
            f"this run has {plan.steps} steps and guidance {plan.sample.guidance_scale:g}"]  # fmt: skip


def of_backbone(plan: Plan) -> list[str]:
    """The same of what the plan's backbone is read from."""
    spec = plan.spec
    if spec.sigmas and len(spec.sigmas) != plan.steps:
        own = len(spec.sigmas)
        return [f"{spec.name} is distilled for {own} noise levels of its own (--steps {own}); with {plan.steps} steps they are the "
                "scheduler's, at a cost in quality"]  # fmt: skip
    if spec.sigmas and plan.sample.flow_shift is not None:
        shift = plan.sample.flow_shift
        return [f"--flow-shift {shift:g} moves the noise levels that {spec.name} is distilled for, at a cost in quality"]
    return [] if spec.name in SPECS else notes(plan, spec.files or (spec.source,))
