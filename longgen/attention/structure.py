"""Finds the structure of a frame plan's pass, so that it runs in few attention calls without a mask. Pure integers.

Legend: T latent frames, i query frame, j key frame.

Every `Call` attends from a run of query frames `queries` to the key frames in `keys`, exactly. Three shapes of run:

    shared    the frames see the same key frames             one call over all their tokens
    sliding   each frame sees one range, a frame later than  one batched call over overlapping views of k and v
              the frame before
    single    one query frame                                one call

Where `rel[i, j] = p[i] - p[j]`, q and k are rotated once, to `positions = p`; otherwise `rel` holds the row of the run's
single query frame, and k is rotated anew for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longgen.frameplan import Pass

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Call:
    """Query frames `queries` (half-open) attend to the key frames of the half-open ranges `keys`.

    sliding: `keys` is the range of the first query frame and moves on by one with each. rel: [visible keys], or None.
    """

    queries: Range
    keys: tuple[Range, ...]
    sliding: bool = False
    rel: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Schedule:
    """The calls of one pass. `positions` [T]: where q and k are rotated to, or None where that changes from frame to frame."""

    positions: np.ndarray | None
    calls: tuple[Call, ...]


def analyse(one: Pass) -> Schedule:
    """The calls that compute `one` exactly. Every query frame must see at least one frame."""
    ranges = [_ranges(row) for row in one.visible]
    positions = one.rel[:, 0] - one.rel[0, 0]
    if not np.array_equal(one.rel, positions[:, None] - positions[None, :]):
        keyed = (Call((i, i + 1), keys, rel=one.rel[i, one.visible[i]]) for i, keys in enumerate(ranges))
        return Schedule(None, tuple(keyed))
    calls: list[Call] = []
    start = 0
    while start < len(ranges):
        shared = _run(ranges, start, step=0)
        sliding = _run(ranges, start, step=1) if len(ranges[start]) == 1 else start + 1
        stop = max(shared, sliding)
        calls.append(Call((start, stop), ranges[start], sliding=sliding > shared))
        start = stop
    return Schedule(positions, tuple(calls))


def _ranges(row: np.ndarray) -> tuple[Range, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _run(ranges: list[tuple[Range, ...]], start: int, step: int) -> int:
    """The end of the run from `start` in which each frame's ranges are those of the frame before, moved by `step`."""
    stop = start + 1
    while stop < len(ranges) and ranges[stop] == tuple((a + step, b + step) for a, b in ranges[stop - 1]):
        stop += 1
    return stop
