"""Runs a program: the attention outputs of its branches' frame plans, and their fusion.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim. Tokens are
frame-major: the tokens of a latent frame are n neighbours, in raster order. q, k, v come before rotary positions, as
[B, N, H, D].

For any table the result equals one softmax over [N, N] whose logits between frames i and j are rotated to rel[i, j] and
masked by visible[i, j] and the stripes; tests hold that slow form. Masks are made for stripes only, a block of query
tokens at a time; q and k are not copied for contiguous ranges.

Text inside self-attention (CogVideoX, HunyuanVideo) is seen by every query frame, from the time rel[i, 0] [derived].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from longgen.attention.structure import Call, Range, Schedule, analyse
from longgen.frameplan import FramePlan, Pass
from longgen.plan import Program
from longgen.technique import Grid, Step

SMALLEST_BLOCK = 64  # query tokens: below, calls cost more than the keys they save


class Family(Protocol):
    """What a backbone family lends the executor for one call of one layer."""

    grid: Grid  # latent frames, rows and columns of tokens
    features: Tensor  # the layer's input [B, N, C], text apart

    @property
    def joint(self) -> bool:
        """Whether `attend` adds text keys."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The backbone's own attention call: q [B, Nq, H, D], k and v [B, Nk, H, D] -> [B, Nq, H, D].

        It adds the text's keys and values, where the family has them. mask [Nq, Nk] is True where a key is seen.
        """
        ...

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        """x [B, T n, H, D] with time positions [T] (None: 0, 1, .. T-1) and in space; `scale` on temporal frequencies."""
        ...

    def rotate_time(self, x: Tensor, still: Tensor, frames: np.ndarray, times: np.ndarray, scale: np.ndarray | None) -> None:
        """In place, the `frames` of x [B, T n, H, D] become those of `still`, rotated in time to `times`."""
        ...

    def observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Shows this call to whoever watches the model, as a probe does."""
        ...

    def anchored(self, k: Tensor, v: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """k and v with `weight` of those of each sample's anchor clip, which was here before; k and v where there is none."""
        ...

    def sample(self, index: int) -> Family:
        """The same for one sample of the batch."""
        ...


def run(program: Program, family: Family, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    """The attention output [B, N, H * D] of one layer in one step."""
    family.observe(q, k, v)
    anchor = next(iter(program.branches.values())).anchor
    if anchor:
        k, v = family.anchored(k, v, anchor)

    def attend(branch: str) -> Tensor:
        return run_plan(program.branches[branch], family, q, k, v).flatten(2)

    if program.fusion is None:
        (branch,) = program.branches
        return attend(branch)
    return program.fusion.fuse(attend, step, family.grid)


def run_text(program: Program, family: Family, text_q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The text's own attention output [B, L, H * D]: over the text and every frame, at the first branch's positions."""
    plan = next(iter(program.branches.values()))
    positions = plan.passes[0].rel[:, 0] - plan.passes[0].rel[0, 0]
    k = family.rotate(k, _unless_native(positions), plan.scale)
    return family.attend(text_q, k, v).flatten(2)


def run_plan(plan: FramePlan, family: Family, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes; zero for frames that no pass computes."""
    if plan.key_frames is not None:
        return _with_key_frames(plan, family, q, k, v)
    schedules = [schedule_of(one, family.joint) for one in plan.passes]
    return _run_passes(plan, schedules, family, q, k, v)


def _run_passes(plan: FramePlan, schedules: list[Schedule], family: Family, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    frames_lat, tokens = plan.frames_lat, q.shape[1] // plan.frames_lat
    total: Tensor | None = None
    for one, schedule in zip(plan.passes, schedules, strict=True):
        alone = len(plan.passes) == 1 and (one.weight == 1).all()
        for (first, last), output in _attention_calls(schedule, plan, family, q, k, v):
            if alone and last - first == frames_lat:
                return output
            if total is None:
                total = torch.empty_like(v) if alone else torch.zeros_like(v)
            rows = total[:, first * tokens : last * tokens]
            if alone:
                rows.copy_(output)
            elif (weights := one.weight[first:last]).max() == weights.min():
                rows.add_(output, alpha=float(weights[0]))
            else:
                rows.addcmul_(output, torch.from_numpy(weights).to(output).repeat_interleave(tokens).view(1, -1, 1, 1))
    assert total is not None
    return total


def _with_key_frames(plan: FramePlan, family: Family, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`run_plan` for each sample with the key frames that its own features choose."""
    assert plan.key_frames is not None
    outputs = []
    for index in range(q.shape[0]):
        seen = np.zeros(plan.frames_lat, dtype=bool)
        seen[plan.key_frames.choose(family.features[index].unflatten(0, (plan.frames_lat, -1)))] = True
        chosen = replace(plan, key_frames=None).see_also(np.broadcast_to(seen, (len(seen), len(seen))))
        schedules = [analyse(one, family.joint) for one in chosen.passes]
        outputs.append(_run_passes(chosen, schedules, family.sample(index), *(x[index : index + 1] for x in (q, k, v))))
    return torch.cat(outputs)


def _attention_calls(
    schedule: Schedule, plan: FramePlan, family: Family, q: Tensor, k: Tensor, v: Tensor
) -> Iterator[tuple[Range, Tensor]]:
    """The outputs of one pass: a range of query frames and its output [B, f n, H, D], call by call."""
    scale = plan.scale
    tokens = q.shape[1] // plan.frames_lat
    rebuilt = schedule.keyed or schedule.lag != 0  # LTX's own tables carry an offset, which goes only if k's do too
    positions = schedule.positions if rebuilt else _unless_native(schedule.positions)
    q = family.rotate(q, positions, scale)
    if plan.gain != 1:
        q = q * plan.gain
    still = family.rotate(k, np.zeros(plan.frames_lat), None) if schedule.keyed else None
    if still is None:
        k = family.rotate(k, positions if schedule.lag == 0 else schedule.positions - schedule.lag, scale)
    else:
        k = still.clone(memory_format=torch.contiguous_format)
    for call in schedule.calls:
        first, last = (frame * tokens for frame in call.queries)
        queries = q[:, first:last]
        if call.sliding:
            yield call.queries, _sliding(call, family, queries, k, v, tokens)
            continue
        if still is not None and call.turned is not None and call.times is not None and len(call.turned):
            family.rotate_time(k, still, call.turned, call.times, scale)
        keys, values = _frames(k, call.keys, tokens), _frames(v, call.keys, tokens)
        if call.stripes is None:
            yield call.queries, family.attend(queries, keys, values)
        else:
            yield call.queries, _striped(call.stripes, family, queries, keys, values, tokens)


def _sliding(call: Call, family: Family, q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
    """Windows that move on by one frame: one batched call over views of k and v, or a call each where text joins them."""
    (start, stop), count = call.keys[0], call.queries[1] - call.queries[0]
    output = torch.empty_like(q)
    if family.joint:
        for moved in range(count):
            rows = slice(moved * tokens, (moved + 1) * tokens)
            window = slice((start + moved) * tokens, (stop + moved) * tokens)
            output[:, rows] = family.attend(q[:, rows], k[:, window], v[:, window])
        return output
    for sample in range(q.shape[0]):
        keys, values = (_windows(x[sample], start * tokens, (stop - start) * tokens, count, tokens) for x in (k, v))
        output[sample] = family.attend(q[sample].unflatten(0, (count, tokens)), keys, values).flatten(0, 1)
    return output


def _striped(stripes: np.ndarray, family: Family, q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
    """One query frame over whole frames and stripes of frames, exact in tokens: a block of query tokens at a time.

    A block as long as the narrowest stripe is half wide reads half as many keys again as it needs; the mask cuts them off.
    """
    output = torch.empty_like(q)
    block = max(SMALLEST_BLOCK, int(np.ceil(stripes.min() * tokens)))
    index = torch.arange(tokens, device=q.device)
    widths = [tokens if share >= 1 else int(np.ceil(share * tokens)) for share in stripes]  # |q - k| < width
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        spans = [(max(0, first - width + 1), min(tokens, last + width - 1)) for width in widths]
        rows = index[first:last, None]
        seen = torch.cat([(rows - index[a:b]).abs() < width for (a, b), width in zip(spans, widths, strict=True)], dim=1)
        keys, values = (torch.cat([x[:, j * tokens + a : j * tokens + b] for j, (a, b) in enumerate(spans)], dim=1) for x in (k, v))
        output[:, first:last] = family.attend(q[:, first:last], keys, values, seen)
    return output


def _frames(x: Tensor, ranges: tuple[Range, ...], tokens: int) -> Tensor:
    """The tokens of the frames in `ranges`; a view where that is one range."""
    parts = [x[:, start * tokens : stop * tokens] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _windows(x: Tensor, start: int, length: int, count: int, stride: int) -> Tensor:
    """`count` overlapping windows of x [N, H, D], `stride` tokens apart, as a view [count, length, H, D]."""
    return x[start:].as_strided(
        (count, length, *x.shape[1:]), (stride * x.stride(0), *x.stride()), x.storage_offset() + start * x.stride(0)
    )


def _unless_native(positions: np.ndarray) -> np.ndarray | None:
    """None, for the family's own tables, where positions are 0, 1, .. T-1."""
    return None if np.array_equal(positions, np.arange(len(positions))) else positions


@lru_cache(maxsize=256)
def schedule_of(one: Pass, anchored: bool) -> Schedule:
    """`analyse`, once for each table (passes hash by identity)."""
    return analyse(one, anchored)
