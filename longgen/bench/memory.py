"""Peak memory of tensors on a CPU, for which torch has no statistics.

Counted: the storage of every tensor that a torch operation returns while tracking, once however many views it has, until the last
of them is freed. Not counted: what existed before (weights, latents), temporary buffers inside an operation (blocks of a matrix
product or of fused attention), NumPy arrays, and memory that the allocator caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationTracker(TorchDispatchMode):
    """Within the context, `now` is the bytes alive, and `peak` the maximum since `mark`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def mark(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) not in inputs and storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, storage.nbytes())
        return result

    def _release(self, count: int) -> None:
        self.now -= count


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


def weight_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of all parameters and buffers; shared ones count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for module in modules for tensor in (*module.parameters(), *module.buffers())}  # fmt: skip
    return sum(storages.values())
