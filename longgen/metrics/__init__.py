"""Names, units and descriptions of the video metrics of `longgen compare` and `longgen probe`. They need no weights and no GPU.

`longgen.metrics.score` computes them in one pass. Each other file defines one group of metrics; papers or other programs may use
similar names for different definitions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from longgen.metrics.vbench import DIMENSIONS, PREFIX


@dataclass(frozen=True)
class Metric:
    """A metric of a video. about: one sentence for readers of a report. better: which direction is better."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    about: str


_ROWS = (
    Metric("motion", "%/s", "neither", "Speed of edges and textures, in per cent of the shorter side per second; objects that "
           "differ from their background in hue alone, at equal brightness, hardly count."),
    Metric("freeze", "%", "lower", "Share of frames that are nearly identical to the previous frame."),
    Metric("repetition", "%", "lower", "How closely the picture recurs after a fixed period of 2 s or more (100: exactly; up to "
           "20 may be chance); naturally periodic motion, such as an orbit, scores as high."),
    Metric("loop", "%", "lower", "How surely the video plays itself again: by its picture, its motion and its near-duplicates, of "
           "which two have to agree; naturally periodic motion scores as high."),
    Metric("seam", "×", "lower", "How much more the picture changes across a technique's boundaries than next to them; 1 means no "
           "visible seam."),
    Metric("drift", "Lab/s", "lower", "Drift of colour, contrast, saturation and sharpness per second, in Lab units (2 is a "
           "visible difference); intended changes of the scene count too."),
    Metric("detail", "%", "neither", "Sharpness of the last 15% of the frames, in per cent of that of the first 15%; a video that "
           "blurs has less than 100, and so may another scene."),
    Metric("flicker", "%", "lower", "Fast changes of brightness that motion does not explain, in per cent of the full range."),
    Metric("smoothness", "dB", "higher", "How well each frame is predicted by warping its two neighbours halfway (60: exactly); a "
           "video that hardly moves is smooth too, so read it together with motion."),
    Metric("subject_colour", "%", "higher", "Share of frames whose main object has the colour in the prompt (prompts of the "
           "built-in grammar only)."),
    Metric("subject_one_object", "%", "higher", "Share of frames with exactly one object (prompts of the built-in grammar only)."),
    Metric("subject_motion", "%", "higher", "100 if the object moves as the prompt says in most segments of 81 frames, otherwise "
           "0 (prompts of the built-in grammar only)."),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _ROWS}  # in the order of tables
KNOWN = METRICS | {row.key: Metric(row.key, "of 1", row.better, row.about) for row in DIMENSIONS.values()}


def describe(name: str) -> Metric:
    """Description of the metric `name`: one of METRICS, of VBench's, or one that only VBench's own program computes."""
    upstream = Metric(name, "of 1", "higher", "Computed by VBench's own program; see its documentation.")
    return KNOWN.get(name) or (upstream if name.startswith(PREFIX) else Metric(name, "", "neither", ""))


def in_order(names: Iterable[str]) -> list[str]:
    """`names` in the order of tables, each once; unknown ones come last, alphabetically."""
    known = [*KNOWN]
    return sorted(set(names), key=lambda name: (known.index(name) if name in KNOWN else len(known), name))
