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


class Progress(NamedTuple):
    """One report: `done` of `total` steps of a phase, such as load, calibrate (a step cache), sample, decode, score.

    elapsed_s: since the phase began. eta_s: still to come, None where nothing tells. memory_bytes: the peak so far.
    """

    phase: str
    done: int
    total: int
    elapsed_s: float
    eta_s: float | None
    memory_bytes: int


def no_report(message: object) -> None:
    """Discards a report, for callers that want none."""


class Phase:
    """Times one phase and reports its progress, with the time to go by the share of its work that is done.

    total: the steps that are counted. work: what they come to, in any unit, where they take unlike times; a step is 1 otherwise.
    done: steps that an earlier run did. skipped: work that took no time here, as theirs; it says nothing of the time to go.
    """

    def __init__(
        self, name: str, total: int, device: str, report: Callable[[Progress], None], done: int = 0, work: float | None = None
    ) -> None:
        self.name, self.total, self.device, self.report = name, total, device, report
        self.skipped, self.work = 0.0 if work is not None else float(done), float(total) if work is None else work
        self.start = time.monotonic()
        self.at(done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def at(self, done: int, work_done: float | None = None) -> None:
        """Reports that `done` steps are done; work_done: what they come to, where `work` was given."""
        seconds, work_done = self.seconds, float(done) if work_done is None else work_done
        computed = work_done - self.skipped
        eta_s = seconds / computed * (self.work - work_done) if computed else None
        self.report(Progress(self.name, done, self.total, seconds, eta_s, memory_bytes(self.device)))


@contextmanager
def reporter(quiet: bool, say: Callable[[str], None]) -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress on stderr: a live bar in a terminal, elsewhere a line by `say` now and then."""
    if quiet:
        yield no_report
        return
    last: dict[str, Any] = {"phase": "", "time": 0.0}

    def plain(now: Progress) -> None:
        finished, clock = now.done == now.total, time.monotonic()
        if now.phase == last["phase"] and not finished and clock - last["time"] < PLAIN_EVERY_S:
            return
        last.update(phase=now.phase, time=clock)
        eta = f", {clock_text(now.eta_s)} left" if now.eta_s is not None and not finished else ""
        say(f"{now.phase} {now.done}/{now.total}, {clock_text(now.elapsed_s)}{eta}, {human_bytes(now.memory_bytes)}")

    if not sys.stderr.isatty():
        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<7}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[times]}"),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=8) as bars:
        tasks: dict[str, Any] = {}

        def live(now: Progress) -> None:
            if now.phase not in tasks or now.done == 0:
                tasks[now.phase] = bars.add_task(now.phase, total=now.total, times="")
            eta = f", {clock_text(now.eta_s)} left" if now.eta_s is not None and now.done < now.total else ""
            times = f"{clock_text(now.elapsed_s)}{eta}, {human_bytes(now.memory_bytes)}"
            bars.update(tasks[now.phase], completed=now.done, times=times)

        yield live


def clock_text(seconds: float) -> str:
    """`7.2 s`, `1:05` or `2:10:00`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
