"""The tensors that are alive on a CPU, where torch keeps no account of its own.

Seen: the memory of every tensor that an operation of torch gives back while the account is open, once however many views it has,
until the last of them is gone. Not seen: what was there before (weights, latents), what an operation takes and gives back within
itself (the blocks of a matrix product or of fused attention), NumPy's arrays, and memory that the allocator keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Account(TorchDispatchMode):
    """Within the context, `now` is the bytes that are alive, and `peak` the most there were since `mark`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def mark(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) not in given and storage not in self._known:
                self._open(storage)
        return result

    def _open(self, storage: torch.UntypedStorage) -> None:
        count = storage.nbytes()
        self._known.add(storage)
        self.now += count
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._close, count)

    def _close(self, count: int) -> None:
        self.now -= count


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


def weight_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """The bytes of all parameters and buffers, those that are shared once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for module in modules for tensor in (*module.parameters(), *module.buffers())}  # fmt: skip
    return sum(storages.values())
