"""YaRN: interpolates low temporal rotary frequencies, keeps high ones and scales the attention logits (temperature).

Paper: YaRN, arXiv 2309.00071 (ICLR 2024); code: GitHub jquesnelle/yarn. Designed for language models.

Legend: T latent frames, T0 in training, theta temporal rotary frequency, r cycles it completes in training.

    r = T0 theta / (2 pi)
    g = clip((r - beta_slow) / (beta_fast - beta_slow), 0, 1)                                              [paper]
    theta' = theta (g + (1 - g) / s),  s = T / T0 or `factor`                                              [paper]
    q and k times 0.1 ln s + 1, so logits times (0.1 ln s + 1)^2; `temperature = false` leaves them        [paper]
`variant = "paper"`: beta_slow = 1, beta_fast = 32 [paper, language models: fitted to LLaMA's context of 2048 tokens].
`variant = "freeloc"`: as FreeLOC's code (GitHub Westlake-AGI-Lab/FreeLOC) runs it on Wan, its baseline
    beta_slow = 0.6, beta_fast = 1, no temperature                                       [code, FreeLOC]
    g = 1 - clip((c - low) / (high - low), 0, 1), c the component, counted from 0                          [code, both]
    low = floor(c(beta_fast)), high = ceil(c(beta_slow)), c(r) where a component completes r cycles        [code, both]
On Wan components 0 to 2 are kept, 3 and 4 are between, 5 to 21 interpolated. A given parameter replaces the variant's.

Differs from the reference: only time is scaled, not the spatial axes. In "paper" the ramp is linear in r, as the paper has it;
the code's is linear in the component's index, as in "freeloc". FreeLOC's code also scales clips shorter than T0, with s < 1.

Caveat: over 21 latent frames the fastest component of Wan completes 3.3 cycles, so with the paper's beta_fast all are
interpolated almost fully; beta_fast near 2 keeps the fast ones. The temperature is the paper's fit on language models.

Neutral: native length and below, whatever `factor` is, and `factor = 1`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from longgen.frameplan import Geometry
from longgen.positions.flex import by_parts
from longgen.technique import FrequencyTechnique


class Yarn(FrequencyTechnique):
    paper: ClassVar[str] = "YaRN, arXiv 2309.00071"

    variant: Literal["paper", "freeloc"] = "paper"
    beta_slow: float | None = Field(None, gt=0, le=1e6)
    beta_fast: float | None = Field(None, gt=0, le=1e6)
    factor: float | None = Field(None, ge=1, le=1000)
    temperature: bool | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Yarn:
        slow, fast = self.betas
        if slow > fast:
            raise ValueError(f"yarn.beta_slow = {slow} is above yarn.beta_fast = {fast}; "
                             "expected: beta_slow <= beta_fast; lower the former or raise the latter")  # fmt: skip
        return self

    @property
    def betas(self) -> tuple[float, float]:
        """beta_slow and beta_fast."""
        slow, fast = (1.0, 32.0) if self.variant == "paper" else (0.6, 1.0)
        return self.beta_slow or slow, self.beta_fast or fast

    def stretch(self, geometry: Geometry) -> float:
        """s; 1 at native length and below."""
        return 1.0 if geometry.ratio == 1 else self.factor or geometry.ratio

    def factors(self, reach: float, geometry: Geometry) -> np.ndarray:
        if self.variant == "paper":
            return by_parts(geometry.frequencies, geometry.native_lat, self.stretch(geometry), *self.betas)
        return by_index(geometry.frequencies, geometry.native_lat, self.stretch(geometry), *self.betas)

    def logit_scale(self, geometry: Geometry) -> float:
        sharper = self.variant == "paper" if self.temperature is None else self.temperature
        return (0.1 * math.log(self.stretch(geometry)) + 1) ** 2 if sharper else 1.0


def by_index(frequencies: Sequence[float], horizon: int, stretch: float, slow: float, fast: float) -> np.ndarray:
    """Factors on `frequencies`, a geometric series: 1 / `stretch` for those of at most `slow` cycles in `horizon` frames, 1 from
    `fast` cycles on; in between, widened to whole components, linear in the component's index.
    """
    falling = sorted(frequencies, reverse=True)  # LTX-Video's are ascending
    ratio = math.log(falling[0] / falling[1])
    low, high = ((math.log(horizon * falling[0] / (2 * math.pi)) - math.log(cycles)) / ratio for cycles in (fast, slow))
    low, high = max(0, math.floor(low)), max(0, math.ceil(high))
    ramp = np.clip((np.arange(len(falling)) - low) / max(high - low, 1e-3), 0, 1)
    factors = 1 - ramp * (1 - 1 / stretch)
    return factors if frequencies[0] == falling[0] else factors[::-1]
