"""What was asked for -> Plan: the preset, its overrides, the layers that a probe says, the length."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from longgen import preset, units
from longgen.backbones.find import find
from longgen.backbones.spec import BackboneSpec
from longgen.errors import LonggenError, UsageError
from longgen.layers import selection
from longgen.plan import Plan
from longgen.planner import build
from longgen.schedule import PromptSchedule


def planned(
    name: str,
    spec: BackboneSpec,
    overrides: Iterable[str] = (),
    sample: preset.Sample | None = None,
    duration: str | None = None,
    schedule: PromptSchedule | None = None,
    layers: str | None = None,
    probe: str | None = None,
    lora: tuple[str, ...] = (),
) -> Plan:
    """The plan of the preset `name`, which may end in `@all` or the like, with the layers that a probe says.

    layers, probe: see `longgen.layers.selection`. Raises UsageError.
    """
    base, how = selection.split_name(name)
    if how is not None and layers is not None:
        raise UsageError(f"--preset {name} and --layers {layers} both choose layers", expected="one of them", hint="leave one out")
    loaded = load_preset(base, overrides, sample or preset.Sample(), duration, spec)
    chosen, said = selection.resolve_layers(loaded, spec, how or layers, probe, lora)
    return build(chosen, spec, schedule, said)


def load_preset(
    name: str, overrides: Iterable[str], sample: preset.Sample, duration: str | None, spec: BackboneSpec
) -> preset.Preset:
    """The preset `name` under `overrides` and `sample`; a `duration` becomes frames at the fps that then holds."""
    if duration is not None and sample.frames is not None:
        raise UsageError("--frames and --duration are both given", expected="one of them", hint="leave one out")
    chosen = preset.load(name, overrides, sample)
    if duration is None:
        return chosen
    return chosen.under(preset.Sample(frames=units.duration_frames(duration, chosen.sample_on(spec).fps or spec.fps)))


def plan_of(settings: dict[str, Any], origin: Path) -> Plan:
    """The plan that stored `settings` describe. Raises LonggenError where they are not what longgen stores."""

    try:
        tables = {**settings["preset"], "sample": settings["sample"]}
        spec, _, _, _ = find(settings["backbone"]), settings["prompt"], settings["seed"], settings["dtype"]
        schedule = PromptSchedule.from_dict(settings["schedule"]) if "schedule" in settings else None
    except (KeyError, TypeError, AttributeError) as error:
        raise LonggenError(f"the settings in {origin} are damaged: {error}", expected="settings as longgen stores them",
                           hint="start again with --overwrite") from None  # fmt: skip
    return build(preset.from_tables(tables, str(origin)), spec, schedule)
