"""Lowers one pass of a frame plan to few attention calls, each batched over blocks of frames at equal steps. Pure integers.

Legend: T latent frames, i query frame, j key frame, R steps of a staircase.

An accelerator computes many blocks in one call as fast as one large block, and a call costs it more than the CPU. Every `BlockCall`
is `count` blocks: some neighbouring query frames that see some neighbouring key frames, and as many again `step` and `key_step`
frames later. Strided views of q, k and v are such blocks (`longgen.attention.streaming` runs them).

As in `longgen.attention.partition`, rel[i, j] = p[i] - b[j] with few tables of key times b, or where those need many calls, with
those of `longgen.attention.key_times`; in every query frame, key frames that agree on b, p and the pair's logit columns are runs.
A run is followed from query frame to query frame, and its two ends decide:

    both stay                 one block
    both move alike           one call: blocks one after the other
    one stays, one moves      a block of what all see, and a staircase: query frame R sees R key frames. Blocks of z query
                              frames x z key frames, z = 1, 2, 4 .., tile it, those of one size in one call:

                              4 4 4 4 2 2 1        where query frame R is counted from 0, the blocks of size z are
                              4 4 4 4 2 2          query frames z (2 t + 1) .. z (2 t + 2) - 1
                              4 4 4 4 1            key frames   2 z t .. 2 z t + z - 1
                              4 4 4 4              for t = 0, 1, .., and a last or a first one may be cut
                              2 2 1
                              2 2
                              1

Where all query frames see the same scattered key frames, keys are taken in another order, these first: what is seen of the others
may then be one run, as in a window with such frames in it.

Runs that keep their ends for s query frames and then move, as grouped times have it, are such runs of units of s frames. Anything
else is a block a query frame. No pair is computed twice or in vain. Text inside self-attention is one more call for all query
frames, which then are at rel[i, 0] - rel[0, 0] [derived].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from longgen.attention.key_times import Band, by_key_times
from longgen.attention.lowering import SAME, Range, ranges_of
from longgen.attention.partition import NEUTRAL, TABLES, key_tables, logit_codes
from longgen.device_costs import CallCosts
from longgen.frameplan import Pass, distances

MANY = 64  # calls of a pass, beyond which key times are looked for that fit whole diagonals, which takes seconds


@dataclass(frozen=True)
class BlockCall:
    """Blocks t = 0 .. count - 1: `queries` query frames from `query` + t `step` on, `keys` key frames from `key` + t `key_step` on.

    keys = 0: the text. fresh: whether no call before has any of these query frames, so that there is nothing to merge with.
    """

    query: int
    queries: int
    key: int
    keys: int
    count: int = 1
    step: int = 0
    key_step: int = 0
    fresh: bool = False

    @property
    def rows(self) -> np.ndarray:
        """All its query frames, ascending."""
        return (self.query + self.step * np.arange(self.count)[:, None] + np.arange(self.queries)).flatten()

    def pairs(self) -> Iterator[tuple[int, int]]:
        """All its query frames with all their key frames."""
        for block in range(self.count):
            for i in range(self.queries):
                first = self.key + block * self.key_step
                yield from ((self.query + block * self.step + i, j) for j in range(first, first + self.keys))


@dataclass(frozen=True, eq=False)
class CallGroup:
    """Calls of queries rotated to `times` [T] on keys rotated to table `table`, or on the text where that is None.

    logits: factor and addend of all their logits.
    """

    times: np.ndarray
    table: int | None
    logits: tuple[float, float]
    calls: tuple[BlockCall, ...]


@dataclass(frozen=True, eq=False)
class ChosenFrames:
    """What key frames chosen at run time are seen with, on the keys of the last group's table.

    times: [T] of the queries, or [T, T], by key frame, where they depend on it. factor, addend [T, T]: by key frame, of the logits
    in each query frame; the addend is -inf where the pass shows the key frame anyway.
    """

    table: int
    times: np.ndarray
    factor: np.ndarray
    addend: np.ndarray


@dataclass(frozen=True, eq=False)
class BatchedPass:
    """tables: [T] each, the times of the keys; groups of the same table, and in it of the same times, are neighbours.

    native: whether q and k are at the backbone's own times throughout, for which it may have its own tables. chosen: where key
    frames are chosen at run time. order [T]: in which key frames are taken, where that is not their own order; those of calls count
    in it.
    """

    tables: tuple[np.ndarray, ...]
    groups: tuple[CallGroup, ...]
    native: bool
    chosen: ChosenFrames | None
    order: np.ndarray | None = None

    @property
    def calls(self) -> list[BlockCall]:
        return [call for group in self.groups for call in group.calls]

    @property
    def rotations(self) -> int:
        """How often q or k are rotated."""
        times = [group.times.tobytes() for group in self.groups]
        return len(self.tables) + len(times[:1]) + sum(one != other for one, other in itertools.pairwise(times))

    def cost(self, costs: CallCosts, tokens: int, text_tokens: int = 0) -> float:
        """In pairs of tokens attended, at `tokens` a frame. Rotating q or k is as many launches as a call."""
        rows = np.array([call.count * call.queries for call in self.calls])
        pairs = rows @ [call.keys * tokens or text_tokens for call in self.calls]
        rotated = self.rotations * len(self.tables[0])
        return float(
            (pairs + costs.merge * rows.sum() + costs.rotate * rotated) * tokens + costs.call * (len(rows) + self.rotations)
        )


@lru_cache(maxsize=64)
def lower_batched(pass_: Pass, with_text: bool = False, at_run_time: bool = False) -> BatchedPass:
    """The calls that compute `pass_` exactly, which has no bands and no factors on positive logits (passes hash by identity).

    at_run_time: key frames that are chosen at run time come to these.
    """
    assert pass_.positive is None
    frames, logits, seen = np.arange(len(pass_.rel)), _logits(pass_), pass_.visible & (pass_.weight > 0)[:, None]
    seen &= logits[1] > -np.inf
    if not (pass_.rel != distances(len(frames)))[seen].any():
        by_all = np.all(pass_.visible, axis=0)
        order = np.argsort(~by_all, kind="stable") if len(ranges_of(by_all)) > 1 and not at_run_time else None
        taken, shown = (pass_, seen) if order is None else (_in_order(pass_, order), seen[:, order])
        key_times = (frames if order is None else order).astype(np.float64)
        runs = _runs_by_neighbours(taken, [key_times], np.zeros(pass_.rel.shape, dtype=np.int64), shown)
        return replace(_lowered(pass_, [frames.astype(np.float64)], runs, seen, with_text, at_run_time), order=order)
    tables, (table,), _ = key_tables(pass_.rel[None], seen[None])
    lowered = _lowered(pass_, tables, _runs_by_neighbours(pass_, tables, table, seen), seen, with_text, at_run_time)
    if len(lowered.calls) <= MANY or not (diagonals := list(by_key_times(pass_.rel, seen, logits, TABLES))):
        return lowered
    tables = [times for times, _ in diagonals]
    ways = [_lowered(pass_, tables, _runs_by_diagonals(diagonals, cut), seen, with_text, at_run_time) for cut in (False, True)]
    return min(lowered, *ways, key=lambda way: len(way.calls) + way.rotations)


def _in_order(pass_: Pass, order: np.ndarray) -> Pass:
    """`pass_` with its key frames in `order`."""
    columns = {name: table[:, order] for name, table in pass_.columns.items()}
    return Pass(pass_.rel[:, order], pass_.visible[:, order], pass_.weight, columns)


def _logits(pass_: Pass) -> np.ndarray:
    return np.stack([np.ones_like(pass_.rel), np.zeros_like(pass_.rel)]) if pass_.logits is None else pass_.logits


def _runs_by_neighbours(pass_: Pass, tables: list[np.ndarray], table: np.ndarray, seen: np.ndarray) -> _TableRuns:
    """The runs of pairs `seen` [T, T], of which each is rotated to the `table` that is given for it."""
    logits, (logit_code,) = logit_codes((pass_,))
    query_times = pass_.rel + np.stack(tables)[table, np.arange(len(table))]
    for index in range(len(tables)):
        for code in np.unique(logit_code[seen & (table == index)]).tolist():
            for run in _runs(seen & (table == index) & (logit_code == code), query_times):
                yield index, logits[code], run


def _runs_by_diagonals(diagonals: list[tuple[np.ndarray, tuple[Band, ...]]], cut: bool) -> _TableRuns:
    """cut: runs end where they grow, slide or shrink no longer, so that the corners of many share the times of queries."""
    for index, (key_times, bands) in enumerate(diagonals):
        frames, runs = np.arange(len(key_times)), list[tuple[tuple[float, float], _Run]]()
        for band in bands:
            mask = (frames >= band.windows[:, :1]) & (frames < band.windows[:, 1:])
            for run in _runs(mask, np.broadcast_to(band.query_times[:, None], mask.shape)):
                runs += [((band.factor, band.addend), piece) for piece in (_pieces(run) if cut else (run,))]
        if cut:
            runs.sort(key=lambda run: len(run[1].times))
        yield from ((index, logit, run) for logit, run in runs)


def _pieces(run: _Run) -> Iterator[_Run]:
    steps = [*zip(np.diff(run.first).tolist(), np.diff(run.stop).tolist(), strict=True)]
    begin = 0
    while begin < len(run.first):
        end = begin + 1
        while end < len(run.first) and steps[end - 1] == steps[begin]:
            end += 1
        rows = slice(begin, end)
        yield _Run(run.row + begin, run.frames_lat, run.first[rows], run.stop[rows], run.times[rows])
        begin = end


def _combined(calls: list[BlockCall]) -> list[BlockCall]:
    """`calls` of one group, or fewer: blocks of one size at equal steps, whichever call they came from."""
    blocks: dict[Range, list[Range]] = {}
    for call in calls:
        places = ((call.query + t * call.step, call.key + t * call.key_step) for t in range(call.count))
        blocks.setdefault((call.queries, call.keys), []).extend(places)
    combined = []
    for (queries, keys), left in blocks.items():
        left.sort()
        while left:
            query, key = left[0]
            longest = [left[0]]
            for second in left[1:]:
                step, key_step = second[0] - query, second[1] - key
                if step >= queries and key_step >= 0:
                    place, row = left[0], list[Range]()
                    while place in left:
                        row.append(place)
                        place = place[0] + step, place[1] + key_step
                    longest = max(longest, row, key=len)
            step, key_step = (longest[1][0] - query, longest[1][1] - key) if len(longest) > 1 else (0, 0)
            combined.append(BlockCall(query, queries, key, keys, len(longest), step, key_step))
            left = [place for place in left if place not in longest]
    return min(calls, combined, key=len)


def _lowered(
    pass_: Pass, tables: list[np.ndarray], runs: _TableRuns, seen: np.ndarray, with_text: bool, at_run_time: bool
) -> BatchedPass:
    """The calls of `runs`, which have all pairs `seen` [T, T]."""
    frames, text_times = np.arange(len(pass_.rel)), pass_.rel[:, 0] - pass_.rel[0, 0]
    calls = {(-1, 0, NEUTRAL): [BlockCall(0, len(frames), 0, 0)]} if with_text else {}
    rotations = [[text_times] if with_text else [] for _ in tables]
    row_of_own = np.full(len(frames), -1)  # the table by which a query frame sees itself
    for index, logit, run in runs:
        rotation = _rotation(rotations[index], run)
        calls.setdefault((index, rotation, logit), []).extend(_calls(run))
        for row, (first, stop) in enumerate(zip(run.first, run.stop, strict=True), run.row):
            if first <= row < stop:
                row_of_own[row] = index
    used = {index: min(rotation for other, rotation, _ in calls if other == index) for index, _, _ in calls}
    own = np.bincount(row_of_own[row_of_own >= 0], minlength=len(tables))  # query frames that see themselves by each table
    order = sorted(used, key=lambda index: (index >= 0, used[index] if with_text else 0, -own[index]))
    groups, begun = [], np.zeros(len(frames), dtype=bool)
    for index, rotation, logit in sorted(calls, key=lambda key: (order.index(key[0]), key[1], key[2])):
        times = text_times if index < 0 else rotations[index][rotation]
        group = []
        of_group = calls[index, rotation, logit] if index < 0 else _combined(calls[index, rotation, logit])
        for call in sorted(of_group, key=lambda call: -call.count * call.queries):
            group.append(replace(call, fresh=not begun[call.rows].any()))
            begun[call.rows] = True
        table_of = None if index < 0 else order.index(index) - with_text
        groups.append(CallGroup(np.where(np.isnan(times), frames, times), table_of, logit, tuple(group)))
    kept = tuple(tables[index] for index in order if index >= 0) or (tables[0],)
    chosen = _chosen(pass_, seen, kept) if at_run_time else None
    all_times = [*kept, *(group.times for group in groups), *([chosen.times] if chosen else ())]
    return BatchedPass(kept, tuple(groups), all(np.array_equal(times, frames) for times in all_times), chosen)


def _chosen(pass_: Pass, seen: np.ndarray, tables: tuple[np.ndarray, ...]) -> ChosenFrames:
    times = pass_.rel.T + tables[-1][:, None]
    if (np.abs(times - times[0]) < SAME).all():
        times = times[0]
    factor, addend = (np.ones_like(pass_.rel), np.zeros_like(pass_.rel)) if pass_.logits is None else pass_.logits
    return ChosenFrames(len(tables) - 1, times, factor.T, np.where(seen, -np.inf, addend).T)


def _rotation(rotations: list[np.ndarray], run: _Run) -> int:
    """Which of `rotations` has the times of `run`, which are put in or added; [T] each, NaN where a frame's time is still open."""
    rows = slice(run.row, run.row + len(run.times))
    fits = (index for index, times in enumerate(rotations) if not (np.abs(times[rows] - run.times) > SAME / 2).any())
    index = next(fits, len(rotations))
    if index == len(rotations):
        rotations.append(np.full(run.frames_lat, np.nan))
    times = rotations[index][rows]
    times[np.isnan(times)] = np.array(run.times)[np.isnan(times)]
    return index


@dataclass
class _Run:
    """Key frames first[r] .. stop[r] - 1 of query frames row + r, rotated to times[r], of `frames_lat` in all."""

    row: int
    frames_lat: int
    first: list[int]
    stop: list[int]
    times: list[float]


_TableRuns = Iterator[tuple[int, tuple[float, float], _Run]]  # with the table of its keys, and factor and addend of its logits


def _runs(mask: np.ndarray, query_times: np.ndarray) -> list[_Run]:
    """The runs of `mask` [T, T] in which a query frame has one time, followed from query frame to query frame."""
    runs, active = list[_Run](), list[_Run]()
    for row, seen in enumerate(mask):
        pieces = list[Range]()
        for start, stop in ranges_of(seen):
            cuts = start + 1 + np.flatnonzero(np.abs(np.diff(query_times[row, start:stop])) > SAME)
            pieces += itertools.pairwise([start, *cuts.tolist(), stop])
        moves = sorted(
            (abs(start - run.first[-1]) + abs(stop - run.stop[-1]), index, place)
            for index, run in enumerate(active)
            for place, (start, stop) in enumerate(pieces)
            if start <= run.stop[-1] and stop >= run.first[-1]
        )
        follows: dict[int, _Run] = {}
        for _, index, place in moves:
            if place not in follows and not any(active[index] is run for run in follows.values()):
                follows[place] = active[index]
        active = []
        for place, (start, stop) in enumerate(pieces):
            if place not in follows:
                runs.append(_Run(row, len(mask), [], [], []))
            run = follows.get(place, runs[-1])
            run.first.append(start)
            run.stop.append(stop)
            run.times.append(float(query_times[row, start]))
            active.append(run)
    return runs


def _calls(run: _Run) -> Iterator[BlockCall]:
    """The calls that compute `run`."""
    units = list[tuple[int, int, int, int]]()  # query frames that see the same keys: the first, how many, their key frames
    for row, (first, stop) in enumerate(zip(run.first, run.stop, strict=True), run.row):
        if units and units[-1][2:] == (first, stop):
            units[-1] = (units[-1][0], units[-1][1] + 1, first, stop)
        else:
            units.append((row, 1, first, stop))
    steps = [(b[0] - a[0], b[1] - a[1], b[2] - a[2], b[3] - a[3]) for a, b in itertools.pairwise(units)]
    begin = 0
    while begin < len(units):
        end = begin
        while end < len(steps) and steps[end] == steps[begin] and steps[end][1] == 0:
            end += 1
        yield from _stretch(*units[begin], *(steps[begin][2:] if end > begin else (0, 0)), end - begin + 1)
        begin = end + 1


def _stretch(row: int, rows: int, first: int, stop: int, first_step: int, stop_step: int, units: int) -> list[BlockCall]:
    """Units of `rows` query frames, of which the next sees from `first_step` frames later to `stop_step` frames later."""
    if units == 1:
        return [BlockCall(row, rows, first, stop - first)]
    if first_step == stop_step > 0:
        return [BlockCall(row, rows, first, stop - first, units, rows, first_step)]
    one_by_one = [
        BlockCall(row + unit * rows, rows, first + unit * first_step, stop - first + unit * (stop_step - first_step))
        for unit in range(units)
    ]
    step = max(first_step, stop_step)
    if min(first_step, stop_step) != 0 or step <= 0:
        return one_by_one
    grows = first_step == 0
    shortest = (stop - first) - (0 if grows else step * (units - 1))
    ways = [one_by_one]
    for known in range(shortest // step + 1):
        tiles = _tiles(known, known + units)
        whole = shortest - known * step  # key frames that all see
        if grows:
            base = stop - known * step
            calls = [BlockCall(row, units * rows, first, whole)] if whole else []
            calls += [
                BlockCall(row + (v - known) * rows, high * rows, base + x * step, size * step, n, 2 * size * rows, 2 * size * step)
                for v, high, x, size, n in tiles
            ]
        else:  # the same, seen from its last query frame and key frame
            base = first + step * (units - 1 + known)
            calls = [BlockCall(row, units * rows, base, whole)] if whole else []
            for v, high, x, size, n in tiles:
                last = 2 * size * (n - 1)
                query, key = row + (units + known - v - last - high) * rows, base - (x + last + size) * step
                calls.append(BlockCall(query, high * rows, key, size * step, n, 2 * size * rows, 2 * size * step))
        ways.append(calls)
    return min(ways, key=lambda calls: (len(calls), sum(call.count * call.queries for call in calls)))


def _tiles(begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Tiles of steps `begin` .. `end` - 1 of a staircase, step v of which has 0 .. v - 1: its first step, how many steps, its first
    place, how many places; and how many such tiles there are, each twice as far on in both as it is wide."""
    size = 1
    while size < end:
        tiles = [(max(begin, v), min(v + size, end), v - size) for v in range(size, end, 2 * size) if v + size > begin]
        whole = [tile for tile in tiles if tile[1] - tile[0] == size]
        if whole:
            yield whole[0][0], size, whole[0][2], size, len(whole)
        yield from ((v, stop - v, x, size, 1) for v, stop, x in tiles if stop - v < size)
        size *= 2
