"""A frame plan: which frames a frame may see, and at which relative time. Plain tables, no torch.

Legend: T latent frames, Q query frames, n tokens per latent frame, i query frame, j key frame, P passes, C temporal rotary
components.

The query frames are the last Q of the T: all of them where frames are denoised together, the newest chunk in a rollout.

A plan is one or more passes. The output for query frame i is the mean of the passes' attention outputs, weighted
by `weight[i]`. The neutral plan is one pass with `rel = i - j` and everything visible: the backbone's own attention.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
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
        return self._mean(share * (2 - share))

    def density_at(self, tokens: int) -> float:
        """`density` of what is computed at `tokens` a frame: of stripes more than is needed, which a mask cuts off."""
        if self.stripe is None:
            return self.density
        share = np.ones_like(self.rel)
        for width in np.unique(self.stripe[self.stripe < 1]):
            pairs = sum((last - first) * (stop - start) for (first, last), (start, stop) in spans(float(width), tokens))
            share[self.stripe == width] = pairs / tokens**2
        return self._mean(share)

    def _mean(self, share: np.ndarray) -> float:
        """Of all pairs of frames; `share` [Q, T] of those that are seen."""
        return float((share * self.visible)[self.weight > 0].sum() / self.visible.size)


SMALLEST_CHUNK = 16  # query tokens of a stripe: below, calls cost more than the keys they save


def spans(share: float, tokens: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Of a stripe in a frame: chunks of query tokens, half-open, and the key tokens of which any in the chunk sees some."""
    width = math.ceil(share * tokens)
    chunk = min(tokens, max(SMALLEST_CHUNK, width // 2))
    for first in range(0, tokens, chunk):
        last = min(first + chunk, tokens)
        yield (first, last), (max(0, first - width + 1), min(tokens, last + width - 1))


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

    frequency_scale: [C] float64, the factor on each temporal rotary frequency, or None for all ones. logit_scale: the factor on the
    attention logits. key_frames: frames that every query frame sees besides, chosen at run time. anchor: the share of the
    first clip's keys and values in those of the others, where the model sees the video in clips.
    """

    passes: tuple[Pass, ...]
    frequency_scale: np.ndarray | None = None
    logit_scale: float = 1.0
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
        """Attention's cost against direct: token pairs that it is computed for, where passes that agree on `rel` share them.

        Key frames chosen at run time count as spread evenly. With stripes, or an attention backend that does not say how much
        it summed, passes share nothing, and the cost is the sum of theirs. Stripes are those of many tokens a frame.
        """
        if self._striped:
            return self._summed([one.density for one in self.passes])
        extra = self._extra
        computed = np.stack([np.broadcast_to((p.weight > 0)[:, None], p.rel.shape) for p in self.passes])
        seen = np.stack([p.visible for p in self.passes]) & computed
        rel = np.stack([p.rel for p in self.passes]).round(7)
        return float((1 - extra) * _different(rel, seen) + extra * _different(rel, computed))

    def density_at(self, tokens: int) -> float:
        """`density` of what is computed at `tokens` a frame."""
        return self._summed([one.density_at(tokens) for one in self.passes]) if self._striped else self.density

    @property
    def _striped(self) -> bool:
        return any(one.stripe is not None for one in self.passes)

    @property
    def _extra(self) -> float:
        """The share of frames that are key frames chosen at run time."""
        return self.key_frames.count(self.frames_lat) / self.frames_lat if self.key_frames else 0.0

    def _summed(self, densities: list[float]) -> float:
        """Of passes that share nothing."""
        computed = [float((one.weight > 0).mean()) for one in self.passes]
        return sum(own + self._extra * (most - own) for own, most in zip(densities, computed, strict=True))

    @property
    def reach(self) -> float:
        """The largest relative time, either way, at which any frame sees another; key frames may be any."""
        seen = [(p.visible | bool(self.key_frames)) & (p.weight > 0)[:, None] for p in self.passes]
        return max(float(np.abs(p.rel[pairs]).max(initial=0)) for p, pairs in zip(self.passes, seen, strict=True))

    @cached_property
    def key(self) -> str:
        """A digest of the tables: equal plans have equal keys."""
        digest = hashlib.sha256(repr((self.logit_scale, self.key_frames, self.anchor)).encode())
        for table in (t for p in self.passes for t in (p.rel, p.visible, p.weight, p.stripe)):
            digest.update(b"-" if table is None else np.ascontiguousarray(table).tobytes())
        digest.update(b"" if self.frequency_scale is None else self.frequency_scale.tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def is_stock(self) -> bool:
        """Whether this is the backbone's own attention, so that the stock call serves, bit for bit."""
        return self.key == full_attention(*reversed(self.shape)).key

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


def _different(rel: np.ndarray, seen: np.ndarray) -> float:
    """How many times `rel` [P, Q, T] has where `seen` [P, Q, T], on the mean over pairs."""
    times = np.sort(np.where(seen, rel, np.inf), axis=0)
    new = np.concatenate([np.ones_like(seen[:1]), np.diff(np.nan_to_num(times, posinf=1e9), axis=0) > 0])
    return float((new & np.isfinite(times)).sum() / seen[0].size)


@dataclass(frozen=True)
class Geometry:
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


def full_attention(frames_lat: int, queries: int | None = None) -> FramePlan:
    """The backbone's own attention over `frames_lat` frames, of the last `queries` of them or of all."""
    own = np.arange(frames_lat - (queries or frames_lat), frames_lat, dtype=np.float64)
    rel = own[:, None] - np.arange(frames_lat, dtype=np.float64)[None, :]
    return FramePlan((Pass(rel, np.ones(rel.shape, dtype=bool), np.ones(len(own))),))


def visible_from_ranges(ranges: list[tuple[int, int]]) -> np.ndarray:
    """The table [T, T] in which query frame i sees key frames `ranges[i]` (half-open)."""
    frame = np.arange(len(ranges))
    start, stop = np.array(ranges).T
    return (frame >= start[:, None]) & (frame < stop[:, None])
