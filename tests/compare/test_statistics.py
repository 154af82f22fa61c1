"""What presets come to, in cases computed by hand, and which differences are called more than chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap, wilcoxon

from longgen.compare.record import Cell, Difference
from longgen.compare.statistics import (
    best_presets,
    bootstrap_interval,
    holm,
    least_p,
    needed_pairs,
    paired_differences,
    preset_rows,
    signed_rank_p,
    still_presets,
)
from longgen.compare.warnings import collect_warnings
from tests.compare.aggregated import aggregated


def cell(preset: str, prompt: str, seed: int, failed: bool = False, seconds: float = 1.0, **metrics: float | None) -> Cell:
    return Cell(
        name=f"{preset}-{prompt}-{seed}", preset=preset, prompt=prompt, seed=seed, status="failed" if failed else "done",
        error="no room" if failed else None, frames=9, fps=16, size=(64, 64), metrics=metrics, cost_ratio=1.5,
        seconds={"load": 9.0, "sample": seconds, "decode": 0.5}, peak_memory_bytes=int(seconds),
    )  # fmt: skip


def rows_of(values: dict[str, list[float | None]], baseline: str | None = "direct", metric: str = "drift") -> list[Difference]:
    """The differences between presets with these values of one metric, one a seed."""
    cells = [cell(preset, "p", seed, **{metric: number})
             for preset, numbers in values.items() for seed, number in enumerate(numbers)]  # fmt: skip
    return paired_differences([*values], cells, baseline, [metric])


def test_a_row_is_mean_median_and_peak() -> None:
    cells = [cell("a", "p", seed, seconds=took, motion=motion) for seed, took, motion in ((0, 1, 2), (1, 7, 4), (2, 2, 9))]
    (row,) = preset_rows(["a"], [*cells, cell("a", "p", 3, failed=True)], None, ["motion", "drift"], [])
    assert (row.preset, row.cells, row.failed, row.seconds, row.peak_memory_bytes, row.cost_ratio) == ("a", 4, 1, 2.5, 7, 1.5)
    assert row.metrics.keys() == {"motion"}
    assert (row.metrics["motion"].mean, row.metrics["motion"].cells, row.metrics["motion"].difference) == (5, 3, None)


def test_seconds_of_a_resumed_video_are_left_out() -> None:
    resumed = cell("a", "p", 0, seconds=0.1).model_copy(update={"details": {"resumed": True}})
    assert preset_rows(["a"], [resumed, cell("a", "p", 1, seconds=4)], None, [], [])[0].seconds == 4.5
    assert preset_rows(["a"], [resumed], None, [], [])[0].seconds is None


def test_pairs_are_of_the_same_prompt_and_seed() -> None:
    base = [cell("direct", "p", 0, motion=10.0), cell("direct", "p", 1, motion=20.0), cell("direct", "q", 0, motion=None)]
    own = [cell("a", "p", 1, motion=23.0), cell("a", "p", 0, motion=11.0), cell("a", "q", 0, motion=100.0)]
    fields = aggregated(["direct", "a"], [*base, *own], "direct", ["motion"])
    found = fields["table"][1].metrics["motion"]
    assert found.mean == pytest.approx((23 + 11 + 100) / 3)
    assert (found.cells, found.difference) == (3, 2.0)
    assert (found.low, found.high) == (1.0, 3.0)  # of two differences, 1 and 3, one resample in four is 1 and 1
    assert (fields["verdict"].pairs, found.distinguishable) == (2, False)
    assert fields["table"][0].metrics["motion"].difference is None  # the baseline's to itself


@pytest.mark.parametrize(("count", "given"), [(2, (5.0, 5.0)), (7, (5.0, 5.0))])
def test_equal_differences_have_an_interval_of_no_width(count: int, given: tuple[float, float]) -> None:
    (found,) = rows_of({"direct": [1.0] * count, "a": [6.0] * count})
    assert (found.low, found.high) == given
    assert found.distinguishable is (count > 5)


def test_one_pair_has_no_interval_in_the_table() -> None:
    cells = [cell("direct", "p", 0, drift=1.0), cell("a", "p", 0, drift=2.0)]
    assert aggregated(["direct", "a"], cells, "direct", ["drift"])["table"][1].metrics["drift"].difference is None


@pytest.mark.parametrize("differences", [[1.0, -2, 3, 4, 5, 6, -7], [1.0, 1, 1, -1, 2, 2], [0.5, 0, 0, 1.5, -1.5, 2, 2, 2], [3.0]])
def test_the_signed_rank_test_is_exact(differences: list[float]) -> None:
    from scipy.stats import rankdata

    own = np.array([one for one in differences if one])
    ranks = rankdata(np.abs(own))
    sums = np.array([ranks @ np.array(signs) for signs in itertools.product((0, 1), repeat=len(own))])
    far = np.abs(sums - ranks.sum() / 2) >= abs(ranks[own > 0].sum() - ranks.sum() / 2) - 1e-9  # as far from the middle, or farther
    assert signed_rank_p(differences) == pytest.approx(far.mean())


def test_the_signed_rank_test_agrees_with_scipy_at_any_length() -> None:
    for count in (12, 40, 61, 300):
        own = np.random.default_rng(count).normal(0.2, 1, count)
        assert signed_rank_p([*own]) == pytest.approx(wilcoxon(own).pvalue, rel=1e-6)
    assert signed_rank_p([0.0] * 5) == 1
    assert signed_rank_p([1.0] * 9) == least_p(9) == 2 / 512


def test_holm_corrects_the_smallest_most() -> None:
    # Holm 1979: the k-th smallest of m by m - k + 1, and never less than one before it
    assert holm([0.01, 0.04, 0.03, 0.005], [9] * 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04, 0.25, 1.0], [9, 9, 3, 0]) == pytest.approx([0.02, 0.04, 1, 1])  # what cannot be told does not count
    assert [needed_pairs(tested) for tested in (0, 1, 10, 27)] == [6, 6, 9, 11]
    assert all(least_p(needed_pairs(m)) * m <= 0.05 < least_p(needed_pairs(m) - 1) * m for m in range(1, 400))


def test_hundreds_of_comparisons_of_noise_find_nothing_and_of_a_signal_find_it() -> None:
    draw, names = np.random.default_rng(5), [f"m{number}" for number in range(12)]
    cells = [cell(preset, prompt, seed, **dict(zip(names, draw.normal(size=12), strict=True)))
             for preset in ("direct", "a", "b", "c", "d") for prompt in "pqrst" for seed in range(3)]  # fmt: skip
    presets = ["direct", "a", "b", "c", "d"]
    noise = paired_differences(presets, cells, "direct", names)
    assert (len(noise), sum(row.p <= 0.05 for row in noise) > 0) == (120, True)  # of which some look like more
    assert not any(row.distinguishable for row in noise)
    for one in cells:
        one.metrics["m3"] = (one.metrics["m3"] or 0) + 9 * (one.preset == "c")
    rows = paired_differences(presets, cells, "direct", names)
    found = [(row.preset, row.other, row.metric) for row in rows if row.distinguishable]
    assert found == [("c", "direct", "m3"), ("c", "a", "m3"), ("c", "b", "m3"), ("d", "c", "m3")]


def test_the_interval_is_known_where_it_can_be_computed() -> None:
    # of n differences, k ones and the rest zeros, a resample's mean is binomial(n, k / n) / n: here its 2.5% and 97.5%
    low, high = bootstrap_interval([0.0] * 10 + [1.0] * 10)
    assert (low, high) == pytest.approx((0.3, 0.7), abs=0.051)
    draws = bootstrap((np.array([0.3, -1, 2.5, 4, 0.1]),), np.mean, n_resamples=9_999, method="percentile",
                      random_state=np.random.default_rng(0)).confidence_interval  # fmt: skip
    assert bootstrap_interval([0.3, -1, 2.5, 4, 0.1]) == pytest.approx((draws.low, draws.high))
    assert (low, high) == bootstrap_interval([0.0] * 10 + [1.0] * 10)  # the seed is fixed


@pytest.mark.parametrize(
    ("differences", "told"),
    [([1, 2, 3, 1, 2, 3], True), ([-1, -2, -3, -1, -2, -3], True), ([1, -2, 3, -1, 2, -3], False), ([1, 2, 3, 1, 2], False),
     ([0] * 6, False), ([1, 2, 3, None, 2, 3], False), ([1, 2, 3, 1, 2, 3, None], True)],
)  # fmt: skip
def test_a_difference_is_told_where_chance_cannot_make_it(differences: list[float | None], told: bool) -> None:
    own = [None if difference is None else 7.0 + difference for difference in differences]
    for row in rows_of({"direct": [7.0] * len(own), "a": own}) + rows_of({"b": [7.0] * len(own), "a": own}, None):
        assert row.distinguishable is told
        assert row.pairs == len(differences) - differences.count(None)


def test_a_still_is_best_in_nothing_that_flatters_it() -> None:
    means = {"moving": (30.0, 40.0, 0.0, 1.0), "still": (0.5, 60.0, 99.0, 0.0), "other": (20.0, 35.0, 0.0, 0.5)}
    names = ["motion", "smoothness", "freeze", "drift"]
    cells = [cell(preset, "p", seed, **{name: mean + seed / 1000 for name, mean in zip(names, values, strict=True)})
             for preset, values in means.items() for seed in range(9)]  # fmt: skip
    fields = aggregated([*means], cells, "moving", names)
    assert still_presets(fields["table"]) == {"still": pytest.approx(0.504)}
    assert best_presets(fields["table"], fields["verdict"].differences) == {"drift": "other", "smoothness": "moving"}
    said = " ".join(fields["verdict"].text)
    assert "smoothness +20.0 dB [20.0, 20.0] (no merit: still hardly moves)" in said
    assert "other against moving, 9 pairs: motion -10.0 %/s [-10.0, -10.0]; smoothness -5.00 dB [-5.00, -5.00] (worse); " in said
    assert any("still hardly moves (motion 0.5 %/s)" in line for line in collect_warnings(cells, fields["table"]))


def test_the_verdict_says_why_nothing_can_be_told() -> None:
    def verdict(values: dict[str, list[float | None]], seeds: int = 0) -> str:
        cells = [cell(preset, "p", seed + (preset == "a") * seeds, drift=number)
                 for preset, numbers in values.items() for seed, number in enumerate(numbers)]  # fmt: skip
        return " ".join(aggregated([*values], cells, "direct", ["drift"])["verdict"].text)

    assert "the presets do not differ" in verdict({"direct": [1.0] * 6, "a": [1.0] * 6}).lower()
    assert "no two presets have a video of the same prompt and seed" in verdict({"direct": [1.0, 2], "a": [3.0, 4]}, seeds=9)
    assert "no two presets" in verdict({"direct": [1.0, 2], "a": [None, None]})
    assert "4 pairs of videos (same prompt, same seed) p cannot fall below 0.12, and 0.05 is asked for. 6 pairs" in verdict(
        {"direct": [1.0] * 4, "a": [2.0, 3, 4, 5]}
    )
    assert "of 1 comparison, each of two presets in one metric over up to 7 pairs" in verdict(
        {"direct": [1.0] * 7, "a": [0.0, 2, 0, 2, 0, 2, 0]}
    )
    assert aggregated(["a"], [cell("a", "p", 0, drift=1.0)], None, ["drift"])["verdict"] is None


def test_what_a_reader_should_know_is_said() -> None:
    cells = [cell("direct", "p", 0, motion=9.0), cell("a", "p", 0, motion=9.0), cell("a", "p", 1, failed=True)]
    cells[0] = cells[0].model_copy(
        update={"settings": {"longgen": "0.3.0", "sample": {"steps": 20}, "libraries": {"torch": "2.7"}}}
    )
    cells[1] = cells[1].model_copy(
        update={"settings": {"longgen": "0.3.0", "sample": {"steps": 30}, "libraries": {"torch": "2.8"}}, "fps": 8.0, "frames": 7}
    )
    said = "\n".join(collect_warnings(cells, preset_rows(["direct", "a"], cells, "direct", ["motion"], [])))
    assert "a-p-1 failed: no room" in said
    assert "a: its means are over 1 of 2 videos" in said
    assert "differ in steps: 20 (direct), 30 (a)" in said
    assert "differ in torch: 2.7 (direct), 2.8 (a)" in said
    assert "differ in frame rate: 16 (direct), 8 (a); tiles are matched by time" in said
    assert "differ in length: 9 frames (direct), 7 frames (a); a tile stops at its last frame" in said
    assert "longgen" not in said


def test_nothing_is_said_where_all_is_well() -> None:
    cells = [cell(preset, prompt, seed, motion=9.0) for preset in ("direct", "a") for prompt in "pqr" for seed in (0, 1)]
    assert collect_warnings(cells, preset_rows(["direct", "a"], cells, "direct", ["motion"], [])) == []
