"""The bias on past frames: its column against the rule of scope's code, and what a change of prompt does to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from longgen.context.bias import Bias
from longgen.context.sink import Sink
from longgen.context.window import Window
from longgen.frameplan import FramePlan, Geometry, full_attention

FRAMES, CHUNK = 30, 3


def geometry(since_switch: int | None = None) -> Geometry:
    return Geometry(FRAMES, 21, (1.0,), chunk_lat=CHUNK, since_switch=since_switch)


def windowed(frames: int, sink: int = 0) -> FramePlan:
    plan = Window(frames=frames).apply(full_attention(FRAMES, CHUNK), geometry())
    return Sink(frames=sink).apply(plan, geometry()) if sink else plan


def column(plan: FramePlan) -> np.ndarray:
    """The bias of the frames that are seen, in the order of the cache; the same for all three query frames."""
    (one,) = plan.passes
    bias = one.column("logit_bias")
    assert (bias[:, ~one.visible[0]] == 0).all()
    assert (bias == bias[0]).all()
    return bias[0, one.visible[0]]


@pytest.mark.parametrize(("window", "sink"), [(6, 0), (6, 3), (5, 1), (21, 0), (30, 0), (4, 0), (3, 1)])
def test_slots_between_the_first_frame_and_the_chunk_are_lowered(window: int, sink: int) -> None:
    """scope: slot >= one frame and slot < all slots less the chunk's."""
    slots = window + sink
    expected = [math.log(0.3) if 1 <= slot < slots - CHUNK else 0.0 for slot in range(slots)]
    assert column(Bias().apply(windowed(window, sink), geometry())).tolist() == expected


def test_the_softmax_counts_a_lowered_frame_as_often_as_the_factor_says() -> None:
    (one,) = Bias(factor=0.25).apply(windowed(6), geometry()).passes
    weights = np.exp(one.column("logit_bias")[0, one.visible[0]])
    assert weights == pytest.approx([1, 0.25, 0.25, 1, 1, 1])


@pytest.mark.parametrize(("since", "factor"), [(None, 0.5), (0, 0.1), (1, 0.1), (2, 0.5), (9, 0.5)])
def test_another_factor_for_some_chunks_after_a_switch(since: int | None, factor: float) -> None:
    soft = Bias(factor=0.5, after_switch=0.1, chunks=2)
    assert column(soft.apply(windowed(6), geometry(since)))[1] == math.log(factor)
    assert column(Bias(factor=0.5, chunks=2).apply(windowed(6), geometry(since)))[1] == math.log(0.5)


def test_neutral() -> None:
    plan = windowed(6, 1)
    assert Bias(factor=1.0).apply(plan, geometry()) is plan
    assert Bias(factor=1.0, after_switch=0.1).apply(plan, geometry(4)) is plan
    assert Bias(factor=0.1, after_switch=1.0).apply(plan, geometry(0)) is plan
    for alone in (windowed(3), windowed(4), full_attention(3, 3)):
        own = Geometry(alone.frames_lat, 21, (1.0,), chunk_lat=CHUNK)
        assert Bias().apply(alone, own).key == alone.key


@pytest.mark.parametrize("wrong", [{"factor": 0.0}, {"factor": 1.1}, {"after_switch": 0.0}, {"chunks": 0}])
def test_factors_are_of_a_softmax(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Bias(**wrong)
