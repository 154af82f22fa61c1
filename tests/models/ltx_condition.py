"""LTX-Video 0.9.5 in small: "ltx-condition", the transformer of "ltx" and a VAE that halves time and space in different blocks."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXConditionPipeline

from tests.models import ltx, t5

NAMES = ("ltx-condition",)


def vae() -> AutoencoderKLLTXVideo:
    """8 pixel frames a latent frame, 8x8 pixels a cell (32x32 where published); its decoder has a timestep."""
    return AutoencoderKLLTXVideo(
        latent_channels=ltx.CHANNELS, block_out_channels=(8, 8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4, patch_size=1, timestep_conditioning=True, encoder_causal=True,
        decoder_causal=False, scaling_factor=1.0, down_block_types=("LTXVideo095DownBlock3D",) * 4,
        spatio_temporal_scaling=(True,) * 4, decoder_spatio_temporal_scaling=(True,) * 3, decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"), upsample_residual=(True,) * 3,
        upsample_factor=(1,) * 3, spatial_compression_ratio=8, temporal_compression_ratio=8,
    ).eval()  # fmt: skip


def build(name: str, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer, coder = ltx.transformer(), vae()
        coder.latents_mean.uniform_(-0.5, 0.5)
        coder.latents_std.uniform_(0.5, 1.5)
        tokenizer, encoder = t5.parts(256)
        LTXConditionPipeline(FlowMatchEulerDiscreteScheduler(), coder, encoder, tokenizer, transformer).save_pretrained(folder)
