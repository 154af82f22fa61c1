"""The change across an edge over the change beside it, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.metrics.change import LEAST, seam_ratios

FPS = 4


def test_the_ratio_is_over_the_median_beside() -> None:
    difference = np.array([np.nan, 1, 1, 1, 5, 1, 1, 9, 1, 1, 1])
    assert seam_ratios(difference, {4}, FPS) == {4: (5 + LEAST) / (1 + LEAST)}
    assert seam_ratios(difference, {1, 4, 7}, FPS) == {seam: (difference[seam] + LEAST) / (1 + LEAST) for seam in (1, 4, 7)}


def test_other_seams_do_not_count_as_beside() -> None:
    assert seam_ratios(np.array([np.nan, 1, 8, 8, 1]), {2, 3}, FPS) == {2: pytest.approx(8.1 / 1.1), 3: pytest.approx(8.1 / 1.1)}
    assert seam_ratios(np.array([np.nan, 8, 8]), {1, 2}, FPS) == {}


def test_beside_is_within_a_second() -> None:
    difference = np.array([np.nan, *[1.0] * 10, 6, *[6.0] * 10])
    assert seam_ratios(difference, {16}, FPS) == {16: 1}
    assert seam_ratios(difference, {16}, 2 * FPS) == {16: 1}
    assert seam_ratios(difference, {5}, FPS) == {5: 1}


def test_a_still_picture_has_no_seam_and_a_seam_behind_the_end_is_ignored() -> None:
    still = np.array([np.nan, 0, 0, 0, 0])
    assert seam_ratios(still, {2}, FPS) == {2: 1}
    assert seam_ratios(still, {5, 80}, FPS) == {}
    assert seam_ratios(np.array([]), {1}, FPS) == {}
    assert seam_ratios(still, (), FPS) == {}
