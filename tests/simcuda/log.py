"""What a simulated device was asked to do: launches, copies and waits, each with the line of longgen that caused it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

LAUNCH, TO_DEVICE, TO_HOST, WAIT = "launch", "to device", "to host", "wait"


class Event(NamedTuple):
    """kind: one of the four above. operator: of PyTorch. line: `attention/banded.py:12` of longgen, else of the library."""

    kind: str
    operator: str
    line: str


@dataclass
class Log:
    """Counts of events. attention: calls by kernel and by the shapes of queries and keys. faults: what raised, as on CUDA."""

    events: Counter[Event] = field(default_factory=Counter)
    attention: Counter[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, operator: str) -> None:
        self.events[Event(kind, operator, line_of_caller())] += 1

    def fault(self, operator: str, message: str) -> RuntimeError:
        """The error to raise, which is kept: libraries swallow some."""
        self.faults.append(f"{operator} at {line_of_caller()}: {message}")
        return RuntimeError(message)

    def totals(self) -> dict[str, int]:
        """Events by kind. A copy to the host waits too, and is not counted again as a wait."""
        totals = dict.fromkeys((LAUNCH, TO_DEVICE, TO_HOST, WAIT), 0)
        for event, count in self.events.items():
            totals[event.kind] += count
        return totals

    def clear(self) -> None:
        self.events.clear()
        self.attention.clear()
        self.faults.clear()


def line_of_caller() -> str:
    """The innermost line of longgen in the call stack, else of diffusers, transformers or accelerate; of tables, who asked."""
    library = ""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith("/longgen/device_tables.py"):
            pass
        elif "/longgen/longgen/" in path or ("/longgen/" in path and "/tests/" not in path):
            return f"{path.rpartition('/longgen/')[2]}:{frame.f_lineno}"
        if not library and any(f"/{name}/" in path for name in ("diffusers", "transformers", "accelerate")):
            library = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return library or "a test"
