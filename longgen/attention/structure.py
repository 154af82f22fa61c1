"""Finds the structure of a frame plan's pass, so that it runs in few attention calls. Pure integers.

Legend: T latent frames, i query frame, j key frame.

Every `Call` attends from a run of query frames `queries` to the key frames in `keys`, exactly. Three shapes of run:

    shared    the frames see the same key frames             one call over all their tokens
    sliding   each frame sees one range, a frame later than  one batched call over overlapping views of k and v
              the frame before
    single    one query frame                                one call, or several where it sees stripes of frames

Where `rel[i, j] = p[i] - p[j]`, q and k are rotated once, to `positions = p`; otherwise `rel` holds the row of the run's
single query frame, and k is rotated anew for it, to p[i] - rel. p[i] is rel[i, 0]: the time of frame i as frame 0 sees it.
Frames of weight 0 are in no call.
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
    stripes: [visible keys], the share of each key frame that is seen, or None where all are seen whole.
    """

    queries: Range
    keys: tuple[Range, ...]
    sliding: bool = False
    rel: np.ndarray | None = None
    stripes: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Schedule:
    """The calls of one pass. positions [T]: where q is rotated to. keyed: whether k's rotation changes from call to call."""

    positions: np.ndarray
    keyed: bool
    calls: tuple[Call, ...]


def analyse(one: Pass) -> Schedule:
    """The calls that compute `one` exactly. Every query frame that has a weight must see at least one frame."""
    positions = one.rel[:, 0] - one.rel[0, 0]
    keyed = not np.array_equal(np.where(one.visible, one.rel, 0), np.where(one.visible, positions[:, None] - positions, 0))
    ranges = [_ranges(row) if weight > 0 else () for row, weight in zip(one.visible, one.weight, strict=True)]
    calls: list[Call] = []
    start = 0
    while start < len(ranges):
        seen = one.visible[start]
        striped = one.stripe is not None and bool((one.stripe[start, seen] < 1).any())
        rel, stripes = one.rel[start, seen] if keyed else None, one.stripe[start, seen] if striped else None  # type: ignore[index]
        if keyed or striped:
            stop, sliding = start + 1, False
        else:
            whole = [r if one.stripe is None or (one.stripe[i, one.visible[i]] >= 1).all() else None for i, r in enumerate(ranges)]
            shared = _run(whole, start, step=0)
            slid = _run(whole, start, step=1) if len(ranges[start]) == 1 else start + 1
            stop, sliding = max(shared, slid), slid > shared
        if ranges[start]:
            calls.append(Call((start, stop), ranges[start], sliding, rel, stripes))
        start = stop
    return Schedule(positions, keyed, tuple(calls))


def _ranges(row: np.ndarray) -> tuple[Range, ...]:
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
