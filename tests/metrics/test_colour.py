"""Drift, on ramps whose slope is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from longgen.metrics.colour import PARTS, Colour, drift
from longgen.metrics.picture import picture
from tests.metrics.scenes import grey, pan

FPS = 8


def colour(frames: np.ndarray, fps: float = FPS) -> Colour:
    counted = Colour(fps)
    for frame in frames:
        counted.add(picture(frame))
    return counted


def slopes(frames: np.ndarray, fps: float = FPS) -> dict[str, float]:
    found = colour(frames, fps).slopes()
    assert found is not None
    return found


def test_the_numbers_of_known_pictures() -> None:
    halves = grey(np.array([0]))
    halves[:, :32] = 255
    red = np.tile(np.array([255, 0, 0], np.uint8), (1, 64, 64, 1))
    found = {name: curve.tolist() for name, curve in colour(np.concatenate([halves, red])).curves().items()}
    assert found["brightness"] == pytest.approx([50, 53.24], abs=0.5)
    assert found["green_red"] == pytest.approx([0, 80.09], abs=0.1)
    assert found["blue_yellow"] == pytest.approx([0, 67.20], abs=0.1)
    assert found["contrast"] == pytest.approx([50, 0], abs=0.5)
    assert found["saturation"] == pytest.approx([0, np.hypot(80.09, 67.20)], abs=0.1)
    assert found["sharpness"][0] > 0.2 > found["sharpness"][1]


def test_a_ramp_from_black_to_white_has_its_slope() -> None:
    light = np.linspace(20, 80, 33)  # L*, over 4 s
    levels = 255 * np.where(light > 0, 1.055 * (((light + 16) / 116) ** 3) ** (1 / 2.4) - 0.055, 0)
    found = slopes(grey(levels.round()))
    assert found["brightness"] == pytest.approx(15, rel=0.01)
    assert drift(found) == pytest.approx(15, rel=0.01)


def test_each_part_is_found_and_a_stronger_ramp_drifts_more() -> None:
    still = pan(np.zeros(17)).astype(float)
    middle, at = still.mean(axis=(1, 2), keepdims=True), np.linspace(0, 1, 17)[:, None, None, None]
    grey_of = still.mean(axis=-1, keepdims=True)

    def scores(change: np.ndarray) -> dict[str, float]:
        return slopes(change.clip(0, 255).round().astype(np.uint8))

    cases = {
        "brightness": lambda much: still + 40 * much * at,
        "contrast": lambda much: middle + (still - middle) * (1 - 0.5 * much * at),
        "saturation": lambda much: grey_of + (still - grey_of) * (1 - 0.5 * much * at),
        "green_red": lambda much: still + 40 * much * at * np.array([1, -0.5, 0]),
        "blue_yellow": lambda much: still + 60 * much * at * np.array([0, 0, -1]),
    }
    for name, ramp in cases.items():
        weak, strong = scores(ramp(0.5)), scores(ramp(1.0))
        assert abs(strong[name]) > 1.5 * abs(weak[name]) > 0.5, name
        assert drift(strong) > 1.5 * drift(weak) > 1.5 * abs(weak[name]) * 0.99, name


def test_growing_blur_is_a_loss_of_sharpness() -> None:
    noise = np.random.default_rng(0).integers(60, 200, (64, 64, 3), dtype=np.uint8)
    blurred = np.stack([cv2.GaussianBlur(noise, (0, 0), 0.2 + 0.1 * step) for step in range(17)])
    assert slopes(blurred)["sharpness"] < -1


def test_drift_is_per_second_and_the_same_at_every_size() -> None:
    ramp = np.linspace(0, 60, 17)[:, None, None, None]
    small, large = ((pan(np.zeros(17), size) // 2 + 60 + ramp).astype(np.uint8) for size in ((64, 64), (240, 240)))
    assert drift(slopes(large)) == pytest.approx(drift(slopes(small)), rel=0.02)
    assert drift(slopes(small, 2 * FPS)) == pytest.approx(2 * drift(slopes(small)))
    assert drift(slopes(small[::2], FPS / 2)) == pytest.approx(drift(slopes(small)), rel=0.02)


def test_what_stays_has_no_drift_and_what_is_short_no_slope() -> None:
    assert drift(slopes(pan(np.zeros(FPS)))) == pytest.approx(0, abs=1e-6)
    assert colour(pan(np.zeros(FPS - 1))).slopes() is None
    assert colour(pan(np.zeros(1)), fps=0.5).slopes() is None
    assert drift(dict.fromkeys(PARTS, 0.0) | {"contrast": 3.0, "sharpness": -4.0}) == 5


def test_the_ends_of_a_ramp_and_of_a_step() -> None:
    seconds = np.arange(8 * FPS) / FPS
    for light, slope, change in ((60 - seconds, 1.0, 0.85 * 8), (np.where(seconds < 4, 60, 50), 1.5 * 10 / 8, 10)):
        levels = 255 * (1.055 * (((light + 16) / 116) ** 3) ** (1 / 2.4) - 0.055)
        counted = colour(grey(levels.round()))
        ends = counted.ends()
        assert ends is not None
        assert drift(counted.slopes() or {}) == pytest.approx(slope, rel=0.03)
        assert drift(ends[0]) == pytest.approx(change, rel=0.03)
        assert ends[0]["brightness"] < 0
        assert ends[1] == pytest.approx(100, abs=0.1)  # plain pictures


def test_detail_is_the_sharpness_that_is_left() -> None:
    sharp = pan(0.02 * np.arange(20), (192, 192))
    blurred = np.stack([frame if step < 10 else cv2.GaussianBlur(frame, (0, 0), 8) for step, frame in enumerate(sharp)])
    details = []
    for frames in (blurred, blurred[::-1]):
        counted = colour(frames)
        curve, ends = counted.curves()["sharpness"], counted.ends()
        assert ends is not None
        assert ends[1] == pytest.approx(100 * (curve[-3:].mean() + 0.1) / (curve[:3].mean() + 0.1))
        assert ends[0]["sharpness"] == pytest.approx(curve[-3:].mean() - curve[:3].mean())
        details.append(ends[1])
    assert details[0] < 70
    assert details[0] * details[1] == pytest.approx(100**2)
    assert colour(sharp[:7]).ends() is None
