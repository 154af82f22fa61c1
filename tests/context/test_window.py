"""The sliding window's table."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.context.window import Window
from longgen.frameplan import Clip, neutral


def table(technique: Window, frames_lat: int, native_lat: int = 21) -> np.ndarray:
    return technique.reshape(neutral(frames_lat), Clip(frames_lat, native_lat, (1.0,), 1)).passes[0].visible


def test_shifted_window_always_sees_native_many_frames() -> None:
    visible = table(Window(), 81)
    assert (visible.sum(1) == 21).all()
    assert np.array_equal(np.flatnonzero(visible[40]), np.arange(30, 51))
    assert np.array_equal(np.flatnonzero(visible[0]), np.arange(21))
    assert np.array_equal(np.flatnonzero(visible[80]), np.arange(60, 81))


def test_clipped_window_is_the_band() -> None:
    i, j = np.indices((81, 81))
    assert np.array_equal(table(Window(edge="clip"), 81), abs(i - j) <= 10)


@pytest.mark.parametrize("frames_lat", [1, 5, 21])
def test_neutral_up_to_native_length(frames_lat: int) -> None:
    plan = Window().reshape(neutral(frames_lat), Clip(frames_lat, 21, (1.0,), 1))
    assert plan.is_neutral


def test_length_can_be_chosen() -> None:
    assert (table(Window(frames=5), 81).sum(1) == 5).all()
