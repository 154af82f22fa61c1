"""Direct sampling: the backbone's own pipeline, all frames at once, with a checkpoint after every step.

The pipeline stays as it is. Its step callback hands out the latents and the scheduler's state; on resume a hook on the
transformer answers the steps that are done without computing them, and the callback then puts latents and scheduler
state back, so that the rest runs on exactly what the interrupted run had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from longgen.loops import prompt_schedule
from longgen.pipelines import finite, foreign_hooks
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.step_state import StepState
from longgen.plan import Plan

_AROUND = "longgen_around"
_SEEN = ("latents", "prompt_embeds", "negative_prompt_embeds")  # what the callback gets, where the pipeline has it


class State(NamedTuple):
    """A run after `done` steps: the pipeline's latents, what its scheduler keeps, and the generator's state."""

    done: int
    latents: Tensor
    scheduler: dict[str, Any]
    generator: Tensor


Through = Callable[[torch.nn.Module, Callable[..., Any], dict[str, Any]], Any]


class _Around(ModelHook):
    """Model calls go through `through(transformer, call, arguments)`; those of the steps before `done` are answered with zeros."""

    def __init__(self, done: int, step_state: StepState, through: Through | None) -> None:
        super().__init__()
        self.done, self.step_state, self.through = done, step_state, through

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.step_state.index < self.done:
            return (torch.zeros_like(kwargs["hidden_states"]),)
        if self.through is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        assert not args
        return self.through(module, self.fn_ref.original_forward, kwargs)


def sample(
    backbone: PipelineBackbone,
    plan: Plan,
    prompt: str,
    latents: Tensor,
    on_step: Callable[[State], None],
    resume: State | None = None,
    generator: torch.Generator | None = None,
    through: Through | None = None,
) -> Tensor:
    """Denoises `latents` [1, C, T, h, w] by `plan`; returns the final latents [1, C, T, h, w], before the VAE.

    on_step: called after each step with the run's state, whose latents are finite; the state is only valid during the call.
    generator: for schedulers that draw noise at every step. through: takes the model's calls, see `_Around`. Raises LonggenError
    after a step whose latents are not finite.
    """
    if resume is not None and resume.done == plan.steps:
        return backbone.unpacked(resume.latents, plan)
    if resume is not None:
        foreign_hooks.check_uncached(backbone.transformers, "what it held is lost when a run goes on")
    if plan.schedule is not None and through is None:
        through = prompt_schedule.in_every_frame(backbone, plan)
    step_state = backbone.step_state
    step_state.index = 0
    generator = generator or torch.Generator()
    start = backbone.packed(latents)
    before = start  # the latents that a step begins with

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal before
        if resume is None or index + 1 > resume.done:
            for technique, steps in plan.refinements:
                if index in steps:
                    clean, slope = backbone.predict_x0(before, tensors["latents"], index, plan)
                    change = technique.change(clean, slope, step_state.step)
                    tensors["latents"] = tensors["latents"] + backbone.packed(change).to(tensors["latents"])
            texts = {name: text for name, text in tensors.items() if name != "latents" and text is not None}
            finite.check_latents(tensors["latents"], backbone.model_settings, f"step {index + 1} of {plan.steps}", texts)
            on_step(State(index + 1, tensors["latents"], scheduler_state(pipe.scheduler), generator.get_state()))
        elif index + 1 == resume.done:
            tensors["latents"] = resume.latents.to(tensors["latents"])
            generator.set_state(resume.generator)
            for name, value in resume.scheduler.items():
                now = getattr(pipe.scheduler, name)
                setattr(pipe.scheduler, name, _to(value, now.device if isinstance(now, Tensor) else backbone.device))
        before = tensors["latents"]
        step_state.index = min(index + 1, plan.steps - 1)
        return tensors

    registries = [HookRegistry.check_if_exists_or_initialize(transformer) for transformer in backbone.transformers]
    hooked = resume is not None or through is not None
    for registry in registries if hooked else ():
        registry.register_hook(_Around(resume.done if resume else 0, step_state, through), _AROUND)
    try:
        with backbone.installed(plan):
            final = backbone.pipe(
                **backbone.call_arguments(plan, prompt), latents=start, generator=generator,
                output_type="latent", callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[name for name in _SEEN if name in backbone.pipe._callback_tensor_inputs],
            ).frames  # fmt: skip
        return backbone.unpacked(final, plan)
    finally:
        for transformer in backbone.transformers:
            if hasattr(transformer, "_reset_stateful_cache"):  # the pipeline does so itself, but not after an error
                transformer._reset_stateful_cache()
        for registry in registries if hooked else ():
            registry.remove_hook(_AROUND, recurse=False)


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """What `scheduler` keeps between steps: its tensors, numbers and lists of these."""
    simple = (Tensor, int, float, str, type(None))
    return {
        name: value
        for name, value in vars(scheduler).items()
        if not name.startswith("_internal")
        and (isinstance(value, simple) or (isinstance(value, list) and all(isinstance(item, simple) for item in value)))
    }


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value
