"""Participative compression against the definition, which chooses token by token, and where its choices have to be the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.sampling import dense_rollout
from tests.sampling.test_rollout import FLEX, GREEN, RED, built, cut, differs, rollout_latents

PC = {"name": "participative-compression"}
SMALL = PC | {"frames": 12, "sink": 2, "top": 2}  # 8 slots after a choice: every second chunk


@pytest.mark.parametrize(
    "stack",
    [[SMALL], [SMALL | {"reuse": 1, "recent": 5}], [SMALL | {"reuse": 0, "frames": 8, "top": 1}, FLEX],
     [SMALL | {"frames": 15, "sink": 0}, {"name": "bias", "factor": 0.05}]],
    ids=["default", "once", "every chunk, flex", "every third, bias"],
)  # fmt: skip
def test_it_equals_the_definition(causal: Any, stack: list[dict[str, Any]]) -> None:
    expected = dense_rollout.rollout(causal, stack, 30, [RED] * 10, steps=1)
    latents = rollout_latents(causal, built(causal, stack, 30, steps=1))
    print(f"{differs(latents, expected):.1e}")
    assert differs(latents, expected) < 1e-5


@pytest.mark.parametrize("switch", ["recache", "keep"])
def test_a_switch_equals_the_definition(causal: Any, switch: str) -> None:
    """After 6, 15 and 18 latent frames: in the first window, before a chunk that chooses and before one that does not."""
    stack, schedule = [SMALL, {"name": "rollout", "switch": switch}], cut(1.5, 3.75, 4.5, prompts=(RED, GREEN, RED, GREEN))
    prompts = [RED] * 2 + [GREEN] * 3 + [RED] + [GREEN] * 2
    expected = dense_rollout.rollout(causal, stack, 24, prompts, switch=switch)
    assert differs(rollout_latents(causal, built(causal, stack, 24, schedule)), expected) < 1e-5


def test_while_all_frames_have_a_slot_it_is_the_window_bit_for_bit(causal: Any) -> None:
    window = [{"name": "window", "frames": 12}]
    assert torch.equal(rollout_latents(causal, built(causal, [SMALL], 12)), rollout_latents(causal, built(causal, window, 12)))
    longer, plain = (rollout_latents(causal, built(causal, stack, 18)) for stack in ([SMALL], window))
    assert torch.equal(longer[:, :, :12], plain[:, :, :12])
    assert differs(longer, plain) > 1e-3


def test_every_parameter_matters(causal: Any) -> None:
    others: list[dict[str, Any]] = [{}, {"frames": 9}, {"sink": 1}, {"top": 1}, {"recent": 5}, {"reuse": 1}]
    results = [rollout_latents(causal, built(causal, [SMALL | other], 30, steps=1)) for other in others]
    assert min(differs(one, other) for index, one in enumerate(results) for other in results[:index]) > 1e-4
