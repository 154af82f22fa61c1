"""Whole Wan pipelines of random weights: "wan", "wan-experts" (2.2, two experts), "wan-ti2v" (2.2, a timestep a token).

From pictures, with channels for a condition: "wan-i2v" and "wan-flf2v" (2.1, with CLIP), "wan-i2v-experts" (2.2, two experts).

And a causal backbone, `causal`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.settings import ModelSettings
from tests.models.t5 import WORDS

PICTURED = ("wan-i2v", "wan-flf2v", "wan-i2v-experts")
NAMES = ("wan", "wan-experts", "wan-ti2v", *PICTURED)
CLIP_WIDTH = 16
BOUNDARY = 0.875  # Wan 2.2 A14B's: of 4 steps (999, 937, 833, 625) the second expert takes the last two


def build(name: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ti2v, pictured, clip = name == "wan-ti2v", name in PICTURED, name in ("wan-i2v", "wan-flf2v")
        more: dict[str, Any] = {"in_channels": 36} if pictured else {}
        if clip:
            more |= {"image_dim": CLIP_WIDTH, "added_kv_proj_dim": 48}
        if name == "wan-flf2v":
            more |= {"pos_embed_seq_len": 514}
        experts = [_transformer(48 if ti2v else 16, **more) for _ in range(2 if name.endswith("-experts") else 1)]
        vae = _vae_22() if ti2v else _vae_21()
        tokenizer = _tokenizer()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
            )
        )
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        seeing = {"image_encoder": _clip(), "image_processor": CLIPImageProcessorPil()} if clip else {}
        kind = WanImageToVideoPipeline if pictured else WanPipeline
        pipe = kind(
            tokenizer=tokenizer, text_encoder=text_encoder.eval(), vae=vae, scheduler=scheduler, transformer=experts[0],
            transformer_2=experts[1] if len(experts) == 2 else None, boundary_ratio=BOUNDARY if len(experts) == 2 else None,
            expand_timesteps=ti2v, **seeing,
        )  # fmt: skip
        pipe.save_pretrained(folder)
        for file in (folder / "model_index.json", *folder.glob("image_processor/*.json")) if clip else ():  # as published ones say
            file.write_text(file.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))


def causal() -> Any:
    """A causal backbone whose transformer is small and random; the rest is tiny's. It was "trained" on nine latent frames."""
    from longgen.pipelines.causal_wan import CausalWan

    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=36, in_channels=48, out_channels=48, text_dim=64,
            freq_dim=32, ffn_dim=96, num_layers=3, cross_attn_norm=True, rope_max_seq_len=1024,
        ).eval()  # fmt: skip
    attentive(transformer)
    spec = replace(
        TINY_CAUSAL, checkpoint=None, patch=(1, 2, 2), size=(96, 64), native_px=33, layers=3, heads=2, head_dim=36, ffn_dim=96,
        rotary_dims=12, intrinsic_component=1, parameters=sum(weight.numel() for weight in transformer.parameters()),
    )  # fmt: skip
    return CausalWan(spec, WanPipeline.from_pretrained(spec.source, transformer=transformer), ModelSettings("cpu", "fp32"))


def _transformer(channels: int, **more: Any) -> WanTransformer3DModel:
    config = dict(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=channels, out_channels=channels,
        text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2, cross_attn_norm=True, rope_max_seq_len=1024,
    )  # fmt: skip
    transformer = WanTransformer3DModel(**config | more)
    if "pos_embed_seq_len" in more:
        transformer.condition_embedder.image_embedder.pos_embed.data.normal_()  # zeros otherwise
    attentive(transformer)
    return transformer


def attentive(transformer: Any) -> None:
    """Attention that picks, so that positions and windows matter."""
    for block in transformer.blocks:
        block.attn1.norm_q.weight.data.fill_(2.0)
        block.scale_shift_table.data[:, 2].add_(1.0)  # the gate of self-attention


def _vae_21() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1)


def _vae_22() -> AutoencoderKLWan:
    z_dim = 48
    return AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=z_dim, num_res_blocks=1, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, latents_mean=torch.linspace(-1, 1, z_dim).tolist(),
        latents_std=torch.linspace(0.5, 2, z_dim).tolist(),
    )  # fmt: skip


def _clip() -> CLIPVisionModel:
    """256 patches and one token for the whole picture, as the published one."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=CLIP_WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=224, patch_size=14
        )
    ).eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
