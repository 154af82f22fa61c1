"""The tables in the terminal: width, signs and words."""

from __future__ import annotations

import pytest

from longgen.compare.record import Cell, Comparison
from longgen.compare.statistics import preset_rows
from longgen.compare.table import text
from longgen.compare.warnings import collect_warnings
from longgen.metrics import METRICS


def comparison(
    values: dict[str, list[float]], baseline: str | None = "direct", names: tuple[str, ...] = tuple(METRICS)
) -> Comparison:
    """Presets with the values of every metric, one a seed; motion is 20 and their first metric differs."""
    cells = [
        Cell(
            name=f"c{number}-{seed}", preset=preset, prompt="p", seed=seed, status="done", frames=9, fps=16, size=(64, 64),
            metrics={name: 20.0 if name == "motion" else number for name in names}, cost_ratio=1.25,
            seconds={"load": 0, "sample": 63.0, "decode": 2.0}, peak_memory_bytes=1_500_000_000,
        )
        for preset, numbers in values.items() for seed, number in enumerate(numbers)
    ]  # fmt: skip
    presets = [*values]
    table = preset_rows(presets, cells, baseline, names)
    return Comparison(
        longgen="0", backbone="tiny", presets=presets, prompts=["p"], seeds=[0], baseline=baseline, cells=cells, table=table,
        watch=[], warnings=collect_warnings(cells, table, baseline), libraries={}, device="cpu",
    )  # fmt: skip


SIX = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("preset", ["a", "a-preset-with-quite-a-long-name-indeed", "tabs\tand\x1b[31m colour"])
def test_no_line_is_wider_than_asked(width: int, preset: str) -> None:
    made = text(comparison({"direct": SIX, preset: [1234567.0 * one for one in SIX]}), width)
    assert max(map(len, made.splitlines())) <= width
    assert "\x1b" not in made
    for name in METRICS:
        assert name.removeprefix("subject_") in made
    assert made.count("preset  ") > 1  # several tables


def test_the_best_and_what_is_not_distinguishable_are_marked() -> None:
    made = text(comparison({"direct": SIX, "worse": [one + 1 for one in SIX], "mixed": [*SIX[1:], 0.5]}, names=("motion", "drift")))
    lines = {line.split()[0]: line.split() for line in reversed(made.splitlines()) if line.strip()}
    assert lines["direct"] == ["direct", "20.0", "3.50", "1.25", "1:05", "1.5", "GB"]
    assert lines["worse"][2] == "4.50"
    assert lines["mixed"][2] == "3.42*~"
    assert "drift ↓" not in made
    assert "Lab/s ↓" in made
    assert "worse against direct, 6 pairs: drift differs; motion is not distinguishable." in made
    assert "mixed against direct, 6 pairs: no difference is distinguishable." in made
    assert "+1.00 [1.00, 1.00]" in made
    assert "* best; ~ not distinguishable from direct" in made


def test_one_pair_has_no_interval_and_says_so() -> None:
    made = text(comparison({"direct": [1.0], "a": [2.0]}))
    assert "interval" not in made
    assert "~" not in made
    assert "warning: one pair of videos of a preset and direct" in made


def test_without_a_baseline_there_are_means_alone() -> None:
    made = text(comparison({"a": SIX, "b": SIX}, baseline=None))
    assert "against" not in made.replace("against direct sampling", "")
    assert "interval" not in made
