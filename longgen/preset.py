"""Presets: a closed TOML file, and what flags put over it.

    schema = 1
    name = "freespec"
    description = "..."
    source = "arXiv 2605.06509"

    [sample]                 # defaults for a generation; each may be left out
    steps = 50

    [sample."wan2.1-1.3b"]   # the same for one backbone alone, as a paper had them; its name in quotes
    flow_shift = 8.0
    guidance_scale = 6.0

    [[technique]]            # stacked in any order
    name = "freespec"
    kappa = 3.0

Precedence: flag, then LONGGEN_* variable, then the preset's table for the backbone, then its [sample], then the backbone's own
default. A table counts for the backbone of its name, for that with weights from elsewhere (`self-forcing:FILE`), and for folders
and hub ids of a model of that shape. Every error of a file is in one message. Nothing in a preset is ever executed.
"""

from __future__ import annotations

import difflib
import importlib.resources
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from longgen import catalog, textfile
from longgen.backbones.registry import SPECS, published_name
from longgen.backbones.spec import BackboneSpec
from longgen.errors import MissingError, UsageError, shown, unknown_name
from longgen.technique import Technique

SCHEMA = 1
Positive = Annotated[int, Field(ge=1)]


class SampleFields(BaseModel):
    """The fields of `Sample`, which rows of a file of prompts have too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    frames: Positive | None = None
    size: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    steps: Positive | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    negative_prompt: str | None = None
    fps: Annotated[int, Field(ge=1, le=240)] | None = None
    flow_shift: Annotated[float, Field(gt=0, le=1000)] | None = None


class Sample(SampleFields):
    """What a generation needs besides its prompt; None stands for the next source in the order of precedence.

    frames: pixel frames. size: (width, height) in pixels. fps: of the file only, it never changes the motion. flow_shift: s of the
    noise levels sigma' = s sigma / (1 + (s - 1) sigma); None is the checkpoint's own. Raises UsageError for what cannot be.
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = [explain("", detail, Sample) for detail in error.errors()]
            raise UsageError("\n    ".join(["sampling cannot be so:", *lines]), expected="what each line names",
                             hint="correct it") from None  # fmt: skip

    def over(self, other: Sample) -> Sample:
        """These values where they are given, those of `other` elsewhere."""
        given = {key: value for key, value in self if value is not None}
        return other.model_copy(update=given)


class Preset(BaseModel):
    """A named stack of techniques with defaults for sampling. backbone_samples: those of one backbone alone, by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    description: str = ""
    source: str = ""
    sample: Sample = Sample()
    backbone_samples: dict[str, Sample] = Field(default_factory=dict)
    techniques: tuple[Technique, ...] = ()

    @field_validator("backbone_samples")
    @classmethod
    def _of_known_backbones(cls, samples: dict[str, Sample]) -> dict[str, Sample]:
        for name in samples:
            if name not in SPECS:
                raise ValueError(_no_backbone(name))
        return samples

    def sample_on(self, spec: BackboneSpec) -> Sample:
        """The preset's defaults on `spec`: those of its own table, where there is one, over the others."""
        return self.backbone_samples.get(published_name(spec), Sample()).over(self.sample)

    def under(self, sample: Sample) -> Preset:
        """The preset with `sample` over its defaults, on every backbone."""
        tables = {name: sample.over(own) for name, own in self.backbone_samples.items()}
        return self.model_copy(update={"sample": sample.over(self.sample), "backbone_samples": tables})

    def as_dict(self) -> dict[str, Any]:
        """The preset as its TOML file would have it, every parameter written out."""
        tables = [{"name": name_of(t), **t.model_dump(mode="json", exclude_none=True)} for t in self.techniques]
        sample = self.sample.model_dump(mode="json", exclude_none=True)
        sample |= {name: own.model_dump(mode="json", exclude_none=True) for name, own in self.backbone_samples.items()}
        head = {"schema": SCHEMA, "name": self.name, "description": self.description, "source": self.source}
        return head | ({"sample": sample} if sample else {}) | ({"technique": tables} if tables else {})

    def as_toml(self) -> str:
        """The preset as a TOML file that `load` reads back equal; parameters left to the backbone stand in comments."""
        tables = self.as_dict()
        techniques = tables.pop("technique", [])
        for table, technique in zip(techniques, self.techniques, strict=True):
            table |= {f"# {key}": "the backbone's own" for key, value in technique if value is None}
        sample = tables.pop("sample", {})
        own = [(f"[sample.{textfile.toml_value(name)}]", sample.pop(name)) for name in self.backbone_samples]
        sections = [("", tables), ("[sample]", sample), *own, *(("[[technique]]", table) for table in techniques)]
        return "\n".join(
            "\n".join([*([head] if head else []), *(f"{key} = {textfile.toml_value(value)}" for key, value in table.items())])
            + "\n"
            for head, table in sections
            if table
        )


def name_of(technique: Technique) -> str:
    """The name that `technique` has in the catalog."""
    place = f"{type(technique).__module__}:{type(technique).__qualname__}"
    return next(name for name, row in catalog.TECHNIQUES.items() if row == place)


def folder() -> Path:
    """The folder of the presets that longgen ships: in the package when installed, beside it in a checkout."""
    inside = Path(str(importlib.resources.files("longgen"))) / "presets"
    return inside if inside.is_dir() else inside.parent.parent / "presets"


def names() -> list[str]:
    """The presets that longgen ships."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str, overrides: Iterable[str] = (), sample: Sample | None = None) -> Preset:
    """The preset called `name`, or in the TOML file `name`, with `technique.key=value` overrides and `sample` put over it.

    Raises UsageError for an unknown name, key or value, MissingError for a file that is not there.
    """
    tables = parse_file(_find(name))
    overrides = [*overrides]
    paths = [override.partition("=")[0].strip() for override in overrides]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"--set {shown(path)} is given twice", expected="one value for a parameter", hint="leave one out")
    for override in overrides:
        _apply_override(tables, override)
    preset = from_tables(tables, origin=name)
    return preset if sample is None else preset.under(sample)


def _find(name: str) -> Path:
    if not name.endswith(".toml") and "/" not in name:
        if name not in names():
            raise unknown_name("preset", name, names(), "longgen presets list, or give a path that ends in .toml")
        return folder() / f"{name}.toml"
    if not os.path.isfile(name):  # not Path.is_file, which raises where a name is too long
        raise MissingError(f"preset file {name} is not there", expected="a TOML file, or one of " + ", ".join(names()),
                           hint="check the path")  # fmt: skip
    return Path(name)


def parse_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises as `textfile.read` does, and UsageError where it is not TOML."""
    return textfile.toml(textfile.read(path, "preset file", "is not TOML"), f"preset file {path}")


def from_tables(tables: Mapping[str, Any], origin: str) -> Preset:
    """A Preset from parsed TOML. All errors of the file come in one UsageError, each with its place."""
    errors: list[str] = []
    rest = dict(tables)
    schema = rest.pop("schema", SCHEMA)
    if schema is True or schema != SCHEMA:
        errors.append(f"schema: {shown(schema)}, but this longgen reads schema {SCHEMA}")
    techniques = []
    stack = rest.pop("technique", [])
    if not isinstance(stack, list) or not all(isinstance(table, dict) for table in stack):
        errors.append("technique: must be [[technique]] tables")
        stack = []
    for position, table in enumerate(stack):
        parameters = dict(table)
        name = parameters.pop("name", None)
        if not isinstance(name, str):
            errors.append(f"technique[{position}]: has no name; known: {', '.join(sorted(catalog.TECHNIQUES))}")
            continue
        try:
            techniques.append(catalog.technique(name)(**parameters))
        except UsageError as error:
            errors.append(f"technique[{position}]: {error.given}")
        except ValidationError as error:
            errors += [explain(name, detail, catalog.technique(name)) for detail in error.errors()]
    for key in ("techniques", "layers", "steps", "backbone_samples"):
        if key in rest:
            errors.append(f"{key}: unknown key at the top; techniques are [[technique]] tables")
            del rest[key]
    preset, samples = None, {}  # the latter by their heads
    if isinstance(given := rest.get("sample", {}), dict):
        own = {name: table for name, table in given.items() if isinstance(table, dict) and name not in Sample.model_fields}
        tables = {"sample": {key: value for key, value in given.items() if key not in own}}
        errors += [f"sample.{name}: {_no_backbone(name)}" for name in own if name not in SPECS]
        for head, table in (tables | {name: table for name, table in own.items() if name in SPECS}).items():
            try:
                samples[head] = Sample(**table)
            except UsageError as error:
                place = "sample" if head == "sample" else f'sample."{head}"'
                errors += [f"{place}.{line.strip()}" for line in error.given.splitlines()[1:]]
        rest["sample"] = samples.pop("sample", Sample())
    try:
        preset = Preset(**{"name": origin, **rest, "backbone_samples": samples, "techniques": tuple(techniques)})
    except ValidationError as error:
        errors += [explain("", detail, Preset) for detail in error.errors()]
    if errors or preset is None:
        raise UsageError(f"preset {origin}:\n" + "\n".join(f"    {line}" for line in errors),
                         expected="what each line names", hint="correct it; longgen presets show NAME prints every key")  # fmt: skip
    return preset


def _no_backbone(name: str) -> str:
    near = difflib.get_close_matches(name, SPECS, n=2, cutoff=0.5)
    hint = f", did you mean {' or '.join(near)}?" if near else ""
    form = f'A table is for one of {", ".join(SPECS)}, its name in quotes: [sample."wan2.1-1.3b"]'
    return f"no key, and no backbone is called so{hint or '.'} {form}"


def explain(name: str, detail: Any, model: type[BaseModel]) -> str:
    """One line for one pydantic error: key, given value, what is accepted."""
    path = ".".join(str(part) for part in (name, *detail["loc"]) if part != "" and not str(part).startswith(("literal", "tuple")))
    known = ["schema", "technique"] if model is Preset else []
    known += [key for key in model.model_fields if key not in ("techniques", "backbone_samples")]
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key; known keys: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if isinstance(detail["input"], dict) else f" = {shown(detail['input'])}"
    return f"{path}{given}: {message[0].lower()}{message[1:]}"


def _apply_override(tables: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    name, dot, key = path.strip().partition(".")
    if not (separator and dot and name and key):
        raise UsageError(f"--set {shown(override)} is not technique.key=value", expected="for example window.frames=21",
                         hint="write it so")  # fmt: skip
    try:
        parsed = textfile.toml(f"value = {text}", f"--set {shown(override)}")
        value = parsed["value"] if len(parsed) == 1 else text
    except UsageError as error:
        if "[[[[" in text or "{" in text or re.search("[0-9]{1000}", text):  # that was meant to be TOML
            raise error from None
        value = text.strip()  # a bare word, as a shell user types it
    stack = tables.get("technique", [])
    if not isinstance(stack, list) or not all(isinstance(table, dict) for table in stack):
        return  # from_tables says what is wrong with it
    targets = [table for table in stack if table.get("name") == name]
    if key == "name":
        raise UsageError(f"--set {shown(override)}: a technique's name is no parameter", expected="technique.key=value",
                         hint="choose another preset")  # fmt: skip
    if not targets:
        catalog.technique(name)
        stacked = ", ".join(str(table.get("name")) for table in stack) or "none"
        raise UsageError(f"--set {shown(override)}: the preset has no technique '{name}'", expected=f"its techniques: {stacked}",
                         hint="choose a preset that has it, or write one")  # fmt: skip
    for table in targets:
        table[key] = value
