"""The autoregressive rollout's loop: chunk after chunk, each denoised over a cache of the keys and values of those before.

Equations and constants: `longgen.sampling.rollout`. What a video starts from, a picture or an earlier video, are clean chunks too.

Legend: c latent frames of a chunk, S steps, T latent frames of the video; sigma_j the noise level of step j; C channels.

On resume the clean passes of finished chunks, 1 of S + 1 calls each, run again, and so do those of a run that another goes on from:
a cache is larger than it is worth saving.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longgen.attention.kvcache import KVCache
from longgen.loops import OnStep, State
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import finite, parallel
from longgen.pipelines.base import Text
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.sampling.rollout import Rollout
from longgen.schedule import since_switch


def rollout(
    denoiser: Denoiser, noise: Tensor, generator: torch.Generator, on_step: OnStep, resume: State | None
) -> Iterator[Tensor]:
    """Yields chunks as they are done; those that are given, and those that an interrupted run had finished, come first.

    noise: of no frame, for its shape. A state holds the newest chunk; `resume.latents[i]` is the i-th that is not given.
    """
    backbone, plan = denoiser.backbone, denoiser.plan
    technique, done, first = plan.sampling, 0 if resume is None else resume.done, len(plan.given_chunks)
    assert isinstance(technique, Rollout)
    chunks, (_, shares) = plan.chunks, plan.chunk_texts(denoiser.prompt)  # shares [chunks, S]
    since, cuts = since_switch(shares), plan.cut_starts

    def known(index: int) -> Tensor:
        """The clean latents of a chunk before `first + done`."""
        if resume is not None and index >= first:
            return resume.latents[index - first]
        assert denoiser.given is not None
        assert denoiser.given.latents is not None
        start, count = chunks[index]
        return denoiser.given.latents[:, :, start : start + count]

    if first + done == len(chunks):
        for index, (start, _) in enumerate(chunks):
            yield known(index)[:, :, : plan.frames_lat - start]
        return
    shape = (*noise.shape[:2], plan.call_geometry.frames_lat, *noise.shape[3:])
    chunk_noise = ChunkNoise(plan, shape, generator, resume, denoiser.given)
    recent = torch.zeros(shape, device=backbone.device)[:, :, :0]  # clean frames, as many as the cache may hold
    schedules = {steps: backbone.chunk_schedule(plan, steps) for steps in {plan.first_steps, plan.steps}}
    with parallel.split(backbone, plan), backbone.rolling(plan) as cache:
        for index, (start, count) in enumerate(chunks):
            text = denoiser.text(shares[index])
            if since[index] == 0:
                _switch_prompt(denoiser, cache, start, text, recent)
            steps = plan.first_steps if index == first else plan.steps
            cache.open(
                start, count, *plan.programs_for_chunk(start + count, count, cache.frames, since[index], start in cuts, steps)
            )
            if index < first + done:
                x0 = known(index).to(backbone.device)
            else:
                made = index - first + 1
                x0 = _denoise_chunk(denoiser, schedules[steps], chunk_noise, text, f"chunk {made} of {plan.rounds}")
                on_step(State(made, x0, {"carried": chunk_noise.last_frames}, generator.get_state(), x0=x0.clone))
            if index + 1 < len(chunks):
                _write_cache(denoiser, cache, x0, start, text, steps)
                recent = torch.cat([recent, x0], dim=2)[:, :, -plan.slots_lat :]
            yield x0[:, :, : plan.frames_lat - start]
    backbone.pipe.maybe_free_model_hooks()


class ChunkNoise:
    """Draws the noise of chunks, which a technique can correlate with that of the chunk before.

    last_frames: for each step the last frame of noise [1, C, 1, h, w] that the technique mixed; None where there is none. Both go
    on where an interrupted run, or the run that this one goes on from, left them.
    """

    def __init__(
        self, plan: Plan, shape: tuple[int, ...], generator: torch.Generator, resume: State | None, given: Given | None = None
    ) -> None:
        self.technique = plan.noise if plan.geometry.ratio > 1 else None
        self.shape, self.generator = shape, generator
        self.last_frames: list[Tensor | None] = [None] * max(plan.steps, plan.first_steps)
        if resume is not None:
            generator.set_state(resume.generator)
            self.last_frames = [*resume.scheduler["carried"]]
        elif given is not None and given.generator is not None:
            generator.set_state(given.generator)
            carried = given.carried[: plan.steps]
            self.last_frames[: len(carried)] = carried

    def draw(self, step: int) -> Tensor:
        """The noise [1, C, c, h, w] that is added before `step`."""
        noise = torch.randn(self.shape, generator=self.generator)
        if self.technique is not None and self.technique.mixes(step):
            noise = self.technique.mix_chunk(noise, self.last_frames[step])
            self.last_frames[step] = noise[:, :, -1:].clone()
        return noise


def _denoise_chunk(denoiser: Denoiser, schedule: Any, noise: ChunkNoise, text: Text, name: str) -> Tensor:
    """The clean latents of the chunk that the cache is open for. Raises LonggenError for latents that are not finite.

    schedule: of `chunk_schedule`; a solver is left as it was, for the next chunk.
    """
    backbone = denoiser.backbone
    renoised = schedule.config.get("stochastic_sampling", False)  # else it is a solver, whose steps draw no noise
    scheduler = schedule if renoised else copy.deepcopy(schedule)
    sigmas, timesteps, x = scheduler.sigmas.tolist(), scheduler.timesteps.tolist(), noise.draw(0).to(backbone.device)
    steps = len(timesteps)
    for step, timestep in enumerate(timesteps):
        velocity = denoiser.predict(x, torch.full((1, x.shape[2]), float(timestep)), step, text)
        if not renoised:
            x = x0 = scheduler.step(velocity, scheduler.timesteps[step], x, return_dict=False)[0]
        else:
            x0 = x - sigmas[step] * velocity
        finite.check_latents(x0, backbone.model_settings, f"{name}, step {step + 1} of {steps}")
        if renoised and step + 1 < steps:
            x = (1 - sigmas[step + 1]) * x0 + sigmas[step + 1] * noise.draw(step + 1).to(backbone.device)
    return x0


def _write_cache(denoiser: Denoiser, cache: KVCache, x0: Tensor, start: int, text: Text, steps: int) -> None:
    """The clean pass: runs `x0`, from frame `start` on, for the keys and values that it leaves in the cache.

    steps: of the chunk; the last one's programs serve.
    """
    technique = denoiser.plan.sampling
    assert isinstance(technique, Rollout)
    cache.writing = True
    denoiser.predict(x0, torch.full((1, x0.shape[2]), technique.context_noise), steps - 1, text)
    cache.writing = False
    cache.close(start)


def _switch_prompt(denoiser: Denoiser, cache: KVCache, start: int, text: Text, recent: Tensor) -> None:
    """What becomes of the cache where the prompt changes with the chunk at frame `start`. recent: the newest clean frames."""
    plan = denoiser.plan
    technique, sink_lat = plan.sampling, plan.sink_lat
    assert isinstance(technique, Rollout)
    cache.texts.clear()
    complete = len(cache.visible_to_all_layers) == start  # nothing has left the window yet
    recached = [frame for frame in cache.visible_to_all_layers if complete or frame >= sink_lat]
    cache.keep(plan.frames_kept(cache.frames, start))
    if technique.switch == "recache" and recached:
        cache.open(recached[0], len(recached), *plan.programs_for_chunk(start, len(recached), cache.frames))
        _write_cache(denoiser, cache, recent[:, :, -len(recached) :], recached[0], text, plan.steps)
