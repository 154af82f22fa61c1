"""The schema of run.json, by which it is written and which `longgen docs run.json` prints as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from longgen.backbones.settings import ModelSettings
from longgen.closed import ClosedModel
from longgen.run_settings import SCHEMA, STORED_MODEL_SETTINGS, RunSettings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class PlacedRecord(ClosedModel):
    """A technique, and where it acted."""

    name: str
    slot: str
    paper: str
    layers: list[int]
    steps: list[int]
    parameters: dict[str, Any]


class BranchRecord(ClosedModel):
    """A branch of attention. density: the share of pairs of frames that see each other."""

    name: str
    layers: list[int]
    steps: list[int]
    passes: int
    density: float


class TextsRecord(ClosedModel):
    """The texts of a rollout. rows: the first latent frame of each change, and each prompt's share from there on."""

    prompts: list[str]
    rows: list[tuple[int, list[float]]]
    cuts: list[int] | None = None


class Record(ClosedModel):
    """run.json of `longgen generate`: what a run was made with, where and how long."""

    schema_: Annotated[int, Field(alias="schema", json_schema_extra={"const": SCHEMA})]
    status: Annotated[
        Literal["running", "sampled", "done"],
        Field(description="running: sampling, or stopped in it; sampled: the latents are whole; done: the video is"),
    ]
    settings: Annotated[dict[str, Any], Field(description="all that makes the run; the video holds the same")]
    frames: Annotated[int, Field(description="pixel frames in the file")]
    latent_frames: int
    given_latent_frames: Annotated[int | None, Field(description="of these, taken from a picture or an earlier video")] = None
    texts: TextsRecord | None = None
    techniques: list[PlacedRecord]
    branches: list[BranchRecord]
    cost_ratio: Annotated[float, Field(description="all arithmetic against direct sampling's")]
    notes: list[str]
    device: str
    python: str
    platform: str
    seconds: Annotated[dict[str, float], Field(description="by phase: load, sample, decode")]
    peak_memory_bytes: int
    first_step_s: Annotated[float | None, Field(description="from the beginning of loading to the end of the first step")] = None
    overwrite: Annotated[bool | None, Field(description="while the run may replace the file under the video's name")] = None
    resumed: Annotated[bool | None, Field(description="by `longgen compare`: its seconds are those of the last part")] = None
    video: Annotated[str | None, Field(description="BLAKE2b-256 of the video, once it is done")] = None
    checksum: Annotated[str | None, Field(description="BLAKE2b-256 of all other keys, as Python's json.dumps writes them")] = None


def stored(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as run.json has it, without what is not set. Raises ValidationError where it is none."""
    return Record.model_validate(content).model_dump(mode="json", by_alias=True, exclude_unset=True)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of run.json as this version writes it."""
    schema = Record.model_json_schema(by_alias=True)
    schema["properties"]["settings"] |= _settings_schema()
    head = {"$schema": DIALECT, "$id": f"urn:longgen:run.json:{SCHEMA}"}
    return without_titles(head | schema | {"required": [*schema["required"], "checksum"]})


def _settings_schema() -> dict[str, Any]:
    """Of `RunSettings.stored`: the settings of the model stand beside the others, and what is at its default is left out."""
    model = ModelSettings.model_json_schema()["properties"]
    properties = RunSettings.model_json_schema(by_alias=True)["properties"]
    del properties["model"], properties["longgen"]["default"]
    properties |= {"schema": {"const": SCHEMA}} | {name: model[name] for name in STORED_MODEL_SETTINGS}
    own = {field.alias or name: field for name, field in RunSettings.model_fields.items() if name != "model"}
    required = [name for name, field in own.items() if field.default is not None]
    required += [name for name in STORED_MODEL_SETTINGS if ModelSettings.model_fields[name].is_required()]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def without_titles(schema: Any) -> Any:
    """`schema` without the titles that repeat its names."""
    if isinstance(schema, list):
        return [without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: without_titles(part) for key, part in schema.items() if not (key == "title" and isinstance(part, str))}
