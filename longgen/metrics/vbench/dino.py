"""DINO ViT-B/16 (Caron et al., 2104.14294) as facebookresearch/dino runs it, on top of transformers' ViT.

Two differences of transformers that change numbers are undone here. The original interpolates position embeddings, for any size
other than 224x224, by a scale factor with 0.1 patches added (vision_transformer.py `interpolate_pos_encoding`), while transformers
interpolates to the exact size; and its layer norms use epsilon 1e-6, while the published config says 1e-12.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTEmbeddings

from longgen.metrics.vbench import pictures, pretrained

CONFIG = ViTConfig(layer_norm_eps=1e-6)  # the defaults are ViT-B/16 at 224 pixels


class Embeddings(ViTEmbeddings):
    """ViT embeddings with DINO's interpolation of positions."""

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """[1, 1 + patches, D] for pictures of `height` x `width` pixels whose tokens are `embeddings` [F, 1 + patches, D]."""
        patches = self.position_embeddings.shape[1] - 1
        if embeddings.shape[1] - 1 == patches and height == width:
            return self.position_embeddings
        side = round(patches**0.5)
        grid = self.position_embeddings[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        factor = tuple((length // self.patch_size + 0.1) / side for length in (height, width))
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
        return torch.cat([self.position_embeddings[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class Dino:
    """`embed`: frames [F, 3, H, W] from 0 to 255 -> [F, 768], the class token of the last layer."""

    def __init__(self, model: ViTModel) -> None:
        embeddings = Embeddings(model.config).to(model.device)
        embeddings.load_state_dict(model.embeddings.state_dict())
        model.embeddings = embeddings
        self._model = model.eval()

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        return self._model(pictures.for_dino(frames), interpolate_pos_encoding=True).last_hidden_state[:, 0]


def load(path: Path, device: str) -> Dino:
    """From model.safetensors or pytorch_model.bin of facebook/dino-vitb16."""
    return Dino(pretrained.load(ViTModel, path, CONFIG, add_pooling_layer=False).to(device))
