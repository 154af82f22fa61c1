"""The attention sink's table, alone and over what other techniques have made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from longgen.context.freenoise import FreeNoise
from longgen.context.sink import Sink
from longgen.context.window import Window
from longgen.frameplan import Geometry, distances, full_attention

CLIP = Geometry(81, 21, (1.0,))


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_the_first_frames_are_seen_besides(frames: int) -> None:
    windowed = Window().apply(full_attention(81), CLIP)
    (one,) = Sink(frames=frames).apply(windowed, CLIP).passes
    for i, j in itertools.product(range(81), repeat=2):
        assert one.visible[i, j] == (j < frames or bool(windowed.passes[0].visible[i, j]))
    assert np.array_equal(one.rel, distances(81))


def test_three_frames_by_default() -> None:
    assert Sink().apply(full_attention(81), CLIP).key == Sink(frames=3).apply(full_attention(81), CLIP).key
    (one,) = Sink().apply(Window(edge="clip").apply(full_attention(81), CLIP), CLIP).passes
    assert np.flatnonzero(one.visible[60]).tolist() == [0, 1, 2, *range(50, 71)]


def test_it_is_seen_at_the_times_that_the_positions_give() -> None:
    rel = distances(81) / 4
    (one,) = Sink().apply(Window().apply(full_attention(81).at(rel), CLIP), CLIP).passes
    assert np.array_equal(one.rel, rel)


def test_it_is_seen_whole_where_stripes_are() -> None:
    stripes = full_attention(81).each(lambda p: p.with_columns(band=np.full((81, 81), 0.25)))
    (one,) = Sink().apply(stripes, CLIP).passes
    assert one.band is not None
    assert (one.band[:, :3] == 1).all()
    assert (one.band[:, 3:] == 0.25).all()


def test_frames_that_a_pass_does_not_compute_stay_blind() -> None:
    plan = Sink().apply(FreeNoise().apply(full_attention(81), CLIP), CLIP)
    for one in plan.passes:
        assert one.visible[one.weight > 0, :3].all()
        assert not one.visible[one.weight == 0].any()


@pytest.mark.parametrize("frames_lat", [1, 2, 21])
def test_neutral_where_everything_is_seen(frames_lat: int) -> None:
    clip = Geometry(frames_lat, 21, (1.0,))
    assert Sink().apply(full_attention(frames_lat), clip).is_stock
    assert Sink().apply(Window().apply(full_attention(frames_lat), clip), clip).is_stock


@pytest.mark.parametrize("frames", [1, 3, 10])
@pytest.mark.parametrize("frames_lat", [3, 12, 81])
def test_in_a_rollout_the_first_frames_stay_in_view_of_the_newest_chunk(frames: int, frames_lat: int) -> None:
    clip = Geometry(frames_lat, 21, (1.0,), chunk_lat=3)
    windowed = Window(frames=9).apply(full_attention(frames_lat, 3), clip)
    (one,) = Sink(frames=frames).apply(windowed, clip).passes
    for row, rel in zip(one.visible, one.rel, strict=True):
        assert np.flatnonzero(row).tolist() == sorted({*range(min(frames, frames_lat)), *range(max(0, frames_lat - 9), frames_lat)})
        assert np.array_equal(np.diff(rel), np.full(frames_lat - 1, -1.0))


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Sink(frames=0)
