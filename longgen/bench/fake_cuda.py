"""Tensors on a CUDA device that is not there: they have a shape, a dtype and a device, and neither memory nor values.

torch's FakeTensorMode makes them, but torch also asks for the guard of the device, which switches devices around an operator: a
torch without CUDA has none, and one with CUDA and no GPU has one that fails. Within the context CUDA's place in torch's registry
of guards, a symbol of libc10, holds the guard of `meta`, which does nothing. The device has a number that no real one has, so
that no cache of tables by device can mix the two.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from longgen import device_tables
from longgen.attention import score_blocks
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.errors import LonggenError
from longgen.pipelines import processors

DEVICE = torch.device("cuda", 100)
_CUDA, _META = 1, 14  # c10::DeviceType
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_LIBRARY = {"linux": "libc10.so", "darwin": "libc10.dylib"}

_mode: FakeTensorMode | None = None


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Within the context, operators on fake tensors of `DEVICE` can be called, and `torch` is otherwise as it was.

    The mode that is yielded makes such tensors while it is entered. Raises LonggenError where this torch keeps no such registry.
    """
    global _mode
    registry = _guards()
    with ExitStack() as stack:
        stack.callback(registry.__setitem__, _CUDA, registry[_CUDA])
        registry[_CUDA] = registry[_META]
        stack.enter_context(mock.patch.object(torch.cuda, "_lazy_init"))
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention))
        stack.enter_context(mock.patch.object(Tensor, "new_tensor", _new_tensor))
        stack.enter_context(mock.patch.object(processors, "attention_with_lse", _attention_with_lse))
        stack.enter_context(mock.patch.object(score_blocks, "flex_by_sign", return_value=_flex_by_sign))
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # a list becomes a tensor of the host, and then goes to the device as an operator
        stack.callback(device_tables.forget)
        _mode = _mode or FakeTensorMode(allow_non_fake_inputs=True)  # one for all: what is cached must not meet another mode
        yield _mode


def _guards() -> Any:
    """torch's registry of device guards, by device type."""
    library = Path(torch.__file__).parent / "lib" / _LIBRARY.get(sys.platform, "")
    try:
        return (ctypes.c_void_p * (_META + 1)).in_dll(ctypes.CDLL(str(library)), _REGISTRY)
    except (OSError, ValueError) as error:
        raise LonggenError(
            f"operators cannot be counted here: {library.name} of torch {torch.__version__} cannot be used ({error})",
            expected="torch for Linux or macOS",
            hint="count on another machine: no GPU is needed",
        ) from error


def _new_tensor(x: Tensor, data: Any, dtype: torch.dtype | None = None) -> Tensor:
    """`x.new_tensor(data)`: torch's own is on `meta` where `x` is a fake tensor."""
    return torch.tensor(data, dtype=dtype or x.dtype).to(x.device)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """scaled_dot_product_attention as CUDA dispatches it: one kernel, the memory-efficient one where there is a mask."""
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, False, dropout_p, is_causal)[0]


def _attention_with_lse(device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool = False) -> AttentionWithLSE:
    """The kernels of `lse_kernels` for CUDA, which cannot be tried on values here."""
    return _masked_with_lse if masked else _flash_with_lse


def _flex_by_sign(q: Tensor, k: Tensor, v: Tensor, factors: np.ndarray, key_tokens: int) -> Tensor:
    """The compiled kernel of `sign_flex`: one, as any attention kernel, and a table."""
    device_tables.on_device(np.pad(factors, ((0, 0), (0, 1))), q.device, torch.float32)
    return _flash_with_lse(q, k, v)[0]


def _flash_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(*(x.transpose(1, 2) for x in (q, k, v)))[:2]
    return out.transpose(1, 2), lse[..., : q.shape[1]]


def _masked_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return _flash_with_lse(q, k, v)
    mask = mask.expand(len(q), q.shape[2], -1, -1)
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask, True)[:2]
    return out.transpose(1, 2), lse[..., : q.shape[1]]
