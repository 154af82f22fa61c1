"""The machine that a model runs on: its name in records, its peak memory, and what to do when memory runs out."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from longgen.errors import OutOfMemoryError


def device_name(device: str) -> str:
    """The device as people know it: `cuda (NVIDIA H100)`, `cpu (x86_64, 16 cores)`."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def memory_bytes(device: str) -> int:
    """Peak memory so far: of the GPU where there is one, else of the process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def translate_oom(stage: str, device: str, remains: str) -> Iterator[None]:
    """Turns the many out-of-memory errors of libraries into one OutOfMemoryError, with the stage and the cheapest remedy.

    remains: what is on disk, or what else helps; the end of the hint.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError, on a GPU a kind of it
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        gc.collect()
        offload = "add --offload model (or sequential), or " if device.startswith("cuda") else ""
        reason = " ".join(str(error).split())[:200] or "the host has no more"
        raise OutOfMemoryError(f"out of memory while {stage}: {reason}", expected="what longgen plan estimates fits the device",
                               hint=f"{offload}take fewer --frames or a smaller --size; {remains}") from error  # fmt: skip
