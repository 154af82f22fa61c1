"""Covers the passes of a frame plan with few, large attention calls, for devices on which a call costs more than its arithmetic.

Legend: T latent frames, P passes, i query frame, j key frame, R query rows of a block, C key columns, F query frames of a block,
G groups of S passes, A rows of all tiles of a block, E entries of a query frame, V rows of a query frame.

As in `longgen.attention.partition`, a pair of frames is computed once for each logit that passes have for it, and passes are merged
by log-sum-exp. What differs is the shape of the calls:

    query row     a query frame i at one time, with one factor on its logits: (i, rel[i, j] + b[j], factor), b the times of the keys
    key column    a key frame, in an order in which frames that are seen alike are neighbours
    code [C, R]   which passes meet the column in this row, and with which addend on the logits; 0 where none does
    tile          neighbouring columns of equal codes, and neighbouring rows that have a code there: one attention call

All rows of a block of neighbouring query frames that meet a column share its call: for LongDiff the block's frames at three times,
for FreeNoise those in several windows. Rows without a code that lie between others are computed in vain where that costs less than
a second call. Blocks are cut by dynamic programming for the least cost, with what a block holds bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longgen.attention.device_costs import CallCosts
from longgen.attention.lowering import SAME, Range
from longgen.attention.partition import NEUTRAL, key_tables
from longgen.frameplan import Pass, distances

STRIDES = 32  # most frames between neighbours in the order of the keys
BLOCK = 48  # query frames, at most
HELD = 2.0  # times T frames of partial outputs that a block may hold, while it has more than one query frame
BLOCK_CALLS = 3  # what merging a block costs, in calls
ENTRIES = 5e7  # of the table of codes: plans with more rows are left to `longgen.attention.partition`


@dataclass(frozen=True, eq=False)
class Tile:
    """Query rows `rows` of the block attend to the key columns `keys` of one table, both half-open, or to the text.

    codes: of each row; 0 where it is computed in vain. groups: those that the tile's rows take part in, and any between them.
    """

    rows: Range
    keys: Range
    table: int
    codes: np.ndarray
    text: bool
    groups: Range


@dataclass(frozen=True, eq=False)
class Merge:
    """How the rows of a block's tiles, one tile after the other, become its outputs.

    entries [F, E]: which of the A rows are merged for a query frame; the first is a blank. masks [G, S, F, E]: what is added to their
    log-sum-exp, -inf where a row has no part in the pass. weights [G, S, F]. shares [A]: the place of each row among the F E entries;
    0, a blank, for rows computed in vain. versions [F, V]: the rows of the block that are the frame's; R where it has fewer.
    hidden [G, S, F, V, T]: as masks, for each key frame that may be chosen at run time, whose rows come last: V for each.
    """

    entries: np.ndarray
    masks: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    versions: np.ndarray
    hidden: np.ndarray | None


@dataclass(frozen=True, eq=False)
class TileBlock:
    """Query frames `queries` (half-open) and all their tiles. frames, times, factors [R]: of each row.

    groups: those that compute any of the frames (half-open), to which the tiles' and `merge` refer.
    """

    queries: Range
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
    blocks: tuple[TileBlock, ...]
    positions: np.ndarray | None
    cost: float


@lru_cache(maxsize=64)
def tile(
    passes: tuple[Pass, ...], tokens: int, costs: CallCosts, chosen: int = 0, text_tokens: int = 0, groups: int = 1
) -> Tiling | None:
    """The cheapest tiling of `passes`, which have no bands (passes hash by identity); None where there are too many query rows.

    tokens: of a frame. chosen: how many key frames that a pass may hide are chosen at run time, for all its query frames.
    text_tokens: those that take part in self-attention. groups: of passes, whose outputs are kept apart.
    """
    rel = np.stack([pass_.rel for pass_ in passes])
    computed = np.stack([pass_.weight > 0 for pass_ in passes])
    visible = np.stack([pass_.visible for pass_ in passes]) & computed[:, :, None]
    seen = np.broadcast_to(computed[:, :, None], visible.shape) if chosen else visible
    frames = np.arange(rel.shape[1])
    tilers = []
    if (rel == distances(len(frames)))[seen].all():  # the backbone's own times, for which it may have its own tables
        tilers.append(_Tiler(passes, frames, [frames.astype(np.float64)], np.zeros(rel.shape, dtype=np.int64), seen))
    else:
        strides = range(1, min(STRIDES, len(frames)) + 1)
        neighbours = [_neighbours(rel, seen, _strided(frames, stride)) for stride in strides]
        for stride in sorted({1, 1 + int(np.argmax(neighbours))}):
            order = _strided(frames, stride)
            tables, table, _ = key_tables(rel[:, :, order], seen[:, :, order])
            if len(tables) == 1 or not chosen:
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
        p, i, j = np.nonzero(seen)
        columns, times = self.columns[seen], self.times[seen]
        factors, addends = np.stack([_logits(pass_) for pass_ in self.passes], axis=1)[:, seen]
        if text_tokens:
            text_p, text_i = np.nonzero(computed)
            text_times = (self.rel[:, :, 0] - self.rel[:, :1, 0])[computed]
            p, i = np.concatenate([p, text_p]), np.concatenate([i, text_i])
            columns = np.concatenate([columns, np.full(len(text_p), len(self.tables) * self.frames_lat)])
            times = np.concatenate([times, text_times])
            factors, addends = (np.concatenate([x, np.full(len(text_p), y)]) for x, y in zip((factors, addends), NEUTRAL, strict=True))
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
        self.weights = np.stack([pass_.weight for pass_ in self.passes]).reshape(groups, -1, self.frames_lat)
        best, cuts = [0.0] + [np.inf] * self.frames_lat, [0] * (self.frames_lat + 1)
        for first in range(self.frames_lat):
            for last in range(first + 1, min(first + BLOCK, self.frames_lat) + 1):
                cost, held = self._cost(first, last)
                if last - first > 1 and held > HELD * self.frames_lat:
                    break
                if best[first] + cost < best[last]:
                    best[last], cuts[last] = best[first] + cost, first
        blocks, last = list[TileBlock](), self.frames_lat
        while last:
            blocks.insert(0, self._block(cuts[last], last))
            last = cuts[last]
        positions = None
        if len(self.tables) == 1 and len(self.row_frames) == len(set(self.row_frames.tolist())):
            positions = np.arange(self.frames_lat, dtype=np.float64)
            positions[self.row_frames] = self.row_times
        rotated = len(self.tables) * self.frames_lat + len(self.row_frames)
        cost = best[-1] + costs.rotate * rotated * tokens
        return Tiling(self.order, tuple(self.tables), tuple(block for block in blocks if len(block.frames)), positions, cost)

    def _cost(self, first: int, last: int) -> tuple[float, int]:
        """What a block costs, and how many frames of partial outputs it holds, sums of several groups included."""
        tiles = self._tiles(first, last)[1]
        rows = [stop - start for (start, stop), *_ in tiles]
        keys = [self.text_tokens if text else (stop - start) * self.tokens for _, (start, stop), _, _, text in tiles]
        chosen = self.chosen * int(self.bounds[last] - self.bounds[first])
        groups = int((self.weights[:, :, first:last] > 0).any(axis=(1, 2)).sum())
        pairs = sum(a * b for a, b in zip(rows, keys, strict=True)) + chosen * self.tokens
        held = sum(rows) + chosen
        calls = self.costs.call * (len(tiles) + (chosen > 0) + BLOCK_CALLS)
        return pairs * self.tokens + calls + self.costs.merge * held * self.tokens, held + 2 * (groups - 1) * (last - first)

    def _block(self, first: int, last: int) -> TileBlock:
        order, spans = self._tiles(first, last)
        computing = np.flatnonzero((self.weights[:, :, first:last] > 0).any(axis=(1, 2)))
        groups = (int(computing[0]), int(computing[-1]) + 1) if len(computing) else (0, 0)
        rows = order + self.bounds[first]
        frames = self.row_frames[rows]
        addends = self.codebook.reshape(len(self.codebook), self.groups, -1)[:, slice(*groups)]  # [codes, G, S]
        entries: list[list[tuple[int, int]]] = [[] for _ in range(first, last)]
        tiles, count = [], 0
        for rows_of, keys, table, codes, text in spans:
            member = np.flatnonzero((addends[codes] > -np.inf).any(axis=(0, 2)))
            tiles.append(Tile(rows_of, keys, table, codes, text, (int(member[0]), int(member[-1]) + 1)))
            for row, code in zip(range(*rows_of), codes.tolist(), strict=True):
                if code:
                    entries[frames[row] - first].append((count + row - rows_of[0], code))
            count += rows_of[1] - rows_of[0]
        versions = [np.flatnonzero(frames == frame) for frame in range(first, last)]
        most = max(map(len, versions))
        versions_FV = np.array([np.pad(version, (0, most - len(version)), constant_values=len(rows)) for version in versions])
        static = 1 + max(map(len, entries))
        entries_FE = np.zeros((last - first, static + self.chosen * most), dtype=np.int64)
        codes_FE = np.zeros((last - first, static), dtype=np.int64)
        shares = np.zeros(count + self.chosen * len(rows), dtype=np.int64)
        for frame, (pairs, version) in enumerate(zip(entries, versions, strict=True)):
            for entry, (row, code) in enumerate(pairs, start=1):
                entries_FE[frame, entry], codes_FE[frame, entry] = row, code
                shares[row] = frame * entries_FE.shape[1] + entry
            for index, row in enumerate(version.tolist()):
                for key in range(self.chosen):
                    entry, place = static + index * self.chosen + key, count + key * len(rows) + row
                    entries_FE[frame, entry], shares[place] = place, frame * entries_FE.shape[1] + entry
        weights = self.weights[slice(*groups), :, first:last]
        masks = np.moveaxis(addends[codes_FE], (0, 1), (2, 3))  # [G, S, F, E]
        masks = np.where(weights[..., None] > 0, masks, 0.0)  # any finite numbers, whose weight is 0
        hidden = None
        if self.chosen:
            by_row = self.addends[self.hidden.reshape(*self.weights.shape[:2], *self.hidden.shape[1:])[slice(*groups)]]
            by_row = by_row[:, :, self.place][..., rows]  # [G, S, T, R]
            by_row = np.concatenate([by_row, np.full((*by_row.shape[:3], 1), -np.inf)], axis=3)
            hidden = np.moveaxis(by_row[..., versions_FV], 2, 4)
        return TileBlock((first, last), frames, self.row_times[rows], self.row_factors[rows], tuple(tiles), groups,
                         Merge(entries_FE, masks, weights, shares, versions_FV, hidden))  # fmt: skip

    def _tiles(self, first: int, last: int) -> tuple[np.ndarray, list[tuple[Range, Range, int, np.ndarray, bool]]]:
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
