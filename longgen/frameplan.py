"""A frame plan: which frames a frame may see, and at which relative time. Plain tables, no torch.

Legend: T latent frames, Q query frames, n tokens per latent frame, i query frame, j key frame, P passes, C temporal rotary
components.

The query frames are the last Q of the T: all of them where frames are denoised together, the newest chunk in a rollout.

A plan is one or more passes. The output for query frame i is the mean of the passes' attention outputs, weighted
by `weight[i]`. The neutral plan is one pass with `rel = i - j` and everything visible: the backbone's own attention.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """One attention pass: `rel` [Q, T] float64, `visible` [Q, T] bool, `weight` [Q] float64.

    A query frame of weight 0 is not computed in this pass. `stripe` [Q, T] float64, or None for all ones: of a visible
    key frame, query token q sees the tokens k with |q - k| < stripe * n only, q and k counted within their frames in
    raster order; 1 is the whole frame.
    """

    rel: np.ndarray
    visible: np.ndarray
    weight: np.ndarray
    stripe: np.ndarray | None = None

    @property
    def density(self) -> float:
        """Share of all token pairs that attention is computed for, in the limit of many tokens a frame."""
        share = np.ones_like(self.rel) if self.stripe is None else np.minimum(self.stripe, 1)
        return float((share * (2 - share) * self.visible)[self.weight > 0].sum() / self.visible.size)


class KeyFrames(Protocol):
    """Key frames that are chosen at run time, from the layer's own input; every query frame sees them besides."""

    def count(self, frames_lat: int) -> int:
        """How many there will be."""
        ...

    def choose(self, features: Tensor) -> list[int]:
        """The key frames of one sample's layer input `features` [T, n, C]."""
        ...


@dataclass(frozen=True, eq=False)
class FramePlan:
    """Passes, and what holds for all of them.

    scale: [C] float64, the factor on each temporal rotary frequency, or None for all ones. gain: the factor on the
    attention logits. key_frames: frames that every query frame sees besides, chosen at run time. anchor: the share of the
    first clip's keys and values in those of the others, where the model sees the video in clips.
    """

    passes: tuple[Pass, ...]
    scale: np.ndarray | None = None
    gain: float = 1.0
    key_frames: KeyFrames | None = None
    anchor: float = 0.0

    @property
    def frames_lat(self) -> int:
        return self.passes[0].rel.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, T)."""
        rows, columns = self.passes[0].rel.shape
        return rows, columns

    @property
    def density(self) -> float:
        """Share of all token pairs that attention is computed for, summed over passes: its cost against direct.

        Key frames chosen at run time count as spread evenly.
        """
        extra = self.key_frames.count(self.frames_lat) / self.frames_lat if self.key_frames else 0.0
        return float(sum(p.density + extra * ((p.weight > 0).mean() - p.density) for p in self.passes))

    @property
    def reach(self) -> float:
        """The largest relative time, either way, at which any frame sees another; key frames may be any."""
        seen = [(p.visible | bool(self.key_frames)) & (p.weight > 0)[:, None] for p in self.passes]
        return max(float(np.abs(p.rel[pairs]).max(initial=0)) for p, pairs in zip(self.passes, seen, strict=True))

    @cached_property
    def key(self) -> str:
        """A digest of the tables: equal plans have equal keys."""
        digest = hashlib.sha256(repr((self.gain, self.key_frames, self.anchor)).encode())
        for table in (t for p in self.passes for t in (p.rel, p.visible, p.weight, p.stripe)):
            digest.update(b"-" if table is None else np.ascontiguousarray(table).tobytes())
        digest.update(b"" if self.scale is None else self.scale.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def is_neutral(self) -> bool:
        """Whether this is the backbone's own attention, so that the stock call serves, bit for bit."""
        return self.key == neutral(*reversed(self.shape)).key

    def each(self, change: Callable[[Pass], Pass]) -> FramePlan:
        """This plan with `change` applied to every pass."""
        return replace(self, passes=tuple(change(p) for p in self.passes))

    def see_only(self, visible: np.ndarray) -> FramePlan:
        """This plan with `visible` [Q, T] taken from what every pass may see."""
        return self.each(lambda p: replace(p, visible=p.visible & visible))

    def see_also(self, visible: np.ndarray) -> FramePlan:
        """This plan with `visible` [Q, T], whole frames, added to what every pass sees of the frames that it computes."""

        def change(p: Pass) -> Pass:
            added = visible & (p.weight > 0)[:, None]
            return replace(p, visible=p.visible | added, stripe=None if p.stripe is None else np.where(added, 1.0, p.stripe))

        return self.each(change)

    def at(self, rel: np.ndarray) -> FramePlan:
        """This plan with relative times `rel` [Q, T] in every pass."""
        return self.each(lambda p: replace(p, rel=rel))


@dataclass(frozen=True)
class Clip:
    """The geometry a technique may ask for: lengths in latent frames, and the backbone's temporal rotary frequencies.

    `intrinsic_component`: the 1-based rotary component whose period is closest to the latent frame at which the
    backbone is first seen to repeat itself (RIFLEx's k); None where nobody has said it. in_clips: whether this is one of
    several clips of a longer video. in_chunks: whether its frames are made in chunks, of which plans hold the newest.
    """

    frames_lat: int
    native_lat: int
    frequencies: tuple[float, ...]
    intrinsic_component: int | None = None
    in_clips: bool = False
    in_chunks: bool = False

    @property
    def ratio(self) -> float:
        """T / T0, and 1 for clips of native length or below."""
        return max(1.0, self.frames_lat / self.native_lat)


def distances(frames_lat: int) -> np.ndarray:
    """D = i - j, [T, T] float64: the relative time at which a backbone sees frames."""
    frame = np.arange(frames_lat, dtype=np.float64)
    return frame[:, None] - frame[None, :]


def neutral(frames_lat: int, queries: int | None = None) -> FramePlan:
    """The backbone's own attention over `frames_lat` frames, of the last `queries` of them or of all."""
    own = np.arange(frames_lat - (queries or frames_lat), frames_lat, dtype=np.float64)
    rel = own[:, None] - np.arange(frames_lat, dtype=np.float64)[None, :]
    return FramePlan((Pass(rel, np.ones(rel.shape, dtype=bool), np.ones(len(own))),))


def visible_from_ranges(ranges: list[tuple[int, int]]) -> np.ndarray:
    """The table [T, T] in which query frame i sees key frames `ranges[i]` (half-open)."""
    frame = np.arange(len(ranges))
    start, stop = np.array(ranges).T
    return (frame >= start[:, None]) & (frame < stop[:, None])
