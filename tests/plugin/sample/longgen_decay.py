"""Relative times that saturate: beyond a window they grow logarithmically, so that distant frames stay near.

Paper: none, an example of a technique in a package of its own.

Legend: D = i - j the distance of query frame i and key frame j in latent frames, W the window.

    rel(D) = sign(D) (|D| if |D| < W else W + rate log(1 + (|D| - W) / rate))                                   [derived]

Constants: W = T0, the native length; rate = 4 [derived].

Neutral: clips of at most W frames.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, distances
from longgen.technique import FrameTechnique


class Decay(FrameTechnique):
    """window: W, the native length by default. rate: how many frames it takes for growth to halve."""

    slot: ClassVar[str] = "positions"
    paper: ClassVar[str] = "an example"
    exclusive: ClassVar[tuple[str, ...]] = ("the relative times",)
    requires: ClassVar[tuple[str, ...]] = ("relative-positions", "whole-clip")

    window: int | None = Field(None, ge=1, le=1000)
    rate: float = Field(4.0, gt=0, le=1000)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        window = self.window or geometry.native_lat
        if geometry.frames_lat <= window:
            return plan
        distance = distances(geometry.frames_lat)
        beyond = np.maximum(np.abs(distance) - window, 0)
        return plan.at(np.sign(distance) * (np.minimum(np.abs(distance), window) + self.rate * np.log1p(beyond / self.rate)))
