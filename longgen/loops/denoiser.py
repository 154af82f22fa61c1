"""The denoiser of one generation: the backbone bound to its plan, its encoded text and classifier-free guidance.

Loops call `predict(x, timesteps, step, text)`, as samplers elsewhere call `model(x, sigma)`; no loop sees the family, its experts
or how it guides.

Legend: K clips, C channels, L latent frames of a clip, T of the video, S shots of a prompt schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from longgen.device_tables import on_device
from longgen.loops.prompt_schedule import blend
from longgen.pipelines.base import PipelineBackbone, Text
from longgen.pipelines.given import Given
from longgen.plan import Plan


@dataclass(eq=False)
class Denoiser:
    """A model that predicts for one plan and one prompt. With a prompt schedule in the plan, `prompt` is not read.

    given: what the video starts from beside noise, see `PipelineBackbone.given`. streams: when a loop has ended, the final latents
    of what the pipeline samples beside the video, by its names.
    """

    backbone: PipelineBackbone
    plan: Plan
    prompt: str
    given: Given | None = None
    streams: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    @torch.no_grad()
    def texts(self) -> list[Text]:
        """The encoded prompt, or the prompts of the schedule's shots; in a rollout those of `Plan.chunk_texts`.

        Raises LonggenError for text that is not finite.
        """
        schedule, prompts = self.plan.schedule, [self.prompt]
        if self.plan.chunk_lat is not None:
            prompts = [*self.plan.chunk_texts(self.prompt)[0]]
        elif schedule is not None:
            prompts = [shot.prompt for shot in schedule.shots]
        return [self.backbone.text(prompt, self.given) for prompt in prompts]

    @cached_property
    @torch.no_grad()
    def uncond(self) -> Text | None:
        """The encoded negative prompt; None without guidance."""
        return self.backbone.text(self.plan.sample.negative_prompt or "") if self.plan.guided else None

    @cached_property
    def shares(self) -> np.ndarray:
        """[S, T]: the share of each of `texts` in each latent frame."""
        return np.ones((1, self.plan.frames_lat)) if self.plan.shares is None else self.plan.shares

    def text(self, share: np.ndarray) -> Text:
        """`texts` blended by `share` [S]."""
        return blend(self.texts, share)

    def initial_noise(self, generator: torch.Generator) -> Tensor:
        """The noise [1, C, T, h, w] that the plan starts from; of no frame where each chunk or clip draws its own."""
        backbone, plan = self.backbone, self.plan
        if plan.in_parts:
            batch, channels, _, rows, columns = backbone.latent_shape(plan)
            return torch.empty(batch, channels, 0, rows, columns)
        noise = backbone.noise(plan, generator)
        return noise if plan.noise is None else plan.noise.mix(noise, plan.geometry, generator)

    @torch.no_grad()
    def predict(self, x: Tensor, timesteps: Tensor, step: int, text: Text) -> Tensor:
        """Classifier-free guidance: the guided velocity of clips `x` [K, C, L, h, w] whose frames are at `timesteps` [K, L].

        timesteps: on the host, which decides by them and so need not wait. uncond + scale (cond - uncond); without guidance cond
        alone. Where a model has two experts, each predicts the frames of its own timesteps and sees the other's. step: of the
        schedule; it selects what the plan does.
        """
        self.backbone.step_state.index = step
        guided = torch.zeros_like(x)
        sent = on_device(timesteps.numpy(), x.device)  # the same few in every round
        for expert in self.backbone.experts(self.plan):
            frames = (timesteps >= expert.from_timestep) & (timesteps < expert.below_timestep)
            if not frames.any():
                continue
            cond, uncond = self.backbone.velocity(expert.transformer, x, sent, text, self.uncond)
            velocity = cond if uncond is None else uncond + expert.guidance_scale * (cond - uncond)
            if frames.all():
                return velocity.to(x)
            guided = torch.where(on_device(frames.numpy(), x.device)[:, None, :, None, None], velocity.to(x), guided)
        return guided

    def predict_x0(self, before: Tensor, after: Tensor, step: int) -> tuple[Tensor, float]:
        """The clean latent x0 [1, C, T, h, w] that `step` of a first-order scheduler predicted, and d x0 / d x.

        Such a step keeps x0 and the noise and changes their shares, so the pipeline's latents `before` and `after` it give both.
        Frames that the pipeline puts back at its end are those that were given.
        """
        (alpha, sigma), (next_alpha, next_sigma), dx0_dx = self.backbone.levels(step)
        ratio = next_sigma / sigma
        x0 = (after.float() - ratio * before.to(after.device).float()) / (next_alpha - ratio * alpha)
        return self.backbone.predicted(self.backbone.unpacked(x0, self.plan), self.given), dx0_dx
