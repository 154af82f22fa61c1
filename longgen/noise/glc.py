"""Frequency-mixed noise: the low frequencies of shuffled, repeating noise with the high frequencies of independent noise.

Paper: GLC-Diffusion, arXiv 2501.05484, its Noise Reinitialization; no code is released.

Legend: B batch, C channels, T latent frames, T0 of them in training, h x w latent cells, f frequency in fractions of
Nyquist (-1 .. 1), c the cutoff.

    z = FreeNoise's shuffled noise: a unit of L frames, shuffled within local regions         [paper; derived: FreeNoise's rule]
    noise = IFFT3(H FFT3(z) + Hc FFT3(eta)),  eta ~ N(0, 1) fresh, the FFT over time and space              [paper]
    H  = exp(-((f_t / c)^2 + (f_h / c)^2 + (f_w / c)^2) / 2),  f the FFT's bins                             [derived: not stated]
    Hc = sqrt(1 - H^2)  for `high = "sqrt"` [derived];  1 - H  for `high = "plain"` [paper]

`window`: L, T0 by default. `region`: frames that are shuffled among each other, round(L / 4) by default [derived: FreeNoise's
stride]. `cutoff`: c = 0.25 [derived]. `noise = false` is the paper's ablation.

With "sqrt" every element is N(0, 1), up to this: z is not white in time, since its frames repeat, and what H keeps of
a frame and of its repeat adds up where the two are close. With regions of L / 4 that happens only where the same frame
is at both ends of the clip, which the FFT joins. A frame's variance is at most 1.009 at c = 0.25, 1.03 at 0.4 and 1.085
at 1 (at least 0.97), for 60 x 104 cells and L = 5, 13 or 21; 1.012 where regions are L long, 1.017 on 4 x 4 cells; inside
the clip it is 1 within 0.1%. It is not corrected: that would add a factor for each frame
that the paper does not have, for 1%. "plain" loses 4% of the variance in every frame at c = 0.25, and 26% at 0.5.

Caveat: only mean(H^2) of the variance, 1.1% at c = 0.25, comes from the shuffled unit: the slowest and coarsest part.

Neutral: clips of at most L or T0 frames are left as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import Geometry
from longgen.technique import LONGEST, NoiseTechnique

if TYPE_CHECKING:
    from torch import Generator, Tensor


class GlcNoise(NoiseTechnique):
    paper: ClassVar[str] = "GLC-Diffusion, arXiv 2501.05484"
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    window: int | None = Field(None, ge=1, le=LONGEST)
    region: int | None = Field(None, ge=1, le=LONGEST)
    cutoff: float = Field(0.25, gt=0, le=1)
    high: Literal["sqrt", "plain"] = "sqrt"

    def sizes(self, geometry: Geometry) -> tuple[int, int]:
        """L and the length of a region for `geometry`. Raises UsageError where a region is longer than the unit."""
        window = self.window or geometry.native_lat
        region = self.region or max(1, round(window / 4))
        if region > window:
            raise UsageError(f"glc-noise.region = {region} is more than the unit of {window} latent frames that is shuffled",
                             expected=f"1 to {window}", hint=f"--set glc-noise.region={window}, or leave it out")  # fmt: skip
        return window, region

    def check_noise(self, geometry: Geometry) -> None:
        self.sizes(geometry)

    def mix(self, noise: Tensor, geometry: Geometry, generator: Generator) -> Tensor:
        import torch  # lazy: plans need no torch

        from longgen.noise.shuffle import window_shuffle

        window, region = self.sizes(geometry)
        if geometry.frames_lat <= max(window, geometry.native_lat):
            return noise
        unit = window_shuffle(noise, window, region, generator)
        fresh = torch.randn(noise.shape, generator=generator, device=generator.device, dtype=noise.dtype).to(noise.device)
        dtype = torch.promote_types(noise.dtype, torch.float32)  # no FFT in half precision
        low, high = (response.to(noise.device, dtype) for response in self.responses(noise.shape[2:]))
        spectrum = low * torch.fft.rfftn(unit.to(dtype), dim=(2, 3, 4)) + high * torch.fft.rfftn(fresh.to(dtype), dim=(2, 3, 4))
        return torch.fft.irfftn(spectrum, s=noise.shape[2:], dim=(2, 3, 4)).to(noise.dtype)

    def responses(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """H and Hc on the bins of a real FFT over `shape` = (T, h, w), each [T, h, w // 2 + 1] in double precision."""
        import torch

        frames_lat, rows, columns = shape
        time, down = (2 * torch.fft.fftfreq(length, dtype=torch.float64) / self.cutoff for length in (frames_lat, rows))
        across = 2 * torch.fft.rfftfreq(columns, dtype=torch.float64) / self.cutoff  # the other half mirrors these
        squares = time.view(-1, 1, 1) ** 2 + down.view(-1, 1) ** 2 + across**2
        low = torch.exp(-0.5 * squares)
        return low, (1 - low**2).sqrt() if self.high == "sqrt" else 1 - low
