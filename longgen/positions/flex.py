"""Partial position interpolation of rotary embeddings: components that completed no cycle in training are slowed down.

Paper: FLEX, "Frequency-aware RoPE Modulation", arXiv 2602.14027; no code is released. We had its abstract, a
proposition and captions only.

Legend: theta_m temporal rotary frequency, L_train latent frames in training, D_max the largest relative time in use.

    r_m = L_train theta_m / (2 pi)                    cycles completed in training                         [paper]
    g_m = clip((r_m - a) / (b - a), 0, 1)             a = b: 1 where r_m >= a, else 0                      [derived]
    s = max(1, D_max / (L_train - 1))                                                                      [derived]
    theta'_m = theta_m (g_m + (1 - g_m) / s)          low frequencies interpolated, high ones left alone   [paper]

Constants: a = b = 1, components that completed a cycle are kept [derived]; L_train = T0 = 21 on Wan [paper], which keeps
m = 0..2 and interpolates m = 3..21 there. `horizon`: L_train.

In a rollout, the paper's setting, D_max is that of the newest chunk: s is 1 up to the trained length and then grows with the video,
whose length need not be known [derived]; keys are therefore cached unrotated. In a clip denoised as a whole, s is constant.

Caveat: with a window, or a position mapping that stays in the trained range, D_max < L_train and nothing changes; the plan
reports it. It does not address attention diluted over more frames than in training.

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

    In between the factor is linear in the cycles; with a = b the split is hard, and components of exactly `a` cycles are kept.
    """
    cycles = horizon * np.array(frequencies) / (2 * math.pi)
    keep = np.clip((cycles - a) / (b - a), 0, 1) if a < b else (cycles >= a).astype(np.float64)
    return 1 - (1 - keep) * (1 - 1 / stretch)  # g + (1 - g) / s, exactly 1 at s = 1
