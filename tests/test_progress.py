"""Progress as lines, and as a block of bars on a pseudo-terminal: redrawn in place, within its columns, and never still."""

from __future__ import annotations

import fcntl
import io
import os
import re
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from longgen import bars, progress, signals
from longgen.cli.app import say
from longgen.progress import OnProgress, Phase, Progress, Videos


def test_lines_say_where_a_phase_begins_and_ends_and_little_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    report = progress.in_lines(lines.append, 60)
    for phase in ("sample", "decode"):
        for done in range(101):
            clock[0] += 1
            report(Progress(phase, done, 100, 1.0, None, 0))
        with progress.working("write", report):
            pass
    assert [line.split(",")[0] for line in lines] == [
        "sample 0/100", "sample 60/100", "sample 100/100", "decode 0/100", "decode 60/100", "decode 100/100",
    ]  # fmt: skip


def on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[OnProgress], None]) -> str:
    """What `run` with the reporter of a terminal of so many columns writes to it."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(leader, 65536):
                written.append(data)
        except OSError:  # the follower is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm-256color")
        with bars.reporter(False, lambda message: None) as report:
            run(report)
    reader.join()
    os.close(leader)
    return b"".join(written).decode()


def test_a_signal_while_a_line_is_written_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.TextIOWrapper):
        def flush(self) -> None:
            super().flush()
            if any(b"half" in part for part in written) and not raised:
                raised.append(True)
                signal.raise_signal(signal.SIGINT)  # where rich has written its buffer, and not emptied it

    raised: list[bool] = []
    written: list[bytes] = []

    class Terminal(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def isatty(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data))
            return len(written[-1])

    before = signal.signal(signal.SIGINT, lambda number, frame: signals.deliver(KeyboardInterrupt()))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Interrupted(io.BufferedWriter(Terminal()), "utf-8", write_through=True))
    try:
        with bars.reporter(False, lambda message: None) as report:
            Phase("sample", 20, "cpu", report).at(1)
            with pytest.raises(KeyboardInterrupt):
                say("half a line")
            say("the end")  # which has what rich did not empty
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised
    assert b"".join(written).count(b"half a line") == 1


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_stay_one_block_and_time_goes_on_between_reports(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(report: OnProgress) -> None:
        with progress.working("prepare", report):
            time.sleep(0.2)
        videos = Videos([1.0] * 2, "cpu", report)
        for _ in range(2):
            for name, total in (("sample", 20), ("decode", 1001), ("side by side", 10**4)):
                phase = Phase(name, total, "cpu", videos.of_one)
                phase.start -= 7300  # for times of full width
                phase.at(total // 2)
                time.sleep(0.15)  # long enough to be drawn
                phase.at(total)
            videos.settled()
        with bars.reporter(False, lambda message: None) as inner:  # a display within another is the same
            Phase("sample", 20, "cpu", inner).at(1)
        time.sleep(1.3)

    raw = on_terminal(columns, monkeypatch, run)
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw).replace("\r", "\n").split("\n")
    assert {line.split()[0] for line in drawn if line.strip()} == {"prepare", "videos", "sample", "decode", "side"}
    assert max(map(len, drawn)) <= columns
    assert any("2:01:40, 2:01:40 left" in line for line in drawn)  # whole, beside a bar of a fixed width
    assert raw.count("\n") - raw.count("\x1b[1A") <= 2  # videos and sample: what ended before is gone, and nothing scrolled
    last = [line for line in drawn if line.startswith("sample")][-10:]
    assert len({re.search(r"1/20 +([\d.]+) s", line)[1] for line in last}) > 3  # type: ignore[index]
    assert "prepare" not in drawn[-3:]


def test_the_time_to_go_counts_down_and_is_dropped_once_it_has_passed() -> None:
    now = Progress("sample", 3, 20, 7.0, 40.0, 0)
    assert (now.after(1.5).times, now.after(41).times) == ("8.5 s, 38.5 s left, 0 B", "48.0 s, 0 B")
    assert now._replace(done=20).after(5) == now._replace(done=20)


def test_videos_count_by_cost_and_by_the_share_of_the_one_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], list[Progress]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    videos = Videos([0.0, 1.0, 3.0], "cpu", seen.append)
    videos.settled()  # was there
    clock[0] = 2.0  # of loading
    videos.of_one(Progress("sample", 0, 20, 0.0, None, 0))
    clock[0] = 7.0
    videos.of_one(Progress("sample", 10, 20, 5.0, 5.0, 0))
    assert (seen[-1].done, seen[-1].eta_s) == (1, 35.0)
    clock[0] = 12.0
    videos.settled()
    assert (seen[-1].done, seen[-1].eta_s) == (2, 30.0)
