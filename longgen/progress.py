"""Progress reports: counts, elapsed time, time to go and peak memory; as a live bar or as lines on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from longgen.device import memory_bytes
from longgen.units import human_bytes

PLAIN_EVERY_S = 5.0  # seconds between progress lines where stderr is not a terminal
LOG_EVERY_S = 60.0  # and in a log file


class Progress(NamedTuple):
    """One report: `done` of `total` steps of a phase, such as load, calibrate (a step cache), sample, decode, score.

    elapsed_s: since the phase began. eta_s: still to come, None where nothing tells. memory_bytes: the peak so far. unit: "bytes"
    where these are counted; a load reports from a thread of its own.
    """

    phase: str
    done: int
    total: int
    elapsed_s: float
    eta_s: float | None
    memory_bytes: int
    unit: str = ""

    @property
    def counted(self) -> str:
        """`3/20`, or `1.2 GB/3.5 GB`."""
        done, total = (human_bytes(self.done), human_bytes(self.total)) if self.unit == "bytes" else (self.done, self.total)
        return f"{done}/{total}"

    @property
    def line(self) -> str:
        """`sample 3/20, 7.2 s, 40.8 s left, 1.2 GB`."""
        return f"{self.phase} {self.counted}, {_times(self)}"


OnProgress = Callable[[Progress], None]
Log = Callable[[str], None]


def no_report(message: object) -> None:
    """Discards a report, for callers that want none."""


class Phase:
    """Times one phase and reports its progress. done: steps that an earlier run did, which say nothing of the time to go."""

    def __init__(self, name: str, total: int, device: str, report: OnProgress, done: int = 0, unit: str = "") -> None:
        self.name, self.total, self.device, self.report, self.first, self.unit = name, total, device, report, done, unit
        self.start = time.monotonic()
        self.at(done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def at(self, done: int, computed: float | None = None, left: float = 0.0) -> None:
        """Reports `done` steps. computed, left: work of this phase so far and to come, in any unit, where steps differ in cost."""
        if computed is None:
            computed, left = done - self.first, self.total - done
        eta_s = self.seconds / computed * left if computed else None
        self.report(Progress(self.name, done, self.total, self.seconds, eta_s, memory_bytes(self.device), self.unit))


def in_lines(say: Log, every_s: float) -> OnProgress:
    """A function that says a line where a phase begins and ends, and every `every_s` seconds in between."""
    last: dict[str, Any] = {"phase": "", "time": 0.0}

    def report(now: Progress) -> None:
        finished, clock = now.done == now.total, time.monotonic()
        if now.phase == last["phase"] and not finished and clock - last["time"] < every_s:
            return
        last.update(phase=now.phase, time=clock)
        say(now.line)

    return report


@contextmanager
def reporter(quiet: bool, say: Log) -> Iterator[OnProgress]:
    """A function that shows progress on stderr: a live bar in a terminal, elsewhere a line by `say` now and then."""
    if quiet:
        yield no_report
        return
    if not sys.stderr.isatty():
        yield in_lines(say, PLAIN_EVERY_S)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description:<7}"), BarColumn(), TextColumn("{task.fields[count]}  {task.fields[times]}")
    shows_stdout = sys.stdout is not None and sys.stdout.isatty()  # else results must not be drawn into, above the bars
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=8, redirect_stdout=shows_stdout) as bars:
        tasks: dict[str, Any] = {}

        def live(now: Progress) -> None:
            task, last_done = tasks.get(now.phase, (None, 0))
            if task is None or now.done < last_done:  # another phase of this name, such as the next video's
                task = bars.add_task(now.phase, total=now.total, count="", times="")
            tasks[now.phase] = task, now.done
            bars.update(task, completed=now.done, total=now.total, count=now.counted, times=_times(now))

        yield live


def _times(now: Progress) -> str:
    """Elapsed time, time to go and peak memory."""
    eta = f", {clock_text(now.eta_s)} left" if now.eta_s is not None and now.done < now.total else ""
    return f"{clock_text(now.elapsed_s)}{eta}, {human_bytes(now.memory_bytes)}"


def clock_text(seconds: float) -> str:
    """`7.2 s`, `1:05` or `2:10:00`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
