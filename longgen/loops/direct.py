"""Direct sampling: the backbone's own pipeline, all frames at once, with a checkpoint after every step.

The pipeline stays as it is. Its step callback hands out the latents and the scheduler's state; on resume a hook on the
transformer answers the steps that are done without computing them, and the callback then puts latents and scheduler
state back, so that the rest runs on exactly what the interrupted run had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from longgen.loops import OnStep, State
from longgen.loops.denoiser import Denoiser
from longgen.loops.prompt_schedule import TextPerFrame
from longgen.pipelines import finite, foreign_hooks, parallel
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.hook_removal import keep_hooks

_HOOK = "longgen_around"
_CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")  # those that the pipeline has

ModelCall = Callable[[torch.nn.Module, Callable[..., Any], dict[str, Any], int], Any]
"""Stands in for a model call: (transformer, its forward, the arguments, the number of the call within the step)."""


def direct(
    denoiser: Denoiser, noise: Tensor, generator: torch.Generator, on_step: OnStep, resume: State | None
) -> Iterator[Tensor]:
    """Yields the latents of all frames, [1, C, T, h, w], at the end."""
    plan = denoiser.plan
    model_call = None if plan.shares is None else TextPerFrame(denoiser.texts, plan.shares, denoiser.backbone.step_state)
    yield run_pipeline(denoiser, noise, generator, on_step, resume, model_call)


def run_pipeline(
    denoiser: Denoiser,
    noise: Tensor,
    generator: torch.Generator,
    on_step: OnStep,
    resume: State | None,
    model_call: ModelCall | None,
) -> Tensor:
    """The final latents [1, C, T, h, w], before the VAE, of the pipeline's own loop over `noise` [1, C, T, h, w].

    generator: for schedulers that draw noise at every step. Raises LonggenError after a step whose latents are not finite.
    """
    backbone, plan, given = denoiser.backbone, denoiser.plan, denoiser.given
    if resume is not None and resume.done == plan.steps:
        denoiser.streams.update(resume.streams)
        return backbone.finished(backbone.unpacked(resume.latents, plan), given)
    if resume is not None:
        foreign_hooks.check_uncached(backbone.transformers, "what it held is lost when a run goes on")
    with parallel.split(backbone, plan):
        return _run(denoiser, noise, generator, on_step, resume, model_call)


def _run(
    denoiser: Denoiser,
    noise: Tensor,
    generator: torch.Generator,
    on_step: OnStep,
    resume: State | None,
    model_call: ModelCall | None,
) -> Tensor:
    """`run_pipeline` on the ranks that there are."""
    backbone, plan, given = denoiser.backbone, denoiser.plan, denoiser.given
    backbone.step_state.index = 0
    latents = backbone.started(noise, given)
    after_step = _StepCallback(denoiser, latents, generator, on_step, resume)
    registries = [HookRegistry.check_if_exists_or_initialize(transformer) for transformer in backbone.transformers]
    hooked = registries if resume is not None or model_call is not None else []
    for registry in hooked:
        registry.register_hook(_ModelCallHook(backbone, resume.done if resume else 0, model_call), _HOOK)
    for transformer in backbone.transformers:
        keep_hooks(transformer)
    try:
        with backbone.conditioned(plan, given) as conditioning, backbone.installed(plan):
            output = backbone.pipe(
                **backbone.call_arguments(plan, denoiser.prompt), **conditioning, latents=latents,
                generator=generator, output_type="latent",
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[
                    name for name in (*_CALLBACK_TENSORS, *backbone.streams) if name in backbone.pipe._callback_tensor_inputs
                ],
            )  # fmt: skip
        denoiser.streams.update(after_step.streams)
        return backbone.finished(backbone.unpacked(backbone.last(output, after_step.before), plan), given)
    finally:
        for transformer in backbone.transformers:
            if hasattr(transformer, "_reset_stateful_cache"):  # the pipeline does so itself, but not after an error
                transformer._reset_stateful_cache()
        for registry in hooked:
            registry.remove_hook(_HOOK, recurse=False)


class _ModelCallHook(ModelHook):
    """Model calls go through `model_call`; those of the steps before `done` are answered with zeros."""

    def __init__(self, backbone: PipelineBackbone, done: int, model_call: ModelCall | None) -> None:
        super().__init__()
        self.backbone, self.done, self.model_call = backbone, done, model_call
        self.last_step, self.branch = -1, 0

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        step = self.backbone.step_state.index
        if step < self.done:
            return self.backbone.unanswered(kwargs)
        if self.model_call is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        assert not args
        self.branch = self.branch + 1 if step == self.last_step else 0  # guidance can take two calls a step
        self.last_step = step
        return self.model_call(module, self.fn_ref.original_forward, kwargs, self.branch)


class _StepCallback:
    """What the pipeline calls after each step: refinements, the checkpoint, and on resume the saved state."""

    def __init__(
        self, denoiser: Denoiser, latents: Tensor, generator: torch.Generator, on_step: OnStep, resume: State | None
    ) -> None:
        self.denoiser, self.generator, self.on_step, self.resume = denoiser, generator, on_step, resume
        self.before = latents  # those that a step begins with
        self.streams: dict[str, Tensor] = {}

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        done, plan, step_state = index + 1, self.denoiser.plan, self.denoiser.backbone.step_state
        self.streams = {name: tensors[name] for name in self.denoiser.backbone.streams}
        if self.resume is None or done > self.resume.done:
            before, after = self.before, tensors["latents"]
            self._refine(index, tensors)
            texts = {name: text for name, text in tensors.items() if name in _CALLBACK_TENSORS[1:] and text is not None}
            settings = self.denoiser.backbone.model_settings
            for latents in (tensors["latents"], *self.streams.values()):
                finite.check_latents(latents, settings, f"step {done} of {plan.steps}", texts)
            scheduler, drawn = scheduler_state(pipe.scheduler), self.generator.get_state()
            self.on_step(State(done, tensors["latents"], scheduler, drawn, streams=self.streams,
                               x0=lambda: predicted_x0(self.denoiser, pipe.scheduler, before, after, index)))  # fmt: skip
        elif done == self.resume.done:
            self._restore(pipe.scheduler, tensors, self.resume)
        self.before = tensors["latents"]
        step_state.index = min(done, plan.steps - 1)
        return tensors

    def _refine(self, step: int, tensors: dict[str, Tensor]) -> None:
        backbone = self.denoiser.backbone
        for technique, steps in self.denoiser.plan.refinements:
            if step in steps:
                x0, dx0_dx = self.denoiser.predict_x0(self.before, tensors["latents"], step)
                change = technique.change(x0, dx0_dx, backbone.step_state.step)
                if (given := self.denoiser.given) is not None and given.latents is not None:
                    change[:, :, : given.latents.shape[2]] = 0  # those frames stay as they were given
                tensors["latents"] = tensors["latents"] + backbone.packed(change).to(tensors["latents"])

    def _restore(self, scheduler: Any, tensors: dict[str, Tensor], resume: State) -> None:
        tensors["latents"] = resume.latents.to(tensors["latents"])
        for name, stream in self.streams.items():  # in place: what a callback returns of them the pipeline does not read
            stream.copy_(resume.streams[name])
        self.generator.set_state(resume.generator)
        for name, value in resume.scheduler.items():
            current = getattr(scheduler, name)
            setattr(scheduler, name, _to(value, current.device if isinstance(current, Tensor) else self.denoiser.backbone.device))


def predicted_x0(denoiser: Denoiser, scheduler: Any, before: Tensor, after: Tensor, step: int) -> Tensor | None:
    """The clean latents [1, C, T, h, w] that `step` predicted; None where the scheduler tells none.

    before, after: the pipeline's latents around the step, of which those of a first-order scheduler give it.
    """
    backbone = denoiser.backbone
    outputs = getattr(scheduler, "model_outputs", None)
    if (
        isinstance(outputs, list) and scheduler.config.get("predict_x0") and isinstance(outputs[-1], Tensor)
    ):  # UniPC's, as converted
        return backbone.predicted(backbone.unpacked(outputs[-1].float(), denoiser.plan), denoiser.given)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | CogVideoXDDIMScheduler):
        return denoiser.predict_x0(before, after, step)[0]
    return None


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
