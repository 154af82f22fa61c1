"""The whole score: names, identities, edges, files, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from longgen.errors import LonggenError, MissingError, UsageError
from longgen.metrics import METRICS
from longgen.metrics.score import Score, Scorer, score_video
from longgen.video import Writer
from tests.metrics.scenes import grey, pan

FPS = 8
PROMPT = "a small red circle orbiting on a navy background"
SUBJECT = ["subject_colour", "subject_one_object", "subject_motion"]


def score(frames: np.ndarray, fps: float = FPS, seams: tuple[int, ...] = (), prompt: str | None = None, batch: int = 7) -> Score:
    scorer = Scorer(fps, seams, prompt)
    for start in range(0, len(frames), batch):
        scorer.add(frames[start : start + batch])
    return scorer.result()


def scene(size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Four seconds: a pan, a cut at frame 12, a stand from frame 24."""
    steps = np.minimum(np.arange(32), 24)
    return pan(0.03 * steps + 1.5 * (steps >= 12), size)


def close(one: Score, other: Score, **allowed: float) -> None:
    for name, amount in allowed.items():
        assert one.values[name] == pytest.approx(other.values[name], abs=amount), name


def test_the_table_speaks_for_itself() -> None:
    assert [*METRICS] == [
        "motion", "freeze", "repetition", "loop", "seam", "drift", "detail", "flicker", "smoothness", *SUBJECT,
    ]  # fmt: skip
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.unit
        assert metric.about[-1] == "."
    code = "import sys, longgen.metrics; print({'cv2', 'torch', 'numpy', 'imageio_ffmpeg'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_name_that_applies_has_a_value_or_none() -> None:
    found = score(scene(), seams=(12,), prompt=PROMPT)
    assert [*found.values] == [*METRICS]
    assert all(value is not None and math.isfinite(value) for value in found.values.values())
    assert (found.frames, found.fps) == (32, FPS)
    assert {curve.shape for curve in found.curves.values()} == {(32,)}
    assert {curve.dtype for curve in found.curves.values()} == {np.dtype(float)}
    assert all(value is None or math.isfinite(value) for value in found.details.values())
    assert found.details["seam_at"] == 12
    assert found.values["freeze"] == pytest.approx(100 * 7 / 31)
    assert found.values["seam"] == found.details["seam_worst"] > 3


def test_batches_do_not_matter() -> None:
    whole = score(scene(), seams=(12,), prompt=PROMPT, batch=32)
    for batch in (1, 5):
        parts = score(scene(), seams=(12,), prompt=PROMPT, batch=batch)
        assert parts.values == whole.values
        assert parts.details == whole.details
        for name, curve in parts.curves.items():
            np.testing.assert_array_equal(curve, whole.curves[name])


def test_a_score_may_be_asked_for_on_the_way() -> None:
    scorer = Scorer(FPS)
    scorer.add(scene()[:20])
    assert scorer.result().values == score(scene()[:20]).values
    scorer.add(scene()[20:])
    assert scorer.result().values == score(scene()).values


def test_the_same_scene_scores_the_same_at_every_size() -> None:
    small = score(scene(), seams=(12,))
    for size in ((160, 160), (480, 480)):
        large = score(scene(size), seams=(12,))
        close(large, small, motion=2.5, freeze=0, repetition=2, seam=0.4, drift=0.3, flicker=0.3, smoothness=3)


def test_another_rate_changes_what_is_per_second_and_nothing_else() -> None:
    shown, faster = score(scene(), seams=(12,)), score(scene(), 2 * FPS, seams=(12,))
    for name, factor in {"motion": 2, "drift": 2, "freeze": 1, "flicker": 1, "smoothness": 1}.items():
        assert faster.values[name] == pytest.approx(factor * shown.values[name]), name


def test_h264_changes_little(tmp_path: Path) -> None:
    path = tmp_path / "scene.mp4"
    for size in ((64, 64), (96, 80)):
        frames = scene(size)
        with Writer(path, size, FPS, {"longgen": "0"}) as writer:
            writer.add(frames)
        read, kept = score_video(path, (12,), PROMPT), score(frames, seams=(12,), prompt=PROMPT)
        assert (read.frames, read.fps, [*read.values]) == (32, FPS, [*kept.values])
        close(read, kept, motion=1.5, freeze=10, repetition=2, seam=1.5, drift=0.3, flicker=0.3, smoothness=4)
        assert read.details["seam_at"] == 12


def test_a_video_that_was_cut_off_is_scored_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "scene.mp4"
    with contextlib.suppress(KeyboardInterrupt), Writer(path, (64, 64), FPS, {"longgen": "0"}) as writer:
        writer.add(scene())
        raise KeyboardInterrupt
    assert score_video(writer.partial).frames == 32


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 1000])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MissingError, match=r"none\.mp4 is not there"):
        score_video(tmp_path / "none.mp4")
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(LonggenError, match=r"x\.mp4 could not be read as a video"):
        score_video(path)


@pytest.mark.parametrize("size", [(64, 64), (91, 65), (16, 200)])
@pytest.mark.parametrize("frames_px", [0, 1, 2, 3])
def test_what_is_too_short_says_none_and_never_nan(size: tuple[int, int], frames_px: int) -> None:
    found = score(pan(0.02 * np.arange(frames_px), size) if frames_px else np.zeros((0, 64, 64, 3), np.uint8), seams=(1,))
    pairs, triples = frames_px >= 2, frames_px >= 3
    said = {"motion": pairs, "freeze": pairs, "repetition": False, "loop": False, "seam": triples, "drift": False,
            "detail": False, "flicker": triples, "smoothness": triples}  # fmt: skip
    assert {name: value is not None for name, value in found.values.items()} == said
    assert not any(value is not None and math.isnan(value) for value in found.values.values())
    assert {len(curve) for curve in found.curves.values()} == {frames_px}


def test_black_is_still_and_perfect() -> None:
    found = score(grey(np.zeros(4 * FPS), (91, 65)), seams=(5,))
    zero = dict.fromkeys(("motion", "repetition", "loop", "drift", "flicker"), 0)
    assert found.values == {**zero, "freeze": 100, "seam": 1, "detail": 100, "smoothness": 60}
    assert found.details["repetition_lag_s"] is None


def test_memory_does_not_hold_the_frames() -> None:
    """A frame at working size takes 150 kB and more."""
    scorer, frames = Scorer(FPS), scene()[:16]
    scorer.add(frames)
    tracemalloc.start()
    try:
        scorer.add(frames)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2):
            scorer.add(frames)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / 32 < 5000


@pytest.mark.parametrize(
    ("frames", "message"),
    [(np.zeros((1, 64, 64, 3), np.float32), r"float32 \[1, 64, 64, 3\]"), (np.zeros((64, 64, 3), np.uint8), r"\[64, 64, 3\]"),
     (np.zeros((1, 3, 64, 64), np.uint8), r"\[1, 3, 64, 64\]"), (np.zeros((1, 8, 64, 3), np.uint8), "16 pixels a side")],
)  # fmt: skip
def test_other_frames_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(FPS).add(frames)


def test_what_cannot_be_is_refused() -> None:
    scorer = Scorer(FPS)
    scorer.add(grey(np.zeros(1)))
    with pytest.raises(UsageError, match=r"\[64, 32, 3\] after frames that are \[64, 64, 3\]"):
        scorer.add(grey(np.zeros(1), (32, 64)))
    for fps in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError, match="frames a second"):
            Scorer(fps)
    with pytest.raises(UsageError, match="a seam at frame 0"):
        Scorer(FPS, (4, 0))


def test_scores_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        score(scene()[:1]).frames = 2  # type: ignore[misc]
