"""NTK-aware scaling of rotary embeddings: a raised base, which slows low temporal frequencies most and the highest not at all.

Source: NTK-aware scaling, a post of 2023 by bloc97, as described in YaRN, arXiv 2309.00071. Designed for language models.

Legend: T latent frames, T0 in training, d rotary channels of time, C = d / 2 components, c = 0 .. C - 1.

    base' = base s^(d / (d - 2))          for theta_c = base^(-2 c / d) the same as
    theta'_c = theta_c s^(-c / (C - 1))   the highest frequency stays, the lowest is divided by s          [paper]
    s = T / T0                            or `factor`                                                      [paper]

Differs from the source: only time is scaled, not the spatial axes; the second form is used, which also suits spectra that
are not powers of a base.

Caveat: components between highest and lowest are slowed by less than s, so their phases still leave the trained range.

Neutral: native length and below, whatever `factor` is, and `factor = 1`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import Geometry
from longgen.technique import FrequencyTechnique


class Ntk(FrequencyTechnique):
    paper: ClassVar[str] = "NTK-aware scaling, as in YaRN, arXiv 2309.00071"

    factor: float | None = Field(None, ge=1, le=1000)

    def factors(self, reach: float, geometry: Geometry) -> np.ndarray:
        stretch = 1.0 if geometry.ratio == 1 else self.factor or geometry.ratio
        return stretch ** -np.linspace(0, 1, len(geometry.frequencies))
