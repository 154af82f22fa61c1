"""A comparison's files for papers have the numbers of its record, and its figures show what may be chance."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from longgen.compare.export import exports, files
from tests.compare.test_grid import longgen
from tests.compare.test_table import comparison

TWELVE = [one / 2 for one in range(12)]


def test_the_files_have_the_numbers_of_the_record(tmp_path: Path) -> None:
    made = comparison({"direct": TWELVE, "a_b": [one + 2 for one in TWELVE], "same": TWELVE}, names=("motion", "drift"))
    made.cells[-1].metrics["drift"] = None
    written = exports(made).write(("csv", "latex", "markdown", "svg"), tmp_path)
    assert {path.name for path in written} == {
        "presets.csv", "differences.csv", "videos.csv", "means.tex", "means.md", "differences.tex", "differences.md", "metrics.svg",
        "differences.svg",
    }  # fmt: skip
    assert {path.stem for path in written} <= {*files(made.prompts)}
    presets, differences, videos = ([*csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())]
                                    for name in ("presets", "differences", "videos"))  # fmt: skip
    assert made.verdict is not None
    assert [float(row["drift.mean"]) for row in presets] == [row.metrics["drift"].mean for row in made.table]
    assert [float(row["p_holm"]) for row in differences] == [row.p_holm for row in made.verdict.differences]
    assert [row["drift"] for row in videos] == [str(cell.metrics["drift"] or "") or "0.0" for cell in made.cells[:-1]] + [""]
    means = (tmp_path / "means.tex").read_text()
    assert r"a\_b & 20.0\textasciitilde{} & 4.75 &" in means
    assert r"same & 20.0\textasciitilde{} & 2.75\textasciitilde{} &" in means
    assert "| a\\_b | 0 \\[0, 0\\]\\~ | +2.00 \\[2.00, 2.00\\] |" in (tmp_path / "differences.md").read_text()


def test_seeds_have_their_own_dashes_in_the_curves() -> None:
    made = comparison({"direct": [1.0, 2.0], "a": [1.0, 2.0]}, names=("motion",))
    cells = [cell.model_copy(update={"curves": {"motion": [None, *map(float, range(8))]}}) for cell in made.cells]
    found = exports(made.model_copy(update={"cells": cells}))
    (curves,) = (name for name in found.figures if name.startswith("curves"))
    lines = found.figures[curves]().axes[0].get_lines()
    looks = [(line.get_color(), line.get_marker(), line._dash_pattern) for line in lines]
    assert [one[0] == two[0] for one, two in ((looks[0], looks[1]), (looks[0], looks[2]))] == [True, False]
    assert [one[1] == two[1] for one, two in ((looks[0], looks[1]), (looks[0], looks[2]))] == [True, False]
    assert looks[0][2] == looks[2][2] != looks[1][2] == looks[3][2]


def test_a_file_that_another_made_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out" / "export").mkdir(parents=True)
    (tmp_path / "out" / "export" / "means.tex").write_text("mine")
    refused = longgen(tmp_path, "compare", "--backbone", "tiny", "--presets", "direct", "-p", "x", "-o", "out", "--export", "latex")
    assert refused.exit_code == 2
    assert "means.tex already exists" in refused.stderr
    with pytest.raises(FileNotFoundError):
        (tmp_path / "out" / "compare.json").stat()
