"""Computes the passes of a frame plan by tiles and merges them by log-sum-exp, in few launches: `lse_merge` for accelerators.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, F query frames of a block, R its query rows, A rows of
its tiles, E entries and V rows of a query frame, K key frames chosen at run time, G groups of S passes, H heads, D head dim.

The formulas are those of `longgen.attention.lse_merge`. Which rows of which tiles are merged for a query frame is a table, so the
log-sum-exp of all passes of a block is one softmax over the E entries of each query frame, and each tile's output is added once.
Tables are on the device, and key frames chosen at run time are read there: the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longgen.attention.context import LayerInputs
from longgen.attention.device_tables import on_device
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.tiling import TileBlock, Tiling
from longgen.frameplan import FramePlan

ROTATED = 0.5  # times T query rows that are rotated at a time, at most
SHARES = 0.5  # times the numbers in a block's query rows: shares of passes at a time, at most, while these are several


@dataclass
class TileMerge:
    """Computes the passes of `plan` on one layer's q, k, v by `tiling`; `kernel` computes a tile."""

    plan: FramePlan
    tiling: Tiling
    kernel: AttentionWithLSE

    def mean(self, inputs: LayerInputs, chosen: list[Tensor] | None = None) -> Tensor:
        """The weighted mean [B, N, H, D] of the plan's passes. chosen: of each sample, the key frames [K] chosen at run time."""
        v = inputs.v
        total = torch.zeros_like(v, memory_format=torch.contiguous_format).unflatten(1, (self.plan.frames_lat, -1))
        for block, outputs in self._blocks(inputs, chosen):
            total[:, slice(*block.queries)] = outputs[0]
        return total.flatten(1, 2)

    def groups(self, count: int, inputs: LayerInputs) -> Iterator[tuple[int, Tensor]]:
        """The sum of each of `count` equal groups of passes, [B, F n, H, D] over its F weighted frames, as they are completed."""
        frames_lat, v = self.plan.frames_lat, inputs.v
        computed = np.stack([pass_.weight > 0 for pass_ in self.plan.passes]).reshape(count, -1, frames_lat).any(axis=1)
        sums: dict[int, Tensor] = {}
        for block, outputs in self._blocks(inputs, None):
            first, last = block.queries
            for group in range(*block.groups):
                rows = np.flatnonzero(computed[group, first:last])
                if len(rows) and group not in sums:
                    sums[group] = v.new_empty(len(v), computed[group].sum(), v.shape[1] // frames_lat, *v.shape[2:])
                start = int(computed[group, :first].sum())
                for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(rows) else ():
                    sums[group][:, start : start + len(run)] = outputs[group - block.groups[0], :, run[0] : run[-1] + 1]
                    start += len(run)
            del outputs
            for group in [group for group in sums if not computed[group, last:].any()]:
                yield group, sums.pop(group).flatten(1, 2)

    def _blocks(self, inputs: LayerInputs, chosen: list[Tensor] | None) -> Iterator[tuple[TileBlock, Tensor]]:
        """Each block, and the outputs [G, B, F, n, H, D] of its groups, in single precision or better."""
        keys, v = self._keys(inputs), self._in_order(inputs.v)
        selected = None
        if chosen is not None:
            places = on_device(np.argsort(self.tiling.order), v.device)
            tokens = v.shape[1] // self.plan.frames_lat
            selected = [
                tuple(x[index].unflatten(0, (-1, tokens)).index_select(0, places[frames]) for x in (keys[0], v))
                for index, frames in enumerate(chosen)
            ]
        for block, q in self._queries(inputs):
            yield block, self._outputs(block, q, keys, v, inputs, chosen, selected)

    def _in_order(self, x: Tensor) -> Tensor:
        """x [B, N, H, D] with its frames in the order of the keys."""
        order = self.tiling.order
        if np.array_equal(order, np.arange(len(order))):
            return x
        return x.unflatten(1, (len(order), -1)).index_select(1, on_device(order, x.device)).flatten(1, 2)

    def _native(self, times: np.ndarray | None) -> bool:
        """Whether `times` of queries, and those of all keys, are the backbone's own."""
        frames = np.arange(self.plan.frames_lat)
        return times is not None and all(np.array_equal(x, frames) for x in (times, self.tiling.order, self.tiling.tables[0]))

    def _keys(self, inputs: LayerInputs) -> list[Tensor]:
        """The keys [B, N, H, D] in order, at the times of each table."""
        ctx, scale, tables, positions = inputs.ctx, self.plan.frequency_scale, self.tiling.tables, self.tiling.positions
        if positions is not None:
            return [ctx.rotate(self._in_order(inputs.k), None if self._native(positions) else tables[0], scale)]
        frames = np.arange(self.plan.frames_lat)
        spatial = ctx.rotate(self._in_order(inputs.k), np.zeros(len(frames)), None)
        keys = [spatial.clone() for _ in tables]
        for times, copy in zip(tables, keys, strict=True):
            ctx.rotate_time(copy, spatial, frames, times, scale)
        return keys

    def _queries(self, inputs: LayerInputs) -> Iterator[tuple[TileBlock, Tensor]]:
        """Each block and its query rows [B, R n, H, D], rotated and scaled."""
        ctx, scale, positions, blocks = inputs.ctx, self.plan.frequency_scale, self.tiling.positions, self.tiling.blocks
        spatial = positions is None
        q = ctx.rotate(inputs.q, np.zeros(self.plan.frames_lat) if spatial else None if self._native(positions) else positions,
                       None if spatial else scale)  # fmt: skip
        q, start = q.unflatten(1, (self.plan.frames_lat, -1)), 0
        while start < len(blocks):
            stop, count = start, 0
            while stop < len(blocks) and (stop == start or count + len(blocks[stop].frames) <= ROTATED * self.plan.frames_lat):
                count, stop = count + len(blocks[stop].frames), stop + 1
            frames, times, factors = (
                np.concatenate([getattr(block, name) for block in blocks[start:stop]]) for name in ("frames", "times", "factors")
            )
            run = np.array_equal(frames, np.arange(frames[0], frames[0] + len(frames)))
            rows = q[:, frames[0] : frames[0] + len(frames)] if run else q.index_select(1, on_device(frames, q.device))
            if spatial:
                rotated = rows.clone(memory_format=torch.contiguous_format)
                ctx.rotate_time(rotated.flatten(1, 2), rows.flatten(1, 2), np.arange(len(frames)), times, scale)
                rows = rotated
            factors = factors * self.plan.logit_scale
            if (factors == factors[0]).all():
                rows = rows if factors[0] == 1 else rows * float(factors[0])
            else:
                rows = rows * on_device(factors, q.device, q.dtype)[:, None, None, None]
            place = 0
            for block in blocks[start:stop]:
                yield block, rows[:, place : place + len(block.frames)].flatten(1, 2)
                place += len(block.frames)
            start = stop

    def _outputs(
        self, block: TileBlock, q: Tensor, keys: list[Tensor], v: Tensor, inputs: LayerInputs,
        chosen: list[Tensor] | None, selected: list[tuple[Tensor, ...]] | None,
    ) -> Tensor:  # fmt: skip
        batch, _, heads, dim = q.shape
        rows, tokens = len(block.frames), q.shape[1] // len(block.frames)
        outputs, lse = [], []
        for tile in block.tiles:
            tile_q = q[:, tile.rows[0] * tokens : tile.rows[1] * tokens]
            columns = slice(tile.keys[0] * tokens, tile.keys[1] * tokens)
            tile_kv = inputs.ctx.text if tile.text else (keys[tile.table][:, columns], v[:, columns])
            assert tile_kv is not None
            output, tile_lse = self.kernel(tile_q, *tile_kv)
            outputs.append(output)
            lse.append(tile_lse)
        if selected is not None:
            by_sample = [self.kernel(q[index].expand(len(k), -1, -1, -1), k, values) for index, (k, values) in enumerate(selected)]
            lse.append(torch.stack([sample_lse.transpose(0, 1).flatten(1) for _, sample_lse in by_sample]))
        shares = self._shares(block, torch.cat(lse, dim=2).unflatten(2, (-1, tokens)), chosen, q.numel())
        sums = shares.new_zeros(len(shares), batch, rows + 1, tokens, heads, dim)  # and a row of zeros
        start = 0
        for tile, output in zip(block.tiles, outputs, strict=True):
            groups, count = slice(*tile.groups), tile.rows[1] - tile.rows[0]
            target = sums[groups, :, slice(*tile.rows)]
            target.addcmul_(output.unflatten(1, (count, tokens)), _by_channel(shares[groups, :, :, start : start + count]))
            start += count
        if selected is not None:
            for index, (output, _) in enumerate(by_sample):
                for key_output in output:
                    share = _by_channel(shares[:, index, :, start : start + rows])
                    sums[:, index, :rows].addcmul_(key_output.unflatten(0, (rows, tokens)), share)
                    start += rows
                start -= rows * len(output)
        if np.array_equal(block.frames, np.arange(*block.queries)):
            return sums[:, :, :rows]
        versions = on_device(block.merge.versions, q.device)
        return sums.index_select(2, versions.flatten()).unflatten(2, versions.shape).sum(dim=3)

    def _shares(self, block: TileBlock, lse: Tensor, chosen: list[Tensor] | None, numbers: int) -> Tensor:
        """The share [G, B, H, A, n] of each row of the block's tiles in its frame's outputs; lse [B, H, A, n]."""
        merge, device = block.merge, lse.device
        entries, places = on_device(merge.entries, device), on_device(merge.shares, device)
        masks, weights = (on_device(table, device, lse.dtype) for table in (merge.masks, merge.weights))
        masks = masks[:, :, None]  # [G, S, B or 1, F, E]
        if chosen is not None:
            assert merge.hidden is not None
            hidden = on_device(merge.hidden, device, lse.dtype)
            by_sample = torch.stack([hidden.index_select(4, frames).flatten(3) for frames in chosen], dim=2)
            masks = torch.cat([masks.expand(-1, -1, len(chosen), -1, -1), by_sample], dim=4)
        lse = lse.index_select(2, entries.flatten()).unflatten(2, entries.shape)  # [B, H, F, E, n]
        count = max(1, int(SHARES * numbers // max(1, len(masks) * lse.numel())))  # of passes at a time
        shares: Tensor | None = None
        for part, weight in zip(masks.split(count, dim=1), weights.split(count, dim=1), strict=True):
            softmax = (lse + part[:, :, :, None, :, :, None]).softmax(dim=5)  # [G, S, B, H, F, E, n]
            weighted = softmax.mul_(weight[:, :, None, None, :, None, None]).sum(dim=1)
            shares = weighted if shares is None else shares.add_(weighted)
        assert shares is not None
        return shares.flatten(3, 4).index_select(3, places)


def _by_channel(shares: Tensor) -> Tensor:
    """shares [.., H, A, n] as [.., A, n, H, 1]."""
    return shares.movedim(-3, -1)[..., None]
