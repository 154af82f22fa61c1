"""What presets come to, in cases computed by hand."""

from __future__ import annotations

import pytest

from longgen.compare.record import Cell
from longgen.compare.statistics import (
    LEAST_PAIRS,
    best_presets,
    bootstrap_interval,
    count_pairs,
    metric_value,
    preset_rows,
    still_presets,
)
from longgen.compare.warnings import collect_warnings


def cell(preset: str, prompt: str, seed: int, failed: bool = False, seconds: float = 1.0, **metrics: float | None) -> Cell:
    return Cell(
        name=f"{preset}-{prompt}-{seed}", preset=preset, prompt=prompt, seed=seed, status="failed" if failed else "done",
        error="no room" if failed else None, frames=9, fps=16, size=(64, 64), metrics=metrics, cost_ratio=1.5,
        seconds={"load": 9.0, "sample": seconds, "decode": 0.5}, peak_memory_bytes=int(seconds),
    )  # fmt: skip


def test_a_row_is_mean_median_and_peak() -> None:
    cells = [cell("a", "p", seed, seconds=took, motion=motion) for seed, took, motion in ((0, 1, 2), (1, 7, 4), (2, 2, 9))]
    (row,) = preset_rows(["a"], [*cells, cell("a", "p", 3, failed=True)], None, ["motion", "drift"])
    assert (row.preset, row.cells, row.failed, row.seconds, row.peak_memory_bytes, row.cost_ratio) == ("a", 4, 1, 2.5, 7, 1.5)
    assert row.metrics.keys() == {"motion"}
    assert (row.metrics["motion"].mean, row.metrics["motion"].cells, row.metrics["motion"].difference) == (5, 3, None)


def test_seconds_of_a_resumed_video_are_left_out() -> None:
    resumed = cell("a", "p", 0, seconds=0.1).model_copy(update={"details": {"resumed": True}})
    assert preset_rows(["a"], [resumed, cell("a", "p", 1, seconds=4)], None, [])[0].seconds == 4.5
    assert preset_rows(["a"], [resumed], None, [])[0].seconds is None


def test_pairs_are_of_the_same_prompt_and_seed() -> None:
    base = [cell("direct", "p", 0, motion=10.0), cell("direct", "p", 1, motion=20.0), cell("direct", "q", 0, motion=None)]
    own = [cell("a", "p", 1, motion=23.0), cell("a", "p", 0, motion=11.0), cell("a", "q", 0, motion=100.0)]
    found = metric_value("motion", own, base)
    assert found is not None
    assert found.mean == pytest.approx((23 + 11 + 100) / 3)
    assert (found.cells, found.difference) == (3, 2.0)
    assert (found.low, found.high) == (1.0, 3.0)  # of two differences, 1 and 3, one resample in four is 1 and 1
    assert count_pairs(preset_rows(["a"], own, None, [])[0], [*base, *own], "direct") == 3


@pytest.mark.parametrize(("count", "given"), [(1, None), (2, (5.0, 5.0)), (7, (5.0, 5.0))])
def test_equal_differences_have_an_interval_of_no_width(count: int, given: tuple[float, float] | None) -> None:
    base = [cell("direct", "p", seed, motion=float(seed)) for seed in range(count)]
    found = metric_value("motion", [cell("a", "p", seed, motion=seed + 5.0) for seed in range(count)], base)
    assert found is not None
    assert (None if found.low is None else (found.low, found.high)) == given
    assert found.distinguishable is (None if count < 2 else count >= LEAST_PAIRS)


def test_the_interval_is_known_where_it_can_be_computed() -> None:
    # of n differences, k ones and the rest zeros, a resample's mean is binomial(n, k / n) / n: here its 2.5% and 97.5%
    low, high = bootstrap_interval([0.0] * 10 + [1.0] * 10)
    assert (low, high) == pytest.approx((0.3, 0.7), abs=0.051)
    assert (low, high) == bootstrap_interval([0.0] * 10 + [1.0] * 10)  # the seed is fixed


@pytest.mark.parametrize(
    ("differences", "told"),
    [([1, 2, 3, 1, 2, 3], True), ([-1, -2, -3, -1, -2, -3], True), ([1, -2, 3, -1, 2, -3], False), ([1, 2, 3, 1, 2], False),
     ([0] * 6, False)],
)  # fmt: skip
def test_a_difference_is_told_where_chance_cannot_make_it(differences: list[float], told: bool) -> None:
    base = [cell("direct", "p", seed, drift=7.0) for seed in range(len(differences))]
    own = [cell("a", "p", seed, drift=7.0 + difference) for seed, difference in enumerate(differences)]
    found = metric_value("drift", own, base)
    assert found is not None
    assert found.distinguishable is told


def test_the_baseline_has_no_difference_to_itself() -> None:
    cells = [cell(preset, "p", seed, motion=seed + (preset == "a")) for preset in ("direct", "a") for seed in range(6)]
    table = preset_rows(["direct", "a"], cells, "direct", ["motion"])
    assert table[0].metrics["motion"].difference is None
    assert table[0].metrics["motion"].distinguishable is None
    assert table[1].metrics["motion"].difference == 1
    assert [row.metrics["motion"].difference for row in preset_rows(["direct", "a"], cells, None, ["motion"])] == [None, None]


def test_a_still_is_best_in_nothing_that_flatters_it() -> None:
    cells = [cell("moving", "p", 0, motion=30.0, smoothness=40.0, freeze=0.0, drift=1.0),
             cell("still", "p", 0, motion=0.5, smoothness=60.0, freeze=100.0, drift=0.0),
             cell("other", "p", 0, motion=20.0, smoothness=35.0, freeze=0.0, drift=0.5)]  # fmt: skip
    table = preset_rows(["moving", "still", "other"], cells, None, ["motion", "freeze", "drift", "smoothness"])
    assert still_presets(table) == {"still": 0.5}
    assert best_presets(table) == {"freeze": ["moving", "other"], "drift": ["other"], "smoothness": ["moving"]}
    assert any("still hardly moves (motion 0.5 %/s)" in line for line in collect_warnings(cells, table, None))


def test_nothing_is_best_among_equals() -> None:
    cells = [cell(preset, "p", 0, motion=30.0, drift=1.0) for preset in ("a", "b")]
    assert best_presets(preset_rows(["a", "b"], cells, None, ["motion", "drift"])) == {}


def test_what_a_reader_should_know_is_said() -> None:
    cells = [cell("direct", "p", 0, motion=9.0), cell("a", "p", 0, motion=9.0), cell("a", "p", 1, failed=True)]
    cells[0] = cells[0].model_copy(
        update={"settings": {"longgen": "0.3.0", "sample": {"steps": 20}, "libraries": {"torch": "2.7"}}}
    )
    cells[1] = cells[1].model_copy(
        update={"settings": {"longgen": "0.3.0", "sample": {"steps": 30}, "libraries": {"torch": "2.8"}}, "fps": 8.0, "frames": 7}
    )
    said = "\n".join(collect_warnings(cells, preset_rows(["direct", "a"], cells, "direct", ["motion"]), "direct"))
    assert "a-p-1 failed: no room" in said
    assert "a: its means are over 1 of 2 videos" in said
    assert "differ in steps: 20 (direct), 30 (a)" in said
    assert "differ in torch: 2.7 (direct), 2.8 (a)" in said
    assert "differ in frame rate: 16 (direct), 8 (a); tiles are matched by time" in said
    assert "differ in length: 9 frames (direct), 7 frames (a); a tile stops at its last frame" in said
    assert "one pair of videos of a preset and direct" in said
    assert "longgen" not in said


def test_nothing_is_said_where_all_is_well() -> None:
    cells = [cell(preset, prompt, seed, motion=9.0) for preset in ("direct", "a") for prompt in "pqr" for seed in (0, 1)]
    assert collect_warnings(cells, preset_rows(["direct", "a"], cells, "direct", ["motion"]), "direct") == []
