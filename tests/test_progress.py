"""The live bars: one for each phase, however often it reports that nothing is done yet."""

from __future__ import annotations

import sys

import pytest
from rich.progress import Progress as Bars

from longgen import progress


def test_lines_say_where_a_phase_begins_and_ends_and_little_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    report = progress.in_lines(lines.append, 60)
    for phase in ("sample", "decode"):
        for done in range(101):
            clock[0] += 1
            report(progress.Progress(phase, done, 100, 1.0, None, 0))
    assert [line.split(",")[0] for line in lines] == [
        "sample 0/100", "sample 60/100", "sample 100/100", "decode 0/100", "decode 60/100", "decode 100/100",
    ]  # fmt: skip


def test_a_phase_has_one_bar_and_the_next_of_its_name_another(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[str] = []
    add_task = Bars.add_task

    def counted(self: Bars, description: str, **fields: object) -> object:
        bars.append(description)
        return add_task(self, description, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(Bars, "add_task", counted)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.reporter(False, lambda message: None) as report:
        for phase, done in [
            ("probe", 0),
            ("probe", 0),
            ("probe", 0),
            ("probe", 1),
            ("probe", 2),
            ("sample", 0),
            ("sample", 2),
            ("sample", 0),
        ]:
            report(progress.Progress(phase, done, 2, 1.0, None, 0))
    assert bars == ["probe", "sample", "sample"]
