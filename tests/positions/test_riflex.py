"""RIFLEx's frequencies against the paper's figures for three backbones."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from longgen import planner, preset
from longgen.backbones.wan import TINY, WAN_1_3B
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.positions.riflex import Riflex


def clip(frames_lat: int) -> Geometry:
    return Geometry(frames_lat, WAN_1_3B.native_lat, WAN_1_3B.frequencies, WAN_1_3B.intrinsic_component)


def spectrum(base: float, dims: int) -> tuple[float, ...]:
    return tuple(base ** (-2 * j / dims) for j in range(dims // 2))


@pytest.mark.parametrize(
    ("frequencies", "periods"),
    [(spectrum(10000, 16), [6.28, 19.87, 62.8, 199]), (spectrum(256, 16), [6.28, 12.57, 25.1, 50.3, 100.5]),
     (WAN_1_3B.frequencies, [6.28, 9.55, 14.5, 22.1, 33.5, 51.0, 77.5])],
    ids=["CogVideoX-5B", "HunyuanVideo", "Wan"],
)  # fmt: skip
def test_periods(frequencies: tuple[float, ...], periods: list[float]) -> None:
    assert [2 * math.pi / theta for theta in frequencies[: len(periods)]] == pytest.approx(periods, rel=5e-3)


@pytest.mark.parametrize(
    ("given", "before", "after"),
    [(Geometry(25, 13, spectrum(10000, 16), 2), 0.31623, 0.22619), (Geometry(66, 33, spectrum(256, 16), 4), 0.125, 0.08568),
     (Geometry(81, 21, spectrum(10000, 44), 6), 0.12328, 0.06981)],
    ids=["CogVideoX-5B", "HunyuanVideo", "Wan"],
)  # fmt: skip
def test_the_shipped_frequency_and_no_other(given: Geometry, before: float, after: float) -> None:
    scale = Riflex().apply(full_attention(given.frames_lat), given).frequency_scale
    assert scale is not None
    k = given.intrinsic_component - 1
    assert given.frequencies[k] == pytest.approx(before, abs=5e-6)
    assert given.frequencies[k] * scale[k] == pytest.approx(after, abs=5e-6)
    assert np.flatnonzero(scale != 1).tolist() == [k]


@pytest.mark.parametrize(
    ("given", "rounded", "exact"),
    [(Geometry(1, 13, spectrum(10000, 16), 2), 20, 19), (Geometry(1, 33, spectrum(256, 16), 4), 50, 50),
     (Geometry(1, 21, spectrum(10000, 44), 6), 51, 50)],
    ids=["CogVideoX-5B", "HunyuanVideo", "Wan"],
)  # fmt: skip
@pytest.mark.parametrize("variant", ["code", "paper"])
def test_the_gate_of_each_backbone(given: Geometry, rounded: int, exact: int, variant: Literal["code", "paper"]) -> None:
    """The last length at which it is off: the scripts' N_k of 20 and 50, and their rounding on Wan; the paper's periods."""
    last_within, technique = (exact, Riflex(variant=variant)) if variant == "paper" else (rounded, Riflex())

    def acts(frames_lat: int) -> bool:
        longer = Geometry(frames_lat, given.native_lat, given.frequencies, given.intrinsic_component)
        plain = full_attention(frames_lat)
        return technique.apply(plain, longer) is not plain

    assert [acts(n) for n in (1, given.native_lat, last_within, last_within + 1)] == [False, False, False, True]


@pytest.mark.parametrize(("frames_lat", "ratio"), [(33, 1.39), (41, 1.12), (81, 0.566)])
def test_ungated_ratio_on_wan(frames_lat: int, ratio: float) -> None:
    scale = Riflex(gate=False).apply(full_attention(frames_lat), clip(frames_lat)).frequency_scale
    assert scale is not None
    assert scale[5] == pytest.approx(ratio, abs=5e-3)
    assert (np.delete(scale, 5) == 1).all()


def test_the_clip_stays_inside_the_share_of_one_period() -> None:
    scale = Riflex(share_of_period=0.8).apply(full_attention(81), clip(81)).frequency_scale
    assert scale is not None
    assert 81 * WAN_1_3B.frequencies[5] * scale[5] == pytest.approx(0.8 * 2 * math.pi)


def test_it_stacks_on_other_scales() -> None:
    twice = Riflex(component=2, gate=False).apply(Riflex(gate=False).apply(full_attention(81), clip(81)), clip(81))
    assert twice.frequency_scale is not None
    assert sorted((twice.frequency_scale != 1).nonzero()[0]) == [1, 5]
    assert twice.logit_scale == 1


def test_a_component_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"riflex.component = 13.*12 temporal components"):
        Riflex(component=13).apply(full_attention(81), Geometry(81, 21, TINY.frequencies, 3))


def test_an_unknown_component_is_refused_and_a_given_one_serves() -> None:
    unknown = Geometry(81, 21, TINY.frequencies)
    with pytest.raises(UsageError, match=r"riflex.component is unknown.*\n.*1 to 12\n.*--set riflex.component=K"):
        Riflex().apply(full_attention(81), unknown)
    scale = Riflex(component=3).apply(full_attention(81), unknown).frequency_scale
    assert scale is not None
    assert np.flatnonzero(scale != 1).tolist() == [2]


def test_the_preset_plans_on_wan() -> None:
    made = planner.build(preset.load("riflex", (), preset.Sample(frames=321)), WAN_1_3B)
    scale = made.branches()["main"][0].frequency_scale
    assert scale is not None
    assert np.flatnonzero(scale != 1).tolist() == [5]
