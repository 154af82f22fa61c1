"""Why a file could not be loaded where the file is not at fault: memory, file descriptors, permissions, the disk.

Libraries wrap these in errors of many types, often with a guess of their own ("the file is corrupted"); the chain tells.
"""

from __future__ import annotations

import errno
import re

from longgen.device import chain, lacks_memory
from longgen.errors import LonggenError, MissingError, OutOfMemoryError

_FAILURES: dict[int, tuple[type[LonggenError], str, str, str]] = {  # errno -> the error, what is wrong, expected, hint
    errno.ENOMEM: (
        OutOfMemoryError, "out of memory while loading {what}: {text}", "memory for the weights, as longgen plan estimates it",
        "close other programs, raise the limit (ulimit -v, the job's memory), or take --dtype bf16, --quantize fp8 or a smaller "
        "--backbone"),
    errno.EMFILE: (LonggenError, "{what} cannot be opened: too many files are open already", "a free file descriptor",
                   "raise the limit (ulimit -n 4096), or close what else has files open"),
    errno.EACCES: (MissingError, "{file} may not be read: permission denied", "a file that this user may read",
                   "ls -l {file}; chmod u+r, or ask its owner"),
    errno.EIO: (LonggenError, "{what} cannot be read: the disk or the network folder reports an error ({text})",
                "a disk that can be read", "copy the file to another disk, and check this one"),
}  # fmt: skip
_ALIKE = {errno.ENFILE: errno.EMFILE, errno.EPERM: errno.EACCES}
_TEXTS = {  # what libraries write -> the errno that it stands for
    errno.EMFILE: r"too many open files|os error 2[34]\b|\[errno 2[34]\]",
    errno.EACCES: r"permission denied|os error 13\b|\[errno 13\]|operation not permitted",
    errno.EIO: r"input/output error|os error 5\b|\[errno 5\]|stale file handle",
}


def system_failure(error: BaseException, what: str) -> LonggenError | None:
    """The error that `what` was not loaded for lack of memory, descriptors, permission or a disk; None where it is not that."""
    for link in chain(error):
        code = _code(link)
        if (code := _ALIKE.get(code, code)) in _FAILURES:
            kind, *texts = _FAILURES[code]
            text = " ".join(str(link).split())[:200] or "the host has no more"
            return kind(*(part.format(what=what, text=text, file=getattr(link, "filename", None) or what) for part in texts))
    return None


def _code(error: BaseException) -> int:
    """The errno of one error, by its type, its number or its text; 0 for another."""
    if isinstance(error, LonggenError):
        return 0
    if lacks_memory(error):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error).lower()
    return next((code for code, pattern in _TEXTS.items() if re.search(pattern, text)), 0)
