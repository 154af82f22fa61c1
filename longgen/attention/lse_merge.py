"""Puts the passes of a frame plan together from attention calls that are made once, however many passes share them.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, f query frames, H heads, D head dim, P passes, A parts.

With out_a and Z_a = sum of exp(logit) over the keys of part a, the output of pass p at query frame i, and the plan's, are

    Z_p(i) = sum over a held by p at i of Z_a(i)        out_p(i) = sum over the same a of out_a(i) Z_a(i) / Z_p(i)
    out(i) = sum over p of weight_p(i) out_p(i)

exact in real arithmetic. Here with logarithms, so that nothing over- or underflows: Z_a / Z_p = exp(log Z_a - log Z_p) <= 1.
Outputs are held for a block of query frames at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longgen.attention.lowering import Range, ranges_of
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.partition import Part, Partition
from longgen.attention.sequential import frames_of
from longgen.frameplan import FramePlan

if TYPE_CHECKING:
    from longgen.attention.context import AttentionContext


@dataclass
class PartialOutputs:
    """Query frames `rows`, in the arrangement's order; what each part gave for its own, [B, g n, H, D]; log Z [A, B, H, f, n]."""

    rows: Range
    parts: list[Part]
    outputs: list[Tensor]
    sums: Tensor

    def mean(self, weights: np.ndarray) -> Tensor:
        """The outputs of passes, `weights` [P, T] in the arrangement's order, added up: [B, f n, H, D], float32 or better."""
        first, last = self.rows
        batch, heads, frames, tokens = self.sums.shape[1:]
        held = np.zeros((len(weights), len(self.parts), frames), dtype=bool)
        for index, part in enumerate(self.parts):
            held[:, index, part.queries[0] - first : part.queries[1] - first] = part.held
        shares = torch.zeros_like(self.sums)
        needed = np.any(held & (weights[:, None, first:last] > 0), axis=2)  # [P, A]
        for index in np.flatnonzero(np.any(needed, axis=1)).tolist():
            own, weight = held[index], weights[index, first:last]
            rows = np.flatnonzero(own.any(axis=1))  # parts of this pass
            sums = self.sums[rows].masked_fill(self._of(~own[rows]), -torch.inf)
            whole = sums.logsumexp(dim=0)
            shares[rows] += (sums - whole.masked_fill(whole.isneginf(), 0)).exp_() * self._of(weight)
        total = self.sums.new_zeros(batch, frames * tokens, heads, self.outputs[0].shape[3])
        for index in np.flatnonzero(np.any(needed, axis=0)).tolist():
            part, output, share = self.parts[index], self.outputs[index], shares[index]
            here, own = (slice(*((frame - first) * per for frame in part.queries)) for per in (tokens, 1))
            total[:, here].addcmul_(output, share[:, :, own].flatten(2).transpose(1, 2)[..., None])
        return total

    def _of(self, table: np.ndarray) -> Tensor:
        """`table` [..., f] as [..., 1, 1, f, 1]."""
        own = torch.from_numpy(table).to(self.sums.device, torch.bool if table.dtype == bool else self.sums.dtype)
        return own[..., None, None, :, None]


def mean(
    made: Partition,
    summing: AttentionWithLSE,
    plan: FramePlan,
    family: AttentionContext,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: np.ndarray | None = None,
    band: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes.

    seen: the key frames [T] bool that were chosen, if any are. band: another part of all passes, for all query frames: its
    output [B, T, n, H, D] and log Z [B, T, H, n], -inf for frames that do not have it.
    """
    weights = np.stack([one.weight for one in plan.passes])[:, made.order]
    total = torch.zeros_like(v, memory_format=torch.contiguous_format).unflatten(1, (plan.frames_lat, -1))
    for block in given(made, summing, plan, family, q, k, v, seen, band):
        total[:, _places(made.order[slice(*block.rows)])] = (
            block.mean(weights).to(v).unflatten(1, (block.rows[1] - block.rows[0], -1))
        )
    return total.flatten(1, 2)


def apart(
    made: Partition,
    summing: AttentionWithLSE,
    plan: FramePlan,
    groups: int,
    family: AttentionContext,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """The weighted sum of each of `groups` equal groups of passes, [B, F n, H, D] over the F frames that have a weight in it.

    They come as they are done, so that few are held at a time.
    """
    weights = np.stack([one.weight for one in plan.passes]).reshape(groups, -1, plan.frames_lat)
    shown = np.any(weights > 0, axis=1)  # [groups, T]
    missing = shown.sum(axis=1)
    held: dict[int, Tensor] = {}
    for block in given(made, summing, plan, family, q, k, v):
        order = made.order[slice(*block.rows)]
        for group in np.flatnonzero(shown[:, order].any(axis=1)).tolist():
            own, rows = np.flatnonzero(shown[group]), np.flatnonzero(shown[group, order])
            if group not in held:
                held[group] = v.new_empty(len(v), len(own), v.shape[1] // plan.frames_lat, *v.shape[2:])
            taken = np.zeros((len(plan.passes), plan.frames_lat))
            mine = slice(group * weights.shape[1], (group + 1) * weights.shape[1])
            taken[mine] = weights[group][:, made.order]
            output = block.mean(taken).to(v).unflatten(1, (len(order), -1))
            held[group][:, _places(np.searchsorted(own, order[rows]))] = output[:, _places(rows)]
            missing[group] -= len(rows)
            if not missing[group]:
                yield group, held.pop(group).flatten(1, 2)


def given(
    made: Partition,
    summing: AttentionWithLSE,
    plan: FramePlan,
    family: AttentionContext,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: np.ndarray | None = None,
    band: tuple[Tensor, Tensor] | None = None,
) -> Iterator[PartialOutputs]:
    """What the parts give, a block of query frames at a time; see `mean`."""
    frames_lat, scale, order = plan.frames_lat, plan.frequency_scale, made.order
    tokens, frames = q.shape[1] // frames_lat, np.arange(frames_lat)

    def taken(x: Tensor) -> Tensor:
        return x if np.array_equal(order, frames) else x.unflatten(1, (frames_lat, tokens))[:, order].flatten(1, 2)

    v = taken(v)
    if made.positions is not None:
        native = all(np.array_equal(times, frames) for times in (order, made.positions, made.tables[0]))
        q = family.rotate(taken(q), None if native else made.positions, scale)
        keys = [family.rotate(taken(k), None if native else made.tables[0], scale)]
    else:
        q, k = (family.rotate(taken(x), np.zeros(frames_lat), None) for x in (q, k))  # in space; time is added below
        keys = [k.clone() for _ in made.tables[1:]] + [k]
        for times, copy in zip(made.tables, keys, strict=True):
            family.rotate_time(copy, k, frames, times, scale)
    for block in made.blocks:
        shown, visible = [], []
        for part in block.parts:
            own = np.zeros(frames_lat, dtype=bool)
            own[part.keys] = True
            if part.chosen and seen is not None:
                own &= seen[order]
            if own.any():
                shown.append(part)
                visible.append(ranges_of(own))
        start, stop = block.queries
        still, turned = q[:, start * tokens : stop * tokens], dict[int, Tensor]()
        precise = torch.promote_types(q.dtype, torch.float32)
        sums = q.new_full((len(shown) + (band is not None), len(q), q.shape[2], stop - start, tokens), -torch.inf, dtype=precise)
        outputs = []
        for index, (part, ranges) in enumerate(zip(shown, visible, strict=True)):
            first, last = (frame - start for frame in part.queries)
            if part.turn not in turned:
                x = still
                if made.positions is None:
                    x = still.clone()
                    family.rotate_time(x, still, frames[: stop - start], block.times[part.turn], scale)
                turned[part.turn] = x if plan.logit_scale == 1 else x * plan.logit_scale
            own_k, own_v = (frames_of(x, ranges, tokens) for x in (keys[part.table], v))
            output, log_sum = summing(turned[part.turn][:, first * tokens : last * tokens], own_k, own_v)
            outputs.append(output)
            sums[index, :, :, first:last] = log_sum.unflatten(-1, (last - first, tokens))
        if band is not None:
            output, log_sum = (x[:, _places(order[slice(*block.queries)])] for x in band)
            held = np.ones((len(plan.passes), stop - start), dtype=bool)
            shown.append(Part(block.queries, frames, 0, 0, held, False))
            outputs.append(output.flatten(1, 2))
            sums[-1] = log_sum.transpose(1, 2)
        if shown:
            yield PartialOutputs(block.queries, shown, outputs, sums)


def _places(frames: np.ndarray) -> slice | Tensor:
    """`frames` as a slice where they are neighbours."""
    return slice(int(frames[0]), int(frames[-1]) + 1) if (np.diff(frames) == 1).all() else torch.from_numpy(frames)
