"""Computes all metrics in one pass over a video, streaming: memory is 4 kB per frame, whatever the resolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longgen.backbones import tiny_grammar
from longgen.errors import UsageError
from longgen.metrics import tiny_reading
from longgen.metrics.change import Change, seam_ratios
from longgen.metrics.colour import PARTS, Colour, drift
from longgen.metrics.flow import Flow
from longgen.metrics.loop import loop
from longgen.metrics.picture import picture
from longgen.metrics.repetition import Repetition
from longgen.video import read_frames
from longgen.video_info import facts

GRAMMAR_SHAPE = (64, 64, 3)  # of a frame of the built-in grammar
LEAST_PX = 16  # of a side: smaller frames have no trackable content


@dataclass(frozen=True)
class Score:
    """Scores of a video of `frames` frames at `fps`.

    values: every name of METRICS that applies; None, never nan, if the video is too short or has no seams.
    curves: [F] float64 each, nan where undefined: motion, difference, freeze, smoothness, flicker and what
    `colour.Colour` defines (brightness, green_red, blue_yellow, contrast, saturation, sharpness).
    details: repetition_lag_s; loop_flow and loop_revisits; seam_worst and seam_at, its frame; drift_brightness and so on, the six
    slopes per second; drift_ends and drift_ends_brightness and so on, from the first to the last frames. notes: problems with the
    file. times: as in `Facts`, for a variable frame rate.
    """

    frames: int
    fps: float
    values: dict[str, float | None]
    curves: dict[str, np.ndarray]
    details: dict[str, float | int | None]
    notes: tuple[str, ...] = ()
    times: tuple[float, ...] | None = None


class Scorer:
    """Takes the frames of one video, in order, in batches of any size.

    `seams`: the first frame after each boundary of the technique, from 1; those past the end are ignored. `prompt`: adds the
    subject_* values if it is a sentence of the built-in grammar and the frames are 64x64. Raises UsageError.
    """

    def __init__(self, fps: float, seams: Sequence[int] = (), prompt: str | None = None) -> None:
        if not 0 < fps < float("inf"):
            raise UsageError(f"a video at {fps} frames a second", expected="more than 0", hint="give the rate it is shown at")
        if min(seams, default=1) < 1:
            raise UsageError(f"a seam at frame {min(seams)}", expected="1 or more: the first frame after a boundary",
                             hint="leave out the boundary before the first frame")  # fmt: skip
        self._fps, self._seams = fps, frozenset(seams)
        self._words = tiny_grammar.parse(prompt) if prompt else None
        self._shape: tuple[int, ...] | None = None
        self._change, self._flow = Change(), Flow(fps)
        self._colour, self._repetition = Colour(fps), Repetition(fps)
        self._readings: list[tiny_reading.Reading] = []  # of frames of the built-in grammar

    def add(self, frames: np.ndarray) -> None:
        """`frames` [F, H, W, 3] uint8. Raises UsageError for another type, or for a size that differs from the previous frames."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or min(frames.shape[1:3]) < LEAST_PX:
            raise UsageError(f"frames that are {frames.dtype} {list(frames.shape)}", hint="convert them first",
                             expected=f"uint8 [F, H, W, 3] of at least {LEAST_PX} pixels a side")  # fmt: skip
        if self._shape is None:
            self._shape = frames.shape[1:]
        if frames.shape[1:] != self._shape:
            raise UsageError(f"frames that are {list(frames.shape[1:])} after frames that are {list(self._shape)}",
                             expected="frames of one size", hint="use a new Scorer for each video")  # fmt: skip
        for frame in frames:
            now = picture(frame)
            for metric in (self._change, self._flow, self._colour, self._repetition):
                metric.add(now)
            if self._words and self._shape == GRAMMAR_SHAPE:
                self._readings.append(tiny_reading.read(frame[None]))

    def result(self, times: Sequence[float] | None = None) -> Score:
        """The score of the frames so far. times: of each frame and of the end, for a variable frame rate."""
        lists = {"motion": self._flow.motion, "difference": self._change.difference, "freeze": self._change.freeze,
                 "smoothness": self._flow.smoothness, "flicker": self._flow.flicker}  # fmt: skip
        curves = {name: np.array(values, dtype=float) for name, values in lists.items()} | self._colour.curves()
        if times is not None:  # the flow assumed a constant frame rate
            curves["motion"][1:] /= np.diff(times)[:-1] * self._fps
        seams = seam_ratios(curves["difference"], self._seams, self._fps)
        seam_at = max(seams, key=lambda frame: seams[frame]) if seams else None
        strength, lag_s = self._repetition.result() or (None, None)
        slopes = self._colour.slopes(None if times is None else np.array(times[:-1]))
        ends, detail = self._colour.ends() or (None, None)
        loops = loop(self._repetition, np.array(self._flow.cells), self._fps)
        values: dict[str, float | None] = {
            "motion": _mean(curves["motion"]),
            "freeze": _mean(100 * curves["freeze"]),
            "repetition": strength,
            "loop": loops.pop("loop"),
            "seam": _mean(np.array([*seams.values()])),
            "drift": drift(slopes) if slopes else None,
            "detail": detail,
            "flicker": _mean(curves["flicker"]),
            "smoothness": _mean(curves["smoothness"]),
        }
        if self._words and self._readings:
            shares = tiny_reading.score(tiny_reading.joined(self._readings), self._words)
            values |= {f"subject_{name}": 100 * shares[name] for name in ("colour", "one_object", "motion")}
        details: dict[str, float | int | None] = {
            "repetition_lag_s": lag_s,
            **loops,
            "seam_at": seam_at,
            "seam_worst": None if seam_at is None else seams[seam_at],
            **{f"drift_{name}": slopes[name] if slopes else None for name in PARTS},
            "drift_ends": drift(ends) if ends else None,
            **{f"drift_ends_{name}": ends[name] if ends else None for name in PARTS},
        }
        return Score(len(curves["motion"]), self._fps, values, curves, details)


def score_video(path: Path, seams: Sequence[int] = (), prompt: str | None = None) -> Score:
    """Scores the video at `path`, one frame at a time. Raises MissingError, or LonggenError if it is not a video."""
    info, notes = facts(path), list[str]()
    scorer = Scorer(info.fps, seams, prompt)
    count = 0
    for frame in read_frames(path, info.size, notes.append):
        scorer.add(frame[None])
        count += 1
    times = info.times
    if times is not None and len(times) != count + 1:
        notes.append(f"it has timestamps of {len(times) - 1} frames but {count} could be decoded, so all metrics assume the mean "
                     f"of {info.fps:.4g} fps")  # fmt: skip
        times = None
    return dataclasses.replace(scorer.result(times), notes=tuple(notes), times=times)


def _mean(curve: np.ndarray) -> float | None:
    """Mean of the finite values; None if there are none."""
    finite = curve[np.isfinite(curve)]
    return float(finite.mean()) if len(finite) else None
