"""Combines partial attention outputs with the log-sum-exp trick, so that each pair of frames is computed once for all passes.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, f query frames, H heads, D head dim, P passes, A parts.

With out_a and lse_a = log of the sum of exp(logit) over the keys of part a, the output of pass p at query frame i is, over the
parts a that belong to p at i,

    lse_p(i) = log sum of exp lse_a(i)   out_p(i) = sum of out_a(i) exp(lse_a(i) - lse_p(i))   out(i) = sum of weight_p(i) out_p(i)

exact in real arithmetic, and stable, since lse_a <= lse_p. A factor on a part's logits is applied to its queries; an addend is
added to its lse and leaves its output as it is. Partial outputs are held for a block of query frames at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longgen.attention.context import AttentionContext, LayerInputs
from longgen.attention.lowering import Range, ranges_of
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.partition import Block, Part, Partition
from longgen.attention.sequential import frames_of
from longgen.frameplan import FramePlan


@dataclass
class PartialOutputs:
    """What the parts of a block gave for query frames `rows`, which count in the partition's order.

    outputs: [B, g n, H, D] each, for the part's own g frames. lse [A, B, H, f, n]: -inf for frames that a part does not have.
    """

    rows: Range
    parts: list[Part]
    outputs: list[Tensor]
    lse: Tensor

    def mean(self, weights: np.ndarray) -> Tensor:
        """The outputs of passes, weighted by `weights` [P, T] in the partition's order: [B, f n, H, D], float32 or better."""
        first, last = self.rows
        batch, heads, frames, tokens = self.lse.shape[1:]
        members = np.zeros((len(weights), len(self.parts), frames), dtype=bool)
        for index, part in enumerate(self.parts):
            members[:, index, part.queries[0] - first : part.queries[1] - first] = part.members
        shares = torch.zeros_like(self.lse)
        needed = np.any(members & (weights[:, None, first:last] > 0), axis=2)  # [P, A]
        for index in np.flatnonzero(np.any(needed, axis=1)).tolist():
            rows = np.flatnonzero(members[index].any(axis=1))  # parts of this pass
            lse = self.lse[rows].masked_fill(self._by_frame(~members[index, rows]), -torch.inf)
            total = lse.logsumexp(dim=0)
            lse = lse - total.masked_fill(total.isneginf(), 0)
            shares[rows] += lse.exp_() * self._by_frame(weights[index, first:last])
        output = self.lse.new_zeros(batch, frames * tokens, heads, self.outputs[0].shape[3])
        for index in np.flatnonzero(np.any(needed, axis=0)).tolist():
            start, stop = (frame - first for frame in self.parts[index].queries)
            share = shares[index, :, :, start:stop].flatten(2).transpose(1, 2)[..., None]
            output[:, start * tokens : stop * tokens].addcmul_(self.outputs[index], share)
        return output

    def _by_frame(self, table: np.ndarray) -> Tensor:
        """`table` [..., f] as [..., 1, 1, f, 1]."""
        tensor = torch.from_numpy(table).to(self.lse.device, torch.bool if table.dtype == bool else self.lse.dtype)
        return tensor[..., None, None, :, None]


@dataclass
class PlanMerge:
    """Computes the passes of `plan` on one layer's q, k, v by `partition`; `kernel` computes a part.

    chosen: [T] bool, the key frames that were chosen at run time, if any are. band: one more part of all passes, for all query
    frames: its output [B, T, n, H, D] and lse [B, T, H, n], -inf for frames that do not have it.
    """

    plan: FramePlan
    partition: Partition
    kernel: AttentionWithLSE

    def mean(self, inputs: LayerInputs, chosen: np.ndarray | None = None, band: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The weighted mean [B, N, H, D] of the plan's passes."""
        order, v = self.partition.order, inputs.v
        weights = np.stack([pass_.weight for pass_ in self.plan.passes])[:, order]
        total = torch.zeros_like(v, memory_format=torch.contiguous_format).unflatten(1, (self.plan.frames_lat, -1))
        for block in self.blocks(inputs, chosen, band):
            output = block.mean(weights).to(v).unflatten(1, (block.rows[1] - block.rows[0], -1))
            total[:, _frame_index(order[slice(*block.rows)])] = output
        return total.flatten(1, 2)

    def groups(self, count: int, inputs: LayerInputs) -> Iterator[tuple[int, Tensor]]:
        """The sum of each of `count` equal groups of passes, [B, F n, H, D] over its F weighted frames, as they are completed."""
        plan, order, v = self.plan, self.partition.order, inputs.v
        weights = np.stack([pass_.weight for pass_ in plan.passes]).reshape(count, -1, plan.frames_lat)
        computed = np.any(weights > 0, axis=1)  # [groups, T]
        missing = computed.sum(axis=1)
        outputs: dict[int, Tensor] = {}
        for block in self.blocks(inputs):
            frames = order[slice(*block.rows)]
            for group in np.flatnonzero(computed[:, frames].any(axis=1)).tolist():
                group_frames, rows = np.flatnonzero(computed[group]), np.flatnonzero(computed[group, frames])
                if group not in outputs:
                    outputs[group] = v.new_empty(len(v), len(group_frames), v.shape[1] // plan.frames_lat, *v.shape[2:])
                group_weights = np.zeros_like(weights)
                group_weights[group] = weights[group][:, order]
                output = block.mean(group_weights.reshape(-1, plan.frames_lat)).to(v).unflatten(1, (len(frames), -1))
                places = np.searchsorted(group_frames, frames[rows])
                outputs[group][:, _frame_index(places)] = output[:, _frame_index(rows)]
                missing[group] -= len(rows)
                if not missing[group]:
                    yield group, outputs.pop(group).flatten(1, 2)

    def blocks(
        self, inputs: LayerInputs, chosen: np.ndarray | None = None, band: tuple[Tensor, Tensor] | None = None
    ) -> Iterator[PartialOutputs]:
        """The partial outputs of all parts, a block of query frames at a time."""
        ctx, q, k = inputs.ctx, inputs.q, inputs.k
        frames_lat, scale, order = self.plan.frames_lat, self.plan.frequency_scale, self.partition.order
        tokens, frames = q.shape[1] // frames_lat, np.arange(frames_lat)
        positions, tables = self.partition.positions, self.partition.tables

        def in_order(x: Tensor) -> Tensor:
            return x if np.array_equal(order, frames) else x.unflatten(1, (frames_lat, tokens))[:, order].flatten(1, 2)

        v = in_order(inputs.v)
        if positions is not None:
            native = all(np.array_equal(times, frames) for times in (order, positions, tables[0]))
            q = ctx.rotate(in_order(q), None if native else positions, scale)
            keys = [ctx.rotate(in_order(k), None if native else tables[0], scale)]
        else:
            q, k = (ctx.rotate(in_order(x), np.zeros(frames_lat), None) for x in (q, k))  # in space; time is added below
            keys = [k.clone() for _ in tables[1:]] + [k]
            for times, copy in zip(tables, keys, strict=True):
                ctx.rotate_time(copy, k, frames, times, scale)
        for block in self.partition.blocks:
            parts = self._parts(block, chosen)
            queries = slice(block.queries[0] * tokens, block.queries[1] * tokens)
            rotated = self._queries(block, ctx, q[:, queries])
            precise = torch.promote_types(q.dtype, torch.float32)
            shape = (len(parts) + (band is not None), len(q), q.shape[2], block.queries[1] - block.queries[0], tokens)
            lse, outputs = q.new_full(shape, -torch.inf, dtype=precise), []
            for index, (part, ranges) in enumerate(parts):
                first, last = (frame - block.queries[0] for frame in part.queries)
                part_q = rotated(part)[:, first * tokens : last * tokens]
                part_kv = ctx.text if part.text else [frames_of(x, ranges, tokens) for x in (keys[part.table], v)]
                assert part_kv is not None
                output, part_lse = self.kernel(part_q, *part_kv)
                outputs.append(output)
                lse[index, :, :, first:last] = (part_lse + part.logits[1]).unflatten(-1, (last - first, tokens))
            if band is not None:
                output, band_lse = (x[:, _frame_index(order[slice(*block.queries)])] for x in band)
                members = np.ones((len(self.plan.passes), shape[3]), dtype=bool)
                parts.append((Part(block.queries, frames, 0, 0, members), ()))
                outputs.append(output.flatten(1, 2))
                lse[-1] = band_lse.transpose(1, 2)
            if parts:
                yield PartialOutputs(block.queries, [part for part, _ in parts], outputs, lse)

    def _parts(self, block: Block, chosen: np.ndarray | None) -> list[tuple[Part, tuple[Range, ...]]]:
        """The parts of `block` that have keys, each with the ranges of its key frames."""
        parts = []
        for part in block.parts:
            seen = np.zeros(self.plan.frames_lat, dtype=bool)
            seen[part.keys] = True
            if part.at_run_time and chosen is not None:
                seen &= chosen[self.partition.order]
            if seen.any() or part.text:
                parts.append((part, ranges_of(seen)))
        return parts

    def _queries(self, block: Block, ctx: AttentionContext, q: Tensor) -> Callable[[Part], Tensor]:
        """Gives the block's queries [B, f n, H, D] as a part needs them; `q` has no time yet unless all have one position."""

        @functools.cache
        def rotated(row: int) -> Tensor:
            if self.partition.positions is not None:
                return q
            at_times = q.clone()
            ctx.rotate_time(at_times, q, np.arange(block.times.shape[1]), block.times[row], self.plan.frequency_scale)
            return at_times

        @functools.cache
        def scaled(row: int, factor: float) -> Tensor:
            return rotated(row) if factor == 1 else rotated(row) * factor

        return lambda part: scaled(part.query_times, part.logits[0] * self.plan.logit_scale)


def _frame_index(frames: np.ndarray) -> slice | Tensor:
    """`frames` as a slice where they are neighbours."""
    return slice(int(frames[0]), int(frames[-1]) + 1) if (np.diff(frames) == 1).all() else torch.from_numpy(frames)
