"""CogVideoX in small: the published models' classes and settings, few channels, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from tests.models import t5

NAMES = ("cogvideox", "cogvideox-2b", "cogvideox-i2v", "cogvideox-1.5")
CHANNELS, TEXT_TOKENS = 4, 12
SCHEDULE = dict(
    beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
)  # fmt: skip


def build(name: str, folder: Path) -> None:
    """`name`: "cogvideox" is made like the 5B model, with rotary positions and the DPM scheduler, "cogvideox-2b" like the 2B, and
    "cogvideox-i2v" like 5B-I2V, of twice the channels, with learned positions beside the rotary ones, "cogvideox-1.5" like 1.5,
    with two latent frames a token. Beside NAMES there is "cogvideox-1.5-i2v".

    Normalised q and k are enlarged, so that attention looks at few tokens and positions matter.
    """
    rotary, pictured, paired = name != "cogvideox-2b", name.endswith("i2v"), "1.5" in name
    learned = pictured and not paired
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=32, in_channels=(1 + pictured) * CHANNELS, out_channels=CHANNELS,
            time_embed_dim=16, text_embed_dim=t5.TEXT_DIM, num_layers=2, sample_width=16 if paired else 8,
            sample_height=8 if paired else 4, sample_frames=17, patch_size_t=2 if paired else None, patch_bias=not paired,
            max_text_seq_length=TEXT_TOKENS, use_rotary_positional_embeddings=rotary, use_learned_positional_embeddings=learned,
            ofs_embed_dim=16 if pictured and paired else None,
        )  # fmt: skip
        for block in transformer.transformer_blocks:
            for norm in (block.attn1.norm_q, block.attn1.norm_k):
                torch.nn.init.uniform_(norm.weight, 0.5, 2.5)
                torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
        if learned:
            places = transformer.patch_embed.pos_embedding.float()
            transformer.patch_embed.pos_embedding = places + 0.1 * torch.randn_like(places)
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=CHANNELS, layers_per_block=1, norm_num_groups=2,
            scaling_factor=0.7 if rotary else 1.15258426, invert_scale_latents=pictured,
        )  # fmt: skip
        schedule = CogVideoXDPMScheduler(snr_shift_scale=1.0, **SCHEDULE) if rotary else CogVideoXDDIMScheduler(**SCHEDULE)
        tokenizer, encoder = t5.parts(TEXT_TOKENS)
        kind = CogVideoXImageToVideoPipeline if pictured else CogVideoXPipeline
        kind(tokenizer, encoder, vae.eval(), transformer.eval(), schedule).save_pretrained(folder)
