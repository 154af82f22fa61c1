"""What `longgen compare` and `longgen probe` measure on a video: a table of names, units and plain words. No weights, no GPU.

`longgen.metrics.score` computes them in one pass. Each file beside it holds one idea and defines its numbers; what a paper
or another program measures under a similar name is something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from longgen.metrics.vbench import DIMENSIONS, PREFIX


@dataclass(frozen=True)
class Metric:
    """A number that a video gets. `about` is one sentence for the reader of a report; `better` says which way is better."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    about: str


_ROWS = (
    Metric(
        "motion", "%/s", "neither",
        "How fast edges and textures move, in per cent of the shorter side per second; what differs from its ground by colour "
        "alone, at the same brightness, is hardly seen.",
    ),
    Metric(
        "freeze", "%", "lower",
        "Share of the frames that are nearly the same as the frame before.",
    ),
    Metric(
        "repetition", "%", "lower",
        "How fully the picture comes back after one fixed time of 2 s or more (100: exactly; up to 20 may be chance); a motion "
        "that is periodic by nature, such as an orbit, repeats too and scores as high.",
    ),
    Metric(
        "seam", "×", "lower",
        "How much more the picture changes across a technique's own boundaries than just beside them; 1 means that no seam shows.",
    ),
    Metric(
        "drift", "Lab/s", "lower",
        "How fast colour, contrast, saturation and sharpness wander off, per second, in units of Lab (2 is a difference one sees); "
        "a scene that is meant to change scores too.",
    ),
    Metric(
        "flicker", "%", "lower",
        "Fast changes of brightness that motion does not explain, in per cent of the range from black to white.",
    ),
    Metric(
        "smoothness", "dB", "higher",
        "How well each frame is foretold by moving its two neighbours halfway to each other (60: exactly); a video that hardly "
        "moves is smooth too, so read it beside motion.",
    ),
    Metric(
        "subject_colour", "%", "higher",
        "Share of the frames whose main object has the colour that the prompt asks for (prompts of the built-in grammar only).",
    ),
    Metric(
        "subject_one_object", "%", "higher",
        "Share of the frames that show exactly one object (prompts of the built-in grammar only).",
    ),
    Metric(
        "subject_motion", "%", "higher",
        "100 where the object moves as the prompt says in most stretches of 81 frames, otherwise 0 (prompts of the built-in "
        "grammar only).",
    ),
)  # fmt: skip
METRICS = {metric.name: metric for metric in _ROWS}  # in the order of tables
KNOWN = METRICS | {row.key: Metric(row.key, "of 1", row.better, row.about) for row in DIMENSIONS.values()}


def describe(name: str) -> Metric:
    """What stands beside the number `name`: one of METRICS, of VBench's, or one that only VBench's own program computes."""
    upstream = Metric(name, "of 1", "higher", "Computed by VBench's own program, which says what it means.")
    return KNOWN.get(name) or (upstream if name.startswith(PREFIX) else Metric(name, "", "neither", ""))


def in_order(names: Iterable[str]) -> list[str]:
    """`names` in the order of tables, each once; those that nobody knows come last, by the alphabet."""
    known = [*KNOWN]
    return sorted(set(names), key=lambda name: (known.index(name) if name in KNOWN else len(known), name))
