"""Chains: the layout of clips, clips made by hand, what resumes after a stop, memory, colour, schedules, and what is refused.

Legend: T latent frames of the video, L of a clip, m carried over, S steps, C channels.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import signal
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from longgen import cost, describe, interrupted, pictures, planner, preset, rundir, shown
from longgen.backbones.wan import TINY
from longgen.checkpoint import Chunks
from longgen.cli import app
from longgen.compare.grid import seams
from longgen.conditions import NOTHING, Conditions
from longgen.errors import LonggenError, UsageError
from longgen.loops import State, direct, loop_of, sample, stream, streams
from longgen.loops import chain as chain_loop
from longgen.loops.denoiser import Denoiser
from longgen.past import Past
from longgen.pipelines import loading
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.sampling.chain import SEED_STRIDE, Chain, Clip
from longgen.sampling.svi import Svi
from longgen.schedule import PromptSchedule, Shot, seen_by, weights
from tests.backbones import family
from tests.models import small
from tests.warm import Process

PROMPT = "a large red circle bouncing on a navy background"
OTHER = "a large green square bouncing on a navy background"
SEED = 5
SHORT = ("chain.frames=5", "chain.overlap=2")  # five latent frames a clip, of which three are new


@pytest.fixture
def picture(tmp_path: Path) -> pictures.Picture:
    rows = np.linspace(0, 255, 64)[:, None, None] * np.array([1.0, 0.5, 0.2])
    Image.fromarray(np.broadcast_to(rows, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "picture.png")
    return pictures.read(tmp_path / "picture.png")


def planned(*sets: str, frames: int = 29, steps: int = 3, name: str = "chain", conditions: Conditions = NOTHING,
            schedule: PromptSchedule | None = None, **changes: Any) -> Plan:  # fmt: skip
    made = preset.load(name, sets or SHORT * (name == "chain"), preset.Sample(frames=frames, steps=steps))
    return planner.build(made, dataclasses.replace(TINY, **changes), schedule, conditions=conditions)


def begun(backbone: Any, plan: Plan, seed: int = SEED) -> tuple[Denoiser, Tensor, torch.Generator]:
    """As a run begins: the picture is encoded, then the noise is drawn."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(backbone, plan, PROMPT, backbone.given(plan, generator))
    return denoiser, denoiser.initial_noise(generator), generator


# The layout


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("length", "overlap"), [(5, 1), (5, 2), (5, 3), (21, 4), (21, 6), (3, 1)])
@pytest.mark.parametrize("cuts", [(), (4,), (4, 30)])
def test_clips_by_appending_frame_after_frame(length: int, overlap: int, reference: bool, cuts: tuple[int, ...]) -> None:
    chain = Chain(overlap=overlap, reference=reference)
    for frames_lat in (35, 36, 41, 81):
        expected, video = [], list[int]()
        while len(video) < frames_lat:
            begin = max((cut for cut in (0, *cuts) if cut <= len(video)), default=0)
            end = min([cut for cut in cuts if cut > len(video)] + [frames_lat])
            fresh = len(video) == begin
            given = [] if fresh else [begin] * reference + video[-overlap:]
            clip = [*given, *range(len(video), len(video) + length - len(given))]
            assert len(clip) == length
            added = [frame for frame in clip[len(given) :] if frame < end]
            expected.append(Clip(len(video), len(added), 0 if fresh else overlap, reference and not fresh, fresh))
            assert expected[-1].given == len(given)
            video += added
        assert video == [*range(frames_lat)]
        assert chain.clips(frames_lat, length, cuts) == tuple(expected)


def test_a_plan_counts_its_clips(picture: pictures.Picture) -> None:
    made = planned("chain.overlap=4", frames=321, steps=20)
    assert [clip.start for clip in made.clips] == [0, 21, 38, 55, 72]
    assert (made.calls, made.rounds, made.in_clips, made.in_parts) == (5.0, 100, False, True)
    assert seams(made) == [4 * start - 3 for start in (21, 38, 55, 72)]
    alone = planned("chain.overlap=4", frames=81, steps=20)
    assert cost.ratio(made) == pytest.approx(5 * cost.flops(alone, None) / cost.flops(made, None, made.grid))
    assert cost.attention_ratio(made) == pytest.approx(5 * (21 / 81) ** 2)
    assert cost.memory_bytes(made, "fp32") == cost.memory_bytes(alone, "fp32")
    text = describe.plan_text(made, "fp32", "none")
    assert "5 clips of 21 latent frames, one after the other; the first begins with noise" in text
    assert "a later one begins with the last 4 of the one before, and adds 17" in text
    assert "8 of them, beyond the video's end or a cut, are dropped" in text
    assert describe.plan_dict(made)["clips"][1] == {"start": 21, "new": 17, "carried": 4, "reference": False, "begins": False}
    with_picture = planned("chain.overlap=4", "chain.reference=true", frames=321, conditions=Conditions(image=picture))
    text = describe.plan_text(with_picture, "fp32", "none")
    assert "the first begins with its picture" in text
    assert "the first frame of the video and the last 4 of the one before, and adds 16" in text


# One clip is direct sampling


def test_a_video_of_one_clip_is_direct_sampling(tiny: Any, picture: pictures.Picture) -> None:
    for conditions in (NOTHING, Conditions(image=picture)):
        chained, plain = (planned(frames=17, name=name, conditions=conditions) for name in ("chain", "direct"))
        assert not chained.clips
        assert loop_of(chained) is loop_of(plain)
        assert torch.equal(sample(*begun(tiny, chained)), sample(*begun(tiny, plain)))


# Clips by hand


def stock_clip(tiny: Any, plan: Plan, prompt: str, seed: int) -> Tensor:
    """A clip from noise alone, as any diffusers user would call the pipeline."""
    return tiny.pipe(
        prompt=prompt, negative_prompt=plan.sample.negative_prompt, height=64, width=64, num_frames=17, max_sequence_length=24,
        num_inference_steps=plan.steps, guidance_scale=plan.sample.guidance_scale, output_type="latent",
        generator=torch.Generator().manual_seed(seed),
    ).frames  # fmt: skip


@torch.no_grad()
def clip_by_hand(tiny: Any, plan: Plan, prompt: str, seed: int, clean: Tensor) -> Tensor:
    """A clip of five latent frames that begins with `clean`: the loop of Wan 2.2 TI2V, whose clean frames are at timestep 0."""
    pipe = tiny.pipe
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(plan.steps)
    embeds = [tiny.text(text)["encoder_hidden_states"] for text in (prompt, plan.sample.negative_prompt or "")]
    x = torch.randn(1, 48, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
    known = clean.shape[2]
    for timestep in scheduler.timesteps:
        x[:, :, :known] = clean
        times = torch.tensor([0.0 if frame < known else float(timestep) for frame in range(5)])[None].repeat_interleave(16, dim=1)
        cond, uncond = (pipe.transformer(x, times, text)[0] for text in embeds)
        x = scheduler.step(uncond + plan.sample.guidance_scale * (cond - uncond), timestep, x).prev_sample.clone()
    x[:, :, :known] = clean
    return x


@pytest.mark.parametrize(("reference", "colour"), [(False, 0.0), (True, 0.0), (False, 0.5)])
def test_three_clips_by_hand(tiny: Any, reference: bool, colour: float) -> None:
    plan = planned(*SHORT, f"chain.reference={str(reference).lower()}", f"chain.colour={colour}", frames=37)
    video = stock_clip(tiny, plan, PROMPT, SEED)
    first = video.clone()
    for number in (1, 2):
        clean = torch.cat([first[:, :, :1]] * reference + [video[:, :, -2:]], dim=2)
        new = clip_by_hand(tiny, plan, PROMPT, SEED + SEED_STRIDE * number, clean)[:, :, clean.shape[2] :]
        if colour:
            for channel in range(48):
                own, model = new[0, channel], first[0, channel]
                matched = (own - own.mean()) / own.std() * model.std() + model.mean()
                new[0, channel] = own + colour * (matched - own)
        video = torch.cat([video, new], dim=2)
    made = sample(*begun(tiny, plan))
    assert made.shape[2] == plan.frames_lat == 10
    assert torch.equal(made[:, :, :5], first)
    assert video.shape[2] >= 9
    count = min(10, video.shape[2])
    assert (made[:, :, :count] - video[:, :, :count]).abs().max() < 2e-4


def test_the_first_clip_begins_with_the_picture_and_later_ones_hold_it(tiny: Any, picture: pictures.Picture) -> None:
    conditions = Conditions(image=picture)
    plan = planned(*SHORT, "chain.reference=true", conditions=conditions)
    made = sample(*begun(tiny, plan))
    alone = sample(*begun(tiny, planned(frames=17, name="direct", conditions=conditions)))
    assert torch.equal(made[:, :, :5], alone)
    given = tiny.given(plan, torch.Generator()).latents
    assert torch.equal(made[:, :, :1], given)
    clean = torch.cat([given, made[:, :, 3:5]], dim=2)
    by_hand = clip_by_hand(tiny, plan, PROMPT, SEED + SEED_STRIDE, clean)[:, :, 3:]
    assert (made[:, :, 5:7] - by_hand).abs().max() < 2e-4


@pytest.mark.parametrize("name", small.ALL)
def test_on_every_model_that_goes_on_from_a_picture(model_folder: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """The first clip is direct sampling, a later one is what its adapter makes of its last latent frame; and it resumes."""
    backbone = family.loaded(model_folder(name))
    spec, sets = backbone.spec, ("chain.frames=3", "chain.overlap=1", "chain.colour=0.5")
    if "first-frame" not in spec.capabilities or not spec.clean_lat or spec.sound is not None:
        with pytest.raises(UsageError, match=r"cannot take a picture|no last one is given|its sound is one piece"):
            family.made(backbone, "chain", 4 * spec.stride_t + 1, 2, sets, family.pictured(tmp_path))
        return
    conditions = family.pictured(tmp_path)
    plan = family.made(backbone, "chain", 4 * spec.stride_t + 1, 2, sets, conditions)
    alone = family.made(backbone, "direct", 2 * spec.stride_t + 1, 2, conditions=conditions)
    assert [(clip.start, clip.new, clip.given) for clip in plan.clips] == [(0, 3, 0), (3, 2, 1)]

    def run(made: Plan, on_step: Any = None, resume: State | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        denoiser = Denoiser(backbone, made, family.PROMPT, backbone.given(made, generator))
        return sample(denoiser, denoiser.initial_noise(generator), generator, on_step or (lambda state: None), resume)

    states = list[State]()
    made = run(plan, lambda state: states.append(copy.deepcopy(state)))
    first = run(alone)
    assert torch.equal(made[:, :, :3], first)
    part = plan.of_clip(plan.clips[1])
    generator = torch.Generator().manual_seed(SEED + SEED_STRIDE)
    own = Denoiser(backbone, part, family.PROMPT, Given(first[:, :, 2:]))
    second = direct.run_pipeline(own, own.initial_noise(generator), generator, lambda state: None, None, None)[:, :, 1:]
    assert torch.equal(made[:, :, 3:], chain_loop.matched(second, *chain_loop.statistics(first), 0.5))
    assert [state.done for state in states] == [1, 2, 3, 4]
    assert all(state.x0 is not None for state in states)  # each can have a preview
    resumed = run(plan, resume=states[2]._replace(clips=[states[1].latents]))
    assert torch.equal(resumed, made)


# Memory, streaming, resuming


def test_no_call_sees_more_than_a_clip_and_frames_come_as_clips_are_done(tiny: Any) -> None:
    plan, seen = planned(frames=81, steps=2), list[int]()
    hook = tiny.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].shape[2]), with_kwargs=True)  # fmt: skip
    try:
        frames = stream(*begun(tiny, plan))
        arrived = [len(seen) for _ in frames]
    finally:
        hook.remove()
    assert {*seen} == {5}
    assert begun(tiny, plan)[1].shape == (1, 48, 0, 4, 4)
    clip_calls = 2 * 2  # steps, and guidance
    assert arrived == [clip_calls * (number + 1) for number, clip in enumerate(plan.clips) for _ in range(clip.new)]
    assert streams(plan, "none")
    assert not streams(plan, "model")


class Stop(Exception):
    pass


def stopped(backbone: Any, plan: Plan, chunks: Chunks, done: int) -> None:
    """A run that is stopped when `done` steps of all its clips are on disk."""

    def on_step(state: State) -> None:
        interrupted.save(state, chunks, plan)
        if state.done == done:
            raise Stop

    with pytest.raises(Stop):
        sample(*begun(backbone, plan), on_step)


def resumed(backbone: Any, plan: Plan, chunks: Chunks) -> tuple[Tensor, int]:
    """The video, and the number of steps that were sampled again."""
    latents, state, stored = interrupted.read(backbone, plan, chunks)
    assert latents is None
    assert stored is not None
    steps = list[int]()

    def on_step(now: State) -> None:
        interrupted.save(now, chunks, plan)
        steps.append(now.done)

    made = sample(*begun(backbone, plan), on_step, state)
    assert [*steps] == [*range(plan.rounds - len(steps) + 1, plan.rounds + 1)]
    return made, len(steps)


@pytest.mark.parametrize(("done", "colour"), [(1, 0.7), (2, 0.0), (3, 0.7), (4, 0.7), (5, 0.0), (6, 0.7), (8, 0.7), (9, 0.0)])
def test_a_stopped_chain_goes_on_to_the_same_bytes(
    tiny: Any, picture: pictures.Picture, tmp_path: Path, done: int, colour: float
) -> None:
    plan = planned(*SHORT, "chain.reference=true", f"chain.colour={colour}", frames=33, conditions=Conditions(image=picture))
    assert [clip.new for clip in plan.clips] == [5, 2, 2]
    expected = sample(*begun(tiny, plan))
    chunks = Chunks(tmp_path / rundir.CHUNKS, {})
    stopped(tiny, plan, chunks, done)
    again = Chunks(tmp_path / rundir.CHUNKS, {})
    assert len(again) == done // 3
    made, steps = resumed(tiny, plan, again)
    assert steps == plan.rounds - done
    assert torch.equal(made, expected)
    assert torch.equal(torch.cat([*Chunks(tmp_path / rundir.CHUNKS, {}).frames(plan.frames_lat)], dim=2), expected)


def test_what_a_kill_leaves_behind_a_finished_clip_is_not_read(tiny: Any, tmp_path: Path) -> None:
    plan = planned(frames=33)
    expected, chunks = sample(*begun(tiny, plan)), Chunks(tmp_path / rundir.CHUNKS, {})
    stopped(tiny, plan, chunks, 3)  # the last checkpoint is of step 2, and older than the clip
    assert (tmp_path / rundir.STEP).is_file()
    made, steps = resumed(tiny, plan, Chunks(tmp_path / rundir.CHUNKS, {}))
    assert (steps, torch.equal(made, expected)) == (6, True)


def test_a_damaged_clip_is_made_again_and_one_of_another_length_is_named(tiny: Any, tmp_path: Path) -> None:
    plan = planned(frames=33)
    expected, chunks = sample(*begun(tiny, plan)), Chunks(tmp_path / rundir.CHUNKS, {})
    stopped(tiny, plan, chunks, 7)  # in the third clip
    (tmp_path / rundir.CHUNKS / "000001.safetensors").write_bytes(b"cut short")
    made, steps = resumed(tiny, plan, Chunks(tmp_path / rundir.CHUNKS, {}))
    assert (steps, torch.equal(made, expected)) == (6, True)
    longer = planned("chain.frames=6", "chain.overlap=2", frames=41)
    with pytest.raises(LonggenError, match="its latents are 1x48x5x4x4, and those of this run 1x48x6x4x4"):
        interrupted.read(tiny, longer, Chunks(tmp_path / rundir.CHUNKS, {}))


def test_with_a_step_cache_the_clip_under_way_begins_again(tiny: Any, tmp_path: Path) -> None:
    """What a cache held between steps is in no checkpoint."""
    plan, cached = planned(frames=33), copy.copy(tiny)
    cached.model_settings = tiny.model_settings.replace(cache="first-block:0.1")
    chunks = Chunks(tmp_path / rundir.CHUNKS, {})
    stopped(tiny, plan, chunks, 4)
    _, state, _ = interrupted.read(cached, plan, Chunks(tmp_path / rundir.CHUNKS, {}))
    assert state is not None
    assert state.done == 3


RUN = ["generate", "--prompt", PROMPT, "--backbone", "tiny", "--preset", "chain", "--frames", "45", "--steps", "6", "--seed", "7",
       "--device", "cpu", *(word for one in SHORT for word in ("--set", one)), "-o"]  # fmt: skip


def test_a_killed_run_goes_on_to_the_same_files(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 within the second clip: what is done stays, the video grows again, and its bytes are the same."""
    monkeypatch.setattr(loading, "load", lambda spec, model_settings, *_: tiny)
    monkeypatch.chdir(tmp_path)

    def longgen(*arguments: str) -> int:
        return CliRunner().invoke(app, [*arguments]).exit_code

    assert longgen(*RUN, "whole.mp4") == 0
    process, folder = Process(tmp_path, [*RUN, "ball.mp4"]), Path("ball.run")
    deadline = time.monotonic() + 120
    first = folder / "latents" / "000000.safetensors"
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert first.exists()
    assert not Path("ball.mp4").exists()
    written = first.stat().st_mtime_ns
    assert longgen("generate", "-o", "ball.mp4", "--resume") == 0
    assert first.stat().st_mtime_ns == written
    assert Path("ball.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["latents", "run.json"]
    assert len([*(folder / "latents").iterdir()]) == 4


# Colour


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_colour_by_the_equation_of_adain(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, model = (torch.randn(1, 3, 4, 2, 2, generator=generator) * 2 + 1 for _ in range(2))
    matched = chain_loop.matched(x, *chain_loop.statistics(model), strength)
    for channel in range(3):
        one, other = x[0, channel].double(), model[0, channel].double()
        expected = (one - one.mean()) / one.std() * other.std() + other.mean()
        assert torch.allclose(matched[0, channel].double(), (1 - strength) * one + strength * expected, atol=1e-5)
    if strength == 0:
        assert torch.equal(matched, x)
    flat = chain_loop.matched(torch.full_like(x, 3.0), *chain_loop.statistics(model), strength)
    assert torch.isfinite(flat).all()


# Techniques inside a clip


def test_a_window_acts_in_every_clip_as_in_a_video_of_its_length(tiny: Any) -> None:
    tables = [{"name": "window", "frames": 3}, {"name": "chain", "frames": 6, "overlap": 2}]
    made = preset.from_tables({"name": "both", "sample": {"frames": 41, "steps": 2}, "technique": tables}, "both")
    plan = planner.build(made, TINY)
    one = planner.build(
        preset.from_tables({"name": "one", "sample": {"frames": 21, "steps": 2}, "technique": tables[:1]}, "one"), TINY
    )
    assert plan.call_geometry.frames_lat == 6
    assert plan.table.all() == one.table.all()
    assert torch.equal(sample(*begun(tiny, plan))[:, :, :6], sample(*begun(tiny, one)))


def test_noise_is_a_clip_s_own(tiny: Any) -> None:
    """A technique of noise mixes that of a clip which is longer than the model's native length, and is inert in others."""
    tables = [{"name": "freenoise"}, {"name": "chain"}]
    sampled = {"frames": 321, "steps": 2}
    made = planner.build(preset.from_tables({"name": "both", "sample": sampled, "technique": tables}, "both"), TINY)
    assert any("freenoise changes nothing" in note for note in made.notes)
    tables[1] = {"name": "chain", "frames": 42}
    long = planner.build(preset.from_tables({"name": "both", "sample": sampled, "technique": tables}, "both"), TINY)
    assert not any("changes nothing" in note for note in long.notes)
    own = Denoiser(tiny, long.of_clip(long.clips[1]), PROMPT).initial_noise(torch.Generator().manual_seed(0))
    assert long.noise is not None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 48, 42, 4, 4, generator=generator)
    geometry = dataclasses.replace(long.geometry, frames_lat=42)
    assert torch.equal(own, long.noise.mix(drawn, geometry, generator))


# Prompt schedules

SHOTS = PromptSchedule((Shot(Fraction(0), PROMPT), Shot(Fraction(2), OTHER)))


@pytest.mark.parametrize("blend", [Fraction(0), Fraction(1), Fraction(3, 2)])
def test_a_clip_sees_its_part_of_the_schedule(blend: Fraction) -> None:
    shots = (*SHOTS.shots, Shot(Fraction(4), PROMPT), Shot(Fraction(6), OTHER))
    whole = PromptSchedule(shots, blend)
    shares = weights(whole, 121, 4, 16)
    for first, end in [(0, 5), (3, 12), (7, 9), (10, 31), (20, 31), (28, 40)]:
        part = seen_by(whole, shares, first, end, Fraction(4 * first, 16))
        own = weights(part, 4 * (end - first - 1) + 1, 4, 16)
        texts = [shot.prompt for shot in shots]
        for frame in range(first + 1, end):  # the first has one pixel frame, in place of four
            expected, got = dict.fromkeys(texts, 0.0), dict.fromkeys(texts, 0.0)
            for text, share in zip(texts, shares[:, min(frame, 30)], strict=True):
                expected[text] += share
            for shot, share in zip(part.shots, own[:, frame - first], strict=True):
                got[shot.prompt] += share
            assert got == pytest.approx(expected), (first, end, frame)


def test_clips_of_one_shot_have_its_text_alone_and_others_every_frame_its_own(tiny: Any) -> None:
    plan = planned("chain.frames=7", "chain.overlap=2", frames=61, schedule=SHOTS, steps=2)  # the cut is in latent frame 8
    assert [(clip.start, clip.given) for clip in plan.clips] == [(0, 0), (7, 2), (12, 2)]
    shots = [[shot.prompt for shot in plan.of_clip(clip).schedule.shots] for clip in plan.clips]  # type: ignore[union-attr]
    assert shots == [[PROMPT], [PROMPT, OTHER], [OTHER]]
    assert plan.of_clip(plan.clips[1]).shares.argmax(axis=0).tolist() == [0, 0, 0, 1, 1, 1, 1]  # type: ignore[union-attr]
    made = sample(*begun(tiny, plan))
    plain = sample(*begun(tiny, planned("chain.frames=7", "chain.overlap=2", frames=61, steps=2)))
    assert torch.equal(made[:, :, :7], plain[:, :, :7])
    assert not torch.equal(made[:, :, 7:12], plain[:, :, 7:12])


def test_a_schedule_s_times_are_those_of_the_new_frames_after_an_earlier_video(picture: pictures.Picture) -> None:
    past = Past(
        Path("before.run"), "0" * 64, 81, 16.0, (64, 64), latents=21, shown_lat=21, latent_shape=(48, 4, 4), backbone="tiny"
    )
    shots = PromptSchedule((*SHOTS.shots, Shot(Fraction(3), PROMPT), Shot(Fraction(4), OTHER, picture)))
    plan = planned("chain.frames=7", "chain.overlap=3", frames=80, schedule=shots, conditions=Conditions(past=past))
    assert (plan.frames_lat, plan.given_lat, plan.new_px) == (23, 3, 80)
    assert plan.cuts == (3 + 16,)  # four seconds are 64 frames, and each new latent frame holds four
    assert [(clip.start, clip.new) for clip in plan.clips] == [(0, 7), (7, 4), (11, 4), (15, 4), (19, 4)]
    assert plan.shares is not None
    for clip in plan.clips:
        part, first = plan.of_clip(clip), clip.start - clip.given
        assert part.given_lat == (1 if clip.start == 19 else 3)
        assert part.schedule is not None
        assert part.shares is not None
        for place in range(clip.given, clip.given + clip.new):
            share = {shot.prompt: part.shares[number, place] for number, shot in enumerate(part.schedule.shots)}
            expected = shots.shots[int(plan.shares[:, first + place].argmax())].prompt
            assert share[expected] == 1, (clip, place)
    short = planned("chain.overlap=2", frames=40, conditions=Conditions(past=past))
    assert (short.given_lat, short.clips, loop_of(short)) == (2, (), direct.direct)


@pytest.mark.parametrize("name", ["cogvideox-i2v", "hunyuan-i2v"])
def test_a_model_of_one_text_gets_the_mean_of_a_clip_s_new_frames(
    model_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    backbone, conditions = family.loaded(model_folder(name)), family.pictured(tmp_path)
    assert backbone.spec.joint_text
    seconds = Fraction(9, backbone.spec.fps)  # in the fourth latent frame, of frames 9 to 12
    shots = PromptSchedule((Shot(Fraction(0), family.PROMPT), Shot(seconds, "a large red circle bouncing on a navy background")))
    made = preset.load("chain", ("chain.frames=3", "chain.overlap=1"), preset.Sample(frames=17, steps=2, size=family.SIZE))
    plan, plain = (planner.build(made, backbone.spec, one, conditions=conditions) for one in (shots, None))
    assert plan.shares is not None
    assert plan.shares.argmax(axis=0).tolist() == [0, 0, 0, 1, 1]
    latents = []
    for one in (plan, plain):
        generator = torch.Generator().manual_seed(SEED)
        denoiser = Denoiser(backbone, one, family.PROMPT, backbone.given(one, generator))
        latents.append(sample(denoiser, denoiser.initial_noise(generator), generator))
    assert torch.equal(latents[0][:, :, :3], latents[1][:, :, :3])
    assert torch.isfinite(latents[0]).all()
    assert not torch.equal(latents[0][:, :, 3:], latents[1][:, :, 3:])


def test_a_shot_with_a_picture_begins_a_clip(tiny: Any, picture: pictures.Picture) -> None:
    schedule = PromptSchedule((Shot(Fraction(0), PROMPT), Shot(Fraction(2), OTHER, picture)))
    plan = planned("chain.frames=6", "chain.overlap=2", "chain.reference=true", frames=61, schedule=schedule, steps=2)
    assert plan.cuts == (8,)
    assert [(clip.start, clip.new, clip.begins) for clip in plan.clips] == [
        (0, 6, True), (6, 2, False), (8, 6, True), (14, 2, False)]  # fmt: skip
    made = sample(*begun(tiny, plan))
    encoded = tiny.encoded_frames(np.asarray(pictures.fitted(picture, (64, 64), "crop"))[None], torch.Generator())
    assert torch.equal(made[:, :, 8:9], encoded)
    clean = torch.cat([encoded, made[:, :, 12:14]], dim=2)  # the shot's picture is its reference
    part = dataclasses.replace(plan.of_clip(plan.clips[3]), schedule=None)
    assert part.given_lat == clean.shape[2] == 3
    own, generator = Denoiser(tiny, part, OTHER, Given(clean)), torch.Generator().manual_seed(SEED + 3 * SEED_STRIDE)
    last = direct.run_pipeline(own, own.initial_noise(generator), generator, lambda state: None, None, None)
    assert torch.equal(made[:, :, 14:], last[:, :, 3:5])
    short = planned("chain.frames=30", "chain.overlap=2", frames=61, schedule=schedule, steps=2)
    assert [clip.start for clip in short.clips] == [0, 8]  # even where one clip could hold the video


def test_a_shot_with_a_picture_is_decoded_by_itself(tiny: Any, picture: pictures.Picture) -> None:
    schedule = PromptSchedule((Shot(Fraction(0), PROMPT), Shot(Fraction(1), OTHER, picture), Shot(Fraction(2), PROMPT, picture)))
    plan = planned("chain.frames=5", "chain.overlap=2", frames=49, schedule=schedule, steps=2)
    assert plan.cuts == (4, 8)
    latents = sample(*begun(tiny, plan))
    parts = [np.concatenate([*tiny.decode(part)]) for part in latents.split([4, 4, 5], dim=2)]
    expected = [parts[0], *(one for part in parts[1:] for one in (part[:1], part[:1], part[:1], part))]
    for given in (latents, iter(latents.split(1, dim=2)), iter(latents.split(2, dim=2)[:2])):
        frames = np.concatenate([*shown.in_file(plan, tiny.decode, given)])
        assert np.array_equal(frames, np.concatenate(expected)[: len(frames)])
        assert len(frames) in (49, 13)
    assert seams(plan) == []


# Refusals


def test_what_a_chain_cannot_do_is_said(picture: pictures.Picture) -> None:
    for sets, changes, message in [
        (("chain.overlap=7",), {}, "chain.overlap = 7: 7 clean latent frames, and tiny is made to begin with 6"),
        (("chain.overlap=6", "chain.reference=true"), {}, "a reference and chain.overlap = 6: 7 clean latent frames"),
        (("chain.overlap=2",), {"clean_lat": 1}, "chain.overlap = 2: 2 clean latent frames, and tiny is made to begin with 1"),
        (("chain.colour=0",), {"clean_lat": 0}, "a chain hands latent frames from clip to clip, and tiny cannot begin with any"),
        (("chain.reference=true",), {"clean_lat": 1}, "a reference and chain.overlap = 1: 2 clean latent frames"),
        (("chain.overlap=4", "chain.frames=4"), {}, "a clip of 4 latent frames begins with 4 given ones: it would add none"),
        ((), {"capabilities": ("whole-clip",)}, "chain needs first-frame"),
        ((), {"picture_needed": True}, "tiny starts from a picture, and none is given"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(message)):
            planned(*(sets or ("chain.colour=0",)), **changes)
    last = {"capabilities": (*TINY.capabilities, "last-frame")}
    with pytest.raises(UsageError, match="--last-image: chain makes the video clip after clip"):
        planned(conditions=Conditions(image=picture, last_image=picture), **last)
    assert planned(frames=17, conditions=Conditions(image=picture, last_image=picture), **last).clips == ()


@pytest.mark.parametrize(("clean_lat", "reference", "overlap"), [(1, False, 1), (2, True, 1), (6, False, None), (3, False, 3)])
def test_the_default_is_what_the_model_takes(clean_lat: int, reference: bool, overlap: int | None) -> None:
    made = planned(f"chain.reference={str(reference).lower()}", clean_lat=clean_lat)
    assert isinstance(made.sampling, Chain)
    assert made.sampling.overlap == (overlap or min(clean_lat, 4))


def test_svi_is_for_models_with_a_condition_beside_the_noise() -> None:
    with pytest.raises(UsageError, match="svi needs latent-condition"):
        planned("svi.overlap=1", name="svi")
    able = {"capabilities": (*TINY.capabilities, "latent-condition"), "clean_lat": 1}
    made = planned("svi.overlap=1", name="svi", frames=321, **able)
    assert isinstance(made.sampling, Svi)
    assert (made.sampling.overlap, made.sampling.reference) == (1, True)
    assert [clip.start for clip in made.clips] == [0, 21, 40, 59, 78]
    assert len(planned("svi.overlap=1", name="svi", frames=33, **able).clips) == 1  # its first clip is padded with zeros, too
    assert math.isclose(made.sample.flow_shift or 0, 5.0)
