"""Partitions the passes of a frame plan into attention calls such that every pair of frames is computed once. Pure integers.

Legend: T latent frames, P passes, i query frame, j key frame, f query frames of a part.

A logit depends on the pair, on rel[i, j] and on the pair's logit columns alone, so passes that agree on these share it, and a
softmax over many keys can be merged from parts of them (`longgen.attention.lse_merge`). What is needed is a cover of all triples
(i, j, logit) by parts:

    query frames i, rotated to p[i], attend to key frames j, rotated to one table of times b [T]: rel[i, j] = p[i] - b[j]

with one factor and one addend on all logits of a part. Text that takes part in self-attention is one more part for every query
frame, whose queries are rotated to rel[i, 0] - rel[0, 0] [derived].

Tables b are read off rel: b moves from frame to frame by what rel[i, j] - rel[i, j + 1] is for most pairs, then for most of the
pairs that have no equal neighbour on that table, and so on: VRPR's tiers j / 8, j and j / 2. Any pair fits any table; a good
table lets neighbours share a query time. Frames may be taken in another order, one residue after the other modulo a stride:
LongDiff's groups of four are then neighbours.

Query frames are halved, where what they see changes most, down to one. Each half computes what all its frames need and no half
above has computed, so nothing is computed in vain, and distant keys are computed for many frames at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longgen.attention.lowering import SAME, CallList, Range
from longgen.device_costs import CPU, CallCosts
from longgen.frameplan import Pass, distances

STRIDES = (1, 2, 3, 4, 5, 6, 7, 8)
TABLES = 6  # of key times; each costs a copy of k
BLOCK = 8  # query frames, at most
HELD_OUTPUTS = 1.5  # times T frames of partial outputs that a block may hold, while it has more than one query frame
CALL, MERGE, ROTATE = 2500, 10, 100  # a call; merging and rotating a frame of one token; in pairs of tokens attended
NEUTRAL = (1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Part:
    """Query frames attend to `keys` (ascending; frames count in the partition's order), or to the text.

    query_times: which row of its block's times the queries are rotated to. table: which table the keys are rotated to. members
    [P, f] bool: the passes that the part belongs to, for each query frame. at_run_time: of `keys`, only those are seen that are
    chosen at run time. logits: the factor on its logits and the addend to them. text: keys and values are the text's.
    """

    queries: Range
    keys: np.ndarray
    query_times: int
    table: int
    members: np.ndarray
    at_run_time: bool = False
    logits: tuple[float, float] = NEUTRAL
    text: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """Query frames whose partial outputs are held until all `parts` are done; `times` [S, f] that they are rotated to for these."""

    queries: Range
    times: np.ndarray
    parts: tuple[Part, ...]

    @property
    def outputs(self) -> int:
        """Frames of partial outputs, those of key frames chosen at run time, which are few, left out."""
        return sum(part.members.shape[1] for part in self.parts if not part.at_run_time)


@dataclass(frozen=True, eq=False)
class Partition:
    """order [T]: the frames as they are taken. tables: [T] each, the times of the keys.

    positions: [T], the times of all queries, where each has one and there is one table; q is then rotated once.
    """

    order: np.ndarray
    tables: tuple[np.ndarray, ...]
    blocks: tuple[Block, ...]
    positions: np.ndarray | None

    def cost(self, tokens: int, text_tokens: int = 0) -> float:
        """In pairs of tokens attended, at `tokens` a frame."""
        parts = [part for block in self.blocks for part in block.parts if not part.at_run_time]
        rotated = len(self.tables) * len(self.order) + sum(block.times.size for block in self.blocks)
        merged = sum(block.outputs for block in self.blocks)
        pairs = sum(part.members.shape[1] * (text_tokens if part.text else len(part.keys) * tokens) for part in parts)
        return pairs * tokens + (MERGE * merged + ROTATE * rotated) * tokens + CALL * len(parts)


def sequential_cost(call_lists: list[CallList], tokens: int, text_tokens: int = 0, costs: CallCosts = CPU) -> float:
    """That of passes computed one after the other."""
    calls = [call for call_list in call_lists for call in call_list.calls]
    queries = [call.queries[1] - call.queries[0] for call in calls]
    pairs = sum(count * sum(b - a for a, b in call.keys) for count, call in zip(queries, calls, strict=True))
    rotated = sum(2 * len(call_list.positions) for call_list in call_lists)
    rotated += sum(len(call.rotated) for call in calls if call.rotated is not None)
    count = sum(frames if call.sliding and text_tokens else 1 for frames, call in zip(queries, calls, strict=True))
    if costs.batched:  # where rotation is as many launches as a call
        count += 2 * len(call_lists) + sum(call.rotated is not None for call in calls)
    return pairs * tokens**2 + sum(queries) * tokens * text_tokens + costs.rotate * rotated * tokens + costs.call * count


@lru_cache(maxsize=64)
def partition(passes: tuple[Pass, ...], tokens: int, at_run_time: bool = False, text_tokens: int = 0) -> Partition:
    """The cheapest partition of `passes`, which have no bands and no factors on positive logits (passes hash by identity).

    tokens: of a frame. at_run_time: whether key frames that a pass hides may be chosen at run time, for all its query frames.
    text_tokens: those that take part in self-attention.
    """
    assert all(pass_.positive is None for pass_ in passes)
    rel = np.stack([pass_.rel for pass_ in passes])
    computed = np.stack([pass_.weight > 0 for pass_ in passes])
    visible = np.stack([pass_.visible for pass_ in passes]) & computed[:, :, None]
    seen = np.broadcast_to(computed[:, :, None], visible.shape) if at_run_time else visible
    logits, logit_code = logit_codes(passes)
    text_times = np.where(computed, rel[:, :, 0] - rel[:, :1, 0], np.nan) if text_tokens else None
    frames = np.arange(rel.shape[1])
    if (rel == distances(len(frames)))[seen].all():  # the backbone's own times, for which it may have its own tables
        native = [frames.astype(np.float64)]
        kinds = _Kinds(native, np.zeros(rel.shape, dtype=np.int64), logits, logit_code)
        return _partition_in_order(frames, rel, seen, visible, kinds, text_times)
    cheapest, most = None, 0
    for stride in STRIDES[: len(frames)]:
        order = np.concatenate([frames[residue::stride] for residue in range(stride)])
        ordered = [x[:, order][:, :, order] for x in (rel, seen, visible, logit_code)]
        tables, table, joined = key_tables(ordered[0], ordered[1])
        if joined > 1.1 * most:
            kinds = _Kinds(tables, table, logits, ordered[3])
            times = None if text_times is None else text_times[:, order]
            candidate = _partition_in_order(order, ordered[0], ordered[1], ordered[2], kinds, times)
            if cheapest is None or candidate.cost(tokens, text_tokens) < cheapest.cost(tokens, text_tokens):
                cheapest = candidate
            most = joined
    assert cheapest is not None
    return cheapest


def logit_codes(passes: tuple[Pass, ...]) -> tuple[list[tuple[float, float]], np.ndarray]:
    """The distinct (factor, addend) of the passes' logit columns, and which one each pair has [P, T, T]."""
    shape = (len(passes), *passes[0].rel.shape)
    if all(pass_.logits is None for pass_ in passes):
        return [NEUTRAL], np.zeros(shape, dtype=np.int64)
    neutral = np.stack([np.full(shape[1:], value) for value in NEUTRAL])
    columns = np.stack([neutral if pass_.logits is None else pass_.logits for pass_ in passes], axis=1)
    values, code = np.unique(columns.reshape(2, -1), axis=1, return_inverse=True)
    return [(float(factor), float(addend)) for factor, addend in values.T], code.reshape(shape)


def key_tables(rel: np.ndarray, seen: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Times of the keys [T] each, the table of each pair [P, T, T], and how many pairs have an equal neighbour on the first."""
    left, table, tables, first = seen.copy(), np.zeros(seen.shape, dtype=np.int64), list[np.ndarray](), 0
    steps = rel[..., :-1] - rel[..., 1:]
    while left.any() and len(tables) < TABLES:
        both = left[..., :-1] & left[..., 1:]
        moves = np.zeros(both.shape[2])
        for j in range(len(moves)):
            column = steps[..., j][both[..., j]]
            _, first_of, counts = np.unique(column.round(7), return_index=True, return_counts=True)
            moves[j] = column[first_of[counts.argmax()]] if len(column) else 0.0
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


@dataclass
class _Kinds:
    """What the pairs of a part agree on. [P, T, T]: the `table` of the pair's key time, the `logit_code` of its logits."""

    tables: list[np.ndarray]
    table: np.ndarray
    logits: list[tuple[float, float]]
    logit_code: np.ndarray

    def __len__(self) -> int:
        return 2 * len(self.tables) * len(self.logits)

    def codes(self, visible: np.ndarray) -> np.ndarray:
        return (self.logit_code * len(self.tables) + self.table) * 2 + ~visible

    def part(self, queries: Range, keys: np.ndarray, query_times: int, code: int, members: np.ndarray) -> Part:
        index, at_run_time = divmod(code, 2)
        logit, table = divmod(index, len(self.tables))
        return Part(queries, keys, query_times, table, members, bool(at_run_time), self.logits[logit])


def _partition_in_order(
    order: np.ndarray, rel: np.ndarray, seen: np.ndarray, visible: np.ndarray, kinds: _Kinds, text_times: np.ndarray | None
) -> Partition:
    times = rel + np.stack(kinds.tables)[kinds.table, np.arange(len(order))]
    _, first_of, codes = np.unique(times[seen].round(7), return_index=True, return_inverse=True)
    values = times[seen][first_of]
    code = np.full(seen.shape, -1)
    code[seen] = codes * len(kinds) + kinds.codes(visible)[seen]
    halves = _Halves(code, values, kinds, text_times)
    size, blocks = BLOCK, tuple[Block, ...]()
    while not blocks:
        blocks = tuple(halves.block(*queries) for queries in halves.blocks(0, len(order), size))
        if size > 1 and max(block.outputs for block in blocks) > HELD_OUTPUTS * len(order):
            size, blocks = size // 2, ()
    positions = None
    if len(kinds.tables) == 1:
        rows = [np.unique((code[:, row] // len(kinds))[seen[:, row]]) for row in range(len(order))]
        if max(len(row) for row in rows) == 1:
            positions = np.array([values[row[0]] if len(row) else float(index) for index, row in enumerate(rows)])
            if text_times is not None and (np.abs(text_times - positions) > SAME).any():
                positions = None
    return Partition(order, tuple(kinds.tables), blocks, positions)


class _Halves:
    """code [P, T, T]: (time, kind) of each pair as one number, or -1. values: the times. text_times [P, T]: those that text is seen
    from, NaN where a pass does not compute the frame."""

    def __init__(self, code: np.ndarray, values: np.ndarray, kinds: _Kinds, text_times: np.ndarray | None) -> None:
        self.code, self.values, self.kinds, self.text_times = code, values, kinds, text_times
        differs = (code[:, 1:] >= 0) != (code[:, :-1] >= 0)
        self.changes = differs.sum(axis=0)  # [T - 1, T]: by key frame, in how many passes the next frame sees it otherwise

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
        rows: list[np.ndarray] = []
        parts = []

        def row_with(times: np.ndarray) -> int:
            """The row that has `times` [f] where they are not NaN."""
            fits = (index for index, row in enumerate(rows) if not (np.abs(row - times) > SAME / 2).any())
            index = next(fits, len(rows))
            rows[index : index + 1] = [np.where(np.isnan(times), rows[index], times) if index < len(rows) else times]
            return index

        for queries, keys, codes, members in self.parts(first, last, ~np.zeros(self.code.shape[2], dtype=bool)):
            times = np.full(last - first, np.nan)
            times[queries[0] - first : queries[1] - first] = self.values[codes // len(self.kinds)]
            parts.append(self.kinds.part(queries, keys, row_with(times), int(codes[0]) % len(self.kinds), members))
        if self.text_times is not None:
            text_times = self.text_times[:, first:last]
            _, first_of, codes = np.unique(text_times.round(7), return_index=True, return_inverse=True)
            values = text_times.flat[first_of]
            for row, members in _merged(np.where(np.isnan(text_times), -1, codes.reshape(text_times.shape))):
                index = row_with(np.where(row < 0, np.nan, values[row]))
                parts.append(Part((first, last), np.zeros(0, dtype=np.int64), index, 0, members, text=True))
        return Block((first, last), np.nan_to_num(np.array(rows).reshape(-1, last - first)), tuple(parts))

    def parts(self, first: int, last: int, keys: np.ndarray) -> Iterator[tuple[Range, np.ndarray, np.ndarray, np.ndarray]]:
        """Query frames, key frames, codes [f] and members [P, f] of all parts of frames first .. last - 1 over `keys` [T] bool."""
        alike: dict[bytes, list[int]] = {}
        rows = np.ascontiguousarray(self.code[:, first:last].transpose(2, 0, 1))
        for j in np.flatnonzero(keys & (rows >= 0).any(axis=(1, 2))):
            alike.setdefault(rows[j].tobytes(), []).append(int(j))
        rest = np.zeros_like(keys)
        for same in alike.values():
            merged = _merged(rows[same[0]])
            if last - first > 1 and not _all_needed(rows[same[0]], [row for row, _ in merged], len(self.kinds)):
                rest[same] = True
                continue
            yield from (((first, last), np.array(same), row, members) for row, members in merged)
        if rest.any():
            cut = self.cut(first, last, rest)
            yield from self.parts(first, cut, rest)
            yield from self.parts(cut, last, rest)


def _merged(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows [f] that between them have all of `rows` [P, f], where -1 fits anything, and which passes have them, [P, f]."""
    merged: list[tuple[np.ndarray, np.ndarray]] = []
    for index in np.flatnonzero((rows >= 0).any(axis=1)):
        pass_row = rows[index]
        for place, (row, members) in enumerate(merged):
            if ((row == pass_row) | (row < 0) | (pass_row < 0)).all():
                members[index] = pass_row >= 0
                merged[place] = np.maximum(row, pass_row), members
                break
        else:
            members = np.zeros(rows.shape, dtype=bool)
            members[index] = pass_row >= 0
            merged.append((pass_row, members))
    return merged


def _all_needed(rows: np.ndarray, merged: list[np.ndarray], kinds: int) -> bool:
    """Whether parts `merged` of `rows` [P, f] are of one kind each and compute for every frame what it needs and no more."""
    needed = {len(np.unique(frame[frame >= 0])) for frame in rows.T}
    return needed == {len(merged)} and all((row >= 0).all() and len(np.unique(row % kinds)) == 1 for row in merged)
