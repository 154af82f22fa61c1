"""Why a file could not be loaded where the file is not at fault: memory, file descriptors, permissions, the disk.

Libraries wrap these in errors of many types, often with a guess of their own ("the file is corrupted"); the chain tells.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from longgen.errors import LonggenError, MissingError, OutOfMemoryError

_TEXTS = {  # what libraries write -> the errno that it stands for
    errno.ENOMEM: r"can('|no)t allocate memory|out of memory|not enough memory|os error 12\b|\[errno 12\]|failed to map segment|"
    r"std::bad_alloc|memory allocation of \d+ bytes|unable to allocate|error code 12\b|can't start new thread",
    errno.EMFILE: r"too many open files|os error 2[34]\b|\[errno 2[34]\]",
    errno.EACCES: r"permission denied|os error 13\b|\[errno 13\]|operation not permitted",
    errno.EIO: r"input/output error|os error 5\b|\[errno 5\]|stale file handle",
}


def system_failure(error: BaseException, what: str) -> LonggenError | None:
    """The error that names memory, descriptors, permission or the disk as the reason why `what` was not loaded.

    None where nothing in the chain of `error` says one of them.
    """
    for link in _chain(error):
        code, text = _code(link), " ".join(str(link).split())[:200]
        if code == errno.ENOMEM:
            return OutOfMemoryError(f"out of memory while loading {what}: {text or 'the host has no more'}",
                                    expected="memory for the weights, as longgen plan estimates it",
                                    hint="close other programs, raise the limit (ulimit -v, the job's memory), or take --dtype "
                                       "bf16, --quantize fp8 or a smaller --backbone")  # fmt: skip
        if code in (errno.EMFILE, errno.ENFILE):
            return LonggenError(f"{what} cannot be opened: too many files are open already", expected="a free file descriptor",
                                hint="raise the limit (ulimit -n 4096), or close what else has files open")  # fmt: skip
        if code in (errno.EACCES, errno.EPERM):
            name = getattr(link, "filename", None) or what
            return MissingError(f"{name} may not be read: permission denied", expected="a file that this user may read",
                                hint=f"ls -l {name}; chmod u+r, or ask its owner")  # fmt: skip
        if code == errno.EIO:
            return LonggenError(f"{what} cannot be read: the disk or the network folder reports an error ({text})",
                                expected="a disk that can be read",
                                hint="copy the file to another disk, and check this one")  # fmt: skip
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def _code(error: BaseException) -> int | None:
    """The errno of one error, by its type, its number or its text."""
    if isinstance(error, LonggenError):
        return None
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error).lower()
    return next((code for code, pattern in _TEXTS.items() if re.search(pattern, text)), None)
