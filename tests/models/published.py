"""The published models' transformers and VAEs at their real sizes, on the meta device: shapes without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from longgen.backbones.registry import adapter_of, family_of
from longgen.backbones.spec import BackboneSpec
from longgen.pipelines import random_weights

WAN_VAE_22 = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
    scale_factor_spatial=16,
)  # fmt: skip


def transformer(spec: BackboneSpec) -> Any:
    with torch.device("meta"):
        return random_weights.untrained(spec)


def write_configs(spec: BackboneSpec, folder: Path) -> None:
    """A folder as a published model's, without its weights."""
    with torch.device("meta"):
        vae = adapter_of(spec).vae_kind(**(WAN_VAE_22 if spec.latent_channels == 48 else {}))
    vae.save_config(folder / "vae")
    model = transformer(spec)
    model.save_config(folder / "transformer")
    kind = ["diffusers", type(model).__name__]
    index: dict[str, Any] = {"_class_name": family_of(spec).pipeline, "transformer": kind}
    if spec.family == "wan":
        two = spec.experts == 2
        index |= {"transformer_2": kind if two else [None, None], "boundary_ratio": 0.875 if two else None,
                  "expand_timesteps": spec.latent_channels == 48}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
