"""Real steps of the real pipeline, timed: the first of two warms up, the second is measured.

In the steps of the schedule before the two, the model's calls are answered with zeros. A step lasts from the end of the one before
to its own end, so that guidance, the scheduler, and what edits the latent are in it. The step that warms up computes one call of
the model and answers the others, unless memory is counted in it (`longgen.bench.memory`), which would slow the other.

Where a step cache decides from step to step what is computed, the whole schedule runs, and a kind's seconds are the mean of its
steps. Of a queue two rounds are run when it is full. Of a rollout the first and the last chunk are measured, and the clean passes
between them, which bring the cache to where it is at the last.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from longgen.bench.memory import Account, weight_bytes
from longgen.bench.step_types import CLEAN, FIRST, LAST, ROUND, Kind
from longgen.loops import PROMPTS, loop_of, sample
from longgen.loops.denoiser import Denoiser
from longgen.loops.state import State
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.sampling.fifo import Fifo
from longgen.sampling.rollout import Rollout

STOCK = "stock"


class Measured(NamedTuple):
    """Seconds of a step, and the bytes at its peak, weights included; None where they were not counted."""

    seconds: float
    peak_bytes: int | None


Visit = Callable[[PipelineBackbone, int, bool], dict[str, Measured]]
"""Measures kinds by name: (backbone, seed, whether to count memory on a CPU)."""


class _Enough(Exception):
    """What was wanted is measured; the rest of the run is not wanted."""


class Stopwatch:
    """Hears of every model call and of the end of every step; after `wanted` steps it leaves the run by an exception.

    skipped: steps whose model calls are answered; began: when a call was first computed; ends: of the steps. account: of the
    tensors in the first step that is computed, on a CPU. brief: whether that step computes one call only.
    """

    def __init__(self, backbone: PipelineBackbone, wanted: int, counting: bool, brief: bool = True, skipped: int = 0) -> None:
        self.backbone, self.wanted, self.skipped, self.device = backbone, wanted, skipped, backbone.device
        seen = self.device.type == "cpu" and not backbone.model_settings.compile  # nothing is seen of what compiled blocks allocate
        self.account = Account() if counting and seen else None
        self.brief = brief and self.account is None
        self.began, self.ends = 0.0, list[float]()
        self.peak_bytes: int | None = None
        self._open = ExitStack()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, the transformers' calls are heard of; `_Enough` ends it."""
        if self.account is not None:
            self._open.enter_context(self.account)
        before = [(transformer, vars(transformer).get("forward")) for transformer in self.backbone.transformers]
        for transformer, _ in before:
            transformer.forward = functools.partial(self._called, transformer.forward)  # under the hooks of the run
        try:
            yield
        except _Enough:
            self.backbone.pipe.maybe_free_model_hooks()
        finally:
            self._open.close()
            for transformer, own in before:
                if own is None:
                    del transformer.forward
                else:
                    transformer.forward = own

    def _called(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if len(self.ends) < self.skipped or (self.began and self.brief and len(self.ends) == self.skipped):
            return (torch.zeros_like(kwargs["hidden_states"]),)
        if not self.began:
            self.began = self.now()
            self.mark()
        return forward(*args, **kwargs)

    def now(self) -> float:
        """The time when all that was asked of the device is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def mark(self) -> None:
        """Memory counts from here on."""
        if self.account is not None:
            self.account.mark()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def step_ended(self, *_: Any) -> None:
        self.ends.append(self.now())
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
            if len(self.ends) == self.skipped + 1:
                self.mark()
        elif self.account is not None and len(self.ends) == self.skipped + 1:
            self._open.close()
            self.peak_bytes = self.account.peak + weight_bytes(self.backbone.transformers)
        if len(self.ends) == self.wanted:
            raise _Enough

    def measured(self) -> Measured:
        """The last step."""
        return Measured(self.ends[-1] - [self.began, *self.ends][-2], self.peak_bytes)


def visits(plan: Plan, kinds: Sequence[Kind], cached: bool) -> list[tuple[list[Kind], Visit]]:
    """What is to be run for a plan, with the kinds that each measures. cached: whether a step cache is on."""
    if plan.chunk_lat is not None:
        return [([*kinds], functools.partial(of_rollout, plan))]
    if kinds[0].name == ROUND:
        return [([*kinds], functools.partial(of_queue, kinds[0]))]
    if cached:
        return [([*kinds], functools.partial(of_schedule, plan, kinds))]
    return [([kind], functools.partial(of_kind, kind)) for kind in kinds]


def of_kind(kind: Kind, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measured]:
    """A step of `kind`, where the pipeline's own loop samples: of the whole video, or in clips."""
    watch, generator = _of_step(kind, backbone, counting), torch.Generator().manual_seed(seed)
    denoiser = Denoiser(backbone, kind.plan, PROMPTS[0])
    noise = denoiser.initial_noise(generator)
    with watch.watching():
        sample(denoiser, noise, generator, watch.step_ended)
    return {kind.name: watch.measured()}


def _of_step(kind: Kind, backbone: PipelineBackbone, counting: bool) -> Stopwatch:
    """Of a step of `kind` and one before it, where there is one."""
    step = max(kind.step, min(1, kind.plan.steps - 1))
    return Stopwatch(backbone, step + 1, counting, brief=step > 0, skipped=max(0, step - 1))


def of_schedule(plan: Plan, kinds: Sequence[Kind], backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measured]:
    """All steps of a run by `plan`, in which a step cache skips what it will."""
    watch, generator = Stopwatch(backbone, plan.steps, counting, brief=False), torch.Generator().manual_seed(seed)
    denoiser = Denoiser(backbone, plan, PROMPTS[0])
    with watch.watching():
        sample(denoiser, denoiser.initial_noise(generator), generator, watch.step_ended)
    took = [end - before for before, end in itertools.pairwise((watch.began, *watch.ends))]
    means = {kind.name: sum(took[step] for step in kind.steps) / len(kind.steps) for kind in kinds}
    return {name: Measured(seconds, watch.peak_bytes) for name, seconds in means.items()}


def of_stock(kind: Kind, cached: bool, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measured]:
    """A step of the pipeline as diffusers has it, with nothing of longgen installed. kind: of direct sampling."""
    plan, generator = kind.plan, torch.Generator().manual_seed(seed)
    watch = Stopwatch(backbone, plan.steps, counting, brief=False) if cached else _of_step(kind, backbone, counting)
    latents = backbone.packed(Denoiser(backbone, plan, PROMPTS[0]).initial_noise(generator))

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        watch.step_ended()
        return tensors

    with watch.watching():
        backbone.pipe(
            **backbone.call_arguments(plan, PROMPTS[0]), latents=latents, generator=generator, output_type="latent",
            callback_on_step_end=after_step,
        )  # fmt: skip
    if cached:
        return {STOCK: Measured((watch.ends[-1] - watch.began) / plan.steps, watch.peak_bytes)}
    return {STOCK: watch.measured()}


def of_queue(kind: Kind, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measured]:
    """A round of a queue that is full: the frames of one come out as those of a run that goes on there."""
    plan, generator = kind.plan, torch.Generator().manual_seed(seed)
    assert isinstance(plan.sampling, Fifo)
    denoiser, watch = Denoiser(backbone, plan, PROMPTS[0]), Stopwatch(backbone, 2, counting)
    noise = denoiser.initial_noise(generator)
    length = plan.call_geometry.frames_lat
    early, places = plan.steps - length, plan.steps + plan.sampling.lookahead_places(length)  # those that go out unseen; the line's
    line = torch.randn(*noise.shape[:2], places, *noise.shape[3:], generator=generator)
    resume = State(plan.steps + early, line, {}, generator.get_state())
    with watch.watching():
        for _ in loop_of(plan)(denoiser, noise, generator, _ignore, resume):
            watch.step_ended()
    return {kind.name: watch.measured()}


def of_rollout(plan: Plan, backbone: PipelineBackbone, seed: int, counting: bool) -> dict[str, Measured]:
    """The first chunk, and after the clean passes of chunks of noise the last one. Of memory, what the last chunk takes."""
    assert isinstance(plan.sampling, Rollout)
    assert plan.chunk_lat is not None
    generator = torch.Generator().manual_seed(seed)
    denoiser, watch = Denoiser(backbone, plan, PROMPTS[0]), Stopwatch(backbone, 1, False, brief=False)
    noise = denoiser.initial_noise(generator)
    with watch.watching():
        sample(denoiser, noise, generator, watch.step_ended)
    found = {FIRST: watch.measured()}
    if plan.rounds == 1:
        return found
    chunk = torch.randn(*noise.shape[:2], plan.chunk_lat, *noise.shape[3:], generator=generator)
    before = [chunk] * (plan.rounds - 1)
    resume = State(len(before), before, {"carried": [None] * plan.steps}, generator.get_state())  # type: ignore[arg-type]
    peak = None
    for counted in (True, False) if counting and backbone.device.type == "cpu" else (False,):  # counting slows
        watch = Stopwatch(backbone, 1, counted, brief=False)
        passes, last = 0.0, 0.0
        with watch.watching():
            for _ in loop_of(plan)(denoiser, noise, generator, watch.step_ended, resume):
                passes += watch.now() - (last or watch.began)
                last = watch.now()
                watch.mark()
        peak = watch.peak_bytes if watch.peak_bytes is not None else peak
    found[LAST] = Measured(watch.ends[0] - last, peak)
    found[CLEAN] = Measured(passes / len(before), None)
    return found


def _ignore(state: State) -> None:
    """Nothing is kept."""
