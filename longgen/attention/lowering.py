"""Finds the structure of a frame plan's pass, so that it runs in few attention calls. Pure integers.

Legend: T latent frames, i query frame, j key frame.

Every `Call` attends from a run of query frames `queries` to the key frames in `keys`, exactly. Three shapes of run:

    shared    the frames see the same key frames             one call over all their tokens
    sliding   each frame sees one range, a frame later than  one batched call over overlapping views of k and v
              the frame before
    single    one query frame                                one call, or several where it sees stripes of frames

Where `rel[i, j] = p[i] - p[j] + lag`, q is rotated once, to `positions = p`, and k to p - lag. Any other table is run one query
frame at a time: q[i] rotated to p[i], key frame j to p[i] - rel[i, j]. A key frame keeps its rotation from one query frame to
the next where it can, and p is chosen so that most can: it moves by what most of rel[i] moves by (by 1/8 in the far tier of
VRPR, where it then is the near frames alone that are rotated anew). Frames of weight 0 are in no call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from longgen.frameplan import Pass

Range = tuple[int, int]
SAME = 1e-7  # latent frames: times closer than this are one


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Query frames `queries` (half-open) attend to the key frames of the half-open ranges `keys`.

    sliding: `keys` is the range of the first query frame and moves on by one with each. turned, times: key frames to
    rotate before this call, and where to. stripes: [visible keys], the share of each key frame that is seen, or None where
    all are seen whole.
    """

    queries: Range
    keys: tuple[Range, ...]
    sliding: bool = False
    turned: np.ndarray | None = None
    times: np.ndarray | None = None
    stripes: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CallList:
    """The calls of one pass. positions [T]: where q is rotated to. keyed: whether k's rotation changes from call to call;
    it then begins at time 0, else it is `lag` behind q's."""

    positions: np.ndarray
    keyed: bool
    calls: tuple[AttentionCall, ...]
    lag: float = 0.0


def lower(one: Pass, anchored: bool = False) -> CallList:
    """The calls that compute `one` exactly. Every query frame that has a weight must see at least one frame.

    anchored: p[i] is rel[i, 0], the time of frame i as frame 0 sees it, because q meets more than frames there (text).
    """
    positions = one.rel[:, 0] - one.rel[0, 0]
    lag = float(one.rel[0, 0])
    apart = positions[:, None] - positions + lag
    keyed = not np.array_equal(np.where(one.visible, one.rel, 0), np.where(one.visible, apart, 0))
    ranges = [ranges_of(row) if weight > 0 else () for row, weight in zip(one.visible, one.weight, strict=True)]
    striped = [one.stripe is not None and bool((row[seen] < 1).any()) for row, seen in _rows(one)]
    if keyed:
        positions = positions if anchored else _steady(one)
    whole = [None if keyed or partly else keys for keys, partly in zip(ranges, striped, strict=True)]
    calls: list[AttentionCall] = []
    now = np.zeros(len(ranges))  # where key frames stand
    start = 0
    while start < len(ranges):
        seen, shared, slid = one.visible[start], start + 1, start + 1
        if whole[start]:
            shared = _run(whole, start, step=0)
            slid = _run(whole, start, step=1) if len(ranges[start]) == 1 else shared
        turned = times = None
        if keyed and ranges[start]:
            wanted = np.where(seen, positions[start] - one.rel[start], now)
            turned = np.flatnonzero(np.abs(wanted - now) > SAME)
            times, now[turned] = wanted[turned], wanted[turned]
        stop = max(shared, slid)
        if ranges[start]:
            stripes = one.stripe[start, seen] if one.stripe is not None and striped[start] else None
            calls.append(AttentionCall((start, stop), ranges[start], slid > shared, turned, times, stripes))
        start = stop
    return CallList(positions, keyed, tuple(calls), lag)


def _rows(one: Pass) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    stripe = np.ones_like(one.rel) if one.stripe is None else one.stripe
    return zip(stripe, one.visible, strict=True)


def _steady(one: Pass) -> np.ndarray:
    """p [T]: from frame to frame, it moves by what the relative times of most key frames that both see move by."""
    positions = np.zeros(len(one.rel))
    for i in range(1, len(positions)):
        moved = (one.rel[i] - one.rel[i - 1])[one.visible[i] & one.visible[i - 1]]
        steps, counts = np.unique(moved.round(9), return_counts=True)
        positions[i] = positions[i - 1] + (steps[counts.argmax()] if len(steps) else 0.0)
    return positions


def ranges_of(row: np.ndarray) -> tuple[Range, ...]:
    """The runs of True in `row` [T] bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _run(ranges: list[tuple[Range, ...] | None], start: int, step: int) -> int:
    """The end of the run from `start` in which each frame's ranges are those of the frame before, moved by `step`."""
    first, stop = ranges[start], start + 1
    assert first is not None
    while stop < len(ranges):
        moved = (stop - start) * step
        if ranges[stop] != tuple((a + moved, b + moved) for a, b in first):
            break
        stop += 1
    return stop
