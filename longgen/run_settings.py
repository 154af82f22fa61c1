"""What makes a run the same run: the settings that its video, its run.json and its checkpoints store, and what follows from them.

Stored settings are plain JSON, and may be of an earlier version of longgen: so the functions here read a mapping. Every field
declares what it changes (see `longgen.backbones.settings.Setting`); the names below are derived from that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

from longgen import __version__, catalog
from longgen.backbones import registry
from longgen.backbones.settings import LATENT_SETTINGS, PIXEL_SETTINGS, ModelSettings, Setting, effect_of
from longgen.closed import ClosedModel
from longgen.layers.fingerprint import of_files
from longgen.sampling.rollout import Rollout

if TYPE_CHECKING:
    from longgen.plan import Plan

SCHEMA = 2  # of run.json and of the settings in every file; 2 has checksums
# parameters that came to a technique later, with the value at which it does what it did before
NEWER: dict[str, dict[str, Any]] = {"rollout": {"cut_time": 45}}
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "imageio-ffmpeg")


class RunSettings(ClosedModel):
    """Everything needed to make the same video again.

    weights_file: of a backbone in single files, and of a VAE in one, a hash of their content, whatever they are called.
    schedule: prompts over time, where there are any; `prompt` is then the first. conditions: pictures and earlier videos, by hash;
    inputs: what their files were called, by these hashes.
    preset: see `_stored_preset`; sample: its sampling, as the plan has it. libraries: the versions that ran,
    those of plug-ins too.
    """

    model_config = ConfigDict(strict=True)

    longgen: Annotated[str, Setting(changes_latents=False)] = __version__
    schema_: Annotated[int, Field(alias="schema"), Setting(changes_latents=False)] = SCHEMA
    prompt: Annotated[str, Setting(changes_latents=True)]
    schedule: Annotated[dict[str, Any] | None, Setting(changes_latents=True)] = None
    conditions: Annotated[dict[str, Any] | None, Setting(changes_latents=True)] = None
    inputs: Annotated[dict[str, str] | None, Setting(changes_latents=False)] = None
    backbone: Annotated[str, Setting(changes_latents=True)]
    weights_file: Annotated[str | None, Setting(changes_latents=True)] = None
    preset: Annotated[dict[str, Any], Setting(changes_latents=True)]
    sample: Annotated[dict[str, Any], Setting(changes_latents=True)]
    seed: Annotated[int, Setting(changes_latents=True)]
    model: Annotated[ModelSettings, Setting(changes_latents=False)]  # declared field by field
    libraries: Annotated[dict[str, str], Setting(changes_latents=False)]

    def stored(self) -> dict[str, Any]:
        """The settings as JSON; those of the model beside the others."""
        stored = {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items() if name != "model"}
        return {name: value for name, value in stored.items() if value is not None} | self.model.stored()


IDENTITY = (*(name for name, field in RunSettings.model_fields.items() if effect_of(field).changes_latents), *LATENT_SETTINGS)
# videos equal in these share a row of a comparison; what a video starts from belongs to its prompt
TREATMENT = tuple(name for name in IDENTITY if name not in ("prompt", "seed", "conditions"))
# what should be equal in a whole comparison, beside the fields of `sample`; presets are what is compared
MUST_AGREE = tuple(name for name in TREATMENT if name not in ("preset", "sample"))
STORED_MODEL_SETTINGS = tuple(name for name in ModelSettings.model_fields if name in LATENT_SETTINGS + PIXEL_SETTINGS)


def stored_settings(plan: Plan, prompt: str, seed: int, model_settings: ModelSettings) -> dict[str, Any]:
    """The settings that the video of `prompt` and `seed` by `plan` stores."""
    return RunSettings(
        prompt=prompt,
        schedule=None if plan.schedule is None else plan.schedule.as_dict(),
        conditions=plan.conditions.as_dict(),
        inputs=_inputs(plan) or None,
        backbone=plan.spec.name,
        weights_file=_weights_file(plan, model_settings),
        preset=_stored_preset(plan),
        sample=plan.sample.model_dump(mode="json", exclude_none=True),  # without None, as runs of before a new field
        seed=seed,
        model=model_settings,
        libraries=_versions(plan),
    ).stored()


def _versions(plan: Plan) -> dict[str, str]:
    """The versions of the libraries that make a video, and of installed packages that a technique or the backbone comes from."""
    made = {name: importlib.metadata.version(name) for name in LIBRARIES} | registry.versions(plan.spec)
    for technique in plan.preset.techniques:
        made |= catalog.versions(catalog.name_of(technique))
    return made


def _weights_file(plan: Plan, model_settings: ModelSettings) -> str | None:
    """The hash of the single files that make the video. Raises MissingError."""
    files = [*plan.spec.files, *([] if model_settings.vae is None else [model_settings.vae])]
    return of_files(files)[:32] if files else None


def _stored_preset(plan: Plan) -> dict[str, Any]:
    """The preset without its sampling and its LoRAs, which are stored apart, every parameter written out: a rollout's as the model
    has them, and those of NEWER only where they say something. So a run of an earlier version is the same run here."""
    techniques = tuple(t.settled(plan.spec) if isinstance(t, Rollout) else t for t in plan.preset.techniques)
    tables = plan.preset.model_copy(update={"techniques": techniques}).as_dict()
    for table in tables.get("technique", ()):
        for key, neutral in NEWER.get(table["name"], {}).items():
            if table[key] == neutral:
                del table[key]
    return {key: value for key, value in tables.items() if key not in ("sample", "model")}


def _inputs(plan: Plan) -> dict[str, str]:
    """The names of the files that `plan` starts from, by their hashes."""
    conditions, shots = plan.conditions, plan.schedule.pictures if plan.schedule else {}
    names = {picture.sha256: picture.name for picture in (*conditions.pictures.values(), *shots.values())}
    return names | ({} if conditions.past is None else {conditions.past.sha256: conditions.past.name})


def differences(stored: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of the settings that make two runs different ones; of `conditions`, those of its parts."""
    names = [name for name in IDENTITY if _deciding(stored, name) != _deciding(other, name)]
    if "conditions" not in names:
        return names
    before, after = (side if isinstance(side := one.get("conditions"), dict) else {} for one in (stored, other))
    parts = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    if {"image", "continue"} & set(parts) and not (before and after):
        parts.remove("fit")  # which is there for the file alone
    at = names.index("conditions")
    return [*names[:at], *(part.replace("_", " ") for part in parts), *names[at + 1 :]]


def _deciding(stored: Mapping[str, Any], name: str) -> Any:
    """What `stored` has under `name`; of a preset without what it says of itself, which may be put in other words."""
    value = stored.get(name)
    if name != "preset" or not isinstance(value, dict):
        return value
    return {key: part for key, part in value.items() if key not in ("description", "source")}


def content_hash(stored: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of all that changes the frames: not the versions of libraries, nor where it ran."""
    new = ("conditions", "weights_file", "vae", "text_encoder")  # of which a run without them, and its hash, knows nothing
    deciding = {name: stored.get(name) for name in IDENTITY if name in stored or name not in new}
    deciding |= {name: stored.get(name, ModelSettings.model_fields[name].default) for name in PIXEL_SETTINGS}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]


def model_settings_in(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The model settings among stored ones that a run must be continued with."""
    return {name: stored.get(name, ModelSettings.model_fields[name].default) for name in LATENT_SETTINGS}


def version_warning(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A warning that `stored` settings are of other versions than those of `now`: continuing may differ from one run in one go."""
    before, after = ({"longgen": one.get("longgen"), **(one.get("libraries") or {})} for one in (stored, now))
    changed = [f"{name} {before.get(name, 'unknown')} (now {after[name]})" for name in after if before.get(name) != after[name]]
    warnings = []
    if changed:
        warnings.append(f"what is here was made with {', '.join(changed)}: the rest may not be what one run would have given")
    if stored.get("schema") == SCHEMA - 1:
        warnings.append("it has no checksum, so that damage to it cannot be seen")
    return "; ".join(warnings) or None
