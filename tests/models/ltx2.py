"""LTX-2 in small: the published model's classes and settings, few channels, random weights. GATED is an LTX-2.5."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    SiglipVisionConfig,
)

from tests.models import t5

NAMES, GATED = ("ltx2",), "ltx2-gated"  # the second is for test_ltx2.py alone
CHANNELS, HEADS, HEAD_DIM, AUDIO_HEAD_DIM, TEXT, LAYERS = 8, 2, 32, 16, 16, 2  # LAYERS: of the text encoder
TOKENS = 1024  # of a prompt, as the pipeline pads it


def transformer(gated: bool = False) -> LTX2VideoTransformer3DModel:
    """Normalised q and k are enlarged, so that attention looks at few tokens and positions matter."""
    width, audio = HEADS * HEAD_DIM, HEADS * AUDIO_HEAD_DIM
    newer = dict(
        gated_attn=True, audio_gated_attn=True, perturbed_attn=True, rope_type="interleaved", cross_attn_mod=True,
        audio_cross_attn_mod=True, use_prompt_embeddings=False, ff_bias=False, use_keyframes_abs_pos_embedding=True,
    ) if gated else {}  # fmt: skip
    model = LTX2VideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=HEAD_DIM,
        cross_attention_dim=width, audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD_DIM, audio_cross_attention_dim=audio, num_layers=2, caption_channels=TEXT,
        vae_scale_factors=(8, 8, 8), norm_elementwise_affine=True, **({"rope_type": "split"} | newer),
    )  # fmt: skip
    for block in model.transformer_blocks:
        for layer in (block.attn1, block.audio_to_video_attn, block.video_to_audio_attn):
            for norm in (layer.norm_q, layer.norm_k):
                torch.nn.init.uniform_(norm.weight, 0.5, 2.5)
    return model.eval()


def build(name: str, folder: Path) -> None:
    """`name` is "ltx2" or GATED."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformer(name == GATED)
        vae = AutoencoderKLLTX2Video(
            latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32), patch_size=1,
            layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4, decoder_causal=False, spatial_compression_ratio=8,
            temporal_compression_ratio=8,
        ).eval()  # fmt: skip
        vae.latents_mean.uniform_(-0.5, 0.5)
        vae.latents_std.uniform_(0.5, 1.5)
        audio_vae = AutoencoderKLLTX2Audio(base_channels=8, ch_mult=(1, 2), num_res_blocks=1, latent_channels=2, mel_bins=16).eval()
        audio_vae.latents_mean = torch.rand(8) - 0.5
        audio_vae.latents_std = torch.rand(8) + 0.5
        vocoder = LTX2Vocoder(in_channels=32, hidden_channels=64, upsample_kernel_sizes=[16, 15, 8, 4, 4]).eval()
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
            shift_terminal=0.1,
        )  # fmt: skip
        tokenizer, _ = t5.parts(TOKENS, padding_side="left")  # as Gemma's
        gemma = _gemma_4(len(tokenizer)) if name == GATED else _gemma(len(tokenizer))
        parts = scheduler, vae, audio_vae, gemma, tokenizer, _connectors(name == GATED), model, vocoder
        LTX2Pipeline(*parts).save_pretrained(folder)


def _gemma(vocabulary: int) -> Gemma3ForConditionalGeneration:
    text = Gemma3TextConfig(
        vocab_size=vocabulary, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=TOKENS, pad_token_id=0, sliding_window=32,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8
    )
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, image_token_index=3,
                          boi_token_index=4, eoi_token_index=5)  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


def _gemma_4(vocabulary: int) -> Gemma4UnifiedForConditionalGeneration:
    text = Gemma4UnifiedTextConfig(
        vocab_size=vocabulary, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=TOKENS, pad_token_id=0, sliding_window=32,
        layer_types=["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
    )  # fmt: skip
    tokens = dict(image_token_id=3, boi_token_id=4, eoi_token_id=5, video_token_id=6, boa_token_id=7, eoa_token_index=8)
    return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config=text.to_dict(), audio_token_id=9, **tokens)).eval()


def _connectors(gated: bool) -> LTX2TextConnectors:
    if gated:
        width, audio = HEADS * HEAD_DIM, HEADS * AUDIO_HEAD_DIM
        return LTX2TextConnectors(
            caption_channels=TEXT, text_proj_in_factor=LAYERS + 1, video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=width // 2, video_connector_num_layers=1, video_gated_attn=True,
            audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=audio // 2, audio_connector_num_layers=1,
            audio_gated_attn=True, per_modality_projections=True, video_hidden_dim=width, audio_hidden_dim=audio, proj_bias=True,
        ).eval()  # fmt: skip
    heads = {f"{stream}_connector_num_attention_heads": 2 for stream in ("video", "audio")}
    dims = {f"{stream}_connector_attention_head_dim": TEXT // 2 for stream in ("video", "audio")}
    layers = {f"{stream}_connector_num_layers": 1 for stream in ("video", "audio")}
    sizes = heads | dims | layers
    return LTX2TextConnectors(caption_channels=TEXT, text_proj_in_factor=LAYERS + 1, rope_type="split", **sizes).eval()
