"""VBench's frame-wise dimensions, computed from weights that the user provides. This module is light; `scorer` loads torch.

Zhang et al., "VBench", 2311.17982; definitions read from github.com/Vchitect/VBench at 45e79ec. A key `vbench.NAME` is
reserved for upstream's network, preprocessing and aggregation of one video; anything else has another key. Two differences change
the last digits: upstream decodes with decord and OpenCV, this with ffmpeg; and on CUDA upstream runs CLIP in half precision, while
this uses float32 everywhere, as upstream does on a CPU.

    scorer.VBench("cuda", Path("weights")).score(Path("clip.mp4")) -> Scored
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longgen.errors import unknown_name

PREFIX = "vbench."  # of keys of upstream's dimensions


@dataclass(frozen=True)
class Dimension:
    """A score of a video from 0 to 1. key: its name in a Scored. weights: names in `weights.WEIGHTS`. about: one sentence for
    readers of a report."""

    key: str
    weights: tuple[str, ...]
    about: str
    better: Literal["higher", "lower", "neither"] = "higher"


FEATURES = ("feature_consistency", "feature_repetition")  # by weights that a package ships; not VBench's
DIMENSIONS = {
    "subject_consistency": Dimension(
        "vbench.subject_consistency", ("dino",),
        "Similarity of DINO features between each frame, the previous and the first; a still video scores 1, read it with motion.",
    ),
    "background_consistency": Dimension(
        "vbench.background_consistency", ("clip-b32",),
        "Similarity of CLIP features between each frame, the previous and the first; a still video scores 1, read it with motion.",
    ),
    "dynamic_degree": Dimension(
        "vbench.dynamic_degree", ("raft",),
        "1 if in at least a quarter of the intervals of an eighth of a second the fastest 5% of the picture move far, otherwise 0.",
        "neither",
    ),
    "aesthetic_quality": Dimension(
        "vbench.aesthetic_quality", ("clip-l14", "laion"),
        "Predicted human rating of the frames' beauty, by LAION's aesthetic predictor.",
    ),
    "imaging_quality": Dimension(
        "vbench.imaging_quality", ("musiq",),
        "Technical quality of the frames (noise, blur, exposure) by MUSIQ; needs pyiqa, which is not for commercial use.",
    ),
    "motion_smoothness_raft": Dimension(
        "motion_smoothness_raft", ("raft",),
        "How well every second frame is predicted by warping its neighbours; VBench's motion_smoothness uses another network.",
    ),
    "feature_consistency": Dimension(
        "feature_consistency", ("efficientnet-lite0",),
        "VBench's subject consistency with features of EfficientNet-Lite0 for DINO's; a still video scores 1, read it with motion.",
    ),
    "feature_repetition": Dimension(
        "feature_repetition", ("efficientnet-lite0",),
        "How closely features of EfficientNet-Lite0 recur after a period of 2 s or more (1: exactly; up to 0.2 may be chance).",
        "lower",
    ),
}  # fmt: skip


def dimension(name: str) -> Dimension:
    """The entry `name` of DIMENSIONS. Raises UsageError."""
    if name not in DIMENSIONS:
        raise unknown_name("VBench dimension", name, DIMENSIONS, "choose from these")
    return DIMENSIONS[name]
