"""FIFO-Diffusion: a queue of frames at rising noise levels; each round denoises all by one level and lets the first one out.

Paper: FIFO-Diffusion, arXiv 2405.11473; code: GitHub jjihwan/FIFO-Diffusion_public.

Legend: T latent frames of the video, T0 of them in training, f frames that the model sees, n partitions, S = n f steps and places
of the queue, h places of lookahead, K windows, sigma_0 = 1 > sigma_1 > .. > sigma_S = 0, v the model's velocity.

    start:     x0 = f frames, sampled as usual in S steps; place i = 0 .. S - 1 of the queue is
               (1 - s_i) x0[max(0, i - (S - f))] + s_i noise,  s_i = sigma_(S-1-i)            [code; derived: the flow form]
    a round:   place i  +=  (sigma_(S-i) - s_i) v_i;  place 0 is clean and goes out, all move up by one, N(0, 1) enters at the end
    the first S - f frames that go out are dropped                                                                     [code]
    windows without lookahead: [r f, (r + 1) f), r = 0 .. n - 1, all of it kept                                       [paper]
    with lookahead: h = f // 2 frames that went out last stand before the queue; 2 n windows end at places e_r = ceil((r + 1) f / 2)
               of the queue, and keep their places from e_(r-1) on, the noisier half        [paper; odd f: code, Open-Sora's]

Positions in a window are 0 .. f - 1, as in training, whatever T is.

For odd f, as on Open-Sora Plan (17) and Wan (21), the kept halves take turns of (f + 1) / 2 and (f - 1) / 2 places, the larger
first, so that each place is kept once, as in the authors' script for Open-Sora [code].

Constants: f = T0, n = 4, lookahead [code]. The schedule has n f steps [paper], and nothing else.

Differs from the reference: a flow-matching Euler step in place of DDIM with eta 1 [derived] · places of lookahead are labelled
with timestep 0, which they are at; the reference labels them with the lowest noise level and noises them at first [derived] ·
windows read the queue as it was at the start of the round, as the reference's descending order does · the T frames that are kept
begin at the run's own noise, so that techniques of noise act on it [derived] · a frame plan with parts of the schedule takes a
window's step at its middle place [derived] · Wan 2.2's experts each predict the frames of their own timesteps, and see the
others' [derived] · a checkpoint every 8 rounds [derived].

With a schedule of prompts all of the queue has the prompt of the frame that goes out, as in the code.

Caveats: no model but Wan 2.2 TI2V and LTX-Video met frames of different noise levels in training, and those two only clean ones
beside noisy ones. A frame knows f neighbours at most, so that content drifts. Per-token timesteps cost memory for modulation.

Neutral: videos of at most f frames, which are sampled directly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.technique import LONGEST, TIMESTEPS, Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from longgen.loops.direct import State
    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan

CHECKPOINT_ROUNDS = 8  # a checkpoint holds all frames so far; one a round would write them T times

Predict = Callable[["Tensor", "Tensor", int], "Tensor"]  # of clips [K, C, f, h, w], timesteps [K, f] and a step: velocities


class Fifo(Sampling):
    """frames: f, the native length T0 by default. partitions: n. lookahead: a window keeps its noisier half only."""

    paper: ClassVar[str] = "FIFO-Diffusion, arXiv 2405.11473"
    exclusive: ClassVar[tuple[str, ...]] = ("the order of sampling", "the anchor of clips")  # windows have no first among them
    requires: ClassVar[tuple[str, ...]] = ("frame-timesteps", "whole-clip")
    frame_levels: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    frames: int | None = Field(None, ge=2, le=LONGEST)
    partitions: int = Field(4, ge=1, le=TIMESTEPS)
    lookahead: bool = True

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        return min(frames_lat, self.frames or native_lat)

    def schedule_steps(self, frames_lat: int, native_lat: int, asked: int | None) -> int | None:
        length = self.frames_per_call(frames_lat, native_lat)
        if length == frames_lat:
            return asked
        places, most = self.partitions * length, TIMESTEPS // length
        if places > TIMESTEPS:
            raise UsageError(f"fifo.partitions = {self.partitions} of {length} latent frames are {places} places, each at a noise "
                             f"level of its own, and models know {TIMESTEPS}",
                             expected=f"1 to {most}" if most else "fewer fifo.frames",
                             hint=f"--set fifo.partitions={min(4, most)}" if most else "leave fifo.frames out")  # fmt: skip
        if asked not in (None, places):
            raise UsageError(f"fifo denoises a queue with one place for each step, {self.partitions} partitions of {length} latent "
                             f"frames, and {asked} steps are asked", expected=f"--steps {places}",
                             hint=f"--steps {places} or leave it out; fifo.partitions and fifo.frames change it")  # fmt: skip
        return places

    def calls(self, frames_lat: int, native_lat: int) -> float:
        length = self.frames_per_call(frames_lat, native_lat)
        if length == frames_lat:
            return 1.0
        places = self.partitions * length
        return 1 + (frames_lat + places - length) * len(self.windows(length)) / places

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """The steps of the first clip, and then one for each frame that goes out."""
        length = self.frames_per_call(frames_lat, native_lat)
        return steps if length == frames_lat else steps + frames_lat + steps - length

    def ahead(self, length: int) -> int:
        """Places of lookahead before the queue; the two are a line."""
        return length // 2 if self.lookahead else 0

    def windows(self, length: int) -> list[tuple[int, int]]:
        """(start, kept): the model sees the `length` places of the line from `start` on, and those from `kept` on are written."""
        if not self.lookahead:
            return [(start, start) for start in range(0, self.partitions * length, length)]
        ends = [self.ahead(length) + (half * length + 1) // 2 for half in range(2 * self.partitions + 1)]
        return [(end - length, kept) for kept, end in itertools.pairwise(ends)]

    def filled(self, clip: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """The line at the start, [1, C, h + S, h, w], of the first `clip` [1, C, f, h, w] and `noise` [1, C, S, h, w]."""
        import torch

        steps, length = noise.shape[2], clip.shape[2]
        level = sigmas[:-1].flip(0).view(-1, 1, 1)
        clean = clip[:, :, [max(0, place - (steps - length)) for place in range(steps)]]
        return torch.cat([clip[:, :, [0] * self.ahead(length)], (1 - level) * clean + level * noise], dim=2)

    def emitted(
        self,
        line: Tensor,
        noise: Tensor,
        length: int,
        sigmas: Tensor,
        timesteps: Tensor,
        predict: Predict,
        batch: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One round for each frame of `noise` [1, C, *, h, w], which enter in turn: the frame that went out, and then the line.

        line: [1, C, h + S, h, w], before the first round. sigmas [S + 1], timesteps [S]: of the schedule, falling.
        predict: called for `batch` windows at a time.
        """
        import torch

        ahead, steps = self.ahead(length), len(timesteps)
        still = sigmas.new_zeros(ahead)  # clean frames stay as they are
        times = torch.cat([still, timesteps.flip(0).to(still)])
        change = torch.cat([still, sigmas.diff().flip(0)])
        for new in noise.split(1, dim=2):
            velocity = torch.zeros_like(line)
            windows = iter(self.windows(length))
            while some := list(itertools.islice(windows, batch)):
                clips = torch.cat([line[:, :, start : start + length] for start, _ in some])
                own = torch.stack([times[start : start + length] for start, _ in some])
                middle = some[0][0] + length // 2 - ahead
                for (start, kept), one in zip(some, predict(clips, own, steps - 1 - middle), strict=True):
                    velocity[0, :, kept : start + length] = one[:, kept - start :]
            line = line + change.view(-1, 1, 1) * velocity
            frame = line[:, :, ahead : ahead + 1].clone()  # a view would keep the line
            line = torch.cat([line[:, :, 1:], new.to(line)], dim=2)
            yield frame, line

    def sample(
        self,
        backbone: PipelineBackbone,
        plan: Plan,
        prompt: str,
        latents: Tensor,
        on_step: Callable[[State], None],
        resume: State | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Makes the frames that begin at the noise `latents` [1, C, T, h, w], one after the other."""
        import torch  # here, so that plans and lists of presets need no torch

        return torch.cat([*self.stream(backbone, plan, prompt, latents, on_step, resume, generator)], dim=2)

    def stream(
        self,
        backbone: PipelineBackbone,
        plan: Plan,
        prompt: str,
        latents: Tensor,
        on_step: Callable[[State], None],
        resume: State | None,
        generator: torch.Generator,
    ) -> Iterator[Tensor]:
        """The frames of `sample` as they go out; those that an interrupted run had finished come first."""
        import torch

        from longgen.loops import direct, prompt_schedule
        from longgen.pipelines import finite, foreign_hooks

        length, steps = plan.call_geometry.frames_lat, plan.steps
        if length == plan.frames_lat:
            yield from direct.sample(backbone, plan, prompt, latents, on_step, resume, generator).split(1, dim=2)
            return
        if backbone.model_settings.cache is not None:
            raise UsageError(f"--cache {backbone.model_settings.cache} compares a frame with what stood at its place a round before, and "
                             "fifo moves frames on", expected="no --cache", hint="leave it out")  # fmt: skip
        foreign_hooks.check_uncached(backbone.transformers, "fifo moves frames on from round to round")
        early = steps - length  # frames that go out before the first that is kept
        counts = (length, early, steps)  # drawn before the first step, so that a run that goes on draws the same
        clip, before, after = (torch.randn(*latents.shape[:2], n, *latents.shape[3:], generator=generator) for n in counts)
        noise = torch.cat([before, latents.cpu(), after], dim=2)  # of every frame that is ever in the queue, in their order
        line_lat, done = self.ahead(length) + steps, 0
        if resume is not None:
            done, clip = resume.done, resume.latents
            if done == plan.rounds:
                yield from clip[:, :, :-line_lat].split(1, dim=2)
                return
        shares = np.ones((1, plan.frames_lat)) if plan.shares is None else plan.shares

        def predict(clips: Tensor, times: Tensor, step: int) -> Tensor:
            backbone.step_state.index = step
            text = prompt_schedule.mean_of(texts, shares[:, max(0, done - steps - early)])
            return backbone.velocity(clips, times, text, uncond, plan)

        def save(*parts: Tensor) -> None:
            if done % CHECKPOINT_ROUNDS == 0 or done == plan.rounds:
                on_step(direct.State(done, torch.cat(parts, dim=2), {}, generator.get_state()))

        with torch.no_grad(), backbone.installed(plan):  # which also puts the pipeline's scheduler back
            scheduler = backbone.pipe.scheduler = backbone.frame_schedule(plan)
            clip = clip.to(backbone.device, torch.float32)
            sigmas, timesteps = scheduler.sigmas.to(clip), scheduler.timesteps.to(clip)
            texts = [backbone.text(prompt)] if plan.shares is None else prompt_schedule.texts_of(backbone, plan)
            uncond = backbone.text(plan.sample.negative_prompt or "") if (plan.sample.guidance_scale or 0) > 1 else None
            for step in range(done, steps):
                clip = clip + (sigmas[step + 1] - sigmas[step]) * predict(clip, timesteps[step].expand(1, length), step)
                done = step + 1
                finite.check_latents(clip, backbone.model_settings, f"step {done} of {steps}, of the first clip")
                save(clip)
            frames = [clip[:, :, :0] if done == steps else clip[:, :, :-line_lat]]
            yield from (frame.unsqueeze(2) for frame in frames[0].unbind(dim=2))  # split would make one of none
            start = self.filled(clip, noise[:, :, :steps].to(clip), sigmas) if done == steps else clip[:, :, -line_lat:]
            alike = (plan.table == plan.table[:, :1]).all() and all(p is None or p.fusion is None for p in plan.programs)
            batch = (
                backbone.model_settings.clip_batch if alike else 1
            )  # windows stand at different steps, where attention may differ
            for frame, line in self.emitted(start, noise[:, :, done:], length, sigmas, timesteps, predict, batch):
                kept = done - steps >= early
                for part in (frame, line):
                    finite.check_latents(part, backbone.model_settings, f"round {done + 1} of {plan.rounds}")
                if kept:
                    frames.append(frame)
                done += 1
                save(*frames, line)
                if kept:
                    yield frame
        backbone.pipe.maybe_free_model_hooks()
