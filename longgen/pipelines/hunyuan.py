"""HunyuanVideo on diffusers' HunyuanVideoPipeline, HunyuanVideo-I2V on HunyuanVideoImageToVideoPipeline.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.

Text and video share self-attention, text last, padded text masked. Layers are counted through: the dual-stream blocks,
whose text has projections of its own, then the single-stream ones. Guidance is an input of the model.

I2V ("token_replace"): the picture is the first latent frame, whose tokens the blocks modulate as at timestep 0, outside attention;
the noise of the others has a thousandth of it in. A clip that begins later has its first frame modulated as the others. The text
encoder looks at the picture too: of its tokens, which come before the prompt's, one in four stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from PIL import Image
from torch import Tensor

from longgen.attention.rotary import Tables
from longgen.pipelines.base import PipelineBackbone, to_device, to_frames, to_video, whole
from longgen.pipelines.given import Given, put_back
from longgen.pipelines.processors import PlannedAttention, Tensors
from longgen.plan import Plan

NOISE_SHARE = 0.999  # of what sampling starts from, beside the picture; diffusers 0.42.1, prepare_latents
PICTURE_TOKENS = 4  # one in so many of the picture's tokens is kept; the same, for token_replace


class HunyuanAttentionPlan(PlannedAttention):
    def attend(
        self, attn: Attention, x: Tensor, text: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        text_tokens = text.shape[1]
        joint = attn.add_q_proj is None
        tokens = torch.cat([x, text], dim=1) if joint else x
        q, k, v = (part.unflatten(2, (attn.heads, -1)) for part in (attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)))
        q = attn.norm_q(q)
        k = attn.norm_k(k)
        if joint:
            (q, text_q), (k, text_k), (v, text_v) = ((part[:, :-text_tokens], part[:, -text_tokens:]) for part in (q, k, v))
        else:
            added = (projection(text) for projection in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
            text_q, text_k, text_v = (part.unflatten(2, (attn.heads, -1)) for part in added)
            text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        tables = rotary[0][:, 0::2], rotary[1][:, 0::2]  # [N, D], every value twice
        video, text = self.run_samples(attn, x, tables, (q, k, v), (text_q, text_k, text_v), mask)
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text

    @torch.compiler.disable
    def run_samples(
        self, layer: Any, features: Tensor, tables: Tables, video: Tensors, text: Tensors, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`run_joint`, sample by sample, since prompts, and so keys, differ in length. video, text: q, k and v."""
        (q, k, v), videos, texts = video, [], []
        shown = [slice(None)] * len(q) if mask is None else self.step_state.visible_text(mask, text[0].shape[1])
        for index in range(len(features)):
            rows, seen = slice(index, index + 1), shown[index]
            video_qkv, text_qkv = (q[rows], k[rows], v[rows]), (text[0][rows], text[1][rows, seen], text[2][rows, seen])
            video_output, text_output = self.run_joint(layer, features[rows], tables, video_qkv, text_qkv, index)
            videos.append(video_output)
            texts.append(text_output)
        return torch.cat(videos).type_as(q), torch.cat(texts).type_as(q)


class Hunyuan(PipelineBackbone):
    kind = HunyuanVideoPipeline
    picture_kind = HunyuanVideoImageToVideoPipeline
    vae_kind = AutoencoderKLHunyuanVideo
    processor = HunyuanAttentionPlan
    stock = (HunyuanVideoAttnProcessor2_0,)
    _begins_clean: Tensor | None = None  # [K] for each clip of a call, whether it begins with the video's first frame

    @staticmethod
    def layers(transformer: Any) -> list[Attention]:
        return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]

    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        if given is None:
            embeds, pooled, mask = self.encode_prompt(prompt)
        else:
            length, device = self.spec.text_tokens, self.pipe._execution_device
            embeds, pooled, mask = self.pipe.encode_prompt(
                self.picture(given), prompt, max_sequence_length=length, device=device, image_embed_interleave=PICTURE_TOKENS
            )
        names = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")
        return {name: part.to(self.pipe.transformer.dtype) for name, part in zip(names, (embeds, pooled, mask), strict=True)}

    @torch.no_grad()
    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """As HunyuanVideoImageToVideoPipeline encodes a picture: the mode of the VAE's distribution."""
        vae = self.pipe.vae
        to_device(vae)
        latents = vae.encode(to_video(frames).to(self.device, vae.dtype)).latent_dist.mode()
        return latents.float() * vae.config.scaling_factor

    def picture(self, given: Given) -> Image.Image:
        """What the text encoder looks at: the picture, or the last of the frames that an earlier video left."""
        if given.image is not None:
            return given.image
        assert given.latents is not None
        to_device(self.pipe.vae)
        (*_, frames) = self.decode(given.latents)
        return Image.fromarray(frames[-1])

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """The pipeline's `prepare_latents` would encode the picture again, and mix it into the noise, as `started` has."""
        if given is None or given.latents is None:
            yield {}
            return
        pipe, clean, self._begins_clean = self.pipe, given.latents, None

        def prepare_latents(*arguments: Any) -> tuple[Tensor, Tensor]:
            dtype, device, _, latents, _ = arguments[-5:]
            return latents.to(device, dtype), clean.to(device, dtype)

        def modulation(module: Any, args: Any, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            others, first = embeddings  # [B, C]: of the frames, and of the first one, which the model takes for clean
            if self._begins_clean is None:
                return embeddings
            begins = self._begins_clean.to(first.device).repeat_interleave(len(first) // len(self._begins_clean))
            return others, torch.where(begins[:, None], first, others)

        hook = pipe.transformer.time_text_embed.register_forward_hook(modulation)
        pipe.prepare_latents = prepare_latents
        try:
            yield {"image": self.picture(given)}
        finally:
            hook.remove()
            del pipe.prepare_latents
            self._begins_clean = None

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, frames: Tensor) -> dict[str, Any]:
        self._begins_clean = frames[:, 0] == 0
        return super().clip_arguments(arguments, part, frames)

    def started(self, noise: Tensor, given: Given | None) -> Tensor:
        if given is None or given.latents is None:
            return noise
        last, share = given.latents[:, :, -1:].to(noise), torch.tensor([NOISE_SHARE])
        return put_back(given, noise * share + last * (1 - share))

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        arguments = super().call_arguments(plan, prompt)
        del arguments["negative_prompt"]  # of no effect: the model is distilled for its guidance input
        return arguments

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """All frames at once, as the pipeline decodes them: diffusers blends overlapping runs of frames on the whole."""
        yield to_frames(vae.decode(whole(latents).to(device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0])
