"""The passes of a frame plan one after the other, by the backbone's own attention: any backend serves, and text may join in.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, f query frames, H heads, D head dim.

Masks are made for stripes only, a block of query tokens at a time; q and k are not copied for contiguous ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longgen.attention.lowering import AttentionCall, CallList, Range, lower
from longgen.frameplan import FramePlan, Pass

if TYPE_CHECKING:
    from longgen.attention.context import AttentionContext

Kept = dict[tuple[bytes, float, bool], tuple[Tensor, Tensor]]
SMALLEST_BLOCK = 64  # query tokens: below, calls cost more than the keys they save


def run_passes(
    plan: FramePlan, schedules: list[CallList], family: AttentionContext, q: Tensor, k: Tensor, v: Tensor, kept: Kept | None = None
) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes, which run by `schedules`; see `_attention_calls` for `kept`."""
    frames_lat, tokens = plan.frames_lat, q.shape[1] // plan.frames_lat
    total: Tensor | None = None
    kept = {} if kept is None else kept
    for one, schedule in zip(plan.passes, schedules, strict=True):
        alone = len(plan.passes) == 1 and (one.weight == 1).all()
        for (first, last), output in _attention_calls(schedule, plan, family, q, k, v, kept):
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


def _attention_calls(
    schedule: CallList, plan: FramePlan, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor, kept: Kept
) -> Iterator[tuple[Range, Tensor]]:
    """The outputs of one pass: a range of query frames and its output [B, f n, H, D], call by call.

    kept: q and k as the pass before left them, and then as this one does.
    """
    scale = plan.frequency_scale
    tokens = q.shape[1] // plan.frames_lat
    rebuilt = schedule.keyed or schedule.lag != 0  # LTX's own tables carry an offset, which goes only if k's do too
    positions = schedule.positions if rebuilt else unless_native(schedule.positions)
    place = (schedule.positions.tobytes(), schedule.lag, schedule.keyed)
    if place not in kept:
        kept.clear()
        turned = family.rotate(q, positions, scale)
        behind = positions if schedule.lag == 0 else schedule.positions - schedule.lag
        kept[place] = (
            turned if plan.logit_scale == 1 else turned * plan.logit_scale,
            family.rotate(k, np.zeros(plan.frames_lat) if schedule.keyed else behind, None if schedule.keyed else scale),
        )
    q, k = kept[place]
    still = k if schedule.keyed else None
    if still is not None:
        k = still.clone(memory_format=torch.contiguous_format)
    for call in schedule.calls:
        first, last = (frame * tokens for frame in call.queries)
        queries = q[:, first:last]
        if call.sliding:
            yield call.queries, _sliding(call, family, queries, k, v, tokens)
            continue
        if still is not None and call.turned is not None and call.times is not None and len(call.turned):
            family.rotate_time(k, still, call.turned, call.times, scale)
        keys, values = frames_of(k, call.keys, tokens), frames_of(v, call.keys, tokens)
        if call.stripes is None:
            yield call.queries, family.attend(queries, keys, values)
        else:
            yield call.queries, _striped(call.stripes, family, queries, keys, values, tokens)


def _sliding(call: AttentionCall, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
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
        keys, values = (windows_of(x[sample], start * tokens, (stop - start) * tokens, count, tokens) for x in (k, v))
        output[sample] = family.attend(q[sample].unflatten(0, (count, tokens)), keys, values).flatten(0, 1)
    return output


def _striped(stripes: np.ndarray, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
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


def frames_of(x: Tensor, ranges: tuple[Range, ...], tokens: int) -> Tensor:
    """The tokens of the frames in `ranges`; a view where that is one range."""
    parts = [x[:, start * tokens : stop * tokens] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def windows_of(x: Tensor, start: int, length: int, count: int, stride: int) -> Tensor:
    """`count` overlapping windows of x [N, H, D], `stride` tokens apart, as a view [count, length, H, D]."""
    return x[start:].as_strided(
        (count, length, *x.shape[1:]), (stride * x.stride(0), *x.stride()), x.storage_offset() + start * x.stride(0)
    )


def unless_native(positions: np.ndarray) -> np.ndarray | None:
    """None, for the family's own tables, where positions are 0, 1, .. T-1."""
    return None if np.array_equal(positions, np.arange(len(positions))) else positions


@lru_cache(maxsize=256)
def schedule_of(one: Pass, anchored: bool) -> CallList:
    """`analyse`, once for each table (passes hash by identity)."""
    return lower(one, anchored)
