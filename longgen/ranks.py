"""The processes that make one video together, one on each card: ranks of torch.distributed, started by torchrun or `--gpus N`.

Every rank runs the same command with the same seed and holds equal latents after each step; rank 0 alone reads and writes files,
decides what they, the clock and random draws decide, and speaks.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from longgen import slurm
from longgen.device import chain
from longgen.errors import LonggenError, UsageError

T = TypeVar("T")
WAIT = datetime.timedelta(minutes=30)  # for the slowest rank: decoding, compiling and reading weights take minutes
STORE = "LONGGEN_RANKS"  # variable: the file by which the ranks that `longgen.launch` started find each other
LOOPBACK = ("127.0.0.1", "localhost")
LOST = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)


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

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"

    def device(self, device: str) -> str:
        """The device of this rank, where that of all is `device`: cuda becomes cuda:LOCAL_RANK."""
        return f"cuda:{self.local}" if self.size > 1 and device == "cuda" else device

    def decide(self, decision: Callable[[], T]) -> T:
        """What `decision` returns on rank 0, on every rank. A LonggenError of it is raised on all, with `everywhere` True."""
        if self.size == 1:
            return decision()
        value: Any = None
        error: LonggenError | None = None
        if self.rank == 0:
            try:
                value = decision()
            except LonggenError as raised:
                error = raised
        value, error = agree((value, error))
        if error is not None:
            error.everywhere = True
            raise error
        return value


ALONE = Ranks()


def environment() -> Mapping[str, str]:
    """The variables of this process, with those that torchrun would have set where `srun` started it."""
    return os.environ if "RANK" in os.environ else {**os.environ, **slurm.variables(os.environ)}


def from_environment() -> Ranks:
    """What torchrun, or SLURM, says of this process in its environment; `ALONE` without them. Raises UsageError where it says half
    of it.
    """
    names, present = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), environment()
    values = [present.get(name) for name in names]
    if values[0] is None or values[1] is None:
        return ALONE
    try:
        rank, size, local = (int(value or 0) for value in values)
    except ValueError:
        rank, size, local = -1, -1, -1
    if not 0 <= rank < size or local < 0:
        raise UsageError(f"{', '.join(names)} are {', '.join(str(value) for value in values)}",
                         expected="whole numbers from 0 on, as torchrun sets them, and a rank below the world size",
                         hint="start it by torchrun or --gpus N, or unset them")  # fmt: skip
    return Ranks(rank, size, local)


def join(size: int, device: str) -> Ranks:
    """This process among the `size` ranks that make one video on `device`, cpu or cuda; `ALONE` for one. Starts their group.

    Raises UsageError where other than `size` processes were started.
    """
    if size == 1:
        return ALONE
    present = from_environment()
    if present.size != size:
        started = f"{present.size} ranks were started" if present.size > 1 else "this process was started alone"
        raise UsageError(f"gpus = {size}, and {started}", expected=f"{size} processes, one for each GPU",
                         hint=f"torchrun --nproc-per-node {size} SCRIPT.py, or longgen generate --gpus {size}")  # fmt: skip
    return start(device)


def start(device: str) -> Ranks:
    """Joins the group of the ranks that the environment names, over gloo and on cards NCCL too, unless that was done.

    device: "cpu" or "cuda". The group of one process is none.
    """
    ranks = from_environment()
    if ranks.size > 1:
        import torch
        from torch import distributed

        if not distributed.is_initialized():
            if device.startswith("cuda"):
                torch.cuda.set_device(ranks.local)
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            os.environ.update({name: value for name, value in environment().items() if name not in os.environ})
            if (store := _local_store(ranks)) is None:
                distributed.init_process_group(backend, timeout=WAIT)
            else:
                distributed.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=WAIT)
    return ranks


def _local_store(ranks: Ranks) -> Any:
    """The store by which ranks of one machine find each other, where it is theirs: torch's own listens on all addresses."""
    import socket

    from torch import distributed

    if STORE in os.environ:
        return distributed.FileStore(os.environ[STORE], ranks.size)
    port = os.environ.get("MASTER_PORT", "")
    if os.environ.get("MASTER_ADDR") not in LOOPBACK or not port.isdecimal() or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    listening: int | None = None
    if ranks.rank == 0:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(("127.0.0.1", int(port)))
        own.listen()
        listening = own.detach()
    return distributed.TCPStore("127.0.0.1", int(port), ranks.size, ranks.rank == 0, WAIT, master_listen_fd=listening)


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


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone, or does not answer: that one's own error is the reason."""
    return any(
        type(link).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
        or (isinstance(link, RuntimeError) and LOST.search(str(link)) is not None)
        for link in chain(error)
    )
