"""Cuts the passes of a frame plan into attention calls such that every pair of frames is computed once. Pure integers.

Legend: T latent frames, P passes, i query frame, j key frame, f query frames of a part.

A logit depends on the pair and on rel[i, j] alone, so passes that agree on rel[i, j] share it, and a softmax over many keys can be
put together from parts of them (`longgen.attention.lse_merge`). What is needed is a cover of all pairs (i, j, rel) by parts:

    query frames i, rotated to p[i], attend to key frames j, rotated to one table of times b [T]: rel[i, j] = p[i] - b[j]

Tables b are read off rel: b moves from frame to frame by what rel[i, j] - rel[i, j + 1] is for most pairs, then for most of the
pairs that have no equal neighbour on that table, and so on: VRPR's tiers j / 8, j and j / 2. Any pair fits any table; a good
table lets neighbours share a query time. Frames may be taken in another order, one residue after the other modulo `stride`:
LongDiff's groups of four then are neighbours.

Query frames are halved, where what they see changes most, down to one. Each half does what all its frames need and no half
above has done, so nothing is computed in vain, and far keys are done for many frames at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longgen.attention.lowering import SAME, CallList, Range
from longgen.frameplan import Pass, distances

STRIDES = (1, 2, 3, 4, 5, 6, 7, 8)
TABLES = 6  # of key times; each costs a copy of k
BLOCK = 8  # query frames, at most
HELD = 1.5  # times T frames of outputs that a block may hold, while it has more than one query frame
CALL, MERGE, TURN = 2500, 10, 100  # a call, merging and turning a frame of one token, as pairs of tokens attended


@dataclass(frozen=True, eq=False)
class Part:
    """Query frames attend to `keys` (ascending; frames count in the arrangement's order).

    turn: which row of its block's times the queries are rotated to. table: which table the keys. held [P, f] bool: in which
    passes the query frames have it. chosen: whether only those of `keys` are seen that are chosen at run time.
    """

    queries: Range
    keys: np.ndarray
    turn: int
    table: int
    held: np.ndarray
    chosen: bool


@dataclass(frozen=True, eq=False)
class Block:
    """Query frames whose outputs are held until their `parts` are done; `times` [S, f] that they are rotated to for these."""

    queries: Range
    times: np.ndarray
    parts: tuple[Part, ...]

    @property
    def held(self) -> int:
        """Frames of all outputs that are certain; key frames chosen at run time add a few."""
        return sum(part.held.shape[1] for part in self.parts if not part.chosen)


@dataclass(frozen=True, eq=False)
class Partition:
    """order [T]: the frames as they are taken. tables: [T] each, the times of the keys.

    positions: [T], the times of all queries, where they have one each and there is one table; then q is rotated once.
    """

    order: np.ndarray
    tables: tuple[np.ndarray, ...]
    blocks: tuple[Block, ...]
    positions: np.ndarray | None

    def cost(self, tokens: int) -> float:
        """In pairs of tokens attended, of `tokens` a frame."""
        parts = [part for block in self.blocks for part in block.parts if not part.chosen]
        turned = len(self.tables) * len(self.order) + sum(block.times.size for block in self.blocks)
        merged = sum(block.held for block in self.blocks)
        pairs = sum(part.held.shape[1] * len(part.keys) for part in parts)
        return pairs * tokens**2 + (MERGE * merged + TURN * turned) * tokens + CALL * len(parts)


def cost(schedules: list[CallList], tokens: int) -> float:
    """That of passes computed one after the other."""
    calls = [call for schedule in schedules for call in schedule.calls]
    pairs = sum((call.queries[1] - call.queries[0]) * sum(b - a for a, b in call.keys) for call in calls)
    turned = sum(2 * len(schedule.positions) for schedule in schedules)
    turned += sum(len(call.turned) for call in calls if call.turned is not None)
    return pairs * tokens**2 + TURN * turned * tokens + CALL * len(calls)


@lru_cache(maxsize=64)
def partition(passes: tuple[Pass, ...], tokens: int, chosen: bool = False) -> Partition:
    """The cheapest arrangement of `passes`, no stripes, which have one logit for the same rel (passes hash by identity).

    tokens: of a frame. chosen: whether frames that a pass does not show may be chosen at run time, for all its query frames.
    """
    rel = np.stack([one.rel for one in passes])
    shown = np.stack([one.visible & (one.weight > 0)[:, None] for one in passes])
    seen = np.broadcast_to(np.stack([one.weight > 0 for one in passes])[:, :, None], shown.shape) if chosen else shown
    frames = np.arange(rel.shape[1])
    if (rel == distances(len(frames)))[seen].all():  # the backbone's own times, of which it may have its own tables
        own = [frames.astype(np.float64)]
        return _arranged(frames, rel, seen, shown, own, np.zeros(rel.shape, dtype=np.int64))
    best, most = None, 0
    for stride in STRIDES[: len(frames)]:
        order = np.concatenate([frames[residue::stride] for residue in range(stride)])
        own_rel, own_seen, own_shown = (x[:, order][:, :, order] for x in (rel, seen, shown))
        tables, table, joined = _tables(own_rel, own_seen)
        if joined > 1.1 * most:
            made = _arranged(order, own_rel, own_seen, own_shown, tables, table)
            if best is None or made.cost(tokens) < best.cost(tokens):
                best = made
            most = joined
    assert best is not None
    return best


def _tables(rel: np.ndarray, seen: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Times of the keys [T] each, the table of each pair [P, T, T], and how many pairs have an equal neighbour on the first."""
    left, table, tables, first = seen.copy(), np.zeros(seen.shape, dtype=np.int64), list[np.ndarray](), 0
    steps = rel[..., :-1] - rel[..., 1:]
    while left.any() and len(tables) < TABLES:
        both = left[..., :-1] & left[..., 1:]
        moves = np.zeros(both.shape[2])
        for j in range(len(moves)):
            own = steps[..., j][both[..., j]]
            _, first_of, counts = np.unique(own.round(7), return_index=True, return_counts=True)
            moves[j] = own[first_of[counts.argmax()]] if len(own) else 0.0
        times = np.concatenate([[0.0], np.cumsum(moves)])
        equal = both & (np.abs(steps - moves) < SAME)
        joined = np.pad(equal, ((0, 0), (0, 0), (0, 1))) | np.pad(equal, ((0, 0), (0, 0), (1, 0)))
        if tables and not joined.any():
            break
        first = first or int(equal.sum())
        table[joined] = len(tables)
        tables.append(times)
        left &= ~joined
    for one, other in itertools.combinations(range(len(rel)), 2) if len(tables) > 1 else ():  # what is shared has one table
        same = seen[one] & seen[other] & (np.abs(rel[one] - rel[other]) < SAME)
        table[one][same] = table[other][same] = np.minimum(table[one], table[other])[same]
    return tables or [np.arange(rel.shape[2], dtype=np.float64)], table, first


def _arranged(
    order: np.ndarray, rel: np.ndarray, seen: np.ndarray, shown: np.ndarray, tables: list[np.ndarray], table: np.ndarray
) -> Partition:
    times = rel + np.stack(tables)[table, np.arange(len(order))]
    _, first_of, codes = np.unique(times[seen].round(7), return_index=True, return_inverse=True)
    values = times[seen][first_of]
    code = np.full(seen.shape, -1)
    code[seen] = (codes * len(tables) + table[seen]) * 2 + ~shown[seen]
    halves = _Halves(code, values, len(tables))
    size, blocks = BLOCK, tuple[Block, ...]()
    while not blocks:
        blocks = tuple(halves.block(*queries) for queries in halves.blocks(0, len(order), size))
        if size > 1 and max(block.held for block in blocks) > HELD * len(order):
            size, blocks = size // 2, ()
    positions = None
    if len(tables) == 1:
        own = [np.unique(code[:, row][seen[:, row]] // 2) for row in range(len(order))]
        if max(len(row) for row in own) == 1:
            positions = np.array([values[row[0]] if len(row) else float(index) for index, row in enumerate(own)])
    return Partition(order, tuple(tables), blocks, positions)


class _Halves:
    """code [P, T, T]: (time, table, chosen) of each pair as one number, or -1; `values`: the times."""

    def __init__(self, code: np.ndarray, values: np.ndarray, tables: int) -> None:
        self.code, self.values, self.tables = code, values, tables
        other = (code[:, 1:] >= 0) != (code[:, :-1] >= 0)
        self.changes = other.sum(axis=0)  # [T - 1, T]: by key frame, in how many passes the next frame sees it otherwise

    def cut(self, first: int, last: int, keys: np.ndarray) -> int:
        changes = self.changes[first : last - 1, keys].sum(axis=1)
        return first + 1 + int(np.lexsort((np.abs(np.arange(last - first - 1) - (last - first - 2) / 2), -changes))[0])

    def blocks(self, first: int, last: int, size: int) -> Iterator[Range]:
        if last - first <= size:
            yield first, last
            return
        cut = self.cut(first, last, np.ones(self.code.shape[2], dtype=bool))
        yield from self.blocks(first, cut, size)
        yield from self.blocks(cut, last, size)

    def block(self, first: int, last: int) -> Block:
        """The parts of these query frames, whose times are put together in as few rows as they fit in."""
        times: list[np.ndarray] = []
        parts = []
        for queries, keys, codes, held in self.parts(first, last, ~np.zeros(self.code.shape[2], dtype=bool)):
            own = np.full(last - first, np.nan)
            own[queries[0] - first : queries[1] - first] = self.values[codes // (2 * self.tables)]
            turn = next((turn for turn, row in enumerate(times) if not (row != own)[~np.isnan(row + own)].any()), len(times))
            times[turn : turn + 1] = [np.where(np.isnan(own), times[turn], own) if turn < len(times) else own]
            kind = int(codes[0]) % (2 * self.tables)
            parts.append(Part(queries, keys, turn, kind // 2, held, bool(kind % 2)))
        return Block((first, last), np.nan_to_num(np.array(times).reshape(-1, last - first)), tuple(parts))

    def parts(self, first: int, last: int, keys: np.ndarray) -> Iterator[tuple[Range, np.ndarray, np.ndarray, np.ndarray]]:
        """Query frames, key frames, codes [f] and held [P, f] of all parts of frames first .. last - 1 over `keys` [T] bool."""
        kinds: dict[bytes, list[int]] = {}
        rows = np.ascontiguousarray(self.code[:, first:last].transpose(2, 0, 1))
        for j in np.flatnonzero(keys & (rows >= 0).any(axis=(1, 2))):
            kinds.setdefault(rows[j].tobytes(), []).append(int(j))
        rest = np.zeros_like(keys)
        for same in kinds.values():
            merged = _merged(rows[same[0]])
            if last - first > 1 and not _all_needed(rows[same[0]], [row for row, _ in merged], 2 * self.tables):
                rest[same] = True
                continue
            yield from (((first, last), np.array(same), row, held) for row, held in merged)
        if rest.any():
            cut = self.cut(first, last, rest)
            yield from self.parts(first, cut, rest)
            yield from self.parts(cut, last, rest)


def _merged(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows [f] that between them have all of `rows` [P, f], where -1 fits anything, and who has them, [P, f]."""
    merged: list[tuple[np.ndarray, np.ndarray]] = []
    for index in np.flatnonzero((rows >= 0).any(axis=1)):
        own = rows[index]
        for place, (row, held) in enumerate(merged):
            if ((row == own) | (row < 0) | (own < 0)).all():
                held[index] = own >= 0
                merged[place] = np.maximum(row, own), held
                break
        else:
            held = np.zeros(rows.shape, dtype=bool)
            held[index] = own >= 0
            merged.append((own, held))
    return merged


def _all_needed(rows: np.ndarray, merged: list[np.ndarray], kinds: int) -> bool:
    """Whether parts `merged` of `rows` [P, f] are of one kind each and compute for every frame what it needs and no more."""
    needed = {len(np.unique(frame[frame >= 0])) for frame in rows.T}
    return needed == {len(merged)} and all((row >= 0).all() and len(np.unique(row % kinds)) == 1 for row in merged)
