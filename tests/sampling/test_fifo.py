"""FIFO-Diffusion against its equations: levels of noise read off exactly, windows, and small pipelines of both families."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from longgen import planner, preset
from longgen.backbones.registry import SPECS
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.loops import State, sample, stream
from longgen.loops import fifo as fifo_loop
from longgen.loops.denoiser import Denoiser
from longgen.loops.direct import direct
from longgen.plan import Plan
from longgen.sampling.fifo import Fifo
from longgen.schedule import PromptSchedule, Shot
from tests.backbones import family

SHORT = ("fifo.frames=4", "fifo.partitions=2")  # eight steps, eight places


def euler(steps: int) -> tuple[Tensor, Tensor]:
    """Sigmas [S + 1] and timesteps [S]."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()
    return sigmas, 1000 * sigmas[:-1]


def sampled(backbone: Any, plan: Plan, on_step: Callable[[State], None] = lambda _: None, resume: State | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = backbone.noise(plan, generator)
    return sample(Denoiser(backbone, plan, family.PROMPT), noise, generator, on_step, resume)


def emitted(
    fifo: Fifo, line: Tensor, noise: Tensor, length: int, sigmas: Tensor, timesteps: Tensor, predict: fifo_loop.Predict, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One round for each frame of `noise`, which enter in turn: the frame that went out, and then the line."""
    times, drops = fifo_loop.line_levels(sigmas, timesteps, fifo.lookahead_places(length))
    for entering in noise.split(1, dim=2):
        line = fifo_loop.denoise_line(line, times, drops, fifo.windows(length), length, predict, batch)
        frame, line = fifo_loop.shift_line(line, entering, fifo.lookahead_places(length))
        yield frame, line


@contextmanager
def batches_of(backbone: Any, count: int) -> Iterator[None]:
    before, backbone.model_settings = backbone.model_settings, backbone.model_settings.model_copy(update={"clip_batch": count})
    try:
        yield
    finally:
        backbone.model_settings = before


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("partitions", [1, 2, 4])
@pytest.mark.parametrize("length", [*range(2, 10), 16, 21, 31])
def test_every_place_of_the_queue_is_kept_once(length: int, partitions: int, lookahead: bool) -> None:
    fifo = Fifo(partitions=partitions, lookahead=lookahead)
    ahead = length // 2 if lookahead else 0
    windows = fifo.windows(length)
    assert len(windows) == (2 * partitions if lookahead else partitions)
    kept = [place for start, first in windows for place in range(first, start + length)]
    assert kept == list(range(ahead, ahead + partitions * length))
    for start, first in windows:
        assert 0 <= start <= first < start + length <= ahead + partitions * length
        assert first - start in ({0} if not lookahead else {length // 2, (length + 1) // 2})
    if lookahead:  # odd lengths as the authors' script for Open-Sora has them, even ones as that for VideoCrafter
        starts = [half // 2 * length + half % 2 * (length // 2) for half in range(2 * partitions)]
        assert windows == [(start, start + length // 2 + length % 2 * (half % 2)) for half, start in enumerate(starts)]


@pytest.mark.parametrize(
    ("length", "partitions", "lookahead"), [(4, 2, True), (5, 3, True), (4, 3, False), (5, 1, False), (3, 1, True)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_frame_goes_down_one_level_a_round(length: int, partitions: int, lookahead: bool, batch: int) -> None:
    """A model that knows the clean frame of every noise: each frame's level can then be read off exactly."""
    fifo, steps, rounds = Fifo(partitions=partitions, lookahead=lookahead), length * partitions, 7
    ahead = fifo.lookahead_places(length)
    sigmas, timesteps = euler(steps)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 2, steps + rounds, 1, 1, generator=generator, dtype=torch.float64)
    clip = torch.full((1, 2, length, 1, 1), 3.0, dtype=torch.float64)  # every frame, also of those that enter
    line = fifo_loop.initial_line(clip, noise[:, :, :steps], sigmas, ahead)
    calls: list[tuple[int, int, list[float]]] = []
    levels = [round(float(sigma), 9) for sigma in sigmas]

    def true_velocity(clips: Tensor, times: Tensor, step: int) -> Tensor:
        """d x / d sigma = noise - clean = (x - clean) / sigma; 7 where nobody may look."""
        for one in times.tolist():
            calls.append((len(clips), step, one))
        level = times[:, None, :, None, None] / 1000
        return torch.where(level > 0, (clips - 3.0) / level.clamp(min=1e-9), torch.full_like(clips, 7.0))

    def check(line: Tensor, first: int) -> None:
        """`first`: the frame at the head of the queue."""
        assert line.shape[2] == ahead + steps
        assert (line[:, :, :ahead] - 3.0).abs().max() < 1e-9 if ahead else True
        for place in range(steps):
            expected = noise[:, :, first + place] * sigmas[steps - 1 - place] + (1 - sigmas[steps - 1 - place]) * 3.0
            assert (line[:, :, ahead + place] - expected).abs().max() < 1e-9, (first, place)

    check(line, 0)
    out = emitted(fifo, line, noise[:, :, steps:], length, sigmas, timesteps, true_velocity, batch)
    for number, (frame, after) in enumerate(out):
        assert frame.shape == (1, 2, 1, 1, 1)
        assert (frame - 3.0).abs().max() < 1e-9
        check(after, number + 1)
    windows = len(fifo.windows(length))
    assert len(calls) == rounds * windows
    assert {size for size, _, _ in calls} <= {min(batch, windows), windows % batch or batch}
    for (start, _), (_, _, times) in zip(fifo.windows(length), calls, strict=False):  # the labels are the levels themselves
        places = [start + index - ahead for index in range(length)]
        assert [round(t / 1000, 9) for t in times] == [levels[steps - 1 - p] if p >= 0 else 0 for p in places]
    if batch == 1:
        middles = [start + length // 2 - ahead for start, _ in fifo.windows(length)]
        assert [step for _, step, _ in calls[:windows]] == [steps - 1 - middle for middle in middles]
        assert all(0 <= step < steps for _, step, _ in calls)


def slow(
    model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, noise: Tensor, count: int, lookahead: bool, partitions: int
) -> Tensor:
    """The `count` last frames that go out, by the reference's loops: in place, windows from the noisiest down. Even f."""
    length = x0.shape[2]
    steps = partitions * length
    sigmas, timesteps = euler(steps)
    ahead = length // 2 if lookahead else 0
    frames = [x0[:, :, 0] for _ in range(ahead)]
    times, drop = [0.0] * ahead, [0.0] * ahead
    for place in range(steps):
        sigma = sigmas[steps - 1 - place]
        frames.append((1 - sigma) * x0[:, :, max(0, place - (steps - length))] + sigma * noise[:, :, place])
        times.append(float(timesteps[steps - 1 - place]))
        drop.append(float(sigmas[steps - place] - sigma))
    out, entering = [], steps
    for _ in range(count + steps - length):
        for rank in reversed(range(2 * partitions if lookahead else partitions)):
            start = rank * (length // 2) if lookahead else rank * length
            first = start + length // 2 if lookahead else start
            velocity = model(
                torch.stack(frames[start : start + length], dim=2),
                torch.tensor([times[start : start + length]], dtype=torch.float64),
            )
            for place in range(first, start + length):
                frames[place] = frames[place] + drop[place] * velocity[:, :, place - start]
        out.append(frames[ahead])
        frames = [*frames[1:], noise[:, :, entering]]
        entering += 1
    return torch.stack(out[-count:], dim=2)


@pytest.mark.parametrize(("partitions", "lookahead"), [(1, False), (3, False), (1, True), (2, True), (3, True)])
def test_equals_the_reference_loop(partitions: int, lookahead: bool) -> None:
    length, count, steps = 4, 9, 4 * partitions
    fifo = Fifo(partitions=partitions, lookahead=lookahead)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(1, 3, length, 2, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, 3, 2 * steps - length + count, 2, 2, generator=generator, dtype=torch.float64)
    mix = torch.randn(length, length, generator=generator, dtype=torch.float64)

    def model(clips: Tensor, times: Tensor) -> Tensor:
        """Every frame's answer depends on all frames, their order and all timesteps."""
        return torch.tanh(torch.einsum("ij,kcjhw->kcihw", mix, clips * (1 + times / 1000)[:, None, :, None, None].to(clips)))

    sigmas, timesteps = euler(steps)
    line = fifo_loop.initial_line(x0, noise[:, :, :steps], sigmas, fifo.lookahead_places(length))
    for batch in (1, 4):
        rounds = emitted(fifo, line, noise[:, :, steps:], length, sigmas, timesteps, lambda x, t, _: model(x, t), batch)
        emitted_frames = torch.cat([frame for frame, _ in rounds][steps - length :], dim=2)
        difference = (emitted_frames - slow(model, x0, noise, count, lookahead, partitions)).abs().max().item()
        print(f"n = {partitions}, lookahead {lookahead}, {batch} at a time: max difference {difference:.1e}")
        assert emitted_frames.shape[2] == count
        assert difference < 1e-9


def test_the_loop_holds_one_line_whatever_comes_out(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that goes out is a tensor of its own: as a view it would keep the line of its round."""
    most = {}
    lines: list[weakref.ref[Tensor]] = []
    shift = fifo_loop.shift_line

    def watched(line: Tensor, entering: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
        frame, shifted = shift(line, entering, lookahead)
        lines.append(weakref.ref(shifted))
        return frame, shifted

    monkeypatch.setattr(fifo_loop, "shift_line", watched)
    for rounds in (10, 40):
        lines.clear()
        kept, alive = [], []
        plan = published({"name": "fifo", "frames": 2, "partitions": 2}, frames=4 * rounds - 3, size=[32, 32], guidance_scale=1.0)
        denoiser, generator = Denoiser(tiny, plan, family.PROMPT), torch.Generator().manual_seed(0)
        for frame in stream(denoiser, denoiser.initial_noise(generator), generator):
            kept.append(frame)
            alive.append(sum(line() is not None for line in lines))
            assert frame.untyped_storage().nbytes() == frame.nbytes
        assert len(kept) == rounds
        most[rounds] = max(alive)
    assert most[10] == most[40] <= 2


def published(*tables: dict[str, Any], backbone: str = "tiny", **sample: Any) -> Plan:
    return planner.build(preset.from_tables({"name": "f", "sample": sample, "technique": list(tables)}, "f"), SPECS[backbone])


def test_the_schedule_has_a_step_for_every_place() -> None:
    plan = published({"name": "fifo"}, frames=321)
    assert (plan.steps, plan.sample.steps, plan.call_geometry.frames_lat) == (84, 84, 21)
    assert plan.rounds == 84 + 81 + 63  # the first clip, 81 frames, and those that are dropped
    assert plan.calls == pytest.approx((84 + (81 + 63) * 8) / 84)
    note = "fifo keeps a noise level for every frame: 84 steps instead of 20 on tiny, with the flow-matching Euler scheduler"
    assert note in plan.notes
    plan = published({"name": "fifo", "frames": 10, "partitions": 3, "lookahead": False}, frames=321, steps=30)
    assert (plan.steps, plan.rounds) == (30, 30 + 81 + 20)
    assert plan.calls == pytest.approx((30 + 101 * 3) / 30)
    assert published({"name": "fifo"}, backbone="ltx-2b", frames=241).steps == 64
    assert published({"name": "fifo"}, backbone="wan2.2-ti2v-5b", frames=241).steps == 124


@pytest.mark.parametrize(
    ("table", "backbone", "steps", "message"),
    [
        ({}, "tiny", 20, r"4 partitions of 21 latent frames, and 20 steps are asked for\n  expected: --steps 84"),
        ({"frames": 8}, "tiny", 84, "expected: --steps 32"),
        ({"frames": 1}, "tiny", None, "greater than or equal to 2"),
        ({"partitions": 0}, "tiny", None, "greater than or equal to 1"),
        ({"partitions": 2.5}, "tiny", None, "valid integer"),
        ({"lookahead": 1}, "tiny", None, "valid boolean"),
        ({"stride": 1}, "tiny", None, "stride"),
        ({"layers": [0]}, "tiny", None, "fifo.layers cannot be set: a technique of the slot sampling"),
        ({}, "cogvideox-5b", None, r"fifo needs frame-timesteps \(one timestep for each latent frame\), which cogvideox-5b"),
        ({}, "cogvideox-2b", None, "fifo needs frame-timesteps"),
        ({}, "hunyuanvideo", None, "fifo needs frame-timesteps"),
    ],
)
def test_what_cannot_be_is_refused(table: dict[str, Any], backbone: str, steps: int | None, message: str) -> None:
    sample = {"frames": 321} | ({"steps": steps} if steps else {})
    with pytest.raises(UsageError, match=message):
        published({"name": "fifo"} | table, backbone=backbone, **sample)


def test_stacks_that_contradict_it_are_refused() -> None:
    with pytest.raises(UsageError, match="anchor and fifo both decide the anchor of clips"):
        published({"name": "fifo"}, {"name": "anchor"}, frames=321)
    with pytest.raises(UsageError, match="vmcr edits the latent after a step, but with fifo frames are never at the same step"):
        published({"name": "fifo"}, {"name": "vmcr"}, frames=321)
    assert published({"name": "fifo"}, {"name": "vmcr"}, frames=81).refinements  # where it is direct sampling, there are steps
    with pytest.raises(UsageError, match="both decide the order of sampling"):
        published({"name": "fifo"}, {"name": "gen-l-video"}, frames=321)


def test_a_video_of_one_window_is_sampled_directly(tiny: Any) -> None:
    plan = published({"name": "fifo"}, frames=17, steps=2)
    generator = torch.Generator().manual_seed(0)
    noise = tiny.noise(plan, generator)
    (latents,) = direct(Denoiser(tiny, plan, family.PROMPT), noise, generator, lambda _: None, None)
    assert torch.equal(sampled(tiny, plan), latents)
    assert plan.rounds == plan.steps == 2
    assert not any("noise level" in note for note in plan.notes)


@pytest.fixture(scope="module", params=["wan", "wan-ti2v", "wan-experts", "ltx"])
def small(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Any:
    return family.loaded(model_folder(request.param))


def made_for(
    backbone: Any, sets: tuple[str, ...] = SHORT, name: str = "fifo", frames_lat: int = 7, steps: int = 8, **sample: Any
) -> Plan:
    frames_px = (frames_lat - 1) * backbone.spec.stride_t + 1
    return family.made(backbone, name, frames_px, steps, sets, **sample)


def test_with_one_timestep_for_all_frames_velocities_are_the_pipelines(small: Any) -> None:
    """The first clip alone, against the whole stock pipeline with the scheduler of first order."""
    plan = made_for(small)
    states: list[State] = []
    sampled(small, plan, lambda state: states.append(copy.deepcopy(state)))
    assert states[0].done == plan.steps == fifo_loop.CHECKPOINT_ROUNDS
    generator = torch.Generator().manual_seed(0)
    small.noise(plan, generator)
    noise = torch.randn(*small.latent_shape(plan)[:2], 4, *small.latent_shape(plan)[3:], generator=generator)
    plain = made_for(small, (), "direct", frames_lat=4)
    before, small.pipe.scheduler = small.pipe.scheduler, small.first_order(plan)
    try:
        stock = sample(Denoiser(small, plain, family.PROMPT), noise, torch.Generator())
    finally:
        small.pipe.scheduler = before
    difference = (states[0].latents - stock).abs().max().item()
    print(f"{small.spec.family}: max difference {difference:.1e} of {stock.abs().max():.1f}")
    assert difference < 2e-4
    assert stock.std() > 0.1


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_it_runs_on_small_pipelines(small: Any, guidance: float) -> None:
    plan = made_for(small, guidance_scale=guidance)
    scheduler, processors = small.pipe.scheduler, [layer.processor for layer in small.layers(small.pipe.transformer)]
    counts = []
    handle = small.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append((len(kwargs["hidden_states"]), kwargs["timestep"].ndim)), with_kwargs=True
    )
    try:
        latents = sampled(small, plan)
    finally:
        handle.remove()
    assert latents.shape == small.latent_shape(plan)
    assert torch.isfinite(latents).all()
    assert all(ndim == 2 for _, ndim in counts)  # a timestep for every token
    branches = 2 if guidance > 1 else 1
    if len(small.transformers) == 1:
        samples = (8 + (7 + 4) * 4) * branches  # the first clip, then 4 windows for each of the frames that go out
        assert sum(size for size, _ in counts) == samples
    assert small.pipe.scheduler is scheduler
    assert [layer.processor for layer in small.layers(small.pipe.transformer)] == processors


@pytest.fixture(scope="module")
def latents(small: Any) -> Tensor:
    """What the plan of most tests below makes."""
    return sampled(small, made_for(small))


def test_negative_prompt_and_noise_count(small: Any, latents: Tensor) -> None:
    assert not torch.equal(latents, sampled(small, made_for(small, negative_prompt="sand")))
    plan = made_for(small)
    generator = torch.Generator().manual_seed(0)
    noise = small.noise(plan, generator)
    noise[:, :, 6] += 1  # where the last frame that is kept begins
    other = sample(Denoiser(small, plan, family.PROMPT), noise, generator)
    change = (latents - other).flatten(3).abs().amax(dim=(0, 1, 3))
    assert change[6] > 0.1
    assert change.argmax() == 6


def test_a_frame_goes_out_before_it_could_know_the_next_prompt(small: Any) -> None:
    """All of the queue has the prompt of the frame that goes out: with a cut before frame 4, four are the first prompt's."""
    frames_px = 6 * small.spec.stride_t + 1
    cut = Fraction(3 * small.spec.stride_t + 1, small.spec.fps)  # the first pixel frame of latent frame 4
    shots = (Shot(Fraction(0), family.PROMPT), Shot(cut, "a large red circle"))
    chosen = preset.load("fifo", SHORT, preset.Sample(frames=frames_px, size=family.SIZE))
    one, two, other = (
        sampled(small, planner.build(chosen, small.spec, PromptSchedule(some)))
        for some in (shots[:1], shots, (Shot(Fraction(0), shots[1].prompt),))
    )
    assert torch.equal(two[:, :, :4], one[:, :, :4])
    assert not torch.equal(two[:, :, 4], one[:, :, 4])
    assert not torch.equal(one[:, :, 0], other[:, :, 0])


def test_windows_in_one_call_give_the_same(small: Any, latents: Tensor) -> None:
    sizes = []
    handle = small.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        with batches_of(small, 4):
            four = sampled(small, made_for(small))
    finally:
        handle.remove()
    assert max(sizes) == (8 if small.spec.family == "ltx" else 4)  # guidance is in the same batch there
    difference = (latents - four).abs().max().item()
    print(f"{small.spec.family}: max difference {difference:.1e}")
    assert difference < 2e-4


def test_resume_gives_the_same_bits(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longgen.loops.fifo.CHECKPOINT_ROUNDS", 5)
    plan = made_for(small, frames_lat=9)
    states: list[State] = []
    whole = sampled(small, plan, lambda state: states.append(copy.deepcopy(state)))
    assert plan.rounds == 8 + 4 + 9
    assert [state.done for state in states] == [5, 10, 15, 20, 21]  # in the first clip, before the first kept frame, after it, ..
    assert [state.latents.shape[2] for state in states] == [4, 10, 3 + 10, 8 + 10, 9 + 10]
    for state in states:
        later: list[int] = []
        resumed = sampled(small, plan, lambda now, later=later: later.append(now.done), state)
        assert torch.equal(resumed, whole), state.done
        assert later == [one.done for one in states if one.done > state.done]


def test_a_frame_plan_acts_in_the_windows(small: Any) -> None:
    plan = published_on(small, {"name": "fifo", "frames": 6, "partitions": 2}, {"name": "window", "frames": 3})
    assert plan.table.any()
    plain = published_on(small, {"name": "fifo", "frames": 6, "partitions": 2})
    latents = sampled(small, plan)
    assert torch.isfinite(latents).all()
    assert not torch.equal(latents, sampled(small, plain))


def published_on(backbone: Any, *tables: dict[str, Any]) -> Plan:
    frames_px = 8 * backbone.spec.stride_t + 1
    sample = {"frames": frames_px, "size": list(family.SIZE)}
    return planner.build(preset.from_tables({"name": "f", "sample": sample, "technique": list(tables)}, "f"), backbone.spec)


def test_a_part_of_the_schedule_is_the_windows_with_their_middle_in_it(small: Any) -> None:
    """Windows then differ in what they do, so that they go one by one."""
    tables = ({"name": "fifo", "frames": 4, "partitions": 2}, {"name": "window", "frames": 3, "steps": [0, 0.5]})
    plan = published_on(small, *tables)
    indices, sizes = [], []

    def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        indices.append(small.step_state.index)
        sizes.append(len(kwargs["hidden_states"]))

    handle = small.pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with batches_of(small, 4):
            sampled(small, plan)
    finally:
        handle.remove()
    assert max(sizes) == (2 if small.spec.family == "ltx" else 1)  # guidance is one batch there
    if len(small.transformers) == 1:
        assert list(dict.fromkeys(indices[-8 if small.spec.family == "wan" else -4 :])) == [7, 5, 3, 1]


def test_two_experts_predict_the_frames_of_their_own_timesteps(model_folder: Callable[[str], Path]) -> None:
    backbone = family.loaded(model_folder("wan-experts"))
    plan = made_for(backbone)
    boundary = 875.0
    times = torch.tensor([[0.0, 400.0, 875.0, 990.0]])
    clips = torch.randn(1, *backbone.latent_shape(plan)[1:2], 4, *backbone.latent_shape(plan)[3:])
    with torch.no_grad():
        text, uncond = backbone.text(family.PROMPT), backbone.text(plan.sample.negative_prompt)
        mixed = Denoiser(backbone, plan, family.PROMPT).predict(clips, times, 0, text)
        tokens = times.repeat_interleave(np.prod(plan.call_grid[1:]), dim=1)
        for transformer, scale, own in (
            (backbone.pipe.transformer, plan.sample.guidance_scale, times >= boundary),
            (backbone.pipe.transformer_2, backbone.spec.guidance_scale_2, times < boundary),
        ):
            guided, unguided = (transformer(clips, tokens, words["encoder_hidden_states"])[0] for words in (text, uncond))
            expected = unguided + scale * (guided - unguided)
            assert torch.equal(mixed[:, :, own[0]], expected[:, :, own[0]])


def test_a_step_cache_is_refused(tiny: Any) -> None:
    plan = published({"name": "fifo", "frames": 4, "partitions": 2}, frames=33)
    before, tiny.model_settings = tiny.model_settings, tiny.model_settings.model_copy(update={"cache": "first-block"})
    try:
        with pytest.raises(UsageError, match="--cache first-block compares a frame with what stood at its place a round before"):
            sampled(tiny, plan)
    finally:
        tiny.model_settings = before


def test_on_tiny_at_161_frames(tiny: Any) -> None:
    """A short queue; that of the preset takes minutes."""
    plan = published({"name": "fifo", "frames": 6, "partitions": 1, "lookahead": False}, frames=161)
    assert plan.spec is TINY
    latents = sampled(tiny, plan)
    assert latents.shape == (1, 48, 41, 4, 4)
    assert torch.isfinite(latents).all()
    assert 0.3 < latents.std() < 2
