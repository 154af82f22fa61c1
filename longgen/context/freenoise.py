"""FreeNoise: window-based attention fusion (averaged overlapping windows) and noise rescheduling (shuffled repetition).

Paper: FreeNoise, arXiv 2310.15169 (ICLR 2024); code: GitHub AILab-CVC/FreeNoise.

Legend: T latent frames, T0 of them in training, W window, S stride, i frame.

Windows: [0, W), [S, S + W), [2 S, 2 S + W), ..; each is attention over its own frames.                       [code]
    output(i) = sum over windows of w(i - start) output_window(i) / sum over windows of w(i - start)          [code]
    w = 1, 2, .., 2, 1: 1 .. 8, 8 .. 1 for W = 16, 1 .. 11 .. 1 for W = 21; `weights = "uniform"`: all 1        [code]
Noise: for i = W, W + S, .. frames [i, i + S) are a random permutation of frames [i - W, i - W + S).           [code]
    A shorter last block takes the first frames of its permutation. [derived]

`window`: W, the native length T0 by default (16 in the code). `stride`: S, round(W / 4) by default [derived: the code's 4 of 16].
`noise = false` keeps the windows only; `layers = []` the noise only, as FreeLong uses it. `layers` and `steps` do not apply to
the noise; at native length and below it is unchanged.

As a frame plan: windows that do not overlap share a pass, and the weights of a frame over the passes sum to one. About
W / S passes; a frame pair is computed once for all windows that contain it, or once for each with attention backends that do
not return the log-sum-exp.

Differs from the reference: where (T - W) is not a multiple of S, a further window [T - W, T) ends the clip; the code leaves
the last frames in no window, and their attention output is 0. Its prompts that change over time are not included.

Caveats: noise of period W can show as repetition. On DiTs, averaging windows frame by frame is reported to cause artifacts
(the author of diffusers' version, on CogVideoX). The first and last S frames are in one window only.

Neutral: clips of at most W frames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry
from longgen.technique import LONGEST, FrameTechnique, NoiseTechnique, check_stride

if TYPE_CHECKING:
    from torch import Generator, Tensor


class FreeNoise(FrameTechnique, NoiseTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "FreeNoise, arXiv 2310.15169"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window",)
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    window: int | None = Field(None, ge=1, le=LONGEST)
    stride: int | None = Field(None, ge=1, le=LONGEST)
    weights: Literal["pyramid", "uniform"] = "pyramid"

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        window, stride = self.sizes(geometry)
        frames_lat = geometry.frames_lat
        if frames_lat <= window:
            return plan
        height = np.minimum(np.arange(window) + 1, window - np.arange(window)) if self.weights == "pyramid" else np.ones(window)
        groups: list[list[int]] = []  # starts of windows that do not overlap
        for start in sorted({*range(0, frames_lat - window, stride), frames_lat - window}):
            group = next((group for group in groups if group[-1] + window <= start), None)
            if group is None:
                groups.append([start])
            else:
                group.append(start)
        weight = np.zeros((len(groups), frames_lat))
        block = np.full((len(groups), frames_lat), -1)  # the window that a frame is in
        for index, group in enumerate(groups):
            for start in group:
                weight[index, start : start + window] = height
                block[index, start : start + window] = start
        weight /= weight.sum(axis=0)
        inside = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
        windows = [*zip(inside, weight, strict=True)]
        passes = (replace(p, visible=p.visible & v, weight=p.weight * w) for p in plan.passes for v, w in windows)
        return replace(plan, passes=tuple(passes))

    def sizes(self, geometry: Geometry) -> tuple[int, int]:
        """W and S for `geometry`. Raises UsageError where the windows would leave gaps."""
        window = self.window or geometry.native_lat
        stride = self.stride or max(1, round(window / 4))
        check_stride("freenoise", stride, window)
        return window, stride

    def check_noise(self, geometry: Geometry) -> None:
        self.sizes(geometry)

    def mix(self, noise: Tensor, geometry: Geometry, generator: Generator) -> Tensor:
        from longgen.noise.shuffle import window_shuffle  # lazy: plans need no torch

        window, stride = self.sizes(geometry)
        if geometry.frames_lat <= max(window, geometry.native_lat):
            return noise
        return window_shuffle(noise, window, stride, generator)

    def same_noise(self, geometry: Geometry) -> tuple[int, np.ndarray] | None:
        """A frame of a block is each frame of the block that it permutes with probability 1 / S."""
        window, stride = self.sizes(geometry)
        frames_lat = geometry.frames_lat
        if frames_lat <= max(window, geometry.native_lat):
            return None
        chance = np.eye(frames_lat + stride)  # a last block in full
        for start in range(window, frames_lat, stride):
            source, block = slice(start - window, start - window + stride), slice(start, start + stride)
            chance[block, :start] = chance[source, :start].mean(axis=0)
            among = (chance[source, source].sum() - stride) / max(1, stride * (stride - 1))  # two frames of the block
            chance[block, block] = among + (1 - among) * np.eye(stride)
            chance[:start, block] = chance[block, :start].T
        return window, chance[:frames_lat, :frames_lat]
