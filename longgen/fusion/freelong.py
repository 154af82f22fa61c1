"""FreeLong: spectral blending of two attention outputs, low space-time frequencies of the global, high ones of the local.

Paper: FreeLong, arXiv 2407.19918 (NeurIPS 2024); code: GitHub aniki-ly/FreeLong.

Legend: T latent frames, T0 of them in training, N tokens, C channels, f frequency in fractions of Nyquist (-1 .. 1).

    G = full attention, L = attention over a window around each frame                 same q, k, v      [paper, code]
    F = IFFT3(P FFT3(G) + (1 - P) FFT3(L))               in the first `split` of the steps, L after them  [paper]
    P = exp(-((f_t / d_t)^2 + (f_h / d_s)^2 + (f_w / d_s)^2) / 2)                                         [code]

`cutoff_time`: d_t = 0.25, `cutoff_space`: d_s = 0.25 [code]: each is a blur with sigma = 1 / (pi d) = 1.27 frames or tokens.
`split`: 0.5 [paper: 25 of 50 steps]; the released code fuses in every step: split = 1. `window`: the native length T0 by
default [code: 17 frames where T0 is 16]; `edge` as in longgen/context/window.py [code: its two backbones differ].
`boundary`, on all three axes: "circular" is the FFT above, which blends the first frame with the last ones and the left
edge with the right [code]; "reflect", the default, pads by half-sample symmetric reflection and crops, so that no frame or
token is blended with one at the opposite end [derived].

Computed exactly without an FFT: P is separable and real, so F = L + K_t K_h K_w (G - L) with small real matrices whose
rows sum to one, in blocks of channels, in single precision or better. An accelerator takes few blocks, whose temporaries
are at most what one branch holds.

Differs from the reference: frequencies are those of the FFT's bins (the code's are off by 1 / N where N is odd, and lose
up to a quarter of the mean at N = 5); before the output projection, which is linear; every layer is fused (the code
uses the local branch alone at its finest resolution, which DiTs do not have). FreeLong's noise is FreeNoise's: its
preset adds `freenoise` with no layers.

Caveat: cutoffs are in latent frames and tokens, whatever the backbone's strides. The global branch sees distances
beyond the trained range; nothing here corrects that.

Neutral: equal branches fuse to the local one exactly (the difference is zero), so clips of at most the window; no cutoff
makes P zero; `split = 0` is the local branch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.device_costs import costs_on
from longgen.frameplan import FramePlan, Geometry, visible_from_ranges
from longgen.frames import local_windows
from longgen.technique import LONGEST, Fusion, Grid, Step

if TYPE_CHECKING:
    from torch import Tensor

Boundary = Literal["circular", "reflect"]
CHANNELS = 256  # that a CPU filters at a time
BLOCKS = 6  # of channels on an accelerator: a difference, and single precision before and after a product, in a sixth


class FreeLong(Fusion):
    paper: ClassVar[str] = "FreeLong, arXiv 2407.19918"

    split: float = Field(0.5, ge=0, le=1)
    cutoff_time: float = Field(0.25, gt=0, le=1)
    cutoff_space: float = Field(0.25, gt=0, le=1)
    boundary: Boundary = "reflect"
    window: int | None = Field(None, ge=1, le=LONGEST)
    edge: Literal["shift", "clip"] = "shift"

    def branches(self, plan: FramePlan, geometry: Geometry, step: int, steps: int) -> dict[str, FramePlan]:
        ranges = local_windows(geometry.frames_lat, self.window or geometry.native_lat, self.edge)
        local = plan.see_only(visible_from_ranges(ranges))
        return {"local": local} if step >= self.split_step(steps) else {"global": plan, "local": local}

    def split_step(self, steps: int) -> int:
        return round(self.split * steps)

    def fuse(self, attend: Callable[[str], Tensor], step: Step, grid: Grid) -> Tensor:
        """L + K_t K_h K_w (G - L) of the branches "global" and "local", each [B, N, C]."""
        local = attend("local")
        fused = local.clone()
        add_low_pass(fused, attend("global"), local, grid, self.cutoff_time, self.cutoff_space, self.boundary)
        return fused

    def flops(self, grid: Grid, channels: int) -> int:
        """A difference, three matrix products and a sum, in floating-point operations."""
        return blend_flops(grid, channels, in_space=True)


def blend_flops(grid: Grid, channels: int, in_space: bool) -> int:
    """Floating-point operations of `add_low_pass` for one sample."""
    return math.prod(grid) * channels * (2 + 2 * (sum(grid) if in_space else grid[0]))


def add_low_pass(
    total: Tensor, coarse: Tensor, fine: Tensor, grid: Grid, cutoff_time: float, cutoff_space: float | None, boundary: Boundary
) -> None:
    """Adds the low frequencies of `coarse` - `fine` to `total` in place, all [B, N, C], in blocks of channels."""
    channels = total.shape[2]
    width = math.ceil(channels / BLOCKS) if costs_on(total.device.type).batched else CHANNELS
    for first in range(0, channels, width):
        block = slice(first, first + width)
        total[..., block] += low_pass(coarse[..., block] - fine[..., block], grid, cutoff_time, cutoff_space, boundary)


def low_pass(difference: Tensor, grid: Grid, cutoff_time: float, cutoff_space: float | None, boundary: Boundary) -> Tensor:
    """K_t K_h K_w x of x = `difference` [B, N, C], N = T rows columns in that order; `cutoff_space = None`: K_t x.

    In single precision, or double for a double `difference`.
    """
    import torch  # lazy: plans need no torch

    from longgen.device_tables import on_device

    batch, tokens, channels = difference.shape
    filtered = difference.to(torch.promote_types(difference.dtype, torch.float32))
    outer, inner = batch, tokens * channels
    for length, cutoff in zip(grid, (cutoff_time, cutoff_space, cutoff_space), strict=True):
        inner //= length
        if cutoff is not None:
            matrix = on_device(kernel(length, cutoff, boundary), filtered.device, filtered.dtype)
            filtered = matrix @ filtered.reshape(outer, length, inner)  # a view: the axes before and after are merged
        outer *= length
    return filtered.reshape(batch, tokens, channels)


@lru_cache(maxsize=64)
def kernel(length: int, cutoff: float, boundary: Boundary) -> np.ndarray:
    """The filter exp(-(f / cutoff)^2 / 2) on `length` samples as a matrix [length, length]; its rows sum to one."""
    index = np.arange(length)
    frequency = 2 * np.fft.fftfreq(length) if boundary == "circular" else index / length
    with np.errstate(over="ignore"):  # a cutoff near 0 keeps only the mean
        response = np.exp(-0.5 * (frequency / cutoff) ** 2)
    if boundary == "circular":
        taps = np.fft.ifft(response).real
        return taps[(index[:, None] - index[None, :]) % length]
    # the FFT of the even extension is the cosine transform (DCT-II)
    cosine = np.cos(np.pi * index[:, None] * (index[None, :] + 0.5) / length) * math.sqrt(2 / length)
    cosine[0] /= math.sqrt(2)
    return cosine.T @ (response[:, None] * cosine)
