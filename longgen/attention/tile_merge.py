"""Computes the passes of a frame plan by tiles and merges them by log-sum-exp, in few launches: `lse_merge` for accelerators.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, X blocks at once, F query frames of a
block, R its query rows, A rows of its tiles, E entries and V rows of a query frame, K key frames chosen at run time, G groups of S
passes, H heads, D head dim.

The formulas are those of `longgen.attention.lse_merge`. Which rows of which tiles are merged for a query frame is a table, so the
log-sum-exp of all passes is one softmax over the E entries of each query frame, and each tile's output is added once. Samples
count as heads ([N, B H, D]) where a call has several blocks, as views; else they take the place of blocks. Tables are on the
device, and key frames chosen at run time are read there: the host waits for nothing.

A chosen key frame is attended to from all query rows of a block, its log-sum-exp being -inf in the passes that see it anyway or at
another time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from longgen.attention.context import LayerInputs
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.sequential import windows_of
from longgen.attention.streaming import samples_as_heads
from longgen.attention.tiling import TileBlocks, Tiling
from longgen.device_tables import on_device
from longgen.frameplan import FramePlan

ROTATED = 0.5  # times T query rows that are rotated at a time, at most, where several blocks are
SHARES = 0.25  # times T frames of numbers in single precision: the shares of passes at a time, at most, where several are


@dataclass(frozen=True)
class _KeysValues:
    """keys: for each table, values, text: keys and values, or None: [1, N or L, B H, D], or [B, N or L, H, D] where samples do not
    count as heads. chosen: of each sample, the key frames [K] chosen at run time; selected: their keys and values [K, n, B H, D].
    """

    keys: list[Tensor]
    values: Tensor
    text: list[Tensor] | None
    chosen: list[Tensor]
    selected: list[Tensor]


@dataclass
class TileMerge:
    """Computes the passes of `plan` on one layer's q, k, v by `tiling`; `kernel` computes a tile."""

    plan: FramePlan
    tiling: Tiling
    kernel: AttentionWithLSE

    def mean(self, inputs: LayerInputs) -> Tensor:
        """The weighted mean [B, N, H, D] of the plan's passes."""
        total = torch.zeros_like(inputs.v, memory_format=torch.contiguous_format)
        by_frame = total.unflatten(1, (self.plan.frames_lat, -1))
        for blocks, outputs in self._outputs(inputs):
            _put(by_frame, blocks.queries, outputs[0])
            del outputs  # before the next block's
        return total

    def groups(self, count: int, inputs: LayerInputs) -> Iterator[tuple[int, Tensor]]:
        """The sum of each of `count` equal groups of passes, [B, F n, H, D] over its F weighted frames, as they are completed."""
        frames_lat, v = self.plan.frames_lat, inputs.v
        weights = np.stack([pass_.weight for pass_ in self.plan.passes]).reshape(count, -1, frames_lat)
        computed: np.ndarray = np.any(weights > 0, axis=1)
        missing, sums = computed.sum(axis=1), dict[int, Tensor]()
        for blocks, outputs in self._outputs(inputs):
            for group in range(*blocks.groups):
                rows = np.flatnonzero(computed[group, blocks.queries])
                if not len(rows):
                    continue
                if group not in sums:
                    sums[group] = v.new_empty(len(v), int(missing[group]), v.shape[1] // frames_lat, *v.shape[2:])
                places = np.searchsorted(np.flatnonzero(computed[group]), blocks.queries[rows])
                _put(sums[group], places, outputs[group - blocks.groups[0]][:, _index(rows, v.device)])
                missing[group] -= len(rows)
            del outputs
            for group in [group for group in sums if not missing[group]]:
                yield group, sums.pop(group).flatten(1, 2)

    def _outputs(self, inputs: LayerInputs) -> Iterator[tuple[TileBlocks, Tensor]]:
        """Blocks, and the outputs [G, B, X F, n, H, D] of their groups, in single precision or better."""
        keys_values, shape = self._keys_values(inputs), inputs.v.shape[::2]
        for blocks, q in self._queries(inputs):
            if self._folds:
                yield blocks, self._sums(blocks, q, keys_values).flatten(1, 2).unflatten(3, shape).movedim(3, 1)
            else:
                yield blocks, self._sums(blocks, q, keys_values)

    @cached_property
    def _folds(self) -> bool:
        """Whether samples count as heads, which copies them; else no blocks are at once, and samples take their place."""
        return self.plan.key_frames is not None or any(blocks.count > 1 for blocks in self.tiling.blocks)

    def _folded(self, x: Tensor) -> Tensor:
        """x [B, N, H, D] as calls take it: [1, N, B H, D] or itself."""
        return samples_as_heads(x)[None] if self._folds else x

    def _in_order(self, x: Tensor) -> Tensor:
        """x [B, N, H, D] with its frames in the order of the keys; x itself where that is theirs."""
        at = _index(self.tiling.order, x.device)
        return x if isinstance(at, slice) else x.unflatten(1, (len(at), -1))[:, at].flatten(1, 2)

    def _native(self) -> bool:
        """Whether all is at the backbone's own times."""
        times, frames = (self.tiling.positions, self.tiling.order, *self.tiling.tables), np.arange(self.plan.frames_lat)
        return all(x is not None and np.array_equal(x, frames) for x in times)

    def _keys_values(self, inputs: LayerInputs) -> _KeysValues:
        ctx, scale, tables = inputs.ctx, self.plan.frequency_scale, self.tiling.tables
        k, v = self._in_order(inputs.k), self._folded(self._in_order(inputs.v))
        keys = [self._folded(ctx.rotate(k, None if self._native() else times, scale)) for times in tables]
        text = None if ctx.text is None else [self._folded(x) for x in ctx.text]
        if self.plan.key_frames is None:
            return _KeysValues(keys, v, text, [], [])
        frames_lat, batch, selected = self.plan.frames_lat, len(inputs.v), []
        chosen = [self.plan.key_frames.choose(sample) for sample in ctx.features.unflatten(1, (frames_lat, -1))]
        places = on_device(np.argsort(self.tiling.order), v.device)
        for x in (keys[0], v):
            samples = x[0].unflatten(0, (frames_lat, -1)).unflatten(2, (batch, -1)).unbind(2)
            of_frames = [sample.index_select(0, places[frames]) for sample, frames in zip(samples, chosen, strict=True)]
            selected.append(torch.stack(of_frames, dim=2).flatten(2, 3))
        return _KeysValues(keys, v, text, chosen, selected)

    def _queries(self, inputs: LayerInputs) -> Iterator[tuple[TileBlocks, Tensor]]:
        """Blocks and their query rows [X, R, n, B H, D], or [B, R, n, H, D], rotated and scaled."""
        ctx, scale, positions, blocks = inputs.ctx, self.plan.frequency_scale, self.tiling.positions, self.tiling.blocks
        if positions is None:
            q = ctx.rotate(inputs.q, np.zeros(self.plan.frames_lat), None)  # in space; time is added below
        else:
            q = ctx.rotate(inputs.q, None if self._native() else positions, scale)
        q, start = q.unflatten(1, (self.plan.frames_lat, -1)), 0
        while start < len(blocks):
            stop, count = start, 0
            while stop < len(blocks) and (not count or count + len(blocks[stop].frames) <= ROTATED * self.plan.frames_lat):
                count, stop = count + len(blocks[stop].frames), stop + 1
            frames, times, factors = (
                np.concatenate([getattr(same, name) for same in blocks[start:stop]]) for name in ("frames", "times", "factors")
            )
            rows = q[:, _index(frames, q.device)]
            if positions is None:
                ctx.rotate_time(rows.flatten(1, 2), rows.flatten(1, 2), np.arange(len(frames)), times, scale)
            factors = factors * self.plan.logit_scale
            if not (factors == 1).all():
                rows = rows * on_device(factors, q.device, q.dtype)[:, None, None, None]
            rows = self._folded(rows.flatten(1, 2)).unflatten(1, (len(frames), -1))
            for same in blocks[start:stop]:
                row, rows = rows[:, : len(same.frames)], rows[:, len(same.frames) :]
                yield same, row[0].unflatten(0, (same.count, -1)) if self._folds else row
            start = stop

    def _sums(self, blocks: TileBlocks, q: Tensor, keys_values: _KeysValues) -> Tensor:
        """The outputs [G, X, F, n, B H, D] of the groups, from query rows q [X, R, n, B H, D]; or with B, H for X, B H."""
        count, rows, tokens, heads, dim = q.shape
        outputs, lse = list[Tensor](), list[Tensor]()
        for tile in blocks.tiles:
            start, length = tile.keys[0] * tokens, (tile.keys[1] - tile.keys[0]) * tokens
            if tile.text:
                assert keys_values.text is not None
                kv = [x.expand(count, -1, -1, -1) for x in keys_values.text]
            elif blocks.count > 1:
                tensors = keys_values.keys[tile.table][0], keys_values.values[0]
                kv = [windows_of(x, start, length, count, blocks.step * tokens) for x in tensors]
            else:
                kv = [x[:, start : start + length] for x in (keys_values.keys[tile.table], keys_values.values)]
            output, tile_lse = self.kernel(q[:, slice(*tile.rows)].flatten(1, 2), *kv)
            outputs.append(output.unflatten(1, (-1, tokens)))
            lse.append(tile_lse)
        if keys_values.chosen:
            chosen_q = q.flatten(0, 2).expand(len(keys_values.selected[0]), -1, -1, -1)
            output, chosen_lse = self.kernel(chosen_q, *keys_values.selected)  # [K, X R n, B H, D], [K, B H, X R n]
            outputs += output.unflatten(1, q.shape[:3]).unbind()
            lse.append(chosen_lse.unflatten(2, (count, -1)).permute(2, 1, 0, 3).flatten(2))
        shares = self._shares(blocks, torch.cat(lse, dim=2).unflatten(2, (-1, tokens)), keys_values.chosen, dim)
        once = np.array_equal(blocks.frames, blocks.queries)  # each frame has one row; else there is a row of zeros
        sums = shares.new_zeros(len(shares), count, rows + (not once), tokens, heads, dim)
        spans = [(tile.groups, tile.rows) for tile in blocks.tiles] + [((0, len(shares)), (0, rows))] * len(keys_values.chosen)
        start = 0
        for index, output in enumerate(outputs):
            tile_groups, tile_rows = spans[min(index, len(spans) - 1)]
            stop = start + tile_rows[1] - tile_rows[0]
            share = shares[slice(*tile_groups), :, :, start:stop].permute(0, 1, 3, 4, 2)[..., None]
            sums[slice(*tile_groups), :, slice(*tile_rows)].addcmul_(output, share)
            start = stop
        if once:
            return sums
        versions = blocks.merge.versions
        return sums.index_select(2, on_device(versions.ravel(), q.device)).unflatten(2, versions.shape).sum(dim=3)

    def _shares(self, blocks: TileBlocks, lse: Tensor, chosen: list[Tensor], dim: int) -> Tensor:
        """The share [G, X, B H, A, n] of each row of the tiles in its frame's outputs; lse [X, B H, A, n]."""
        merge, device, batch = blocks.merge, lse.device, max(1, len(chosen))
        entries, places = on_device(merge.entries, device), on_device(merge.shares, device)
        masks, weights = (on_device(table, device, lse.dtype) for table in (merge.masks, merge.weights))
        masks = masks[:, :, :, None]  # [G, S, X, B or 1, F, E]
        if merge.hidden is not None:
            hidden = on_device(merge.hidden, device, lse.dtype)
            by_sample = torch.stack([hidden.index_select(5, frames).flatten(4) for frames in chosen], dim=3)
            masks = torch.cat([masks.expand(-1, -1, -1, batch, -1, -1), by_sample], dim=5)
        most = SHARES * self.plan.frames_lat * lse.shape[1] * lse.shape[3] * dim
        lse = lse.index_select(2, entries.flatten()).unflatten(2, entries.shape).unflatten(1, (batch, -1))  # [X, B, H, F, E, n]
        at_once = max(1, int(most // (len(masks) * lse.numel())))
        shares: Tensor | None = None
        for part, weight in zip(masks.split(at_once, dim=1), weights.split(at_once, dim=1), strict=True):
            softmax = (lse + part[:, :, :, :, None, :, :, None]).softmax(dim=6)  # [G, S, X, B, H, F, E, n]
            weighted = softmax.mul_(weight[:, :, :, None, None, :, None, None])
            weighted = weighted.sum(dim=1) if weighted.shape[1] > 1 else weighted.squeeze(1)
            shares = weighted if shares is None else shares.add_(weighted)
        assert shares is not None
        return shares.flatten(2, 3).flatten(3, 4).index_select(3, places)


def _index(frames: np.ndarray, device: torch.device) -> slice | Tensor:
    """`frames` as a slice where they are neighbours."""
    return slice(int(frames[0]), int(frames[-1]) + 1) if (np.diff(frames) == 1).all() else on_device(frames, device)


def _put(x: Tensor, frames: np.ndarray, values: Tensor) -> None:
    """In place, the `frames` of x [B, T, ...] become `values` [B, f, ...], rounded to its type."""
    at = _index(frames, x.device)
    x[:, at] = values if isinstance(at, slice) else values.to(x.dtype)
