"""`resolve(request) -> Plan`: the preset under its overrides, its layers as a probe says, its length in frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longgen import catalog, naming, units
from longgen import preset as presets
from longgen.backbones.find import find
from longgen.backbones.spec import BackboneSpec
from longgen.conditions import NOTHING, Conditions, restore
from longgen.errors import LonggenError, UsageError, conflict, shown, unknown_name
from longgen.layers import selection
from longgen.naming import INPUTS
from longgen.pictures import kept
from longgen.plan import Plan
from longgen.planner import build
from longgen.recommended import DIRECT, Recommendation, recommended
from longgen.schedule import PromptSchedule, settled


@dataclass(frozen=True)
class PlanRequest:
    """Everything a plan depends on.

    preset: a shipped name or a TOML file, optionally with `@all`, `@none` or `@random:SEED`; None for the recommended one, see
    `longgen.recommended`, which takes gpus and guidance_parallel into account. overrides: `technique.key=value`.
    duration: in place of sample.frames, as `20s`. layers, probe: see `longgen.layers.selection`. lora: what the weights to be
    probed are merged with. allow_code: whether the preset may name Python classes as techniques.
    """

    preset: str | None
    spec: BackboneSpec
    overrides: tuple[str, ...] = ()
    sample: presets.Sample = presets.Sample()  # noqa: RUF009 - immutable
    duration: str | None = None
    schedule: PromptSchedule | None = None
    layers: str | None = None
    probe: str | None = None
    lora: tuple[str, ...] = ()
    allow_code: bool = False
    conditions: Conditions = NOTHING
    gpus: int = 1
    guidance_parallel: bool = False

    def settled(self) -> tuple[PlanRequest, str, tuple[str, ...]]:
        """With a preset that is named; its name; and a note where it was recommended."""
        if self.preset is not None:
            return self, self.preset, ()
        advice, sample = Recommendation(DIRECT), self.sample
        if self.layers is None and self.probe is None and not (self.duration is not None and sample.frames is not None):
            if self.duration is not None:
                sample = sample.model_copy(update={"frames": units.duration_frames(self.duration, sample.fps or self.spec.fps)})
            advice = recommended(self.spec, None, sample, self.schedule, self.conditions, self.gpus, self.guidance_parallel,
                                 self.overrides)  # fmt: skip
        return replace(self, preset=advice.preset), advice.preset, (advice.note,) if advice.note else ()

    def load_preset(self) -> presets.Preset:
        """The preset under the overrides and the sample; a duration becomes frames at its fps. Raises UsageError."""
        units.frames_asked(self.sample.frames, self.duration, self.spec.fps)  # or refuses both
        name = selection.split_name(self.settled()[1])[0]
        loaded = presets.load(name, self.overrides, self.sample, self.allow_code)
        if self.duration is None:
            return loaded
        fps = loaded.sample_on(self.spec).fps or self.spec.fps
        return loaded.under(presets.Sample(frames=units.duration_frames(self.duration, fps)))

    def fitted(self) -> PlanRequest:
        """The request as one of several presets takes it: with the overrides of techniques that this preset has, and with layers
        and probe where it leaves its layers to a probe."""
        loaded = presets.load(selection.split_name(self.settled()[1])[0], allow_code=self.allow_code)
        techniques = {presets.name_of(technique) for technique in loaded.techniques}
        overrides = tuple(text for text in self.overrides if presets.override_target(text)[0] in techniques)
        if selection.uses_probe(loaded):
            return replace(self, overrides=overrides)
        return replace(self, overrides=overrides, layers=None, probe=None)


def resolve(request: PlanRequest) -> Plan:
    """The plan of `request`. Raises UsageError for what cannot run."""
    request, name, advice = request.settled()
    how = selection.split_name(name)[1]
    if how is not None and request.layers is not None:
        raise conflict(f"--layers {request.layers}", f"--preset {name}", "both choose layers")
    loaded = request.load_preset()
    pictured = settled(request.schedule, request.conditions)[1].image is not None
    chosen, notes = selection.resolve_layers(loaded, request.spec, how or request.layers, request.probe, request.lora,
                                             pictured)  # fmt: skip
    return build(chosen, request.spec, request.schedule, (*advice, *notes), request.conditions)


def check_overrides(overrides: Sequence[str], requests: Iterable[PlanRequest]) -> None:
    """Raises UsageError for an override that went into none of `requests`."""
    used = {override for request in requests for override in request.overrides}
    for override in overrides:
        if override not in used:
            technique, key = presets.override_target(override)
            if key and ":" not in technique and technique not in catalog.names():
                raise unknown_name("technique", technique, catalog.names(), "longgen presets show NAME shows a preset's")
            raise UsageError(f"--set {shown(override)} applies to none of the presets", hint="correct it, or leave it out",
                             expected="technique.key=value, of a technique that one of the presets has")  # fmt: skip


def from_settings(settings: dict[str, Any], origin: Path, allow_code: bool = False) -> Plan:
    """The plan that the `settings` stored in `origin` describe; `allow_code` as in a request. Raises LonggenError where damaged.

    origin: a video, or a file in its run's folder, which holds copies of the pictures. Whether they are there is not checked:
    `missing_inputs` tells.
    """
    chosen, schedule = stored_preset(settings, origin, allow_code), stored_schedule(settings, origin)
    try:
        spec, _, _, _ = find(settings["backbone"]), settings["prompt"], settings["seed"], settings["dtype"]
        conditions = restore(settings.get("conditions"), _run_folder(origin), _names(settings))
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(origin, error) from None
    return build(chosen, spec, schedule, conditions=conditions)


def stored_preset(settings: dict[str, Any], origin: Path, allow_code: bool = False) -> presets.Preset:
    """The preset of `settings`; see `from_settings`."""
    try:
        tables = {**settings["preset"], "sample": settings["sample"]}
    except (KeyError, TypeError) as error:
        raise _damaged(origin, error) from None
    return presets.from_tables(tables, str(origin), allow_code)


def stored_schedule(settings: dict[str, Any], origin: Path) -> PromptSchedule | None:
    """The schedule of `settings`, or None; see `from_settings`."""
    if "schedule" not in settings:
        return None
    folder = _run_folder(origin) / INPUTS
    try:
        names = _names(settings)
        return PromptSchedule.from_dict(settings["schedule"], lambda key: kept(key, folder, names.get(key)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(origin, error) from None


def _run_folder(origin: Path) -> Path:
    return origin.parent if origin.absolute().parent.suffix == ".run" else naming.run_folder(origin)


def _names(settings: dict[str, Any]) -> dict[str, str]:
    """The names of files by their hashes; of a video of anybody, so without folders."""
    return {str(key): Path(str(name)).name for key, name in settings.get("inputs", {}).items()}


def _damaged(origin: Path, error: Exception) -> LonggenError:
    return LonggenError(f"the settings in {origin} are damaged: {error}", expected="settings as longgen stores them",
                        hint="start again with --overwrite")  # fmt: skip


def missing_inputs(plan: Plan) -> list[Path]:
    """The pictures that `plan` starts from and that are not where they should be."""
    named = [*plan.conditions.pictures.values(), *(plan.schedule.pictures.values() if plan.schedule else ())]
    return [picture.path for picture in named if not picture.path.is_file()]
