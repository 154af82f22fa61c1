"""NumPy tables as tensors on a device, copied there once.

A copy from the host takes its turn in the queue of the device, and from pageable memory the host waits for it: tables that every
layer and step read are sent once and looked up by their values afterwards.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 64 * 2**20  # of tables kept; the one not used for longest goes first

_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()


def on_device(table: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`table` on `device`, of `dtype` or the table's own; not to be changed in place."""
    if device.type == "cpu":
        return torch.from_numpy(np.array(table)).to(dtype)
    key = (table.tobytes(), table.shape, table.dtype.str, str(device), dtype)
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    _tables[key] = torch.from_numpy(np.array(table)).to(dtype).to(device)
    kept = sum(tensor.nbytes for tensor in _tables.values())
    while kept > MOST_BYTES and len(_tables) > 1:
        kept -= _tables.popitem(last=False)[1].nbytes
    return _tables[key]


def double_on(device: torch.device) -> torch.dtype:
    """The most precise type of numbers on `device`: Apple's GPUs have no double precision."""
    return torch.float32 if device.type == "mps" else torch.float64


def forget() -> None:
    """Frees all tables."""
    _tables.clear()
