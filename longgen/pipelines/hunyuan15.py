"""HunyuanVideo-1.5 on diffusers' HunyuanVideo15Pipeline, its image-to-video on HunyuanVideo15ImageToVideoPipeline.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.

Video and text share self-attention in dual-stream blocks, text last: tokens of a picture, of quoted words (byT5) and of the prompt
(Qwen2.5-VL), those that are shown first, padding after them. The input holds, beside the noisy latents, those of the picture in the
first frame, zeros in the others, and a mask of it; a text-to-video model gets zeros. Guidance is the pipeline's guider, two calls.

diffusers' two pipelines have no callback after a step and take the guidance scale from their guider, and I2V chooses the size by
the picture's shape: a loaded pipeline gets the three as arguments, by a subclass, and nothing else. Its attention writes down a
mask of (N + L) x (N + L) in every layer, 38 GB at 485 frames of 848x480; `RowMask` has the same sums from a mask of one row. The
registry that diffusers' step caches go by lacks the blocks, and gets them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0, HunyuanVideo15TransformerBlock
from PIL import Image
from torch import Tensor

from longgen.errors import UsageError
from longgen.pipelines.base import PipelineBackbone, to_device, to_frames, to_video, whole
from longgen.pipelines.given import Given
from longgen.pipelines.hunyuan import HunyuanAttentionPlan
from longgen.plan import Plan

TransformerBlockRegistry.register(HunyuanVideo15TransformerBlock, TransformerBlockMetadata(0, 1))  # as HunyuanVideo's
AfterStep = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]]


class _Steps:
    """What diffusers' other pipelines have and these two lack: a callback after each step, the guidance scale and the size."""

    _callback_tensor_inputs = ("latents",)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 121,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        max_sequence_length: int | None = None,  # the pipelines have their own
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        image: Image.Image | None = None,
        output_type: str = "np",
        callback_on_step_end: AfterStep | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        pictured: dict[str, Any] = dict(height=height, width=width) if image is None else dict(image=image)
        pipe: Any = self
        guider, scheduler, processor = pipe.guider, pipe.scheduler, pipe.video_processor
        if guidance_scale is not None:
            pipe.guider = guided_by(guider, guidance_scale)
        if callback_on_step_end is not None:
            scheduler.step = _step_and_call(pipe, scheduler.step, callback_on_step_end)
        if image is not None and height is not None:
            processor.calculate_default_height_width = lambda **_: (height, width)
        try:
            return super().__call__(  # type: ignore[misc]
                prompt=prompt, negative_prompt=negative_prompt, num_frames=num_frames, num_inference_steps=num_inference_steps,
                generator=generator, latents=latents, output_type=output_type, **pictured,
            )  # fmt: skip
        finally:
            pipe.guider = guider
            vars(scheduler).pop("step", None)
            vars(processor).pop("calculate_default_height_width", None)


def guided_by(guider: Any, scale: float) -> ClassifierFreeGuidance:
    """A guider as `guider` with this scale; at 1 and below it makes no second call. Raises UsageError."""
    if not isinstance(guider, ClassifierFreeGuidance):
        raise UsageError(f"the model's guider is a {type(guider).__name__}", expected="ClassifierFreeGuidance, as published",
                         hint="save the pipeline with that guider")  # fmt: skip
    return guider.new(guidance_scale=scale, enabled=scale > 1)


def _step_and_call(pipe: Any, step: Callable[..., tuple[Tensor, ...]], call: AfterStep) -> Callable[..., tuple[Tensor, ...]]:
    """The scheduler's `step`, then `call` on its latents, which the pipeline's loop goes on with."""
    index = 0

    def stepped(predicted: Tensor, timestep: Any, latents: Tensor, return_dict: bool) -> tuple[Tensor, ...]:
        nonlocal index
        (after, *_) = step(predicted, timestep, latents, return_dict=return_dict)
        index += 1
        return (call(pipe, index - 1, timestep, {"latents": after})["latents"],)

    return stepped


class _TextPipeline(_Steps, HunyuanVideo15Pipeline):
    pass


class _PicturePipeline(_Steps, HunyuanVideo15ImageToVideoPipeline):
    pass


class RowMask(HunyuanVideo15AttnProcessor2_0):
    """diffusers' processor with a mask [B, 1, 1, N + L]: no row but those of padding differs, and nothing reads these."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        video, text = hidden_states, encoder_hidden_states
        q, k, v = (part(video).unflatten(2, (attn.heads, -1)) for part in (attn.to_q, attn.to_k, attn.to_v))
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (attn.norm_q(q), attn.norm_k(k)))
        added = (part(text).unflatten(2, (attn.heads, -1)) for part in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        text_q, text_k, text_v = added
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        q, k, v = (torch.cat(pair, dim=1) for pair in ((q, text_q), (k, text_k), (v, text_v)))
        mask = F.pad(attention_mask, (video.shape[1], 0), value=True).bool()[:, None, None]
        output = dispatch_attention_fn(
            q, k, v, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        video, text = output.flatten(2).to(q.dtype).split((video.shape[1], text.shape[1]), dim=1)
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


class Hunyuan15AttentionPlan(HunyuanAttentionPlan):
    """HunyuanVideo's dual-stream layers; the mask [B, L] is of the text alone."""


class Hunyuan15(PipelineBackbone):
    kind = HunyuanVideo15Pipeline
    picture_kind = HunyuanVideo15ImageToVideoPipeline
    vae_kind = AutoencoderKLHunyuanVideo15
    processor = Hunyuan15AttentionPlan
    stock = (HunyuanVideo15AttnProcessor2_0, RowMask)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pipe.__class__ = _PicturePipeline if self.spec.picture_needed else _TextPipeline
        for layer in self.layers(self.pipe.transformer):
            if type(layer.processor) is HunyuanVideo15AttnProcessor2_0:
                layer.set_processor(RowMask())

    @staticmethod
    def layers(transformer: Any) -> list[Any]:
        return [block.attn for block in transformer.transformer_blocks]

    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        pipe = self.pipe
        parts = pipe.encode_prompt(prompt, device=pipe._execution_device, dtype=pipe.transformer.dtype, batch_size=1)
        names = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_2", "encoder_attention_mask_2")
        return dict(zip(names, parts, strict=True))

    @torch.no_grad()
    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """As the pipeline encodes a picture: the mode of the VAE's distribution, scaled in the VAE's dtype."""
        vae = self.pipe.vae
        to_device(vae)
        latents = vae.encode(to_video(frames).to(self.device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
        return latents.float()

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """The pipeline would encode the picture again, and knows of no latents: what it makes is made here of what was encoded."""
        if given is None or given.latents is None:
            yield {}
            return
        pipe, clean = self.pipe, given.latents

        def condition(latents: Tensor, dtype: torch.dtype, device: torch.device, **_: Any) -> tuple[Tensor, Tensor]:
            seen = torch.zeros_like(latents, device=device, dtype=dtype)
            mask = torch.zeros_like(seen[:, :1])
            seen[:, :, : clean.shape[2]] = clean.to(seen)
            mask[:, :, : clean.shape[2]] = 1
            return seen, mask

        pipe.prepare_cond_latents_and_mask = condition
        try:
            yield {"image": self.picture(given)}
        finally:
            del pipe.prepare_cond_latents_and_mask

    def picture(self, given: Given) -> Image.Image:
        """What the encoder of pictures looks at: the picture, or the last of the frames that an earlier video left."""
        if given.image is not None:
            return given.image
        assert given.latents is not None
        to_device(self.pipe.vae)
        (*_, frames) = self.decode(given.latents)
        return Image.fromarray(frames[-1])

    def zeros(self, arguments: dict[str, Any]) -> Tensor:
        return torch.zeros_like(arguments["hidden_states"][:, : self.spec.latent_channels])

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """All frames at once, as the pipeline decodes them: the VAE attends over all of them."""
        yield to_frames(vae.decode(whole(latents).to(device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0])
