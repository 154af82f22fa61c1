"""The autoregressive rollout: a causal model makes a video chunk by chunk, of any length, over a cache of keys and values.

Papers: Self-Forcing, arXiv 2506.08009, code 33593df (the loop); LongLive, arXiv 2509.22622, code v1.0 e52d9ef (re-caching where the
prompt changes); infinity-RoPE, arXiv 2511.20649, code 63d7b84 (flushing there).

Legend: c latent frames of a chunk, S steps, sigma_j the noise level of step j, t_j = 1000 sigma_j, v the model's velocity.

    sigma_j = s u / (1 + (s - 1) u),  u = 1 - j / S, s the model's shift                                     [code]
    for each chunk: x = noise, and for j = 0 .. S - 1
        x0 = x - sigma_j v(x, t_j, cache)
        x  = (1 - sigma_(j+1)) x0 + sigma_(j+1) e,  e fresh noise; the last x0 is the chunk                  [code]
    then v(x0, t = `context_noise`, cache), only for the keys and values that it leaves in the cache         [code]

Constants: c = 3, S = 4 and s = 5, so that t = 1000, 937.5, 833.3, 625; context_noise = 0 [code]. What a chunk sees of the past, and
at which times, is the frame plan's affair: the techniques window, sink, rebase, flex.

A prompt changes with the first chunk that starts at or after the change: the chunk in which it falls is made with the one before,
so that latent frames 40, 80, 120, 160 and 200 become 42, 81, 120, 162 and 201 [code, LongLive]. `switch` says what becomes of the
cache there:
    recache   its frames run again with the new prompt, clean and all at once. While the window holds all of the video so far the
              sink is among them; later it keeps the prompt that it had, and the rest see it so [code, LongLive]. Where windows
              differ by layer or step, only the frames in all of them [derived]
    flush     only the sink and the last `kept` frames stay: 2 in infinity-RoPE's code, 1 in its paper
    keep      it stays: only the text changes
In a schedule with a blend a chunk has the mean of its frames' texts [derived].

Differs from the references: keys are cached before rotary positions [as infinity-RoPE]; all in float32, x0 too, where the
reference takes float64 · frames beyond the video's end, of its last chunk, are made and left out [derived] · guidance, which none
of them has, runs both texts in one batch [derived].

A run that goes on makes the clean passes of what it had made again, 1 of S + 1, since a cache is larger than it is worth keeping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.schedule import by_chunk
from longgen.technique import LONGEST, Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from longgen.attention.kvcache import KVCache
    from longgen.loops.direct import State
    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan


class Rollout(Sampling):
    """chunk: c. context_noise: the timestep of the clean pass. switch, kept: see above."""

    paper: ClassVar[str] = "Self-Forcing, arXiv 2506.08009"
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)
    streams: ClassVar[bool] = True
    in_chunks: ClassVar[bool] = True

    chunk: int = Field(3, ge=1, le=LONGEST)
    context_noise: float = Field(0.0, ge=0, le=1000)
    switch: Literal["recache", "flush", "keep"] = "recache"
    kept: int = Field(2, ge=1, le=LONGEST)

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        if self.chunk > native_lat:
            raise UsageError(f"rollout.chunk = {self.chunk} latent frames, but the model was trained on {native_lat} in all",
                             expected=f"1 to {native_lat}", hint="leave it out for the 3 of published models")  # fmt: skip
        return self.chunk

    def calls(self, frames_lat: int, native_lat: int) -> float:
        return self.rounds(frames_lat, native_lat, 1)

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """The chunks."""
        return -(-frames_lat // self.chunk)

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
        """All frames of `stream`, [1, C, T, h, w]."""
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
        """The frames as their chunks are done; those that an interrupted run had finished come first. latents: of no frame."""
        import torch

        from longgen.loops import direct, prompt_schedule
        from longgen.pipelines import finite

        done = 0 if resume is None else resume.done
        carried: list[Tensor | None] = [None] * plan.steps  # the last frame of noise of each step
        if resume is not None:
            generator.set_state(resume.generator)
            carried = [*resume.scheduler["carried"]]
        shape, chunk = (*latents.shape[:2], self.chunk, *latents.shape[3:]), self.chunk
        with torch.no_grad():
            texts = [backbone.text(prompt)] if plan.schedule is None else prompt_schedule.texts_of(backbone, plan)
            uncond = backbone.text(plan.sample.negative_prompt or "") if (plan.sample.guidance_scale or 0) > 1 else None
        shares = np.ones((plan.rounds, 1))
        if plan.schedule is not None and plan.shares is not None:
            shares = by_chunk(plan.schedule, plan.shares, chunk)
        step_state, sink = backbone.step_state, _sink_of(plan)
        recent = torch.zeros(shape, device=backbone.device)[:, :, :0]  # clean frames, as many as the cache may hold

        def noise(step: int) -> Tensor:
            fresh = torch.randn(shape, generator=generator)
            maker = plan.noise
            if maker is not None and plan.geometry.ratio > 1 and maker.mixes(step):
                fresh = maker.mix_chunk(fresh, carried[step])
                carried[step] = fresh[:, :, -1:].clone()
            return fresh.to(backbone.device)

        def predict(x: Tensor, timestep: float, share: np.ndarray) -> Tensor:
            times = torch.full((1, x.shape[2]), timestep, device=x.device)
            with torch.no_grad():  # here, since a generator that yields under it leaves it on
                return backbone.velocity(x, times, prompt_schedule.mean_of(texts, share), uncond, plan)

        def denoised(share: np.ndarray) -> Tensor:
            x = noise(0)
            for step, timestep in enumerate(timesteps):
                step_state.index = step
                clean = x - sigmas[step] * predict(x, timestep, share)
                where = f"chunk {index + 1} of {plan.rounds}, step {step + 1} of {plan.steps}"
                finite.check_latents(clean, backbone.model_settings, where)
                if step + 1 < plan.steps:
                    x = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * noise(step + 1)
            return clean

        def write(x: Tensor, start: int, cache: KVCache, share: np.ndarray) -> None:
            step_state.index, cache.writing = plan.steps - 1, True
            predict(x, self.context_noise, share)
            cache.writing = False
            cache.close(start)

        if done == plan.rounds:
            assert resume is not None
            for index in range(done):
                yield from resume.latents[index][:, :, : plan.frames_lat - index * chunk].split(1, dim=2)
            return
        with backbone.rolling(plan) as cache:
            scheduler = backbone.frame_schedule(plan)
            sigmas, timesteps = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
            for index in range(plan.rounds):
                start, share = index * chunk, shares[index]
                if index and not np.array_equal(share, shares[index - 1]):
                    cache.forget_text()
                    whole = len(cache.visible_to_all_layers) == start  # nothing has left the window yet
                    again = [frame for frame in cache.visible_to_all_layers if whole or frame >= sink]
                    if self.switch == "flush":
                        cache.keep([frame for frame in cache.frames if frame < sink or frame >= start - self.kept])
                    elif self.switch == "recache" and again:
                        cache.open(again[0], len(again), *plan.programs_for_chunk(start, len(again)))
                        write(recent[:, :, -len(again) :], again[0], cache, share)
                cache.open(start, chunk, *plan.programs_for_chunk(start + chunk, chunk, cache.frames))
                if index < done:
                    assert resume is not None
                    clean = resume.latents[index].to(backbone.device)
                else:
                    clean = denoised(share)
                    on_step(direct.State(index + 1, clean, {"carried": carried}, generator.get_state()))
                if index + 1 < plan.rounds:
                    write(clean, start, cache, share)
                    recent = torch.cat([recent, clean], dim=2)[:, :, -plan.slots_lat :]
                yield from clean[:, :, : plan.frames_lat - start].split(1, dim=2)
        backbone.pipe.maybe_free_model_hooks()


def _sink_of(plan: Plan) -> int:
    """Frames at the beginning that the stack keeps in the cache."""
    return max((getattr(act.technique, "frames", 0) for act in plan.techniques if act.name == "sink"), default=0)
