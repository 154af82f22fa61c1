"""LTX-Video (2B, 0.9) on diffusers' LTXPipeline, with a picture on LTXImageToVideoPipeline.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, C channels.

Its rotary tables span all channels: after a pad, every third pair belongs to time, so that heads turn at different
frequencies, and they are applied before the heads are told apart. Time counts in seconds: 8 / fps a latent frame, over 20.

A picture is the first latent frame, whose tokens are at timestep 0 and which the scheduler does not step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo, LTXImageToVideoPipeline, LTXPipeline
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from einops import rearrange
from torch import Tensor

from longgen.attention.rotary import Rotary
from longgen.pipelines import foreign_hooks
from longgen.pipelines.base import (
    PipelineBackbone,
    Text,
    Velocities,
    of_clips,
    split_guidance,
    to_device,
    to_frames,
    to_video,
    whole,
)
from longgen.pipelines.given import Given, put_back
from longgen.pipelines.processors import PlannedAttention
from longgen.plan import Plan
from longgen.technique import Grid


class LtxAttentionPlan(PlannedAttention):
    def attend(self, attn: LTXAttention, x: Tensor, text: None, mask: Tensor | None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        foreign_hooks.check_mask(mask)
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        q, k, v = (part.unflatten(2, (attn.heads, -1)) for part in (q, k, v))
        cos, sin = rotary  # [B, N, C], every value twice, samples alike
        output = self.run(attn, x, (cos[0, :, 0::2], sin[0, :, 0::2]), q, k, v)
        return attn.to_out[1](attn.to_out[0](output.type_as(q)))


class Ltx(PipelineBackbone):
    kind = LTXPipeline
    vae_kind = AutoencoderKLLTXVideo
    processor = LtxAttentionPlan
    stock = (LTXVideoAttnProcessor,)
    normalized_in: ClassVar[torch.dtype | None] = torch.float32  # what its pipeline normalises a picture in; None: the VAE's dtype

    @staticmethod
    def layers(transformer: Any) -> list[LTXAttention]:
        return [block.attn1 for block in transformer.transformer_blocks]

    @staticmethod
    def text_layers(transformer: Any) -> list[LTXAttention]:
        return [block.attn2 for block in transformer.transformer_blocks]

    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        embeds, mask, _, _ = self.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def rotary(self) -> Rotary:
        pad = self.spec.width % 6 // 2
        return Rotary(np.array(self.spec.frequencies), pad + 3 * np.arange(len(self.spec.frequencies)))

    @torch.no_grad()
    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """As LTXImageToVideoPipeline encodes a picture: a draw from the VAE's distribution, made by `generator`."""
        vae = self.pipe.vae
        to_device(vae)
        draw = vae.encode(to_video(frames).to(self.device, vae.dtype)).latent_dist.sample(generator)
        return LTXPipeline._normalize_latents(draw.to(self.normalized_in or vae.dtype), vae.latents_mean, vae.latents_std).float()

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """LTXImageToVideoPipeline, which takes latents that begin with the clean frame as they are."""
        if given is None:
            yield {}
            return
        with self.run_by(LTXImageToVideoPipeline):
            yield {"image": given.image}

    def started(self, noise: Tensor, given: Given | None) -> Tensor:
        if given is not None:
            noise = noise.to(self.device)  # where the pipeline then makes its mask of the clean frame
        return self.packed(put_back(given, noise))

    def packed(self, latents: Tensor) -> Tensor:
        return rearrange(latents, "b c t h w -> b (t h w) c")

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        time, rows, columns = plan.grid
        return rearrange(latents, "b (t h w) c -> b c t h w", t=time, h=rows, w=columns)

    def by_frame(self, x: Tensor, frames_lat: int) -> Tensor:
        return x.unflatten(1, (frames_lat, -1))

    def from_frames(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def frame_schedule(self, plan: Plan) -> Any:
        """As LTXPipeline shifts it: by the number of tokens, here those that the model sees at a time."""
        scheduler = self.first_order(plan)
        names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        mu = calculate_shift(math.prod(plan.call_grid), *(scheduler.config.get(name, value) for name, value in names.items()))
        sigmas = np.linspace(1.0, 1 / plan.steps, plan.steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self.pipe._execution_device)
        return scheduler

    def velocity(self, transformer: Any, x: Tensor, timesteps: Tensor, text: Text, uncond: Text | None) -> Velocities:
        """Both texts in one call, as LTXPipeline guides."""
        time, rows, columns = x.shape[2:]
        branches = [text] if uncond is None else [uncond, text]
        words = {
            name: torch.cat([branch[name].expand(len(x), *part.shape[1:]) for branch in branches]) for name, part in text.items()
        }
        (output,) = transformer(
            hidden_states=torch.cat([self.packed(x)] * len(branches)).to(words["encoder_hidden_states"].dtype),
            timestep=torch.cat([timesteps.repeat_interleave(rows * columns, dim=1)] * len(branches)),
            return_dict=False, **self.positions((time, rows, columns), x.device), **words,
        )  # fmt: skip
        predicted = rearrange(output.to(x), "b (t h w) c -> b c t h w", t=time, h=rows, w=columns)
        return split_guidance(predicted, uncond)

    def positions(self, grid: Grid, device: torch.device) -> dict[str, Any]:
        """The transformer's arguments that say where the tokens of `grid` are."""
        time, rows, columns = grid
        scale = (self.spec.stride_t / self.spec.fps, self.spec.stride_hw, self.spec.stride_hw)
        return dict(num_frames=time, height=rows, width=columns, rope_interpolation_scale=scale)

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, frames: Tensor) -> dict[str, Any]:
        changed = super().clip_arguments(arguments, part, frames) | {"num_frames": part.shape[1]}
        timestep = arguments["timestep"]
        if timestep.ndim == 2 and timestep.shape[1] > 1:  # one for each token
            changed["timestep"] = of_clips(timestep, timestep.shape[1] // part.shape[2], frames)
        return changed

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        return super().call_arguments(plan, prompt) | {"frame_rate": self.spec.fps}  # positions count seconds

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """All frames at once: this VAE looks ahead. With tiling, diffusers decodes in pieces."""
        latents = LTXPipeline._denormalize_latents(
            whole(latents).to(device, torch.float32), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        time = torch.zeros(1, device=device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
        yield to_frames(vae.decode(latents.to(vae.dtype), time, return_dict=False)[0])
