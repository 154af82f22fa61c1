"""What one attention layer attends to in one call, for an observer of the model, such as a probe. Read-only.

Legend: B batch, Q query frames, K key frames (the last Q of them are the query frames), n tokens per latent frame, L text tokens,
H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """layer: identifies the layer. shape: (Q, K). q [B, Q n, H, D], k and v [B, K n, H, D]: before rotary embedding.

    rotate: x [B, f n, H, D] with its frames at times [f]. attend: the backbone's own attention of rotated q and k; it appends the
    keys and values of `text`, [B, L, H, D] each, where text takes part. clean: whether the query frames are those of a rollout's
    clean pass, after their denoising steps.
    """

    layer: int
    shape: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    rotate: Callable[[Tensor, np.ndarray], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    text: tuple[Tensor, Tensor] | None = None
    clean: bool = False

    @property
    def times(self) -> np.ndarray:
        """The times [K] of the key frames; those of the query frames are the last Q."""
        return np.arange(self.shape[1], dtype=np.float64)


Observer = Callable[[AttentionInputs], None]
