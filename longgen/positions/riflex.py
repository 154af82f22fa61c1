"""RIFLEx: lowers the intrinsic temporal rotary frequency so that the clip stays within one of its periods.

Paper: RIFLEx, arXiv 2502.15894 (ICML 2025); code: GitHub thu-ml/RIFLEx.

Legend: T latent frames, d_t rotary channels of time, theta_j temporal rotary frequency, N_j its period.

    theta_j = base^(-2 (j - 1) / d_t), period N_j = 2 pi / theta_j
    theta_k <- 0.9 * 2 pi / T,  only if T > N_k                               [paper; 0.9 from the authors' code]
`variant = "code"`: N_k rounded to whole frames, as in their scripts and in the paper's tables: 20, 50 and 51 frames for the three
backbones below                                                                                           [code]
`variant = "paper"`: N_k unrounded, 19.87, 50.27 and 50.97. The two differ only at T = 20 on CogVideoX and T = 51 on Wan.

k is the component whose period is closest to the latent frame at which the backbone is first seen to repeat itself:
6 on Wan 2.1 [the authors, in an issue], 2 on CogVideoX-5B, 4 on HunyuanVideo. All other frequencies and the
spatial axes are unchanged. At or below N_k it is the identity, bit for bit.

FreeLOC's code has its own RIFLEx for Wan: k = 5, 2 pi / 80 at any T, no 0.9, no gate; at 81 frames --set
riflex.component=5 --set riflex.share_of_period=1 comes within 1/81 of it.

`gate = false` applies the rule at any length, as some ports hint: on Wan it then RAISES the frequency below 46 latent
frames (1.39 x at 33), and users report poor results.

Caveat: it changes one frequency only; it does not address attention diluted over more frames than in training.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import Geometry
from longgen.technique import LONGEST, FrequencyTechnique


class Riflex(FrequencyTechnique):
    paper: ClassVar[str] = "RIFLEx, arXiv 2502.15894"

    variant: Literal["code", "paper"] = "code"
    component: int | None = Field(None, ge=1, le=LONGEST)
    share_of_period: float = Field(0.9, gt=0, le=1)
    gate: bool = True

    def factors(self, reach: float, geometry: Geometry) -> np.ndarray:
        count, component = len(geometry.frequencies), self.component or geometry.intrinsic_component
        if component is None:
            raise UsageError("riflex.component is unknown for this backbone: no source says where it repeats itself",
                             expected=f"1 to {count}", hint="--set riflex.component=K, or choose another technique")  # fmt: skip
        if component > count:
            raise UsageError(f"riflex.component = {component}, but this backbone has {count} temporal components",
                             expected=f"1 to {count}", hint="leave it out to use the backbone's default")  # fmt: skip
        theta = geometry.frequencies[component - 1]
        factors, period = np.ones(count), 2 * math.pi / theta
        if not self.gate or geometry.frames_lat > (round(period) if self.variant == "code" else period):
            factors[component - 1] = self.share_of_period * 2 * math.pi / geometry.frames_lat / theta
        return factors
