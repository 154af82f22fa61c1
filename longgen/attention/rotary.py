"""Rotary position embedding (RoPE) on diffusers' tables, with the temporal part at any positions and frequencies.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, S heads that share a
table (1 where all heads do, else H), P = S D / 2 channel pairs of a table, C temporal components.

All four families rotate neighbouring channel pairs by cos and sin; they differ in which pairs belong to time.

A CPU rotates a few values at a time, by whole tables that are kept. An accelerator rotates all at once, by the stock tables, and
then the temporal pairs again from the same x, by their angles of each frame: nine launches, and no table to keep. Either way
the same products are rounded once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from longgen.device_costs import costs_on
from longgen.device_tables import double_on, on_device

Tables = tuple[Tensor, Tensor]  # cos and sin, [N, P] each
Times: TypeAlias = np.ndarray | Tensor  # in latent frames; a tensor where they are known on the device alone
BLOCK = 2**22  # values that a CPU has in single precision at a time
MOST_BYTES = 256 * 2**20  # of tables kept; those not used for longest go first


@dataclass
class Rotary:
    """frequencies: [C] float64, radians a latent frame. pairs: [C], their places among the P pairs, equally far apart.

    components: which of the model's these are, if not all; a scale is for all of them.
    """

    frequencies: np.ndarray
    pairs: np.ndarray
    components: slice | None = None
    _cache: OrderedDict[tuple[Any, ...], Tables] = field(default_factory=OrderedDict, repr=False, compare=False)

    @property
    def places(self) -> slice:
        """`pairs` as a slice."""
        first, *rest = self.pairs.tolist() or [0]
        step = rest[0] - first if rest else 1
        return slice(first, first + step * len(self.pairs), step)

    def part(self, columns: slice) -> Rotary:
        """That of some heads, whose pairs are `columns` of a table for all heads."""
        inside = np.flatnonzero((self.pairs >= columns.start) & (self.pairs < columns.stop))
        own = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
        return Rotary(self.frequencies[own], self.pairs[own] - columns.start, own)

    def angles(self, times: Times, scale: np.ndarray | None, device: torch.device) -> Tables:
        """cos and sin [f, C] float32 of `times` [f]: computed in double precision, where the device has it, then rounded."""
        if isinstance(times, Tensor):
            angles = times.to(double_on(device))[:, None] * on_device(self._scaled(scale), device, double_on(device))
            return angles.cos().float(), angles.sin().float()
        key = (*_key(times, scale), device)
        return self._kept(key) or self._keep(key, self._angles(times, scale, device))

    def tables_at(self, stock: Tables, positions: np.ndarray, scale: np.ndarray | None) -> Tables:
        """The stock tables [N, P] with their temporal pairs at `positions` [T]."""
        key = ("all", *_key(positions, scale), stock[0].shape, stock[0].device)
        if (kept := self._kept(key)) is not None:
            return kept
        frames = [table.unflatten(0, (len(positions), -1)) for table in stock]
        return self._keep(key, self._with_angles(frames, self.angles(positions, scale, stock[0].device)))

    def frame_tables_at(self, frame: Tables, positions: Times, scale: np.ndarray | None) -> Tables:
        """Tables [F n, P] of frames at `positions` [F], from the stock tables [n, P] of one frame. Not cached: rollouts never
        ask for the same positions twice."""
        frames, device = [table.expand(len(positions), -1, -1) for table in frame], frame[0].device
        known = isinstance(positions, np.ndarray)
        return self._with_angles(frames, (self._angles if known else self.angles)(positions, scale, device))

    def _scaled(self, scale: np.ndarray | None) -> np.ndarray:
        if scale is None:
            return self.frequencies
        return self.frequencies * (scale if self.components is None else scale[self.components])

    def _angles(self, times: np.ndarray, scale: np.ndarray | None, device: torch.device) -> Tables:
        angles = torch.from_numpy(np.outer(times, self._scaled(scale)))
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def _kept(self, key: tuple[Any, ...]) -> Tables | None:
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _keep(self, key: tuple[Any, ...], tables: Tables) -> Tables:
        self._cache[key] = tables
        kept = sum(cos.nbytes + sin.nbytes for cos, sin in self._cache.values())
        while kept > MOST_BYTES and len(self._cache) > 1:
            kept -= sum(table.nbytes for table in self._cache.popitem(last=False)[1])
        return tables

    def _with_angles(self, frames: list[Tensor], angles: Tables) -> Tables:
        """Tables `frames` [F, n, P], cos and sin, with temporal pairs `angles` [F, C], as [F n, P]."""
        tables = []
        for table, time in zip(frames, angles, strict=True):
            table = table.float().clone(memory_format=torch.contiguous_format)
            table[:, :, self.places] = time[:, None, :]
            tables.append(table.flatten(0, 1))
        return tables[0], tables[1]

    def rotate(self, x: Tensor, tables: Tables) -> Tensor:
        """x [B, N, H, D] rotated by tables [N, P]."""
        cos, sin = (table.view(len(table), -1, x.shape[-1] // 2) for table in tables)
        return _rotate_pairs(x.unflatten(-1, (-1, 2)), cos, sin).flatten(-2)

    def rotate_to(self, x: Tensor, stock: Tables, positions: Times, scale: np.ndarray | None) -> Tensor:
        """x [B, T n, H, D] rotated by the stock tables [N, P] with their temporal pairs at `positions` [T]."""
        if not costs_on(x.device.type).batched and isinstance(positions, np.ndarray):
            return self.rotate(x, self.tables_at(stock, positions, scale))
        rotated, frames_lat = self.rotate(x, stock), len(positions)
        by_frame, unrotated = (part.unflatten(1, (frames_lat, -1)) for part in (rotated, x))
        self.rotate_time(by_frame, unrotated, np.arange(frames_lat), positions, scale)
        return rotated

    def rotate_time(self, x: Tensor, unrotated: Tensor, frames: Times, times: Times, scale: np.ndarray | None) -> None:
        """In place, the `frames` of x [B, T, n, H, D] become those of `unrotated`, rotated to `times` in their temporal pairs."""
        cos, sin = self.angles(times, scale, x.device)
        run = isinstance(frames, np.ndarray) and bool(len(frames)) and (np.diff(frames) == 1).all()
        at = slice(int(frames[0]), int(frames[-1]) + 1) if run else frames
        if isinstance(at, np.ndarray):
            at = on_device(at, x.device)
        count = len(self.pairs)
        if count <= x.shape[-1] // 2 and self.places == slice(0, count, 1):  # the first channels of every head
            x, unrotated = (part[..., : 2 * count].unflatten(-1, (-1, 2)) for part in (x, unrotated))
            cos, sin = cos[:, None, None], sin[:, None, None]
            if x.dtype == torch.float32 and run and not costs_on(x.device.type).batched:
                pairs, out = (torch.view_as_complex(part[:, at]) for part in (unrotated, x))
                torch.mul(pairs, torch.complex(cos, sin), out=out)
                return
        else:  # pairs here and there among all heads' channels
            x, unrotated = (part.flatten(3).unflatten(3, (-1, 2))[:, :, :, self.places] for part in (x, unrotated))
            cos, sin = cos[:, None], sin[:, None]
        x[:, at] = _rotate_pairs(unrotated[:, at], cos, sin)  # which may be x itself


def _key(positions: np.ndarray, scale: np.ndarray | None) -> tuple[bytes, bytes | None]:
    return positions.tobytes(), None if scale is None else scale.tobytes()


def _rotate_pairs(pairs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`pairs` [B, N, .., P, 2] by cos, sin [N, .., P], as diffusers does it: in float32, rounded once."""
    out = torch.empty_like(pairs)
    if costs_on(pairs.device.type).batched:
        (even, odd), (out_even, out_odd) = pairs.unbind(-1), out.unbind(-1)
        product = even * cos  # the one product that is held in single precision
        torch.addcmul(product, odd, sin, value=-1, out=out_even)
        torch.addcmul(torch.mul(even, sin, out=product), odd, cos, out=out_odd)
        return out
    count = max(1, BLOCK * pairs.shape[1] // max(1, pairs.numel()))
    for start in range(0, pairs.shape[1], count):
        rows = slice(start, start + count)
        even, odd = pairs[:, rows].unbind(-1)
        rotated, by_cos, by_sin = out[:, rows], cos[rows], sin[rows]
        rotated[..., 0] = even * by_cos - odd * by_sin
        rotated[..., 1] = even * by_sin + odd * by_cos
    return out
