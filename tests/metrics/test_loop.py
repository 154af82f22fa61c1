"""A loop by three kinds of evidence, and what misleads each of them."""

from __future__ import annotations

import numpy as np
import pytest

from longgen.metrics.loop import AWAY, CODEC, loop, revisits
from longgen.metrics.repetition import Repetition
from longgen.metrics.score import Scorer
from tests.metrics.scenes import pan

FPS = 4


def scores(frames: np.ndarray) -> dict[str, float]:
    scorer = Scorer(FPS)
    scorer.add(frames)
    found = scorer.result()
    values = found.values | found.details
    return {name: float(values[name] or 0) for name in ("repetition", "loop_flow", "loop_revisits", "loop")}


def wander(frames_px: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).uniform(0.02, 0.06, frames_px))


def slow_revisits(rows: np.ndarray, fps: float) -> float:
    """By the definition, frame by frame."""
    least, found = round(2 * fps), []
    distance = np.linalg.norm(rows[:, None].astype(float) - rows, axis=-1)
    for now in range(least, len(rows)):
        limit = max(distance[now, now - 1], CODEC)
        found.append(any(distance[now, then] <= limit and distance[now, then:now].max() > AWAY * limit
                         for then in range(now - least + 1)))  # fmt: skip
    return 100 * float(np.mean(found))


def test_revisits_are_those_of_the_definition() -> None:
    path = np.cumsum(np.random.default_rng(0).normal(size=(700, 2)), axis=0).astype(np.float32)  # several blocks; it comes back
    fast = revisits(path, 20)
    assert fast == pytest.approx(slow_revisits(path, 20), abs=0.5)
    assert 5 < fast < 95
    assert revisits(np.tile(np.arange(100, dtype=np.float32)[:, None], (3, 1)), 20) == pytest.approx(
        100 * 198 / 260
    )  # not where it jumps
    assert revisits(np.zeros((200, 3), np.float32), 20) == 0  # whoever stays has not come back


def test_a_loop_is_one_by_all_three() -> None:
    assert min(scores(np.tile(pan(wander(12)), (3, 1, 1, 1))).values()) > 75


def test_what_misleads_one_is_no_loop() -> None:
    steps = np.arange(40)
    walk = scores(pan(np.cumsum(0.03 + 0.025 * np.sin(2 * np.pi * steps / 12))))  # its speed is periodic, its way is not
    assert walk["loop_flow"] > 90
    assert walk["loop"] < 25
    once = scores(pan(np.concatenate([wander(16), wander(20, 1) + 1.5, wander(3)])))  # the beginning comes back for half a second
    assert 2 < once["loop_revisits"] < 15
    assert once["loop"] < 25
    for frames in (pan(np.zeros(20)), pan(np.linspace(0, 0.4, 20))):
        assert scores(frames)["loop"] == 0


def test_too_short_says_nothing() -> None:
    assert loop(Repetition(FPS), np.zeros((0, 32)), FPS) == {"loop": None, "loop_flow": None, "loop_revisits": None}
