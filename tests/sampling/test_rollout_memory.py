"""Rollouts whose cache slots hold frames at other times or means of frames: against the definition, over hundreds of chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longgen import cost
from longgen.attention.kvcache import KVCache
from tests.sampling import dense_rollout
from tests.sampling.test_rollout import BLUE, FLEX, GREEN, RED, Stack, built, cut, differs, rollout_latents
from tests.sampling.test_rollout_given import built as built_from
from tests.sampling.test_rollout_given import frames, of_run, sampled

ROLLING, MEMROPE = {"name": "rolling-sink"}, {"name": "memrope"}
STACKS: dict[str, Stack] = {
    "rolling-sink": [ROLLING | {"frames": 8}],
    "chosen tokens": [{"name": "participative-compression", "frames": 14, "sink": 2, "reuse": 3}],
    "memrope": [MEMROPE | {"frames": 10, "per_token": True, "sink": 2}, FLEX],
}
BIAS = {"name": "bias", "factor": 0.05}


@pytest.mark.parametrize("table", [ROLLING, MEMROPE | {"frames": 12}], ids=lambda table: table["name"])
def test_over_21_chunks_it_equals_the_definition(causal: Any, table: dict[str, Any]) -> None:
    latents = rollout_latents(causal, built(causal, [table], 62, steps=1))
    expected = dense_rollout.rollout(causal, [table], 62, [RED] * 21, steps=1)
    print(f"{table['name']}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize("table", [ROLLING | {"frames": 8}, MEMROPE | {"frames": 12}], ids=lambda table: table["name"])
def test_a_bias_lowers_all_slots_before_the_chunk_but_the_oldest(causal: Any, table: dict[str, Any]) -> None:
    """Whatever frame the oldest slot holds, and means as frames."""
    latents = rollout_latents(causal, built(causal, [table, BIAS], 24, steps=1))
    expected = dense_rollout.rollout(causal, [table, BIAS], 24, [RED] * 8, steps=1)
    print(f"{table['name']}: {differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", STACKS)
def test_in_chunks_of_another_length(causal: Any, name: str, chunk: int) -> None:
    stack, count = [*STACKS[name], {"name": "rollout", "chunk": chunk}], 13 + chunk
    expected = dense_rollout.rollout(causal, stack, count, [RED] * -(-count // chunk), steps=1, chunk=chunk)
    assert differs(rollout_latents(causal, built(causal, stack, count, steps=1)), expected) < 1e-5


@pytest.mark.parametrize("count", [1, 14])
@pytest.mark.parametrize("name", STACKS)
def test_after_given_frames_it_equals_the_definition(causal: Any, name: str, count: int) -> None:
    given = frames(count)
    latents = sampled(causal, built_from(causal, STACKS[name], of_run(count, count), 12), given)
    expected = dense_rollout.rollout(causal, STACKS[name], count + 12, [RED] * (-(-count // 3) + 4), given=given)
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "switch"),
    [("rolling-sink", "recache"), ("rolling-sink", "flush"), ("rolling-sink", "keep"), ("memrope", "recache"), ("memrope", "keep")],
)
def test_a_switch_equals_the_definition(causal: Any, name: str, switch: str) -> None:
    """After 6, 15 and 18 latent frames: in the first window and later, twice running."""
    stack, schedule = [*STACKS[name], {"name": "rollout", "switch": switch}], cut(1.5, 3.75, 4.5, prompts=(RED, GREEN, BLUE, RED))
    prompts = [RED] * 2 + [GREEN] * 3 + [BLUE] + [RED] * 2
    expected = dense_rollout.rollout(causal, stack, 24, prompts, switch=switch)
    assert differs(rollout_latents(causal, built(causal, stack, 24, schedule)), expected) < 1e-5


@pytest.mark.parametrize("table", [ROLLING | {"frames": 12}, MEMROPE | {"frames": 12}], ids=lambda table: table["name"])
def test_while_all_frames_have_a_slot_it_is_the_window_bit_for_bit(causal: Any, table: dict[str, Any]) -> None:
    window = [{"name": "window", "frames": table["frames"]}]
    assert torch.equal(rollout_latents(causal, built(causal, [table], 12)), rollout_latents(causal, built(causal, window, 12)))
    longer, plain = (rollout_latents(causal, built(causal, stack, 18)) for stack in ([table], window))
    assert torch.equal(longer[:, :, :12], plain[:, :, :12])
    assert differs(longer, plain) > 1e-3


def test_every_parameter_of_memrope_matters(causal: Any) -> None:
    by_token = MEMROPE | {"per_token": True}
    others: list[dict[str, Any]] = [{}, {"frames": 10}, {"sink": 2}, {"long": 0.5}, {"short": 0.9}]
    variants = [*(MEMROPE | other for other in others), by_token, by_token | {"adaptive": True}]
    results = [rollout_latents(causal, built(causal, [variant], 21, steps=1)) for variant in variants]
    assert min(differs(one, other) for index, one in enumerate(results) for other in results[:index]) > 1e-4


@pytest.mark.parametrize("name", STACKS)
def test_memory_is_constant_over_400_chunks(causal: Any, name: str) -> None:
    """Of the cache, without the model around it: the buffers of the first chunk serve, and are what the plan's cost counts."""
    plan, spec = built(causal, STACKS[name], 1200, guidance_scale=2.0), causal.spec
    tokens, generator = plan.tokens // plan.frames_lat, torch.Generator().manual_seed(0)
    cache = KVCache(causal.rotary(), plan.slots_lat, plan.columns_lat, plan.keeps_queries)
    stock = torch.ones(3 * tokens, spec.head_dim // 2), torch.zeros(3 * tokens, spec.head_dim // 2)
    buffers, sizes, most = set(), set(), 0
    for index, (start, count) in enumerate(plan.chunks):
        cache.open(start, count, *plan.programs_for_chunk(start + count, count, cache.frames))
        most = max(most, len(cache.frames) + count)
        q, k, v = torch.randn(3, 2, count * tokens, spec.heads, spec.head_dim, generator=generator)
        for cache.writing in (False, True):
            assert cache.attend(0, 0, lambda q, k, v: q + k.mean() + v.mean(), stock, q, k, v).isfinite().all()
        cache.close(start)
        (layer,) = cache.layers.values()
        held = *layer.stored, layer.rotated_keys, layer.column_values
        buffers.add(tuple(x.data_ptr() for x in held))
        if index > 10:
            sizes.add(sum(x.nbytes for x in (*held, *(layer.memory or ())[:2])))
    text = 2 * 2 * spec.text_tokens * spec.width * 4
    assert len(plan.chunks) == 400
    assert most == plan.slots_lat
    assert len(buffers) == 1
    assert sizes == {cost.cache_bytes(plan, "fp32") // spec.layers - text}
