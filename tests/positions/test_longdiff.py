"""LongDiff's position mapping against its equations and the shifted matrices of the paper's text."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from longgen import cost, planner, preset
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, distances, full_attention, visible_from_ranges
from longgen.positions.longdiff import LongDiff


def reshaped(technique: LongDiff, frames_lat: int, before: FramePlan | None = None) -> FramePlan:
    return technique.apply(before or full_attention(frames_lat), Geometry(frames_lat, 21, (1.0,), 1))


def slow(frames_lat: int, group: int) -> list[np.ndarray]:
    """phi_m for m = 0 .. S - 1, pair by pair."""
    size = math.ceil((frames_lat - 1) / (group - 1))
    tables = []
    for m in range(size):
        phi = np.zeros((frames_lat, frames_lat))
        for i in range(frames_lat):
            for j in range(frames_lat):
                d = i - j
                phi[i, j] = math.copysign(math.ceil(max(abs(d) - m, 0) / size), d)
        tables.append(phi)
    return tables


@pytest.mark.parametrize(
    ("frames_lat", "group", "passes"), [(81, 21, 4), (41, 21, 2), (61, 21, 3), (22, 21, 2), (128, 16, 9), (5, 2, 4)]
)
def test_the_shifted_groupings(frames_lat: int, group: int, passes: int) -> None:
    made = reshaped(LongDiff(group=group), frames_lat)
    tables = [p.rel for p in made.passes]
    expected = slow(frames_lat, group)
    assert len(tables) == len(expected) == passes
    error = max(np.abs(one - other).max() for one, other in zip(tables, expected, strict=True))
    print(f"N = {frames_lat}, G = {group}: S = {passes}, largest difference {error}")
    assert error == 0
    assert np.array_equal(sum(tables), distances(frames_lat))  # so every distance keeps a record of its own
    assert max(np.abs(t).max() for t in tables) <= group - 1
    assert all(np.array_equal(t, -t.T) for t in tables)
    assert all((p.weight == 1 / passes).all() and p.visible.all() for p in made.passes)


def test_largest_group_at_four_times_wan() -> None:
    assert [p.rel.max() for p in reshaped(LongDiff(), 81).passes] == [20, 20, 20, 20]


def test_a_shift_moves_the_grouped_matrix() -> None:
    """Below the diagonal phi_(m + 1) is phi_m one row down, above it one column to the side."""
    tables = [p.rel for p in reshaped(LongDiff(), 81).passes]
    lower, upper = np.tril_indices(81, -1), np.triu_indices(81, 1)
    for before, after in pairwise(tables):
        down, side = np.zeros_like(before), np.zeros_like(before)
        down[1:], side[:, 1:] = before[:-1], before[:, :-1]
        assert np.array_equal(after[lower], down[lower])
        assert np.array_equal(after[upper], side[upper])


@pytest.mark.parametrize("mode", ["group", "interpolate", "clip"])
def test_the_ablations_are_one_pass_by_their_formula(mode: str) -> None:
    made = reshaped(LongDiff(mode=mode, group=17), 81)
    (one,) = made.passes
    for i in range(81):
        for j in range(81):
            d = i - j
            value = {
                "group": math.copysign(math.ceil(abs(d) / 5), d),  # S = ceil(80 / 16)
                "interpolate": d * 16 / 80,
                "clip": max(-16, min(16, d)),
            }[mode]
            assert one.rel[i, j] == pytest.approx(value, abs=1e-12)
    assert (one.weight == 1).all()


def test_options_change_the_tables() -> None:
    techniques = [LongDiff(), LongDiff(group=17), *(LongDiff(mode=mode) for mode in ("group", "interpolate", "clip"))]
    keys = {reshaped(technique, 81).key for technique in techniques}
    assert len(keys) == 5


@pytest.mark.parametrize("mode", ["group-shift", "group", "interpolate", "clip"])
@pytest.mark.parametrize(("frames_lat", "group"), [(1, None), (5, None), (21, None), (81, 81), (81, 100)])
def test_identity_within_the_groups(frames_lat: int, group: int | None, mode: str) -> None:
    plain = full_attention(frames_lat)
    assert reshaped(LongDiff(mode=mode, group=group), frames_lat, plain) is plain


def test_each_pass_of_the_plan_is_split() -> None:
    seen = visible_from_ranges([(max(0, i - 9), i + 1) for i in range(81)])
    one, other = full_attention(81).passes[0], full_attention(81).see_only(seen).passes[0]
    weights = np.linspace(0, 1, 81)
    before = FramePlan((type(one)(one.rel, one.visible, weights), type(one)(other.rel, other.visible, 1 - weights)))
    made = reshaped(LongDiff(), 81, before)
    assert len(made.passes) == 8
    assert np.allclose(sum(p.weight for p in made.passes), 1, atol=1e-15)
    assert [int(p.visible.sum()) for p in made.passes] == [81 * 81] * 4 + [int(seen.sum())] * 4
    assert np.allclose(sum(p.rel * p.weight[:, None] for p in made.passes), distances(81) / 4, atol=1e-13)


@pytest.mark.parametrize(
    ("override", "message"),
    [("group=1", r"longdiff.group = 1: .*greater than or equal to 2"), ("group=4.5", "valid integer"),
     ("mode=shift", "'group-shift', 'group', 'interpolate' or 'clip'"), ("groups=3", "unknown key")],
)  # fmt: skip
def test_wrong_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset.load("longdiff", [f"longdiff.{override}"])


def test_the_preset_plans_on_wan() -> None:
    made = planner.build(preset.load("longdiff", (), preset.Sample(frames=321)), WAN_1_3B)
    frame_plan = made.branches()["main"][0]
    assert (len(frame_plan.passes), frame_plan.reach) == (4, 20)
    assert frame_plan.key_frames is not None
    assert 1.6 * 0.25 < cost.attention_ratio(made) < 1.75 * 0.35  # a window and eight key frames, at two times each but for D = 4 a
    alone = planner.build(preset.load("longdiff", ("keyframes.layers=[]",), preset.Sample(frames=321)), WAN_1_3B)
    assert cost.attention_ratio(alone) == pytest.approx(1.75, abs=1e-3)  # of four passes
    assert not planner.build(preset.load("longdiff"), WAN_1_3B).table.any()
