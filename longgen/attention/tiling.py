"""Covers the passes of a frame plan with few, large attention calls, for devices on which a call costs more than its arithmetic.

Legend: T latent frames, P passes, i query frame, j key frame, R query rows of a block, C key columns, F query frames of a block,
G groups of S passes, A rows of all tiles of a block, E entries and V rows of a query frame, X blocks at once.

As in `longgen.attention.partition`, a pair of frames is computed once for each logit that passes have for it, and passes are merged
by log-sum-exp. What differs is the shape of the calls:

    query row     a query frame i at one time, with one factor on its logits: (i, rel[i, j] + b[j], factor), b the times of the keys
    key column    a key frame, in an order in which frames that are seen alike are neighbours
    code [C, R]   which passes meet the column in this row, and with which addend on the logits; 0 where none does
    tile          neighbouring columns of equal codes, and neighbouring rows that have a code there: one attention call

All rows of a block of neighbouring query frames that meet a column share its call: for LongDiff the block's frames at three times,
for FreeNoise those in several windows. Rows without a code that lie between others are computed in vain where that costs less than
a second call. Blocks are cut by dynamic programming for the least cost, or all of one length, so that those between the clip's ends
are alike and several are computed at once over strided views of the keys; with what is held bounded.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longgen.attention.lowering import Range
from longgen.attention.partition import NEUTRAL, key_tables
from longgen.device_costs import CallCosts
from longgen.frameplan import Pass, distances

STRIDES = 32  # most frames between neighbours in the order of the keys
BLOCK = 48  # query frames, at most
EQUAL = 8  # query frames of blocks of one length, at most
HELD = 2.1  # times T frames of partial outputs that a block may hold, while it has more than one query frame
BLOCK_CALLS = 3  # what merging blocks costs, in calls, and that again where key frames are chosen at run time
ENTRIES = 5e7  # of the table of codes: plans with more rows are left to `longgen.attention.partition`


@dataclass(frozen=True, eq=False)
class Tile:
    """Query rows `rows` of a block attend to the key columns `keys` of one table, both half-open, or to the text.

    groups: those that the tile's rows take part in, and any between them.
    """

    rows: Range
    keys: Range
    table: int
    text: bool
    groups: Range


@dataclass(frozen=True, eq=False)
class Merge:
    """How the rows of a block's tiles, one tile after the other, become its outputs.

    entries [F, E]: which of the A rows are merged for a query frame; the first is a blank. masks [G, S, X, F, E]: what is added to
    their log-sum-exp, -inf where a row has no part in the pass. weights [G, S, X, F]. shares [A]: the place of each row among the
    F E entries; 0, a blank, for rows computed in vain. versions [F, V]: the rows of the block that are the frame's; R where it has
    fewer. hidden [G, S, X, F, V, T]: as masks, for each key frame that may be chosen at run time, whose V rows come last.
    """

    entries: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    versions: np.ndarray
    hidden: np.ndarray | None


@dataclass(frozen=True, eq=False)
class TileBlocks:
    """X blocks that are computed at once: their tiles are equal, but for keys that are `step` columns later in each.

    queries [X F]: the query frames of all blocks. frames, times, factors [X R]: of each row. groups: those that compute any of the
    frames (half-open), to which the tiles' and `merge` refer.
    """

    count: int
    step: int
    queries: np.ndarray
    frames: np.ndarray
    times: np.ndarray
    factors: np.ndarray
    tiles: tuple[Tile, ...]
    groups: Range
    merge: Merge


@dataclass(frozen=True, eq=False)
class Tiling:
    """order [T]: of the key columns. tables [T] each: their times, in that order. positions [T]: the times of all queries, where
    each has one and there is one table. cost: in pairs of tokens attended.
    """

    order: np.ndarray
    tables: tuple[np.ndarray, ...]
    blocks: tuple[TileBlocks, ...]
    positions: np.ndarray | None
    cost: float


@lru_cache(maxsize=64)
def tile(
    passes: tuple[Pass, ...], tokens: int, costs: CallCosts, chosen: int = 0, text_tokens: int = 0, groups: int = 1
) -> Tiling | None:
    """The cheapest tiling of `passes`, which have no bands and no factors on positive logits (passes hash by identity); None
    where there are too many query rows.

    tokens: of a frame. chosen: how many key frames that a pass may hide are chosen at run time, for all its query frames.
    text_tokens: those that take part in self-attention. groups: of passes, whose outputs are kept apart.
    """
    assert all(pass_.positive is None for pass_ in passes)
    rel = np.stack([pass_.rel for pass_ in passes])
    computed = np.stack([pass_.weight > 0 for pass_ in passes])
    possible = computed[:, :, None] & np.stack([_logits(pass_)[1] > -np.inf for pass_ in passes])
    visible = possible & np.stack([pass_.visible for pass_ in passes])
    seen = possible if chosen else visible
    frames = np.arange(rel.shape[1])
    tilers = []
    if (rel == distances(len(frames)))[seen].all():  # the backbone's own times, for which it may have its own tables
        tilers.append(_Tiler(passes, frames, [frames.astype(np.float64)], np.zeros(rel.shape, dtype=np.int64), seen))
    else:
        strides = range(1, min(STRIDES, len(frames)) + 1)
        neighbours = [_neighbours(rel, seen, _strided(frames, stride)) for stride in strides]
        best = 1 + int(np.argmax(neighbours))
        for stride in {best} if neighbours[best - 1] > 1.1 * neighbours[0] else sorted({1, best}):
            order = _strided(frames, stride)
            tables, table, _ = key_tables(rel[:, :, order], seen[:, :, order])
            if chosen:  # they are attended to from all rows, whose times are those of one table
                tables, table = tables[:1], np.zeros_like(table)
            tilers.append(_Tiler(passes, order, tables, table[:, :, np.argsort(order)], seen))
    tilings = []
    for tiler in tilers:
        if tiler.entries <= ENTRIES:
            tiler.encode(visible, seen, computed, text_tokens)
            tilings.append(tiler.tiling(tokens, costs, chosen, text_tokens, groups))
    return min(tilings, key=lambda tiling: tiling.cost, default=None)


def _strided(frames: np.ndarray, stride: int) -> np.ndarray:
    """`frames`, one residue modulo `stride` after the other."""
    return np.concatenate([frames[residue::stride] for residue in range(stride)])


def _neighbours(rel: np.ndarray, seen: np.ndarray, order: np.ndarray) -> int:
    """How many pairs have, in `order`, a neighbour that the query frame meets as much later as most; of some query frames."""
    rel, seen = (x[:, :: max(1, len(order) // 8)][:, :, order] for x in (rel, seen))
    steps = np.diff(rel, axis=2)[seen[..., 1:] & seen[..., :-1]]
    return int(np.unique(steps.round(7), return_counts=True)[1].max(initial=0))


class _Tiler:
    """Codes of all query rows and key columns for one order of the keys, and the blocks that cost least.

    Rows ascend by frame: those of frame i are bounds[i] .. bounds[i + 1] - 1. Columns are the key frames of one table after the
    other, and the text.
    """

    def __init__(
        self, passes: tuple[Pass, ...], order: np.ndarray, tables: list[np.ndarray], table: np.ndarray, seen: np.ndarray
    ) -> None:
        self.passes, self.order, self.tables, self.frames_lat = passes, order, tables, len(order)
        self.place = np.argsort(order)
        self.columns = table * self.frames_lat + self.place
        self.rel = np.stack([pass_.rel for pass_ in passes])
        self.times = self.rel + np.concatenate(tables)[self.columns]
        distinct = len(np.unique(self.times[seen].round(7)))
        self.entries = min(distinct * self.frames_lat, int(seen.sum())) * len(tables) * self.frames_lat * len(passes)

    def encode(self, visible: np.ndarray, seen: np.ndarray, computed: np.ndarray, text_tokens: int) -> None:
        p, i, _ = np.nonzero(seen)
        columns, times = self.columns[seen], self.times[seen]
        factors, addends = np.stack([_logits(pass_) for pass_ in self.passes], axis=1)[:, seen]
        if text_tokens:
            text_p, text_i = np.nonzero(computed)
            text_times = (self.rel[:, :, 0] - self.rel[:, :1, 0])[computed]
            p, i = np.concatenate([p, text_p]), np.concatenate([i, text_i])
            columns = np.concatenate([columns, np.full(len(text_p), len(self.tables) * self.frames_lat)])
            times = np.concatenate([times, text_times])
            factors, addends = (
                np.concatenate([x, np.full(len(text_p), y)]) for x, y in zip((factors, addends), NEUTRAL, strict=True)
            )
        time_values, time_codes = _codes(times)
        factor_values, factor_codes = _codes(factors)
        addend_values, addend_codes = _codes(addends)
        unique, rows = np.unique((i * len(time_values) + time_codes) * len(factor_values) + factor_codes, return_inverse=True)
        self.row_frames = unique // (len(time_values) * len(factor_values))
        self.row_times = time_values[unique // len(factor_values) % len(time_values)]
        self.row_factors = factor_values[unique % len(factor_values)]
        self.bounds = np.searchsorted(self.row_frames, np.arange(self.frames_lat + 1))
        self.addends = np.concatenate([[-np.inf], addend_values])
        kinds = np.zeros((len(self.passes), len(self.tables) * self.frames_lat + 1, len(unique)), dtype=np.int64)
        kinds[p, columns, rows] = addend_codes + 1
        shown = np.concatenate([visible[seen], np.ones(len(p) - int(seen.sum()), dtype=bool)])
        self.hidden = kinds.copy()  # [P, C, R]: addends of pairs that only a choice at run time shows
        self.hidden[p[shown], columns[shown], rows[shown]] = 0
        kinds = np.where(self.hidden > 0, 0, kinds)
        code = np.zeros(kinds[0].size + 1, dtype=np.int64)  # one more, so that 0 is the code of none
        for pass_kinds in kinds:
            code = np.unique(code * len(self.addends) + np.append(0, pass_kinds), return_inverse=True)[1]
        first_of = np.unique(code, return_index=True)[1]
        self.codebook = np.stack([self.addends[np.append(0, pass_kinds)[first_of]] for pass_kinds in kinds], axis=1)
        self.codes = np.ascontiguousarray(code[1:].reshape(kinds.shape[1:]).astype(np.int32))

    def tiling(self, tokens: int, costs: CallCosts, chosen: int, text_tokens: int, groups: int) -> Tiling:
        self.tokens, self.costs, self.chosen, self.text_tokens, self.groups = tokens, costs, chosen, text_tokens, groups
        self.spans = dict[Range, tuple[np.ndarray, list[tuple[Range, Range, int, np.ndarray, bool]]]]()
        self.weights = np.stack([pass_.weight for pass_ in self.passes]).reshape(groups, -1, self.frames_lat)
        ways = [self._at_once(self._cheapest_cuts(0, self.frames_lat))]
        for length in range(1, EQUAL + 1):
            equal = [(first, min(first + length, self.frames_lat)) for first in range(0, self.frames_lat, length)]
            if length == 1 or max(map(self._held, equal)) <= HELD * self.frames_lat:
                several = {block for same in self._at_once(equal) if len(same) > 1 for block in same}
                recut = list[Range]()
                for alike, run in itertools.groupby(equal, key=several.__contains__):
                    queries = list(run)
                    recut += queries if alike else self._cheapest_cuts(queries[0][0], queries[-1][1])
                ways.append(self._at_once(recut))
        totals = [sum(self._cost(same[0], len(same)) for same in way) for way in ways]
        least = int(np.argmin(totals))
        positions = None
        if len(self.tables) == 1 and len(self.row_frames) == len(set(self.row_frames.tolist())):
            positions = np.arange(self.frames_lat, dtype=np.float64)
            positions[self.row_frames] = self.row_times
        rotated = len(self.tables) * self.frames_lat + len(self.row_frames)
        blocks = tuple(self._blocks(same) for same in ways[least])
        return Tiling(self.order, tuple(self.tables), blocks, positions, totals[least] + costs.rotate * rotated * tokens)

    def _cheapest_cuts(self, start: int, stop: int) -> list[Range]:
        """The blocks of query frames start .. stop - 1 that cost least, each computed by itself."""
        best, cuts = {start: 0.0}, dict[int, int]()
        for first in range(start, stop):
            for last in range(first + 1, min(first + BLOCK, stop) + 1):
                if last - first > 1 and self._held((first, last)) > HELD * self.frames_lat:
                    break
                cost = best[first] + self._cost((first, last))
                if cost < best.get(last, math.inf):
                    best[last], cuts[last] = cost, first
        queries, last = list[Range](), stop
        while last > start:
            queries.insert(0, (cuts[last], last))
            last = cuts[last]
        return queries

    def _at_once(self, queries: list[Range]) -> list[list[Range]]:
        """The blocks that are computed at once: alike, their keys equally far apart, and no more than may be held."""
        alike: dict[object, list[Range]] = {}
        for block in queries:
            if self.bounds[block[0]] < self.bounds[block[1]]:
                alike.setdefault(self._shape(block), []).append(block)
        at_once = []
        for blocks in alike.values():
            starts = [self._start(block) for block in blocks]
            first = 0
            while first < len(blocks):
                last = first + 1
                while last < len(blocks) and starts[last] - starts[last - 1] == starts[first + 1] - starts[first] >= 0:
                    if self.groups > 1 or self._held(*blocks[first : last + 1]) > HELD * self.frames_lat:
                        break
                    last += 1
                at_once.append(blocks[first:last])
                first = last
        return sorted(at_once)

    def _start(self, block: Range) -> int:
        """The first key column of the first tile that is not the text's."""
        return next((tile[1][0] for tile in self._tiles(*block)[1] if not tile[4]), 0)

    def _shape(self, block: Range) -> object:
        """Equal for blocks that can be computed at once."""
        order, tiles = self._tiles(*block)
        start = self._start(block)
        frames = self.row_frames[order + self.bounds[block[0]]] - block[0]
        return block[1] - block[0], frames.tobytes(), tuple(
            (rows, (-1, -1) if text else (keys[0] - start, keys[1] - start), table, (codes > 0).tobytes(), text)
            for rows, keys, table, codes, text in tiles
        )  # fmt: skip

    def _held(self, *blocks: Range) -> int:
        """Frames of partial outputs that blocks alike hold, and of sums in single precision where several groups have one each."""
        first, last = blocks[0]
        rows = self.chosen * int(self.bounds[last] - self.bounds[first])
        rows += sum(stop - start for (start, stop), *_ in self._tiles(first, last)[1])
        groups = int((self.weights[:, :, first:last] > 0).any(axis=(1, 2)).sum())
        return len(blocks) * (rows + 2 * (groups - 1) * (last - first))

    def _cost(self, block: Range, count: int = 1) -> float:
        """What `count` blocks like `block` cost together."""
        tiles = self._tiles(*block)[1]
        rows = [stop - start for (start, stop), *_ in tiles]
        keys = [self.text_tokens if text else (stop - start) * self.tokens for _, (start, stop), _, _, text in tiles]
        chosen = self.chosen * int(self.bounds[block[1]] - self.bounds[block[0]])
        pairs = sum(a * b for a, b in zip(rows, keys, strict=True)) + chosen * self.tokens
        calls = self.costs.call * (len(tiles) + BLOCK_CALLS * (1 + (chosen > 0)))
        return calls + count * self.tokens * (pairs + self.costs.merge * (sum(rows) + chosen))

    def _blocks(self, blocks: list[Range]) -> TileBlocks:
        spans = [self._tiles(*block) for block in blocks]
        frames_of = np.concatenate([np.arange(*block) for block in blocks])
        rows_of = np.stack([order + self.bounds[first] for (order, _), (first, _) in zip(spans, blocks, strict=True)])  # [X, R]
        computing = np.flatnonzero((self.weights[:, :, frames_of] > 0).any(axis=(1, 2)))
        groups = int(computing[0]), int(computing[-1]) + 1
        weights = self.weights[slice(*groups)][:, :, frames_of]
        weights = weights.reshape(*weights.shape[:2], len(blocks), -1)
        addends = self.codebook.reshape(len(self.codebook), self.groups, -1)[:, slice(*groups)]  # [codes, G, S]
        frames, count = self.row_frames[rows_of[0]] - blocks[0][0], rows_of.shape[1]
        length = blocks[0][1] - blocks[0][0]
        entries: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(length)]  # row and its codes [X]
        tiles, start = [], 0
        for same in zip(*(tiles for _, tiles in spans), strict=True):
            rows, keys, table, _, text = same[0]
            codes = np.stack([tile[3] for tile in same])  # [X, rows]
            member = np.flatnonzero((addends[codes] > -np.inf).any(axis=(0, 1, 3)))
            tiles.append(Tile(rows, keys, table, text, (int(member[0]), int(member[-1]) + 1)))
            for index, row in enumerate(range(*rows)):
                if codes[0, index]:
                    entries[frames[row]].append((start + index, codes[:, index]))
            start += rows[1] - rows[0]
        versions = [np.flatnonzero(frames == frame) for frame in range(length)]
        most = max(map(len, versions))
        versions_FV = np.array([np.pad(version, (0, most - len(version)), constant_values=count) for version in versions])
        static = 1 + max(map(len, entries))
        entries_FE = np.zeros((length, static + self.chosen * most), dtype=np.int64)
        codes_XFE = np.zeros((len(blocks), length, static), dtype=np.int64)
        shares = np.zeros(start + self.chosen * count, dtype=np.int64)
        for frame, (pairs, version) in enumerate(zip(entries, versions, strict=True)):
            for entry, (row, row_codes) in enumerate(pairs, start=1):
                entries_FE[frame, entry], codes_XFE[:, frame, entry] = row, row_codes
                shares[row] = frame * entries_FE.shape[1] + entry
            for index, row in enumerate(version.tolist()):
                for key in range(self.chosen):
                    entry, place = static + index * self.chosen + key, start + key * count + row
                    entries_FE[frame, entry], shares[place] = place, frame * entries_FE.shape[1] + entry
        masks = np.moveaxis(addends[codes_XFE], (3, 4), (0, 1))  # [G, S, X, F, E]
        if not self.chosen:
            weights = np.where((masks > -np.inf).any(axis=4), weights, 0.0)  # a query that sees nothing
        masks = np.where(weights[..., None] > 0, masks, 0.0)  # any finite numbers, whose weight is 0
        hidden = None
        if self.chosen:
            by_row = self.addends[self.hidden.reshape(*self.weights.shape[:2], *self.hidden.shape[1:])[slice(*groups)]]
            by_row = by_row[:, :, self.place][..., rows_of]  # [G, S, T, X, R]
            by_row = np.concatenate([by_row, np.full((*by_row.shape[:4], 1), -np.inf)], axis=4)
            hidden = np.moveaxis(by_row[..., versions_FV], 2, 5)
        step = self._start(blocks[1]) - self._start(blocks[0]) if len(blocks) > 1 else 0
        rows = rows_of.ravel()
        return TileBlocks(
            len(blocks), step, frames_of, self.row_frames[rows], self.row_times[rows], self.row_factors[rows], tuple(tiles), groups,
            Merge(entries_FE, masks, weights, shares, versions_FV, hidden),
        )  # fmt: skip

    def _tiles(self, first: int, last: int) -> tuple[np.ndarray, list[tuple[Range, Range, int, np.ndarray, bool]]]:
        if (first, last) not in self.spans:
            self.spans[first, last] = self._spans(first, last)
        return self.spans[first, last]

    def _spans(self, first: int, last: int) -> tuple[np.ndarray, list[tuple[Range, Range, int, np.ndarray, bool]]]:
        """The order of the block's rows, and rows, keys, table, codes and whether it is the text of each tile."""
        code = self.codes[:, self.bounds[first] : self.bounds[last]]
        differs = (code[1:] != code[:-1]).any(axis=1)
        differs[self.frames_lat - 1 :: self.frames_lat] = True  # the next table, or the text
        starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
        stops = np.append(starts[1:], len(code))
        some = (code[starts] > 0).any(axis=1)
        starts, stops = starts[some], stops[some]
        codes, order = code[starts], np.arange(code.shape[1])
        if code.shape[1] > last - first:  # several rows of a frame: those that meet the same columns are put side by side
            need = codes > 0
            order = np.argsort((need * (starts + stops)[:, None]).sum(axis=0) / np.maximum(need.sum(axis=0), 1), kind="stable")
            codes = codes[:, order]
        edges = np.diff(np.pad((codes > 0).astype(np.int8), ((0, 0), (1, 1))), axis=1)
        tiles = []
        for start, stop, row_codes, row_edges in zip(starts.tolist(), stops.tolist(), codes, edges, strict=True):
            text = start == len(self.codes) - 1
            gap_cost = self.tokens * (self.text_tokens if text else (stop - start) * self.tokens)
            bounds = np.flatnonzero(row_edges).tolist()
            runs = [[bounds[0], bounds[1]]]
            for begin, end in zip(bounds[2::2], bounds[3::2], strict=True):
                if (begin - runs[-1][1]) * gap_cost <= self.costs.call:
                    runs[-1][1] = end
                else:
                    runs.append([begin, end])
            table, column = divmod(start, self.frames_lat)
            keys = (0, 0) if text else (column, column + stop - start)
            tiles += [((begin, end), keys, 0 if text else table, row_codes[begin:end], text) for begin, end in runs]
        return order, tiles


def _logits(pass_: Pass) -> np.ndarray:
    """[2, T, T], the factor on every pair's logits and the addend to them."""
    return np.stack([np.full(pass_.rel.shape, value) for value in NEUTRAL]) if pass_.logits is None else pass_.logits


def _codes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct `values`, and the index of each."""
    _, first_of, codes = np.unique(values.round(7), return_index=True, return_inverse=True)
    return values[first_of], codes
