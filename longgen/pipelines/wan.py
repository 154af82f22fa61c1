"""Wan 2.1 and 2.2 on diffusers' WanPipeline; two experts are two transformers with the same plan.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from PIL import Image
from torch import Tensor

from longgen.attention.rotary import Tables
from longgen.pipelines import foreign_hooks
from longgen.pipelines.base import Expert, PipelineBackbone, Text, Velocities, of_clips, to_device, to_frames, to_video, whole
from longgen.pipelines.given import Given, put_back
from longgen.pipelines.processors import PlannedAttention, project
from longgen.plan import Plan


def qkv(attn: WanAttention, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tables, Tensor, Tensor, Tensor]:
    """The rotary tables [N, D / 2] of `rotary`, and q, k and v [B, N, H, D] of the features `x` [B, N, C]."""
    q, k, v = project(attn, x)
    q = attn.norm_q(q).unflatten(2, (attn.heads, -1))  # one after the other, so that few are alive
    k = attn.norm_k(k).unflatten(2, (attn.heads, -1))
    v = v.unflatten(2, (attn.heads, -1))
    cos, sin = rotary  # [1, N, 1, D], every value twice
    return (cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]), q, k, v


class WanAttentionPlan(PlannedAttention):
    def attend(self, attn: WanAttention, x: Tensor, text: None, mask: Tensor | None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        foreign_hooks.check_mask(mask)
        tables, q, k, v = qkv(attn, x, rotary)
        output = self.run(attn, x, tables, q, k, v)
        return attn.to_out[1](attn.to_out[0](output.type_as(q)))


class Wan(PipelineBackbone):
    kind = WanPipeline
    picture_kind = WanImageToVideoPipeline
    vae_kind = AutoencoderKLWan
    processor = WanAttentionPlan
    stock = (WanAttnProcessor,)

    @staticmethod
    def layers(transformer: Any) -> list[WanAttention]:
        return [block.attn1 for block in transformer.blocks]

    @staticmethod
    def text_layers(transformer: Any) -> list[WanAttention]:
        return [block.attn2 for block in transformer.blocks]

    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        embeds, _ = self.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeds.to(self.pipe.transformer.dtype)}

    def experts(self, plan: Plan) -> list[Expert]:
        """As WanPipeline divides the schedule between the two of Wan 2.2, and guides each."""
        boundary = (self.pipe.config.boundary_ratio or 0) * self.pipe.scheduler.config.num_train_timesteps
        scales = self.call_arguments(plan, "")
        high = Expert(self.pipe.transformer, scales["guidance_scale"], from_timestep=boundary)
        if not boundary:
            return [high]
        scale_2 = scales.get("guidance_scale_2", scales["guidance_scale"])
        return [high, Expert(self.pipe.transformer_2, scale_2, below_timestep=boundary)]

    def velocity(self, transformer: Any, x: Tensor, timesteps: Tensor, text: Text, uncond: Text | None) -> Velocities:
        """A call for each text, as WanPipeline makes them."""
        tokens = timesteps.repeat_interleave(math.prod(x.shape[3:]) // math.prod(self.spec.patch[1:]), dim=1)

        def call(branch: Text) -> Tensor:
            words = {name: part.expand(len(x), *part.shape[1:]) for name, part in branch.items()}
            return transformer(hidden_states=x.to(transformer.dtype), timestep=tokens, return_dict=False, **words)[0]

        return call(text), None if uncond is None else call(uncond)

    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """As WanImageToVideoPipeline encodes a picture: the mode of the VAE's distribution."""
        vae = self.pipe.vae
        to_device(vae)
        with torch.no_grad():
            latents = vae.encode(to_video(frames).to(self.device, vae.dtype)).latent_dist.mode().float()
        mean, std = (torch.tensor(statistic, device=latents.device).view(1, -1, 1, 1, 1)
                     for statistic in (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
        return (latents - mean) * (1.0 / std)

    def given(self, plan: Plan, generator: torch.Generator) -> Given | None:
        """Wan I2V encodes the picture with the grey frames after it, in its pipeline."""
        if not self.spec.picture_needed or plan.conditions.past is not None:
            given = super().given(plan, generator)
            own = given is not None and given.image is not None and self.spec.picture_needed
            return replace(given, latents=None) if given is not None and own else given
        image, last_image = self.fitted_pictures(plan)
        return None if image is None else Given(None, image, last_image)

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        if given is None:
            yield {}
        elif self.spec.picture_needed:
            with self._beside(given):
                picture = given.image if given.image is not None else self._decoded_picture(given)
                yield {"image": picture, "last_image": given.last_image}
        else:
            with self._in_place(given):
                yield {"image": given.image if given.image is not None else Image.new("RGB", plan.size)}  # not read

    @contextmanager
    def _beside(self, given: Given) -> Iterator[None]:
        """Wan I2V, whose condition is channels beside the latents: a mask, and the encoding of the picture and of grey frames.

        Pictures are the pipeline's own matter. For latents that are handed over, it makes the condition of the first of them, which
        is decoded for it; they then take their place [derived]: none is encoded again, and what follows is as in training.
        """
        if given.latents is None and not given.zero_padded:
            yield
            return
        pipe, clean, channels = self.pipe, given.latents, self.spec.latent_channels
        own, count = pipe.prepare_latents, 1 if clean is None else clean.shape[2]

        def prepare_latents(*arguments: Any) -> tuple[Tensor, Tensor]:
            latents, condition = own(*arguments)
            mask, encoded = condition[:, :-channels], condition[:, -channels:]
            if clean is not None:
                encoded[:, :, :count] = clean.to(encoded)
            if given.zero_padded:
                encoded[:, :, count:] = 0
            else:
                mask[:, :, :count] = 1
            return latents, condition

        pipe.prepare_latents = prepare_latents
        try:
            yield
        finally:
            del pipe.prepare_latents

    def _decoded_picture(self, given: Given) -> Image.Image:
        assert given.latents is not None
        return Image.fromarray(next(self.decode(given.latents[:, :, :1]))[0])

    @contextmanager
    def _in_place(self, given: Given) -> Iterator[None]:
        """Wan 2.2 TI2V-5B, where what is given takes the place of the first latents, at timestep 0.

        WanImageToVideoPipeline on the same components; its `prepare_latents` would encode again what was encoded before. It writes
        the timesteps of tokens for a patch of 2x2 cells, so that those of another patch are written here.
        """
        assert given.latents is not None
        clean = given.latents

        def prepare_latents(image: Any, batch: int, channels: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
            latents = rest[-2].to(self.device, torch.float32)
            condition, mask = torch.zeros_like(latents), torch.ones_like(latents[:, :1])
            condition[:, :, : clean.shape[2]] = clean
            mask[:, :, : clean.shape[2]] = 0
            return latents, condition, mask

        def expand(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            time, height, width = kwargs["hidden_states"].shape[2:]
            tokens = height * width // math.prod(self.spec.patch[1:])
            by_frame = kwargs["timestep"].unflatten(1, (time, -1))[:, :, 0]
            return args, kwargs | {"timestep": by_frame.repeat_interleave(tokens, dim=1)}

        hook = self.pipe.transformer.register_forward_pre_hook(expand, with_kwargs=True, prepend=True)
        try:
            with self.run_by(WanImageToVideoPipeline) as pipe:
                pipe.register_to_config(expand_timesteps=True)
                pipe.prepare_latents = prepare_latents
                yield
        finally:
            hook.remove()

    def finished(self, latents: Tensor, given: Given | None) -> Tensor:
        """As TI2V-5B's pipeline puts back what was given; that of Wan I2V does not."""
        return latents if self.spec.picture_needed else put_back(given, latents)

    def zeros(self, arguments: dict[str, Any]) -> Tensor:
        return torch.zeros_like(arguments["hidden_states"][:, : self.spec.latent_channels])

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, frames: Tensor) -> dict[str, Any]:
        changed = super().clip_arguments(arguments, part, frames)
        if arguments["timestep"].ndim == 2:  # one for each token
            changed["timestep"] = of_clips(arguments["timestep"], arguments["hidden_states"].shape[2], frames)
        if (features := arguments.get("encoder_hidden_states_image")) is not None:  # of two pictures a sample, with a last one
            changed["encoder_hidden_states_image"] = features.repeat(len(frames), 1, 1)
        return changed

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        arguments = super().call_arguments(plan, prompt)
        if self.spec.experts == 2 and plan.sample.guidance_scale == self.spec.guidance_scale:
            arguments["guidance_scale_2"] = self.spec.guidance_scale_2  # another one asked for holds for both experts
        return arguments

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """Frames [1 or 4, height, width, 3] uint8, one latent frame at a time, from latents [1, C, T, h, w] or their frames.

        Equal to WanPipeline's decoding of the whole, bit for bit, in memory that does not grow with T. With tiling, which
        diffusers does on the whole only, all frames come at once.
        """
        config = vae.config
        to_device(vae)
        mean, std = (torch.tensor(statistic, device=device, dtype=vae.dtype).view(1, -1, 1, 1, 1)
                     for statistic in (config.latents_mean, config.latents_std))  # fmt: skip
        if vae.use_tiling:
            latents = whole(latents).to(device, vae.dtype) / (1.0 / std) + mean
            yield to_frames(vae.decode(latents, return_dict=False)[0])
            return
        vae.clear_cache()
        parts = [latents] if isinstance(latents, Tensor) else latents
        # divided by the inverse, as WanPipeline does; what comes whole is prepared whole, for the same rounding
        prepared = (vae.post_quant_conv(part.to(device, vae.dtype) / (1.0 / std) + mean) for part in parts)
        for index, latent in enumerate(frame for part in prepared for frame in part.split(1, dim=2)):
            vae._conv_idx = [0]
            video = vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0)
            yield to_frames(video if config.patch_size is None else unpatchify(video, patch_size=config.patch_size))
        vae.clear_cache()
