"""Times real steps of the real pipeline: the first of two warms up, the second is measured.

In the steps of the schedule before these two, model calls return zeros. A step lasts from the end of the previous one to its own
end, so that it includes guidance, the scheduler and edits of the latent. The warm-up step computes one model call and skips the
others, unless its memory is counted (`longgen.bench.memory`), which would slow down the measured one.

With a step cache, which decides from step to step what to compute, the whole schedule runs, and the time of a step type is the mean
of its steps. Of a FIFO queue two rounds are run when it is full. Of a rollout the first and the last chunk are measured, and the
clean passes in between, which fill the KV cache for the last.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from longgen import progress
from longgen.bench.memory import AllocationTracker, weight_bytes
from longgen.bench.step_types import CLEAN, FIRST, LAST, ROUND, StepType
from longgen.loops import PROMPTS, State, loop_of, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.sampling.fifo import Fifo
from longgen.sampling.rollout import Rollout

STOCK = "stock"


class Measurement(NamedTuple):
    """Seconds of a step, and its peak memory including weights; None if that was not counted."""

    seconds: float
    peak_bytes: int | None


MeasureStep = Callable[[PipelineBackbone, int, bool], dict[str, Measurement]]
"""Measures step types by name: (backbone, seed, whether to count memory on a CPU)."""


class _Finished(Exception):
    """Everything is measured; the rest of the run is not needed."""


class Stopwatch:
    """Times model calls and steps; after `steps` steps it leaves the run by an exception.

    skipped: steps whose model calls are skipped; began: when the first call was computed; ends: of the steps. tracker: of
    allocations in the first computed step, on a CPU. brief: whether that step computes only one call.
    """

    def __init__(self, backbone: PipelineBackbone, steps: int, counting: bool, brief: bool = True, skipped: int = 0) -> None:
        self.backbone, self.steps, self.skipped, self.device = backbone, steps, skipped, backbone.device
        visible = self.device.type == "cpu" and not backbone.model_settings.compile  # compiled blocks hide their allocations
        self.tracker = AllocationTracker() if counting and visible else None
        self.brief = brief and self.tracker is None
        self.began, self.ends = 0.0, list[float]()
        self.peak_bytes: int | None = None
        self._stack = ExitStack()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the context, the transformers' calls are intercepted; `_Finished` ends it."""
        if self.tracker is not None:
            self._stack.enter_context(self.tracker)
        originals = [(transformer, vars(transformer).get("forward")) for transformer in self.backbone.transformers]
        for transformer, _ in originals:
            transformer.forward = functools.partial(self._forward, transformer.forward)  # under the hooks of the run
        try:
            yield
        except _Finished:
            self.backbone.pipe.maybe_free_model_hooks()
        finally:
            self._stack.close()
            for transformer, original in originals:
                if original is None:
                    del transformer.forward
                else:
                    transformer.forward = original

    def _forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if len(self.ends) < self.skipped or (self.began and self.brief and len(self.ends) == self.skipped):
            return self.backbone.unanswered(kwargs)
        if not self.began:
            self.began = self.now()
            self.reset_peak()
        return forward(*args, **kwargs)

    def now(self) -> float:
        """The time, after synchronising with the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def reset_peak(self) -> None:
        """Peak memory counts from here on."""
        if self.tracker is not None:
            self.tracker.mark()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def step_ended(self, *_: Any) -> None:
        self.ends.append(self.now())
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
            if len(self.ends) == self.skipped + 1:
                self.reset_peak()
        elif self.tracker is not None and len(self.ends) == self.skipped + 1:
            self._stack.close()
            self.peak_bytes = self.tracker.peak + weight_bytes(self.backbone.transformers)
        if len(self.ends) == self.steps:
            raise _Finished

    def last_step(self) -> Measurement:
        return Measurement(self.ends[-1] - [self.began, *self.ends][-2], self.peak_bytes)


def measurements(plan: Plan, types: Sequence[StepType], cached: bool) -> list[tuple[list[StepType], MeasureStep]]:
    """What to run for a plan, with the step types that each run measures. cached: whether a step cache is on."""
    if plan.chunk_lat is not None:
        return [([*types], functools.partial(measure_rollout, plan))]
    if types[0].name == ROUND:
        return [([*types], functools.partial(measure_queue, types[0]))]
    if cached:
        return [([*types], functools.partial(measure_schedule, plan, types))]
    return [([step_type], functools.partial(measure_step, step_type)) for step_type in types]


def _start(backbone: PipelineBackbone, plan: Plan, seed: int) -> tuple[Denoiser, torch.Tensor, torch.Generator]:
    """What a loop needs: the denoiser, the initial noise and the generator that drew it."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(backbone, plan, PROMPTS[0], backbone.given(plan, generator))
    return denoiser, denoiser.initial_noise(generator), generator


def measure_step(step_type: StepType, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measurement]:
    """A step of this type of direct sampling or MultiDiffusion."""
    watch, start = _stopwatch(step_type, backbone, counting), _start(backbone, step_type.plan, seed)
    with watch.running():
        sample(*start, watch.step_ended)
    return {step_type.name: watch.last_step()}


def _stopwatch(step_type: StepType, backbone: PipelineBackbone, counting: bool) -> Stopwatch:
    """Of a step of this type and the one before it, if there is one."""
    step = max(step_type.step, min(1, step_type.plan.steps - 1))
    return Stopwatch(backbone, step + 1, counting, brief=step > 0, skipped=max(0, step - 1))


def measure_schedule(
    plan: Plan, types: Sequence[StepType], backbone: PipelineBackbone, seed: int, counting: bool
) -> dict[str, Measurement]:
    """All steps of a run by `plan`, with a step cache that skips what it will."""
    watch, start = Stopwatch(backbone, plan.steps, counting, brief=False), _start(backbone, plan, seed)
    with watch.running():
        sample(*start, watch.step_ended)
    seconds = [end - before for before, end in itertools.pairwise((watch.began, *watch.ends))]
    means = {step_type.name: sum(seconds[step] for step in step_type.steps) / len(step_type.steps) for step_type in types}
    return {name: Measurement(mean, watch.peak_bytes) for name, mean in means.items()}


def measure_stock(
    step_type: StepType, cached: bool, backbone: PipelineBackbone, seed: int, counting: bool
) -> dict[str, Measurement]:
    """A step of the stock diffusers pipeline, without anything of longgen installed. step_type: of direct sampling."""
    plan = step_type.plan
    watch = Stopwatch(backbone, plan.steps, counting, brief=False) if cached else _stopwatch(step_type, backbone, counting)
    denoiser, noise, generator = _start(backbone, plan, seed)

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.step_ended()
        return tensors

    with watch.running(), backbone.conditioned(plan, denoiser.given) as conditioning:
        backbone.pipe(
            **backbone.call_arguments(plan, PROMPTS[0]), **conditioning, latents=backbone.started(noise, denoiser.given),
            generator=generator, output_type="latent", callback_on_step_end=after_step,
        )  # fmt: skip
    if cached:
        return {STOCK: Measurement((watch.ends[-1] - watch.began) / plan.steps, watch.peak_bytes)}
    return {STOCK: watch.last_step()}


def measure_queue(step_type: StepType, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measurement]:
    """A round of a full FIFO queue: the time between two frames of a run resumed there."""
    plan = step_type.plan
    watch, (denoiser, noise, generator) = Stopwatch(backbone, 2, counting), _start(backbone, plan, seed)
    with watch.running():
        for _ in loop_of(plan)(denoiser, noise, generator, progress.no_report, full_queue(plan, noise, generator)):
            watch.step_ended()
    return {step_type.name: watch.last_step()}


def full_queue(plan: Plan, noise: torch.Tensor, generator: torch.Generator) -> State:
    """A FIFO queue of noise where the first frame that is shown leaves it."""
    assert isinstance(plan.sampling, Fifo)
    length = plan.call_geometry.frames_lat
    slots = plan.steps + plan.sampling.lookahead_places(length)
    queue = torch.randn(*noise.shape[:2], slots, *noise.shape[3:], generator=generator)
    return State(plan.steps + plan.steps - length, queue, {}, generator.get_state())  # steps - length frames leave unshown


def last_chunk(plan: Plan, noise: torch.Tensor, generator: torch.Generator) -> State:
    """A rollout before its last chunk, with noise as the chunks that are done."""
    chunks = [torch.randn(*noise.shape[:2], plan.chunk_lat, *noise.shape[3:], generator=generator)] * (plan.rounds - 1)  # type: ignore[arg-type]
    return State(len(chunks), chunks, {"carried": [None] * plan.steps}, generator.get_state())  # type: ignore[arg-type]


def measure_rollout(plan: Plan, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measurement]:
    """The first chunk and, after the clean passes over chunks of noise, the last one, with its peak memory."""
    assert isinstance(plan.sampling, Rollout)
    assert plan.chunk_lat is not None
    watch, (denoiser, noise, generator) = Stopwatch(backbone, 1, False, brief=False), _start(backbone, plan, seed)
    with watch.running():
        sample(denoiser, noise, generator, watch.step_ended)
    results = {FIRST: watch.last_step()}
    if plan.rounds == 1:
        return results
    resume, peak = last_chunk(plan, noise, generator), None
    for counted in (True, False) if counting and backbone.device.type == "cpu" else (False,):  # counting slows
        watch = Stopwatch(backbone, 1, counted, brief=False)
        passes, last = 0.0, 0.0
        with watch.running():
            for _ in loop_of(plan)(denoiser, noise, generator, watch.step_ended, resume):
                passes += watch.now() - (last or watch.began)
                last = watch.now()
                watch.reset_peak()
        peak = watch.peak_bytes if watch.peak_bytes is not None else peak
    results[LAST] = Measurement(watch.ends[0] - last, peak)
    results[CLEAN] = Measurement(passes / resume.done, None)
    return results
