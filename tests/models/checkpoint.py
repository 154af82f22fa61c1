"""The weights of a Wan transformer under the names that Wan's authors, and trainings that start from their code, give them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = [  # diffusers -> Wan's authors; a block's table before the one of the head
    ("attn1.", "self_attn."), ("attn2.", "cross_attn."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
    (".to_out.0.", ".o."), ("ffn.net.0.proj.", "ffn.0."), ("ffn.net.2.", "ffn.2."), (".norm2.", ".norm3."),
    (".scale_shift_table", ".modulation"), ("scale_shift_table", "head.modulation"), ("proj_out.", "head.head."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."), ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
]  # fmt: skip


def wans_name(name: str) -> str:
    """A weight's name in diffusers as Wan's authors call it."""
    for theirs, wans in NAMES:
        name = name.replace(theirs, wans)
    return name


def weights(transformer: Any) -> dict[str, Tensor]:
    return {wans_name(name): weight.detach().clone() for name, weight in transformer.state_dict().items()}


def sparse(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of that table; its weights are a hole of zeros, so that it takes no room."""
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "I32": 4, "F8_E4M3": 1}
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = sizes[dtype] * int(torch.Size(shape).numel())
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
