"""GLC-Diffusion's collaborative denoising: dilated clips over the whole video, and shifted clips of neighbours, denoised together.

Paper: GLC-Diffusion, arXiv 2501.05484; no code is released. The parts of it: this, `anchor`, `glc-noise` and `vmcr`.

Legend: T latent frames, T0 of them in training, L frames of a clip, d dilation, t timestep (1000 .. 0).

    global path: clips s + d j, j = 0 .. L - 1, s = 0 .. d - 1, d = ceil(T / L)                     [paper; derived: d and s]
    local path:  clips of L neighbours, L / 2 apart, moved by a fresh random shift at every step   [paper; derived: L / 2]
    v = gamma v_global + (1 - gamma) v_local, each the mean of its clips frame by frame                            [paper]
    gamma = gamma0 exp(beta t), gamma0 = 0.005, beta = 0.0005: .0082 at the first step, .0050 at the last          [paper]

Frames past the end of a dilated clip repeat the last one and take no part in the mean [derived]. The shift is uniform in
0 .. L / 2 - 1, drawn before the first step by the run's generator; clips that stick out are moved inside, so that every frame
is covered [derived]. Every clip is seen at its native length, at native positions.

The paper blends latents after the step; here the predictions are blended and the scheduler steps once, which is the same for
Euler and DDIM and right for the others [derived].

Caveat: a step cache can skip only where two consecutive steps have the same shift; with `shift = false` it always can.

Ablations: `paths = "local"` and `paths = "global"`; `shift = false` leaves the local clips where they are.

Neutral: videos of at most L frames.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.sampling.clips import Clips, merged, overlapping
from longgen.sampling.multidiffusion import MultiDiffusion


class Glcd(MultiDiffusion):
    paper: ClassVar[str] = "GLC-Diffusion, arXiv 2501.05484"

    gamma0: float = Field(0.005, ge=0, le=1)
    beta: float = Field(0.0005, ge=-0.01, le=0.01)
    paths: Literal["both", "global", "local"] = "both"
    shift: bool = True

    def clips(self, frames_lat: int, length: int, timestep: float, shift: int) -> Clips:
        paths = []
        gamma = self.gamma(timestep)
        if gamma > 0:
            dilation = -(-frames_lat // length)
            frames = np.arange(dilation)[:, None] + dilation * np.arange(length)
            paths.append((gamma, np.minimum(frames, frames_lat - 1), (frames < frames_lat).astype(np.float64)))
        if gamma < 1:
            stride = max(1, length // 2)
            starts = np.arange(shift - stride, frames_lat - length + stride, stride)
            frames = overlapping(frames_lat, length, starts)
            paths.append((1 - gamma, frames, np.ones(frames.shape)))
        return merged(paths, frames_lat)

    def shifts(self, length: int) -> int:
        return max(1, length // 2) if self.shift and self.paths != "global" else 1

    def gamma(self, timestep: float) -> float:
        """The share of the global path at `timestep`."""
        if self.paths != "both":
            return float(self.paths == "global")
        return min(1.0, self.gamma0 * math.exp(self.beta * timestep))
