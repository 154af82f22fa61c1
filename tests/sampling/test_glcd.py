"""GLC-Diffusion's two paths of clips against their equations. Runs on every family: test_clips.py.

Legend: T latent frames, L frames of a clip, d dilation, t timestep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longgen import cost, planner, preset
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan
from longgen.sampling.glcd import Glcd

PROMPT = "a large red circle bouncing on a navy background"
NATIVE = TINY.native_lat


def built(frames_px: int = 401, steps: int = 2, **parameters: Any) -> Plan:
    """A plan with `glcd` alone."""
    tables = {
        "name": "a",
        "sample": {"frames": frames_px, "steps": steps, "size": [32, 32]},
        "technique": [{"name": "glcd"} | parameters],
    }
    return planner.build(preset.from_tables(tables, "a"), TINY)


def local_starts(frames_lat: int, length: int, shift: int) -> list[int]:
    """L / 2 apart and moved by `shift`; clips that stick out are moved inside."""
    stride = max(1, length // 2)
    asked = [shift + k * stride for k in range(-2, frames_lat + 1)]
    return sorted({min(max(start, 0), frames_lat - length) for start in asked if -length < start < frames_lat})


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    length = draw(st.integers(1, 25))
    return draw(st.integers(length + 1, 120)), length, draw(st.integers(0, max(1, length // 2) - 1))


@settings(deadline=None)
@given(layouts(), st.sampled_from(["both", "global", "local"]), st.floats(0, 1000), st.sampled_from([0.0, 0.005, 0.5, 1.0]))
@example((22, 21, 9), "both", 1000.0, 0.005)
@example((120, 1, 0), "both", 0.0, 0.005)
def test_both_paths_frame_by_frame(layout: tuple[int, int, int], paths: str, timestep: float, gamma0: float) -> None:
    """A frame's weights sum to gamma over dilated clips, to 1 - gamma over local ones; padding is the last frame, of weight 0."""
    frames_lat, length, shift = layout
    technique = Glcd(paths=paths, gamma0=gamma0)
    gamma = {"global": 1.0, "local": 0.0, "both": min(1.0, gamma0 * math.exp(0.0005 * timestep))}[paths]
    assert technique.gamma(timestep) == pytest.approx(gamma, rel=1e-12)
    made = technique.clips(frames_lat, length, timestep, shift)
    dilation = math.ceil(frames_lat / length)
    dilated = [[start + dilation * j for j in range(length)] for start in range(dilation)] if gamma > 0 else []
    local = [[start + j for j in range(length)] for start in local_starts(frames_lat, length, shift)] if gamma < 1 else []
    assert made.frames.tolist() == [[min(i, frames_lat - 1) for i in clip] for clip in dilated] + local
    assert made.anchors == (0,) * len(dilated) + (len(dilated),) * len(local)
    assert all(any(i < frames_lat for i in clip) for clip in dilated)
    held = [sum(i in clip for clip in local) for i in range(frames_lat)]
    for clip, weights in zip(dilated, made.weight, strict=False):
        assert np.allclose(weights, [gamma * (i < frames_lat) for i in clip], rtol=1e-12, atol=0)  # each frame once
    for clip, weights in zip(local, made.weight[len(dilated) :], strict=True):
        assert np.allclose(weights, [(1 - gamma) / held[i] for i in clip], rtol=1e-12, atol=0)
    total = np.zeros(frames_lat)
    np.add.at(total, made.frames, made.weight)
    assert np.allclose(total, 1, atol=1e-12)


@settings(deadline=None)
@given(layouts(), st.sampled_from(["both", "global", "local"]), st.booleans())
def test_calls_are_the_mean_over_shifts(layout: tuple[int, int, int], paths: str, shift: bool) -> None:
    frames_lat, length, _ = layout
    counts = [len(local_starts(frames_lat, length, moved)) for moved in range(max(1, length // 2) if shift else 1)]
    expected = (paths != "local") * math.ceil(frames_lat / length) + (paths != "global") * sum(counts) / len(counts)
    assert Glcd(paths=paths, shift=shift).calls(frames_lat, length) == pytest.approx(expected, rel=1e-12)
    assert Glcd(paths=paths, shift=shift).calls(length, length) == 1
    assert Glcd(paths=paths, shift=shift, frames=length).calls(frames_lat, 200) == pytest.approx(expected, rel=1e-12)


def test_gamma_by_the_paper() -> None:
    assert Glcd().gamma(1000) == pytest.approx(0.0082, abs=1e-4)
    assert Glcd().gamma(0) == 0.005
    assert Glcd().gamma(500) == pytest.approx(0.005 * math.exp(0.25), rel=1e-12)
    assert Glcd(gamma0=0.1, beta=-0.001).gamma(1000) == pytest.approx(0.1 / math.e, rel=1e-12)


def test_dilated_clips_span_the_video() -> None:
    """50 frames in clips of 13: every fourth frame, and the last two clips are a frame short."""
    made = Glcd(paths="global").clips(50, 13, 0.0, 0)
    assert made.frames[:, 0].tolist() == [0, 1, 2, 3]
    assert made.frames[:, -1].tolist() == [48, 49, 49, 49]
    assert made.weight[:, -1].tolist() == [1, 1, 0, 0]
    assert (made.weight[:, :-1] == 1).all()


def test_a_video_of_one_clip_is_seen_whole() -> None:
    for frames_px in (81, 41, 1):
        native = built(frames_px)
        assert native.calls == cost.ratio(native) == 1
        assert native.call_geometry == native.geometry
        assert any("glcd changes nothing" in note for note in native.notes)


def test_every_option_changes_the_plan_s_cost() -> None:
    """T = 101, L = 21: five dilated clips; local ones every 10, nine where they stay and up to ten where they move."""
    assert built(paths="global").calls == 5
    assert built(paths="local", shift=False).calls == 9
    assert built(shift=False).calls == 14
    assert built(paths="local").calls == 9.9
    assert built().calls == 14.9
    assert built(frames=11).call_geometry.frames_lat == 11
    assert built(frames=11, paths="global").calls == 10
    assert built(gamma0=0.0).calls == built(paths="local").calls
    assert built(gamma0=1.0).calls == built(paths="global").calls


def ran(tiny: Any, made: Plan, seed: int = 0, noise_seed: int = 0) -> tuple[torch.Tensor, list[tuple[float, int]]]:
    """The latents, and the timestep and shift of every step."""
    technique, asked = made.sampling, []

    class Noting(Glcd):
        def clips(self, frames_lat: int, length: int, timestep: float, shift: int) -> Any:
            if (timestep, shift) not in asked[-1:]:  # guidance asks twice
                asked.append((timestep, shift))
            return super().clips(frames_lat, length, timestep, shift)

    noting = Noting(**technique.model_dump())
    noise = torch.randn(tiny.latent_shape(made), generator=torch.Generator().manual_seed(noise_seed))
    techniques = tuple(replace(act, technique=noting) if act.technique is technique else act for act in made.techniques)
    denoiser = Denoiser(tiny, replace(made, techniques=techniques), PROMPT)
    return sample(denoiser, noise, torch.Generator().manual_seed(seed)), asked


def test_clips_move_from_step_to_step_by_the_seed(tiny: Any) -> None:
    made = built(49, 4, frames=9)
    latents, asked = ran(tiny, made)
    print(f"timesteps and shifts {asked}")
    assert len(asked) == 4
    assert sorted((t for t, _ in asked), reverse=True) == [t for t, _ in asked]
    assert 900 < asked[0][0] <= 1000
    shifts = [shift for _, shift in asked]
    assert len(set(shifts)) > 1
    assert set(shifts) <= {0, 1, 2, 3}
    again, other = ran(tiny, made), ran(tiny, made, seed=1)
    assert torch.equal(again[0], latents)
    assert again[1] == asked
    assert [shift for _, shift in other[1]] != shifts
    assert (other[0] - latents).abs().max() > 1e-3
    still, asked = ran(tiny, built(49, 4, frames=9, shift=False))
    assert {shift for _, shift in asked} == {0}
    assert (still - latents).abs().max() > 1e-3
    assert torch.equal(ran(tiny, built(49, 4, frames=9, shift=False), seed=1)[0], still)


def test_shifts_are_uniform() -> None:
    """For clips of 21: 0 to 9, as often as each other."""
    assert Glcd().shifts(21) == 10
    assert Glcd().shifts(1) == Glcd(shift=False).shifts(21) == Glcd(paths="global").shifts(21) == 1


def test_each_ablation_is_another_video(tiny: Any) -> None:
    """And gamma0 blends the paths: 0 and 1 are the paths alone."""
    parameters: dict[str, dict[str, Any]] = {
        "both": {}, "local": {"paths": "local"}, "global": {"paths": "global"}, "more": {"gamma0": 0.3},
        "falling": {"beta": -0.005}, "none": {"gamma0": 0.0}, "all": {"gamma0": 1.0},
    }  # fmt: skip
    results = {name: ran(tiny, built(49, 2, frames=9, shift=False, **given))[0] for name, given in parameters.items()}
    assert torch.equal(results["none"], results["local"])
    assert torch.equal(results["all"], results["global"])
    names = ["both", "local", "global", "more", "falling"]
    apart = {(a, b): float((results[a] - results[b]).abs().max()) for i, a in enumerate(names) for b in names[:i]}
    print({pair: f"{distance:.1e}" for pair, distance in apart.items()})
    assert min(apart.values()) > 1e-4


def test_the_ablations_of_the_preset_are_an_override_away(tiny_plan: Callable[..., Plan]) -> None:
    plain = tiny_plan("glc-diffusion", frames=401)
    assert plain.calls == 14.9
    assert tiny_plan("glc-diffusion", ("glcd.paths=local",), frames=401).calls == 9.9
    assert tiny_plan("glc-diffusion", ("glcd.paths=global",), frames=401).calls == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma0": 1.5}, "glcd.gamma0 = 1.5: .*less than or equal to 1"),
        ({"gamma0": -0.1}, "glcd.gamma0 = -0.1: .*greater than or equal to 0"),
        ({"beta": 0.5}, "glcd.beta = 0.5: .*less than or equal to 0.01"),
        ({"paths": "none"}, "glcd.paths = 'none': .*'both', 'global' or 'local'"),
        ({"shift": 3}, "glcd.shift = 3: .*boolean"),
        ({"stride": 3}, "glcd.*stride"),
    ],
)
def test_wrong_values_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(**parameters)
