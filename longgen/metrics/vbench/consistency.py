"""Subject and background consistency: feature similarity of each frame to the previous and to the first.

Source: vbench/subject_consistency.py, vbench/background_consistency.py. With f_t the normalised embedding of frame t,

    s_t = (max(0, f_{t-1} . f_t) + max(0, f_0 . f_t)) / 2        score = mean of s_t over t = 1 .. T-1
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F


class Consistency:
    """Consumes frames in order; stores two embeddings. `embed`: frames [F, 3, H, W] from 0 to 255 -> [F, D]."""

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._embed = embed
        self._first: torch.Tensor | None = None
        self._before: torch.Tensor | None = None
        self.curve: list[float] = []  # s_t, nan for the first frame

    def add(self, frames: torch.Tensor) -> None:
        for now in F.normalize(self._embed(frames), dim=-1)[:, None]:
            if self._first is None or self._before is None:
                self._first = now
                self.curve.append(math.nan)
            else:
                pair = (F.cosine_similarity(other, now).item() for other in (self._before, self._first))
                self.curve.append(sum(max(0.0, cosine) for cosine in pair) / 2)
            self._before = now

    def value(self) -> float | None:
        """None for fewer than two frames."""
        return sum(self.curve[1:]) / (len(self.curve) - 1) if len(self.curve) > 1 else None
