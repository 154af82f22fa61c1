"""CLIP's image encoder (Radford et al., 2103.00020) in transformers, and LAION's linear aesthetic head."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from longgen.errors import LonggenError
from longgen.metrics.vbench import pictures, pretrained, weights

B32 = CLIPVisionConfig()  # ViT-B/32 by default
L14 = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, projection_dim=768, num_hidden_layers=24, num_attention_heads=16,
                       patch_size=14)  # fmt: skip


class Clip:
    """`embed`: frames [F, 3, H, W] from 0 to 255 -> [F, D], what `encode_image` of openai's clip gives in float32."""

    def __init__(self, model: CLIPVisionModelWithProjection) -> None:
        self._model = model.eval()

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        return self._model(pictures.for_clip(frames)).image_embeds


class Aesthetic:
    """`rate`: frames [F, 3, H, W] from 0 to 255 -> [F], LAION's rating over 10. Source: vbench/aesthetic_quality.py."""

    def __init__(self, clip: Clip, head: nn.Linear) -> None:
        self._clip, self._head = clip, head

    def rate(self, frames: torch.Tensor) -> torch.Tensor:
        return self._head(F.normalize(self._clip.embed(frames), dim=-1))[:, 0] / 10


def load(path: Path, config: CLIPVisionConfig, device: str) -> Clip:
    """From a file of openai/clip-vit-base-patch32 or of openai/clip-vit-large-patch14; their text encoder is ignored."""
    return Clip(pretrained.load(CLIPVisionModelWithProjection, path, config).to(device))


def load_head(path: Path, device: str) -> nn.Linear:
    """From sa_0_4_vit_l_14_linear.pth."""
    head = nn.Linear(768, 1)
    try:
        head.load_state_dict(weights.read(path))
    except RuntimeError as error:
        raise LonggenError(f"{path} is not LAION's linear head: {str(error).splitlines()[-1].strip()}", hint="download it again",
                           expected="sa_0_4_vit_l_14_linear.pth as published") from None  # fmt: skip
    return head.to(device).eval()
