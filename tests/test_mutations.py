"""A sample of the mutations; `python -m tests.harness` makes them all."""

from __future__ import annotations

from pathlib import Path

from tests.harness import mutations


def test_what_people_write_wrongly_is_refused_in_words_and_else_read_as_it_stands(tmp_path: Path) -> None:
    found = mutations.run(40, 7, tmp_path)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.wrong")} == {}
    assert (found["trials"], found["wrong"]) == (160, 0)
    assert 20 < found["taken"] < 140  # both happen
