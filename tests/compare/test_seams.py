"""Where a technique's own edges lie, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from longgen import planner, preset
from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.compare.grid import seams
from longgen.plan import Plan

Make = Callable[..., Plan]


@pytest.mark.parametrize("name", ["direct", "sliding-window", "freenoise", "freespec", "fifo"])
def test_what_goes_from_frame_to_frame_has_none(tiny_plan: Make, name: str) -> None:
    assert seams(tiny_plan(name, frames=161)) == []


def test_clips_begin_and_end(tiny_plan: Make) -> None:
    # tiny has seen 21 latent frames; of 41 the clips are [0, 21), [10, 31) and [20, 41): edges at 10, 20, 21 and 31
    assert seams(tiny_plan("gen-l-video", frames=161)) == [4 * edge - 3 for edge in (10, 20, 21, 31)]
    # side by side: [0, 21), and [20, 41), which is moved inside
    assert seams(tiny_plan("gen-l-video", frames=161, sets=("gen-l-video.stride=21",))) == [4 * edge - 3 for edge in (20, 21)]


def test_a_video_of_native_length_is_one_clip(tiny_plan: Make) -> None:
    assert seams(tiny_plan("gen-l-video", frames=81)) == []


def test_clips_that_move_or_are_dilated_leave_no_edge(tiny_plan: Make) -> None:
    assert seams(tiny_plan("glc-diffusion", frames=161)) == []
    assert seams(tiny_plan("glc-diffusion", frames=161, sets=('glcd.paths="global"',))) == []
    assert seams(tiny_plan("glc-diffusion", frames=161, sets=("glcd.shift=false",))) != []


def test_clips_of_a_chain_begin_behind_what_they_are_given(tiny_plan: Make) -> None:
    # 41 latent frames: 21, and after each four that are handed over 17 new ones
    assert seams(tiny_plan("chain", frames=161, sets=("chain.overlap=4",))) == [4 * edge - 3 for edge in (21, 38)]
    assert seams(tiny_plan("chain", frames=81)) == []


def test_chunks_of_a_rollout() -> None:
    made = planner.build(preset.load("self-forcing", (), preset.Sample(frames=45)), TINY_CAUSAL)
    assert made.chunk_lat == 3
    assert made.frames_lat == 12
    assert seams(made) == [9, 21, 33]  # of latent frames 3, 6 and 9: four pixel frames each, after one of the first
