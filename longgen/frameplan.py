"""A frame plan: which frames a frame may see, and at which relative time. Plain tables, no torch.

Legend: T latent frames, i query frame, j key frame, P passes, C temporal rotary components.

A plan is one or more passes. The output for query frame i is the mean of the passes' attention outputs, weighted
by `weight[i]`. The neutral plan is one pass with `rel = i - j` and everything visible: the backbone's own attention.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Pass:
    """One attention pass: `rel` [T, T] float64, `visible` [T, T] bool, `weight` [T] float64 (summed over passes: 1)."""

    rel: np.ndarray
    visible: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class FramePlan:
    """Passes, and the factor on each temporal rotary frequency: `scale` [C] float64, or None for all ones."""

    passes: tuple[Pass, ...]
    scale: np.ndarray | None = None

    @property
    def frames_lat(self) -> int:
        return len(self.passes[0].weight)

    @property
    def density(self) -> float:
        """Share of all frame pairs that attention is computed for, summed over passes: its cost against direct."""
        return float(sum(p.visible.mean() for p in self.passes))

    @cached_property
    def key(self) -> str:
        """A digest of the tables: equal plans have equal keys."""
        digest = hashlib.sha256()
        for table in (t for p in self.passes for t in (p.rel, p.visible, p.weight)):
            digest.update(np.ascontiguousarray(table).tobytes())
        digest.update(b"" if self.scale is None else self.scale.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def is_neutral(self) -> bool:
        """Whether this is the backbone's own attention, so that the stock call serves, bit for bit."""
        return self.key == neutral(self.frames_lat).key

    def see_only(self, visible: np.ndarray) -> FramePlan:
        """This plan with `visible` [T, T] taken from what every pass may see."""
        return replace(self, passes=tuple(replace(p, visible=p.visible & visible) for p in self.passes))


@dataclass(frozen=True)
class Clip:
    """The geometry a technique may ask for: lengths in latent frames, and the backbone's temporal rotary frequencies.

    `intrinsic_component`: the 1-based rotary component whose period is closest to the latent frame at which the
    backbone is first seen to repeat itself (RIFLEx's k).
    """

    frames_lat: int
    native_lat: int
    frequencies: tuple[float, ...]
    intrinsic_component: int


def neutral(frames_lat: int) -> FramePlan:
    """The backbone's own attention over `frames_lat` frames."""
    frame = np.arange(frames_lat, dtype=np.float64)
    everything = np.ones((frames_lat, frames_lat), dtype=bool)
    return FramePlan((Pass(frame[:, None] - frame[None, :], everything, np.ones(frames_lat)),))


def visible_from_ranges(ranges: list[tuple[int, int]]) -> np.ndarray:
    """The table [T, T] in which query frame i sees key frames `ranges[i]` (half-open)."""
    frame = np.arange(len(ranges))
    start, stop = np.array(ranges).T
    return (frame >= start[:, None]) & (frame < stop[:, None])
