"""Banded attention inside frames: of a key frame, query token q sees the tokens k with |q - k| < width.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, f query frames, m query tokens of a chunk, s key tokens
of its span, H heads, D head dim.

A chunk of m tokens of every query frame needs s = m + 2 width - 2 tokens of every key frame. These are copied, frame after frame,
so that key frames are ranges, and windows that move on with the query frame are views: one batched call for a chunk of many
frames, with one mask [m, s] for all pairs of frames. The rest of a pass is merged with it (`longgen.attention.lse_merge`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from longgen.attention.context import LayerInputs
from longgen.attention.lowering import CallList, lower
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.sequential import frames_of, windows_of
from longgen.frameplan import FramePlan, Pass, band_chunks, distances

ALIGNED = 16  # keys: rows of masks begin at multiples of it


@dataclass(frozen=True, eq=False)
class Band:
    """Pairs of frames that are seen in the same `share`, with the same factor and addend on their logits."""

    share: float
    factor: float
    addend: float
    calls: CallList


@dataclass(frozen=True, eq=False)
class Bands:
    """native: whether all of the pass is at the backbone's own times."""

    bands: tuple[Band, ...]
    native: bool


@lru_cache(maxsize=64)
def split(pass_: Pass) -> tuple[Pass, Bands] | None:
    """`pass_` without the pairs of frames seen in bands, and these; None where their times need keys that are rotated again."""
    assert pass_.band is not None
    assert pass_.positive is None
    seen = pass_.visible & (pass_.weight > 0)[:, None]
    banded = seen & (pass_.band < 1)
    if not banded.any():
        return None
    rel, bands = distances(len(pass_.rel)), []
    if (pass_.rel != rel)[banded].any():
        rel = pass_.rel
    logits = np.stack([np.ones_like(rel), np.zeros_like(rel)]) if pass_.logits is None else pass_.logits
    columns = np.stack([pass_.band, *logits])
    before = np.tri(len(rel), dtype=bool)
    for values in np.unique(columns[:, banded], axis=1).T:
        for side in (before, ~before):  # apart, a frame mostly sees one range
            pairs = banded & (columns == values[:, None, None]).all(axis=0) & side
            if pairs.any():
                share, factor, addend = values.tolist()
                bands.append(Band(share, factor, addend, lower(Pass(rel, pairs, pairs.any(axis=1).astype(float)))))
    if any(band.calls.rotates_keys or band.calls.time_offset for band in bands):
        return None
    if not all(np.array_equal(band.calls.positions, bands[0].calls.positions) for band in bands):
        return None
    native = np.array_equal(pass_.rel, distances(len(rel)))
    return replace(pass_, visible=seen & ~banded, columns=pass_.without_shares), Bands(tuple(bands), native)


def attend_bands(bands: Bands, plan: FramePlan, inputs: LayerInputs, kernel: AttentionWithLSE) -> tuple[Tensor, Tensor]:
    """Attention to the bands alone: output [B, T, n, H, D] and lse [B, T, H, n], -inf for frames that see none."""
    tokens = inputs.q.shape[1] // plan.frames_lat
    positions = None if bands.native else bands.bands[0].calls.positions
    q, k = (inputs.ctx.rotate(x, positions, plan.frequency_scale) for x in (inputs.q, inputs.k))
    q, k, v = (x.unflatten(1, (-1, tokens)) for x in (q if plan.logit_scale == 1 else q * plan.logit_scale, k, inputs.v))
    precise = torch.promote_types(v.dtype, torch.float32)
    total = torch.zeros_like(v, dtype=precise, memory_format=torch.contiguous_format)
    total_lse = total.new_full((*v.shape[:2], v.shape[3], tokens), -torch.inf)
    for band in bands.bands:
        width = math.ceil(band.share * tokens)
        for (first, last), (start, stop) in band_chunks(band.share, tokens):
            span, index = stop - start, torch.arange(tokens, device=q.device)
            seen = (index[first:last, None] - index[start:stop]).abs() < width
            keys, values = (x[:, :, start:stop].flatten(1, 2) for x in (k, v))
            for call in band.calls.calls:
                rows, (begin, end) = slice(*call.queries), call.keys[0]
                count, length = call.queries[1] - call.queries[0], sum(b - a for a, b in call.keys)
                mask = q.new_zeros(last - first, -(-length * span // ALIGNED) * ALIGNED)[:, : length * span]
                mask.unflatten(1, (length, span)).masked_fill_(~seen[:, None], -torch.inf)
                for sample in range(len(q)):
                    if call.sliding:
                        kv = [windows_of(x[sample], begin * span, (end - begin) * span, count, span) for x in (keys, values)]
                    else:
                        kv = [frames_of(x[sample : sample + 1], call.keys, span).expand(count, -1, -1, -1) for x in (keys, values)]
                    queries = q[sample, rows, first:last]
                    output, lse = kernel(queries if band.factor == 1 else queries * band.factor, *kv, mask)
                    merge_into(total[sample, rows, first:last], total_lse[sample, rows, :, first:last], output, lse + band.addend)
    return total, total_lse


def merge_into(total: Tensor, total_lse: Tensor, output: Tensor, lse: Tensor) -> None:
    """In place, merges attention over more keys into `total` [f, m, H, D] and `total_lse` [f, H, m]."""
    merged_lse = torch.logaddexp(total_lse, lse.to(total_lse.dtype))
    old, new = ((part - merged_lse).exp_().transpose(1, 2)[..., None] for part in (total_lse, lse))  # [f, m, H, 1] each
    total.mul_(old).addcmul_(output, new)
    total_lse.copy_(merged_lse)
