"""The errors that longgen raises, and their exit codes on the command line.

    LonggenError                 1    a run failed
    ├── UsageError               2    an invalid option, preset, length or stack of techniques
    ├── MissingError             3    missing weights, file or library
    ├── OutOfMemoryError         4    out of memory on the device or the host; what was computed is on disk
    └── BatchError               5    a batch in which some videos failed
    KeyboardInterrupt          130    Ctrl-C; a checkpoint is on disk
    └── Terminated              75    SIGTERM; a checkpoint is on disk, so a job scheduler may restart the job
        └── HungUp             129    SIGHUP: the terminal was closed; a checkpoint is on disk

Each message states three facts: what was given, what is expected, and a hint what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping


def shown(value: object, most: int = 100) -> str:
    """`repr(value)` for a message, on one line and cut to `most` characters; never raises."""
    try:
        text = repr(value)
        text = " ".join(text.split()) if "\n" in text else text  # arrays
    except (ValueError, RecursionError):  # huge integers, deeply nested lists
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= most else f"{text[: most - 1]}…"


class LonggenError(Exception):
    """given: what is wrong; expected: what would be right; hint: what to try next.

    everywhere: of several ranks (`longgen.ranks`), whether all raise it, as rank 0 decided for them.
    """

    exit_code = 1
    everywhere = False

    def __init__(self, given: str, expected: str = "", hint: str = "") -> None:
        self.given, self.expected, self.hint = given, expected, hint
        lines = [given, *(f"  expected: {expected}" for _ in [0] if expected), *(f"  hint: {hint}" for _ in [0] if hint)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[LonggenError], tuple[str, str, str]]:
        return type(self), (self.given, self.expected, self.hint)


class UsageError(LonggenError):
    exit_code = 2


class MissingError(LonggenError):
    exit_code = 3


class OutOfMemoryError(LonggenError):
    exit_code = 4


class BatchError(LonggenError):
    exit_code = 5


class Terminated(KeyboardInterrupt):
    """SIGTERM; like KeyboardInterrupt, no `except Exception` in a library swallows it."""

    exit_code = 75


class HungUp(Terminated):
    """SIGHUP: the terminal was closed, or its connection lost."""

    exit_code = 129


def conflict(first: str, second: str, why: str = "", expected: str = "one of them", hint: str = "leave one out") -> UsageError:
    """The error for two things that exclude each other."""
    return UsageError(f"{first} cannot be combined with {second}{why and ': '}{why}", expected, hint)


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """The known names that `name` may stand for: those that begin with it or have it as a part, else the most alike."""
    names, word = [*known], name[:100].lower()
    parts = [one for one in names if len(word) > 2 and (one.startswith(word) or word in re.split(r"[-_./:]", one))]
    return parts[:5] or difflib.get_close_matches(word, names, n=3, cutoff=0.5)


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str, synonyms: Mapping[str, str] | None = None) -> UsageError:
    """The error for an unknown name, with the closest known names. synonyms: what other words mean, as they are to be written."""
    names = sorted(known)
    near = [meant] if (meant := (synonyms or {}).get(name.lower())) else near_names(name, names)
    quoted = shown(name) if len(name) > 98 or not name.isprintable() else f"'{name}'"
    suggestion = f" (did you mean {' or '.join(near)}?)" if near else ""
    return UsageError(f"no {kind} is called {quoted}{suggestion}", expected=", ".join(names), hint=hint)
