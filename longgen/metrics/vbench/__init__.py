"""VBench's frame-wise dimensions, computed here from weights that the user has. Loads no torch until a name is used.

Zhang et al., "VBench", 2311.17982; definitions read from github.com/Vchitect/VBench at 45e79ec. `vbench.NAME` stands only for
upstream's network, preprocessing and aggregation of one video; what differs has a name of its own. Two things move the last
digits: upstream decodes with decord and OpenCV where this uses ffmpeg, and on CUDA upstream runs CLIP in half precision,
which here is float32 everywhere, as upstream is on a CPU.

    VBench("cuda", Path("weights")).score(Path("clip.mp4")) -> Scored
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from longgen.errors import unknown_name

_NAMES = {
    "VBench": "longgen.metrics.vbench.scorer:VBench",
    "Scored": "longgen.metrics.vbench.scorer:Scored",
    "clip_list": "longgen.metrics.vbench.clips:clip_list",
    "write_results": "longgen.metrics.vbench.results:write_results",
    "read_results": "longgen.metrics.vbench.results:read_results",
    "Results": "longgen.metrics.vbench.results:Results",
    "export_videos": "longgen.metrics.vbench.export:export_videos",
}
__all__ = ["DIMENSIONS", "PREFIX", "Dimension", "dimension", *_NAMES]
PREFIX = "vbench."  # of a number that is upstream's


@dataclass(frozen=True)
class Dimension:
    """A number from 0 to 1 that a video gets. key: its name in a Scored. weights: names in `weights.WEIGHTS`. about: one sentence
    for the reader of a report."""

    key: str
    weights: tuple[str, ...]
    about: str
    better: Literal["higher", "neither"] = "higher"


DIMENSIONS = {
    "subject_consistency": Dimension(
        "vbench.subject_consistency", ("dino",),
        "How alike DINO finds each frame, the frame before and the first; a still picture scores 1, so read it beside motion.",
    ),
    "background_consistency": Dimension(
        "vbench.background_consistency", ("clip-b32",),
        "How alike CLIP finds each frame, the frame before and the first; a still picture scores 1, so read it beside motion.",
    ),
    "dynamic_degree": Dimension(
        "vbench.dynamic_degree", ("raft",),
        "1 where, in a quarter of the eighths of a second or more, the fastest twentieth of the picture moves far, otherwise 0.",
        "neither",
    ),
    "aesthetic_quality": Dimension(
        "vbench.aesthetic_quality", ("clip-l14", "laion"),
        "How people would rate the beauty of the frames, by LAION's predictor.",
    ),
    "imaging_quality": Dimension(
        "vbench.imaging_quality", ("musiq",),
        "How free of noise, blur and wrong exposure MUSIQ finds the frames (needs pyiqa, which is not for commercial use).",
    ),
    "motion_smoothness_raft": Dimension(
        "motion_smoothness_raft", ("raft",),
        "How well every second frame is foretold by warping its neighbours; not VBench's motion_smoothness, whose network differs.",
    ),
}  # fmt: skip


def dimension(name: str) -> Dimension:
    """The row of DIMENSIONS called `name`. Raises UsageError."""
    if name not in DIMENSIONS:
        raise unknown_name("VBench dimension", name, DIMENSIONS, "choose from these")
    return DIMENSIONS[name]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'longgen.metrics.vbench' has no attribute '{name}'")
    module, attribute = _NAMES[name].split(":")
    return getattr(importlib.import_module(module), attribute)
