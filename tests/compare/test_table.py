"""The tables in the terminal: width, signs and words."""

from __future__ import annotations

import pytest

from longgen.compare.record import Cell, Comparison
from longgen.compare.table import text
from longgen.compare.warnings import collect_warnings
from longgen.metrics import METRICS
from tests.compare.aggregated import aggregated


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
    fields = aggregated(presets, cells, baseline, names)
    return Comparison(
        longgen="0", backbone="tiny", presets=presets, prompts=["p"], seeds=[0], baseline=baseline, cells=cells, watch=[],
        warnings=collect_warnings(cells, fields["table"]), libraries={}, device="cpu", **fields,
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


def test_what_is_beyond_chance_is_marked_and_said() -> None:
    values = {"direct": SIX, "worse": [one + 1 for one in SIX], "mixed": [*SIX[1:], 0.5]}
    made = text(comparison({name: [*numbers, *(one + 0.1 for one in numbers)] for name, numbers in values.items()},
                           names=("motion", "drift")))  # fmt: skip
    lines = {line.split()[0]: line.split() for line in reversed(made.splitlines()) if line.strip()}
    assert lines["direct"] == ["direct", "20.0", "3.55", "1.25", "1:05", "1.5", "GB"]
    assert (lines["worse"][2], lines["mixed"][2]) == ("4.55", "3.47~")
    assert "drift ↓" not in made
    assert "Lab/s ↓" in made
    assert "+1.00 [1.00, 1.00]" in made
    assert "~ may be chance against direct" in made
    assert "*" not in made  # direct and mixed are not told apart, so that neither is better than every other
    assert "verdict: 1 of 2 comparisons, each of two presets in one metric, is beyond chance" in made
    assert "worse against direct, 12 pairs: drift +1.00 Lab/s [1.00, 1.00] (worse)." in made
    assert "mixed against direct, 12 pairs: nothing is beyond chance." in made


def test_the_one_that_is_better_than_every_other_has_the_star() -> None:
    numbers = [one + tenth for one in SIX for tenth in (0, 0.1)]
    made = text(comparison({"direct": numbers, "worse": [one + 2 for one in numbers], "good": [one - 0.5 for one in numbers]},
                           names=("motion", "drift", "freeze")))  # fmt: skip
    assert made.count("3.05*") == 2
    assert made.count("*") == 3  # and its meaning
    assert "* better than every other, beyond chance" in made
    assert "good against worse, 12 pairs: drift -2.50 Lab/s [-2.50, -2.50] (better); freeze -2.50" in " ".join(made.split())


def test_too_few_pairs_say_how_many_are_needed() -> None:
    made = " ".join(text(comparison({"direct": [1.0], "a": [2.0]})).split())
    assert "interval" not in made
    assert not {"~", "*"} & {*made}
    assert ("verdict: Nothing here is beyond chance: with 1 pair of videos (same prompt, same seed) p cannot fall below 1, and 11 "
            "comparisons, each of two presets in one metric, ask for 0.0045. 9 pairs can get there, for example 5 prompts with 2 "
            "seeds each") in made  # fmt: skip
    assert "*" not in text(comparison({"direct": SIX, "a": [one - 1 for one in SIX]}))  # six pairs, ten metrics: may be chance


def test_without_a_baseline_there_are_means_alone() -> None:
    made = text(comparison({"a": SIX, "b": SIX}, baseline=None))
    assert "against direct" not in made
    assert "interval" not in made
