"""Motion, smoothness and flicker, on scenes whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.metrics.flow import CEILING_DB, Flow
from longgen.metrics.picture import picture
from tests.metrics.scenes import grey, pan, square

FPS = 16
STEPS = np.arange(8)


def curves(frames: np.ndarray, fps: float = FPS) -> Flow:
    flow = Flow(fps)
    for frame in frames:
        flow.add(picture(frame))
    return flow


def means(frames: np.ndarray, fps: float = FPS) -> tuple[float, float, float]:
    """motion, smoothness, flicker."""
    flow = curves(frames, fps)
    return tuple(float(np.nanmean(curve)) for curve in (flow.motion, flow.smoothness, flow.flicker))


@pytest.mark.parametrize("size", [(64, 64), (104, 64), (65, 91), (416, 240), (480, 480)])
@pytest.mark.parametrize("speed", [0.003, 0.01, 0.05])
def test_a_pan_reads_its_speed_at_every_size(size: tuple[int, int], speed: float) -> None:
    motion, *_ = means(pan(speed * STEPS, size))
    assert motion == pytest.approx(100 * FPS * speed, rel=0.1)


@pytest.mark.parametrize("side", [64, 480])
@pytest.mark.parametrize("speed", [0.01, 0.03])
def test_a_small_square_reads_its_speed_although_its_ground_is_flat(side: int, speed: float) -> None:
    motion, *_ = means(square(0.1 + speed * STEPS, side))
    assert motion == pytest.approx(100 * FPS * speed, rel=0.2)


def test_what_stands_still_does_not_move() -> None:
    assert means(pan(0 * STEPS)) == (0, CEILING_DB, 0)
    assert means(grey(0 * STEPS)) == (0, CEILING_DB, 0)


def test_motion_is_per_second() -> None:
    shown_fast, *_ = means(pan(0.01 * STEPS), 2 * FPS)
    shown, *_ = means(pan(0.01 * STEPS), FPS)
    every_other, *_ = means(pan(0.02 * STEPS), FPS / 2)
    assert shown_fast == pytest.approx(2 * shown)
    assert every_other == pytest.approx(shown, rel=0.03)


def test_the_curves_stand_at_their_frames() -> None:
    flow = curves(pan(np.array([0, 0, 0, 0.02, 0.04, 0.04, 0.04])))
    assert np.isnan(flow.motion).tolist() == [True] + [False] * 6
    assert (np.array(flow.motion[1:]) > 1).tolist() == [False, False, True, True, False, False]
    assert np.isnan(flow.smoothness).tolist() == np.isnan(flow.flicker).tolist() == [True, *[False] * 5, True]
    assert np.argsort(flow.smoothness[1:-1])[:2].tolist() == [1, 3]  # frames 2 and 4, where it starts and stops
    for few in (1, 2):
        short = curves(pan(0.02 * np.arange(few)))
        assert len(short.motion) == len(short.smoothness) == len(short.flicker) == few
        assert np.isnan(short.smoothness).all()


@pytest.mark.parametrize("size", [(64, 64), (240, 160)])
def test_jerks_are_not_smooth_and_worse_ones_less(size: tuple[int, int]) -> None:
    steady, small, large = (means(pan(0.02 * STEPS + jerk * (STEPS % 2), size))[1] for jerk in (0, 0.005, 0.02))
    assert steady > small + 6 > large + 12
    assert steady > 45


def test_boiling_texture_is_not_smooth() -> None:
    boil = np.random.default_rng(1).normal(0, 8, (8, 64, 64, 1))
    boiling = (pan(0.02 * STEPS) + boil).clip(0, 255).astype(np.uint8)
    assert means(boiling)[1] < means(pan(0.02 * STEPS))[1] - 10


@pytest.mark.parametrize("levels", [4, 20])
def test_alternating_brightness_reads_its_distance(levels: int) -> None:
    for scene in (pan(0.02 * STEPS), pan(0 * STEPS), grey(0 * STEPS + 100)):
        flashing = (scene.astype(int) // 2 + 64 + levels * (STEPS % 2)[:, None, None, None]).astype(np.uint8)
        assert means(flashing)[2] == pytest.approx(100 * levels / 255, rel=0.1)


def test_a_local_flash_counts_by_its_share() -> None:
    flashing = grey(0 * STEPS + 100)
    flashing[1::2, :, :32] += 40
    assert means(flashing)[2] == pytest.approx(100 * 40 / 255 / 2, rel=0.05)


def test_steady_motion_and_a_steady_ramp_do_not_flicker() -> None:
    ramp = grey(50 + 4 * STEPS)
    assert max(means(frames)[2] for frames in (pan(0.03 * STEPS), square(0.1 + 0.03 * STEPS), ramp)) < 0.2
