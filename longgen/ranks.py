"""The processes that make one video together, one on each card: ranks of torch.distributed, started by torchrun or `--gpus N`.

Every rank runs the same command with the same seed and holds equal latents after each step; rank 0 alone writes files and speaks.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

from longgen.errors import UsageError

WAIT = datetime.timedelta(minutes=30)  # for the slowest rank: decoding, compiling and reading weights take minutes


@dataclass(frozen=True)
class Ranks:
    """This process among `size`. local: its number on this machine, which is that of its card."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process writes files, and what people read."""
        return self.rank == 0


ALONE = Ranks()


def from_environment() -> Ranks:
    """What torchrun says of this process in its environment; `ALONE` without it. Raises UsageError where it says half of it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name) for name in names]
    if values[0] is None or values[1] is None:
        return ALONE
    try:
        rank, size, local = (int(value or 0) for value in values)
    except ValueError:
        raise UsageError(f"{', '.join(names)} are {values}", expected="whole numbers, as torchrun sets them",
                         hint="start it by torchrun or --gpus N, or unset them") from None  # fmt: skip
    return Ranks(rank, size, local)


def start(device: str) -> Ranks:
    """Joins the group of the ranks that the environment names, over gloo on a CPU and NCCL on cards, unless that was done.

    device: "cpu" or "cuda". The group of one process is none.
    """
    ranks = from_environment()
    if ranks.size > 1:
        import torch
        from torch import distributed

        if not distributed.is_initialized():
            if device.startswith("cuda"):
                torch.cuda.set_device(ranks.local)
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=WAIT)
    return ranks


def current() -> Ranks:
    """This process in the group that `start` joined; `ALONE` before it, and without one."""
    import sys

    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size(), from_environment().local)


def agree(value: Any) -> Any:
    """What rank 0 has as `value`, on every rank: seeds, names and decisions that only one process may make."""
    if current() == ALONE:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
