"""FIFO-Diffusion's loop: a queue of frames at rising noise levels; each round denoises all by one level and the first one leaves.

Equations, constants and differences from the reference: `longgen.sampling.fifo`.

Legend: T latent frames of the video, f frames of a model call, S steps and places of the queue, h places of lookahead before it;
a line is both, h + S places; C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from longgen.errors import UsageError
from longgen.loops import OnStep, State
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import finite, foreign_hooks, parallel
from longgen.plan import Plan
from longgen.sampling.fifo import Fifo

CHECKPOINT_ROUNDS = 8  # a checkpoint holds all frames so far; one a round would write them T times

Predict = Callable[[Tensor, Tensor, int], Tensor]  # of clips [K, C, f, h, w], timesteps [K, f] on the host and a step: velocities


def fifo(denoiser: Denoiser, noise: Tensor, generator: torch.Generator, on_step: OnStep, resume: State | None) -> Iterator[Tensor]:
    """Yields frames as they leave the queue. A state holds the frames so far and, once the first clip is done, the line."""
    backbone, plan, settings = denoiser.backbone, denoiser.plan, denoiser.backbone.model_settings
    queue, length, steps = plan.sampling, plan.call_geometry.frames_lat, plan.steps
    assert isinstance(queue, Fifo)
    if settings.cache is not None:
        raise UsageError(f"--cache {settings.cache} compares a frame with what stood at its place a round before, and "
                         "fifo moves frames on", expected="no --cache", hint="leave it out")  # fmt: skip
    foreign_hooks.check_uncached(backbone.transformers, "fifo moves frames on from round to round")
    lookahead, early = queue.lookahead_places(length), steps - length  # `early` frames go out before the first that is kept
    line_lat = lookahead + steps
    counts = (length, early, steps)  # drawn before the first step, so that a run that goes on draws the same
    latents, before, after = (torch.randn(*noise.shape[:2], n, *noise.shape[3:], generator=generator) for n in counts)
    noise = torch.cat([before, noise.cpu(), after], dim=2)  # of every frame that is ever in the queue, in their order
    done, latents = (0, latents) if resume is None else (resume.done, resume.latents)
    if done == plan.rounds:
        yield latents[:, :, :-line_lat]
        return
    with parallel.split(backbone, plan), backbone.installed(plan):  # which also puts the pipeline's scheduler back
        scheduler = backbone.pipe.scheduler = backbone.frame_schedule(plan)
        latents = latents.to(backbone.device, torch.float32)
        sigmas, timesteps = (table.to("cpu", latents.dtype) for table in (scheduler.sigmas, scheduler.timesteps))

        for step in range(done, steps):  # the first clip, as usual
            velocity = denoiser.predict(latents, timesteps[step].expand(1, length), step, denoiser.text(denoiser.shares[:, 0]))
            latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
            finite.check_latents(latents, settings, f"step {step + 1} of {steps}, of the first clip")
            _checkpoint(plan, step + 1, [latents], generator, on_step)

        if done > steps:
            frames, line = [latents[:, :, :-line_lat]], latents[:, :, -line_lat:]
        else:
            frames, line = (
                [latents[:, :, :0]],
                initial_line(latents, noise[:, :, :steps].to(latents), sigmas.to(latents), lookahead),
            )
        if frames[0].shape[2]:
            yield frames[0]
        times, drops = line_levels(sigmas, timesteps, lookahead)
        drops = drops.to(latents)
        fused = any(program is not None and program.fusion is not None for program in plan.programs)
        same_in_all_steps = not fused and (plan.table == plan.table[:, :1]).all()
        batch = settings.clip_batch if same_in_all_steps else 1  # windows are at different steps
        for round_ in range(max(done, steps), plan.rounds):
            frame_lat = round_ - steps - early  # the frame that goes out; below zero it is dropped
            predict = functools.partial(denoiser.predict, text=denoiser.text(denoiser.shares[:, max(0, frame_lat)]))
            line = denoise_line(line, times, drops, queue.windows(length), length, predict, batch)
            finite.check_latents(line, settings, f"round {round_ + 1} of {plan.rounds}")
            frame, line = shift_line(line, noise[:, :, round_ : round_ + 1], lookahead)
            frames += [frame] if frame_lat >= 0 else []
            _checkpoint(plan, round_ + 1, [*frames, line], generator, on_step)
            if frame_lat >= 0:
                yield frame
    backbone.pipe.maybe_free_model_hooks()


def initial_line(clip: Tensor, noise: Tensor, sigmas: Tensor, lookahead: int) -> Tensor:
    """The line at the start, [1, C, h + S, h, w], of the first `clip` [1, C, f, h, w] and `noise` [1, C, S, h, w]."""
    steps, length = noise.shape[2], clip.shape[2]
    level = sigmas[:-1].flip(0).view(-1, 1, 1)
    x0 = clip[:, :, [max(0, place - (steps - length)) for place in range(steps)]]
    return torch.cat([clip[:, :, [0] * lookahead], (1 - level) * x0 + level * noise], dim=2)


def line_levels(sigmas: Tensor, timesteps: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """The timestep of each place of the line, and by how much a round changes its sigma, [h + S] each.

    sigmas [S + 1], timesteps [S]: of the schedule, falling.
    """
    clean = sigmas.new_zeros(lookahead)  # clean frames stay as they are
    return torch.cat([clean, timesteps.flip(0).to(clean)]), torch.cat([clean, sigmas.diff().flip(0)])


def denoise_line(
    line: Tensor, times: Tensor, drops: Tensor, windows: list[tuple[int, int]], length: int, predict: Predict, batch: int
) -> Tensor:
    """The line [1, C, h + S, h, w] one noise level down, by windows as `Fifo.windows` has them, `batch` a model call."""
    velocity = torch.zeros_like(line)
    for first in range(0, len(windows), batch):
        starts = [start for start, _ in windows[first : first + batch]]
        clips = torch.cat([line[:, :, start : start + length] for start in starts])
        labels = torch.stack([times[start : start + length] for start in starts])
        step = len(times) - 1 - (starts[0] + length // 2)  # of the middle place
        for (start, kept), predicted in zip(windows[first : first + batch], predict(clips, labels, step), strict=True):
            velocity[0, :, kept : start + length] = predicted[:, kept - start :]
    return line + drops.view(-1, 1, 1) * velocity


def shift_line(line: Tensor, entering: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """The frame [1, C, 1, h, w] that leaves the queue, and the line moved up by one place, with `entering` at its end."""
    frame = line[:, :, lookahead : lookahead + 1].clone()  # a view would keep the line
    return frame, torch.cat([line[:, :, 1:], entering.to(line)], dim=2)


def _checkpoint(plan: Plan, done: int, parts: list[Tensor], generator: torch.Generator, on_step: OnStep) -> None:
    if done % CHECKPOINT_ROUNDS == 0 or done == plan.rounds:
        on_step(State(done, torch.cat(parts, dim=2), {}, generator.get_state()))
