"""What the executor needs from a model for one call of one attention layer.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.rotary import Times
from longgen.technique import Grid


class AttentionContext(Protocol):
    """One attention layer in one model call: its rotary embedding, its attention backend, its text."""

    grid: Grid  # latent frames, rows and columns of tokens
    features: Tensor  # the layer's input [B, N, C], text excluded
    text: tuple[Tensor, Tensor] | None  # keys and values [B, L, H, D], where text takes part in self-attention
    room: float  # [B, N, C] tensors that attention may hold before the block's peak, in its feed-forward, is passed

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The backbone's own attention: q [B, Nq, H, D], k and v [B, Nk, H, D] -> [B, Nq, H, D].

        Appends the keys and values of `text`. mask [Nq, Nk]: True where a key is seen, or the float that is added to the logits.
        """

    def rotate(self, x: Tensor, positions: Times | None, scale: np.ndarray | None) -> Tensor:
        """x [B, T n, H, D] rotated in space and to times `positions` [T] (None: 0 .. T-1), by frequencies times `scale`."""

    def rotate_time(self, x: Tensor, unrotated: Tensor, frames: Times, times: Times, scale: np.ndarray | None) -> None:
        """In place, the `frames` of x [B, f n, H, D] become those of `unrotated`, rotated in time to `times`."""

    def attention_with_lse(self, q: Tensor, masked: bool = False) -> AttentionWithLSE | None:
        """A kernel for tensors like q that computes what `attend` does, text excluded, and returns the log-sum-exp.

        None where the attention backend has none. masked: one that takes a mask.
        """

    def observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Shows this call to the observer, if there is one."""

    def anchored(self, k: Tensor, v: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """k and v with `weight` of those of each sample's anchor clip, which was computed before; k and v where there is none."""

    def sample(self, index: int) -> AttentionContext:
        """The context of one sample of the batch."""


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """q, k, v [B, N, H, D] of one layer in one model call, before rotary embedding, and the layer's context."""

    ctx: AttentionContext
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def text_tokens(self) -> int:
        return 0 if self.ctx.text is None else self.ctx.text[0].shape[1]
