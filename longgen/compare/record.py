"""Schema of compare.json: the videos of a comparison, their scores, and the table of presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from longgen.closed import ClosedModel
from longgen.errors import LonggenError, MissingError

SCHEMA = 1
Number = Annotated[float, Field(allow_inf_nan=False)]


class Cell(ClosedModel):
    """One video of the grid: a preset (or the name of a file), a prompt and a seed.

    name: unique, of letters, digits and hyphens. video: relative to the folder of compare.json if it is inside. seconds: by phase,
    as in run.json; of an existing video, those of its own run. metrics: by name, None where undefined. curves: by name, one number
    per frame, None where undefined. seams: the first frame after each boundary of the technique. times: presentation time of each
    frame in seconds, then the end, for a variable frame rate; fps is then the mean. caveats: notes on the file, phrased to follow
    its name.
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


class MetricValue(ClosedModel):
    """Mean of a metric over the cells of a preset. difference, low, high, distinguishable: against the baseline, as in Difference;
    all of them None for the baseline itself, without a baseline, and for fewer than two pairs.
    """

    mean: Number
    cells: int
    difference: Number | None = None
    low: Number | None = None
    high: Number | None = None
    distinguishable: bool | None = None


class PresetRow(ClosedModel):
    """The cells of a preset, aggregated. seconds: median time of sampling and decoding a cell."""

    preset: str
    cells: int
    failed: int
    seconds: Number | None
    peak_memory_bytes: int
    cost_ratio: Number | None
    metrics: dict[str, MetricValue]


class Difference(ClosedModel):
    """One comparison: of two presets in one metric, over the pairs of videos with the same prompt and seed.

    differing: pairs that are not equal. difference: mean of preset minus other, with its 95% bootstrap interval low to high, None
    for one pair. p: of Wilcoxon's signed-rank test; p_holm: corrected for all comparisons. distinguishable: whether p_holm is at
    most 0.05 and the interval excludes 0; otherwise the difference may be chance.
    """

    preset: str
    other: str
    metric: str
    pairs: int
    differing: int
    difference: Number
    low: Number | None = None
    high: Number | None = None
    p: Number
    p_holm: Number
    distinguishable: bool


class Verdict(ClosedModel):
    """What the differences bear. text: sentences. tested: comparisons that are corrected for. pairs: of videos, the most that two
    presets have. needed_pairs: the fewest with which a difference could be told from chance, given so many comparisons.
    """

    text: list[str]
    tested: int
    pairs: int
    needed_pairs: int
    differences: list[Difference]


class PromptView(ClosedModel):
    """The side-by-side video and the contact sheet of one prompt: files relative to the folder of compare.json."""

    prompt: str | None
    side_by_side: str
    sheet: str


class Comparison(ClosedModel):
    """A whole comparison. presets, prompts and seeds are in the order given. verdict: None for one preset, and in files of longgen
    up to 0.11.0.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    longgen: str
    backbone: str | None
    presets: list[str]
    prompts: list[str | None]
    seeds: list[int | None]
    baseline: str | None
    cells: list[Cell]
    table: list[PresetRow]
    verdict: Verdict | None = None
    watch: list[PromptView]
    warnings: list[str]
    libraries: dict[str, str]
    device: str

    def as_dict(self) -> dict[str, Any]:
        """The content of compare.json."""
        return self.model_dump(mode="json", by_alias=True)


def read(path: Path) -> Comparison:
    """The comparison in the file `path`. Raises MissingError if there is no such file, LonggenError if it is not a comparison."""
    try:
        return Comparison.model_validate(json.loads(path.read_bytes()))  # pydantic's own reader takes no name that is not UTF-8
    except FileNotFoundError:
        raise MissingError(
            f"{path} does not exist", expected="a compare.json", hint="check the path, or run longgen compare"
        ) from None
    except (ValueError, RecursionError, OSError) as error:  # pydantic's ValidationError is a ValueError
        reason = str(error).splitlines()[0]
        raise LonggenError(f"{path} is not a comparison: {reason}", expected="a compare.json written by longgen compare",
                           hint="run longgen compare again") from None  # fmt: skip
