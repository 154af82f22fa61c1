"""RIFLEx's frequencies against the paper's figures for Wan 2.1."""

from __future__ import annotations

import math

import pytest

from longgen.backbones.spec import SPECS, TINY
from longgen.errors import UsageError
from longgen.frameplan import Clip, neutral
from longgen.positions.riflex import Riflex

WAN = SPECS["wan2.1-1.3b"]


def clip(frames_lat: int) -> Clip:
    return Clip(frames_lat, WAN.native_lat, WAN.frequencies, WAN.intrinsic_component)


def test_periods_of_wan() -> None:
    periods = [2 * math.pi / theta for theta in WAN.frequencies[:7]]
    assert periods == pytest.approx([6.28, 9.55, 14.5, 22.1, 33.5, 51.0, 77.5], rel=5e-3)


@pytest.mark.parametrize(("frames_lat", "ratio"), [(33, 1.39), (41, 1.12), (81, 0.566)])
def test_ungated_ratio_on_wan(frames_lat: int, ratio: float) -> None:
    scale = Riflex(gate=False).reshape(neutral(frames_lat), clip(frames_lat)).scale
    assert scale is not None
    assert scale[5] == pytest.approx(ratio, abs=5e-3)
    assert (scale[[i for i in range(len(scale)) if i != 5]] == 1).all()


@pytest.mark.parametrize(("frames_lat", "acts"), [(21, False), (41, False), (50, False), (52, True), (81, True)])
def test_the_gate_keeps_it_off_within_one_period(frames_lat: int, acts: bool) -> None:
    plain = neutral(frames_lat)
    reshaped = Riflex().reshape(plain, clip(frames_lat))
    assert (reshaped is not plain) == acts


def test_the_clip_stays_inside_the_share_of_one_period() -> None:
    scale = Riflex(share_of_period=0.8).reshape(neutral(81), clip(81)).scale
    assert scale is not None
    assert 81 * WAN.frequencies[5] * scale[5] == pytest.approx(0.8 * 2 * math.pi)


def test_it_stacks_on_other_scales() -> None:
    twice = Riflex(component=2, gate=False).reshape(Riflex(gate=False).reshape(neutral(81), clip(81)), clip(81))
    assert twice.scale is not None
    assert sorted((twice.scale != 1).nonzero()[0]) == [1, 5]


def test_a_component_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"riflex.component = 13.*12 temporal components"):
        Riflex(component=13).reshape(neutral(81), Clip(81, 21, TINY.frequencies, 3))
