"""Attention decay with distance (ALiBi beyond a window): a linear penalty on the logits of frames outside the trained window.

Paper: ALiBi, arXiv 2108.12409, whose penalty starts at distance 0; an example of a technique in a package of its own.

Legend: i query frame, j key frame, T0 latent frames in training, W the window.

    logits(i, j) <- logits(i, j) - rate max(|i - j| - W + 1, 0)                                     [paper; derived: from W on]

Constants: W = T0, rate = 0.1 [derived]; text and relative times are unchanged.

Neutral: clips of at most W frames, and rate = 0.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, distances
from longgen.technique import FrameTechnique


class Decay(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "ALiBi, arXiv 2108.12409"
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    window: int | None = Field(None, ge=1, le=1000, description="W, in latent frames")
    rate: float = Field(0.1, ge=0, le=100, description="penalty per latent frame")

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        window = self.window or geometry.native_lat
        beyond = np.maximum(np.abs(distances(geometry.frames_lat)) - window + 1, 0)
        return plan.each(lambda pass_: pass_.with_columns(logit_bias=-self.rate * beyond))
