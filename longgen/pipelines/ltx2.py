"""LTX-2 on diffusers' LTX2Pipeline.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, A audio tokens, H heads, D head dim, C channels.

Frame plans are of the video's self-attention. The audio's own, and the attention of each stream to the other, stay diffusers': the
audio is one sequence as long as the video, at the times of its own latents, whatever a plan does to the times of frames.

Positions are the middles of the pixel frames of each latent one: 4.5 pixel frames from the first latent frame to the second, 8 from
there on. A layer and step in which a technique moves frames in time has all of them 8 apart, as in LTX-Video from 0.9.5 on. Its
tables rotate neighbouring channels, or ("split") the first half of a head's channels with the second: q and k are then reordered,
both alike.

diffusers' pipeline takes noise only as if it came from the VAE, and its callback sees the video alone: a subclass lets it begin
with packed noise and hands out the audio latents too, which are written over in place where a run goes on.

First frames, a picture's or those of an earlier video, are clean tokens at timestep 0: LTX2ConditionPipeline with one condition at
the first frame. It draws its noise in the order of tokens. The audio begins as noise in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Video, LTX2ConditionPipeline, LTX2Pipeline
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoAttnProcessor, LTX2PerturbedAttnProcessor
from einops import rearrange
from PIL.Image import Image
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from longgen import pictures
from longgen.attention.rotary import Rotary, Tables
from longgen.attention.ulysses import Ulysses
from longgen.pipelines import foreign_hooks
from longgen.pipelines.base import PipelineBackbone, to_device, to_frames, whole
from longgen.pipelines.compressed import compressed
from longgen.pipelines.given import Given, put_back
from longgen.pipelines.ltx_condition import LtxConditionAttentionPlan
from longgen.plan import Plan
from longgen.video import Sound

AUDIO = "audio_latents"  # the pipeline's name of them
AUDIO_GUIDANCE, MODALITY_GUIDANCE, RESCALE, PERTURBED_BLOCKS = 7.0, 3.0, 0.7, [28]  # defaults of the pipeline


class _Pipeline(LTX2Pipeline):
    _callback_tensor_inputs: ClassVar[list[str]] = [*LTX2Pipeline._callback_tensor_inputs, AUDIO]

    def check_inputs(self, *args: Any, latents: Tensor | None = None, **others: Any) -> None:
        super().check_inputs(*args, **others)  # it would refuse packed latents

    def prepare_latents(self, *args: Any, **others: Any) -> Tensor:
        latents, dtype, device = args[9], args[6], args[7]
        return super().prepare_latents(*args, **others) if latents is None else latents.to(device, dtype)


class _ConditionPipeline(LTX2ConditionPipeline):
    """`latents` begin with the clean frames. clean_lat: how many of `latent_frames` these are."""

    _callback_tensor_inputs: ClassVar[list[str]] = [*LTX2ConditionPipeline._callback_tensor_inputs, AUDIO]
    clean_lat = latent_frames = 0
    begun: Tensor

    def __call__(self, *, latents: Tensor, **arguments: Any) -> Any:
        self.begun = latents
        return super().__call__(**arguments)

    def prepare_latents(self, *_: Any, dtype: torch.dtype, device: torch.device, **__: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        latents = self.begun.to(device, dtype).contiguous()
        mask = torch.zeros(*latents.shape[:2], 1, dtype=dtype, device=device)
        mask[:, : self.clean_lat * latents.shape[1] // self.latent_frames] = 1
        return latents, mask, latents * mask, None


class Ltx2AttentionPlan(LtxConditionAttentionPlan):
    whole_tables = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Tables | None = None,
        key_rotary_emb: Tables | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> Tensor:
        """Spatiotemporal guidance leaves the attention of a layer out, and with it what a plan would do there."""
        if self.idle() or perturbation_mask is not None:
            if self.split is not None and query_rotary_emb is not None:
                query_rotary_emb = _own_tokens(self.split, query_rotary_emb)
            perturbed = (perturbation_mask, all_perturbed) if isinstance(self.stock, LTX2PerturbedAttnProcessor) else ()
            return self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb, *perturbed
            )
        assert query_rotary_emb is not None
        return self.attend(attn, hidden_states, None, attention_mask, query_rotary_emb)

    def attend(self, attn: Any, x: Tensor, text: None, mask: Tensor | None, rotary: Tables) -> Tensor:
        foreign_hooks.check_mask(mask)
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        if attn.rope_type == "split":
            q, k = (rearrange(part, "b n (h two d) -> b n h (d two)", h=attn.heads, two=2) for part in (q, k))
            tables = tuple(rearrange(table[0], "h n d -> n (h d)") for table in rotary)
        else:
            q, k = (part.unflatten(2, (attn.heads, -1)) for part in (q, k))
            tables = tuple(table[0, :, 0::2] for table in rotary)
        output = self.run(attn, x, (tables[0], tables[1]), q, k, v.unflatten(2, (attn.heads, -1))).type_as(q)
        if attn.to_gate_logits is not None:
            gates = 2.0 * torch.sigmoid(attn.to_gate_logits(x))
            output = (output.unflatten(2, (attn.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
        return attn.to_out[1](attn.to_out[0](output))


def _own_tokens(split: Ulysses, tables: Tables) -> Tables:
    """Of tables [B, N, C] or, split, [B, H, N, D / 2] those of this rank's tokens."""
    own = split.own(tables[0].shape[-2])
    return tables[0][..., own, :], tables[1][..., own, :]


class Ltx2(PipelineBackbone):
    kind = LTX2Pipeline
    vae_kind = AutoencoderKLLTX2Video
    processor = Ltx2AttentionPlan
    stock = (LTX2AudioVideoAttnProcessor, LTX2PerturbedAttnProcessor)
    streams = (AUDIO,)
    sound_parts = ("audio_vae", "vocoder")
    unused_parts = ("duration_head", "processor", "prompt_enhancer")  # of LTX-2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pipe.__class__ = _Pipeline

    @staticmethod
    def layers(transformer: Any) -> list[Any]:
        return [block.attn1 for block in transformer.transformer_blocks]

    @staticmethod
    def text_layers(transformer: Any) -> list[Any]:
        return [block.attn2 for block in transformer.transformer_blocks]

    def whole_key_layers(self, transformer: Any) -> list[Any]:
        beside = ("attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
        return [getattr(block, name) for block in transformer.transformer_blocks for name in beside]

    @staticmethod
    def token_plan(transformer: Any) -> dict[str, Any]:
        """diffusers' splits rotary tables that are not split by heads, which LTX-2's are: they stay whole, see `share_streams`."""
        return {module: parts for module, parts in transformer._cp_plan.items() if module != "rope"}

    def share_streams(self, transformer: Any, split: Ulysses) -> list[RemovableHandle]:
        """Every rank has all of the audio. Video tokens look up their own rotary tables; the audio attends to keys of all ranks.

        What is predicted of the audio is the first rank's: kernels of a GPU may round otherwise on another one, step after step.
        """

        def own_tables(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if isinstance(layer.processor, Ltx2AttentionPlan):
                return args, kwargs
            return args, kwargs | {"query_rotary_emb": _own_tokens(split, kwargs["query_rotary_emb"])}

        def gathered(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return split.gathered(output, 1)

        def of_the_first(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return split.of_the_first(output)

        handles = [transformer.audio_proj_out.register_forward_hook(of_the_first)]
        for block in transformer.transformer_blocks:
            video_to_audio = block.video_to_audio_attn
            handles += [layer.register_forward_pre_hook(own_tables, with_kwargs=True)
                        for layer in (block.attn1, block.audio_to_video_attn)]  # fmt: skip
            handles += [part.register_forward_hook(gathered) for part in (video_to_audio.norm_k, video_to_audio.to_v)]
        return handles

    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        embeds, mask, _, _ = self.encode_prompt(prompt, do_classifier_free_guidance=False)
        side = getattr(self.pipe.tokenizer, "padding_side", "left")
        video, audio, shown = self.pipe.connectors(embeds, mask, padding_side=side)
        return {"encoder_hidden_states": video, "audio_encoder_hidden_states": audio, "encoder_attention_mask": shown,
                "audio_encoder_attention_mask": shown}  # fmt: skip

    def rotary(self) -> Rotary:
        pad = self.spec.width % 6 // 2
        return Rotary(np.array(self.spec.frequencies), pad + 3 * np.arange(len(self.spec.frequencies)))

    def noise(self, plan: Plan, generator: torch.Generator) -> Tensor:
        if not plan.conditions:
            return super().noise(plan, generator)
        batch, channels, *grid = self.latent_shape(plan)
        return rearrange(torch.randn(batch, *grid, channels, generator=generator), "b t h w c -> b c t h w")

    def fitted_pictures(self, plan: Plan) -> tuple[Image | None, Image | None]:
        conditions, crf = plan.conditions, self.spec.picture_crf
        if conditions.image is None:
            return None, None
        return pictures.fitted(conditions.image, plan.size, conditions.fit, lambda image: compressed(image, crf)), None

    @torch.no_grad()
    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """The mode of the VAE's distribution, as LTX2ConditionPipeline takes it."""
        vae = self.pipe.vae
        to_device(vae)
        video = torch.tensor(frames).permute(3, 0, 1, 2)[None].to(self.device, torch.float32) / 127.5 - 1.0
        mode = vae.encode(video.to(vae.dtype)).latent_dist.mode()
        return LTX2ConditionPipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std).float()

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        if given is None:
            yield {}
            return
        assert given.latents is not None
        with self.run_by(_ConditionPipeline) as pipe:
            pipe.clean_lat, pipe.latent_frames = given.latents.shape[2], plan.frames_lat
            pipe.tokenizer_padding_side = "left"  # which it reads off the tokenizer before it sets it there
            yield {}

    def started(self, noise: Tensor, given: Given | None) -> Tensor:
        return self.packed(put_back(given, noise))

    def predicted(self, x0: Tensor, given: Given | None) -> Tensor:
        return put_back(given, x0)

    def packed(self, latents: Tensor) -> Tensor:
        return rearrange(latents, "b c t h w -> b (t h w) c")

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        time, rows, columns = plan.grid
        return rearrange(latents, "b (t h w) c -> b c t h w", t=time, h=rows, w=columns)

    def last(self, output: Any, latents: Tensor) -> Tensor:
        """Those of the last step: even for `latent` the pipeline returns them as the VAE takes them."""
        return latents

    def by_frame(self, x: Tensor, frames_lat: int) -> Tensor:
        return x.unflatten(1, (frames_lat, -1))

    def from_frames(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def unanswered(self, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        return torch.zeros_like(arguments["hidden_states"]), torch.zeros_like(arguments["audio_hidden_states"])

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        """Without guidance by the prompt there is none of the other kinds, as distilled weights are run."""
        arguments = super().call_arguments(plan, prompt) | {"frame_rate": float(self.spec.fps)}
        if len(self.spec.sigmas) == plan.steps:
            arguments["sigmas"] = [*self.spec.sigmas]
        perturbs = plan.guided and self.spec.more_calls > 1
        audio, modality, rescale = (AUDIO_GUIDANCE, MODALITY_GUIDANCE, RESCALE) if plan.guided else (1.0, 1.0, 0.0)
        return arguments | dict(
            audio_guidance_scale=audio, modality_scale=modality, audio_modality_scale=modality, guidance_rescale=rescale,
            audio_guidance_rescale=rescale, stg_scale=float(perturbs), audio_stg_scale=float(perturbs),
            spatio_temporal_guidance_blocks=PERTURBED_BLOCKS,
        )  # fmt: skip

    @staticmethod
    @torch.no_grad()
    def decoded(vae: Any, latents: Any, device: torch.device) -> Any:
        """All frames at once: this VAE looks ahead. With tiling, diffusers decodes in pieces."""
        latents = LTX2Pipeline._denormalize_latents(
            whole(latents).to(device, vae.dtype), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        time = torch.zeros(1, device=device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
        yield to_frames(vae.decode(latents.to(vae.dtype), time, return_dict=False)[0])

    @staticmethod
    @torch.no_grad()
    def sounded(parts: dict[str, Any], streams: dict[str, Tensor], device: torch.device) -> Sound:
        """The waveform of the audio latents [1, A, C], by the audio VAE and the vocoder."""
        vae, vocoder = parts["audio_vae"], parts["vocoder"]
        latents = LTX2Pipeline._denormalize_audio_latents(streams[AUDIO].to(device), vae.latents_mean, vae.latents_std)
        bins = vae.config.mel_bins // vae.mel_compression_ratio
        latents = LTX2Pipeline._unpack_audio_latents(latents, latents.shape[1], num_mel_bins=bins)
        waves = vocoder(vae.decode(latents.to(vae.dtype), return_dict=False)[0])
        return Sound(waves[0].T.float().cpu().numpy(), int(vocoder.config.output_sampling_rate))
