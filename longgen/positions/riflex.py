"""RIFLEx: one temporal rotary frequency is lowered so that the clip stays inside one period of it.

Paper: RIFLEx, arXiv 2502.15894 (ICML 2025).
    theta_j = base^(-2 (j - 1) / d_t), period N_j = 2 pi / theta_j
    theta_k <- 0.9 * 2 pi / T,  only if T > N_k                               [paper; 0.9 from the authors' code]
k is the component whose period is closest to the latent frame at which the backbone is first seen to repeat itself:
6 on Wan 2.1 [the authors, in an issue], 2 on CogVideoX-5B, 4 on HunyuanVideo. All other frequencies, and the spatial
axes, stay. At or below N_k it is the identity, bit for bit.

`gate = false` applies the rule at any length, as some ports do: on Wan it then RAISES the frequency below 46 latent
frames (1.39 x at 33), and users report poor results.

Caveat: it moves one frequency; it does nothing about attention diluted over more frames than the model was trained on.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import Clip, FramePlan
from longgen.technique import FrameTechnique


class Riflex(FrameTechnique):
    slot: ClassVar[str] = "positions"
    paper: ClassVar[str] = "RIFLEx, arXiv 2502.15894"
    claims: ClassVar[tuple[str, ...]] = ("the temporal rotary frequencies",)
    needs: ClassVar[tuple[str, ...]] = ("relative-positions",)

    component: int | None = Field(None, ge=1)
    share_of_period: float = Field(0.9, gt=0, le=1)
    gate: bool = True

    def reshape(self, plan: FramePlan, clip: Clip) -> FramePlan:
        component = self.component or clip.intrinsic_component
        if component > len(clip.frequencies):
            raise UsageError(
                f"riflex.component = {component}, but this backbone has {len(clip.frequencies)} temporal components",
                accepted=f"1 to {len(clip.frequencies)}",
                do="leave it out for the backbone's own",
            )
        theta = clip.frequencies[component - 1]
        if self.gate and clip.frames_lat <= 2 * math.pi / theta:
            return plan
        scale = np.ones(len(clip.frequencies)) if plan.scale is None else plan.scale.copy()
        scale[component - 1] *= self.share_of_period * 2 * math.pi / clip.frames_lat / theta
        return dataclasses.replace(plan, scale=scale)
