"""Signals that wait until a line is written: one that ended a write half-way would have the line written a second time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_writing = 0  # blocks of `whole_line` that the main thread, which alone gets signals, is in
_waiting: BaseException | None = None


def deliver(error: BaseException) -> None:
    """Raises `error`, for which a signal stands: at once, or at the end of the `whole_line` that the main thread is in."""
    global _waiting
    if not _writing:
        raise error
    _waiting = error


@contextlib.contextmanager
def whole_line() -> Iterator[None]:
    """What is written in here is written to its end; raises afterwards what a signal asked for meanwhile."""
    global _writing, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
        if not _writing and _waiting is not None:
            error, _waiting = _waiting, None
            raise error
