"""Lowers one pass of a frame plan to few attention calls. Pure integers.

Legend: T latent frames, i query frame, j key frame.

Every `AttentionCall` attends from a run of query frames `queries` to exactly the key frames in `keys`. Three kinds of run:

    same keys       the frames see the same key frames         one call over all their tokens
    sliding window  each frame sees one range, a frame later   one batched call over overlapping views of k and v
                    than the frame before
    single          one query frame                            one call, or several where it sees bands of frames

Where rel[i, j] = p[i] - p[j] + time_offset, q is rotated once, to `positions` = p, and k to p - time_offset. Any other table runs
one query frame at a time: q[i] rotated to p[i], key frame j to p[i] - rel[i, j]. A key frame keeps its rotation from one query
frame to the next where it can, and p is chosen so that most can: it moves by what most of rel[i] moves by (by 1/8 in the far tier
of VRPR, where only the near frames are then rotated again). A query frame with columns that change its logits is a single one;
those with factors on positive logits alone share a call where they see the same key frames. Frames of weight 0 are in no call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longgen.frameplan import Pass

Range = tuple[int, int]
SAME = 1e-7  # latent frames: times closer than this are equal


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Query frames `queries` (half-open) attend to the key frames of the half-open ranges `keys`.

    sliding: `keys` is the range of the first query frame and moves on by one with each. rotated, times: key frames to rotate
    before this call, and the times to rotate them to. bands: [visible keys], the share of each key frame that is seen, or None
    where all are seen whole. logits: [2, visible keys], factor and addend of each key frame's logits, or None. positive: [query
    frames, visible keys], the factor on each pair's positive logits, or None.
    """

    queries: Range
    keys: tuple[Range, ...]
    sliding: bool = False
    rotated: np.ndarray | None = None
    times: np.ndarray | None = None
    bands: np.ndarray | None = None
    logits: np.ndarray | None = None
    positive: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CallList:
    """The calls of one pass.

    positions [T]: the times that q is rotated to. rotates_keys: whether the rotation of k changes from call to call; k then begins
    at time 0, else it is rotated once, to `positions - time_offset`.
    """

    positions: np.ndarray
    rotates_keys: bool
    calls: tuple[AttentionCall, ...]
    time_offset: float = 0.0


def lower(pass_: Pass, with_text: bool = False) -> CallList:
    """The calls that compute `pass_` exactly. Every query frame that has a weight must see at least one frame.

    with_text: q also meets text, so that p[i] must be rel[i, 0] - rel[0, 0], the time at which text is seen.
    """
    positions = pass_.rel[:, 0] - pass_.rel[0, 0]
    time_offset = float(pass_.rel[0, 0])
    differences = positions[:, None] - positions + time_offset
    rotates_keys = not np.array_equal(np.where(pass_.visible, pass_.rel, 0), np.where(pass_.visible, differences, 0))
    ranges = [ranges_of(row) if weight > 0 else () for row, weight in zip(pass_.visible, pass_.weight, strict=True)]
    bands, logits, positive = _column_rows(pass_)
    if rotates_keys and not with_text:
        positions = _common_motion(pass_)
    sharing = [None if rotates_keys or i in bands or i in logits else key_ranges for i, key_ranges in enumerate(ranges)]
    plain, by_sign = (
        [key_ranges if (i in positive) == signed else None for i, key_ranges in enumerate(sharing)] for signed in (False, True)
    )  # of query frames that can share a call
    calls: list[AttentionCall] = []
    key_times = np.zeros(len(ranges))
    start = 0
    while start < len(ranges):
        seen, same_keys, slides = pass_.visible[start], start + 1, start + 1
        if plain[start]:
            same_keys = _run_end(plain, start, step=0)
            slides = _run_end(plain, start, step=1) if len(ranges[start]) == 1 else same_keys
        elif by_sign[start]:
            same_keys = _run_end(by_sign, start, step=0)
        rotated = times = None
        if rotates_keys and ranges[start]:
            target = np.where(seen, positions[start] - pass_.rel[start], key_times)
            rotated = np.flatnonzero(np.abs(target - key_times) > SAME)
            times, key_times[rotated] = target[rotated], target[rotated]
        stop = max(same_keys, slides)
        if ranges[start]:
            rows = [positive[i] for i in range(start, stop) if i in positive]
            columns = bands.get(start), logits.get(start), np.stack(rows) if rows else None
            calls.append(AttentionCall((start, stop), ranges[start], slides > same_keys, rotated, times, *columns))
        start = stop
    return CallList(positions, rotates_keys, tuple(calls), time_offset)


def _column_rows(pass_: Pass) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Bands, logit columns and factors on positive logits over the visible keys, of the query frames where they are not neutral."""
    bands, logits, positive = dict[int, np.ndarray](), dict[int, np.ndarray](), dict[int, np.ndarray]()
    for i, seen in enumerate(pass_.visible):
        if pass_.band is not None and (pass_.band[i, seen] < 1).any():
            bands[i] = pass_.band[i, seen]
        if pass_.logits is not None and (pass_.logits[:, i, seen] != np.array([[1.0], [0.0]])).any():
            logits[i] = pass_.logits[:, i, seen]
        if pass_.positive is not None and (pass_.positive[i, seen] != 1).any():
            positive[i] = pass_.positive[i, seen]
    return bands, logits, positive


def _common_motion(pass_: Pass) -> np.ndarray:
    """p [T]: from frame to frame, it moves by what the relative times of most key frames that both see move by."""
    positions = np.zeros(len(pass_.rel))
    for i in range(1, len(positions)):
        motion = (pass_.rel[i] - pass_.rel[i - 1])[pass_.visible[i] & pass_.visible[i - 1]]
        steps, counts = np.unique(motion.round(9), return_counts=True)
        positions[i] = positions[i - 1] + (steps[counts.argmax()] if len(steps) else 0.0)
    return positions


def ranges_of(row: np.ndarray) -> tuple[Range, ...]:
    """The runs of True in `row` [T] bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def _run_end(ranges: list[tuple[Range, ...] | None], start: int, step: int) -> int:
    """The end of the run from `start` in which each frame's ranges are those of the frame before, moved by `step`."""
    first, stop = ranges[start], start + 1
    assert first is not None
    while stop < len(ranges):
        shift = (stop - start) * step
        if ranges[stop] != tuple((a + shift, b + shift) for a, b in first):
            break
        stop += 1
    return stop
