"""A backbone of random weights, built from its spec alone: no download, and a step takes as long as the published model's.

The transformer is diffusers' class in the published sizes, with the family's own scheduler and pipeline. Text encoder and VAE are
left out: the text and the latents of a picture are random numbers in the encoders' shapes, and nothing can be decoded.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor

from longgen.backbones.registry import adapter_of, family_of
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import FIRST_FRAME, BackboneSpec
from longgen.pipelines import loading
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.checks import check_settings

SEED = 0
PROMPT_TOKENS = 24  # text tokens that are not padding, where a mask tells them apart


def build(spec: BackboneSpec, model_settings: ModelSettings) -> PipelineBackbone:
    """The backbone of `spec` with random weights, the same at every call. Raises UsageError as loading one does."""
    loading.silence_libraries()
    check_settings(spec, model_settings)
    dtype = loading.DTYPES[model_settings.dtype]
    device = torch.device("cpu" if model_settings.offload != "none" else model_settings.device)
    experts = [transformer(spec, device, dtype, SEED + number) for number in range(spec.experts)]
    backbone = adapter_of(spec)(spec, pipeline(spec, experts, dtype, device), model_settings)
    loading.set_up(backbone)
    return backbone


def pipeline(spec: BackboneSpec, transformers: list[Any], dtype: torch.dtype, device: torch.device) -> Any:
    """The pipeline of `spec` around `transformers`, with stand-ins on `device` for the text encoder and, for pictures, the VAE."""
    pipe = family_of(spec).random_pipeline(spec, transformers, RandomText(dtype, device))
    pipe.set_progress_bar_config(disable=True)
    if FIRST_FRAME in spec.capabilities:
        pipe.vae = RandomVae(spec, device)
    return pipe


def untrained(spec: BackboneSpec) -> Any:
    """The transformer of `spec` as its class initialises it, on the default device."""
    family = family_of(spec)
    return getattr(diffusers, family.transformer)(**family.transformer_config(spec))


def transformer(spec: BackboneSpec, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    """The transformer of `spec`. Matrices are normal with variance 1 / fan-in, which keeps the scale of activations; norms are 1.

    Each weight is drawn on `device` in its final dtype: float32 for those that diffusers keeps in it.
    """
    with init_empty_weights(include_buffers=False):
        model = untrained(spec)
    generator = torch.Generator(device).manual_seed(seed)
    float32_modules = model._keep_in_fp32_modules or ()
    for path, module in model.named_modules():
        for name, shape in [(name, parameter.shape) for name, parameter in module.named_parameters(recurse=False)]:
            weight_dtype = torch.float32 if set(float32_modules) & {*path.split("."), name} else dtype
            weight = torch.empty(shape, dtype=weight_dtype, device=device)
            if len(shape) > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval()


class RandomText(torch.nn.Module):
    """Stands in for the text encoder: the same random embeddings for every prompt, PROMPT_TOKENS of them not padding."""

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

    def mask(self, tokens: int, device: torch.device | None = None, before: int = 0) -> Tensor:
        """[1, tokens]: those of the prompt, and what stands `before` it."""
        return (torch.arange(tokens) < before + PROMPT_TOKENS)[None].to(device or self.device)


class RandomVae(RandomText):
    """Stands in for the VAE that encodes pictures: the same random latents for every video."""

    def __init__(self, spec: BackboneSpec, device: torch.device) -> None:
        super().__init__(torch.float32, device)
        channels = spec.latent_channels // spec.token_lat
        self.strides = (spec.stride_t // spec.token_lat, spec.stride_hw)
        self.temporal_compression_ratio, self.spatial_compression_ratio = self.strides
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)
        self.config = SimpleNamespace(
            z_dim=channels, latents_mean=[0.0] * channels, latents_std=[1.0] * channels, scaling_factor=1.0,
            invert_scale_latents=False, scale_factor_temporal=self.strides[0], scale_factor_spatial=spec.stride_hw,
        )  # fmt: skip

    def encode(self, video: Tensor) -> Any:
        """Of `video` [B, 3, F, height, width], what diffusers' VAEs return."""
        (batch, _, frames_px, height, width), (stride_t, stride_hw) = video.shape, self.strides
        shape = (batch, self.config.z_dim, (frames_px - 1) // stride_t + 1, height // stride_hw, width // stride_hw)
        latents = self.embeddings(*shape, device=video.device)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents, sample=lambda generator=None: latents))

    def enable_tiling(self) -> None:
        pass  # there is nothing to tile
