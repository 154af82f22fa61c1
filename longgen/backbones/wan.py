"""The Wan family on diffusers: WanPipeline, driven as it is, with processors on the self-attention of chosen blocks.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, d_t temporal rotary
channels (the first of D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from diffusers.utils import logging as diffusers_logging
from einops import rearrange
from torch import Tensor
from transformers.utils import logging as transformers_logging

from longgen.attention import executor
from longgen.backbones import Clock
from longgen.backbones.spec import BackboneSpec
from longgen.errors import LonggenError, MissingError
from longgen.plan import Plan, Program

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Rotary:
    """Wan's rotary positions with the temporal part rebuilt for any positions. Tables are kept by their content."""

    frequencies: Tensor  # [d_t / 2] float64
    tables: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def temporal(self, positions: np.ndarray, scale: np.ndarray | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin [f, d_t / 2] float32, computed as diffusers does: in float64, then rounded."""
        key = (positions.tobytes(), None if scale is None else scale.tobytes(), device)
        if key not in self.tables:
            frequencies = self.frequencies if scale is None else self.frequencies * torch.from_numpy(scale)
            angles = torch.outer(torch.from_numpy(positions.astype(np.float64)), frequencies)
            self.tables[key] = (angles.cos().float().to(device), angles.sin().float().to(device))
        return self.tables[key]

    def full(self, stock: tuple[Tensor, Tensor], positions: np.ndarray, scale: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """The stock tables [1, N, 1, D] with their temporal channels rebuilt for `positions` [T]."""
        cos, sin = stock
        key = ("full", positions.tobytes(), None if scale is None else scale.tobytes(), cos.shape, cos.device)
        if key not in self.tables:
            tokens = cos.shape[1] // len(positions)
            rebuilt = []
            for table, part in zip((cos, sin), self.temporal(positions, scale, cos.device), strict=True):
                part = part.repeat_interleave(2, dim=1).repeat_interleave(tokens, dim=0).view(1, cos.shape[1], 1, -1)
                rebuilt.append(torch.cat([part, table[..., part.shape[-1] :]], dim=-1))
            self.tables[key] = (rebuilt[0], rebuilt[1])
        return self.tables[key]


@dataclass
class WanCall:
    """One call of one layer, as the executor sees it."""

    stock: tuple[Tensor, Tensor]
    rotary: Rotary
    backend: Any
    parallel: Any
    frames_lat: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dispatch_attention_fn(
            q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, backend=self.backend, parallel_config=self.parallel
        )

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        if positions is None and scale is not None:
            positions = np.arange(self.frames_lat, dtype=np.float64)
        cos, sin = self.stock if positions is None else self.rotary.full(self.stock, positions, scale)
        return _rotate_pairs(x, cos[..., 0::2], sin[..., 1::2])

    def rotate_time(self, x: Tensor, positions: np.ndarray, scale: np.ndarray | None) -> Tensor:
        cos, sin = (table.unsqueeze(1).unsqueeze(1) for table in self.rotary.temporal(positions, scale, x.device))
        by_frame = x.unflatten(1, (len(positions), -1))
        channels = 2 * cos.shape[-1]
        time = _rotate_pairs(by_frame[..., :channels], cos, sin)
        return torch.cat([time, by_frame[..., channels:]], dim=-1).flatten(1, 2)


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the neighbouring channel pairs of x [..., D] by cos, sin [..., D / 2]; the arithmetic of diffusers' Wan."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


class PlannedAttention:
    """Self-attention processor: runs the program of the step. One object serves all layers with the same programs."""

    def __init__(
        self, programs: tuple[Program | None, ...], frames_lat: int, clock: Clock, rotary: Rotary, stock: WanAttnProcessor
    ):
        self.programs, self.frames_lat, self.clock, self.rotary, self.stock = programs, frames_lat, clock, rotary, stock
        self._attention_backend = stock._attention_backend  # diffusers sets these two by name
        self._parallel_config = stock._parallel_config

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        program = self.programs[self.clock.index]
        if program is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        assert rotary_emb is not None
        if attn.fused_projections:
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        call = WanCall(rotary_emb, self.rotary, self._attention_backend, self._parallel_config, self.frames_lat)
        output = executor.run(program, call, q, k, v, self.clock.step)
        return attn.to_out[1](attn.to_out[0](output.type_as(q)))


@dataclass
class WanBackbone:
    """A loaded Wan pipeline and what longgen adds to it."""

    spec: BackboneSpec
    pipe: WanPipeline
    device: torch.device
    dtype: str
    clock: Clock = field(default_factory=Clock)

    def latent_shape(self, plan: Plan) -> tuple[int, int, int, int, int]:
        """[1, C, T, height, width] of the latents of `plan`."""
        width, height = plan.size
        return (1, self.spec.latent_channels, plan.frames_lat, height // self.spec.stride_hw, width // self.spec.stride_hw)

    @property
    def transformer(self) -> WanTransformer3DModel:
        return self.pipe.transformer

    @contextmanager
    def installed(self, plan: Plan) -> Iterator[None]:
        """Within the context, the transformer's self-attention follows `plan`; afterwards it is as it was."""
        rotary = Rotary(
            1.0 / self.spec.rotary_base ** (torch.arange(0, self.spec.rotary_dims, 2, dtype=torch.float64) / self.spec.rotary_dims)
        )
        blocks = self.transformer.blocks
        before = [block.attn1.processor for block in blocks]
        shared: dict[bytes, PlannedAttention] = {}
        try:
            for block, row, stock in zip(blocks, plan.table, before, strict=True):
                if not row.any():
                    continue  # the backbone's own attention in every step
                if row.tobytes() not in shared:
                    programs = tuple(plan.programs[index] for index in row)
                    shared[row.tobytes()] = PlannedAttention(programs, plan.frames_lat, self.clock, rotary, stock)
                block.attn1.set_processor(shared[row.tobytes()])
            yield
        finally:
            for block, processor in zip(blocks, before, strict=True):
                block.attn1.set_processor(processor)

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        """The arguments of WanPipeline.__call__ that `plan` and `prompt` decide."""
        width, height = plan.size
        return dict(
            prompt=prompt, negative_prompt=plan.sample.negative_prompt, height=height, width=width, num_frames=plan.frames_px,
            num_inference_steps=plan.steps, guidance_scale=plan.sample.guidance_scale,
            max_sequence_length=self.spec.text_tokens,
        )  # fmt: skip

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Frames [1 or 4, height, width, 3] uint8 of latents [1, C, T, h, w], one latent frame at a time."""
        return decode(self.pipe.vae, latents, self.device)


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents: Tensor, device: torch.device) -> Iterator[np.ndarray]:
    """Frames [1 or 4, height, width, 3] uint8, one latent frame at a time, from latents [1, C, T, h, w], computed on `device`.

    Equal to WanPipeline's decoding of the whole, bit for bit, in memory that does not grow with T.
    """
    offload = getattr(vae, "_hf_hook", None)
    if offload is not None:  # model offload moves the VAE when decode() is called, which is not called here
        offload.pre_forward(vae)
    latents = latents.to(device, vae.dtype)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(latents) for v in (vae.config.latents_mean, vae.config.latents_std))
    vae.clear_cache()
    prepared = vae.post_quant_conv(latents / (1.0 / std) + mean)  # by the inverse, as WanPipeline does
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        video = vae.decoder(
            prepared[:, :, index : index + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0
        )
        if vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=vae.config.patch_size)
        video = (video.clamp(-1, 1) * 0.5 + 0.5).clamp(0, 1)
        yield (rearrange(video[0], "c f h w -> f h w c").float().cpu().numpy() * 255).round().astype(np.uint8)
    vae.clear_cache()


def load(spec: BackboneSpec, device: str, dtype: str, offload: str = "none") -> WanBackbone:
    """Loads the pipeline of `spec` from its folder, the local cache or the hub. The VAE stays in float32.

    Raises MissingError where the weights cannot be had, LonggenError where a file is damaged.
    """
    place = torch.device(device)
    diffusers_logging.set_verbosity_error()  # what they warn of on loading, the error below says
    diffusers_logging.disable_progress_bar()  # the command line shows its own
    transformers_logging.disable_progress_bar()
    kinds = {"default": DTYPES[dtype], "vae": torch.float32}
    try:
        pipe = WanPipeline.from_pretrained(spec.source, dtype=kinds)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the caller says so; the files are not at fault
    except Exception as error:
        raise _explain_load(spec, error) from error
    pipe.set_progress_bar_config(disable=True)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=place)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=place)
    elif offload == "group":
        pipe.enable_group_offload(onload_device=place, offload_type="leaf_level", use_stream=True)
    else:
        pipe.to(place)
    return WanBackbone(spec, pipe, place, dtype)


def _explain_load(spec: BackboneSpec, error: Exception) -> LonggenError:
    """Files there but unreadable, or not to be had: two messages for what diffusers raises in many types."""
    reason = " ".join(str(error).split())[:300]
    if Path(spec.source).is_dir():
        return LonggenError(f"{spec.name}: a file in {spec.source} is missing or damaged: {type(error).__name__}: {reason}",
                            accepted="a complete diffusers folder", do="copy or download it again")  # fmt: skip
    return MissingError(f"the weights of {spec.name} ({spec.source}) are not on this machine and could not be fetched: {reason}",
                        accepted=f"{spec.source} in the Hugging Face cache, or a local diffusers folder",
                        do=f"on a machine with network: hf download {spec.source}; then --backbone FOLDER; "
                           "or --backbone tiny, which needs no download")  # fmt: skip


def decoder(spec: BackboneSpec, device: str) -> Callable[[Tensor], Iterator[np.ndarray]]:
    """`WanBackbone.decode` with the VAE alone loaded, for latents that were saved."""
    try:
        vae = AutoencoderKLWan.from_pretrained(spec.source, subfolder="vae", dtype=torch.float32).to(device)
    except Exception as error:
        raise _explain_load(spec, error) from error
    return lambda latents: decode(vae, latents, torch.device(device))
