"""Dynamic degree: whether a video has noticeable motion. Source: vbench/dynamic_degree.py.

Every max(1, round(fps / 8))-th frame is sampled, n in total. A pair of neighbours moves if m > tau = 6 min(H, W) / 256 pixels,
with m the mean length of the fastest 5% of its flow. The video is dynamic if at least c = round(n / 4) pairs move, so any video of
two frames is. Rounding is Python's: half to even. H, W: of the frames; the flow is computed on frames padded to multiples of 8.
"""

from __future__ import annotations

import math

import torch

from longgen.metrics.vbench.raft import LEAST_PX, Flow, padded


def every(fps: float) -> int:
    """Sampling interval in frames."""
    return max(1, round(fps / 8))


def threshold_px(height: int, width: int) -> float:
    return 6.0 * (min(height, width) / 256.0)


def needed(taken: int) -> int:
    """Pairs that must move, of `taken` sampled frames."""
    return round(4 * (taken / 16.0))


def fastest_px(flow: torch.Tensor) -> float:
    """Mean length of the fastest 5% of `flow` [2, H, W]."""
    speed = flow.square().sum(dim=0).sqrt().flatten()
    return speed.topk(int(len(speed) * 0.05)).values.mean().item()


class DynamicDegree:
    """Consumes frames in order; stores one. curve: m in pixels at the second frame of a pair, else nan."""

    def __init__(self, flow: Flow, fps: float) -> None:
        self._flow, self._every = flow, every(fps)
        self._before: torch.Tensor | None = None
        self._threshold_px = 0.0
        self.curve: list[float] = []

    def add(self, frames: torch.Tensor) -> None:
        self._threshold_px = threshold_px(*frames.shape[2:])
        for frame in frames:
            moved = math.nan
            if len(self.curve) % self._every == 0:
                if self._before is not None and min(frame.shape[1:]) >= LEAST_PX:
                    pair, _ = padded(torch.stack([self._before, frame]))
                    moved = fastest_px(self._flow(pair[:1], pair[1:])[0])
                self._before = frame
            self.curve.append(moved)

    def value(self) -> float | None:
        """1 or 0; None for fewer than two sampled frames, and for frames too small for RAFT, where upstream returns 0."""
        moved = [length for length in self.curve if not math.isnan(length)]
        moving = sum(length > self._threshold_px for length in moved)
        return float(moving >= needed(len(moved) + 1)) if moved else None
