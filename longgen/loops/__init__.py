"""Sampling loops, one module each: functions over a `Denoiser` that yield latent frames as they are done.

    loop(denoiser, noise, generator, on_step, resume) -> Iterator of latents [1, C, some frames, h, w], in their order

noise [1, C, T, h, w] is what the frames start from; `generator` makes every later draw; `on_step` gets a `State` after each round;
`resume` is such a state, after which the latents come out equal, bit for bit. A technique of sampling names its loop: a row
of `LOOPS`, or "package.module:function".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from longgen.errors import unknown_name
from longgen.progress import no_report

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from longgen.loops.denoiser import Denoiser
    from longgen.plan import Plan


class State(NamedTuple):
    """A run after `done` rounds.

    latents: as the loop needs them to go on: the pipeline's latents, the frames so far and the queue, or the newest chunk.
    scheduler: what the scheduler, or the loop in its place, keeps between steps. generator: the state of the random generator.
    streams: what the pipeline samples beside the video's latents, by its names: of a model with sound.
    clips: of a chain that goes on, the clips that are done: clips[i] is what clip i added, [1, C, some frames, h, w]. x0: gives the
    clean latents [1, C, some frames, h, w] that the step predicted, None where its scheduler tells none; it is not stored.
    """

    done: int
    latents: Tensor
    scheduler: dict[str, Any]
    generator: Tensor
    clips: Any = ()
    streams: Mapping[str, Tensor] = {}  # read only; a mapping proxy could not be copied with its state
    x0: Callable[[], Tensor | None] | None = None


OnStep = Callable[[State], None]
"""Called after each round with a state whose latents are finite; the state is only valid during the call."""

if TYPE_CHECKING:
    Loop = Callable[[Denoiser, Tensor, Generator, OnStep, State | None], Iterator[Tensor]]

LOOPS = {
    "direct": "longgen.loops.direct:direct",
    "multidiffusion": "longgen.loops.multidiffusion:multidiffusion",
    "fifo": "longgen.loops.fifo:fifo",
    "rollout": "longgen.loops.rollout:rollout",
    "chain": "longgen.loops.chain:chain",
}

# What is sampled to measure a model, where no prompt was given; `tiny` has sentences of its own.
PROMPTS = ("A cat walks through tall grass, realistic style.", "Waves break on a rocky shore at sunset, aerial view.")


def loop_of(plan: Plan) -> Loop:
    """The loop that `plan` samples by; direct sampling where one model call covers the whole video. Raises UsageError."""
    name = plan.sampling.loop if plan.sampling is not None and (plan.in_clips or plan.in_parts) else "direct"
    module, _, function = LOOPS.get(name, name).partition(":")
    if not function:
        raise unknown_name("sampling loop", name, LOOPS, "correct `loop` in the technique, or write package.module:function")
    return getattr(importlib.import_module(module), function)


def streams(plan: Plan, offload: str) -> bool:
    """Whether frames are decoded while the rest is sampled. With offload, weights would move to and fro for each frame."""
    return plan.sampling is not None and plan.sampling.streams and offload == "none"


def stream(
    denoiser: Denoiser, noise: Tensor, generator: Generator, on_step: OnStep | None = None, resume: State | None = None
) -> Iterator[Tensor]:
    """Latent frames [1, C, 1, h, w] of the plan's loop, in their order and as soon as they are done."""
    loop = loop_of(denoiser.plan)
    for latents in loop(denoiser, noise, generator, on_step or no_report, resume):
        yield from latents.split(1, dim=2)


def sample(
    denoiser: Denoiser, noise: Tensor, generator: Generator, on_step: OnStep | None = None, resume: State | None = None
) -> Tensor:
    """All latents [1, C, T, h, w] of the plan's loop, before the VAE."""
    import torch  # here, so that the command line can read this module without it

    return torch.cat([*loop_of(denoiser.plan)(denoiser, noise, generator, on_step or no_report, resume)], dim=2)
