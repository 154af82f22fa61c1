"""The rollout against its definition without a cache, against diffusers' own loop, and against itself where it is interrupted.

The model is a real one, small and random, whose attention picks: settings that differ give frames that differ a thousand times
more than any rounding, which `test_every_setting_matters` holds.
"""

from __future__ import annotations

import copy
import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from longgen import cost, describe, planner, preset
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.errors import UsageError
from longgen.loops import State, prompt_schedule, sample, stream
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.loading import check_settings
from longgen.plan import Plan
from longgen.schedule import PromptSchedule, Shot
from tests.sampling import dense_rollout
from tests.sampling.dense_rollout import Stack

RED, GREEN, BLUE = (f"a large {what} on a navy background" for what in ("red circle", "green square bouncing", "blue triangle"))
WINDOW, SINK, REBASE, FLEX = {"name": "window", "frames": 6}, {"name": "sink"}, {"name": "rebase"}, {"name": "flex"}
ALL_FRAMES = {"name": "window", "frames": 1000}  # else a window of the native length is implied
ANS = {"name": "ans", "rho": -0.7}
BIAS = {"name": "bias", "factor": 0.3, "after_switch": 0.05, "chunks": 2}
SETTINGS: dict[str, Stack] = {
    "no window": [ALL_FRAMES],
    "window": [WINDOW],
    "native window": [{"name": "window"}],
    "window cut off at the ends, which a rollout has not": [WINDOW | {"frames": 4, "edge": "clip"}],
    "sink": [WINDOW, SINK],
    "rebase": [WINDOW, SINK, REBASE],
    "rebase, gap 0": [WINDOW, SINK, REBASE | {"gap": 0}],
    "rebase, gap 4": [WINDOW, SINK, REBASE | {"gap": 4}],
    "flex": [WINDOW, SINK, FLEX],
    "flex with a ramp": [WINDOW, SINK, FLEX | {"a": 0.2, "b": 2.0}],
    "flex, no window": [ALL_FRAMES, FLEX],
    "flex behind rebase": [WINDOW | {"frames": 12}, SINK, FLEX, REBASE],
    "ntk": [WINDOW, SINK, {"name": "ntk"}],
    "yarn": [WINDOW, SINK, {"name": "yarn"}],
    "riflex": [WINDOW, SINK, {"name": "riflex"}],
    "bias": [WINDOW, BIAS],
    "bias, sink": [WINDOW, SINK, REBASE, BIAS | {"layers": [0, 2]}],
    "sink in one layer": [WINDOW, SINK | {"layers": [1]}],
    "windows that differ by layer": [WINDOW | {"layers": [0]}, ALL_FRAMES | {"layers": [2]}, {"name": "window", "layers": [1]}],
    "window in early steps": [WINDOW | {"steps": [0, 0.5]}, ALL_FRAMES | {"steps": [0.5, 1]}],
    "rolling-sink": [{"name": "rolling-sink", "frames": 8}],
    "rolling-sink of another window, and flex": [{"name": "rolling-sink", "frames": 11}, FLEX],
    "memrope": [{"name": "memrope"}],
    "memrope by token, other sizes and rates, and flex": [
        {"name": "memrope", "frames": 10, "sink": 2, "long": 0.3, "short": 0.6, "per_token": True},
        FLEX,
    ],
    "all of it in parts": [WINDOW, SINK | {"layers": [0, 1]}, REBASE | {"layers": [1], "steps": [0, 0.5]}, FLEX | {"layers": [0]}],
}


def built(backbone: Any, stack: Stack, frames_lat: int = 22, schedule: PromptSchedule | None = None, **sample: Any) -> Plan:
    given = preset.Sample(**{"frames": 4 * (frames_lat - 1) + 1, "steps": 2} | sample)
    stack_preset = preset.from_tables({"name": "stack", "technique": stack}, "stack").model_copy(update={"sample": given})
    return planner.build(stack_preset, backbone.spec, schedule)


def streamed(
    backbone: Any, plan: Plan, on_step: Callable[[State], None] = lambda _: None, resume: State | None = None, prompt: str = RED
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, prompt)
    return stream(denoiser, denoiser.initial_noise(generator), generator, on_step, resume)


def rollout_latents(backbone: Any, plan: Plan, *arguments: Any, **named: Any) -> Tensor:
    return torch.cat([*streamed(backbone, plan, *arguments, **named)], dim=2)


def cut(*at_s: float, prompts: tuple[str, ...] = (RED, GREEN, BLUE), blend: float = 0, hard: int | None = None) -> PromptSchedule:
    """Shots at these times. hard: the one, from 1, that begins with a hard cut."""
    times = [Fraction(0), *map(Fraction, at_s)]
    shots = (Shot(at, prompt, cut=number == hard) for number, (at, prompt) in enumerate(zip(times, prompts, strict=False), 1))
    return PromptSchedule(tuple(shots), Fraction(blend))


def differs(one: Tensor, other: Tensor) -> float:
    """The largest difference, against the largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


# The definition


@pytest.fixture(scope="module")
def result(causal: Any) -> Callable[[str], Tensor]:
    """The rollout of a setting, once."""
    return functools.cache(lambda name: rollout_latents(causal, built(causal, SETTINGS[name])))


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_dense_attention_over_the_whole_history(causal: Any, result: Callable[[str], Tensor], name: str) -> None:
    latents = result(name)
    difference = differs(latents, dense_rollout.rollout(causal, SETTINGS[name], 22, [RED] * 8))
    print(f"{name}: {difference:.1e}")
    assert latents.shape == (1, 48, 22, 4, 6)
    assert difference < 1e-5


def test_every_setting_matters(result: Callable[[str], Tensor]) -> None:
    for one, other in itertools.combinations(SETTINGS, 2):
        assert differs(result(one), result(other)) > 1e-3, (one, other)


@pytest.mark.parametrize(
    ("rollout", "sample"),
    [
        ({"chunk": 1}, {}), ({"chunk": 4}, {}), ({"chunk": 3}, {"steps": 4}), ({"context_noise": 20.0}, {}),
        ({"chunk": 4, "context_noise": 20.0}, {"guidance_scale": 2.0}), ({}, {"guidance_scale": 2.0}), ({}, {"steps": 1}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["rebase", "flex"])
def test_equals_the_definition_with_other_chunks_steps_and_guidance(
    causal: Any, result: Callable[[str], Tensor], name: str, rollout: dict[str, Any], sample: dict[str, Any]
) -> None:
    latents = rollout_latents(causal, built(causal, [*SETTINGS[name], {"name": "rollout"} | rollout], **sample))
    chunk, guidance = rollout.get("chunk", 3), sample.get("guidance_scale", 1.0)
    expected = dense_rollout.rollout(causal, SETTINGS[name], 22, [RED] * -(-22 // chunk), sample.get("steps", 2), chunk,
                                     rollout.get("context_noise", 0.0), guidance)  # fmt: skip
    print(f"{name} {rollout} {sample}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    assert differs(latents, result(name)) > 1e-3


FIRST: dict[str, tuple[Stack, dict[str, Any], int, int]] = {  # techniques, rollout, steps, latent frames
    "frame by frame, 2 steps": ([WINDOW, SINK, REBASE], {"chunk": 1, "first_steps": 4}, 2, 10),
    "frame by frame, 1 step": ([WINDOW, SINK, FLEX], {"chunk": 1, "first_steps": 4}, 1, 10),
    "fewer steps first": ([WINDOW | {"steps": [0, 0.5]}, ALL_FRAMES | {"steps": [0.5, 1]}], {"first_steps": 1}, 4, 9),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_chunk_in_steps_of_its_own_equals_the_definition(causal: Any, name: str) -> None:
    stack, rollout, steps, frames_lat = FIRST[name]
    plan = built(causal, [*stack, {"name": "rollout"} | rollout], frames_lat, steps=steps)
    chunk, first = rollout.get("chunk", 3), rollout["first_steps"]
    latents = rollout_latents(causal, plan)
    expected = dense_rollout.rollout(causal, stack, frames_lat, [RED] * plan.rounds, steps, chunk, first_steps=first)
    print(f"{name}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    plain = rollout_latents(causal, built(causal, [*stack, {"name": "rollout", "chunk": chunk}], frames_lat, steps=steps))
    assert differs(latents, plain) > 1e-3
    same = built(causal, [*stack, {"name": "rollout"} | rollout | {"first_steps": steps}], frames_lat, steps=steps)
    assert torch.equal(rollout_latents(causal, same), plain)


def test_the_first_chunk_costs_its_own_steps(causal: Any) -> None:
    """Chunks of one frame over two steps and a clean pass, the first over four; the last has no clean pass."""
    stack = [{"name": "window", "frames": 1}, {"name": "rollout", "chunk": 1}]
    plain, own = (built(causal, [stack[0], stack[1] | more], 200, steps=2) for more in ({}, {"first_steps": 4}))
    assert (plain.first_steps, own.first_steps, own.rounds) == (2, 4, 200)
    assert cost.ratio(own) / cost.ratio(plain) == pytest.approx((200 * 3 - 1 + 2) / (200 * 3 - 1), rel=1e-4)
    calls = calls_of(causal, built(causal, [stack[0], stack[1] | {"first_steps": 4}], 3, steps=2))
    assert calls == [1000, 937.5, pytest.approx(2500 / 3), 625, 0, 1000, pytest.approx(2500 / 3), 0, 1000, pytest.approx(2500 / 3)]


def calls_of(backbone: Any, plan: Plan) -> list[float]:
    """The timestep of each call of the transformer."""
    times: list[float] = []
    handle = backbone.pipe.transformer.register_forward_pre_hook(
        lambda module, arguments, named: times.append(named["timestep"][0].item()), with_kwargs=True
    )
    try:
        rollout_latents(backbone, plan)
    finally:
        handle.remove()
    return times


def test_what_is_left_unsaid_is_a_rollout_with_a_native_window(causal: Any) -> None:
    implied, said = built(causal, []), built(causal, [{"name": "window", "frames": 9}, {"name": "rollout"}])
    assert [act.name for act in implied.techniques] == [act.name for act in said.techniques] == ["window", "rollout"]
    assert torch.equal(rollout_latents(causal, implied), rollout_latents(causal, said))


def test_sample_is_the_stream_joined(causal: Any) -> None:
    plan = built(causal, [], 8)
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(causal, plan, RED)
    joined = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert torch.equal(joined, rollout_latents(causal, plan))


# diffusers' own


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_chunk_is_diffusers_own_loop_bit_for_bit(causal: Any, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 48, 3, 4, 6, generator=generator)
    with torch.no_grad():
        words = causal.text(RED)
        for timestep in scheduler.timesteps:
            predicted = causal.pipe.transformer(hidden_states=latents, timestep=timestep.expand(1), return_dict=False, **words)[0]
            latents = scheduler.step(predicted, timestep, latents, generator=generator, return_dict=False)[0]
    assert torch.equal(rollout_latents(causal, built(causal, [], 3, steps=steps)), latents)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_a_solver_each_chunk_is_diffusers_own_loop_anew(causal: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that see nothing but their chunk, at relative times; LongLive 2.0's levels are sigma_j from 0.999 on, shifted."""
    monkeypatch.setattr(causal, "spec", replace(causal.spec, scheduler="UniPCMultistepScheduler"))
    latents = rollout_latents(causal, built(causal, [{"name": "window", "frames": 3}], 6, steps=steps))
    generator = torch.Generator().manual_seed(0)
    for first in (0, 3):
        solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        solver.set_timesteps(sigmas=0.999 * (1 - np.arange(steps) / steps))
        x = torch.randn(1, 48, 3, 4, 6, generator=generator)
        with torch.no_grad():
            words = causal.text(RED)
            for timestep in solver.timesteps:
                predicted = causal.pipe.transformer(hidden_states=x, timestep=timestep.expand(1), return_dict=False, **words)[0]
                x = solver.step(predicted, timestep, x, return_dict=False)[0]
        assert differs(latents[:, :, first : first + 3], x) < 1e-5
    levels = {1: [999], 2: [999, 833], 4: [999, 937, 833, 624]}  # as FlowUniPCMultistepScheduler of NVlabs/LongLive sets them
    assert causal.chunk_schedule(built(causal, []), steps).timesteps.tolist() == levels[steps]


def test_the_noise_levels_of_self_forcing(causal: Any) -> None:
    scheduler = causal.chunk_schedule(built(causal, [], steps=4), 4)
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625], rel=1e-6)
    assert scheduler.sigmas.tolist() == pytest.approx([1, 0.9375, 5 / 6, 0.625, 0], rel=1e-6)
    for steps, expected in ((1, [1000]), (2, [1000, 2500 / 3])):  # Causal Forcing++: [1000] and [1000, 500], warped
        assert causal.chunk_schedule(built(causal, []), steps).timesteps.tolist() == pytest.approx(expected, rel=1e-6)
    assert SPECS["self-forcing"].flow_shift == SPECS["longlive"].flow_shift == SPECS["tiny-causal"].flow_shift == 5


def test_schedules_are_made_once_and_not_for_every_chunk(causal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each is a copy from the host, of which a run had one in all."""
    made, chunk_schedule = list[int](), causal.chunk_schedule
    monkeypatch.setattr(causal, "chunk_schedule", lambda plan, steps: made.append(steps) or chunk_schedule(plan, steps))
    for first_steps, expected in (None, [2]), (1, [1, 2]):
        rollout_latents(causal, built(causal, [WINDOW, {"name": "rollout"} | ({"first_steps": 1} if first_steps else {})], 12))
        assert sorted(made) == expected
        made.clear()


def test_cached_text_is_stock_cross_attention_bit_for_bit(causal: Any) -> None:
    layer = causal.text_layers(causal.pipe.transformer)[1]
    one, other = (torch.randn(2, 18, 72, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    red, green = (torch.randn(2, 24, 72, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    with torch.no_grad():
        stock = [layer(one, red), layer(other, red), layer(other, green)]
        with causal.rolling(built(causal, [])) as cache:
            assert torch.equal(layer(one, red), stock[0])
            assert torch.equal(layer(other, red), stock[1])
            assert torch.equal(layer(other, green), stock[1])  # that of the cache
            cache.texts.clear()
            assert torch.equal(layer(other, green), stock[2])


@pytest.mark.parametrize("end", ["its end", "an error", "a consumer that has enough"])
def test_the_transformer_is_as_it_was_after(causal: Any, end: str) -> None:
    transformer = causal.pipe.transformer
    before = dict(transformer.attn_processors)
    stream = streamed(causal, built(causal, []))
    next(stream)
    assert not any(transformer.attn_processors[name] is processor for name, processor in before.items())
    assert torch.is_grad_enabled()  # also between two frames
    if end == "an error":
        with pytest.raises(ZeroDivisionError):
            stream.throw(ZeroDivisionError())  # type: ignore[attr-defined]
    elif end == "its end":
        assert len([*stream]) == 21
    else:
        stream.close()  # type: ignore[attr-defined]
    after = transformer.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is processor for name, processor in before.items())


def test_a_step_cache_is_refused() -> None:
    with pytest.raises(UsageError, match="--cache first-block compares a step with the previous one, and tiny-causal"):
        check_settings(SPECS["tiny-causal"], ModelSettings("cpu", "fp32", cache="first-block"))


# Length


def alive_bytes() -> int:
    gc.collect()
    return sum(x.numel() * x.element_size() for x in gc.get_objects() if type(x) is Tensor)


def test_memory_is_constant_over_350_chunks_beyond_the_rotary_table(causal: Any) -> None:
    """1,050 latent frames; the model's own table has rows for 1,024."""
    plan = built(causal, [WINDOW, SINK, FLEX], 1050, steps=1)
    alive = checked_alive(causal, plan, 3 + 6, (60, 1050 - 3))
    assert alive[60] == alive[1050 - 3]


def test_memory_is_constant_where_prompts_change_with_and_without_a_cut(causal: Any) -> None:
    """At equal distances from a change: the rotary tables of a chunk are as long as what it sees."""
    shots = tuple(Shot(Fraction(15 * k, 2), (RED, GREEN)[k % 2], cut=k % 2 == 1) for k in range(12))
    plan = built(causal, [WINDOW, BIAS, {"name": "rollout", "switch": "recache"}], 360, PromptSchedule(shots), steps=1)
    assert len(plan.cut_starts) == 6
    alive = checked_alive(causal, plan, 6, (90, 93, 330, 333))
    assert alive[90] == alive[330]
    assert alive[93] == alive[333]


def checked_alive(causal: Any, plan: Plan, slots: int, at: tuple[int, ...]) -> dict[int, int]:
    """The bytes of all tensors after the frames `at` of a rollout whose cache is the first chunk's all the time."""
    seen, alive, frames = set(), dict[int, int](), 0
    for frames, frame in enumerate(streamed(causal, plan), start=1):
        cache = causal.layers(causal.pipe.transformer)[0].processor.cache
        held = [x for layer in cache.layers.values() for x in (layer.keys, layer.rotated_keys, layer.values)]
        texts = [x for pair in cache.texts.values() for x in pair]
        seen.add((len(cache.layers), *(sum(x.numel() * x.element_size() for x in each) for each in (held, texts))))
        assert len(cache.frames) <= slots
        assert torch.isfinite(frame).all()
        if frames in at:
            alive[frames] = alive_bytes()
    tokens, width, words = 6, 72, 24
    assert frames == plan.frames_lat
    assert seen == {(3, 3 * 3 * slots * tokens * width * 4, 2 * 3 * words * width * 4)}
    assert cost.cache_bytes(plan, "fp32") == sum(next(iter(seen))[1:])
    return alive


# Going on


def states_of(backbone: Any, plan: Plan) -> tuple[Tensor, list[State], list[Tensor]]:
    """All frames, and copies of the states in which a run that stopped after each chunk would be."""
    states: list[State] = []
    latents = rollout_latents(backbone, plan, lambda state: states.append(copy.deepcopy(state)))
    return latents, states, [state.latents for state in states]


RESUMED: dict[str, tuple[Stack, PromptSchedule | None]] = {
    "plain": ([], None),
    "flex": ([WINDOW, SINK, FLEX], None),
    "window in early steps": (SETTINGS["window in early steps"], None),
    "ans": ([WINDOW, ANS], None),
    "ans, renoise": ([WINDOW, ANS | {"renoise": True}], None),
    "rolling-sink, recache": ([{"name": "rolling-sink", "frames": 8}], cut(1.5, 3)),
    "chosen tokens": ([{"name": "participative-compression", "frames": 7, "sink": 1, "top": 1}], cut(1.5, 3)),
    "memrope, recache": ([{"name": "memrope"}], cut(1.5, 3)),
    "ans, renoise, more steps first": ([WINDOW, ANS | {"renoise": True}, {"name": "rollout", "first_steps": 4}], None),
    "recache": ([WINDOW, SINK, REBASE, ANS], cut(1.5, 3)),
    "flush": ([WINDOW, SINK, REBASE, ANS, {"name": "rollout", "switch": "flush"}], cut(1.5, 3)),
    "keep": ([WINDOW, SINK, REBASE, ANS, {"name": "rollout", "switch": "keep"}], cut(1.5, 3)),
    "bias after a switch": ([WINDOW, SINK, BIAS], cut(1.5, 3)),
    "a hard cut": ([WINDOW, SINK, REBASE, {"name": "rollout", "switch": "flush"}], cut(1.5, 3, hard=2)),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_goes_on_makes_the_same_bits(causal: Any, name: str) -> None:
    stack, schedule = RESUMED[name]
    plan = built(causal, stack, 16, schedule)
    whole, states, chunks = states_of(causal, plan)
    assert [state.done for state in states] == list(range(1, 7))
    assert all(chunk.shape[2] == 3 for chunk in chunks)
    for state in states:
        later: list[int] = []
        causal.step_state.index = 0  # as in a new process
        resume = copy.deepcopy(state._replace(latents=chunks[: state.done]))
        again = rollout_latents(causal, plan, lambda now, later=later: later.append(now.done), resume)
        assert torch.equal(again, whole), state.done
        assert later == list(range(state.done + 1, 7))


def test_resume_with_guidance(causal: Any) -> None:
    plan = built(causal, [WINDOW, SINK], 12, guidance_scale=2.0)
    whole, states, chunks = states_of(causal, plan)
    assert torch.equal(rollout_latents(causal, plan, resume=states[1]._replace(latents=chunks[:2])), whole)


# Noise


def drawn(backbone: Any, plan: Plan) -> list[Tensor]:
    """What the transformer is given in the first step of every chunk: noise alone, as sigma is 1 there."""
    given: list[Tensor] = []

    def see(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if named["timestep"][0] == 1000:
            given.append(named["hidden_states"][0])

    handle = backbone.pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        rollout_latents(backbone, plan)
    finally:
        handle.remove()
    return given


def test_ans_goes_on_from_chunk_to_chunk(causal: Any) -> None:
    """One recursion over all frames, of the noise that is drawn without it."""
    plain, mixed = (torch.cat(drawn(causal, built(causal, stack)), dim=1) for stack in ([WINDOW], [WINDOW, ANS]))
    expected = plain.double()
    for frame in range(1, plain.shape[1]):
        expected[:, frame] = -0.7 * expected[:, frame - 1] + 0.51**0.5 * expected[:, frame]
    assert plain.shape == (48, 24, 4, 6)
    assert (mixed - expected).abs().max() < 1e-5
    renoised = torch.cat(drawn(causal, built(causal, [WINDOW, ANS | {"renoise": True}])), dim=1)
    assert torch.equal(renoised, mixed)  # the same draws; they differ between the steps
    one, other = (rollout_latents(causal, built(causal, [WINDOW, ANS | {"renoise": renoise}])) for renoise in (False, True))
    assert differs(one, other) > 1e-3


def test_ans_is_the_identity_up_to_the_native_length(causal: Any) -> None:
    plain, mixed = (built(causal, stack, 9) for stack in ([], [ANS]))
    assert any("ans changes nothing at 33 frames" in note for note in mixed.notes)
    assert torch.equal(rollout_latents(causal, plain), rollout_latents(causal, mixed))


# Prompts that change

STACKS = {
    "window": [WINDOW],
    "sink": [WINDOW, SINK],
    "rebase": [WINDOW, SINK, REBASE],
    "wide window, rebase": [{"name": "window", "frames": 12}, SINK, REBASE],
    "flex": [WINDOW, SINK, FLEX],
    "infinity-RoPE's": [{"name": "window", "frames": 5}, {"name": "sink", "frames": 1}, REBASE],
    "windows that differ by layer": SETTINGS["windows that differ by layer"],
    "sink in one layer": SETTINGS["sink in one layer"],
}


@pytest.mark.parametrize("switch", ["recache", "flush", "keep"])
@pytest.mark.parametrize("name", STACKS)
def test_a_switch_equals_the_definition(causal: Any, name: str, switch: str) -> None:
    """Shots of red to 2.25 s, green to 3 s, blue to the end of 18 latent frames, a quarter of a second each."""
    stack = [*STACKS[name], {"name": "rollout", "switch": switch}]
    latents = rollout_latents(causal, built(causal, stack, 18, cut(2.25, 3)))
    prompts = [RED] * 3 + [GREEN] + [BLUE] * 2
    expected = dense_rollout.rollout(causal, stack, 18, prompts, switch=switch)
    print(f"{name}, {switch}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    alone = rollout_latents(causal, built(causal, stack, 18))
    assert torch.equal(latents[:, :, :9], alone[:, :, :9])
    assert differs(latents[:, :, 9:], alone[:, :, 9:]) > 1e-3


@pytest.mark.parametrize("switch", ["recache"])
def test_a_soft_switch_equals_the_definition(causal: Any, switch: str) -> None:
    """Red, green from chunk 3, blue from chunk 4 on: the stronger bias acts in chunks 3, 4 and 5, not in the last."""
    stack = [WINDOW, SINK, BIAS, {"name": "rollout", "switch": switch}]
    latents = rollout_latents(causal, built(causal, stack, 21, cut(2.25, 3)))
    expected = dense_rollout.rollout(causal, stack, 21, [RED] * 3 + [GREEN] + [BLUE] * 3, switch=switch)
    print(f"{switch}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    hard = rollout_latents(causal, built(causal, [WINDOW, SINK, {"name": "bias"}, *stack[3:]], 21, cut(2.25, 3)))
    assert torch.equal(latents[:, :, :9], hard[:, :, :9])
    assert differs(latents[:, :, 9:], hard[:, :, 9:]) > 1e-3


def test_a_bias_of_one_is_none_bit_for_bit(causal: Any) -> None:
    neutral = [WINDOW, SINK, {"name": "bias", "factor": 1.0}]
    assert torch.equal(rollout_latents(causal, built(causal, neutral)), rollout_latents(causal, built(causal, neutral[:2])))


@pytest.mark.parametrize(
    ("name", "switch"),
    [("infinity-RoPE's", "flush"), ("window", "keep"), ("window", "recache"), ("windows that differ by layer", "recache"),
     ("flex behind rebase", "keep")],
)  # fmt: skip
def test_a_cut_equals_the_definition(causal: Any, name: str, switch: str) -> None:
    """Two switches, the first a hard cut: with "recache" its chunk runs again at the second, then without a jump."""
    stack = [*(STACKS.get(name) or SETTINGS[name]), {"name": "rollout", "switch": switch}]
    plan = built(causal, stack, 18, cut(2.25, 3, hard=2))
    assert plan.cut_starts == (9,)
    latents = rollout_latents(causal, plan)
    expected = dense_rollout.rollout(causal, stack, 18, [RED] * 3 + [GREEN] + [BLUE] * 2, switch=switch, cuts={3: 45})
    print(f"{name}, {switch}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    without = rollout_latents(causal, built(causal, stack, 18, cut(2.25, 3)))
    assert torch.equal(latents[:, :, :9], without[:, :, :9])
    assert differs(latents[:, :, 9:12], without[:, :, 9:12]) > 1e-3


def test_infinity_ropes_cut_stands_at_45_to_47_behind_0_to_2(causal: Any) -> None:
    """In the first chunk of the shot alone; the one after it is at 3 to 5 again."""
    stack = [*STACKS["infinity-RoPE's"], {"name": "rollout", "switch": "flush"}]
    plan = built(causal, stack, 18, cut(2.25, hard=2))
    times = []
    for index, _ in enumerate(streamed(causal, plan)):
        if index % 3 == 0:
            cache = causal.layers(causal.pipe.transformer)[0].processor.cache
            (view,) = (by_name["main"] for by_name in cache._views.values())
            times.append((view.positions - view.positions[0]).tolist())
    assert times == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 45, 46, 47], *[[0, 1, 2, 3, 4, 5]] * 2]


@pytest.mark.parametrize(
    ("name", "how", "hint"),
    [
        ("direct", "direct sampling", "leave cut out"),
        ("gen-l-video", "gen-l-video", "leave cut out"),
        ("chain", "chain", "an image"),
    ],
)
def test_a_cut_without_chunks_is_refused(name: str, how: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"shot 2: cut: a cut .* and {how} makes no chunks") as caught:
        planner.build(preset.load(name, (), preset.Sample(frames=321)), SPECS["tiny"], cut(10, hard=2))
    assert "tiny-causal" in caught.value.expected
    assert hint in str(caught.value.hint)


def test_a_plan_says_what_a_cut_sees_and_where_it_stands(causal: Any) -> None:
    stack = [*STACKS["infinity-RoPE's"], {"name": "rollout", "switch": "flush"}]
    text = describe.plan_text(built(causal, stack, 21, cut(3, hard=2)), "fp32", "none")
    assert f"shot 2 from 3 s: cut: {GREEN}" in text
    assert "the cut at latent frame 12, in the first layer and step" in text
    assert "frames 12 to 14 see 0, 10-14 of 15, at relative times 47 to -2" in text


def test_a_bias_that_acts_after_switches_alone_is_not_said_to_change_nothing(causal: Any) -> None:
    stack = [WINDOW, BIAS | {"factor": 1.0}]
    said = "bias changes nothing"
    assert not any(said in note for note in built(causal, stack, 21, cut(3)).notes)
    assert any(said in note for note in built(causal, stack, 21).notes)
    (last,) = [plan for plan, _, _ in built(causal, stack, 18, cut(3)).branches().values()]  # a chunk after the switch
    assert "logit_bias" in last.passes[0].columns
    assert built(causal, stack, 21, cut(1.5)).branches()["main"][0].passes[0].logits is None


def test_a_cut_that_would_separate_nothing_is_refused(causal: Any) -> None:
    """Behind a sink at its own time frame 36 is 36 after it: moved to 43, it is 8 after frame 35, and the model knows 8."""
    stack = [WINDOW, SINK, {"name": "rollout", "cut_time": 43}]
    built(causal, stack, 42, cut(8.25, hard=2))
    with pytest.raises(UsageError, match=r"the cut at latent frame 36 moves its chunk to 43 after the first .* 8 after the last"):
        built(causal, stack, 42, cut(9, hard=2))


def test_the_modes_of_a_switch_differ(causal: Any) -> None:
    modes = ({"switch": "recache"}, {"switch": "flush"}, {"switch": "keep"}, {"switch": "flush", "kept": 1})
    results = [
        rollout_latents(causal, built(causal, [WINDOW, SINK, {"name": "rollout"} | mode], 22, cut(2.25, 3))) for mode in modes
    ]
    for one, other in itertools.combinations(results, 2):
        assert differs(one, other) > 1e-3


@pytest.mark.parametrize(("window", "sink"), [(6, 3), (4, 1), (3, 6), (9, 0)])
def test_a_switch_within_the_first_window_caches_the_sink_again(causal: Any, window: int, sink: int) -> None:
    """LongLive's code runs the last sink + window frames again, or all there are. It protects the sink where that run does not
    begin with the video, so that there the others alone count.
    """
    stack = [WINDOW | {"frames": window}, *([SINK | {"frames": sink}] if sink else []), {"name": "rollout", "switch": "recache"}]
    with torch.no_grad():
        green = causal.text(GREEN)["encoder_hidden_states"]
    for switch in (3, 6, 9, 12):
        calls: list[tuple[bool, int, Tensor]] = []  # whether it is the new prompt's, its frames, and frame 0's keys before it

        def see(module: Any, arguments: Any, named: dict[str, Any], calls: list[tuple[bool, int, Tensor]] = calls) -> None:
            layers = causal.layers(module)[1].processor.cache.layers  # what the second layer keeps depends on the prompt
            kept = layers[1].keys[:, : layers[1].keys.shape[1] // (window + sink)].clone() if layers else torch.zeros(1)
            calls.append((torch.equal(named["encoder_hidden_states"], green), named["hidden_states"].shape[2], kept))

        handle = causal.pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
        try:
            rollout_latents(causal, built(causal, stack, 15, cut(switch / 4), steps=1))
        finally:
            handle.remove()
        assert len(calls) == 5 + 4 + 1  # a step of each chunk, the clean passes, and what runs again
        first = [new for new, _, _ in calls].index(True)
        whole = switch <= window + sink
        assert calls[first][1] == (switch if whole else window), switch
        assert torch.equal(calls[first][2], calls[first + 1][2]) == (not whole and sink > 0), switch


def test_with_guidance_a_switch_equals_the_definition(causal: Any) -> None:
    stack = [WINDOW, SINK]
    latents = rollout_latents(causal, built(causal, stack, 15, cut(2.25), guidance_scale=2.0))
    expected = dense_rollout.rollout(causal, stack, 15, [RED] * 3 + [GREEN] * 2, guidance=2.0)
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize(("kept", "sink"), [(1, 1), (2, 3), (4, 3)])
def test_a_flush_leaves_the_sink_and_the_last_frames(causal: Any, kept: int, sink: int) -> None:
    stack = [WINDOW, {"name": "sink", "frames": sink}, {"name": "rollout", "switch": "flush", "kept": kept}]
    held: list[list[int]] = []
    for index, _ in enumerate(streamed(causal, built(causal, stack, 18, cut(3)))):
        if index % 3 == 0:
            held.append(list(causal.layers(causal.pipe.transformer)[0].processor.cache.frames))
    first = list(range(sink))
    assert held[3] == [*first, *range(6, 12)]
    assert held[4] == [*first, *range(max(12 - kept, 15 - 6), 15)]
    assert held[5] == [*first, *range(18 - 6, 15)]  # and the newest, which nothing will see


@pytest.mark.parametrize(
    ("at_s", "chunk", "first"),
    [(3.0, 3, 4), (3.25, 3, 5), (3.5, 3, 5), (3.75, 3, 5), (2.9375, 3, 4), (3.0625, 3, 5), (3.0, 4, 3), (3.25, 4, 4)],
)
def test_the_switch_is_at_the_first_chunk_that_starts_in_the_new_shot(causal: Any, at_s: float, chunk: int, first: int) -> None:
    """Of three frames chunk 4 holds the latent frames 12, 13, 14, of four chunk 3 holds 12 to 15; a shot at 3.25 s begins with
    pixel frame 52, the last of latent frame 13, and is not in chunk 4.
    """
    with torch.no_grad():
        red, green = (causal.text(prompt)["encoder_hidden_states"] for prompt in (RED, GREEN))
    stack = [WINDOW, {"name": "rollout", "switch": "keep", "chunk": chunk}]
    calls = texts_given(causal, built(causal, stack, 21, cut(at_s), steps=1))
    assert len(calls) == -(-21 // chunk) * 2 - 1  # a step and a clean pass each, but of the last chunk
    for index, text in enumerate(calls):
        assert torch.equal(text, red if index // 2 < first else green), index


def test_in_a_blend_a_chunk_has_the_mean_of_its_frames_texts(causal: Any) -> None:
    plan = built(causal, [WINDOW, {"name": "rollout", "switch": "keep"}], 21, cut(2.75, blend=1), steps=1)
    assert plan.shares is not None
    with torch.no_grad():
        texts = Denoiser(causal, plan, "").texts
    mixed = 0
    for index, text in enumerate(texts_given(causal, plan)):
        share = plan.shares[:, index // 2 * 3 : index // 2 * 3 + 3].mean(axis=1)
        mixed += 0 < share[0] < 1
        assert torch.equal(text, prompt_schedule.blend(texts, share)["encoder_hidden_states"])
    assert mixed > 2


def texts_given(backbone: Any, plan: Plan) -> list[Tensor]:
    """The text of each call of the transformer."""
    given: list[Tensor] = []
    handle = backbone.pipe.transformer.register_forward_pre_hook(
        lambda module, arguments, named: given.append(named["encoder_hidden_states"]), with_kwargs=True
    )
    try:
        rollout_latents(backbone, plan)
    finally:
        handle.remove()
    return given


def test_a_shot_that_no_chunk_shows_is_refused(causal: Any) -> None:
    """A latent frame of chunk 4 alone has the green shot; at an edge of chunks half a second would do."""
    with pytest.raises(UsageError, match=r"shot 2 at 3\.25s is too short to appear in any chunk of 3 latent frames") as caught:
        built(causal, [], 21, cut(3.25, 3.5))
    assert caught.value.expected == "shots of 0.75s or longer, before the video ends"
    assert caught.value.hint
    with pytest.raises(UsageError, match=r"shot 3 at 4\.75s is too short to appear in any chunk"):
        built(causal, [], 20, cut(3.25, 4.75))  # the last latent frame of two that the last chunk shows
    with pytest.raises(UsageError, match=r"shot 2 at 3\.25s is too short to appear in any chunk"):
        built(causal, [], 21, cut(3.25, 3.75))  # two of chunk 4, of which it has not the first
    built(causal, [], 21, cut(3.25, 4))
    built(causal, [], 21, cut(3.25, 3.5, blend=0.25))  # a mean of all of them
    built(causal, [{"name": "rollout", "chunk": 1}], 21, cut(3.25, 3.5))
    for at_s, chunk in itertools.product(np.arange(1, 3, 0.25), (1, 3, 4)):  # as long as a chunk, it is in one
        built(causal, [{"name": "rollout", "chunk": chunk}], 21, cut(at_s, at_s + chunk / 4))
