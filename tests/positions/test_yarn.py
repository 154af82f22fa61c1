"""YaRN's ramp against a loop over its equation, its temperature, and the lengths at which it is the identity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longgen import planner, preset
from longgen.backbones.cogvideox import COGVIDEOX_5B
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY, WAN_1_3B, WAN_2_2_5B
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.positions.yarn import Yarn

LANGUAGE_MODEL = tuple(10000 ** (-c / 64) for c in range(64))  # LLaMA's head of 128, context 2048


def clip(frames_lat: int) -> Geometry:
    return Geometry(frames_lat, 21, WAN_1_3B.frequencies, 6)


def slow(given: Geometry, stretch: float, slow_: float, fast: float) -> np.ndarray:
    factors = []
    for theta in given.frequencies:
        r = given.native_lat / (2 * math.pi / theta)
        g = 0.0 if r < slow_ else 1.0 if r >= fast else (r - slow_) / (fast - slow_)
        factors.append(g + (1 - g) / stretch)
    return np.array(factors)


@pytest.mark.parametrize("factor", [None, 2.0, 16.0])
@pytest.mark.parametrize(("beta_slow", "beta_fast"), [(1.0, 32.0), (0.5, 2.0), (0.1, 0.1)])
def test_equals_a_loop_over_the_equation(beta_slow: float, beta_fast: float, factor: float | None) -> None:
    for given in (clip(81), clip(41), Geometry(8192, 2048, LANGUAGE_MODEL)):
        technique = Yarn(beta_slow=beta_slow, beta_fast=beta_fast, factor=factor)
        stretch = factor or given.frames_lat / given.native_lat
        error = np.abs(technique.factors(1.0, given) - slow(given, stretch, beta_slow, beta_fast)).max()
        print(f"T = {given.frames_lat}, {beta_slow} to {beta_fast}, s = {stretch:.3f}: largest difference {error:.1e}")
        assert error < 1e-15


def freeloc_s(dims: int, base: float, native: int, frames_lat: int) -> np.ndarray:
    """FreeLOC's baseline on Wan, component by component: its bounds of 1 and 0.6 rotations, and a ramp over indices."""
    bounds = [dims * math.log(native / (rotations * 2 * math.pi)) / (2 * math.log(base)) for rotations in (1, 0.6)]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), dims - 1)
    factors = []
    for c in range(dims // 2):
        extrapolated = base ** (-2 * c / dims)
        interpolated = extrapolated / (frames_lat / native)
        kept = 1 - min(1.0, max(0.0, (c - low) / (high - low)))
        factors.append((interpolated * (1 - kept) + extrapolated * kept) / extrapolated)
    return np.array(factors)


@pytest.mark.parametrize(("spec", "frames_lat"), [(WAN_1_3B, 81), (WAN_1_3B, 41), (WAN_2_2_5B, 61), (TINY, 81), (COGVIDEOX_5B, 49)])
def test_freeloc_s_variant_is_its_baseline_on_wan(spec: BackboneSpec, frames_lat: int) -> None:
    given = Geometry(frames_lat, spec.native_lat, spec.frequencies)
    technique = Yarn(variant="freeloc")
    found = technique.factors(1.0, given)
    assert found == pytest.approx(freeloc_s(spec.rotary_dims, spec.rotary_base, spec.native_lat, frames_lat), rel=1e-12)
    assert technique.logit_scale(given) == 1
    if (spec, frames_lat) == (WAN_1_3B, 81):
        assert found[:3].tolist() == [1, 1, 1]
        assert found[3:5] == pytest.approx([1 - 60 / 81 / 3, 1 - 2 * 60 / 81 / 3])
        assert found[5:] == pytest.approx([21 / 81] * 17)


def test_freeloc_s_variant_where_frequencies_rise_and_where_parameters_are_given() -> None:
    given = Geometry(61, 16, LTX_2B.frequencies)
    found, falling = (Yarn(variant="freeloc").factors(1.0, one) for one in (given, Geometry(61, 16, LTX_2B.frequencies[::-1])))
    assert (np.diff(found) >= 0).all()
    assert np.array_equal(found, falling[::-1])
    assert (found[0], found[-1]) == (pytest.approx(16 / 61), 1)
    for sets in ({"beta_fast": 2.0}, {"beta_slow": 0.2}, {"temperature": True}, {"factor": 2.0}):
        technique = Yarn(variant="freeloc", **sets)  # type: ignore[arg-type]
        assert technique.apply(full_attention(81), clip(81)).key != Yarn(variant="freeloc").apply(full_attention(81), clip(81)).key
    equal = Yarn(variant="freeloc", beta_slow=1.0, beta_fast=1.0).factors(1.0, clip(81))
    assert equal == pytest.approx(np.where(np.arange(22) < 3, 1, 21 / 81))


def test_on_a_language_model_the_ends_are_kept_and_interpolated() -> None:
    factors = Yarn().factors(1.0, Geometry(8192, 2048, LANGUAGE_MODEL))
    assert (factors[:17] == 1).all()  # 32 cycles of 2048 tokens: components 0 to 16
    assert 1 / 4 < factors[20] < 1
    assert factors[41:] == pytest.approx([1 / 4] * 23)  # less than one cycle


def test_as_the_header_says_nearly_all_of_wan_is_interpolated_by_default() -> None:
    factors = Yarn().factors(80.0, clip(81))
    assert factors[0] == pytest.approx(21 / 81 + (1 - 21 / 81) * (3.342 - 1) / 31, abs=1e-4)
    assert Yarn(beta_fast=2.0).factors(80.0, clip(81))[:2].tolist() == [1, 1]


def test_temperature() -> None:
    warm, plain = Yarn().apply(full_attention(81), clip(81)), Yarn(temperature=False).apply(full_attention(81), clip(81))
    assert warm.logit_scale == pytest.approx((0.1 * math.log(81 / 21) + 1) ** 2, rel=1e-15)
    assert plain.logit_scale == 1
    assert Yarn(factor=2.0).logit_scale(clip(81)) == pytest.approx((0.1 * math.log(2) + 1) ** 2, rel=1e-15)
    assert warm.frequency_scale is not None
    assert plain.frequency_scale is not None
    assert np.array_equal(warm.frequency_scale, plain.frequency_scale)


@pytest.mark.parametrize(
    "setting",
    [{}, {"variant": "freeloc"}, {"factor": 4.0}, {"beta_slow": 0.01, "beta_fast": 3.0}, {"beta_slow": 2.0, "beta_fast": 2.0}],
)
@pytest.mark.parametrize("frames_lat", [1, 5, 21])
def test_identity_at_native_length(frames_lat: int, setting: dict[str, float]) -> None:
    plain = full_attention(frames_lat)
    assert Yarn(**setting).apply(plain, clip(frames_lat)) is plain


def test_factor_one_is_the_identity() -> None:
    plain = full_attention(81)
    assert Yarn(factor=1.0).apply(plain, clip(81)) is plain


@pytest.mark.parametrize(
    ("override", "message"),
    [("beta_slow=40.0", r"yarn.beta_slow = 40.0 is above yarn.beta_fast = 32.0; expected: beta_slow <= beta_fast; lower"),
     ("beta_slow=0.0", r"yarn.beta_slow = 0.0: .*greater than 0"), ("beta_fast=0.0", r"yarn.beta_fast = 0.0"),
     ("factor=0.9", "greater than or equal to 1"), ("temperature=1", "valid boolean"), ("alpha=1.0", "unknown key")],
)  # fmt: skip
def test_wrong_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset.load("yarn", [f"yarn.{override}"])


def test_the_preset_plans_on_wan() -> None:
    made = planner.build(preset.load("yarn", (), preset.Sample(frames=321)), WAN_1_3B)
    frame_plan = made.branches()["main"][0]
    assert frame_plan.frequency_scale is not None
    assert frame_plan.frequency_scale[21] == pytest.approx(21 / 81)
    assert frame_plan.logit_scale == pytest.approx(1.288, abs=1e-3)
    assert not planner.build(preset.load("yarn"), WAN_1_3B).table.any()
