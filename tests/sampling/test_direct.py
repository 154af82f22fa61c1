"""Resuming inside the stock pipeline equals not having stopped, for every scheduler people use with Wan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from longgen import checkpoint
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan

PROMPT = "a large red circle bouncing on a navy background"
STEPS = 5
SCHEDULERS = {
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm": lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


def run(tiny: Any, plan: Plan, resume: State | None = None) -> tuple[torch.Tensor, dict[int, State]]:
    """Final latents, and every state as a checkpoint would keep it."""
    states: dict[int, State] = {}

    def keep(state: State) -> None:
        tensors, described = checkpoint.pack(state.scheduler, "scheduler")
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        states[state.done] = state._replace(latents=state.latents.clone(), scheduler=checkpoint.unpack(copies, described))

    noise = torch.randn(tiny.latent_shape(plan), generator=torch.Generator().manual_seed(0))
    return sample(Denoiser(tiny, plan, PROMPT), noise, torch.Generator(), keep, resume), states


@pytest.mark.parametrize("name", SCHEDULERS)
def test_resume_from_any_step_gives_the_same_bits(tiny: Any, tiny_plan: Callable[..., Plan], name: str) -> None:
    before, tiny.pipe.scheduler = tiny.pipe.scheduler, SCHEDULERS[name]()
    try:
        plan = tiny_plan("freespec", frames=121, steps=STEPS)
        whole, states = run(tiny, plan)
        assert sorted(states) == list(range(1, STEPS + 1))
        for done in (1, 2, STEPS - 1, STEPS):  # solvers of two steps begin with one of one
            resumed, later = run(tiny, plan, states[done])
            assert torch.equal(resumed, whole), f"resumed after step {done}"
            assert sorted(later) == list(range(done + 1, STEPS + 1))
    finally:
        tiny.pipe.scheduler = before


def test_done_steps_are_not_computed(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    plan = tiny_plan("direct", frames=17, steps=STEPS)
    _, states = run(tiny, plan)
    calls = []
    handle = tiny.pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        run(tiny, plan, states[3])
    finally:
        handle.remove()
    assert len(calls) == 2 * (STEPS - 3)  # with and without the prompt
    assert not hasattr(tiny.pipe.transformer, "_diffusers_hook") or not tiny.pipe.transformer._diffusers_hook.hooks
