"""Runs the passes of a frame plan one after the other through the backbone's own attention. Works with every attention backend.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, f query frames, H heads, D head dim.

Masks are made for bands and logit columns only, a block of query tokens at a time; q and k are not copied for contiguous ranges.
Factors on positive logits are beyond every backend: `longgen.attention.score_blocks` computes such calls, whatever the backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from longgen.attention.context import LayerInputs
from longgen.attention.lowering import AttentionCall, CallList, Range, lower
from longgen.attention.score_blocks import SignFactors, attend_by_sign, mean_key
from longgen.device_tables import on_device
from longgen.frameplan import FramePlan, Pass

RotatedQK = dict[tuple[bytes, float, bool], tuple[Tensor, Tensor]]
SMALLEST_BLOCK = 64  # query tokens: below, calls cost more than the keys they save


def run_passes(plan: FramePlan, inputs: LayerInputs, rotated: RotatedQK | None = None) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes. rotated: see `_attention_calls`; shared by plans of the same q and k."""
    frames_lat, tokens, v = plan.frames_lat, inputs.q.shape[1] // plan.frames_lat, inputs.v
    total: Tensor | None = None
    rotated = {} if rotated is None else rotated
    for pass_ in plan.passes:
        alone = len(plan.passes) == 1 and (pass_.weight == 1).all()
        for (first, last), output in _attention_calls(call_list(pass_, inputs.text_tokens > 0), plan, inputs, rotated):
            if alone and last - first == frames_lat:
                return output
            if total is None:
                total = torch.empty_like(v) if alone else torch.zeros_like(v)
            rows = total[:, first * tokens : last * tokens]
            if alone:
                rows.copy_(output)
            elif (weights := pass_.weight[first:last]).max() == weights.min():
                rows.add_(output, alpha=float(weights[0]))
            else:
                by_token = on_device(weights, output.device, output.dtype).repeat_interleave(tokens)
                rows.addcmul_(output, by_token.view(1, -1, 1, 1))
    assert total is not None
    return total


def _attention_calls(calls: CallList, plan: FramePlan, inputs: LayerInputs, rotated: RotatedQK) -> Iterator[tuple[Range, Tensor]]:
    """Ranges of query frames and their outputs [B, f n, H, D] in one pass. rotated: q and k of the last, to reuse or replace."""
    ctx, scale, tokens = inputs.ctx, plan.frequency_scale, inputs.q.shape[1] // plan.frames_lat
    rebuilt = calls.rotates_keys or calls.time_offset != 0  # LTX's own tables carry an offset: for q and k, or for neither
    positions = calls.positions if rebuilt else unless_native(calls.positions)
    key = (calls.positions.tobytes(), calls.time_offset, calls.rotates_keys)
    if key not in rotated:
        rotated.clear()
        rotated_q = ctx.rotate(inputs.q, positions, scale)
        if plan.logit_scale != 1:
            rotated_q = rotated_q * plan.logit_scale
        key_times = positions if calls.time_offset == 0 else calls.positions - calls.time_offset
        rotated_k = ctx.rotate(inputs.k, *(np.zeros(plan.frames_lat), None) if calls.rotates_keys else (key_times, scale))
        rotated[key] = rotated_q, rotated_k
    q, at_time_0 = rotated[key]
    k = at_time_0.clone(memory_format=torch.contiguous_format) if calls.rotates_keys else at_time_0
    for call in calls.calls:
        queries = frames_of(q, (call.queries,), tokens)
        if call.sliding:
            yield call.queries, _sliding(call, LayerInputs(ctx, queries, k, inputs.v), tokens)
            continue
        if call.rotated is not None and call.times is not None and len(call.rotated):
            ctx.rotate_time(k, at_time_0, call.rotated, call.times, scale)
        keys, values = frames_of(k, call.keys, tokens), frames_of(inputs.v, call.keys, tokens)
        if call.bands is not None:
            yield call.queries, _banded(call, plan.centred, LayerInputs(ctx, queries, keys, values), tokens)
        elif call.logits is not None or call.positive is not None:
            signs = None if call.positive is None else SignFactors(call.positive, ctx.text)
            yield call.queries, attend_scaled(ctx.attend, call.logits, queries, keys, values, None, signs, plan.centred)
        else:
            yield call.queries, ctx.attend(queries, keys, values)


def _sliding(call: AttentionCall, inputs: LayerInputs, tokens: int) -> Tensor:
    """Sliding windows: one batched call over views of k and v, or a call for each query frame where text joins them."""
    (start, stop), count = call.keys[0], call.queries[1] - call.queries[0]
    ctx, q, k, v = inputs.ctx, inputs.q, inputs.k, inputs.v
    output = torch.empty_like(q)
    if ctx.text is not None:
        for shift in range(count):
            rows = slice(shift * tokens, (shift + 1) * tokens)
            window = slice((start + shift) * tokens, (stop + shift) * tokens)
            output[:, rows] = ctx.attend(q[:, rows], k[:, window], v[:, window])
        return output
    for sample in range(q.shape[0]):
        keys, values = (windows_of(x[sample], start * tokens, (stop - start) * tokens, count, tokens) for x in (k, v))
        output[sample] = ctx.attend(q[sample].unflatten(0, (count, tokens)), keys, values).flatten(0, 1)
    return output


def _banded(call: AttentionCall, centred: bool, inputs: LayerInputs, tokens: int) -> Tensor:
    """One query frame over whole frames and bands of frames, exact in tokens: a block of query tokens at a time.

    A block as long as the narrowest band is half wide reads half as many keys again as it needs; the mask discards them.
    """
    assert call.bands is not None
    ctx, q, output, bands = inputs.ctx, inputs.q, torch.empty_like(inputs.q), call.bands
    block = max(SMALLEST_BLOCK, math.ceil(bands.min() * tokens))
    index = torch.arange(tokens, device=q.device)
    origin = mean_key(_scaled_keys(inputs.k, call.logits), ctx.text) if call.positive is not None and centred else None
    widths = [tokens if share >= 1 else math.ceil(share * tokens) for share in bands]  # |q - k| < width
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        spans = [(max(0, first - width + 1), min(tokens, last + width - 1)) for width in widths]
        rows = index[first:last, None]
        seen = torch.cat([(rows - index[a:b]).abs() < width for (a, b), width in zip(spans, widths, strict=True)], dim=1)
        ranges = tuple((j * tokens + a, j * tokens + b) for j, (a, b) in enumerate(spans))
        keys, values = (frames_of(x, ranges, 1) for x in (inputs.k, inputs.v))
        lengths = [b - a for a, b in spans]
        logits, positive = (None if x is None else np.repeat(x, lengths, axis=1) for x in (call.logits, call.positive))
        signs = None if positive is None else SignFactors(positive, ctx.text, origin)
        output[:, first:last] = attend_scaled(ctx.attend, logits, q[:, first:last], keys, values, seen, signs)
    return output


def attend_scaled(
    attend: Callable[..., Tensor],
    logits: np.ndarray | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None = None,
    signs: SignFactors | None = None,
    centred: bool = False,
) -> Tensor:
    """`attend` with factors and addends on the logits of key frames or keys, `logits` [2, frames or Nk]. seen: bool [Nq, Nk].

    signs: factors on positive logits, and the text that `attend` would append: it is not asked then. centred: whether logits are
    positive above their mean over k and the text.
    """
    k, mask = _scaled_keys(k, logits), seen
    if logits is not None and not (logits[1] == 0).all():
        addends = _by_key(logits[1], k).expand(q.shape[1], -1)
        mask = addends if seen is None else addends.masked_fill(~seen, -torch.inf)
    if signs is None:
        return attend(q, k, v) if mask is None else attend(q, k, v, mask)
    return attend_by_sign(q, k, v, replace(signs, origin=mean_key(k, signs.text)) if centred else signs, mask)


def _by_key(row: np.ndarray, k: Tensor) -> Tensor:
    """`row`, a number for each key frame or key, for each of k [B, Nk, H, D]."""
    return on_device(row, k.device, k.dtype).repeat_interleave(k.shape[1] // len(row))


def _scaled_keys(k: Tensor, logits: np.ndarray | None) -> Tensor:
    return k if logits is None or (logits[0] == 1).all() else k * _by_key(logits[0], k)[:, None, None]


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
    """None, for the backbone's own rotary tables, where positions are 0, 1, .. T-1."""
    return None if np.array_equal(positions, np.arange(len(positions))) else positions


@lru_cache(maxsize=256)
def call_list(pass_: Pass, with_text: bool) -> CallList:
    """`lower`, once for each table (passes hash by identity)."""
    return lower(pass_, with_text)
