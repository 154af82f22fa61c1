"""Repetition of features: what `longgen.metrics.repetition` measures of pictures, of a network's embeddings; no dimension of
VBench.

A loop whose turns differ in light or place may look new, pixel by pixel, and still show the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from longgen.metrics.repetition import recurrence

FLOOR = 0.002  # of |f - g|^2 of normalised embeddings: what H.264 at crf 18 leaves between equal pictures (measured)


class FeatureRepetition:
    """Consumes frames in order; stores an embedding of each, 5 kB. `embed`: frames [F, 3, H, W] from 0 to 255 -> [F, D]."""

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor], fps: float) -> None:
        self._embed, self._fps = embed, fps
        self._rows: list[np.ndarray] = []
        self.curve: list[float] = []  # nan: it is of the whole video

    def add(self, frames: torch.Tensor) -> None:
        self._rows += [*F.normalize(self._embed(frames), dim=-1).cpu().numpy()]
        self.curve += [math.nan] * len(frames)

    def value(self) -> float | None:
        """From 0 to 1; None for a video that is too short to repeat."""
        found = recurrence(np.array(self._rows), self._fps, FLOOR)
        return None if found is None else found[0] / 100
