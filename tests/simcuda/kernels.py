"""CUDA's attention kernels on the CPU, with the constraints that the real ones check.

Legend: B batch, H heads, Nq queries, Nk keys, D head dim.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLASH, EFFICIENT, CUDNN = (f"_scaled_dot_product_{name}_attention" for name in ("flash", "efficient", "cudnn"))
HALF = (torch.float16, torch.bfloat16)
LSE_BLOCK = 32  # the efficient kernel pads the log-sum-exp to a multiple of it, with whatever is in memory


class Attended(NamedTuple):
    """output [B, H, Nq, D] in the layout of the kernels, [B, Nq, H, D]; lse [B, H, Nq or more]."""

    output: Tensor
    lse: Tensor


def refusal(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str | None:
    """What the kernel `name` raises for q [B, H, Nq, D], k, v [B, H, Nk, D] and an additive mask; None where it runs."""
    head_dim = q.shape[-1]
    if not (q.dtype == k.dtype == v.dtype):
        return f"Expected query, key, and value to have the same dtype, but got {q.dtype}, {k.dtype} and {v.dtype}"
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        return "Input tensor must have contiguous last dimension"
    if name != EFFICIENT:
        if q.dtype not in HALF:
            return "FlashAttention only support fp16 and bf16 data type"
        if head_dim % 8:
            return "head_size should be a multiple of 8"
        return "FlashAttention forward only supports head dimension at most 256" if head_dim > 256 else None
    align = 16 // q.element_size() if q.dtype in HALF else 4
    for x, letter in ((q, "query"), (k, "key"), (v, "value")):
        if x.shape[-1] % align or x.stride(1) % align or x.stride(2) % align:
            return f"{letter} is not correctly aligned (strides {x.stride()})"
    if mask is None:
        return None
    if mask.dtype != q.dtype:
        return "invalid dtype for bias - should match query's dtype"
    if mask.ndim != 4 or mask.shape[:2] != q.shape[:2]:
        return "Bias expected in BMHK format"
    if mask.stride(-1) != 1 or mask.stride(-2) % align or mask.storage_offset() % align:
        return f"attn_bias is not correctly aligned (strides {mask.stride()}, offset {mask.storage_offset()})"
    return None


def attend(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Attended:
    """Of host tensors, summed in float32 as the kernels do."""
    logits = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    if mask is not None:
        logits = logits + mask.float()
    lse = logits.logsumexp(-1)
    output = (logits.softmax(-1) @ v.float()).to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    if name == EFFICIENT:
        padded = lse.new_full((*lse.shape[:2], -(-lse.shape[2] // LSE_BLOCK) * LSE_BLOCK), math.nan)
        padded[..., : lse.shape[2]] = lse
        lse = padded
    return Attended(output, lse)


def mask_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The additive mask among the arguments of a kernel; flash attention takes none."""
    if name == FLASH:
        return None
    mask: Tensor | None = args[3] if len(args) > 3 else kwargs.get("attn_bias")
    return mask
