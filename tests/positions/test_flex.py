"""FLEX's factors against the paper's exposures on Wan, and where they are inert."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longgen import planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.wan import WAN_1_3B
from longgen.context.window import Window
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.positions.flex import Flex, by_parts
from longgen.positions.vrpr import Vrpr

CYCLES = [3.342, 2.199, 1.447, 0.952, 0.626, 0.412, 0.271, 0.178, 0.117, 0.077, 0.051, 0.033]  # r_m over 21 latents


def clip(frames_lat: int) -> Geometry:
    return Geometry(frames_lat, 21, WAN_1_3B.frequencies, 6)


def slow(frequencies: tuple[float, ...], horizon: int, stretch: float, a: float, b: float) -> np.ndarray:
    factors = []
    for theta in frequencies:
        r = horizon * theta / (2 * math.pi)
        g = float(r >= a) if a == b else max(0.0, min(1.0, (r - a) / (b - a)))
        factors.append(g + (1 - g) / stretch)
    return np.array(factors)


def test_exposure_of_wan_s_components() -> None:
    """The table of r_m, by where the hard split falls: at a = r_m +- half a digit it keeps m + 1 components, or m."""
    for m, r in enumerate(CYCLES):
        assert (by_parts(WAN_1_3B.frequencies, 21, 4.0, r - 6e-4, r - 6e-4) == 1).sum() == m + 1
        assert (by_parts(WAN_1_3B.frequencies, 21, 4.0, r + 6e-4, r + 6e-4) == 1).sum() == m
    assert 21 * WAN_1_3B.frequencies[21] / (2 * math.pi) == pytest.approx(0.0005, abs=5e-5)


# theta_m, period 2 pi / theta_m and r_m of Wan's 22 temporal components, as the frequencies 10000^(-2m/44) give them
TABLE = [
    (1.00000, 6.283, 3.342), (0.657933, 9.550, 2.199), (0.432876, 14.515, 1.447), (0.284804, 22.06, 0.952),
    (0.187382, 33.53, 0.626), (0.123285, 50.96, 0.412), (0.081113, 77.46, 0.271), (0.053367, 117.7, 0.178),
    (0.035112, 178.9, 0.117), (0.023101, 272.0, 0.0772), (0.015199, 413.4, 0.0508), (0.010000, 628.3, 0.0334),
    (0.006579, 955.0, 0.0220), (0.004329, 1451, 0.0145), (0.002848, 2206, 0.00952), (0.001874, 3353, 0.00626),
    (0.001233, 5096, 0.00412), (0.000811, 7746, 0.00271), (0.000534, 11774, 0.00178), (0.000351, 17895, 0.00117),
    (0.000231, 27198, 0.000772), (0.000152, 41339, 0.000508),
]  # fmt: skip


def test_wan_s_table_in_a_rollout_of_126_latent_frames_with_a_sink() -> None:
    """31 seconds: the last frame sees the first at 125, so s = 6.25; phases there end at 125 theta' <= 20 theta, as in training."""
    made = planner.build(preset.load("flex", (), preset.Sample(frames=501)), SELF_FORCING)
    (frame_plan,) = (branch for branch, _, _ in made.branches().values())
    assert frame_plan.reach == 125
    assert frame_plan.frequency_scale is not None
    for m, ((theta, period, cycles), factor) in enumerate(zip(TABLE, frame_plan.frequency_scale, strict=True)):
        own = SELF_FORCING.frequencies[m]
        assert own == pytest.approx(theta, abs=6e-7)
        assert 2 * math.pi / own == pytest.approx(period, rel=4e-4)
        assert 21 * own / (2 * math.pi) == pytest.approx(cycles, rel=4e-3)
        assert (m < 3) == (cycles >= 1)
        assert own * factor == pytest.approx(own if m < 3 else own / 6.25, rel=1e-15)
        assert m < 3 or 125 * own * factor == pytest.approx(20 * own)


def test_with_a_ramp_from_half_a_cycle_to_one() -> None:
    """9 tenths of component 3 is kept and a quarter of component 4, of all others none."""
    factors = Flex(a=0.5, b=1.0).factors(125.0, clip(126))
    kept = (factors - 1 / 6.25) / (1 - 1 / 6.25)
    assert kept == pytest.approx([1, 1, 1, 0.904, 0.253, *[0] * 17], abs=2e-3)


@pytest.mark.parametrize(("frames_lat", "stretch"), [(3, 1), (21, 1), (24, 23 / 20), (126, 6.25), (4200, 4199 / 20)])
def test_in_a_rollout_the_stretch_grows_with_the_distance_to_the_sink(frames_lat: int, stretch: float) -> None:
    made = planner.build(preset.load("flex", (), preset.Sample(frames=16797)), SELF_FORCING)
    programs, table = made.programs_for_chunk(frames_lat, 3)
    (program,) = (programs[index] for index in np.unique(table))
    scale = None if program is None else program.branches["main"].frequency_scale
    assert (1.0 if scale is None else 1 / scale[21]) == pytest.approx(stretch)


def test_by_default_three_components_are_kept_on_wan() -> None:
    scale = Flex().apply(full_attention(81), clip(81)).frequency_scale
    assert scale is not None
    assert (scale[:3] == 1).all()
    assert scale[3:] == pytest.approx([1 / 4] * 19, rel=1e-15)  # s = 80 / 20


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 2.0), (0.05, 3.0), (2.0, 2.0)])
@pytest.mark.parametrize("horizon", [None, 33, 12])
def test_equals_a_loop_over_the_equation(a: float, b: float, horizon: int | None) -> None:
    used = horizon or 21
    factors = Flex(a=a, b=b, horizon=horizon).factors(80.0, clip(81))
    error = np.abs(factors - slow(WAN_1_3B.frequencies, used, 80 / (used - 1), a, b)).max()
    print(f"a {a} b {b} horizon {used}: largest difference {error:.1e}")
    assert error < 1e-15


def test_a_hard_split_keeps_exactly_a_cycles() -> None:
    assert list(by_parts((2 * math.pi / 8, 2 * math.pi / 16), 8, 2.0, 1.0, 1.0)) == [1, 0.5]


@pytest.mark.parametrize("setting", [{}, {"a": 0.03, "b": 3.0}])
@pytest.mark.parametrize("frames_lat", [1, 5, 21])
def test_identity_at_native_length(frames_lat: int, setting: dict[str, float]) -> None:
    plain = full_attention(frames_lat)
    assert Flex(**setting).apply(plain, clip(frames_lat)) is plain


def test_inert_where_relative_times_stay_within_training() -> None:
    windowed = Window().apply(full_attention(81), clip(81))  # its ends see 20 frames away
    assert windowed.reach == 20
    mapped = Vrpr().apply(full_attention(81), clip(81))
    assert Flex().apply(windowed, clip(81)) is windowed
    assert Flex().apply(mapped, clip(81)) is mapped
    wider = Window(frames=31).apply(full_attention(81), clip(81))
    scale = Flex().apply(wider, clip(81)).frequency_scale
    assert scale is not None
    assert scale[21] == pytest.approx(20 / 30)  # by the 30 frames that are in use, not by the clip's 81


def test_rescale_keeps_the_passes_and_multiplies_scales() -> None:
    plain = full_attention(81)
    once = Flex().apply(plain, clip(81))
    twice = Flex().apply(once, clip(81))
    assert once.passes is plain.passes
    assert once.logit_scale == 1
    assert not once.is_stock
    assert once.frequency_scale is not None
    assert twice.frequency_scale is not None
    assert np.array_equal(twice.frequency_scale, once.frequency_scale**2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["a=2.0"], r"flex.a = 2.0 is above flex.b = 1.0; expected: a <= b; lower flex.a or raise flex.b"),
     (["a=0.0"], r"flex.a = 0.0: .*greater than 0"), (["b=-1.0"], r"flex.b = -1.0"), (["horizon=1"], "greater than or equal to 2"),
     (["c=1"], "unknown key")],
)  # fmt: skip
def test_wrong_values_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset.load("flex-positions", [f"flex.{override}" for override in overrides])


def test_the_preset_plans_on_wan() -> None:
    made = planner.build(preset.load("flex-positions", (), preset.Sample(frames=321)), WAN_1_3B)
    scale = made.branches()["main"][0].frequency_scale
    assert scale is not None
    assert np.array_equal(scale, Flex().factors(80.0, clip(81)))
    assert not planner.build(preset.load("flex-positions"), WAN_1_3B).table.any()


def test_a_plan_behind_a_window_says_that_flex_changes_nothing() -> None:
    window = preset.load("sliding-window", (), preset.Sample(frames=321))
    stack = window.model_copy(update={"techniques": (Flex(), *window.techniques)})
    assert any(note.startswith("flex changes nothing at 321 frames") for note in planner.build(stack, WAN_1_3B).notes)
