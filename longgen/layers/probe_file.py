"""probe.json: what a probe measured of each layer, under which settings, and what it says of them.

The file is closed: an unknown key or a value of another type is refused. It holds every score, so that another rule or metric
makes new verdicts of it without measuring again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longgen.errors import LonggenError, MissingError

SCHEMA = 1
Kind = Literal["position", "context"]
ScoreName = Literal["attention", "latent", "video"]
KINDS: tuple[Kind, ...] = ("position", "context")
METRICS: tuple[ScoreName, ...] = ("attention", "latent", "video")
Verdict = Literal["position-sensitive", "context-sensitive", "both", "neither"]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Settings(_Closed):
    """What was run. frames, native_frames: pixel frames. size: (width, height) in pixels. observed_steps: where attention was read.

    shifts: latent frames by which keys were moved in time. windows: multiples of the native length, for the effective rank.
    """

    mode: Literal["full", "quick"]
    frames: int
    native_frames: int
    size: Annotated[tuple[int, int], Field(strict=False)]
    steps: int
    observed_steps: Annotated[tuple[int, ...], Field(strict=False)]
    guidance_scale: float
    shifts: Annotated[tuple[int, ...], Field(strict=False)]
    windows: Annotated[tuple[int, ...], Field(strict=False)]
    prompts: Annotated[tuple[str, ...], Field(strict=False)]
    seeds: Annotated[tuple[int, ...], Field(strict=False)]
    dtype: str
    lora: Annotated[tuple[str, ...], Field(strict=False)] = ()


class Run(_Closed):
    """The scores of one prompt and seed: by kind and score, one number for each layer."""

    prompt: int
    seed: int
    scores: dict[Kind, dict[ScoreName, list[Finite]]]


class Layer(_Closed):
    """One layer. position, context: the scores that decide. scores: all of them. effective_rank: by window, `1x`, `2x`, `4x`."""

    layer: int
    position: Finite
    context: Finite
    effective_rank: dict[str, Finite]
    verdict: Verdict
    scores: dict[Kind, dict[ScoreName, Finite]]


class Stability(_Closed):
    """Mean rank correlation of the layers' scores between pairs of seeds and of prompts; None where there is one only."""

    seeds: Correlation | None
    prompts: Correlation | None


class Probe(_Closed):
    """A probe of one backbone.

    weights: the fingerprint of the weights. metric: the score that decides. rule: how scores become verdicts, in words.
    thresholds: by kind; a layer above is sensitive. agreement: by kind and score, the rank correlation of that score with the
    attention score, so how well a quick probe ranks; from this probe, or for a quick one from a full one of the same weights.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    longgen: str
    backbone: str
    weights: str
    settings: Settings
    metric: ScoreName
    rule: str
    thresholds: dict[Kind, float]
    layers: list[Layer]
    stability: dict[Kind, Stability]
    agreement: dict[Kind, dict[ScoreName, Correlation]]
    warnings: list[str]
    runs: list[Run]
    seconds: float
    peak_memory_bytes: int
    device: str

    def sensitive(self, kind: Kind) -> tuple[int, ...]:
        """The layers that the verdict calls sensitive to `kind`."""
        return tuple(row.layer for row in self.layers if row.verdict in (f"{kind}-sensitive", "both"))

    def as_dict(self) -> dict[str, Any]:
        """The probe as probe.json has it."""
        return self.model_dump(mode="json", by_alias=True)


def read(path: Path) -> Probe:
    """The probe in the file `path`. Raises MissingError where it is not there, LonggenError where it is no probe."""
    try:
        return Probe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"the probe {path} is not there", expected="a probe.json, as longgen probe writes it",
                           hint="check the path, or run longgen probe") from None  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LonggenError(f"{path} is no probe: {place}: {first['msg'].lower()}",
                           expected=f"a probe.json of schema {SCHEMA}, as longgen probe writes it",
                           hint="give another file, or run longgen probe") from None  # fmt: skip
    except OSError as error:
        raise LonggenError(f"{path} cannot be read: {error.strerror}", expected="a probe.json that may be read",
                           hint="check the path") from None  # fmt: skip
