"""Progress reports: counts, elapsed time, time to go and peak memory; and reports as lines, see `longgen.bars` for a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from longgen.device import memory_bytes
from longgen.units import human_bytes

PLAIN_EVERY_S = 5.0  # seconds between progress lines where stderr is not a terminal
LOG_EVERY_S = 60.0  # and in a log file
UNCOUNTED = "none"  # unit of a phase that has nothing to count: a block of bars shows it while it lasts, lines never


class Progress(NamedTuple):
    """One report: `done` of `total` steps of a phase, such as load, calibrate (a step cache), sample, decode, score.

    elapsed_s: since the phase began. eta_s: still to come, None where nothing tells. memory_bytes: the peak so far. unit: "bytes"
    where these are counted, UNCOUNTED where nothing is; a load reports from a thread of its own.
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
    def times(self) -> str:
        """`7.2 s, 40.8 s left, 1.2 GB`: elapsed time, time to go and peak memory."""
        eta = f", {clock_text(self.eta_s)} left" if self.eta_s is not None and self.done < self.total else ""
        return f"{clock_text(self.elapsed_s)}{eta}, {human_bytes(self.memory_bytes)}"

    @property
    def line(self) -> str:
        """`sample 3/20, 7.2 s, 40.8 s left, 1.2 GB`."""
        return f"{self.phase} {self.counted}, {self.times}"

    def after(self, seconds: float) -> Progress:
        """The same report `seconds` later, if nothing was reported since; of a phase that is done itself."""
        if self.done >= self.total:
            return self
        eta_s = None if self.eta_s is None or self.eta_s < seconds else self.eta_s - seconds  # a time that has passed tells nothing
        return self._replace(elapsed_s=self.elapsed_s + seconds, eta_s=eta_s)


OnProgress = Callable[[Progress], None]
Log = Callable[[str], None]


def no_report(message: object) -> None:
    """Discards a report, for callers that want none."""


class Phase:
    """Times one phase and reports its progress. done: steps that an earlier run did, which say nothing of the time to go.

    expected_s: of the whole phase by an estimate, which serves until a step is done.
    """

    def __init__(
        self, name: str, total: int, device: str, report: OnProgress, done: int = 0, unit: str = "", expected_s: float | None = None
    ) -> None:
        self.name, self.total, self.device, self.report, self.first, self.unit = name, total, device, report, done, unit
        self.expected_s = expected_s if expected_s is None or not total else expected_s * (total - done) / total
        self.start = time.monotonic()
        self.at(done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def at(self, done: int, computed: float | None = None, left: float = 0.0) -> None:
        """Reports `done` steps. computed, left: work of this phase so far and to come, in any unit, where steps differ in cost."""
        if computed is None:
            computed, left = done - self.first, self.total - done
        eta_s = self.seconds / computed * left if computed else self.expected_s
        self.report(Progress(self.name, done, self.total, self.seconds, eta_s, memory_bytes(self.device), self.unit))


@contextmanager
def working(name: str, report: OnProgress, device: str = "cpu") -> Iterator[None]:
    """A phase with nothing to count, as long as the context lasts; it is not reported as done where that ends by an error."""
    phase = Phase(name, 1, device, report, unit=UNCOUNTED)
    yield
    phase.at(1)


class Videos:
    """The phase "videos": several videos, of which the one under way counts by its share of sampling.

    costs: of each video in turn, in any unit; one that was there already takes no time.
    """

    def __init__(self, costs: Sequence[float], device: str, report: OnProgress) -> None:
        self.costs, self.report, self.turn, self.computed, self.under_way = costs, report, 0, 0.0, False
        self.phase = Phase("videos", len(costs), device, report)

    def of_one(self, now: Progress) -> None:
        """Takes a report of the video under way and passes it on."""
        if not self.under_way:
            self.under_way, self.phase.start = True, time.monotonic()  # loading the model tells nothing of the others
        self.report(now)
        if now.phase == "sample" and now.done < now.total:
            self._at(self.costs[self.turn] * now.done / now.total)

    def settled(self, made: bool = True) -> None:
        """The video under way is there, or has failed. made: whether that took time."""
        self.computed += self.costs[self.turn] * made
        self.turn += 1
        self._at(0.0)

    def _at(self, of_one: float) -> None:
        self.phase.at(self.turn, self.computed + of_one, sum(self.costs[self.turn :]) - of_one)


def in_lines(say: Log, every_s: float) -> OnProgress:
    """A function that says a line where a phase begins and ends, and every `every_s` seconds in between."""
    last: dict[str, tuple[float, int]] = {}  # of each phase, when it had a line, and what was done

    def report(now: Progress) -> None:
        said, done = last.get(now.phase, (0.0, now.total + 1))
        begins, ends, clock = now.done < done, now.done == now.total, time.monotonic()
        if now.unit == UNCOUNTED or not (begins or ends or clock - said >= every_s):
            return
        last[now.phase] = clock, now.done
        say(now.line)

    return report


def clock_text(seconds: float) -> str:
    """`7.2 s`, `1:05` or `2:10:00`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
