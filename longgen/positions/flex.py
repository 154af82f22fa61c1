"""FLEX's positions: rotary components that training did not take through a cycle are slowed down, the others kept.

Paper: FLEX, "Frequency-aware RoPE Modulation", arXiv 2602.14027; no code is released, and only its abstract, a
proposition and captions could be read.

Legend: theta_m temporal rotary frequency, L_train latent frames in training, D_max the largest relative time in use.

    r_m = L_train theta_m / (2 pi)                    cycles completed in training                         [paper]
    g_m = clip((r_m - a) / (b - a), 0, 1)             a = b: 1 where r_m >= a, else 0                      [derived]
    s = max(1, D_max / (L_train - 1))                                                                      [derived]
    theta'_m = theta_m (g_m + (1 - g_m) / s)          low frequencies interpolated, high ones left alone   [paper]

Constants: a = b = 1, a component that completed one cycle is kept [derived]; L_train = T0 = 21 on Wan [paper], which keeps
m = 0..2 and interpolates m = 3..21 there. `horizon`: L_train.

In a rollout, the paper's case, D_max is the newest chunk's: s grows with the video, is 1 up to the trained length, and no length
need be known [derived]; keys are cached unrotated for it. In a clip that is denoised together it is the modulation alone.

Caveat: behind a window, or relative times that already stay within training, D_max < L_train, and it is inert; the plan
says so. It does not act on attention diluted over more frames than in training.

Neutral: D_max <= L_train - 1, so at native length and below, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from longgen.frameplan import Geometry
from longgen.technique import LONGEST, FrequencyTechnique


class Flex(FrequencyTechnique):
    paper: ClassVar[str] = "FLEX, arXiv 2602.14027"

    a: float = Field(1.0, gt=0, le=1e6)
    b: float = Field(1.0, gt=0, le=1e6)
    horizon: int | None = Field(None, ge=2, le=LONGEST)

    @model_validator(mode="after")
    def _in_order(self) -> Flex:
        if self.a > self.b:
            raise ValueError(f"flex.a = {self.a} is above flex.b = {self.b}; expected: a <= b; lower flex.a or raise flex.b")
        return self

    def factors(self, reach: float, geometry: Geometry) -> np.ndarray:
        horizon = self.horizon or geometry.native_lat
        return by_parts(geometry.frequencies, horizon, max(1.0, reach / (horizon - 1)), self.a, self.b)


def by_parts(frequencies: Sequence[float], horizon: int, stretch: float, a: float, b: float) -> np.ndarray:
    """Factors on `frequencies`: 1 / `stretch` for those of at most `a` cycles in `horizon` frames, 1 from `b` cycles on.

    Between the two the factor rises linearly with the cycles; at a = b the split is hard, and exactly `a` cycles keep.
    """
    cycles = horizon * np.array(frequencies) / (2 * math.pi)
    kept = np.clip((cycles - a) / (b - a), 0, 1) if a < b else (cycles >= a).astype(np.float64)
    return 1 - (1 - kept) * (1 - 1 / stretch)  # g + (1 - g) / s, and exactly 1 at s = 1
