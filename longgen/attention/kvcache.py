"""The cache of a rollout: keys and values of the frames that are held, and attention of the newest frames over them.

Legend: B batch, F slots (frames held, then the newest c), n tokens per latent frame, H heads, D head dim, P channel pairs of a
rotary table.

Keys are kept before rotary positions, so that a frame plan may place them anew for every chunk: re-based, slowed down, or where
they were. Beside them stand the keys as this chunk sees them, turned once a chunk and not once a pass; the newest frames' keys
and values are written behind them, so that attention reads views, and nothing is joined. A denoising pass leaves no trace but
in the slots of its own frames, and the clean pass after it writes their keys for good.

Between chunks frames that no layer will see again are dropped, before attention: memory is that of what the plan shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from longgen.attention.lowering import SAME, Range, ranges_of
from longgen.attention.observer import AttentionInputs, Observer
from longgen.frameplan import FramePlan, full_attention
from longgen.program import Program

if TYPE_CHECKING:
    from longgen.pipelines.rotary import Rotary, Tables

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, c n, H, D], k and v [B, *, H, D] -> [B, c n, H, D]


@dataclass(eq=False)
class ChunkView:
    """What the newest frames see. ranges: of slots. positions [F]: their times, as queries; as keys they stand `lag` behind.

    tables, own_tables: [F n, P] of the keys and [c n, P] of the queries, once they are asked for.
    """

    ranges: tuple[Range, ...]
    positions: np.ndarray
    scale: np.ndarray | None
    logit_scale: float
    lag: float = 0.0
    tables: Tables | None = None
    own_tables: Tables | None = None


def chunk_view(plan: FramePlan, slots: list[int]) -> ChunkView:
    """`plan` [Q, T] over the frames in `slots`, the last Q of which are its query frames.

    All rows must see the same frames, at times p[i] - p[j] + lag: whatever a causal backbone's techniques make is of this form.
    """
    (one,), queries = plan.passes, plan.shape[0]
    visible, rel = one.visible[:, slots], one.rel[:, slots]
    seen = np.flatnonzero(visible[0])
    positions = rel[0, seen[0]] - rel[0]
    apart = positions[-queries:, None] - positions
    lag = float((rel - apart)[0, seen[0]])
    lag = lag if abs(lag) > SAME else 0.0
    if (
        (visible != visible[0]).any()
        or (np.abs(apart + lag - rel)[:, seen] > SAME).any()
        or one.stripe is not None
        or plan.key_frames
    ):
        raise ValueError("the frames of a chunk see different frames, or at times that are no differences of positions")
    return ChunkView(ranges_of(visible[0]), positions, plan.frequency_scale, plan.logit_scale, lag)


@dataclass
class LayerCache:
    """One layer's slots, [B, F n, H, D] each: keys before rotary positions, keys as `turned_for` sees them, values."""

    keys: Tensor
    turned: Tensor
    values: Tensor
    turned_for: ChunkView | None = None


@dataclass
class KVCache:
    """rotary: the model's. capacity: slots. frames: those held, in their order; then come the newest, `own` of them.

    shared: those of them, and of the newest, that every program shows. texts: keys and values of the prompt, by layer, until
    `forget_text`.
    """

    rotary: Rotary
    capacity: int
    frames: list[int] = field(default_factory=list)
    own: int = 0
    shared: list[int] = field(default_factory=list)
    writing: bool = False
    layers: dict[int, LayerCache] = field(default_factory=dict)
    texts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _programs: tuple[Program | None, ...] = ()
    _table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    _sights: dict[int, ChunkView] = field(default_factory=dict)

    def open(self, start: int, own: int, programs: tuple[Program | None, ...], table: np.ndarray) -> None:
        """Begins the frames [start, start + own), by `Plan.rolled`'s programs; what is held of them or later is forgotten."""
        self._programs, self._table, self.own = programs, table, own
        plans = {index: self._plan(index, start + own) for index in np.unique(table).tolist()}
        seen = np.stack([plan.passes[0].visible.any(axis=0) for plan in plans.values()])
        self.keep([frame for frame in self.frames if frame < start and seen[:, frame].any()])
        slots = [*self.frames, *range(start, start + own)]
        if len(slots) > self.capacity:
            raise ValueError(f"{len(slots)} frames for {self.capacity} slots")
        self.shared = [frame for frame in slots if seen[:, frame].all()]
        self._sights = {index: chunk_view(plan, slots) for index, plan in plans.items()}

    def _plan(self, index: int, frames_lat: int) -> FramePlan:
        program = self._programs[index]
        return full_attention(frames_lat, self.own) if program is None else program.branches["main"]

    def keep(self, frames: list[int]) -> None:
        """Drops all held frames but these."""
        slots = [self.frames.index(frame) for frame in frames]
        if slots != list(range(len(slots))):
            for layer in self.layers.values():
                for x in (layer.keys, layer.values):
                    by_frame = x.unflatten(1, (self.capacity, -1))
                    by_frame[:, : len(slots)] = by_frame[:, slots]
        self.frames = frames

    def close(self, start: int) -> None:
        """The frames from `start` on, which were written, are held from now on."""
        self.frames = [*self.frames, *range(start, start + self.own)]

    def forget_text(self) -> None:
        self.texts.clear()

    def attend(
        self,
        layer: int,
        step: int,
        attend: Attend,
        stock: Tables,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        observer: Observer | None = None,
    ) -> Tensor:
        """Attention [B, c n, H, D] of the newest frames, by the program of `layer` in `step`.

        q, k, v: of the newest frames, before rotary positions. stock: cos and sin of their own tables, [c n, P].
        """
        tokens = q.shape[1] // self.own
        held, end = len(self.frames) * tokens, (len(self.frames) + self.own) * tokens
        if layer not in self.layers:
            shape = (k.shape[0], self.capacity * tokens, *k.shape[2:])
            self.layers[layer] = LayerCache(k.new_empty(shape), k.new_empty(shape), v.new_empty(shape))
        kept, sight = self.layers[layer], self._sights[int(self._table[layer, step])]
        if sight.tables is None:
            frame = stock[0][:tokens], stock[1][:tokens]
            sight.tables = self.rotary.placed(frame, sight.positions - sight.lag, sight.scale)
            if sight.lag:
                sight.own_tables = self.rotary.placed(frame, sight.positions[-self.own :], sight.scale)
        cos, sin = sight.tables
        if kept.turned_for is not sight and held:
            kept.turned[:, :held] = self.rotary.turn(kept.keys[:, :held], (cos[:held], sin[:held]))
        kept.turned_for = sight
        newest = (cos[held:end], sin[held:end])
        kept.turned[:, held:end], kept.values[:, held:end] = self.rotary.turn(k, newest), v
        if self.writing:
            kept.keys[:, held:end] = k
        if observer is not None and not self.writing:
            observer(self._glimpse(layer, attend, stock, q, k, v))
        q = self.rotary.turn(q, sight.own_tables or newest)
        if sight.logit_scale != 1:
            q = q * sight.logit_scale
        keys, values = (_slots(x, sight.ranges, tokens) for x in (kept.turned, kept.values))
        return attend(q, keys, values)

    def _glimpse(self, layer: int, attend: Attend, stock: Tables, q: Tensor, k: Tensor, v: Tensor) -> AttentionInputs:
        tokens = q.shape[1] // self.own
        kept, held, frame = self.layers[layer], len(self.frames) * tokens, (stock[0][:tokens], stock[1][:tokens])

        def turn(x: Tensor, times: np.ndarray) -> Tensor:
            return self.rotary.turn(x, self.rotary.placed(frame, times, None))

        keys, values = torch.cat([kept.keys[:, :held], k], dim=1), torch.cat([kept.values[:, :held], v], dim=1)
        shape = (self.own, len(self.frames) + self.own)
        return AttentionInputs(layer, shape, q, keys, values, turn, attend)


def _slots(x: Tensor, ranges: tuple[Range, ...], tokens: int) -> Tensor:
    """The tokens of the slots in `ranges`; a view where that is one range."""
    parts = [x[:, start * tokens : stop * tokens] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
