"""CogVideoX 2B and 5B on diffusers' CogVideoXPipeline, 5B-I2V on CogVideoXImageToVideoPipeline.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.

Text and video share self-attention, text first. The 2B model has no rotary positions: absolute ones are added to its input.
A token of 1.5 holds two latent frames, which its pipeline pads in front to an even number: here such a pair is one latent frame of
twice the channels, so that noise, clips and windows are cut between tokens; latents have their own frames again in the pipeline and
for the VAE, which gets none of the padding.
5B-I2V has both. Its input holds, beside the noisy latents, those of the picture in the first frame and zeros in the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
)
from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0
from PIL import Image
from torch import Tensor

from longgen.pipelines import foreign_hooks
from longgen.pipelines.base import PipelineBackbone, to_device, to_frames, to_video, whole
from longgen.pipelines.given import Given
from longgen.pipelines.processors import PlannedAttention, project
from longgen.plan import Plan


class CogVideoXAttentionPlan(PlannedAttention):
    def attend(
        self, attn: Attention, x: Tensor, text: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        foreign_hooks.check_mask(mask)
        text_tokens = text.shape[1]
        q, k, v = project(attn, torch.cat([text, x], dim=1))
        q, k, v = (part.unflatten(2, (attn.heads, -1)) for part in (q, k, v))
        q = attn.norm_q(q)
        k = attn.norm_k(k)
        (text_q, q), (text_k, k), (text_v, v) = ((part[:, :text_tokens], part[:, text_tokens:]) for part in (q, k, v))
        tables = None if rotary is None else (rotary[0][:, 0::2], rotary[1][:, 0::2])  # [N, D], every value twice
        outputs = self.run_joint(attn, x, tables, (q, k, v), (text_q, text_k, text_v))
        video, text = (attn.to_out[1](attn.to_out[0](part.type_as(q))) for part in outputs)
        return video, text


def joined(latents: Tensor, pair: int) -> Tensor:
    """Latents [B, C, T `pair`, h, w] as [B, `pair` C, T, h, w]: the channels of the frames of a token, one after the other."""
    return latents if pair == 1 else latents.unflatten(2, (-1, pair)).movedim(3, 1).flatten(1, 2)


def parted(latents: Tensor, pair: int) -> Tensor:
    """The inverse of `joined`."""
    return latents if pair == 1 else latents.unflatten(1, (pair, -1)).movedim(1, 3).flatten(2, 3)


class RememberingDPMScheduler(CogVideoXDPMScheduler):
    """diffusers' scheduler, but it keeps what the pipeline keeps for it in a local variable, so that a run can be resumed."""

    old_pred_original_sample: Tensor | None = None

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.old_pred_original_sample = None
        super().set_timesteps(*args, **kwargs)

    @wraps(CogVideoXDPMScheduler.step)  # the pipeline hands over its generator where the signature names one
    def step(self, model_output: Tensor, old_pred_original_sample: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        latents, self.old_pred_original_sample = super().step(model_output, self.old_pred_original_sample, *args, **kwargs)
        return latents, self.old_pred_original_sample


class CogVideoX(PipelineBackbone):
    kind = CogVideoXPipeline
    picture_kind = CogVideoXImageToVideoPipeline
    vae_kind = AutoencoderKLCogVideoX
    processor = CogVideoXAttentionPlan
    stock = (CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0)

    def __post_init__(self) -> None:
        if isinstance(self.pipe.scheduler, CogVideoXDPMScheduler):
            self.pipe.scheduler = RememberingDPMScheduler.from_config(self.pipe.scheduler.config)
        super().__post_init__()

    @staticmethod
    def layers(transformer: Any) -> list[Attention]:
        return [block.attn1 for block in transformer.transformer_blocks]

    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        embeds, _ = self.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeds}

    def noise(self, plan: Plan, generator: torch.Generator) -> Tensor:
        (_, channels, time, height, width), pair = self.latent_shape(plan), self.spec.token_lat
        return joined(torch.randn((1, pair * time, channels // pair, height, width), generator=generator).transpose(1, 2), pair)

    @torch.no_grad()
    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """As CogVideoXImageToVideoPipeline encodes a picture: a draw from the VAE's distribution, made by `generator`.

        In float64, so that `conditioned` has the draw back without loss: the pipeline scales what the model sees of a picture in
        another way than what it decodes.
        """
        vae = self.pipe.vae
        to_device(vae)
        draw = vae.encode(to_video(frames).to(self.device, vae.dtype)).latent_dist.sample(generator)
        clean = draw.cpu().double() * vae.config.scaling_factor
        return joined(
            F.pad(clean, (0, 0, 0, 0, 0, self.spec.token_lat - 1)), self.spec.token_lat
        )  # a picture stands first in its pair

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """The pipeline's `prepare_latents` would encode the picture again: what it makes is made here of what was encoded."""
        if given is None or given.latents is None:
            yield {}
            return
        pipe, scale, invert = self.pipe, self.pipe.vae.config.scaling_factor, self.pipe.vae.config.invert_scale_latents
        clean = parted(given.latents.cpu().double(), self.spec.token_lat)
        if self.spec.token_lat > 1:  # one latent frame of the pair: the picture, or the last of an earlier video
            clean = clean[:, :, -1:] if given.image is None else clean[:, :, :1]

        def prepare_latents(*arguments: Any) -> tuple[Tensor, Tensor]:
            dtype, device, _, latents = arguments[-4:]
            draw = (clean / scale).to(dtype)
            seen = (1 / scale * draw if invert else scale * draw).to(device).transpose(1, 2)
            rest = torch.zeros_like(latents[:, seen.shape[1] :], device=device, dtype=dtype)
            return latents.to(device) * pipe.scheduler.init_noise_sigma, torch.cat([seen, rest], dim=1)

        pipe.prepare_latents = prepare_latents
        try:  # a picture is asked for, and not looked at
            yield {"image": given.image or Image.new("RGB", plan.size)}
        finally:
            del pipe.prepare_latents

    def zeros(self, arguments: dict[str, Any]) -> Tensor:
        return torch.zeros_like(arguments["hidden_states"][:, :, : self.spec.latent_channels // self.spec.token_lat])

    def packed(self, latents: Tensor) -> Tensor:
        own = parted(latents, self.spec.token_lat)
        return own.transpose(1, 2).to(self.pipe.text_encoder.dtype)  # the pipeline casts its own noise only

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        return joined(latents.transpose(1, 2), self.spec.token_lat)

    def first_order(self, plan: Plan) -> CogVideoXDDIMScheduler:
        return CogVideoXDDIMScheduler.from_config(self.pipe.scheduler.config)

    def levels(self, step: int) -> tuple[tuple[float, float], tuple[float, float], float]:
        scheduler = self.pipe.scheduler
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        timestep = int(self.step_state.step.timesteps[step])
        after = scheduler.alphas_cumprod[timestep - stride] if timestep >= stride else scheduler.final_alpha_cumprod
        (before, sigma), (next_alpha, next_sigma) = (
            (float(share) ** 0.5, (1 - float(share)) ** 0.5) for share in (scheduler.alphas_cumprod[timestep], after)
        )
        return (before, sigma), (next_alpha, next_sigma), before  # x0 = alpha x - sigma v

    def by_frame(self, x: Tensor, frames_lat: int) -> Tensor:
        return x if self.spec.token_lat == 1 else x.unflatten(1, (frames_lat, -1))

    def from_frames(self, x: Tensor) -> Tensor:
        return x if self.spec.token_lat == 1 else x.flatten(1, 2)

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, frames: Tensor) -> dict[str, Any]:
        changed = super().clip_arguments(arguments, part, frames)
        if arguments["image_rotary_emb"] is not None:
            tokens = math.prod(part.shape[idx] for idx in (1, -2, -1)) // math.prod(self.spec.patch)
            changed["image_rotary_emb"] = tuple(table[:tokens] for table in arguments["image_rotary_emb"])
        return changed

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """Frames of two or three latent frames at a time, equal to the pipeline's decoding of the whole, bit for bit.

        With tiling, which diffusers does on the whole only, all frames come at once.
        """
        to_device(vae)
        latents = whole(latents)
        pair = latents.shape[1] // vae.config.latent_channels
        latents = parted(latents, pair)[:, :, pair - 1 :]  # without the padding of the first
        latents = 1 / vae.config.scaling_factor * latents.to(device, vae.dtype)
        if vae.use_tiling:
            yield to_frames(vae.decode(latents).sample)
            return
        few, cache = vae.num_latent_frames_batch_size, None
        first = latents.shape[2] % few + few  # the odd frame goes with the first ones
        for part in (latents[:, :, :first], *latents[:, :, first:].split(few, dim=2)):
            if part.shape[2]:
                video, cache = vae.decoder(part if vae.post_quant_conv is None else vae.post_quant_conv(part), conv_cache=cache)
                yield to_frames(video)
