"""Informative frame selection: content-dependent sparse attention to a local window and to high-entropy key frames.

Paper: LongDiff, arXiv 2503.18150 (CVPR 2025); no code is released.

Legend: N latent frames, T0 of them in training, n tokens per latent frame, C channels, i query frame, j key frame.

    planes = max, mean and min over C of the layer's input [N, n, C], each scaled to 0 .. 255                  [paper]
             from its smallest to its largest value over the whole clip                                       [derived]
    entropy(j) = -sum p ln p, p the 256-bin histogram of frame j                                              [paper]
             bins [b, b + 1) / 256 of the range, the last one closed; mean over the three planes              [derived]
    difference(j) = mean |plane(j) - plane(j - 1)| over the three planes [paper]; 0 for the first frame       [derived]
    score = entropy + difference [paper], each scaled to 0 .. 1 over the clip, to 0 where it is constant      [derived]
    key frames: in each of n_seg equal segments the frame of the highest score [paper], the first of equals   [derived]
    visible(i, j) = |i - j| <= L or j is a key frame                                                          [paper]
`window`: L, T0 // 2 by default; `segments`: n_seg, 2 ceil(N / T0) by default and N at most. Both [derived: not given].

A plan cannot know the key frames, which depend on content, layer, step and sample. It shows the window and "+ key
frames", and its cost counts as many as there will be.

Differs from the paper: it has U-Nets with temporal attention, here the input of a layer's joint attention is used. Its
position mapping is the technique `longdiff`.

Neutral: L >= N - 1, where the window is the clip, which is the default at native length and below [derived].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, distances
from longgen.technique import LONGEST, FrameTechnique

if TYPE_CHECKING:
    from torch import Tensor

BINS = 256


class Keyframes(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "LongDiff, arXiv 2503.18150"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window",)
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    window: int | None = Field(None, ge=0, le=LONGEST)
    segments: int | None = Field(None, ge=1, le=LONGEST)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        frames_lat, native = geometry.frames_lat, geometry.native_lat
        if self.segments is not None and self.segments > frames_lat:
            raise UsageError(f"keyframes.segments = {self.segments}, but the clip has {frames_lat} latent frames",
                             expected=f"1 to {frames_lat}", hint="--set keyframes.segments to fewer, or leave it out")  # fmt: skip
        window = self.window
        if window is None:
            window = native // 2 if geometry.ratio > 1 else frames_lat - 1
        if window >= frames_lat - 1:
            return plan
        segments = self.segments or min(frames_lat, 2 * -(-frames_lat // native))
        return replace(plan.see_only(np.abs(distances(frames_lat)) <= window), key_frames=MostInformative(segments))


@dataclass(frozen=True)
class MostInformative:
    """The frame of the highest score in each of `segments` segments (`longgen.frameplan.KeyFrames`)."""

    segments: int

    def count(self, frames_lat: int) -> int:
        return self.segments

    def choose(self, features: Tensor) -> Tensor:
        """The key frames [S] of `features` [T, n, C], in any floating-point dtype, ascending."""
        import torch  # lazy: plans need no torch

        score, first, chosen = scores(features), 0, []
        size, longer = divmod(len(score), self.segments)
        for count, length in ((longer, size + 1), (self.segments - longer, size)):  # the first segments have one frame more
            last = first + count * length
            if count:
                starts = torch.arange(first, last, length, device=score.device)
                chosen.append(starts + score[first:last].view(count, length).argmax(dim=1))  # the first of equals
            first = last
        return torch.cat(chosen)


def scores(features: Tensor) -> Tensor:
    """entropy + difference of every frame of `features` [T, n, C], each scaled to 0 .. 1: [T] float32."""
    import torch  # lazy: plans need no torch

    frames_lat, tokens, _ = features.shape
    planes = torch.stack([features.amax(-1).float(), features.mean(-1, dtype=torch.float32), features.amin(-1).float()])
    planes = _min_max_scaled(planes.flatten(1)).view(3, frames_lat, tokens)
    bins = (planes * BINS).long().clamp(0, BINS - 1)  # exact: BINS is a power of two
    counts = torch.zeros(3, frames_lat, BINS, dtype=torch.long, device=features.device)
    counts.scatter_add_(2, bins, torch.ones_like(bins))  # `bincount` would make the host wait
    share = counts.float() / tokens
    entropy = -torch.xlogy(share, share).sum(-1).mean(0)
    difference = torch.zeros_like(entropy)
    difference[1:] = planes.diff(dim=1).abs().mean(dim=(0, 2))
    return _min_max_scaled(torch.stack([entropy, difference])).sum(0)


def _min_max_scaled(rows: Tensor) -> Tensor:
    """Min-max normalisation of each row of `rows` [R, M]; zeros where a row is constant."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return ((rows - low) / (high - low)).where(high > low, 0.0)
