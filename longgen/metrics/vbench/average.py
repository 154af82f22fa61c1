"""Aesthetic and imaging quality: the mean of a per-frame score."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Average:
    """Takes frames in order. `rate`: frames [F, 3, H, W] from 0 to 255 -> [F], from 0 to 1."""

    def __init__(self, rate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._rate = rate
        self.curve: list[float] = []

    def add(self, frames: torch.Tensor) -> None:
        self.curve += self._rate(frames).tolist()

    def value(self) -> float | None:
        return sum(self.curve) / len(self.curve) if self.curve else None
