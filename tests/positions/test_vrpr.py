"""VRPR against the reference's worked values and loops over its equations; what it refuses."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from longgen import cost, planner, preset
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import UsageError
from longgen.frameplan import Geometry, distances, full_attention, visible_from_ranges
from longgen.positions.vrpr import Vrpr

VARIANTS = ["continuous", "code", "paper"]
WORKED = {  # T = 81, (10, 14, 2, 8): distance -> the values the code gives it
    **{d: {d} for d in range(10)}, 10: {10}, 11: {10, 11}, 12: {11}, 13: {11, 12}, **{d: {12, 13} for d in (14, 15)}, 32: {14, 15},
    40: {15, 16}, 48: {16, 17}, 64: {18, 19}, 72: {19, 20}, **{d: {20} for d in range(73, 81)},
}  # fmt: skip


def clip(frames_lat: int, native_lat: int = 21) -> Geometry:
    return Geometry(frames_lat, native_lat, (1.0,), 1)


def table(technique: Vrpr, frames_lat: int, native_lat: int = 21) -> np.ndarray:
    return technique.apply(full_attention(frames_lat), clip(frames_lat, native_lat)).passes[0].rel


def by_distance(rel: np.ndarray) -> dict[int, set[float]]:
    found = defaultdict(set)
    for i in range(len(rel)):
        for j in range(i + 1):
            found[i - j].add(float(rel[i, j]))
    return found


def tiers(d: int, w1: int, w2: int) -> list[str]:
    return [name for name, inside in (("near", d < w1), ("middle", w1 <= d < w2), ("far", d >= w2)) if inside]


def slow(variant: str, frames_lat: int, native: int, w1: int, w2: int, g1: int, g2: int) -> np.ndarray:
    """The header's equations, one pair at a time; every pair must be in exactly one tier."""
    rel = np.full((frames_lat, frames_lat), np.nan)
    for i in range(frames_lat):
        for j in range(i + 1):
            d, most = i - j, native - 1
            (tier,) = tiers(d, w1, w2)
            if tier == "near":
                value = float(d)
            elif variant == "continuous":
                c1, c2 = w1 * (1 - 1 / g1), w1 + (w2 - w1) / g1 - w2 / g2
                value = min(d / g1 + c1 if tier == "middle" else d / g2 + c2, most)
            elif variant == "code" and tier == "middle":
                value = math.floor(i / g1) - math.floor(j / g1) + w1 - math.ceil(w1 / g1)
            elif variant == "code":
                c2 = w1 + math.ceil((w2 - w1) / g1) - math.floor(w2 / g2)
                value = min(math.floor(i / g2) + c2, most) - math.floor(j / g2)
            elif tier == "middle":
                value = min(math.floor(d / g1) + w1 - math.floor(w1 / g1), most)
            else:
                c2 = w1 - math.floor(w1 / g1) + math.floor(w2 / g1) - math.floor(w2 / g2)
                value = min(math.floor(d / g2) + c2, most)
            rel[i, j], rel[j, i] = value, -value
    return rel


def test_code_s_worked_values_at_81() -> None:
    found = by_distance(table(Vrpr(variant="code"), 81))
    assert {d: found[d] for d in WORKED} == WORKED
    assert all(found[d] <= {12, 13} for d in range(14, 17))
    assert all(found[d] <= {13, 14} for d in range(17, 25))


@pytest.mark.parametrize(("frames_lat", "w1", "w2"), [(41, 12, 20), (81, 10, 14)])
def test_code_equals_the_reference_s_own_constants(frames_lat: int, w1: int, w2: int) -> None:
    """The reference's lines with G1 = 2, G2 = 8, its c1 and c2 as it writes them, and its 20."""
    c1, c2 = math.trunc(w1 - w1 / 2), w2 - w2 // 8 - (w2 - w1) // 2
    rel = table(Vrpr(variant="code"), frames_lat)
    for i in range(frames_lat):
        for j in range(i + 1):
            d = i - j
            value = d if d < w1 else i // 2 - j // 2 + c1 if d < w2 else min(i // 8 + c2, 20) - j // 8
            assert rel[i, j] == value
    assert np.abs(rel).max() == (19 if frames_lat == 41 else 20)


def test_continuous_worked_values_at_81() -> None:
    rel = table(Vrpr(), 81)
    worked = {9: 9, 10: 10, 11: 10.5, 12: 11, 13: 11.5, 14: 12, 16: 12.25, 24: 13.25, 40: 15.25, 64: 18.25, 77: 19.875}
    assert {d: float(rel[80, 80 - d]) for d in worked} == worked
    assert (rel[80, :3] == 20).all()  # 20.25, 20.125 and 20, cut at 20


def test_continuous_values_at_41() -> None:
    rel = table(Vrpr(), 41)
    assert [float(rel[40, 40 - d]) for d in (11, 12, 13, 19, 20, 28, 40)] == [11, 12, 12.5, 15.5, 16, 17, 18.5]


def test_paper_s_worked_values() -> None:
    """floor(D / G1) + W1 - floor(W1 / G1), and the far tier that joins it."""
    at_81, at_41 = table(Vrpr(variant="paper"), 81), table(Vrpr(variant="paper"), 41)
    assert [at_81[80, 80 - d] for d in (9, 10, 11, 12, 13, 14, 15, 16, 24, 72, 79, 80)] == [
        9,
        10,
        10,
        11,
        11,
        12,
        12,
        13,
        14,
        20,
        20,
        20,
    ]
    assert [at_41[40, 40 - d] for d in (11, 12, 13, 14, 19, 20, 24, 40)] == [11, 12, 12, 13, 15, 16, 17, 19]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("frames_lat", "native", "constants"),
    [(41, 21, (12, 20, 2, 8)), (81, 21, (10, 14, 2, 8)), (81, 21, (9, 14, 3, 11)), (50, 13, (5, 7, 2, 9)), (60, 21, (8, 8, 1, 5))],
)
def test_equals_a_loop_over_the_equations(variant: str, frames_lat: int, native: int, constants: tuple[int, int, int, int]) -> None:
    w1, w2, g1, g2 = constants
    rel = table(Vrpr(variant=variant, w1=w1, w2=w2, g1=g1, g2=g2), frames_lat, native)
    error = np.abs(rel - slow(variant, frames_lat, native, *constants)).max()
    print(f"{variant} T = {frames_lat} {constants}: largest difference {error:.1e}")
    assert error < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("frames_lat", "native"), [(22, 21), (41, 21), (61, 21), (81, 21), (321, 21), (50, 13), (66, 33), (9, 4)])
def test_defaults_are_antisymmetric_in_order_and_in_range(variant: str, frames_lat: int, native: int) -> None:
    rel = table(Vrpr(variant=variant), frames_lat, native)
    assert np.array_equal(rel, -rel.T)
    assert (np.diff(rel, axis=1) <= 0).all()
    assert np.abs(rel).max() <= native - 1
    near = np.abs(distances(frames_lat)) < Vrpr(variant=variant).constants(clip(frames_lat, native))[0]
    assert np.array_equal(rel[near], distances(frames_lat)[near])
    assert not np.array_equal(rel, distances(frames_lat))


@pytest.mark.parametrize(("frames_lat", "native"), [(61, 21), (22, 21), (161, 21), (50, 13), (66, 33)])
def test_derived_constants(frames_lat: int, native: int) -> None:
    w1, w2, g1, g2 = Vrpr().constants(clip(frames_lat, native))
    assert (w1, w2, g1) == (native // 2, round(2 * native / 3), 2)

    def largest(g2: int) -> float:
        return w1 + (w2 - w1) / g1 + (frames_lat - 1 - w2) / g2

    assert largest(g2) <= native - 1
    assert g2 == 1 or largest(g2 - 1) > native - 1


def test_published_constants_and_each_given_value_replaces_its_own() -> None:
    assert Vrpr().constants(clip(41)) == (12, 20, 2, 8)
    assert Vrpr().constants(clip(81)) == (10, 14, 2, 8)
    assert Vrpr(w1=8).constants(clip(81)) == (8, 14, 2, 8)
    assert Vrpr(w2=13).constants(clip(81)) == (10, 13, 2, 8)
    assert Vrpr(g1=4).constants(clip(81)) == (10, 14, 4, 8)
    assert Vrpr(g2=9).constants(clip(81)) == (10, 14, 2, 9)
    base = table(Vrpr(), 81)
    tables = [table(Vrpr(**{key: value}), 81) for key, value in (("w1", 8), ("w2", 13), ("g1", 4), ("g2", 9))]
    tables += [table(Vrpr(variant=variant), 81) for variant in VARIANTS[1:]]
    assert all(not np.array_equal(one, other) for k, one in enumerate([base, *tables]) for other in tables[k:])


@pytest.mark.parametrize("frames_lat", [1, 5, 21])
def test_identity_at_native_length_and_up_to_w1(frames_lat: int) -> None:
    plain = full_attention(frames_lat)
    assert Vrpr().apply(plain, clip(frames_lat)) is plain
    assert Vrpr(w1=frames_lat, w2=21).apply(plain, clip(frames_lat)).is_stock


def test_given_constants_act_at_native_length_too() -> None:
    assert table(Vrpr(w1=4, w2=8), 21)[20, 0] == 4 + 4 / 2 + 12 / 1


def test_every_pass_gets_the_times_and_keeps_what_it_sees() -> None:
    window = full_attention(81).see_only(visible_from_ranges([(0, 81)] * 80 + [(70, 81)]))
    twice = type(window)((window.passes[0], full_attention(81).passes[0]))
    reshaped = Vrpr().apply(twice, clip(81))
    assert all(np.array_equal(p.rel, table(Vrpr(), 81)) for p in reshaped.passes)
    assert all(np.array_equal(p.visible, q.visible) for p, q in zip(reshaped.passes, twice.passes, strict=True))


def test_tiers_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match=r"vrpr.w1 = 15 is above vrpr.w2 = 14.*\n.*1 <= w1 <= w2\n.*--set vrpr.w1=14"):
        table(Vrpr(w1=15), 81)
    with pytest.raises(UsageError, match=r"vrpr.w1 = 10 is above vrpr.w2 = 9"):
        table(Vrpr(w2=9), 81)


@pytest.mark.parametrize(
    ("frames_lat", "constants"), [(81, (10, 14, 2, 4)), (81, (10, 14, 2, 7)), (41, (12, 20, 2, 4)), (75, (10, 15, 3, 2))]
)
def test_leaving_the_trained_range_is_refused_with_the_smallest_g2_that_fits(
    frames_lat: int, constants: tuple[int, int, int, int]
) -> None:
    w1, w2, g1, g2 = constants
    with pytest.raises(UsageError, match=rf"vrpr.g2 = {g2} \(w1.*trained up to 20\n.*g2 of \d+ or more\n.*--set vrpr.g2=") as error:
        table(Vrpr(w1=w1, w2=w2, g1=g1, g2=g2), frames_lat)
    fits = int(error.value.expected.split()[2])
    table(Vrpr(w1=w1, w2=w2, g1=g1, g2=fits), frames_lat)
    with pytest.raises(UsageError):
        table(Vrpr(w1=w1, w2=w2, g1=g1, g2=fits - 1), frames_lat)


def test_near_and_middle_tiers_that_leave_the_range_are_refused_without_a_g2() -> None:
    with pytest.raises(UsageError, match=r"distance 80 to 37.5.*\n.*below 21; no g2 helps\n.*lower vrpr.w1 or vrpr.w2"):
        table(Vrpr(w2=50, g2=4), 81)
    with pytest.raises(UsageError, match="no g2 helps"):
        table(Vrpr(w1=30, w2=30), 22)


@pytest.mark.parametrize(("frames_lat", "constants", "breaks"), [(8, (3, 5, 3, 2), "order"), (9, (4, 6, 4, 5), "range")])
def test_floors_of_the_code_that_break_order_or_range_are_refused(
    frames_lat: int, constants: tuple[int, int, int, int], breaks: str
) -> None:
    w1, w2, g1, g2 = constants
    rel = slow("code", frames_lat, 5, *constants)
    assert (np.abs(rel).max() > 4) if breaks == "range" else any(after > before for row in rel for before, after in pairwise(row))
    with pytest.raises(UsageError, match=r"vrpr.variant = code rounds frames.*\n.*\n.*vrpr.variant=continuous"):
        table(Vrpr(variant="code", w1=w1, w2=w2, g1=g1, g2=g2), frames_lat, 5)
    table(Vrpr(w1=w1, w2=w2, g1=g1, g2=g2), frames_lat, 5)  # as the message says, the continuous one serves


@pytest.mark.parametrize(
    ("override", "message"),
    [("w1=0", "greater than or equal to 1"), ("w2=0", "vrpr.w2 = 0"), ("g1=0", "vrpr.g1 = 0"), ("g2=0", "vrpr.g2 = 0"),
     ("g2=1.5", "valid integer"), ("variant=floor", "'continuous', 'code' or 'paper'"), ("w3=1", "unknown key")],
)  # fmt: skip
def test_wrong_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset.load("vrpr", [f"vrpr.{override}"])


def test_the_preset_plans_on_wan() -> None:
    made = planner.build(preset.load("vrpr", (), preset.Sample(frames=321)), WAN_1_3B)
    (frame_plan, layers, _) = made.branches()["main"]
    assert frame_plan.reach == 20
    assert layers == list(range(30))
    assert cost.ratio(made) == 1
    assert not planner.build(preset.load("vrpr"), WAN_1_3B).table.any()
