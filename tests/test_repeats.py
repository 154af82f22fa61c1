"""What a plan says of sinks whose times look near again, and of noise that a frame sees twice: by numbers, and by drawn noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longgen import planner, preset, repeats
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import BackboneSpec
from longgen.context.freenoise import FreeNoise
from longgen.frameplan import Geometry, full_attention
from longgen.plan import Plan

WAN, SELF_FORCING = SPECS["wan2.1-1.3b"], SPECS["self-forcing"]


def made(spec: BackboneSpec, stack: list[dict[str, Any]], frames_px: int) -> Plan:
    tables = preset.from_tables({"name": "stack", "technique": stack}, "stack")
    return planner.build(tables.model_copy(update={"sample": preset.Sample(frames=frames_px)}), spec)


def test_the_times_of_lol_come_first_on_its_frequencies() -> None:
    """LoL saw LongLive and Self-Forcing++ collapse at latent frames 132 and 201; 69, 88 and 106 are lower than others nearby."""
    assert repeats.near_again(full_attention(1), 21, WAN.frequencies, 320) == [132, 201, 307]
    theta = 10000 ** (-2 * np.arange(22) / 44)
    nearness = {d: np.cos(theta * d).mean() for d in (69, 88, 106, 132, 201, 307)}
    assert {d: round(near, 3) for d, near in nearness.items()} == {
        69: 0.565,
        88: 0.548,
        106: 0.522,
        132: 0.541,
        201: 0.544,
        307: 0.501,
    }
    assert np.cos(theta * 57).mean() > nearness[69] > nearness[88] > nearness[106]  # each within 21 of the next
    assert repeats.near_again(full_attention(1), 21, WAN.frequencies, 131) == []


@pytest.mark.parametrize(
    ("name", "frames_px", "times"),
    [
        ("longlive", 525, None),  # 132 latent frames, the last of which is 131 away
        ("longlive", 529, "at 33 s the first frames stand 132 latent frames back,"),
        ("longlive", 961, "at 33 s, 50 s the first frames stand 132, 201 latent frames back,"),
        ("longlive", 2401, "at 33 s, 50 s, 77 s, and 6 more"),
        ("flex-longlive", 2401, None), ("flex", 2401, None), ("infinity-rope", 2401, None), ("deep-forcing", 2401, None),
        ("self-forcing", 2401, None),
    ],
)  # fmt: skip
def test_a_rollout_says_when_its_sink_looks_near_again(name: str, frames_px: int, times: str | None) -> None:
    notes = [
        note for note in planner.build(preset.load(name, (), preset.Sample(frames=frames_px)), SELF_FORCING).notes if "LoL" in note
    ]
    assert len(notes) == (times is not None)
    if times is not None:
        assert notes[0].startswith(times)
        assert "rebase or flex in the stack avoids it" in notes[0]


def test_frequencies_that_are_scaled_count_scaled() -> None:
    """Half as fast, the same phases come at twice the distance; yarn and riflex leave some of them beyond what was trained."""
    sink = [{"name": "window", "frames": 18}, {"name": "sink"}]
    assert any("132" in note for note in made(SELF_FORCING, sink, 961).notes)
    (branch,) = (one for one, _, _ in made(SELF_FORCING, [*sink, {"name": "riflex"}], 961).branches().values())
    assert repeats.near_again(branch, 21, SELF_FORCING.frequencies, 239) != [132, 201]
    (slowed,) = (one for one, _, _ in made(SELF_FORCING, [*sink, {"name": "flex"}], 961).branches().values())
    assert repeats.near_again(slowed, 21, SELF_FORCING.frequencies, 239) == []


@pytest.mark.parametrize(("frames_lat", "window", "stride"), [(29, 9, 2), (30, 9, 9), (31, 8, 3), (25, 8, 1), (27, 10, 4)])
def test_the_probability_of_the_same_noise_is_that_of_drawn_noise(frames_lat: int, window: int, stride: int) -> None:
    technique, geometry = FreeNoise(window=window, stride=stride), Geometry(frames_lat, 8, WAN.frequencies)
    same = technique.same_noise(geometry)
    assert same is not None
    generator, labels, draws = torch.Generator().manual_seed(0), torch.arange(frames_lat).view(1, 1, -1, 1, 1), 3000
    drawn = np.stack([technique.mix(labels, geometry, generator).flatten().numpy() for _ in range(draws)])
    seen = (drawn[:, :, None] == drawn[:, None, :]).mean(axis=0)
    assert same[0] == window
    assert np.abs(seen - same[1]).max() < 0.05
    assert ((same[1] == 0) <= (seen == 0)).all()
    assert ((same[1] == 1) <= (seen == 1)).all()
    assert FreeNoise().same_noise(Geometry(21, 21, WAN.frequencies)) is None


NOISE = {"name": "freenoise", "layers": []}


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        ([{"name": "freenoise"}], None),  # its windows see no frame twice
        ([{"name": "freenoise", "window": 16, "stride": 4}], None),
        ([NOISE, {"name": "window", "frames": 21}], None),  # at most a quarter of a block
        ([NOISE], None),  # all that there is: FreeLong's way
        ([NOISE, {"name": "window", "frames": 42}], "a frame sees 42 of them: about 22 pairs"),
        ([NOISE | {"window": 10, "stride": 5}, {"name": "window", "frames": 21}], "every 10 latent frames, and a frame sees 21"),
        ([{"name": "window", "frames": 42}], None), ([{"name": "ans"}, {"name": "window", "frames": 42}], None),
        ([{"name": "glc-noise"}, {"name": "window", "frames": 42}], None),
    ],
    ids=str,
)  # fmt: skip
def test_a_window_that_is_longer_than_the_noise_repeats_says_so(stack: list[dict[str, Any]], said: str | None) -> None:
    notes = [note for note in made(WAN, stack, 321).notes if "same noise" in note]
    assert len(notes) == (said is not None)
    if said is not None:
        assert said in notes[0]


def test_clips_of_sampling_count_as_windows() -> None:
    clips = [NOISE | {"window": 10, "stride": 5}, {"name": "gen-l-video"}]
    assert any("a frame sees 21 of them" in note for note in made(WAN, clips, 321).notes)
    assert not any("same noise" in note for note in made(WAN, [NOISE, {"name": "gen-l-video"}], 321).notes)
