"""Loops of a known period, and videos that go on."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.metrics.picture import picture
from longgen.metrics.repetition import Repetition, squared_distance
from tests.metrics.scenes import grey, pan

FPS = 8


def repetition(frames: np.ndarray, fps: float = FPS) -> tuple[float, float | None] | None:
    counted = Repetition(fps)
    for frame in frames:
        counted.add(picture(frame))
    return counted.result()


def wander(frames_px: int, seed: int = 0) -> np.ndarray:
    """A path, in shorter sides, that goes on: 0.04 a frame, unevenly."""
    return np.cumsum(np.random.default_rng(seed).uniform(0.02, 0.06, frames_px))


def test_distances_are_those_of_the_pairs() -> None:
    rows = np.random.default_rng(0).normal(size=(23, 70)).astype(np.float32)
    by_hand = [np.mean([np.sum((rows[i] - rows[i + lag]) ** 2) for i in range(23 - lag)]) for lag in range(23)]
    np.testing.assert_allclose(squared_distance(rows), by_hand, atol=1e-4)


@pytest.mark.parametrize("period", [16, 27])
@pytest.mark.parametrize("times", [2, 4])
def test_a_loop_is_found_with_its_period(period: int, times: int) -> None:
    strength, lag_s = repetition(np.tile(pan(wander(period)), (times, 1, 1, 1)))
    assert strength > 97
    assert lag_s == period / FPS


def test_a_loop_is_found_although_each_turn_is_darker_and_noisier() -> None:
    loop = np.tile(pan(wander(24)), (3, 1, 1, 1)).astype(float)
    worn = loop - np.linspace(0, 50, 72)[:, None, None, None] + np.random.default_rng(0).normal(0, 6, loop.shape)
    strength, lag_s = repetition(worn.clip(0, 255).astype(np.uint8))
    assert strength > 90
    assert lag_s == 3


def test_what_comes_back_partly_repeats_partly() -> None:
    one, other = pan(wander(24)), pan(2 + wander(24, seed=1))
    mixed = [((1 - share) * one + share * other).astype(np.uint8) for share in (0.3, 0.6)]
    (nearly, _), (partly, _) = (repetition(np.concatenate([one, again])) for again in mixed)
    assert 95 > nearly > 60
    assert nearly - 20 > partly > 10


def test_a_video_that_goes_on_does_not_repeat() -> None:
    for frames in (pan(np.linspace(0, 0.4, 64)), pan(np.zeros(64)), grey(np.linspace(0, 255, 64))):
        assert repetition(frames) == (0, None)
    by_chance, _ = repetition(pan(np.linspace(0, 2, 64)))
    assert by_chance < 20


def test_a_swing_repeats_and_says_so() -> None:
    strength, lag_s = repetition(pan(0.3 * np.sin(2 * np.pi * np.arange(80) / 24)))
    assert strength > 97
    assert lag_s == 3


def test_shorter_periods_than_two_seconds_show_by_their_multiples() -> None:
    _, lag_s = repetition(np.tile(pan(wander(10)), (5, 1, 1, 1)))
    assert lag_s == 20 / FPS


def test_periods_are_in_seconds_and_strength_is_the_same_at_every_size_and_rate() -> None:
    path = np.tile(wander(32), 2)
    small, large = repetition(pan(path)), repetition(pan(path, (160, 160)))
    assert large[1] == small[1] == 4
    assert large[0] == pytest.approx(small[0], abs=1)
    every_other = repetition(pan(path)[::2], FPS / 2)
    assert every_other[1] == 4
    assert every_other[0] == pytest.approx(small[0], abs=2)


def test_a_short_video_says_nothing() -> None:
    assert repetition(pan(wander(3 * FPS))) is None
    assert repetition(pan(wander(1))) is None
    assert repetition(pan(wander(3 * FPS + 2))) is not None
