"""Presets: TOML files that stack techniques and set defaults for sampling, validated as a whole; flags override them.

    schema = 1
    name = "freespec"
    description = "..."
    source = "arXiv 2605.06509"

    [sample]                 # defaults for a generation, all optional
    steps = 50

    [sample."wan2.1-1.3b"]   # defaults for one backbone, as its paper has them; the name in quotes
    flow_shift = 8.0
    guidance_scale = 6.0

    [model."wan2.1-14b"]     # LoRAs that the weights are merged with, as --lora takes them; [model]: on every backbone
    lora = ["owner/name/FILE.safetensors:1.0"]

    [[technique]]            # in any order
    name = "freespec"
    kappa = 3.0

Precedence: flag, LONGGEN_* variable, the preset's table for the backbone, its [sample], the backbone's default. A backbone's table
also applies to it with other weights (`self-forcing:FILE`), and to folders and hub ids of a model of that shape. All errors of
a file are reported in one message. A preset runs no code: a technique "package.module:Class" needs `allow_code`; and it downloads
nothing: its LoRAs have to be on this machine.
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
from longgen.backbones.registry import SPECS, is_backbone, published_name
from longgen.backbones.settings import NotBlank, parse_lora
from longgen.backbones.spec import BackboneSpec
from longgen.catalog import name_of
from longgen.errors import MissingError, UsageError, shown, unknown_name
from longgen.technique import Technique

SCHEMA = 1
SYNONYMS = dict.fromkeys(("none", "off", "no", "baseline", "stock", "default", "vanilla", "full"), "direct")
Positive = Annotated[int, Field(ge=1)]


class SampleFields(BaseModel):
    """Fields that presets and rows of a prompt file share."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    frames: Positive | None = None
    size: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    steps: Positive | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    negative_prompt: str | None = None
    fps: Annotated[int, Field(ge=1, le=240)] | None = None
    flow_shift: Annotated[float, Field(gt=0, le=1000)] | None = None


class Sample(SampleFields):
    """Sampling parameters of a generation; None defers to the next source in the order of precedence.

    frames: pixel frames. size: (width, height) in pixels. fps: playback rate of the file; does not change the generated motion.
    flow_shift: s in the noise levels sigma' = s sigma / (1 + (s - 1) sigma). Raises UsageError for invalid values.
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = [explain("", detail, Sample) for detail in error.errors()]
            raise UsageError("\n    ".join(["invalid sampling parameters:", *lines]), expected="what each line names",
                             hint="correct them") from None  # fmt: skip

    def over(self, other: Sample) -> Sample:
        """`other` overridden by the values that are set here."""
        return other.model_copy(update={key: value for key, value in self if value is not None})


class ModelTable(BaseModel):
    """What a preset changes in the model itself. lora: as the `ModelSettings` have it; a flag's come after these."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lora: Annotated[tuple[NotBlank, ...], Field(strict=False)] = ()

    @field_validator("lora")
    @classmethod
    def _can_be_parsed(cls, lora: tuple[str, ...]) -> tuple[str, ...]:
        for text in lora:
            try:
                parse_lora(text)
            except UsageError as error:
                raise ValueError(error.given.removeprefix("--lora ")) from None
        return lora


class Preset(BaseModel):
    """A named stack of techniques, with defaults for sampling and LoRAs. backbone_*: those for one backbone, by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    description: str = ""
    source: str = ""
    sample: Sample = Sample()
    backbone_samples: dict[str, Sample] = Field(default_factory=dict)
    model: ModelTable = ModelTable()
    backbone_models: dict[str, ModelTable] = Field(default_factory=dict)
    techniques: tuple[Technique, ...] = ()

    @field_validator("backbone_samples", "backbone_models")
    @classmethod
    def _of_known_backbones(cls, tables: dict[str, Any]) -> dict[str, Any]:
        for name in tables:
            if not is_backbone(name):
                raise ValueError(_no_backbone(name, "sample"))
        return tables

    def sample_on(self, spec: BackboneSpec) -> Sample:
        """The preset's defaults on `spec`: those of its own table, where there is one, over the others."""
        return self.backbone_samples.get(published_name(spec), Sample()).over(self.sample)

    def lora_on(self, spec: BackboneSpec) -> tuple[str, ...]:
        """The LoRAs on `spec`: those of its own table, where there is one, or the others. Raises UsageError where it has none."""
        table = self.backbone_models.get(published_name(spec), self.model)
        if self.backbone_models and not table.lora:
            raise UsageError(
                f"preset {self.name} needs a backbone that it has LoRAs for, and {spec.name} is none",
                expected=", ".join(self.backbone_models),
                hint=f"choose one of them; or in a preset of your own a table [model.{textfile.toml_value(spec.name)}]",
            )
        return table.lora

    def under(self, sample: Sample) -> Preset:
        """The preset with its defaults overridden by `sample` on every backbone."""
        tables = {name: sample.over(defaults) for name, defaults in self.backbone_samples.items()}
        return self.model_copy(update={"sample": sample.over(self.sample), "backbone_samples": tables})

    def as_dict(self) -> dict[str, Any]:
        """The tables of the preset's TOML file, every parameter written out."""
        tables = [{"name": name_of(t), **t.model_dump(mode="json", exclude_none=True)} for t in self.techniques]
        sample = self.sample.model_dump(mode="json", exclude_none=True)
        sample |= {name: table.model_dump(mode="json", exclude_none=True) for name, table in self.backbone_samples.items()}
        model = self.model.model_dump(mode="json", exclude_defaults=True)
        model |= {name: table.model_dump(mode="json") for name, table in self.backbone_models.items()}
        head = {"schema": SCHEMA, "name": self.name, "description": self.description, "source": self.source}
        return head | {key: value for key, value in (("sample", sample), ("model", model), ("technique", tables)) if value}

    def as_toml(self) -> str:
        """The preset as a TOML file that `load` reads back equal; parameters left to the backbone are comments."""
        tables = self.as_dict()
        techniques = tables.pop("technique", [])
        for table, technique in zip(techniques, self.techniques, strict=True):
            table |= {f"# {key}": "the backbone's own" for key, value in technique if value is None}
        general = {key: tables.pop(key, {}) for key in ("sample", "model")}
        by_backbone = [
            (f"[{key}.{textfile.toml_value(name)}]", general[key].pop(name))
            for key, names in (("sample", self.backbone_samples), ("model", self.backbone_models))
            for name in names
        ]
        sections = [
            ("", tables),
            *((f"[{key}]", table) for key, table in general.items()),
            *by_backbone,
            *(("[[technique]]", table) for table in techniques),
        ]
        texts = []
        for head, table in sections:
            lines = [f"{key} = {textfile.toml_value(value)}\n" for key, value in table.items()]
            texts += ["".join([f"{head}\n" if head else "", *lines])] if lines else []
        return "\n".join(texts)


def folder() -> Path:
    """The folder of the built-in presets: in the package when installed, beside it in a checkout."""
    installed = Path(str(importlib.resources.files("longgen"))) / "presets"
    return installed if installed.is_dir() else installed.parent.parent / "presets"


def names() -> list[str]:
    """The built-in presets."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str, overrides: Iterable[str] = (), sample: Sample | None = None, allow_code: bool = False) -> Preset:
    """The preset `name`, or of the TOML file `name`, with `technique.key=value` overrides and `sample` over its defaults.

    allow_code: whether it may name techniques as "package.module:Class", which imports the module. Raises UsageError for an unknown
    name, key or value, MissingError for a missing file.
    """
    path, overrides = Path(name), [*overrides]
    if not name.endswith(".toml") and "/" not in name:
        if name not in names():
            raise unknown_name("preset", name, names(), "longgen presets list, or give a path that ends in .toml", SYNONYMS)
        path = folder() / f"{name}.toml"
    elif not os.path.isfile(name):  # not Path.is_file, which raises where a name is too long
        raise MissingError(f"preset file {name} does not exist", expected="a TOML file, or one of " + ", ".join(names()),
                           hint="check the path")  # fmt: skip
    tables = parse_file(path)
    keys = [override.partition("=")[0].strip() for override in overrides]
    if duplicate := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"--set {shown(duplicate)} is given twice", expected="one value for a parameter", hint="leave one out")
    for override in overrides:
        _apply_override(tables, override, allow_code)
    preset = from_tables(tables, name, allow_code)
    return preset if sample is None else preset.under(sample)


def override_target(override: str) -> tuple[str, str]:
    """The technique and the key that `override` = "technique.key=value" is meant for; a technique may be "package.module:Class"."""
    module, colon, rest = override.partition("=")[0].strip().rpartition(":")
    name, _, key = rest.partition(".")
    return module + colon + name, key


def parse_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises as `textfile.read` does, and UsageError where it is not TOML."""
    return textfile.toml(textfile.read(path, "preset file", "is not TOML"), f"preset file {path}")


def from_tables(tables: Mapping[str, Any], origin: str, allow_code: bool = False) -> Preset:
    """A Preset from parsed TOML. Reports all errors of the file in one UsageError, each with its place."""
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
            errors.append(f"technique[{position}]: has no name; known: {', '.join(sorted(catalog.names()))}")
            continue
        catalog.check_code(name, allow_code)
        try:
            technique = catalog.technique(name, allow_code)
            techniques.append(technique(**parameters))
        except UsageError as error:
            errors.append(f"technique[{position}]: {error.given}")
        except ValidationError as error:
            errors += [explain(name, detail, technique) for detail in error.errors()]
    misplaced = [key for key in ("techniques", "layers", "steps", "backbone_samples", "backbone_models") if key in rest]
    errors += [f"{key}: unknown key at the top; techniques are [[technique]] tables" for key in misplaced]
    rest = {key: value for key, value in rest.items() if key not in misplaced}
    for key, kind in (("sample", Sample), ("model", ModelTable)):
        rest |= _tables_by_backbone(rest.get(key, {}), key, kind, errors)
    preset = None
    try:
        preset = Preset(**{"name": origin, **rest, "techniques": tuple(techniques)})
    except ValidationError as error:
        errors += [explain("", detail, Preset) for detail in error.errors()]
    if errors or preset is None:
        raise UsageError(f"preset {origin}:\n" + "\n".join(f"    {line}" for line in errors),
                         expected="what each line names",
                         hint="correct it; longgen presets show NAME prints every key")  # fmt: skip
    return preset


def _tables_by_backbone(table: Any, key: str, kind: type[BaseModel], errors: list[str]) -> dict[str, Any]:
    """The fields `key` and `backbone_{key}s` of a Preset from the TOML table `key`, which holds tables for one backbone each."""
    if not isinstance(table, dict):
        return {key: table}  # the preset refuses it
    named = {name: values for name, values in table.items() if isinstance(values, dict) and name not in kind.model_fields}
    errors += [f"{key}.{name}: {_no_backbone(name, key)}" for name in named if not is_backbone(name)]
    general = {name: value for name, value in table.items() if name not in named}
    parsed = {}
    for name, values in {"": general, **{name: values for name, values in named.items() if is_backbone(name)}}.items():
        place = f'{key}."{name}"' if name else key
        try:
            parsed[name] = kind(**values)
        except UsageError as error:  # a Sample puts its own errors into words
            errors += [f"{place}.{line.strip()}" for line in error.given.splitlines()[1:]]
        except ValidationError as error:
            errors += [f"{place}.{explain('', detail, kind)}" for detail in error.errors()]
    return {key: parsed.pop("", kind()), f"backbone_{key}s": parsed}


def _no_backbone(name: str, key: str) -> str:
    near = difflib.get_close_matches(name, SPECS, n=2, cutoff=0.5)
    suggestion = f"; did you mean {' or '.join(near)}?" if near else "."
    form = f'A table is for one of {", ".join(SPECS)}, its name in quotes: [{key}."wan2.1-1.3b"]'
    return f"neither a key nor a backbone{suggestion} {form}"


def explain(name: str, detail: Any, model: type[BaseModel]) -> str:
    """A pydantic error in one line: key, value, what is expected."""
    path = ".".join(str(part) for part in (name, *detail["loc"]) if part != "" and not str(part).startswith(("literal", "tuple")))
    known = ["schema", "technique"] if model is Preset else []
    known += [key for key in model.model_fields if key not in ("techniques", "backbone_samples", "backbone_models")]
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key; known keys: {', '.join(known)}"
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict) else f" = {shown(detail['input'])}"
    return f"{path}{value}: {message[0].lower()}{message[1:]}"


def _apply_override(tables: dict[str, Any], override: str, allow_code: bool) -> None:
    _, equals, text = override.partition("=")
    name, key = override_target(override)
    place = f"--set {shown(override)}"
    if not (equals and name and key):
        raise UsageError(f"{place} is not technique.key=value", expected="TECHNIQUE.KEY=VALUE",
                         hint="write it like window.frames=21")  # fmt: skip
    try:
        parsed = textfile.toml(f"value = {text}", place)
        value = parsed["value"] if len(parsed) == 1 else text
    except UsageError as error:
        if "[[[[" in text or "{" in text or re.search("[0-9]{1000}", text):  # meant as TOML
            raise error from None
        value = text.strip()  # a bare word needs no quotes in a shell
    stack = tables.get("technique", [])
    if not isinstance(stack, list) or not all(isinstance(table, dict) for table in stack):
        return  # from_tables reports it
    targets = [table for table in stack if table.get("name") == name]
    if key == "name":
        raise UsageError(f"{place}: a technique's name is not a parameter", expected="technique.key=value",
                         hint="choose another preset")  # fmt: skip
    if not targets:
        catalog.technique(name, allow_code)
        stacked = ", ".join(str(table.get("name")) for table in stack) or "none"
        raise UsageError(f"{place}: the preset has no technique '{name}'", expected=f"its techniques: {stacked}",
                         hint="choose a preset that has it, or write one")  # fmt: skip
    for table in targets:
        table[key] = value
