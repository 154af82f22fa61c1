"""Heads that see different frames in a rollout: against the definition without a cache, and where nothing is hidden."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from longgen import cost, describe, planner, preset
from longgen.attention.head_groups import frame_shares
from longgen.backbones.registry import SPECS
from longgen.context.dummy_forcing import DummyForcing
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.plan import Plan
from tests.sampling import dense_rollout
from tests.sampling.test_rollout import (
    ALL_FRAMES,
    BLUE,
    FLEX,
    GREEN,
    REBASE,
    RED,
    SINK,
    Stack,
    built,
    cut,
    differs,
    rollout_latents,
    states_of,
)
from tests.sampling.test_rollout_given import built as built_on
from tests.sampling.test_rollout_given import frames, of_file, sampled

PLAIN = {"name": "dummy-forcing"}
SETTINGS: dict[str, Stack] = {
    "plain": [PLAIN],
    "few dummies": [PLAIN | {"dummy": 0.2}],
    "none": [PLAIN | {"dummy": 0.0}],
    "nearly all": [PLAIN | {"dummy": 0.9}],
    "of the chunk alone": [PLAIN | {"last": 0}],
    "wider": [PLAIN | {"first": 2, "middle": 4, "last": 2, "after": 9}],
    "a wider last": [PLAIN | {"middle": 1, "last": 3}],
    "sink": [PLAIN, SINK | {"frames": 2}],
    "rebase": [PLAIN, REBASE],
    "flex": [PLAIN, FLEX],
    "one layer": [PLAIN | {"layers": [1]}, ALL_FRAMES | {"layers": [0, 2]}],
    "early steps": [PLAIN | {"steps": [0, 0.5]}, ALL_FRAMES | {"steps": [0.5, 1]}],
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_dense_attention_with_a_mask_for_each_head(causal: Any, name: str) -> None:
    latents = rollout_latents(causal, built(causal, SETTINGS[name], 19))
    expected = dense_rollout.rollout(causal, SETTINGS[name], 19, [RED] * 7)
    print(f"{name}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5


def test_every_setting_matters(causal: Any) -> None:
    results = [rollout_latents(causal, built(causal, stack, 19)) for stack in SETTINGS.values()]
    for (one, first), (other, second) in itertools.combinations(zip(SETTINGS, results, strict=True), 2):
        assert differs(first, second) > 1e-3, (one, other)


@pytest.mark.parametrize("switch", ["recache", "flush", "keep"])
def test_a_switch_equals_the_definition(causal: Any, switch: str) -> None:
    """Before heads are told apart, right after, and later."""
    stack = [PLAIN, {"name": "rollout", "switch": switch}]
    latents = rollout_latents(causal, built(causal, stack, 18, cut(0.75, 1.5, prompts=(RED, GREEN, BLUE))))
    expected = dense_rollout.rollout(causal, stack, 18, [RED, GREEN, *[BLUE] * 4], switch=switch)
    print(f"{switch}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5
    late = rollout_latents(causal, built(causal, stack, 18, cut(3)))
    assert differs(late, dense_rollout.rollout(causal, stack, 18, [*[RED] * 4, *[GREEN] * 2], switch=switch)) < 1e-5


def test_with_guidance_both_texts_count(causal: Any) -> None:
    latents = rollout_latents(causal, built(causal, [PLAIN], 12, guidance_scale=2.0))
    assert differs(latents, dense_rollout.rollout(causal, [PLAIN], 12, [RED] * 4, guidance=2.0)) < 1e-5


@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_given_frames_equal_the_definition(causal: Any, count: int) -> None:
    given = frames(count)
    latents = sampled(causal, built_on(causal, [PLAIN], of_file(count), 9), given)
    expected = dense_rollout.rollout(causal, [PLAIN], count + 9, [RED] * (-(-count // 3) + 3), given=given)
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize("at_s", [(), (1.5, 3)])
def test_a_run_that_goes_on_makes_the_same_bits(causal: Any, at_s: tuple[float, ...]) -> None:
    plan = built(causal, [PLAIN], 16, cut(*at_s) if at_s else None)
    whole, states, chunks = states_of(causal, plan)
    for state in states:
        resume = copy.deepcopy(state._replace(latents=chunks[: state.done]))
        assert torch.equal(rollout_latents(causal, plan, resume=resume), whole), state.done


@pytest.mark.parametrize(
    ("stack", "frames_lat"),
    [([PLAIN | {"dummy": 0.0, "first": 99, "middle": 99}], 19), ([PLAIN], 6), ([PLAIN | {"first": 99, "middle": 99}], 19)],
    ids=str,
)
def test_where_nothing_is_hidden_it_is_the_rollout_bit_for_bit(causal: Any, stack: Stack, frames_lat: int) -> None:
    plan = built(causal, stack, frames_lat)
    neutral = torch.equal(rollout_latents(causal, plan), rollout_latents(causal, built(causal, [ALL_FRAMES], frames_lat)))
    assert neutral == (stack[0].get("dummy") == 0 or frames_lat == 6)
    assert (plan.head_groups is None) == neutral


def test_the_assignment_is_the_codes() -> None:
    """Numbers of dynamic_head_programming (28128ed) for shares that are no model's."""
    i = np.arange(360)
    shares = np.stack([0.5 + 0.5 * np.sin(1.7 * i * i), 0.5 + 0.5 * np.cos(2.3 * i), 1 + 0 * i], axis=-1).reshape(30, 12, 3)
    groups = DummyForcing().assign(shares)
    assert {name: int((groups == name).sum()) for name in ("first", "middle", "dummy")} == {"first": 91, "middle": 89, "dummy": 180}
    assert " ".join(groups[0]) == "middle first dummy middle first dummy dummy first first dummy dummy middle"
    assert " ".join(groups[17]) == "dummy middle dummy first dummy dummy middle dummy first middle dummy dummy"


@pytest.mark.parametrize("columns", [False, True])
def test_shares_are_those_of_the_softmax(columns: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n, c, k, heads = 7, 2, 5, 3
    q, keys = (torch.randn(2, count * n, heads, 8, generator=generator) for count in (c, k))
    logits = np.stack([np.linspace(0.5, 2, c * k).reshape(c, k), np.linspace(-3, 3, c * k).reshape(c, k)]) if columns else None
    found = frame_shares(q, keys, n, logits)
    rows = [0, 13]  # 7 / 3 of them, at both ends
    for head, frame in itertools.product(range(heads), range(k)):
        masses = []
        for sample, row in itertools.product(range(2), rows):
            score = (keys[sample, :, head].double() @ q[sample, row, head].double()) / 8**0.5
            if logits is not None:
                factor, addend = (torch.tensor(table[row // n]).repeat_interleave(n) for table in logits)
                score = score * factor + addend
            masses.append(score.softmax(0)[frame * n : (frame + 1) * n].sum())
        assert found[head, frame].item() == pytest.approx(float(torch.stack(masses).mean()), rel=1e-5)


# What the plan says


def planned(frames_lat: int, spec: Any = SPECS["self-forcing"], **more: Any) -> Plan:
    stack = preset.from_tables({"name": "s", "technique": [PLAIN | more]}, "s")
    return planner.build(stack.model_copy(update={"sample": preset.Sample(frames=4 * (frames_lat - 1) + 1)}), spec)


@pytest.mark.parametrize("frames_lat", [9, 12, 30])
def test_the_groups_see_what_the_paper_says(frames_lat: int) -> None:
    clip, start = Geometry(frames_lat, 21, (1.0,), chunk_lat=3), frames_lat - 3
    groups = DummyForcing(first=2, middle=4, last=1).branches(full_attention(frames_lat, 3), clip)
    seen = {"first": {0, 1}, "middle": set(range(start - 4, start)), "dummy": {start - 1}}
    for name, frame_plan in groups.items():
        (one,) = frame_plan.passes
        assert all(np.flatnonzero(row).tolist() == sorted({*seen[name], *range(start, frames_lat)}) for row in one.visible)
        assert np.array_equal(one.rel, full_attention(frames_lat, 3).passes[0].rel)


def test_its_attention_is_counted_as_the_most_it_can_be() -> None:
    """Frame pairs of 12 chunks, each run in four steps and once for the cache: half of the heads see one frame of the past, the
    others one or three."""
    chunks = [3 * 3, 6 * 3, *[0.5 * 4 * 3 + 0.5 * 6 * 3] * 10]
    pairs = 5 * sum(chunks) - chunks[-1]
    assert cost.attention_ratio(planned(36)) == pytest.approx(pairs / (36**2 * 4))
    assert cost.attention_ratio(planned(36, middle=1, first=5)) == pytest.approx(
        (5 * sum(most := [9, 18, *[0.5 * 4 * 3 + 0.5 * 8 * 3] * 10]) - most[-1]) / (36**2 * 4))  # fmt: skip
    assert planned(36).slots_lat == 7


def test_the_plan_says_who_sees_what_and_what_is_not_known() -> None:
    said = describe.plan_text(planned(81), "bf16", "none")
    for name in ("first", "middle", "dummy"):
        assert f"branch {name}: layers all 30" in said
        assert f"in the first layer and step, by heads of {name}:" in said
    assert "frames 78 to 80 see 0, 78-80 of 81" in said
    assert "180 of 360 heads in dummy, the others in first or middle" in said
    assert "costs are what they are at most" in said
    assert "at most" not in describe.plan_text(planned(6), "bf16", "none")


@pytest.mark.parametrize("after", [1, 3])
def test_heads_cannot_be_told_apart_without_a_past(after: int) -> None:
    with pytest.raises(UsageError, match=f"dummy-forcing measures heads after {after} latent frames.*first chunk has 3") as caught:
        planned(36, after=after)
    assert caught.value.expected == "4 or more"
    assert caught.value.hint == "--set dummy-forcing.after=6"
    planned(36, after=4)
