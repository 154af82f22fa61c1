"""What an interrupted run left, read and checked before anything goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longgen import checkpoint, rundir
from longgen.checkpoint import Chunks
from longgen.errors import UsageError
from longgen.loops.direct import State
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan


def read(
    backbone: PipelineBackbone, plan: Plan, settings: dict[str, Any], chunks: Chunks
) -> tuple[Tensor | None, State | None, dict[str, Any] | None]:
    """What an interrupted run left, checked: its latents, or else its state; and the settings it was made with.

    Raises UsageError where it is another run's, LonggenError where it is damaged.
    """
    folder, whole = chunks.folder.parent, backbone.latent_shape(plan)
    saved_latents, saved_step = folder / rundir.LATENTS, folder / rundir.STEP
    if len(chunks):
        kept = chunks.kept()
        rundir.same_run(kept, settings, chunks.folder)
        chunks.check((*whole[:2], plan.chunk_lat, *whole[3:]))
        tensors, described = chunks.state()
        state = _state(chunks.folder, len(chunks), plan, tensors | {"latents": chunks}, described)
        return None, state, kept
    if saved_latents.is_file():
        tensors, kept = checkpoint.load_tensors(saved_latents)
        rundir.same_run(kept, settings, saved_latents)
        if "done" in kept:
            raise checkpoint.damaged(saved_latents, "it is a checkpoint")
        return checkpoint.check_latents(saved_latents, tensors.get("latents"), whole), None, kept
    if not saved_step.is_file():
        return None, None, None
    if backbone.model_settings.cache is not None:
        raise UsageError(f"--resume in the middle of sampling with --cache {backbone.model_settings.cache}: what the cache held is lost, so "
                         "the latents would differ", expected="a run without a cache, or one that has been sampled",
                         hint="start again with --overwrite")  # fmt: skip
    tensors, kept = checkpoint.load_tensors(saved_step)
    rundir.same_run(kept, settings, saved_step)
    if plan.sampling is not None and plan.sampling.streams and plan.call_geometry.frames_lat < plan.frames_lat:
        shape: tuple[int | None, ...] = (*whole[:2], None, *whole[3:])  # the frames so far, and the queue
    else:
        shape = tuple(backbone.packed(torch.empty(whole)).shape)
    checkpoint.check_latents(saved_step, tensors.get("latents"), shape)
    return None, _state(saved_step, kept.get("done"), plan, tensors, kept.get("scheduler")), kept


def _state(path: Path, done: Any, plan: Plan, tensors: dict[str, Any], described: Any) -> State:
    """The state of a sampling after `done` rounds. Raises LonggenError where it cannot be one."""
    if not isinstance(done, int) or isinstance(done, bool) or not 0 <= done <= plan.rounds:
        raise checkpoint.damaged(path, f"it says that {done} of {plan.rounds} rounds are done")
    generator, now = tensors.get("generator"), torch.Generator().get_state()
    if generator is None or (generator.dtype, generator.shape) != (now.dtype, now.shape):
        raise checkpoint.damaged(path, "it holds no state of a generator")
    checkpoint.check_finite(path, {name: one for name, one in tensors.items() if isinstance(one, torch.Tensor)})
    try:
        return State(done, tensors["latents"], checkpoint.unpack(tensors, described), generator)
    except (KeyError, TypeError, AttributeError):
        raise checkpoint.damaged(path, "it holds no state of a scheduler") from None
