"""Stripes of frames, apart from what is seen whole: of a key frame, query token q sees the tokens k with |q - k| < width.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, f query frames, m query tokens of a chunk, s key tokens
of its span, H heads, D head dim.

A chunk of m tokens of every query frame needs s = m + 2 width - 2 tokens of every key frame. These are copied, frame after frame,
so that key frames are ranges and windows that move on with the query frame are views: one batched call for a chunk of many
frames, with one mask [m, s] for all pairs of frames. The rest of a pass is merged with it (`longgen.attention.lse_merge`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longgen.attention.lowering import CallList, lower
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.sequential import frames_of, windows_of
from longgen.frameplan import FramePlan, Pass, distances, spans

if TYPE_CHECKING:
    from longgen.attention.context import AttentionContext

ALIGNED = 16  # keys: rows of masks begin at multiples of it


@dataclass(frozen=True, eq=False)
class Bands:
    """shares: of a frame, and the frames that are seen by it. native: whether all of the pass is at the backbone's own times."""

    shares: tuple[tuple[float, CallList], ...]
    native: bool


@lru_cache(maxsize=64)
def split(one: Pass) -> tuple[Pass, Bands] | None:
    """`one` without what it sees in stripes, and that; None where the stripes' times need keys that are rotated anew."""
    assert one.stripe is not None
    seen = one.visible & (one.weight > 0)[:, None]
    striped = seen & (one.stripe < 1)
    rel, bands = distances(len(one.rel)), []
    if (one.rel != rel)[striped].any():
        rel = one.rel
    before = np.tri(len(rel), dtype=bool)
    for share in np.unique(one.stripe[striped]):
        for side in (before, ~before):  # apart, a frame mostly sees one range
            own = striped & (one.stripe == share) & side
            if own.any():
                bands.append((float(share), lower(Pass(rel, own, own.any(axis=1).astype(float)))))
    alike = all(np.array_equal(schedule.positions, bands[0][1].positions) for _, schedule in bands)
    if not bands or not alike or any(schedule.keyed or schedule.lag for _, schedule in bands):
        return None
    native = np.array_equal(one.rel, distances(len(rel)))
    return replace(one, visible=seen & ~striped, stripe=None), Bands(tuple(bands), native)


def banded(
    bands: Bands, plan: FramePlan, family: AttentionContext, masked: AttentionWithLSE, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention to the stripes alone: output [B, T, n, H, D] and log Z [B, T, H, n], -inf for frames that see none."""
    by_frame = (plan.frames_lat, q.shape[1] // plan.frames_lat)
    positions, tokens = bands.shares[0][1].positions, by_frame[1]
    q, k = (family.rotate(x, None if bands.native else positions, plan.frequency_scale).unflatten(1, by_frame) for x in (q, k))
    q, v = q if plan.logit_scale == 1 else q * plan.logit_scale, v.unflatten(1, by_frame)
    precise = torch.promote_types(v.dtype, torch.float32)
    total = torch.zeros_like(v, dtype=precise, memory_format=torch.contiguous_format)
    sums = total.new_full((*v.shape[:2], v.shape[3], tokens), -torch.inf)
    for share, schedule in bands.shares:
        width = int(np.ceil(share * tokens))
        for (first, last), (start, stop) in spans(share, tokens):
            span, index = stop - start, torch.arange(tokens, device=q.device)
            seen = (index[first:last, None] - index[start:stop]).abs() < width
            keys, values = (x[:, :, start:stop].flatten(1, 2) for x in (k, v))
            for call in schedule.calls:
                rows, (begin, end) = slice(*call.queries), call.keys[0]
                count, length = call.queries[1] - call.queries[0], sum(b - a for a, b in call.keys)
                mask = q.new_zeros(last - first, -(-length * span // ALIGNED) * ALIGNED)[:, : length * span]
                mask.unflatten(1, (length, span)).masked_fill_(~seen[:, None], -torch.inf)
                for sample in range(len(q)):
                    if call.sliding:
                        own = [windows_of(x[sample], begin * span, (end - begin) * span, count, span) for x in (keys, values)]
                    else:
                        own = [frames_of(x[sample : sample + 1], call.keys, span).expand(count, -1, -1, -1) for x in (keys, values)]
                    output, log_sum = masked(q[sample, rows, first:last], *own, mask)
                    before = sums[sample, rows, :, first:last]
                    both = torch.logaddexp(before, log_sum.to(precise))
                    old, new = ((part - both).exp_().transpose(1, 2)[..., None] for part in (before, log_sum))  # [f, m, H, 1] each
                    place = total[sample, rows, first:last]
                    place.mul_(old).addcmul_(output, new)
                    before.copy_(both)
    return total, sums
