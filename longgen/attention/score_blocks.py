"""Attention with factors on positive logits, a block of query tokens over all its keys at a time.

Legend: B batch, f query frames, n tokens per frame, Nq = f n queries, K key frames (or keys), Nk keys, L text tokens, H heads,
D head dim, G = B H.

No attention kernel asks for the sign of a logit but one that is compiled for it (`longgen.attention.sign_flex`), for query frames
that see the same keys on an accelerator. Elsewhere logits are written down: of as many heads and query tokens at once as
fit a block, in float32 or better whatever the type of q. With a the factor of a pair of frames and s its logit,

    a max(s, 0) + min(s, 0) = a leaky_relu(s, slope 1 / a)

in place, on runs of key frames with equal factors. Text is seen with its logits as they are. Where logits are centred, s is less
the mean logit of the query, which a softmax does not see: the mean of the keys is taken from all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_

from longgen.attention.lowering import Range
from longgen.attention.sign_flex import NotCompiledError, flex_by_sign
from longgen.device_costs import CPU_BYTES, DEVICE_BYTES

FEWEST_QUERIES = 64  # of a block, where a frame has as many: below, products of matrices are slow


@dataclass(frozen=True, eq=False)
class SignFactors:
    """positive [f, K]: the factor on the positive logits of each query frame with each key frame, or key.

    text: k and v [B, L, H, D] that every query sees besides, or None. origin: the key [B, 1, H, D] whose logit counts as 0, if any.
    """

    positive: np.ndarray
    text: tuple[Tensor, Tensor] | None = None
    origin: Tensor | None = None


def mean_key(k: Tensor, text: tuple[Tensor, Tensor] | None) -> Tensor:
    """The key [B, 1, H, D] whose logit is the mean of those of k and of `text`."""
    total = k.sum(dim=1, keepdim=True, dtype=torch.promote_types(k.dtype, torch.float32))
    if text is None:
        return total / k.shape[1]
    return (total + text[0].sum(dim=1, keepdim=True, dtype=total.dtype)) / (k.shape[1] + text[0].shape[1])


def attend_by_sign(q: Tensor, k: Tensor, v: Tensor, factors: SignFactors, mask: Tensor | None = None) -> Tensor:
    """Attention [B, Nq, H, D] of q over k, v [B, Nk, H, D] and the text of `factors`.

    mask [Nq, Nk]: True where a key is seen, or the float that is added to the logits.
    """
    positive, text = factors.positive, factors.text
    keys, output = k.shape[1], torch.empty_like(q)
    if text is not None:
        k, v = (torch.cat([x, more], dim=1) for x, more in zip((k, v), text, strict=True))
    size, tokens = keys // positive.shape[1], q.shape[1] // len(positive)
    precise = torch.promote_types(q.dtype, torch.float32)
    if len(positive) > 1 and mask is None and (flex := flex_by_sign(q.device, q.dtype, q.shape[3])) is not None:
        try:
            return flex(q, k if factors.origin is None else k - factors.origin.to(k.dtype), v, positive, size)
        except NotCompiledError:
            pass
    from_origin = k.to(precise) if factors.origin is None else k.to(precise) - factors.origin
    k_GDN = from_origin.permute(0, 2, 3, 1).flatten(0, 1).contiguous()
    del from_origin  # as large as two of the layer's tensors
    v_GND = v.transpose(1, 2).to(precise).flatten(0, 1).contiguous()
    q_GND = q.transpose(1, 2).to(precise).flatten(0, 1) * q.shape[3] ** -0.5
    of_output = output.transpose(1, 2)
    heads, most = _block(len(k_GDN), k.shape[1], tokens, precise, q.device)
    for group in range(0, len(k_GDN), heads):
        these = slice(group, group + heads)
        for frame, row in enumerate(positive):
            runs = list(_runs(row))
            for first in range(frame * tokens, (frame + 1) * tokens, most):
                rows = slice(first, min(first + most, (frame + 1) * tokens))
                logits = torch.bmm(q_GND[these, rows], k_GDN[these])
                for (start, stop), factor in runs:
                    _scale_positive(logits[..., start * size : stop * size], factor)
                if mask is not None and mask.dtype == torch.bool:
                    logits[..., :keys].masked_fill_(~mask[rows], -torch.inf)
                elif mask is not None:
                    logits[..., :keys] += mask[rows]
                part = torch.bmm(logits.softmax(-1), v_GND[these])
                for place, of_head in zip(range(*these.indices(len(k_GDN))), part, strict=True):
                    of_output[divmod(place, q.shape[2])][rows] = of_head
    return output


def _block(groups: int, keys: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Range:
    """Heads, those of all samples counted, and query tokens of a block."""
    rows = (CPU_BYTES if device.type == "cpu" else DEVICE_BYTES) // (keys * dtype.itemsize)
    fewest = min(FEWEST_QUERIES, tokens)
    heads = max(1, min(groups, rows // fewest))
    return heads, max(fewest, min(tokens, rows // heads))


def _runs(factors: np.ndarray) -> Iterator[tuple[Range, float]]:
    """The runs of equal `factors` [K] that are not 1."""
    edges = [0, *(np.flatnonzero(np.diff(factors)) + 1).tolist(), len(factors)]
    yield from ((run, float(factors[run[0]])) for run in itertools.pairwise(edges) if factors[run[0]] != 1)


def _scale_positive(logits: Tensor, factor: float) -> None:
    """In place, multiplies by `factor` what is above 0."""
    if factor == 0:
        logits.clamp_(max=0)
    else:
        leaky_relu_(logits, 1 / factor).mul_(factor)
