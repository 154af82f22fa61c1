"""Counts operators on a fake device as they are called: kernels, copies, waits, floating-point operations and bytes.

Matrix products, attention, Fourier transforms and eigenproblems are counted by formula (10 n^3 operations an eigenproblem), every
other operator as one operation an element that it writes. Bytes are those of a kernel's inputs and outputs: what a cache of the
device holds is not known. An operator whose result depends on values is a wait, and goes on with values that keep its shape.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from longgen.cards import ATTENTION, DOUBLE, EIGEN, HALF, MATMUL, OTHER, SINGLE, Operator

FREE = frozenset({  # of the host alone: views, and memory that nothing is written to
    "view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "transpose", "permute", "movedim", "t", "numpy_T", "expand",
    "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "diagonal", "unfold", "as_strided", "detach", "alias",
    "lift_fresh", "view_as_real", "view_as_complex", "real", "imag", "_conj", "_neg_view", "resolve_conj", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "device", "is_pinned", "is_same_size", "sym_size",
    "_has_same_storage_numel",
})  # fmt: skip
WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "_linalg_eigh", "linalg_qr"})
GATHERED = frozenset({"index", "index_select", "gather", "embedding", "index_put_", "index_copy_", "index_add_"})
FILLED = frozenset({"fill_", "zero_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
                    "new_full", "copy_", "arange", "linspace", "eye", "scalar_tensor"})  # fmt: skip
MOVED = frozenset({"_to_copy", "clone", "cat", "stack"})  # without arithmetic
DOUBLES = (torch.float64, torch.complex128)
HALVES = (torch.float16, torch.bfloat16)


def nonzero(x: Tensor) -> Tensor:
    """As if every element were one: the most that can come."""
    return torch.zeros(x.numel(), x.ndim, dtype=torch.long, device=x.device)


def bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return torch.zeros(minlength, dtype=torch.long if weights is None else weights.dtype, device=x.device)


VALUES: dict[str, Callable[..., Any]] = {  # of operators whose result, or its shape, depends on values
    "_local_scalar_dense": lambda x: True if x.dtype == torch.bool else 1.0 if x.dtype.is_floating_point else 0,
    "nonzero": nonzero,
    "masked_select": lambda x, mask: x.broadcast_to(torch.broadcast_shapes(x.shape, mask.shape)).flatten().clone(),
    "bincount": bincount,
    "equal": lambda x, y: True,
}


class OperatorCounter(TorchDispatchMode):
    """Within the context, operators that touch `device` run in `mode`, without values, and can be counted; all others run as ever.

    place: where the next operators are counted, as a layer; None: they are not. by_place: of each place its operators.
    """

    def __init__(self, device: torch.device, mode: FakeTensorMode) -> None:
        super().__init__()
        self.device, self.mode = device, mode
        self.place: str | None = None
        self.by_place: dict[str, Counter[Operator]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name, kwargs = func._schema.name.split("::")[1], kwargs or {}
        leaves = tree_leaves((args, kwargs))
        inputs = [x for x in leaves if isinstance(x, Tensor)]
        on_device = any(x.device == self.device for x in inputs)
        if not on_device and self.device not in leaves:
            return func(*args, **kwargs)
        masked = name in ("index", "index_put_") and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1])
        if masked and name == "index_put_" and args[2].numel() == 1:
            masked = False  # filled under the mask, without its indices
        if masked and name == "index":
            with self.mode:
                args = _without_masks(args)
        if on_device and name in VALUES:
            with self.mode:
                output = VALUES[name](*args, **kwargs)
        else:
            output = self.mode.__torch_dispatch__(func, types, args, kwargs)  # as if it were entered, which takes longer
        if self.place is not None and name not in FREE:
            outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
            operator = self._operator(func, name, args, kwargs, inputs, outputs, output, masked)
            self.by_place.setdefault(self.place, Counter())[operator] += 1
        return tree_map(_with_values, output) if on_device else output

    def _operator(
        self, func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor], output: Any, masked: bool
    ) -> Operator:
        copies = int(any(x.device.type == "cpu" and x.ndim for x in inputs))
        fetched = any(x.device.type == "cpu" for x in outputs)
        dtype = outputs[0].dtype if outputs else inputs[0].dtype if inputs else torch.float32
        precision = DOUBLE if dtype in DOUBLES else HALF if dtype in HALVES else SINGLE
        kind, flops = flops_of(func, name, args, kwargs, inputs, outputs, output)
        launches = int(not (copies and name in ("_to_copy", "copy_")) and not fetched)
        waits = int(fetched or masked or name in WAITS)
        return Operator(name, kind, precision, flops, _bytes(name, inputs, outputs), launches, copies, waits)


def _with_values(value: Any) -> Any:
    """What comes to the host, with values that it may read: masks are true everywhere, numbers 0."""
    if not isinstance(value, FakeTensor) or value.device.type != "cpu":
        return value
    return torch.full(value.shape, value.dtype == torch.bool, dtype=value.dtype)


def flops_of(
    func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor], output: Any
) -> tuple[str, float]:
    """The kind of an operator, and its floating-point operations."""
    if "eigh" in name or "eigvalsh" in name:
        *batch, n, _ = inputs[0].shape
        return EIGEN, 10 * math.prod(batch) * n**3
    if "_fft_" in name:
        return OTHER, 5 * max(x.numel() for x in (*inputs, *outputs)) * math.log2(max(2, _transformed(inputs[0], args[1])))
    packet = torch.ops.aten.baddbmm if name == "baddbmm_" else func._overloadpacket
    if packet in flop_registry:
        kind = ATTENTION if "attention" in name else MATMUL
        return kind, float(flop_registry[packet](*args, **kwargs, out_val=output))
    numbers = (x for x in outputs if x.dtype.is_floating_point or x.dtype.is_complex)
    return OTHER, 0.0 if name in FILLED | MOVED else float(sum(x.numel() for x in numbers))


def _transformed(x: Tensor, dims: Sequence[int]) -> int:
    """The elements of one Fourier transform over `dims` of `x`."""
    return math.prod(x.shape[dim] for dim in dims)


def _bytes(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    """What a kernel reads and writes. Of a gather, only what it takes; of a scatter, only what it puts; once what is expanded."""
    written = sum(_nbytes(x) for x in outputs)
    if name in GATHERED:
        moved = sum(_nbytes(x) for x in inputs[1:]) if name.endswith("_") else written
        return 2 * moved
    if name in FILLED:
        return written + (_nbytes(inputs[1]) if name == "copy_" else 0)
    return written + sum(_nbytes(x) for x in inputs)


def _nbytes(x: Tensor) -> int:
    return x.element_size() * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def _without_masks(args: Sequence[Any]) -> Sequence[Any]:
    """The arguments of `index` with numbers in place of masks, as if these were true everywhere: the shape depends on them."""
    x, indices = args[0], list(args[1])
    for dim, index in enumerate(indices):
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            indices[dim : dim + 1] = nonzero(index).unbind(1)
    return (x, indices, *args[2:])
