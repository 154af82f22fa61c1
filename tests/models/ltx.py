"""LTX-Video in small: the published 0.9 model's classes and settings, few channels, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

from tests.models import t5

NAMES = ("ltx",)
CHANNELS, HEADS, HEAD_DIM = 8, 2, 32


def vae(timestep_conditioning: bool = False) -> AutoencoderKLLTXVideo:
    """8 pixel frames a latent frame, 8x8 pixels a cell (32x32 where published)."""
    widths = (8, 8, 8, 8)
    return AutoencoderKLLTXVideo(
        latent_channels=CHANNELS, block_out_channels=widths, decoder_block_out_channels=widths, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, patch_size=1, timestep_conditioning=timestep_conditioning, encoder_causal=True,
        decoder_causal=False, scaling_factor=1.0,
    ).eval()  # fmt: skip


def transformer() -> LTXVideoTransformer3DModel:
    """Normalised q and k are enlarged, so that attention looks at few tokens and positions matter."""
    model = LTXVideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM,
        cross_attention_dim=HEADS * HEAD_DIM, num_layers=2, caption_channels=t5.TEXT_DIM,
    )  # fmt: skip
    for block in model.transformer_blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k):
            torch.nn.init.uniform_(norm.weight, 0.5, 2.5)
    return model.eval()


def build(name: str, folder: Path) -> None:
    """`name` is "ltx"."""
    assert name == "ltx"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformer()
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
            shift_terminal=0.1,
        )  # fmt: skip
        decoder = vae()
        decoder.latents_mean.uniform_(-0.5, 0.5)
        decoder.latents_std.uniform_(0.5, 1.5)
        tokenizer, encoder = t5.parts(128)
        LTXPipeline(scheduler, decoder, encoder, tokenizer, model).save_pretrained(folder)
