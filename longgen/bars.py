"""Progress on stderr: in a terminal a live block of bars, one a phase, in which time goes on between reports; else lines."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.segment import ControlType, Segment
from rich.table import Column
from rich.text import Text

from longgen import signals
from longgen.progress import PLAIN_EVERY_S, UNCOUNTED, Log, OnProgress, Progress, in_lines, no_report

if TYPE_CHECKING:
    from typing_extensions import Self

NARROW = 100  # columns of a terminal below which bars are shorter, so that the times beside them are whole
BAR, NARROW_BAR = 40, 20  # columns of a bar: a fixed number, or it would jump with every digit of the times


class _Row(NamedTuple):
    """A bar, its latest report, and when that came."""

    task: Any
    now: Progress
    at: float

    @property
    def passing(self) -> bool:
        return self.now.unit == UNCOUNTED

    @property
    def done(self) -> bool:
        return self.now.done >= self.now.total


class Block(contextlib.AbstractContextManager["Block"]):
    """A bar for each phase. One that begins again, as with the next video, keeps its bar, and those after it that are done go.

    Phases without counts are there while they last. `report` may be called from any thread.
    """

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        console = Console(stderr=True)
        bar = BarColumn(NARROW_BAR if console.width < NARROW else BAR)
        columns = TextColumn("{task.description:<7}"), bar, TextColumn("{task.fields[count]}"), _Times(self.rows)
        shows_stdout = sys.stdout is not None and sys.stdout.isatty()  # else results must not be drawn into, above the bars
        self.bars = Bars(*columns, console=console, refresh_per_second=8, redirect_stdout=shows_stdout)
        self.lock = threading.Lock()  # a load reports from a thread of its own

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for row in self.rows.values():
            if row.passing:
                self.bars.update(row.task, visible=False)
        self.bars.stop()

    def report(self, now: Progress) -> None:
        """Shows `now`."""
        with signals.whole_line(), self.lock:
            last = self.rows.get(now.phase)
            if last is not None and (now.done < last.now.done or now.elapsed_s < last.now.elapsed_s):
                self._begin_again(now.phase)
            task = self.bars.add_task(now.phase, count="", visible=False) if last is None else last.task
            row = self.rows[now.phase] = _Row(task, now, time.monotonic())
            if row.passing:
                self.bars.update(task, total=None, visible=not row.done)
            else:
                self.bars.update(task, completed=now.done, total=now.total, count=now.counted, visible=True)

    def _begin_again(self, phase: str) -> None:
        names = [*self.rows]
        for name in names[names.index(phase) + 1 :]:
            if self.rows[name].done:
                self.bars.update(self.rows[name].task, visible=False)


class _Times(ProgressColumn):
    """Elapsed time, time to go and peak memory, which go on by the clock between two reports."""

    def __init__(self, rows: dict[str, _Row]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.rows = rows

    def render(self, task: Any) -> Text:
        row = self.rows.get(task.description)
        return Text("" if row is None else row.now.after(time.monotonic() - row.at).times)


class _Raw:
    """A control sequence on a line of its own, which rich writes as it is."""

    def __init__(self, sequence: str) -> None:
        self.sequence = sequence

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Segment]:
        yield Segment(self.sequence, None, [(ControlType.CARRIAGE_RETURN,)])
        yield Segment.line()


def draw(sequence: str) -> None:
    """Writes a control sequence that shows a picture above the bars; nothing where none are on the screen, as in a pipe."""
    if _live is not None:
        with signals.whole_line():
            _live.bars.console.print(_Raw(sequence))


_live: Block | None = None  # that is on the screen


@contextlib.contextmanager
def reporter(quiet: bool, say: Log) -> Iterator[OnProgress]:
    """A function that shows progress on stderr: bars in a terminal, elsewhere a line by `say` now and then.

    Within another one, such as that of a probe before a video, the same block of bars goes on.
    """
    global _live
    if quiet:
        yield no_report
    elif not sys.stderr.isatty():
        yield in_lines(say, PLAIN_EVERY_S)
    elif _live is not None:
        yield _live.report
    else:
        with Block() as block:
            _live = block
            try:
                yield block.report
            finally:
                _live = None
