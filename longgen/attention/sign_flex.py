"""Attention with factors on positive logits as one compiled kernel: PyTorch's FlexAttention. For accelerators.

Legend: B batch, f query frames, n query tokens per frame, Nq = f n queries, K key frames (or keys), Nk keys, H heads, D head dim.

Uncompiled, FlexAttention writes all logits down at once, [B, H, Nq, Nk]: `_by_sign` refuses to run unless it is being compiled, as
where compiling is switched off. Each shape is compiled anew, and PyTorch gives up after eight: no more than `MOST_SHAPES` are. What
does not compile, or differs from plain steps on a few tokens, is not used, and `longgen.attention.score_blocks` does the work.

No GPU has been at hand: its compiled form has been run on a CPU alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.attention.flex_attention import flex_attention

from longgen.attention.lse_kernels import TOLERANCE
from longgen.device_tables import on_device

FlexBySign = Callable[[Tensor, Tensor, Tensor, np.ndarray, int], Tensor]
"""q [B, Nq, H, D], k and v [B, Nk, H, D], factors [f, K] on positive logits, and tokens of a key frame -> output [B, Nq, H, D].

Keys from K times those tokens on are text: their logits stay as they are. Raises NotCompiledError."""

MOST_SHAPES = 6
TRIAL = (3, 48, 4, 40, 13)  # query frames, tokens of each, key frames, tokens of each, text: no multiples of a kernel's blocks


_shapes: set[tuple[object, ...]] = set()


class NotCompiledError(RuntimeError):
    """FlexAttention would run uncompiled."""


def _by_sign(q: Tensor, k: Tensor, v: Tensor, table: Tensor, tokens: int, key_tokens: int) -> Tensor:
    """q [B, H, Nq, D], k and v [B, H, Nk, D]; table [f, K + 1], whose last column is the text's: 1."""
    if not is_compiling():
        raise NotCompiledError
    last = table.shape[1] - 1

    def scaled(score: Tensor, _b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        factor = table[query // tokens, torch.clamp(key // key_tokens, max=last)]
        return torch.where(score > 0, score * factor, score)

    return flex_attention(q, k, v, score_mod=scaled)  # type: ignore[return-value]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_by_sign, fullgraph=True, dynamic=False)


def _call(q: Tensor, k: Tensor, v: Tensor, factors: np.ndarray, key_tokens: int) -> Tensor:
    shape = (*((x.shape, x.stride()) for x in (q, k, v)), q.dtype, q.device, factors.shape, key_tokens)
    if shape not in _shapes and len(_shapes) == MOST_SHAPES:
        raise NotCompiledError
    _shapes.add(shape)
    table = on_device(np.pad(factors, ((0, 0), (0, 1)), constant_values=1.0), q.device, torch.float32)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    with torch.no_grad():
        return _compiled()(*heads_first, table, q.shape[1] // len(factors), key_tokens).transpose(1, 2)


@lru_cache(maxsize=16)
def flex_by_sign(device: torch.device, dtype: torch.dtype, head_dim: int) -> FlexBySign | None:
    """The kernel for such tensors, or None where it cannot be compiled or is wrong, and on a CPU, where blocks are as quick."""
    if device.type == "cpu":
        return None
    return _call if _works(device, dtype, head_dim) else None


def _works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    frames, tokens, key_frames, key_tokens, text = TRIAL
    generator = torch.Generator().manual_seed(0)
    shapes = frames * tokens, key_frames * key_tokens + text, key_frames * key_tokens + text
    q, k, v = (torch.randn(2, count, 2, head_dim, generator=generator).to(device, dtype) for count in shapes)
    factors = np.linspace(0, 1.5, frames * key_frames).reshape(frames, key_frames)
    try:
        output = _call(q, k, v, factors, key_tokens)
    except Exception:  # whatever the compiler raises: blocks do it
        return False
    q, k, v = (x.cpu().double() for x in (q, k, v))  # not every device has doubles
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / head_dim**0.5
    by_token = np.pad(factors.repeat(tokens, 0).repeat(key_tokens, 1), ((0, 0), (0, text)), constant_values=1.0)
    weights = torch.where(logits > 0, logits * torch.from_numpy(by_token), logits).softmax(-1)
    exact = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    return float((output.cpu().double() - exact).abs().max()) < TOLERANCE
