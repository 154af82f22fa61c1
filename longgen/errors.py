"""Every error longgen raises on purpose, and the exit code the command line gives it.

    LonggenError                 1    something failed while it ran
    ├── UsageError               2    a flag, a preset, a length or a stack that cannot be
    ├── MissingError             3    weights, a file or a library that is not here
    ├── OutOfMemoryError         4    the device or the host ran out; what was computed is on disk
    └── BatchError               5    a batch finished, some of its videos did not
    KeyboardInterrupt          130    Ctrl-C; a checkpoint is on disk
    └── Terminated              75    SIGTERM; a checkpoint is on disk, a scheduler may start the job again
        └── HungUp             129    SIGHUP: the terminal has gone; a checkpoint is on disk

Each message carries three facts: what was given, what is accepted, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def shown(value: object, most: int = 100) -> str:
    """`value` as a message quotes it: of at most `most` characters, and whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists within lists
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= most else f"{text[: most - 1]}…"


class LonggenError(Exception):
    """`given` says what is wrong with what; `accepted` what would be right; `do` the next thing to try."""

    exit_code = 1

    def __init__(self, given: str, expected: str = "", hint: str = "") -> None:
        self.given, self.expected, self.hint = given, expected, hint
        lines = [given, *(f"  expected: {expected}" for _ in [0] if expected), *(f"  hint: {hint}" for _ in [0] if hint)]
        super().__init__("\n".join(lines))


class UsageError(LonggenError):
    exit_code = 2


class MissingError(LonggenError):
    exit_code = 3


class OutOfMemoryError(LonggenError):
    exit_code = 4


class BatchError(LonggenError):
    exit_code = 5


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as KeyboardInterrupt is so that no `except Exception` in a library swallows it."""

    exit_code = 75


class HungUp(Terminated):
    """SIGHUP: the terminal was closed, or the connection to it lost."""

    exit_code = 129


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str) -> UsageError:
    """The error for a name that is not in a table, with the nearest names that are."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5)
    quoted = shown(name) if len(name) > 98 or not name.isprintable() else f"'{name}'"
    suggestion = f" (did you mean {' or '.join(near)}?)" if near else ""
    return UsageError(f"no {kind} is called {quoted}{suggestion}", expected=", ".join(names), hint=hint)
