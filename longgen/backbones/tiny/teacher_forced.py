"""Attention of causal training: chunks of noisy frames see their clean past, as a rollout does, all in one forward."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor


class TeacherForced(WanAttnProcessor):
    """Self-attention over a clean clip and, after it, the same clip at other noise levels: 2 T frames, T rotary positions.

    A frame sees its own chunk and, of the clean clip, the chunks before. So each chunk learns from just what a rollout will
    give it: clean keys and values of the past, and its own at the level that it stands at.
    """

    def __init__(self, frames_lat: int, tokens: int, chunk_lat: int) -> None:
        super().__init__()
        chunk = (torch.arange(frames_lat) // chunk_lat).repeat_interleave(tokens)
        past, own = chunk[:, None] > chunk[None, :], chunk[:, None] == chunk[None, :]
        self.mask = torch.cat([torch.cat([past | own, torch.zeros_like(own)], 1), torch.cat([past, own], 1)])

    def __call__(self, attn: Any, hidden_states: Tensor, text: Any, mask: Any, rotary: tuple[Tensor, Tensor]) -> Tensor:
        half = hidden_states.shape[1] // 2
        twice = tuple(torch.cat([table[:, :half], table[:, :half]], dim=1) for table in rotary)
        return super().__call__(attn, hidden_states, text, self.mask.to(hidden_states.device), twice)
