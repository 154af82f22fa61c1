"""Runs a program: the attention outputs of its branches' frame plans, and their fusion.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim. Tokens are frame-major:
the tokens of a latent frame are n neighbours. q, k, v come before rotary positions, as [B, N, H, D].

For any table the result equals one softmax over [N, N] whose logits between frames i and j are rotated to rel[i, j] and
masked by visible[i, j]; tests hold that slow form. No mask is made, and q and k are not copied for contiguous ranges.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from longgen.attention.structure import Schedule, analyse
from longgen.frameplan import FramePlan, Pass
from longgen.plan import Program
from longgen.technique import Step


class Family(Protocol):
    """What a backbone family lends the executor for one call of one layer."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The backbone's own attention call: q [B, Nq, H, D], k and v [B, Nk, H, D] -> [B, Nq, H, D]."""
        ...

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        """x [B, T n, H, D] with time positions [T] (None: 0, 1, .. T-1) and in space; `scale` on temporal frequencies."""
        ...

    def rotate_time(self, x: Tensor, positions: np.ndarray, scale: np.ndarray | None) -> Tensor:
        """x [B, f n, H, D], already rotated in space, with its f frames rotated to time `positions` [f]."""
        ...


def run(program: Program, family: Family, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    """The attention output [B, N, H * D] of one layer in one step."""
    outputs = {name: run_plan(plan, family, q, k, v).flatten(2) for name, plan in program.branches.items()}
    if program.fusion is None:
        (output,) = outputs.values()
        return output
    return program.fusion.fuse(outputs, step)  # type: ignore[attr-defined]


def run_plan(plan: FramePlan, family: Family, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes."""
    if len(plan.passes) == 1:
        return run_pass(plan.passes[0], plan.scale, family, q, k, v)
    tokens = q.shape[1] // plan.frames_lat
    total = torch.zeros_like(q)
    for one in plan.passes:
        weight = torch.from_numpy(one.weight).to(q).repeat_interleave(tokens).view(1, -1, 1, 1)
        total += weight * run_pass(one, plan.scale, family, q, k, v)
    return total


def run_pass(one: Pass, scale: np.ndarray | None, family: Family, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One pass, [B, N, H, D]."""
    schedule = schedule_of(one)
    tokens = q.shape[1] // len(one.weight)
    if schedule.positions is None:
        return _run_keyed(schedule, scale, family, q, k, v, tokens)
    native = np.array_equal(schedule.positions, np.arange(len(schedule.positions)))
    positions = None if native else schedule.positions
    q, k = family.rotate(q, positions, scale), family.rotate(k, positions, scale)
    if len(schedule.calls) == 1 and schedule.calls[0].keys == ((0, len(one.weight)),):
        return family.attend(q, k, v)
    output = torch.empty_like(v)
    for call in schedule.calls:
        first, last = (frame * tokens for frame in call.queries)
        if call.sliding:
            (start, stop), count = call.keys[0], call.queries[1] - call.queries[0]
            for sample in range(q.shape[0]):
                queries = q[sample, first:last].unflatten(0, (count, tokens))
                keys, values = (_windows(x[sample], start * tokens, (stop - start) * tokens, count, tokens) for x in (k, v))
                output[sample, first:last] = family.attend(queries, keys, values).flatten(0, 1)
        else:
            output[:, first:last] = family.attend(q[:, first:last], _frames(k, call.keys, tokens), _frames(v, call.keys, tokens))
    return output


def _run_keyed(
    schedule: Schedule, scale: np.ndarray | None, family: Family, q: Tensor, k: Tensor, v: Tensor, tokens: int
) -> Tensor:
    """Leaves q at time 0 and rotates key frame j to -rel(i, j), one query frame after another."""
    still = np.zeros(q.shape[1] // tokens)
    q, k = family.rotate(q, still, None), family.rotate(k, still, None)
    output = torch.empty_like(v)
    for call in schedule.calls:
        assert call.rel is not None
        first, last = (frame * tokens for frame in call.queries)
        keys = family.rotate_time(_frames(k, call.keys, tokens), -call.rel, scale)
        output[:, first:last] = family.attend(q[:, first:last], keys, _frames(v, call.keys, tokens))
    return output


def _frames(x: Tensor, ranges: tuple[tuple[int, int], ...], tokens: int) -> Tensor:
    """The tokens of the frames in `ranges`; a view where that is one range."""
    parts = [x[:, start * tokens : stop * tokens] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _windows(x: Tensor, start: int, length: int, count: int, stride: int) -> Tensor:
    """`count` overlapping windows of x [N, H, D], `stride` tokens apart, as a view [count, length, H, D]."""
    return x[start:].as_strided(
        (count, length, *x.shape[1:]), (stride * x.stride(0), *x.stride()), x.storage_offset() + start * x.stride(0)
    )


@lru_cache(maxsize=256)
def schedule_of(one: Pass) -> Schedule:
    """`analyse`, once for each table (passes hash by identity)."""
    return analyse(one)
