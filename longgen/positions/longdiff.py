"""LongDiff position mapping: grouped relative positions, averaged over all shifts of the grouping so that none coincide.

Paper: LongDiff, arXiv 2503.18150 (CVPR 2025); no code is released.

Legend: N latent frames, G trained relative times per side (with 0), D = i - j, S groupings, m shift 0 .. S - 1.

    S = ceil((N - 1) / (G - 1))
    phi_m(D) = sign(D) ceil(max(|D| - m, 0) / S)      |phi_m| <= G - 1, and the sum over m is D            [paper]
    output = mean over m of the attention outputs at phi_m                                                 [paper]
The paper averages the softmax attention; V is the same for all m, so that is the mean of the outputs.

`mode`, the paper's ablations, one pass each: "group" phi_0 alone · "interpolate" D (G - 1) / (N - 1) · "clip" D cut off at
+-(G - 1). `group`: G; the native length T0 by default [derived: our copy of the paper does not give it].

Differs from the paper: it has U-Nets with temporal attention over the frames of one token, here attention is joint over
space and time. Its informative frame selection is the technique `keyframes`.

Caveat: S passes, which share the logits of pairs with equal phi: 1.75 times the attention at 321 frames of Wan, and 4 times
with an attention backend that does not return the log-sum-exp.

Neutral: N <= G, where S = 1 and phi = D, in every mode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, distances
from longgen.technique import LONGEST, FrameTechnique


class LongDiff(FrameTechnique):
    slot: ClassVar[str] = "positions"
    paper: ClassVar[str] = "LongDiff, arXiv 2503.18150"
    exclusive: ClassVar[tuple[str, ...]] = ("the relative times",)
    requires: ClassVar[tuple[str, ...]] = ("relative-positions", "whole-clip")

    group: int | None = Field(None, ge=2, le=LONGEST)
    mode: Literal["group-shift", "group", "interpolate", "clip"] = "group-shift"

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        group = self.group or geometry.native_lat
        if geometry.frames_lat <= group:
            return plan
        distance = distances(geometry.frames_lat)
        if self.mode == "interpolate":
            return plan.at(distance * (group - 1) / (geometry.frames_lat - 1))
        if self.mode == "clip":
            return plan.at(np.clip(distance, 1 - group, group - 1))
        size = -(-(geometry.frames_lat - 1) // (group - 1))
        if self.mode == "group":
            return plan.at(grouped(distance, size, 0))
        times = [grouped(distance, size, shift) for shift in range(size)]
        return replace(plan, passes=tuple(replace(p, rel=rel, weight=p.weight / size) for p in plan.passes for rel in times))


def grouped(distance: np.ndarray, size: int, shift: int) -> np.ndarray:
    """phi_m of `distance`, for groups of `size` distances and m = `shift`."""
    return np.sign(distance) * np.ceil(np.maximum(np.abs(distance) - shift, 0) / size)
