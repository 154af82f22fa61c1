"""A rollout that begins with clean frames, against its definition without a cache: of pictures, videos and another rollout."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import cost, describe, planner, preset
from longgen.backbones.registry import SPECS
from longgen.compare.grid import seams
from longgen.conditions import Conditions
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.past import Past
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.schedule import PromptSchedule, Shot
from tests.sampling import dense_rollout
from tests.sampling.test_rollout import (
    BIAS,
    BLUE,
    FLEX,
    GREEN,
    REBASE,
    RED,
    SETTINGS,
    SINK,
    WINDOW,
    Stack,
    cut,
    differs,
    rollout_latents,
)  # fmt: skip
from tests.sampling.test_rollout import built as built_plain

SHAPE = (1, 48, 4, 6)  # of the frames of `causal`: B, C, h, w


def frames(count: int, seed: int = 5) -> Tensor:
    latents = torch.randn(SHAPE[0], SHAPE[1], count, *SHAPE[2:], generator=torch.Generator().manual_seed(seed))
    return latents * 0.5


def of_file(count_lat: int) -> Past:
    """A video file of so many latent frames; it is never opened here."""
    return Past(Path("ball.mp4"), "0" * 64, 4 * count_lat - 3, 16, (96, 64))


def of_run(held: int, shown: int, prompts: tuple[str, ...] = (RED,), rows: Any = ((0, (1.0,)),)) -> Past:
    return Past(Path("ball.run"), "1" * 64, 4 * shown - 3, 16, (96, 64), held, shown_lat=shown, latent_shape=(48, 4, 6),
                backbone="tiny-causal", seed=7, prompts=prompts, rows=rows)  # fmt: skip


def built(backbone: Any, stack: Stack, past: Past, new_lat: int, schedule: PromptSchedule | None = None, **more: Any) -> Plan:
    given = preset.Sample(**{"frames": 4 * new_lat, "steps": 2} | more)
    stack_preset = preset.from_tables({"name": "stack", "technique": stack}, "stack").model_copy(update={"sample": given})
    return planner.build(stack_preset, backbone.spec, schedule, conditions=Conditions(past=past))


def sampled(backbone: Any, plan: Plan, given: Tensor, prompt: str = RED) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, prompt, Given(given))
    return sample(denoiser, denoiser.initial_noise(generator), generator)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("name", ["window", "rebase", "flex", "windows that differ by layer", "no window"])
def test_given_frames_equal_the_definition(causal: Any, name: str, count: int) -> None:
    given, new = frames(count), 10
    plan = built(causal, SETTINGS[name], of_file(count), new)
    assert (plan.given_lat, plan.frames_lat, plan.rounds) == (count, count + new, 4)
    latents = sampled(causal, plan, given)
    prompts = [RED] * (-(-count // 3) + 4)
    expected = dense_rollout.rollout(causal, SETTINGS[name], count + new, prompts, given=given)
    assert torch.equal(latents[:, :, :count], given)
    print(f"{name}, {count}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    other = sampled(causal, plan, frames(count, 6))
    assert differs(other[:, :, count:], latents[:, :, count:]) > 1e-3


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_in_chunks_of_another_length(causal: Any, chunk: int) -> None:
    """Frame by frame, a picture is what every frame is: a chunk of one."""
    stack, given = [WINDOW, SINK, {"name": "rollout", "chunk": chunk}], frames(1)
    latents = sampled(causal, built(causal, stack, of_file(1), 8), given)
    expected = dense_rollout.rollout(causal, stack, 9, [RED] * (1 + 8 // chunk), chunk=chunk, given=given)
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize("switch", ["recache", "flush", "keep"])
def test_another_prompt_than_the_run_had_is_a_switch(causal: Any, switch: str) -> None:
    stack, given = [WINDOW, SINK, REBASE, {"name": "rollout", "switch": switch}], frames(12)
    plan = built(causal, stack, of_run(12, 11), 10, None)
    latents = sampled(causal, plan, given, GREEN)
    expected = dense_rollout.rollout(causal, stack, 21, [RED] * 4 + [GREEN] * 3, switch=switch, given=given)
    assert differs(latents, expected) < 1e-5
    assert differs(sampled(causal, plan, given, RED), latents) > 1e-3


def test_a_schedule_counts_from_the_first_new_frame(causal: Any) -> None:
    """The 11th latent frame is the first new one; it is the last of a chunk that is there. At 1.5 s, 6 frames on, blue begins."""
    stack, given, blue = [WINDOW, SINK], frames(12), cut(1.75, prompts=(GREEN, BLUE))
    plan = built(causal, stack, of_run(12, 10), 12, blue)
    prompts, shares = plan.chunk_texts("")
    assert prompts == (RED, GREEN, BLUE)
    assert shares.argmax(axis=1).tolist() == [0] * 4 + [1, 1, 2, 2][: len(shares) - 4]
    expected = dense_rollout.rollout(causal, stack, 22, [RED] * 4 + [GREEN] * 2 + [BLUE] * 2, given=given)
    assert differs(sampled(causal, plan, given, ""), expected) < 1e-5


def test_a_run_that_was_made_with_several_prompts_is_run_again_with_them(causal: Any) -> None:
    rows = ((0, (1.0, 0.0)), (6, (0.0, 1.0)))
    stack, given = [WINDOW, SINK], frames(12)
    plan = built(causal, stack, of_run(12, 12, (RED, GREEN), rows), 6)
    assert plan.chunk_texts(GREEN)[0] == (RED, GREEN)
    assert plan.chunk_texts(BLUE)[0] == (RED, GREEN, BLUE)
    for prompt in (GREEN, BLUE):
        expected = dense_rollout.rollout(causal, stack, 18, [RED] * 2 + [GREEN] * 2 + [prompt] * 2, given=given)
        assert differs(sampled(causal, plan, given, prompt), expected) < 1e-5


def test_two_halves_are_one_piece_in_every_setting(causal: Any) -> None:
    for name, stack in SETTINGS.items():
        whole = rollout_latents(causal, built_plain(causal, stack, 21))
        plan = built(causal, stack, of_run(9, 8), 13)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3 * 2):
            torch.randn(SHAPE[0], SHAPE[1], 3, *SHAPE[2:], generator=generator)
        given = Given(whole[:, :, :9], generator=generator.get_state(), carried=(None, None))
        denoiser = Denoiser(causal, plan, RED, given)
        later = sample(denoiser, denoiser.initial_noise(generator), torch.Generator().manual_seed(7))
        assert torch.equal(later, whole), name


def test_a_cut_of_the_run_before_is_made_again(causal: Any) -> None:
    """Red, a cut to green in chunk 2, and on with green after chunk 3; and then a cut of its own to blue."""
    stack, given = [WINDOW, SINK, BIAS, {"name": "rollout", "switch": "flush"}], frames(12)
    past = replace(of_run(12, 12, (RED, GREEN), ((0, (1.0, 0.0)), (6, (0.0, 1.0)))), cuts=(6,))
    plan = built(causal, stack, past, 12, cut(1.5, prompts=(GREEN, BLUE), hard=2))
    assert plan.cut_starts == (6, 18)
    prompts = [RED] * 2 + [GREEN] * 4 + [BLUE] * 2
    expected = dense_rollout.rollout(causal, stack, 24, prompts, switch="flush", given=given, cuts={2: 45, 6: 45})
    assert differs(sampled(causal, plan, given, ""), expected) < 1e-5


def test_the_cache_has_no_more_slots_than_in_one_piece(causal: Any) -> None:
    stack = [WINDOW, SINK, FLEX]
    assert built(causal, stack, of_run(24, 22), 60).slots_lat == built_plain(causal, stack, 90).slots_lat == 9
    assert built(causal, [WINDOW], of_file(1), 9).slots_lat == 6


def test_nothing_is_sampled_where_the_last_chunk_holds_it(causal: Any) -> None:
    plan, given = built(causal, [WINDOW], of_run(12, 10), 2), frames(12)
    assert (plan.rounds, plan.given_lat, plan.frames_lat, plan.new_px) == (0, 12, 12, 8)
    assert torch.equal(sampled(causal, plan, given), given)
    assert cost.ratio(plan) == 0
    assert "0 chunks of 3 latent frames after 12 that are given" in describe.plan_text(plan, "fp32", "none")


def test_what_is_given_costs_one_pass(causal: Any) -> None:
    """Clean passes of 4 chunks of 12 + 12 frames; steps and clean pass of the new ones; all at full attention."""
    stack = [{"name": "window", "frames": 1000}]
    whole, half = built_plain(causal, stack, 24), built(causal, stack, of_run(12, 12), 12)
    by_chunk = [cost.flops(whole, None, (3, *whole.grid[1:]), 3 * number * 6) for number in range(1, 9)]
    direct = 2 * cost.flops(whole, None, whole.grid)
    assert cost.ratio(whole) == pytest.approx((3 * sum(by_chunk) - by_chunk[-1]) / direct)
    assert cost.ratio(half) == pytest.approx((sum(by_chunk[:4]) + 3 * sum(by_chunk[4:]) - by_chunk[-1]) / direct)


def test_the_plan_says_what_is_given(causal: Any) -> None:
    plan = built(causal, [WINDOW, SINK], of_run(24, 22), 10)
    text = describe.plan_text(plan, "fp32", "none")
    assert "40 frames, 2.5 s at 16 fps" in text
    assert "3 chunks of 3 latent frames after 24 that are given" in text
    assert "24 latent frames of ball.run are handed over as they are" in text
    assert "with its own seed, 7, its noise goes on" in text
    assert describe.plan_dict(plan)["given_latent_frames"] == 24
    assert (plan.new_px, plan.written_px, plan.frames_px) == (40, 40, 125)
    joined = replace(plan, conditions=replace(plan.conditions, join=True))
    assert joined.written_px == 125
    assert any("rounded 39 new frames up to 40" in note for note in built(causal, [], of_run(24, 22), 10, frames=39).notes)


def test_frames_of_a_file_are_those_nearest_in_time() -> None:
    past = Past(Path("ball.mp4"), "", 50, 25, (96, 64))
    indices = past.sampled(16)
    assert len(indices) == 32
    assert indices[-1] == 49
    assert indices.tolist() == [int(np.floor(49 - 25 * k / 16 + 0.5)) for k in reversed(range(32))]
    assert past.sampled(25).tolist() == list(range(50))
    assert len(past.sampled(50)) == 99
    varying = replace(past, frames_px=4, times=(0.0, 0.1, 0.5, 1.0, 1.1))
    assert varying.sampled(10).tolist() == [0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert replace(past, frames_px=1).sampled(16).tolist() == [0]


def test_another_models_latents_and_another_size_are_refused(causal: Any) -> None:
    with pytest.raises(UsageError, match=r"holds latents of wan2\.1-1\.3b, which tiny-causal cannot read") as caught:
        built(causal, [], replace(of_run(12, 12), backbone="wan2.1-1.3b", latent_shape=(16, 8, 12)), 10)
    assert "--backbone" in caught.value.hint
    with pytest.raises(UsageError, match=r"ball\.run is 96x64, and 64x64 is asked"):
        built(causal, [], of_run(12, 12), 10, size=(64, 64))
    assert built(causal, [], of_run(12, 12), 10).size == (96, 64)
    assert built(causal, [], replace(of_run(12, 12), fps=24), 10).fps == 24


def test_a_model_of_text_alone_goes_on_from_nothing() -> None:
    with pytest.raises(UsageError, match=r"--continue: wan2\.1-1\.3b is made to start from text alone") as caught:
        planner.build(preset.load("direct"), SPECS["wan2.1-1.3b"], conditions=Conditions(past=of_file(3)))
    assert "tiny-causal" in caught.value.expected


def test_the_join_is_a_seam(causal: Any) -> None:
    """Of 12 latent frames 10 are the earlier video's, 37 frames: the first new one is in the middle of a chunk."""
    plan = built(causal, [WINDOW], of_run(12, 10), 8)
    assert seams(plan) == [8, 20]
    assert seams(replace(plan, conditions=replace(plan.conditions, join=True))) == [37, 45, 57]


def test_a_schedules_first_shot_must_have_a_chunk_of_its_own(causal: Any) -> None:
    schedule = PromptSchedule((Shot(Fraction(0), GREEN), Shot(Fraction(1, 4), BLUE)))
    with pytest.raises(UsageError, match="too short to appear"):
        built(causal, [], of_run(12, 10), 12, schedule)
