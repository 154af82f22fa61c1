"""Rotary position embedding (RoPE) on diffusers' tables, with the temporal part at any positions and frequencies.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, S heads that share a
table (1 where all heads do, else H), P = S D / 2 channel pairs of a table, C temporal components.

All four families rotate neighbouring channel pairs by cos and sin; they differ in which pairs belong to time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tables = tuple[Tensor, Tensor]  # cos and sin, [N, P] each
BLOCK = 2**22  # values that are in single precision at a time


@dataclass
class Rotary:
    """frequencies: [C] float64, radians a latent frame. pairs: [C], their places among the P pairs. cache: of tables."""

    frequencies: np.ndarray
    pairs: np.ndarray
    cache: dict[tuple[Any, ...], Tables] = field(default_factory=dict)

    def angles(self, positions: np.ndarray, scale: np.ndarray | None, device: torch.device) -> Tables:
        """cos and sin [f, C] float32 of time `positions` [f]: computed in double precision, then rounded."""
        key = (*_key(positions, scale), device)
        if key not in self.cache:
            self.cache[key] = self._angles(positions, scale, device)
        return self.cache[key]

    def tables_at(self, stock: Tables, positions: np.ndarray, scale: np.ndarray | None) -> Tables:
        """The stock tables [N, P] with their temporal pairs at `positions` [T]."""
        key = ("all", *_key(positions, scale), stock[0].shape, stock[0].device)
        if key not in self.cache:
            frames = [table.unflatten(0, (len(positions), -1)) for table in stock]
            self.cache[key] = self._with_angles(frames, self.angles(positions, scale, stock[0].device))
        return self.cache[key]

    def frame_tables_at(self, frame: Tables, positions: np.ndarray, scale: np.ndarray | None) -> Tables:
        """Tables [F n, P] of frames at `positions` [F], from the stock tables [n, P] of one frame. Not cached: rollouts never
        ask for the same positions twice."""
        frames = [table.expand(len(positions), -1, -1) for table in frame]
        return self._with_angles(frames, self._angles(positions, scale, frame[0].device))

    def _angles(self, positions: np.ndarray, scale: np.ndarray | None, device: torch.device) -> Tables:
        angles = torch.from_numpy(np.outer(positions, self.frequencies if scale is None else self.frequencies * scale))
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def _with_angles(self, frames: list[Tensor], angles: Tables) -> Tables:
        """Tables `frames` [F, n, P], cos and sin, with temporal pairs `angles` [F, C], as [F n, P]."""
        tables = []
        for table, time in zip(frames, angles, strict=True):
            table = table.float().clone(memory_format=torch.contiguous_format)
            table[:, :, self.pairs] = time[:, None, :]
            tables.append(table.flatten(0, 1))
        return tables[0], tables[1]

    def rotate(self, x: Tensor, tables: Tables) -> Tensor:
        """x [B, N, H, D] rotated by tables [N, P]."""
        cos, sin = (table.view(len(table), -1, x.shape[-1] // 2) for table in tables)
        return _rotate_pairs(x, cos, sin)

    def rotate_time(self, x: Tensor, unrotated: Tensor, frames: np.ndarray, times: np.ndarray, scale: np.ndarray | None) -> None:
        """In place, the `frames` of x [B, T, n, H, D] become those of `unrotated`, rotated to `times` in their temporal pairs."""
        cos, sin = self.angles(times, scale, x.device)
        count, run = len(self.pairs), bool(len(frames)) and frames[-1] - frames[0] + 1 == len(frames)
        places = slice(int(frames[0]), int(frames[-1]) + 1) if run else torch.from_numpy(frames).to(x.device)
        if count <= x.shape[-1] // 2 and (self.pairs == np.arange(count)).all():  # the first channels of every head
            x, unrotated = x[..., : 2 * count], unrotated[..., : 2 * count]
            if x.dtype == torch.float32 and run:
                factors = torch.complex(cos, sin)[:, None, None]
                pairs, out = (torch.view_as_complex(part[:, places].unflatten(-1, (-1, 2))) for part in (unrotated, x))
                torch.mul(pairs, factors, out=out)
                return
            x[:, places] = _rotate_pairs(unrotated[:, places], cos[:, None, None], sin[:, None, None])
        else:  # pairs here and there among all heads' channels
            x, unrotated = (part.flatten(3).unflatten(3, (-1, 2)) for part in (x, unrotated))
            pairs = _rotate_pairs(unrotated[:, places][..., self.pairs, :].flatten(3), cos[:, None], sin[:, None])
            x[:, places] = x[:, places].index_copy(3, torch.from_numpy(self.pairs).to(x.device), pairs.unflatten(3, (-1, 2)))


def _key(positions: np.ndarray, scale: np.ndarray | None) -> tuple[bytes, bytes | None]:
    return positions.tobytes(), None if scale is None else scale.tobytes()


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, N, .., D] by cos, sin [N, .., D / 2], as diffusers does it: in float32, rounded once; BLOCK values at a time."""
    out = torch.empty_like(x)
    count = max(1, BLOCK * x.shape[1] // max(1, x.numel()))
    for first in range(0, x.shape[1], count):
        rows = slice(first, first + count)
        even, odd = x[:, rows].unflatten(-1, (-1, 2)).unbind(-1)
        rotated, by_cos, by_sin = out[:, rows], cos[rows], sin[rows]
        rotated[..., 0::2] = even * by_cos - odd * by_sin
        rotated[..., 1::2] = even * by_sin + odd * by_cos
    return out
