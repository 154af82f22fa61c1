"""A backbone of random weights, built from its spec alone: nothing is downloaded, and a step costs what the published model's does.

The transformer is diffusers' class in the published settings, with the family's own scheduler and pipeline. Text encoder and VAE
are left out: the text is random numbers of the shape that the encoder gives, and nothing can be decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor

from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.pipelines import loading
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.loading import check_settings

SEED = 0
WORDS = 24  # text tokens of a prompt that are not padding, where a mask tells them apart
TRANSFORMERS = {
    "wan": diffusers.WanTransformer3DModel,
    "causal-wan": diffusers.WanTransformer3DModel,
    "ltx": diffusers.LTXVideoTransformer3DModel,
    "cogvideox": diffusers.CogVideoXTransformer3DModel,
    "hunyuan": diffusers.HunyuanVideoTransformer3DModel,
}


def build(spec: BackboneSpec, model_settings: ModelSettings) -> PipelineBackbone:
    """The backbone of `spec` with random weights, the same at every call. Raises UsageError as loading one does."""
    check_settings(spec, model_settings)
    dtype = loading.DTYPES[model_settings.dtype]
    device = torch.device("cpu" if model_settings.offload != "none" else model_settings.device)
    experts = [transformer(spec, device, dtype, SEED + number) for number in range(spec.experts)]
    pipe = _PIPELINES[spec.family](spec, experts, RandomText(dtype, device))
    pipe.set_progress_bar_config(disable=True)
    backbone = loading.family_of(spec)(spec, pipe, model_settings)
    loading.set_up(backbone)
    return backbone


def settings(spec: BackboneSpec) -> dict[str, Any]:
    """What the published configs say of the transformer; the classes' defaults are the rest."""
    size = dict(num_attention_heads=spec.heads, attention_head_dim=spec.head_dim, in_channels=spec.latent_channels,
                out_channels=spec.latent_channels)  # fmt: skip
    if spec.family in ("wan", "causal-wan"):
        text = dict(text_dim=64, freq_dim=64) if spec.built_in else {}
        return size | text | dict(patch_size=spec.patch, ffn_dim=spec.ffn_dim, num_layers=spec.layers)
    if spec.family == "ltx":
        return size | dict(num_layers=spec.layers, cross_attention_dim=spec.width)
    if spec.family == "cogvideox":
        return size | dict(
            num_layers=spec.layers, use_rotary_positional_embeddings=spec.rotary_dims > 0, max_text_seq_length=spec.text_tokens
        )
    dual, side = max(1, spec.layers // 3), (spec.head_dim - spec.rotary_dims) // 2
    return size | dict(num_layers=dual, num_single_layers=spec.layers - dual, mlp_ratio=spec.ffn_dim / spec.width,
                       rope_axes_dim=(spec.rotary_dims, side, side))  # fmt: skip


def transformer(spec: BackboneSpec, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """The transformer of `spec`. Matrices are normal with a variance of 1 / inputs, which keeps activations as they are; norms 1.

    Each weight is made on `device` in the dtype that it stays in: float32 for those that diffusers keeps in it.
    """
    with init_empty_weights(include_buffers=False):
        made = TRANSFORMERS[spec.family](**settings(spec))
    generator = torch.Generator(device).manual_seed(seed)
    precise = made._keep_in_fp32_modules or ()
    for place, module in made.named_modules():
        for name, shape in [(name, one.shape) for name, one in module.named_parameters(recurse=False)]:
            own = torch.float32 if set(precise) & {*place.split("."), name} else dtype
            weight = torch.empty(shape, dtype=own, device=device)
            if len(shape) > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return made.eval()


class RandomText(torch.nn.Module):
    """Stands where the text encoder does: the same random embeddings for every prompt, WORDS of them not padding."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("place", torch.empty(0, device=device))  # offload moves it, and the embeddings with it

    @property
    def device(self) -> torch.device:
        return self.place.device

    def embeddings(self, *shape: int, device: torch.device | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(shape, generator=generator).to(device or self.device, self.dtype)

    def mask(self, tokens: int, device: torch.device | None = None) -> Tensor:
        return (torch.arange(tokens) < WORDS)[None].to(device or self.device)


def _wan(spec: BackboneSpec, experts: list[Any], text: RandomText) -> Any:
    two = spec.experts == 2
    schedule = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = diffusers.WanPipeline(
        None, text, None, schedule, experts[0], experts[1] if two else None, boundary_ratio=0.875 if two else None,
        expand_timesteps=spec.latent_channels == 48 and spec.stride_hw == 16 and spec.patch[1] == 2,
    )  # fmt: skip
    pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial = spec.stride_t, spec.stride_hw
    shape = (1, spec.text_tokens, experts[0].config.text_dim)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: text.embeddings(*shape, device=device)
    return pipe


def _ltx(spec: BackboneSpec, experts: list[Any], text: RandomText) -> Any:
    schedule = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    pipe = diffusers.LTXPipeline(schedule, None, text, None, experts[0])
    shape = (1, spec.text_tokens, experts[0].config.caption_channels)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(*shape, device=device), text.mask(spec.text_tokens, device)
    )  # fmt: skip
    return pipe


def _cogvideox(spec: BackboneSpec, experts: list[Any], text: RandomText) -> Any:
    published = dict(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                     timestep_spacing="trailing")  # fmt: skip
    schedule = (
        diffusers.CogVideoXDPMScheduler(snr_shift_scale=1.0, **published)
        if spec.rotary_dims
        else diffusers.CogVideoXDDIMScheduler(**published)
    )
    pipe = diffusers.CogVideoXPipeline(None, text, None, experts[0], schedule)
    shape = (1, spec.text_tokens, experts[0].config.text_embed_dim)
    pipe._get_t5_prompt_embeds = lambda *_, device=None, **__: text.embeddings(*shape, device=device)
    return pipe


def _hunyuan(spec: BackboneSpec, experts: list[Any], text: RandomText) -> Any:
    config = experts[0].config
    pipe = diffusers.HunyuanVideoPipeline(
        text, None, experts[0], None, diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), None, None
    )
    pipe._get_llama_prompt_embeds = lambda *_, device=None, **__: (
        text.embeddings(1, spec.text_tokens, config.text_embed_dim, device=device), text.mask(spec.text_tokens, device)
    )  # fmt: skip
    pipe._get_clip_prompt_embeds = lambda *_, device=None, **__: text.embeddings(1, config.pooled_projection_dim, device=device)
    return pipe


_PIPELINES: dict[str, Callable[[BackboneSpec, list[Any], RandomText], Any]] = {
    "wan": _wan, "causal-wan": _wan, "ltx": _ltx, "cogvideox": _cogvideox, "hunyuan": _hunyuan,
}  # fmt: skip
