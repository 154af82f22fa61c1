"""Rotary positions on diffusers' tables, with the temporal part rebuilt for any positions and frequencies.

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
    """frequencies: [C] float64, radians a latent frame. pairs: [C], their places among the P pairs. Tables are kept."""

    frequencies: np.ndarray
    pairs: np.ndarray
    kept: dict[tuple[Any, ...], Tables] = field(default_factory=dict)

    def angles(self, positions: np.ndarray, scale: np.ndarray | None, device: torch.device) -> Tables:
        """cos and sin [f, C] float32 of time `positions` [f]: computed in double precision, then rounded."""
        key = (positions.tobytes(), None if scale is None else scale.tobytes(), device)
        if key not in self.kept:
            turned = torch.from_numpy(np.outer(positions, self.frequencies if scale is None else self.frequencies * scale))
            self.kept[key] = (turned.cos().float().to(device), turned.sin().float().to(device))
        return self.kept[key]

    def rebuilt(self, stock: Tables, positions: np.ndarray, scale: np.ndarray | None) -> Tables:
        """The stock tables [N, P] with their temporal pairs at `positions` [T]."""
        key = ("all", positions.tobytes(), None if scale is None else scale.tobytes(), stock[0].shape, stock[0].device)
        if key not in self.kept:
            new = []
            for table, part in zip(stock, self.angles(positions, scale, stock[0].device), strict=True):
                table = table.float().unflatten(0, (len(positions), -1)).clone()
                table[:, :, self.pairs] = part[:, None, :]
                new.append(table.flatten(0, 1))
            self.kept[key] = (new[0], new[1])
        return self.kept[key]

    def placed(self, frame: Tables, positions: np.ndarray, scale: np.ndarray | None) -> Tables:
        """Tables [F n, P] of frames at `positions` [F], of the stock tables [n, P] of one. Not kept: they do not come again."""
        turned = torch.from_numpy(np.outer(positions, self.frequencies if scale is None else self.frequencies * scale))
        new = []
        for table, part in zip(frame, (turned.cos(), turned.sin()), strict=True):
            table = table.float().expand(len(positions), -1, -1).clone()
            table[:, :, self.pairs] = part.float().to(table.device)[:, None, :]
            new.append(table.flatten(0, 1))
        return new[0], new[1]

    def turn(self, x: Tensor, tables: Tables) -> Tensor:
        """x [B, N, H, D] rotated by tables [N, P]."""
        cos, sin = (table.view(len(table), -1, x.shape[-1] // 2) for table in tables)
        return _turn_pairs(x, cos, sin)

    def turn_time(self, x: Tensor, still: Tensor, frames: np.ndarray, times: np.ndarray, scale: np.ndarray | None) -> None:
        """In place, the `frames` of x [B, T, n, H, D] become those of `still`, rotated in time to `times`.

        The pairs of space stay as they are.
        """
        cos, sin = self.angles(times, scale, x.device)
        count, run = len(self.pairs), bool(len(frames)) and frames[-1] - frames[0] + 1 == len(frames)
        places = slice(int(frames[0]), int(frames[-1]) + 1) if run else torch.from_numpy(frames).to(x.device)
        if count <= x.shape[-1] // 2 and (self.pairs == np.arange(count)).all():  # the first channels of every head
            x, still = x[..., : 2 * count], still[..., : 2 * count]
            if x.dtype == torch.float32 and run:
                factors = torch.complex(cos, sin)[:, None, None]
                pairs, turned = (torch.view_as_complex(part[:, places].unflatten(-1, (-1, 2))) for part in (still, x))
                torch.mul(pairs, factors, out=turned)
                return
            x[:, places] = _turn_pairs(still[:, places], cos[:, None, None], sin[:, None, None])
        else:  # pairs here and there among all heads' channels
            x, still = (part.flatten(3).unflatten(3, (-1, 2)) for part in (x, still))
            turned = _turn_pairs(still[:, places][..., self.pairs, :].flatten(3), cos[:, None], sin[:, None])
            x[:, places] = x[:, places].index_copy(3, torch.from_numpy(self.pairs).to(x.device), turned.unflatten(3, (-1, 2)))


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, N, .., D] by cos, sin [N, .., D / 2], as diffusers does it: in float32, rounded once; BLOCK values at a time."""
    out = torch.empty_like(x)
    count = max(1, BLOCK * x.shape[1] // max(1, x.numel()))
    for first in range(0, x.shape[1], count):
        rows = slice(first, first + count)
        even, odd = x[:, rows].unflatten(-1, (-1, 2)).unbind(-1)
        turned, by_cos, by_sin = out[:, rows], cos[rows], sin[rows]
        turned[..., 0::2] = even * by_cos - odd * by_sin
        turned[..., 1::2] = even * by_sin + odd * by_cos
    return out
