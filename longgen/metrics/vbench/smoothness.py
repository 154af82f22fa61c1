"""Motion smoothness by RAFT: how well every second frame is predicted from its neighbours. Not VBench's `motion_smoothness`.

VBench's (vbench/motion_smoothness.py) interpolates the middle frame with AMT-S, whose weights are not for commercial use; this uses
RAFT's flow (Jiang et al., 1712.00080, eq. 4 at t = 1/2). With a, b the even frames around an odd frame x, f and g the flow from a
to b and back:

    v = (f - g) / 4        middle(p) = (a(p - v) + b(p + v)) / 2        score = mean over odd frames of 1 - mean|x - middle| / 255

The rest is as in VBench: which frames, rounding the middle to 8 bits, the scale. A still video scores 1: read it with motion.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from longgen.metrics.vbench.raft import LEAST_PX, Flow, padded


def middle(a: torch.Tensor, b: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The frame halfway from `a` to `b` [3, H, W], each moved by `v` [2, H, W] pixels, x first; edges are replicated."""
    height, width = v.shape[1:]
    y, x = torch.meshgrid(torch.arange(height, device=v.device), torch.arange(width, device=v.device), indexing="ij")
    pixels = torch.stack([x, y], dim=-1)
    size = torch.tensor([width - 1, height - 1], device=v.device)
    step = v.permute(1, 2, 0)
    grid = torch.stack([2 * (pixels - step) / size - 1, 2 * (pixels + step) / size - 1])
    moved = F.grid_sample(torch.stack([a, b]), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return moved.mean(dim=0).round().clamp(0, 255)


class MotionSmoothness:
    """Consumes frames in order; stores two. curve: the score of an odd frame, else nan."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._frames: list[torch.Tensor] = []  # an even frame, and the odd one after it
        self.curve: list[float] = []

    def add(self, frames: torch.Tensor) -> None:
        for frame in frames:
            self.curve.append(math.nan)
            self._frames.append(frame)
            if len(self._frames) == 3:
                a, x, b = self._frames
                if min(frame.shape[1:]) >= LEAST_PX:
                    pair, inside = padded(torch.stack([a, b]))
                    forward, backward = self._flow(pair, pair.flip(0))[(..., *inside)]
                    self.curve[-2] = 1 - (x - middle(a, b, (forward - backward) / 4)).abs().mean().item() / 255
                self._frames = [b]

    def value(self) -> float | None:
        """None for fewer than three frames, and for frames too small for RAFT."""
        scores = [score for score in self.curve if not math.isnan(score)]
        return sum(scores) / len(scores) if scores else None
