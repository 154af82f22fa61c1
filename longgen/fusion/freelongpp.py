"""FreeLong++: multi-band spectral fusion, each frequency band from attention over a window of its scale; SpecMix noise.

Paper: FreeLong++, arXiv 2507.00162. Its formulas are from a third party's summary, marked [2nd], not from the paper.

Legend: T latent frames, T0 of them in training, a_l the scale of branch l = 1 .. L, i query frame, N tokens, C channels,
G(c) the Gaussian low-pass of longgen/fusion/freelong.py with temporal cutoff c, in fractions of Nyquist.

    Z_l = attention over a window of a_l T0 frames around each frame;  a = 1, 2, 4, .. ; Z_L full attention    [2nd]
    F = IFFT3(sum over l of P_l FFT3(Z_l))                                                                   [2nd]
    P_L = G(c_L),  P_l = G(c_l) - G(c_(l+1)),  P_1 = 1 - G(c_2),  c_l = 1 / (2 a_l)        [2nd: band edges; derived: Gaussians]
    which is F = Z_1 + G(c_2) (Z_2 - Z_1) + .. + G(c_L) (Z_L - Z_(L-1)); the bands sum to one exactly        [derived]
At 4 times the native length: a = 1, 2, 4 and c = 1/4, 1/8. In every step [2nd]; with `split` below 1, Z_1 alone after it.

SpecMix: base = FreeNoise's shuffled noise (stride round(T0 / 4)), fresh = independent noise                  [2nd]
    noise_t = cos(theta_t) base_t + sin(theta_t) fresh_t,  theta_t = pi/2 |t - (T-1)/2| / ((T-1)/2)            [2nd]
[2nd] mixes in the frequency domain; with an angle for each frame, which is equivalent [derived]. `noise = false` turns it off.

`scales`: the a_l; by default doubling up to the first whose window covers the clip. A list may end below that: then no
branch is global. `window`: T0 by default. `sparse`: keys and values of the global branch from every second frame
[2nd: a uniform half], at half its cost; odd frames do not see themselves there, so that all frames share their keys.
`cutoff_space`: 0.25 as in FreeLong, as the three-dimensional FFT suggests [derived: not stated]; "all" filters in time only.
`boundary`: as in FreeLong [derived].

Differs from [2nd]: windows have round(a T0) frames and shift into the clip at its ends, where [2nd] has |i - j| <
floor(a T0 / 2): 19 frames of 21 for a = 1.

Neutral: clips of at most T0 frames; equal branches fuse to Z_1 exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, visible_from_ranges
from longgen.frames import local_windows
from longgen.fusion.freelong import Boundary, add_low_pass, blend_flops
from longgen.technique import LONGEST, Fusion, Grid, NoiseTechnique, Step

if TYPE_CHECKING:
    from torch import Generator, Tensor

Scale = Annotated[float, Field(gt=0, le=1000)]


class FreeLongPlusPlus(Fusion, NoiseTechnique):
    paper: ClassVar[str] = "FreeLong++, arXiv 2507.00162"

    split: float = Field(1.0, ge=0, le=1)
    scales: Annotated[tuple[Scale, ...], Field(strict=False, min_length=1, max_length=16)] | None = None
    window: int | None = Field(None, ge=1, le=LONGEST)
    sparse: bool = False
    cutoff_space: Annotated[float, Field(gt=0, le=1)] | Literal["all"] = 0.25
    boundary: Boundary = "reflect"

    @model_validator(mode="after")
    def _scales_increase(self) -> FreeLongPlusPlus:
        if self.scales and any(scale >= following for scale, following in itertools.pairwise(self.scales)):
            raise ValueError(f"scales {list(self.scales)} must increase, as 1, 2, 4")
        return self

    def settled(self, geometry: Geometry) -> FreeLongPlusPlus:
        """This technique with `window` filled in, which `fuse` needs."""
        return self.model_copy(update={"window": self.window or geometry.native_lat})

    def windows(self, frames_lat: int) -> dict[str, tuple[float, int]]:
        """By branch, its scale and the length of its window, up to the first that covers the clip. Needs `window`."""
        assert self.window is not None
        windows: dict[str, tuple[float, int]] = {}
        for scale in (1.0,) if frames_lat <= self.window else self.scales or (2.0**power for power in itertools.count()):
            windows[f"{scale:g}x"] = scale, min(frames_lat, max(1, round(scale * self.window)))
            if windows[f"{scale:g}x"][1] == frames_lat:
                break
        return windows

    def branches(self, plan: FramePlan, geometry: Geometry, step: int, steps: int) -> dict[str, FramePlan]:
        """The branches `1x`, `2x`, ..; after the split the first only."""
        frames_lat, settled = geometry.frames_lat, self.settled(geometry)
        windows = settled.windows(frames_lat)
        branches = {}
        for name, (_, window) in windows.items():
            visible = visible_from_ranges(local_windows(frames_lat, window, "shift"))
            branches[name] = plan if window == frames_lat else plan.see_only(visible)
        name, (scale, widest) = list(windows.items())[-1]
        if self.sparse and widest < frames_lat:
            raise UsageError(f"freelongpp.sparse = true, but no branch sees all {frames_lat} latent frames: the "
                             f"widest scale, {scale:g}, has {widest}", expected="scales whose last window covers the clip",
                             hint="--set freelongpp.sparse=false, or leave scales out")  # fmt: skip
        if self.sparse and settled.window is not None and frames_lat > settled.window:
            branches[name] = plan.see_only(np.broadcast_to(np.arange(frames_lat) % 2 == 0, (frames_lat, frames_lat)))
        return dict(list(branches.items())[:1]) if step >= self.split_step(steps) else branches

    def split_step(self, steps: int) -> int:
        return round(self.split * steps)

    def fuse(self, attend: Callable[[str], Tensor], step: Step, grid: Grid) -> Tensor:
        """Z_1 + the sum over l of G(c_l) (Z_l - Z_(l-1)), each Z_l [B, N, C]; one branch after the other."""
        space = None if self.cutoff_space == "all" else self.cutoff_space
        (first, _), *rest = self.windows(grid[0]).items()
        finer = attend(first)
        fused = finer.clone()
        for name, (scale, _) in rest:
            coarser = attend(name)
            add_low_pass(fused, coarser, finer, grid, 1 / (2 * scale), space, self.boundary)
            finer = coarser
        return fused

    def flops(self, grid: Grid, channels: int) -> int:
        """For every branch but one, a difference, the matrix products and a sum, in floating-point operations."""
        return (len(self.windows(grid[0])) - 1) * blend_flops(grid, channels, self.cutoff_space != "all")

    def mix(self, noise: Tensor, geometry: Geometry, generator: Generator) -> Tensor:
        import torch  # lazy: plans need no torch

        from longgen.noise.shuffle import window_shuffle

        frames_lat, window = geometry.frames_lat, self.window or geometry.native_lat
        if frames_lat <= max(window, geometry.native_lat):
            return noise
        base = window_shuffle(noise, window, max(1, round(window / 4)), generator)
        fresh = torch.randn(noise.shape, generator=generator, device=generator.device, dtype=noise.dtype).to(noise.device)
        middle = (frames_lat - 1) / 2
        angle = (torch.arange(frames_lat, device=noise.device) - middle).abs() / middle * (math.pi / 2)
        angle = angle.to(noise.dtype).view(-1, 1, 1)
        return angle.cos() * base + angle.sin() * fresh
