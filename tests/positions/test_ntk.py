"""NTK-aware scaling against a spectrum made from the changed base."""

from __future__ import annotations

import numpy as np
import pytest

from longgen import planner, preset
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY, WAN_1_3B
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.positions.ntk import Ntk


def clip(frames_lat: int, spec: BackboneSpec = WAN_1_3B) -> Geometry:
    return Geometry(frames_lat, spec.native_lat, spec.frequencies, spec.intrinsic_component)


@pytest.mark.parametrize("spec", [WAN_1_3B, TINY], ids=lambda spec: spec.name)
@pytest.mark.parametrize("factor", [None, 2.0, 8.0])
@pytest.mark.parametrize("frames_lat", [22, 41, 81, 321])
def test_equals_the_spectrum_of_the_changed_base(frames_lat: int, factor: float | None, spec: BackboneSpec) -> None:
    s, dims = factor or frames_lat / spec.native_lat, spec.rotary_dims
    base = spec.rotary_base * s ** (dims / (dims - 2))
    scale = Ntk(factor=factor).apply(full_attention(frames_lat), clip(frames_lat, spec)).frequency_scale
    assert scale is not None
    expected = [base ** (-2 * c / dims) for c in range(dims // 2)]
    error = np.abs(np.array(spec.frequencies) * scale / expected - 1).max()
    print(f"{spec.name} T = {frames_lat} s = {s:.3f}: largest relative difference {error:.1e}")
    assert error < 1e-13


def test_the_highest_frequency_stays_and_the_lowest_is_divided_by_the_ratio() -> None:
    factors = Ntk().factors(80.0, clip(81))
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(21 / 81, rel=1e-15)
    assert (np.diff(factors) < 0).all()
    assert np.array_equal(factors, Ntk().factors(20.0, clip(81)))  # by the clip's length, whatever is in use


@pytest.mark.parametrize("factor", [None, 1.0, 4.0])
@pytest.mark.parametrize("frames_lat", [1, 5, 21])
def test_identity_at_native_length(frames_lat: int, factor: float | None) -> None:
    plain = full_attention(frames_lat)
    assert Ntk(factor=factor).apply(plain, clip(frames_lat)) is plain


def test_factor_one_is_the_identity_and_gain_is_untouched() -> None:
    plain = full_attention(81)
    assert Ntk(factor=1.0).apply(plain, clip(81)) is plain
    assert Ntk().apply(plain, clip(81)).logit_scale == 1


@pytest.mark.parametrize(
    ("override", "message"), [("factor=0.5", r"ntk.factor = 0.5: .*greater than or equal to 1"), ("base=2.0", "unknown key")]
)
def test_wrong_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preset.load("ntk", [f"ntk.{override}"])


def test_the_preset_plans_on_wan() -> None:
    made = planner.build(preset.load("ntk", (), preset.Sample(frames=321)), WAN_1_3B)
    scale = made.branches()["main"][0].frequency_scale
    assert scale is not None
    assert scale[21] == pytest.approx(21 / 81)
    assert not planner.build(preset.load("ntk"), WAN_1_3B).table.any()
