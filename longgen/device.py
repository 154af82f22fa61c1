"""The machine that a model runs on: its name in records, its peak memory, and which errors are a lack of memory."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import sys
from collections.abc import Iterator

_HOST = (
    r"can('|no)t allocate memory|not enough memory|insufficient memory|unable to allocate|std::bad_alloc|"
    r"memory allocation of \d+ bytes|error code 12\b|os error 12\b|\[errno 12\]|os error 1455\b|failed to map segment|"
    r"can't start new thread"  # for lack of room for its stack
)
_LIBRARIES = (  # CUDA, cuBLAS, cuSOLVER, cuDNN, cuFFT, HIP, rocBLAS, MIOpen
    r"_status_alloc_failed|cufft_alloc_failed|status_internal_error_(host|device)_allocation_failed|miopenstatusallocfailed|"
    r"(cuda|hip)erroroutofmemory|(cuda|hip)errormemoryallocation|rocblas_status_memory_error|"
    r"cublas_status_not_initialized.*cublascreate"  # the handle's workspace does not fit
)
_OUT_OF_MEMORY = re.compile(rf"\bout of memory\b|{_LIBRARIES}|{_HOST}")
_OF_HOST = re.compile(_HOST)

_seen = {"RssAnon": 0, "RssFile": 0}  # the most bytes of this process that were anonymous, or of files, as Linux calls them


def device_name(device: str) -> str:
    """The device as people know it: `cuda (NVIDIA H100)`, `cpu (x86_64, 16 cores)`."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def memory_bytes(device: str) -> int:
    """Peak memory so far: of the GPU where there is one, else of the process.

    On Linux mapped files, as weights and libraries, do not count, for the system can drop them: it is the peak of all less the
    most of files, and no less than what was in use at any call of this function. Elsewhere it is the peak of all.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    now = _resident_bytes()
    if not now:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    for kind in _seen:
        _seen[kind] = max(_seen[kind], now[kind])
    return max(now["VmHWM"] - _seen["RssFile"], _seen["RssAnon"])


def _resident_bytes() -> dict[str, int]:
    """Resident memory of this process: its peak, and what is anonymous and what of files now. Nothing where Linux does not say.

    Not by getrusage, whose peak is also that of the process that started this one.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        lines = (line.partition(":") for line in file)
        found = {name: int(value.split()[0]) * 1024 for name, _, value in lines if name in ("VmHWM", *_seen)}
        return found if len(found) == 1 + len(_seen) else {}
    return {}


def lacks_memory(error: BaseException) -> bool:
    """Whether `error` itself says that memory ran out, on the host or on a device; not what else has to do with memory.

    An illegal memory access is a bug, and too little shared memory of Triton a kernel that does not suit the card.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return True
    if isinstance(error, OSError) and error.errno is not None:  # its text may be a file's name
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and _OUT_OF_MEMORY.search(str(error).lower()) is not None


def lacks_host_memory(error: BaseException) -> bool:
    """Whether an error of which `lacks_memory` is true says that it was the host's."""
    return isinstance(error, MemoryError) or _OF_HOST.search(str(error).lower()) is not None


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it was raised from or while handling, and so on: libraries wrap the errors of others."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        yield link
        links.append(link)
        link = link.__cause__ or link.__context__
