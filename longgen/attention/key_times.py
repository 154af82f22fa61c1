"""Times of keys and queries for a table of relative times: rel[i, j] = p[i] - b[j] for as many pairs as can be. Pure integers.

Legend: T latent frames, i query frame, j key frame, p[i] times of queries, b[j] times of keys.

`longgen.attention.partition` reads b off neighbouring key frames, pair by pair, which is quick and finds tiers that are linear in
the distance. Here whole diagonals are fitted, so that tiers that round frames are found too: with VRPR as in its authors' code,
b = floor(j / 2) and p = floor(i / 2) + c are one tier, though neighbours agree in every second frame only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from longgen.attention.lowering import SAME


@dataclass(frozen=True, eq=False)
class Band:
    """windows [T, 2]: the key frames (half-open) that each query frame, rotated to `query_times` [T], sees of its table.

    Their logits are multiplied by `factor`, then `addend` is added.
    """

    query_times: np.ndarray
    windows: np.ndarray
    factor: float
    addend: float


def by_key_times(
    rel: np.ndarray, pairs: np.ndarray, logits: np.ndarray, most: float = math.inf
) -> Iterator[tuple[np.ndarray, tuple[Band, ...]]]:
    """Key times [T] and the bands of `pairs` that have them.

    Pairs at one distance i - j stay together, so that windows slide: any one distance fits any key times, and those key times are
    taken first with which most of them fit one time of each query frame. Nothing where there would be more than `most` tables.
    """
    before = np.tri(len(rel), dtype=bool)
    kinds = [
        (factor, addend, pairs & side & (logits[0] == factor) & (logits[1] == addend))
        for factor, addend in np.unique(logits[:, pairs], axis=1).T.tolist()
        for side in (before, ~before)
    ]
    tables: list[tuple[np.ndarray, list[Band]]] = []
    while any(left.any() for _, _, left in kinds):
        candidates = (*(key_times for key_times, _ in tables), *_candidates(rel, pairs))
        fittings = [[_fitting(rel + key_times, left) for _, _, left in kinds] for key_times in candidates]
        best = int(np.argmax([sum(int(fits.sum()) for _, fits in fitting) for fitting in fittings]))
        if best >= len(tables):
            if len(tables) >= most:
                return
            tables.append((candidates[best], []))
        key_times, bands = tables[min(best, len(tables) - 1)]
        for (factor, addend, left), (query_times, fits) in zip(kinds, fittings[best], strict=True):
            left &= ~fits
            pairs = pairs & ~fits
            query_times = np.where(np.isnan(query_times), key_times, query_times)
            bands += [Band(query_times, windows, factor, addend) for windows in _windows(fits)]
    yield from ((key_times, tuple(bands)) for key_times, bands in tables)


def _candidates(rel: np.ndarray, pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Times of the keys [T]: the backbone's own, one for all, and those with which two neighbouring distances fit."""
    yield np.arange(len(rel), dtype=np.float64)
    yield np.zeros(len(rel))
    steps = np.where(pairs[:, :-1] & pairs[:, 1:], rel[:, :-1] - rel[:, 1:], np.nan)
    candidates = {}
    for distance in range(1, len(rel)):
        before, after = steps.diagonal(-distance), steps.diagonal(distance - 1)  # of key frames before the query frame, and after
        moves = np.full(len(rel) - 1, np.nan)
        moves[len(moves) - len(after) :] = after
        moves[: len(before)] = np.where(np.isnan(before), moves[: len(before)], before)
        if not np.isnan(moves).all():
            times = np.concatenate([[0.0], np.cumsum(np.nan_to_num(moves))])
            candidates[times.round(7).tobytes()] = times
    yield from candidates.values()


def _fitting(times: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Query times [T], NaN where it has none, that most `pairs` [T, T] fit which ask for `times` [T, T], and these."""
    by_distance = {}
    for distance in range(1 - len(times), len(times)):
        asked = np.full(len(times), np.nan)
        i = np.arange(max(0, distance), min(len(times), len(times) + distance))
        asked[i] = np.where(pairs[i, i - distance], times[i, i - distance], np.nan)
        if not np.isnan(asked).all():
            by_distance[distance] = asked
    best, distances_of, most = np.full(len(times), np.nan), list[int](), 0
    for seed in by_distance:
        query_times, fitting, count = by_distance[seed].copy(), list[int](), 0
        for distance in sorted(by_distance, key=lambda distance: abs(distance - seed)):
            asked = by_distance[distance]
            if not (np.abs(asked - query_times) > SAME).any():
                query_times = np.where(np.isnan(query_times), asked, query_times)
                fitting.append(distance)
                count += int((~np.isnan(asked)).sum())
        if count > most:
            best, distances_of, most = query_times, fitting, count
    apart = np.subtract.outer(np.arange(len(times)), np.arange(len(times)))
    return best, pairs & np.isin(apart, distances_of)


def _windows(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """`pairs` [T, T] as windows [T, 2]: the first range of each query frame, then its second, and so on."""
    left = pairs.copy()
    while left.any():
        begin = left.argmax(axis=1)
        after = ~left & (np.arange(left.shape[1]) > begin[:, None])
        end = np.where(after.any(axis=1), after.argmax(axis=1), left.shape[1])
        windows = np.where(left.any(axis=1, keepdims=True), np.stack([begin, end], axis=1), 0)
        yield windows
        for i, (start, stop) in enumerate(windows):
            left[i, start:stop] = False
