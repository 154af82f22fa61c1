"""Differences of neighbours and frozen frames."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.metrics.change import Change
from longgen.metrics.picture import picture
from tests.metrics.scenes import grey, pan, square


def change(frames: np.ndarray) -> Change:
    """`frames` added one by one."""
    counted = Change()
    for frame in frames:
        counted.add(picture(frame))
    return counted


def frozen(frames: np.ndarray) -> list[float]:
    return change(frames).freeze[1:]


def test_the_difference_is_a_mean_distance_in_lab() -> None:
    black_white_black = change(grey(np.array([0, 255, 255, 0])))
    assert np.isnan(black_white_black.difference[0])
    assert black_white_black.difference[1:] == pytest.approx([100, 0, 100], abs=0.01)
    half = grey(np.array([0, 0]))
    half[1, :, :32] = 255
    assert change(half).difference[1] == pytest.approx(50, abs=1)
    red = grey(np.array([0, 0]))
    red[1, ..., 0] = 255
    assert change(red).difference[1] == pytest.approx(np.sqrt(53.24**2 + 80.09**2 + 67.20**2), rel=0.001)  # CIE L*a*b* of sRGB red


def test_the_frozen_half_is_frozen() -> None:
    steps = np.minimum(np.arange(20), 10)
    assert frozen(pan(0.01 * steps)) == [0] * 10 + [1] * 9
    assert frozen(square(0.1 + 0.02 * steps)) == [0] * 10 + [1] * 9


def test_every_other_frame_of_a_doubled_video_is_frozen() -> None:
    assert frozen(np.repeat(pan(0.01 * np.arange(5)), 2, axis=0)) == [1, 0] * 4 + [1]


@pytest.mark.parametrize("size", [(64, 64), (416, 240)])
def test_slow_motion_is_not_frozen_and_faint_noise_is(size: tuple[int, int]) -> None:
    assert frozen(pan(0.002 * np.arange(6), size)) == [0] * 5
    noise = np.random.default_rng(0).normal(0, 0.5, (6, *size[::-1], 3)).round()
    assert frozen((pan(np.zeros(6), size) + noise).clip(0, 255).astype(np.uint8)) == [1] * 5


def test_one_small_thing_that_moves_is_enough() -> None:
    frames = grey(np.full(6, 60))
    for step, frame in enumerate(frames):
        frame[30:34, 20 + step : 24 + step] = 200
    assert frozen(frames) == [0] * 5


def test_motion_by_colour_alone_is_motion() -> None:
    frames = np.tile(np.array([183, 153, 107], np.uint8), (4, 64, 64, 1))  # sand and orange, as bright as each other
    for step, frame in enumerate(frames):
        frame[20:30, 20 + step : 30 + step] = 255, 133, 13
    assert frozen(frames) == [0] * 3
