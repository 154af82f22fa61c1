"""The sliding window's table."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.context.window import Window
from longgen.frameplan import Geometry, full_attention


def table(technique: Window, frames_lat: int, native_lat: int = 21) -> np.ndarray:
    return technique.apply(full_attention(frames_lat), Geometry(frames_lat, native_lat, (1.0,), 1)).passes[0].visible


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
    plan = Window().apply(full_attention(frames_lat), Geometry(frames_lat, 21, (1.0,), 1))
    assert plan.is_stock


def test_length_can_be_chosen() -> None:
    assert (table(Window(frames=5), 81).sum(1) == 5).all()


def chunk(technique: Window, frames_lat: int, queries: int) -> np.ndarray:
    clip = Geometry(frames_lat, 21, (1.0,), chunk_lat=3)
    return technique.apply(full_attention(frames_lat, queries), clip).passes[0].visible


@pytest.mark.parametrize("edge", ["shift", "clip"])
@pytest.mark.parametrize("queries", [1, 3, 4])
def test_in_a_rollout_it_ends_with_the_newest_chunk(queries: int, edge: str) -> None:
    for frames, frames_lat in ((None, 81), (None, 23), (9, 81), (queries, 12)):
        visible = chunk(Window(frames=frames, edge=edge), frames_lat, queries)  # type: ignore[arg-type]
        assert visible.shape == (queries, frames_lat)
        for row in visible:
            assert np.flatnonzero(row).tolist() == list(range(frames_lat - (frames or 21), frames_lat))


@pytest.mark.parametrize("edge", ["shift", "clip"])
@pytest.mark.parametrize(("frames", "frames_lat", "queries"), [(3, 3, 3), (4, 4, 4), (5, 3, 3), (9, 9, 9), (9, 7, 3), (9, 9, 3)])
def test_in_a_rollout_a_chunk_sees_all_of_a_beginning_no_longer_than_it(
    frames: int, frames_lat: int, queries: int, edge: str
) -> None:
    """Also where the chunk is the beginning."""
    assert chunk(Window(frames=frames, edge=edge), frames_lat, queries).all()  # type: ignore[arg-type]
