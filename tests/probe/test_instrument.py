"""A watched model, and one with a layer modify_layer: on real small pipelines of every family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longgen import planner, preset
from longgen.attention.head_groups import HeadGroups
from longgen.attention.lowering import lower
from longgen.attention.observer import AttentionInputs
from longgen.context.window import Window
from longgen.frameplan import full_attention
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import causal_wan
from longgen.plan import Plan
from longgen.probe import heads
from longgen.probe.attention_stats import head_shares
from longgen.probe.instrument import AttentionRecorder, local_window, modify_layer, observable, recording, shift_keys
from longgen.probe.measure import ALL
from tests.backbones import family
from tests.models import small
from tests.sampling import dense_rollout

PROMPT = "a small red circle orbiting on a black background"
INERT = 2  # the layer of `planted` that knows no time
STEPS = (0, 1)


@pytest.fixture(scope="module")
def planted(tiny: Any) -> Any:
    """tiny with one layer whose queries and keys are zero in the channels that time rotates."""
    backbone = copy.deepcopy(tiny)
    layer = backbone.layers(backbone.pipe.transformer)[INERT]
    for norm in (layer.norm_q, layer.norm_k):
        with torch.no_grad():
            norm.weight.view(layer.heads, -1)[:, : backbone.spec.rotary_dims] = 0
    return backbone


def direct_plan(spec: Any, frames: int, **sample: Any) -> Plan:
    techniques = (Window(frames=ALL),) if spec.causal else ()
    wanted = preset.Sample(frames=frames, steps=len(STEPS), **sample)
    return planner.build(preset.Preset(name="direct", sample=wanted, techniques=techniques), spec)


def sampled(backbone: Any, made: Plan, recorder: AttentionRecorder | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    denoiser = Denoiser(backbone, made, PROMPT)
    noise = denoiser.initial_noise(generator)
    with nullcontext() if recorder is None else recording(recorder):
        return sample(denoiser, noise, generator)


def test_a_layer_without_time_scores_nothing_and_it_alone(planted: Any) -> None:
    made = direct_plan(planted.spec, 33, size=(32, 32))
    recorder = AttentionRecorder(planted, made, STEPS, (-21, 21), ())
    sampled(planted, observable(made, STEPS), recorder)
    scores = recorder.relative_change("shift -21", "shift 21")
    assert scores[INERT] == 0
    assert min(score for layer, score in enumerate(scores) if layer != INERT) > 0.1


def test_to_shift_a_layer_without_time_changes_no_video_and_any_other_does(planted: Any) -> None:
    made = direct_plan(planted.spec, 33, size=(32, 32))
    own = sampled(planted, made)
    far = [
        float((sampled(planted, modify_layer(made, layer, shift_keys(21))) - own).norm() / own.norm())
        for layer in range(planted.spec.layers)
    ]
    assert far[INERT] < 1e-5  # rounding: its keys are turned, by nothing
    assert min(distance for layer, distance in enumerate(far) if layer != INERT) > 1e-2


@pytest.mark.parametrize("name", ["wan-experts", *small.PLAIN])
def test_a_watched_generation_is_the_same(model_folder: Callable[[str], Path], name: str) -> None:
    backbone = family.loaded(model_folder(name))
    made = family.made(backbone, "direct", 17, 2)
    recorder = AttentionRecorder(backbone, made, (1,), (-5, 5), (1, 2))
    plain = family.sampled(backbone, made)
    with recording(recorder):
        seen = family.sampled(backbone, observable(made, (1,)))
    if backbone.spec.joint_text or name == "ltx2":  # two calls for text and video; LTX-2's channels in another order
        torch.testing.assert_close(seen, plain, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(seen, plain)
    assert backbone.step_state.observer is None
    assert {step for _, step, _ in recorder.sums} == {1}
    ranks, change, position = recorder.effective_rank(2), recorder.relative_change("window"), recorder.relative_change("shift 5")
    assert len(ranks) == len(change) == len(position) == backbone.spec.layers
    assert min(ranks) >= 1
    assert min(position) > 0


def test_a_window_of_the_whole_clip_changes_no_entropy(tiny: Any) -> None:
    made = direct_plan(tiny.spec, 33, size=(32, 32))  # shorter than the native length
    recorder = AttentionRecorder(tiny, made, STEPS, (), (1,))
    sampled(tiny, observable(made, STEPS), recorder)
    assert recorder.relative_change("window") == [0.0] * tiny.spec.layers


def test_a_rollout_is_watched_without_a_trace(causal: Any) -> None:
    made = direct_plan(causal.spec, 81)
    recorder = AttentionRecorder(causal, made, STEPS, (-9, 9), (1, 2))
    assert torch.equal(sampled(causal, made, recorder), sampled(causal, made))
    assert min(recorder.relative_change("shift -9", "shift 9")) > 0
    assert min(recorder.relative_change("window")) > 0
    assert min(recorder.effective_rank(1)) >= 1


def test_heads_are_read_as_dummy_forcing_measures_them(causal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Early in the video to the same numbers; their mean is over the clean passes of all chunks that have a middle."""
    made = direct_plan(causal.spec, 81)  # seven chunks, of which the last has no clean pass and the first no middle
    recorder = AttentionRecorder(causal, made, STEPS, (), (), heads=True)
    sampled(causal, made, recorder)
    clean_passes: list[int] = []
    with_middle: list[Any] = []

    def keep(seen: AttentionInputs) -> None:
        if seen.clean:
            clean_passes.append(seen.shape[1])
            with_middle.extend([head_shares(seen).tolist()] if seen.shape[1] > 3 else [])

    causal.step_state.observer = keep
    try:
        sampled(causal, made)
    finally:
        causal.step_state.observer = None
    forcing = preset.Preset(name="dummy", sample=preset.Sample(frames=81, steps=2), techniques=(heads.TECHNIQUE,))
    groups: list[HeadGroups] = []
    monkeypatch.setattr(causal_wan, "HeadGroups", lambda *args: groups.append(HeadGroups(*args)) or groups[-1])
    sampled(causal, planner.build(forcing, causal.spec))
    shares, layers = recorder.head_shares(), range(causal.spec.layers)
    measured = torch.stack([groups[0].attention[layer] for layer in layers])
    torch.testing.assert_close(torch.tensor(shares["early"]), measured, rtol=1e-4, atol=1e-6)
    assert clean_passes[:: causal.spec.layers] == [3, 6, 9, 12, 15, 18]
    expected = np.reshape(with_middle, (5, causal.spec.layers, causal.spec.heads, 3)).mean(axis=0)
    assert np.allclose(shares["mean"], expected, atol=1e-6)
    assert not np.allclose(shares["mean"], shares["early"], atol=1e-2)


def test_a_clean_pass_is_no_step(causal: Any) -> None:
    made = direct_plan(causal.spec, 33)
    whole, steps_alone = (AttentionRecorder(causal, made, STEPS, (9,), (1,)) for _ in range(2))
    sampled(causal, made, whole)
    causal.step_state.observer = lambda seen: None if seen.clean else steps_alone(seen)
    try:
        sampled(causal, made)
    finally:
        causal.step_state.observer = None
    assert whole.relative_change("shift 9", "window") == steps_alone.relative_change("shift 9", "window")


def test_in_a_rollout_a_layer_is_changed_alone_and_for_good(causal: Any) -> None:
    made = direct_plan(causal.spec, 81)
    own = sampled(causal, made)
    for change in (shift_keys(9), local_window):
        one = sampled(causal, modify_layer(made, 1, change))
        assert one.shape == own.shape
        assert not torch.allclose(one, own, atol=1e-3)
    programs, table = modify_layer(made, 1, shift_keys(9)).programs_for_chunk(12, 3, list(range(9)))
    assert np.flatnonzero(table.any(axis=1)).tolist() == [1]
    moved = programs[table[1, 0]]
    assert moved is not None
    (one_pass,) = moved.branches["main"].passes
    assert np.array_equal(one_pass.rel, np.arange(9, 12)[:, None] - np.arange(12) - 9.0)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_changed_rollout_is_that_of_dense_attention(causal: Any, layer: int) -> None:
    made = direct_plan(causal.spec, 65)  # 17 latent frames, the last chunk of which is cut
    for change, table in ((shift_keys(-9), {"name": "shift", "frames": -9}), (local_window, {"name": "window"})):
        one = sampled(causal, modify_layer(made, layer, change))
        expected = dense_rollout.rollout(causal, [table | {"layers": [layer]}], made.frames_lat, [PROMPT] * 6, seed=1)
        assert float((one - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("name", small.PLAIN)
@pytest.mark.parametrize("late", [-4, 9])
def test_a_shift_is_run_at_once_and_exactly(model_folder: Callable[[str], Path], name: str, late: int) -> None:
    """The executor's own way for a table that is i - j but for a constant, against its way for any table."""
    backbone = family.loaded(model_folder(name))
    plain = family.made(backbone, "direct", 17, 2)
    tables = shift_keys(late)(full_attention(plain.frames_lat), plain.geometry)
    assert len(lower(tables.passes[0], backbone.spec.joint_text).calls) == 1
    bent = tables.each(lambda one: replace(one, rel=one.rel + np.eye(plain.frames_lat) * 1e-9))  # of no such structure
    assert len(lower(bent.passes[0], backbone.spec.joint_text).calls) == plain.frames_lat
    fast, slow = (family.sampled(backbone, modify_layer(plain, 1, lambda plan, clip, to=to: to)) for to in (tables, bent))
    assert float((fast - slow).abs().max()) < 2e-4
    assert float((fast - family.sampled(backbone, plain)).abs().max()) > 1e-3
