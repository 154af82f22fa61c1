"""PyTorch attention kernels that also return the log-sum-exp (LSE).

Legend: B batch, Nq queries, Nk keys, H heads, D head dim.

lse = log of the sum over keys of exp(logit), in single precision or better. These operators are private to PyTorch, so each is
tried on a few tokens before it is used, against a softmax in plain steps: one that raises or differs is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

AttentionWithLSE = Callable[..., tuple[Tensor, Tensor]]
"""q [B, Nq, H, D], k and v [B, Nk, H, D], and where it is masked what is added to the logits [Nq, Nk], of q's dtype ->
output [B, Nq, H, D] and lse [B, H, Nq], float32 or better."""

TRIAL = (2, 5, 37)  # heads, queries, keys; no multiples of the blocks that kernels work in
TOLERANCE = 0.05  # bf16 rounds its outputs by 0.01 there


@lru_cache(maxsize=16)
def attention_with_lse(device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool = False) -> AttentionWithLSE | None:
    """The kernel for such tensors, or None where PyTorch has none that works."""
    for operator in _OPERATORS.get(device.type, ()):

        def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, operator: Any = operator) -> tuple[Tensor, Tensor]:
            if mask is not None:
                mask = mask.expand(len(q), q.shape[2], -1, -1)
            output, lse = operator(*(x.transpose(1, 2) for x in (q, k, v)), mask)[:2]
            return output.transpose(1, 2), lse[..., : q.shape[1]]  # the efficient kernel pads it to a multiple of 32

        if _works(call, device, dtype, head_dim, masked):
            return call
    return None


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
    if mask is not None:
        raise NotImplementedError
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)


_OPERATORS: dict[str, tuple[Callable[..., Any], ...]] = {  # of q, k, v and a mask
    "cpu": (lambda q, k, v, mask: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask),),
    "cuda": (_flash, lambda q, k, v, mask: torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True)),
}


def _works(call: AttentionWithLSE, device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool = False) -> bool:
    heads, queries, keys = TRIAL
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, tokens, heads, head_dim, generator=generator).to(device, dtype) for tokens in (queries, keys, keys))
    mask = torch.zeros(queries, 48, device=device, dtype=dtype)[:, :keys]  # rows at multiples of 16
    mask[:, ::3] = -torch.inf
    try:
        output, lse = call(q, k, v, mask) if masked else call(q, k, v)
    except (RuntimeError, NotImplementedError):
        return False
    q, k, v, mask = (x.cpu().double() for x in (q, k, v, mask))  # not every device has doubles
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / head_dim**0.5 + (mask if masked else 0)
    exact = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)
    errors = ((output.cpu().double() - exact).abs().max(), (lse.cpu().double() - logits.logsumexp(-1)).abs().max())
    return lse.dtype in (torch.float32, torch.float64) and all(float(error) < TOLERANCE for error in errors)
