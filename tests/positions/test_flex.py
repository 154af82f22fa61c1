"""FLEX's factors against the paper's exposures on Wan, and where they are inert."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longgen import plan, preset
from longgen.backbones.spec import WAN_1_3B
from longgen.context.window import Window
from longgen.errors import UsageError
from longgen.frameplan import Clip, neutral
from longgen.positions.flex import Flex, by_parts
from longgen.positions.vrpr import Vrpr

CYCLES = [3.342, 2.199, 1.447, 0.952, 0.626, 0.412, 0.271, 0.178, 0.117, 0.077, 0.051, 0.033]  # r_m over 21 latents


def clip(frames_lat: int) -> Clip:
    return Clip(frames_lat, 21, WAN_1_3B.frequencies, 6)


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


def test_by_default_three_components_are_kept_on_wan() -> None:
    scale = Flex().rescale(neutral(81), clip(81)).scale
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
    plain = neutral(frames_lat)
    assert Flex(**setting).rescale(plain, clip(frames_lat)) is plain


def test_inert_where_relative_times_stay_within_training() -> None:
    windowed = Window().reshape(neutral(81), clip(81))  # its ends see 20 frames away
    assert windowed.reach == 20
    mapped = Vrpr().reshape(neutral(81), clip(81))
    assert Flex().rescale(windowed, clip(81)) is windowed
    assert Flex().rescale(mapped, clip(81)) is mapped
    wider = Window(frames=31).reshape(neutral(81), clip(81))
    scale = Flex().rescale(wider, clip(81)).scale
    assert scale is not None
    assert scale[21] == pytest.approx(20 / 30)  # by the 30 frames that are in use, not by the clip's 81


def test_rescale_keeps_the_passes_and_multiplies_scales() -> None:
    plain = neutral(81)
    once = Flex().rescale(plain, clip(81))
    twice = Flex().rescale(once, clip(81))
    assert once.passes is plain.passes
    assert once.gain == 1
    assert not once.is_neutral
    assert once.scale is not None
    assert twice.scale is not None
    assert np.array_equal(twice.scale, once.scale**2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["a=2.0"], r"flex.a = 2.0 is above flex.b = 1.0; accepted: a <= b; lower flex.a or raise flex.b"),
     (["a=0.0"], r"flex.a = 0.0: .*greater than 0"), (["b=-1.0"], r"flex.b = -1.0"), (["horizon=1"], "greater than or equal to 2"),
     (["c=1"], "unknown key")],
)  # fmt: skip
def test_wrong_values_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset.load("flex-positions", [f"flex.{override}" for override in overrides])


def test_the_preset_plans_on_wan() -> None:
    made = plan.build(preset.load("flex-positions", (), preset.Sample(frames=321)), WAN_1_3B)
    scale = made.branches()["main"][0].scale
    assert scale is not None
    assert np.array_equal(scale, Flex().factors(80.0, clip(81)))
    assert not plan.build(preset.load("flex-positions"), WAN_1_3B).table.any()


def test_a_plan_behind_a_window_says_that_flex_changes_nothing() -> None:
    window = preset.load("sliding-window", (), preset.Sample(frames=321))
    stack = window.model_copy(update={"techniques": (Flex(), *window.techniques)})
    assert any(note.startswith("flex changes nothing at 321 frames") for note in plan.build(stack, WAN_1_3B).notes)
