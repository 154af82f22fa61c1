"""Re-based positions by hand: infinity-RoPE's window, Deep Forcing's sink, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest

from longgen import planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.wan import TINY
from longgen.context.freenoise import FreeNoise
from longgen.context.sink import Sink
from longgen.context.window import Window
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, distances, full_attention
from longgen.positions.rebase import Rebase

CLIP = Geometry(81, 21, (1.0,))


def chunk(window: int, sink: int, frames_lat: int = 81, queries: int = 3, native_lat: int = 21) -> tuple[FramePlan, Geometry]:
    """What a rollout's newest chunk sees."""
    clip = Geometry(frames_lat, native_lat, (1.0,), chunk_lat=3)
    plain = Window(frames=window).apply(full_attention(frames_lat, queries), clip)
    return Sink(frames=sink).apply(plain, clip), clip


def rel_of(plan: FramePlan) -> np.ndarray:
    (one,) = plan.passes
    return one.rel[:, one.visible[0]]


def test_infinity_rope_s_window_stands_at_0_to_5_and_the_query_at_its_end() -> None:
    """W = 6: frame 0, two past frames and the chunk; by the code its keys turn to 0 .. 5, the queries to 3, 4, 5."""
    seen, clip = chunk(window=5, sink=1)
    assert np.array_equal(rel_of(Rebase().apply(seen, clip)), np.array([[3], [4], [5]]) - np.arange(6))


def by_deep_forcing_s_code(chunk_index: int, sink: int, window: int) -> np.ndarray:
    """Where its cache of sink + window frames has the keys of the sink: chunk by chunk they are turned in place, from their own
    times, by how far the start moved that they ought to have; it is counted from the chunk's first frame. Before that they stay.
    """
    times, base = np.arange(float(sink)), None
    for start in range(0, 3 * (chunk_index + 1), 3):
        if start + 3 > sink + window:  # the cache overflows
            wanted = (start - window) - sink
            base = wanted if base is None else base
            times, base = times + (wanted - base), wanted
    return times


@pytest.mark.parametrize(("sink", "window"), [(14, 7), (10, 11), (3, 6)])
@pytest.mark.parametrize("chunks", [2, 7, 8, 9, 27, 40])
def test_with_gap_4_deep_forcing_s_sink_stands_where_its_code_turns_it(chunks: int, sink: int, window: int) -> None:
    seen, clip = chunk(window, sink, frames_lat=3 * chunks)
    rel = rel_of(Rebase(gap=4).apply(seen, clip))
    keys = np.concatenate([by_deep_forcing_s_code(chunks - 1, sink, window), np.arange(max(sink, 3 * chunks - window), 3 * chunks)])
    assert np.array_equal(rel, np.arange(3 * chunks - 3, 3 * chunks)[:, None] - keys[: rel.shape[1]])


def test_the_preset_of_deep_forcing_is_its_code_s() -> None:
    """21 frames of which 14 are the sink, as the script without compression has them; the paper's reading by --set."""
    made = planner.build(preset.load("deep-forcing", (), preset.Sample(frames=321)), SELF_FORCING)
    (branch,) = (frame_plan for frame_plan, _, _ in made.branches().values())
    assert np.array_equal(rel_of(branch), np.arange(78, 81)[:, None] - np.array([*range(57, 71), *range(74, 81)]))
    paper = ["rebase.gap=0", "sink.frames=10", "window.frames=11"]
    (branch,) = (one for one, _, _ in planner.build(preset.load("deep-forcing", paper, preset.Sample(frames=321)), SELF_FORCING)
                 .branches().values())  # fmt: skip
    assert np.array_equal(rel_of(branch), np.arange(78, 81)[:, None] - np.array([*range(61, 71), *range(70, 81)]))


def test_by_its_paper_deep_forcing_s_sink_ends_where_the_window_begins() -> None:
    """Keys of the sink turn by s_tail - s_sink, first frame of the window less last of the sink; others stay [paper]."""
    seen, clip = chunk(window=11, sink=10)
    keys = np.concatenate([np.arange(10) + (70 - 9), np.arange(70, 81)])
    assert np.array_equal(rel_of(Rebase(gap=0).apply(seen, clip)), np.arange(78, 81)[:, None] - keys)


@pytest.mark.parametrize("gap", [0, 1, 2, 7])
def test_a_hole_is_as_wide_as_the_gap(gap: int) -> None:
    seen, clip = chunk(window=6, sink=3)
    places = np.array([0, 1, 2, *(2 + gap + np.arange(6))])
    assert np.array_equal(rel_of(Rebase(gap=gap).apply(seen, clip)), places[-3:, None] - places)


def test_several_holes_close_each() -> None:
    seen = np.isin(np.arange(20), [0, 1, 5, 9, 10, 17, 18, 19])
    own = full_attention(20, 3).see_only(np.broadcast_to(seen, (3, 20)))
    closed = rel_of(Rebase().apply(own, Geometry(20, 21, (1.0,))))
    assert np.array_equal(closed, np.arange(5, 8)[:, None] - np.arange(8))


@pytest.mark.parametrize(("window", "sink"), [(21, 3), (18, 3), (11, 10), (5, 1)])
def test_the_reach_is_that_of_the_frames_seen(window: int, sink: int) -> None:
    seen, clip = chunk(window, sink)
    assert seen.reach == 80
    assert Rebase().apply(seen, clip).reach == window + sink - 1
    assert Rebase(gap=0).apply(seen, clip).reach == window + sink - 2


@pytest.mark.parametrize("frames_lat", [3, 9, 21, 24])
def test_neutral_where_the_frames_seen_have_no_hole(frames_lat: int) -> None:
    """Up to sink and window together; there the sink's last frame is the window's neighbour."""
    seen, clip = chunk(21, 3, frames_lat)
    assert Rebase().apply(seen, clip) is seen
    windowed = Window().apply(full_attention(81), CLIP)
    assert Rebase().apply(windowed, CLIP) is windowed


def test_in_a_clip_each_frame_has_its_own_hole() -> None:
    seen = Sink().apply(Window().apply(full_attention(81), CLIP), CLIP)
    (one,) = Rebase().apply(seen, CLIP).passes
    assert np.array_equal(one.visible, seen.passes[0].visible)
    for query in range(81):
        frames = np.flatnonzero(one.visible[query])
        places = np.arange(len(frames))
        assert np.array_equal(one.rel[query, frames], places[frames == query] - places)


def test_times_between_neighbours_stay_as_the_stack_made_them() -> None:
    seen = Sink().apply(Window(edge="clip").apply(full_attention(81).at(distances(81) / 4), CLIP), CLIP)
    (one,) = Rebase().apply(seen, CLIP).passes
    assert one.rel[60, 50:71] == pytest.approx((60 - np.arange(50, 71)) / 4)
    assert one.rel[60, :3] == pytest.approx(10 / 4 + 1 + np.array([2, 1, 0]) / 4)


def test_frames_that_a_pass_does_not_compute_are_left() -> None:
    several = Sink().apply(FreeNoise().apply(full_attention(81), CLIP), CLIP)
    for one in Rebase().apply(several, CLIP).passes:
        assert np.isfinite(one.rel).all()


def test_it_applies_after_the_context_and_before_flex() -> None:
    stack = preset.from_tables({"name": "s", "sample": {"frames": 321}, "technique": [{"name": name} for name in
                                ("flex", "rebase", "sink", "window")]}, "s")  # fmt: skip
    for spec in (TINY, SELF_FORCING):
        made = planner.build(stack, spec)
        names = [act.name for act in made.techniques]
        assert [name for name in names if name != "rollout"] == ["window", "sink", "rebase", "flex"]
        (branch,) = (frame_plan for frame_plan, _, _ in made.branches().values())
        assert branch.reach == 23


def test_it_decides_the_relative_times_alone() -> None:
    stack = preset.load("longdiff", (), preset.Sample(frames=321))
    with pytest.raises(UsageError, match="both decide the relative times"):
        planner.build(stack.model_copy(update={"techniques": (Rebase(), *stack.techniques)}), TINY)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Rebase(gap=-1)
