"""The state of sampling on disk: saved after every step, and read and checked before an interrupted run continues from it.

Of a rollout that is its chunks; of a chain its finished clips, written once as chunks are, and the step of the clip under way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longgen import checkpoint, rundir, shown
from longgen.checkpoint import Chunks
from longgen.errors import UsageError
from longgen.loops import State
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan


def save(state: State, chunks: Chunks, plan: Plan) -> None:
    """Writes a checkpoint of `state`: as the next of `chunks`, or in the run folder in place of the one of the step before."""
    tensors, described = checkpoint.pack(state.scheduler, "scheduler")
    tensors |= {"latents": state.latents, "generator": state.generator, **state.streams}
    if plan.chunk_lat is not None or (plan.clips and state.done % plan.steps == 0):
        chunks.append(tensors, described)  # the step that led to it is older than it, and not read any more
    else:
        stored = chunks.settings | {"done": state.done, "scheduler": described}
        checkpoint.save_tensors(chunks.folder.parent / rundir.STEP, tensors, stored)


def read(backbone: PipelineBackbone, plan: Plan, chunks: Chunks) -> tuple[Tensor | None, State | None, dict[str, Any] | None]:
    """What an interrupted run left in the folder of `chunks`, checked: its latents, or else its state; and its settings.

    Raises UsageError if it is another run's than that of `chunks`, LonggenError if it is damaged.
    """
    folder, shape = chunks.folder.parent, backbone.latent_shape(plan)
    saved_latents, saved_step = folder / rundir.LATENTS, folder / rundir.STEP
    if plan.clips:
        return None, *_of_chain(backbone, plan, chunks)
    if len(chunks):
        stored = chunks.stored_settings()
        rundir.check_same_run(stored, chunks.settings, chunks.folder)
        chunks.check((*shape[:2], plan.chunk_lat, *shape[3:]))
        tensors, described = chunks.state()
        state = _state(chunks.folder, len(chunks), plan, tensors | {"latents": chunks}, described)
        return None, state, stored
    if saved_latents.is_file():
        tensors, stored = checkpoint.load_tensors(saved_latents)
        rundir.check_same_run(stored, chunks.settings, saved_latents)
        if "done" in stored:
            raise checkpoint.damaged(saved_latents, "it is a checkpoint")
        shown.streams(plan, backbone.streams, tensors, saved_latents)
        return checkpoint.check_latents(saved_latents, tensors.get("latents"), shape), None, stored
    if not saved_step.is_file():
        return None, None, None
    if backbone.model_settings.cache is not None:
        raise UsageError(f"--resume in the middle of sampling with --cache {backbone.model_settings.cache}: the content of the "
                         "cache is lost, so the latents would differ", expected="a run without a cache, or a sampled one",
                         hint="start again with --overwrite")  # fmt: skip
    tensors, stored = checkpoint.load_tensors(saved_step)
    rundir.check_same_run(stored, chunks.settings, saved_step)
    if plan.sampling is not None and plan.sampling.streams and plan.call_geometry.frames_lat < plan.frames_lat:
        step_shape: tuple[int | None, ...] = (*shape[:2], None, *shape[3:])  # the frames so far, and the queue
    else:
        step_shape = tuple(backbone.packed(torch.empty(shape)).shape)
    checkpoint.check_latents(saved_step, tensors.get("latents"), step_shape)
    streams = shown.streams(plan, backbone.streams, tensors, saved_step)
    state = _state(saved_step, stored.get("done"), plan, tensors, stored.get("scheduler"))._replace(streams=streams)
    return None, state, stored


def _of_chain(backbone: PipelineBackbone, plan: Plan, chunks: Chunks) -> tuple[State | None, dict[str, Any] | None]:
    """The state of a chain, and its settings. A step of a clip before the first unfinished one is what the kill left behind it.

    With a step cache the clip under way begins again: what the cache held is lost.
    """
    shape, saved_step = backbone.latent_shape(plan), chunks.folder.parent / rundir.STEP
    state, stored = None, None
    if len(chunks):
        stored = chunks.stored_settings()
        rundir.check_same_run(stored, chunks.settings, chunks.folder)
        if len(chunks) > len(plan.clips):
            raise checkpoint.damaged(chunks.folder, f"it holds {len(chunks)} clips, and the run has {len(plan.clips)}")
        chunks.check((*shape[:2], None, *shape[3:]), [clip.new for clip in plan.clips])
        tensors, described = chunks.state()
        state = _state(chunks.folder, len(chunks) * plan.steps, plan, tensors, described)._replace(clips=chunks)
    if not saved_step.is_file() or backbone.model_settings.cache is not None:
        return state, stored
    tensors, stored_step = checkpoint.load_tensors(saved_step)
    rundir.check_same_run(stored_step, chunks.settings, saved_step)
    clip_shape = backbone.latent_shape(plan.of_clip(plan.clips[0]))
    checkpoint.check_latents(saved_step, tensors.get("latents"), tuple(backbone.packed(torch.empty(clip_shape)).shape))
    step = _state(saved_step, stored_step.get("done"), plan, tensors, stored_step.get("scheduler"))._replace(clips=chunks)
    return (step if step.done // plan.steps == len(chunks) else state), stored or stored_step


def _state(path: Path, done: Any, plan: Plan, tensors: dict[str, Any], described: Any) -> State:
    """The state of sampling after `done` rounds. Raises LonggenError if the tensors cannot be one."""
    if not isinstance(done, int) or isinstance(done, bool) or not 0 <= done <= plan.rounds:
        raise checkpoint.damaged(path, f"it says that {done} of {plan.rounds} rounds are done")
    generator, fresh = tensors.get("generator"), torch.Generator().get_state()
    if generator is None or (generator.dtype, generator.shape) != (fresh.dtype, fresh.shape):
        raise checkpoint.damaged(path, "it holds no state of a generator")
    checkpoint.check_finite(path, {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)})
    try:
        return State(done, tensors["latents"], checkpoint.unpack(tensors, described), generator)
    except (KeyError, TypeError, AttributeError):
        raise checkpoint.damaged(path, "it holds no state of a scheduler") from None
