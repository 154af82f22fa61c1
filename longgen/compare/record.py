"""compare.json: what was made, what was measured of it, and what the presets come to. Closed: an unknown key is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from longgen.errors import LonggenError, MissingError

SCHEMA = 1
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Cell(_Closed):
    """One video of the grid: a preset (or the name of a file), a prompt and a seed.

    name: unlike that of any other cell, of letters, digits and hyphens. video: relative to the folder of compare.json where it
    lies under it. seconds: by phase, as run.json has them; of a cell that was there before, those of its own run. metrics: by
    name, None where one cannot be said. curves: by name, one number a frame, None where it is not defined. seams: first frames
    after an edge of the technique's own. times: seconds at which each frame is shown, and after them the end, where frames do not
    come evenly; fps is then their mean. caveats: what the file leaves to be noted, as words that follow its name.
    """

    name: str
    preset: str
    prompt: str | None
    seed: int | None
    status: Literal["done", "failed"]
    error: str | None = None
    video: str | None = None
    frames: int = 0
    fps: Number = 0.0
    size: tuple[int, int] = (0, 0)
    seconds: dict[str, Number] = Field(default_factory=dict)
    peak_memory_bytes: int = 0
    cost_ratio: Number | None = None
    notes: list[str] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Number | None] = Field(default_factory=dict)
    curves: dict[str, list[Number | None]] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    seams: list[int] = Field(default_factory=list)
    times: list[Number] | None = None
    caveats: list[str] = Field(default_factory=list)


class Value(_Closed):
    """A metric of a preset over its cells. difference: mean of the paired differences to the baseline, with the ends of its 95%
    bootstrap interval; distinguishable: whether that leaves 0 out, and False for fewer than six pairs. None for the baseline
    itself, without one, and for fewer than two pairs.
    """

    mean: Number
    cells: int
    difference: Number | None = None
    low: Number | None = None
    high: Number | None = None
    distinguishable: bool | None = None


class Row(_Closed):
    """A preset: its cells together. seconds: median of a cell's sampling and decoding."""

    preset: str
    cells: int
    failed: int
    seconds: Number | None
    peak_memory_bytes: int
    cost_ratio: Number | None
    metrics: dict[str, Value]


class Watch(_Closed):
    """What to look at for one prompt: files relative to the folder of compare.json."""

    prompt: str | None
    side_by_side: str
    sheet: str


class Comparison(_Closed):
    """A whole comparison. presets, prompts and seeds are in the order in which they were asked for."""

    schema_: Literal[1] = Field(1, alias="schema")
    longgen: str
    backbone: str | None
    presets: list[str]
    prompts: list[str | None]
    seeds: list[int | None]
    baseline: str | None
    cells: list[Cell]
    table: list[Row]
    watch: list[Watch]
    warnings: list[str]
    libraries: dict[str, str]
    device: str

    def as_dict(self) -> dict[str, Any]:
        """The comparison as compare.json has it."""
        return self.model_dump(mode="json", by_alias=True)


def read(path: Path) -> Comparison:
    """The comparison in the file `path`. Raises MissingError where it is not there, LonggenError where it is none."""
    try:
        return Comparison.model_validate(json.loads(path.read_bytes()))  # pydantic's own reader takes no name that is not UTF-8
    except FileNotFoundError:
        raise MissingError(
            f"{path} is not there", expected="a compare.json", hint="check the path, or run longgen compare"
        ) from None
    except (ValueError, RecursionError, OSError) as error:  # pydantic's ValidationError is a ValueError
        reason = str(error).splitlines()[0]
        raise LonggenError(f"{path} is no comparison: {reason}", expected="compare.json as longgen compare writes it",
                           hint="run longgen compare again") from None  # fmt: skip
