"""HunyuanVideo on diffusers' HunyuanVideoPipeline.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.

Text and video share self-attention, text last, padded text masked. Layers are counted through: the dual-stream blocks,
whose text has projections of its own, then the single-stream ones. Guidance is an input of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor

from longgen.attention.rotary import Tables
from longgen.pipelines.base import PipelineBackbone, to_frames, whole
from longgen.pipelines.processors import PlannedAttention, Tensors
from longgen.plan import Plan


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
    vae_kind = AutoencoderKLHunyuanVideo
    processor = HunyuanAttentionPlan
    stock = (HunyuanVideoAttnProcessor2_0,)

    @staticmethod
    def layers(transformer: Any) -> list[Attention]:
        return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]

    def encoded(self, prompt: str) -> dict[str, Tensor]:
        embeds, pooled, mask = self.encode_prompt(prompt)
        names = ("encoder_hidden_states", "pooled_projections", "encoder_attention_mask")
        return {name: part.to(self.pipe.transformer.dtype) for name, part in zip(names, (embeds, pooled, mask), strict=True)}

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        arguments = super().call_arguments(plan, prompt)
        del arguments["negative_prompt"]  # of no effect: the model is distilled for its guidance input
        return arguments

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """All frames at once, as the pipeline decodes them: diffusers blends overlapping runs of frames on the whole."""
        yield to_frames(vae.decode(whole(latents).to(device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0])
