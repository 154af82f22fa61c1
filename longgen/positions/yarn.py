"""YaRN: low temporal rotary frequencies are interpolated, high ones kept, and the attention logits made sharper.

Paper: YaRN, arXiv 2309.00071 (ICLR 2024); code: GitHub jquesnelle/yarn. Made for language models.

Legend: T latent frames, T0 in training, theta temporal rotary frequency, r cycles it completes in training.

    r = T0 theta / (2 pi)
    g = clip((r - beta_slow) / (beta_fast - beta_slow), 0, 1)                                              [paper]
    theta' = theta (g + (1 - g) / s),  s = T / T0 or `factor`                                              [paper]
    q and k times 0.1 ln s + 1, so logits times (0.1 ln s + 1)^2; `temperature = false` leaves them        [paper]

Constants: beta_slow = 1, beta_fast = 32 [paper, language models: fitted to LLaMA's context of 2048 tokens].

Differs from the reference: time alone is scaled, never the spatial axes. The ramp is linear in r, as the paper has it; the
code's is linear in the component's index between the two bounds.

Caveat: over 21 latent frames the fastest component of Wan completes 3.3 cycles, so with the paper's beta_fast all are
interpolated almost whole; beta_fast near 2 keeps the fast ones. The temperature is the paper's fit on language models.

Neutral: native length and below, whatever `factor` is, and `factor = 1`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from longgen.frameplan import Clip
from longgen.positions.flex import by_parts
from longgen.technique import FrequencyTechnique


class Yarn(FrequencyTechnique):
    paper: ClassVar[str] = "YaRN, arXiv 2309.00071"

    beta_slow: float = Field(1.0, gt=0)
    beta_fast: float = Field(32.0, gt=0)
    factor: float | None = Field(None, ge=1)
    temperature: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> Yarn:
        if self.beta_slow > self.beta_fast:
            raise ValueError(f"yarn.beta_slow = {self.beta_slow} is above yarn.beta_fast = {self.beta_fast}; "
                             "accepted: beta_slow <= beta_fast; lower the one or raise the other")  # fmt: skip
        return self

    def stretch(self, clip: Clip) -> float:
        """s; 1 at native length and below."""
        return 1.0 if clip.ratio == 1 else self.factor or clip.ratio

    def factors(self, reach: float, clip: Clip) -> np.ndarray:
        return by_parts(clip.frequencies, clip.native_lat, self.stretch(clip), self.beta_slow, self.beta_fast)

    def gain(self, clip: Clip) -> float:
        return (0.1 * math.log(self.stretch(clip)) + 1) ** 2 if self.temperature else 1.0
