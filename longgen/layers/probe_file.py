"""Schema of probe.json: the settings of a probe, every score it measured, and the verdict on each layer; and the cache of probes.

All scores are kept, so that another rule or metric gives new verdicts without measuring again. The cache is keyed by the weights
and the settings that a probe was measured with:

~/.cache/longgen/probes/<fingerprint>/<settings>/probe.json     and, until the probe is done, `parts/` beside it
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from longgen.backbones.spec import BackboneSpec
from longgen.cache_folder import cache_folder
from longgen.closed import ClosedModel
from longgen.errors import LonggenError, MissingError
from longgen.layers.fingerprint import fingerprint
from longgen.technique import VERDICTS, LayerVerdict

SCHEMA = 1
Sensitivity = Literal["position", "context"]
ScoreName = Literal["attention", "latent", "video"]
SENSITIVITIES: tuple[Sensitivity, ...] = ("position", "context")
SCORE_NAMES: tuple[ScoreName, ...] = ("attention", "latent", "video")
VERDICT_OF = dict(zip(SENSITIVITIES, VERDICTS, strict=True))  # of a layer that is sensitive to one of the two
HEAD_PARTS = ("first", "middle", "current")  # of what a head sees: the first frame, the current chunk, and what is between them
Score = Annotated[float, Field(ge=0, allow_inf_nan=False)]
HeadSpan = Literal["mean", "early"]
HeadGroup = Literal["first", "middle", "dummy"]
Correlation = Annotated[float, Field(ge=-1, le=1)]


class ProbeSettings(ClosedModel, strict=True):
    """What was run. frames, native_frames: pixel frames. size: (width, height) in pixels. observed_steps: where attention was read.

    shifts: latent frames by which keys were moved in time. windows: multiples of the native length, for the effective rank.
    conditions: the picture that every run started from, by hash, where there was one. heads: whether what heads see was read.
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
    conditions: dict[str, str] | None = None
    heads: Literal[True] | None = None


class ProbeRun(ClosedModel, strict=True):
    """Scores of one prompt and seed: by sensitivity and score name, one number per layer.

    heads: by layer and head, the shares of attention on HEAD_PARTS: their mean over chunks, and those early in the video, in the
    chunk in which `dummy-forcing` measures them.
    """

    prompt: int
    seed: int
    scores: dict[Sensitivity, dict[ScoreName, list[Score]]]
    heads: dict[HeadSpan, list[list[Annotated[list[Score], Field(min_length=3, max_length=3)]]]] | None = None


class HeadShares(ClosedModel, strict=True):
    """One head: mean shares over chunks and runs; its group early in the videos, and the fraction of runs that put it there."""

    first: Score
    middle: Score
    current: Score
    group: HeadGroup
    agreement: Score


class LayerScores(ClosedModel, strict=True):
    """One layer: means over runs. position, context: the deciding scores. effective_rank: by window, `1x`, `2x`, `4x`."""

    layer: int
    position: Score
    context: Score
    effective_rank: dict[str, Score]
    verdict: LayerVerdict | Literal["both", "neither"]
    scores: dict[Sensitivity, dict[ScoreName, Score]]


class Stability(ClosedModel, strict=True):
    """Mean rank correlation of the layers' scores between pairs of seeds and of prompts; None if there is only one."""

    seeds: Correlation | None
    prompts: Correlation | None


class Probe(ClosedModel, strict=True):
    """A probe of one backbone.

    weights: fingerprint of the weights. metric: the score that decides. rule: how scores become verdicts, in words. thresholds: a
    layer with a higher score is sensitive. agreement: rank correlation of each score with the attention score, which tells how well
    a quick probe ranks layers; a quick probe quotes it from a full one of the same weights. heads: by layer and head.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    longgen: str
    backbone: str
    weights: str
    settings: ProbeSettings
    metric: ScoreName
    rule: str
    thresholds: dict[Sensitivity, float]
    layers: list[LayerScores]
    stability: dict[Sensitivity, Stability]
    agreement: dict[Sensitivity, dict[ScoreName, Correlation]]
    warnings: list[str]
    runs: list[ProbeRun]
    seconds: float
    peak_memory_bytes: int
    device: str
    heads: list[list[HeadShares]] | None = None

    def sensitive(self, sensitivity: Sensitivity) -> tuple[int, ...]:
        """The layers whose verdict is this sensitivity, or both."""
        return tuple(row.layer for row in self.layers if row.verdict in (VERDICT_OF[sensitivity], "both"))

    def as_dict(self) -> dict[str, Any]:
        """The content of probe.json; `heads` are left out where they were not read."""
        content = self.model_dump(mode="json", by_alias=True)
        for fields in (content, content["settings"], *content["runs"]):
            if fields["heads"] is None:
                del fields["heads"]
        return content


def read(path: Path) -> Probe:
    """The probe in the file `path`. Raises MissingError if there is no such file, LonggenError if it is not a probe."""
    try:
        return Probe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"the probe {path} does not exist", expected="a probe.json written by longgen probe",
                           hint="check the path, or run longgen probe") from None  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LonggenError(f"{path} is not a probe: {place}: {first['msg'].lower()}",
                           expected=f"a probe.json of schema {SCHEMA}, written by longgen probe",
                           hint="pass another file, or run longgen probe") from None  # fmt: skip
    except OSError as error:
        raise LonggenError(f"{path} cannot be read: {error.strerror}", expected="a readable probe.json",
                           hint="check the path") from None  # fmt: skip


def probe_folder(weights: str, settings: ProbeSettings) -> Path:
    """The cache folder of a probe with these settings of the weights with this fingerprint."""
    given = settings.model_dump_json(exclude_none=True)  # so that a setting which is not used changes no name
    return cache_folder("probes") / weights[:16] / hashlib.sha256(given.encode()).hexdigest()[:16]


def cached_probes(spec: BackboneSpec, lora: tuple[str, ...] = ()) -> list[tuple[Probe, Path]]:
    """All cached probes of the weights of `spec`, newest first; none if the weights are not on this machine."""
    try:
        weights = fingerprint(spec, lora)
    except MissingError:
        return []
    probes = []
    for path in (cache_folder("probes") / weights[:16]).glob("*/probe.json"):
        with contextlib.suppress(LonggenError):  # of another version
            probes.append((read(path), path))
    probes.sort(key=lambda entry: entry[1].stat().st_mtime, reverse=True)
    return [(probe, path) for probe, path in probes if probe.weights == weights]
