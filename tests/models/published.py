"""The published models' transformers and VAEs at their real sizes, on the meta device: shapes without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from longgen.backbones.spec import BackboneSpec

PIPELINES = {"wan": "Wan", "ltx": "LTX", "cogvideox": "CogVideoX", "hunyuan": "HunyuanVideo"}
CLASSES = {  # by family: transformer and VAE
    "wan": (diffusers.WanTransformer3DModel, diffusers.AutoencoderKLWan),
    "causal-wan": (diffusers.WanTransformer3DModel, diffusers.AutoencoderKLWan),
    "ltx": (diffusers.LTXVideoTransformer3DModel, diffusers.AutoencoderKLLTXVideo),
    "cogvideox": (diffusers.CogVideoXTransformer3DModel, diffusers.AutoencoderKLCogVideoX),
    "hunyuan": (diffusers.HunyuanVideoTransformer3DModel, diffusers.AutoencoderKLHunyuanVideo),
}
WAN_VAE_22 = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
    scale_factor_spatial=16,
)  # fmt: skip


def settings(spec: BackboneSpec) -> dict[str, Any]:
    """What the published configs set; the classes' defaults are the rest."""
    size = dict(num_attention_heads=spec.heads, attention_head_dim=spec.head_dim)
    if spec.family == "cogvideox":
        return size | dict(num_layers=spec.layers, use_rotary_positional_embeddings=spec.rotary_dims > 0)
    if spec.family in ("wan", "causal-wan"):
        text = dict(text_dim=64, freq_dim=64) if spec.name in ("tiny", "tiny-causal") else {}
        return size | text | dict(
            patch_size=spec.patch, ffn_dim=spec.ffn_dim, in_channels=spec.latent_channels, out_channels=spec.latent_channels,
            num_layers=spec.layers,
        )  # fmt: skip
    return size


def transformer(spec: BackboneSpec) -> Any:
    with torch.device("meta"):
        return CLASSES[spec.family][0](**settings(spec))


def write_configs(spec: BackboneSpec, folder: Path) -> None:
    """A folder as a published model's, without its weights."""
    with torch.device("meta"):
        vae = CLASSES[spec.family][1](**(WAN_VAE_22 if spec.latent_channels == 48 else {}))
    vae.save_config(folder / "vae")
    model = transformer(spec)
    model.save_config(folder / "transformer")
    kind = ["diffusers", type(model).__name__]
    index: dict[str, Any] = {"_class_name": PIPELINES[spec.family] + "Pipeline", "transformer": kind}
    if spec.family == "wan":
        two = spec.experts == 2
        index |= {"transformer_2": kind if two else [None, None], "boundary_ratio": 0.875 if two else None,
                  "expand_timesteps": spec.latent_channels == 48}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
