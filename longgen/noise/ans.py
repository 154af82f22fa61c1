"""Antiphase noise sampling: initial noise as a first-order autoregressive process over frames, with negative correlation.

Paper: FLEX, arXiv 2602.14027; no code is released.

Legend: B batch, C channels, T latent frames, h x w latent cells, u frame, e_u independent N(0, I).

    z_0 = e_0,  z_u = rho z_(u-1) + sqrt(1 - rho^2) e_u,  rho < 0                                           [paper]
    Cov(z_u, z_v) = rho^|u - v| I, so every frame is N(0, I)                                                [paper]
    E |z_u - z_(u-1)|^2 = 2 (1 - rho) an element: 2 for independent noise, 3 at rho = -0.5                  [paper]

Constants: rho = -0.5 [derived: our copy of the paper does not give it; a third party's port has -0.7]. One recursion over all
frames; in a rollout a chunk continues from the last frame of the chunk before [derived]. Computed in float32, or in the noise's
own precision where that is higher.

`renoise`: in a rollout, also correlate the noise added between the steps of a chunk, with that of the same step of the chunk
before; independent by default [derived: the paper does not say].

Neutral: rho = 0, and clips of at most T0 frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from longgen.frameplan import Geometry
from longgen.technique import NoiseTechnique

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Ans(NoiseTechnique):
    paper: ClassVar[str] = "FLEX, arXiv 2602.14027"

    rho: float = Field(-0.5, gt=-1, lt=1)
    renoise: bool = False

    def mix(self, noise: Tensor, geometry: Geometry, generator: Generator) -> Tensor:
        return noise if geometry.ratio == 1 else self.mix_chunk(noise, None)

    def mixes(self, step: int) -> bool:
        return step == 0 or self.renoise

    def mix_chunk(self, noise: Tensor, before: Tensor | None) -> Tensor:
        import torch  # lazy: plans need no torch

        if self.rho == 0:
            return noise
        independent = noise.to(torch.promote_types(noise.dtype, torch.float32))
        correlated, innovation = torch.empty_like(independent), (1 - self.rho**2) ** 0.5
        previous = None if before is None else before[:, :, -1].to(independent)
        for frame, e_u in enumerate(independent.unbind(2)):
            previous = e_u if previous is None else self.rho * previous + innovation * e_u
            correlated[:, :, frame] = previous
        return correlated.to(noise.dtype)
