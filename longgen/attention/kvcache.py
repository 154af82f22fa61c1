"""KV cache of an autoregressive rollout: keys and values of past frames, and attention of the newest frames over them.

Legend: B batch, F slots (cached frames, then the newest c), n tokens per latent frame, H heads, D head dim, P channel pairs of a
rotary table.

Keys are cached before rotary embedding, so that a frame plan may place them at other times in every chunk: re-based, slowed down,
or unchanged. A second buffer holds them rotated as the current chunk sees them, so that they are rotated once a chunk and not once
a denoising pass. The newest frames' keys and values are written behind the cached ones, so that attention reads views. A denoising
pass writes only to the slots of its own frames, and the clean pass after it stores their keys for good.

Between chunks, frames that no layer will see again are evicted, before attention: memory is that of what the plan shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from longgen.attention.lowering import SAME, Range, ranges_of
from longgen.attention.observer import AttentionInputs, Observer
from longgen.attention.rotary import Rotary, Tables
from longgen.attention.score_blocks import SignFactors
from longgen.attention.sequential import attend_scaled, frames_of
from longgen.device_tables import on_device
from longgen.frameplan import FramePlan, full_attention
from longgen.program import Program

Attend = Callable[..., Tensor]  # q [B, c n, H, D], k and v [B, *, H, D], and a mask for plans with logit columns -> [B, c n, H, D]


@dataclass(eq=False)
class ChunkView:
    """What the newest frames see.

    ranges: of slots. positions [F]: the slots' times as queries; as keys they are `time_offset` earlier. logits: [2, c, visible
    slots], factors and addends of the pass's columns, or None. positive [c, visible slots]: factors on positive logits, or None;
    centred: as in the plan. tables, query_tables: [F n, P] of the keys and [c n, P] of the queries, computed on first use.
    """

    ranges: tuple[Range, ...]
    positions: np.ndarray
    scale: np.ndarray | None
    logit_scale: float
    time_offset: float = 0.0
    logits: np.ndarray | None = None
    positive: np.ndarray | None = None
    centred: bool = False
    tables: Tables | None = None
    query_tables: Tables | None = None


def chunk_view(plan: FramePlan, slots: list[int]) -> ChunkView:
    """`plan` [Q, T] over the frames in `slots`, the last Q of which are its query frames.

    All rows must see the same whole frames, at times p[i] - p[j] + time_offset; raises ValueError otherwise. The techniques that
    causal backbones accept only make plans of this form.
    """
    (pass_,), queries = plan.passes, plan.shape[0]
    visible, rel = pass_.visible[:, slots], pass_.rel[:, slots]
    seen = np.flatnonzero(visible[0])
    positions = rel[0, seen[0]] - rel[0]
    differences = positions[-queries:, None] - positions
    offset = float((rel - differences)[0, seen[0]])
    offset = offset if abs(offset) > SAME else 0.0
    same_rows = (visible == visible[0]).all() and (np.abs(differences + offset - rel)[:, seen] <= SAME).all()
    if not same_rows or pass_.band is not None or plan.key_frames:
        raise ValueError("the frames of a chunk see different frames, or at times that are no differences of positions")
    logits = None if pass_.logits is None else pass_.logits[:, :, slots][:, :, seen]
    positive = None if pass_.positive is None else pass_.positive[:, slots][:, seen]
    return ChunkView(
        ranges_of(visible[0]), positions, plan.frequency_scale, plan.logit_scale, offset, logits, positive, plan.centred
    )


@dataclass
class LayerCache:
    """One layer's slots, [B, F n, H, D] each: keys before rotary embedding, keys rotated for `view`, values."""

    keys: Tensor
    rotated_keys: Tensor
    values: Tensor
    view: ChunkView | None = None


@dataclass
class KVCache:
    """rotary: the model's. capacity: slots. frames: those cached, in order; after them come the newest, `newest` of them.

    visible_to_all_layers: the cached and newest frames that every program shows. texts: the prompt's keys and values for
    cross-attention, by layer, until it changes. writing: whether the pass is the clean one, which stores keys.
    """

    rotary: Rotary
    capacity: int
    frames: list[int] = field(default_factory=list)
    newest: int = 0
    visible_to_all_layers: list[int] = field(default_factory=list)
    writing: bool = False
    layers: dict[int, LayerCache] = field(default_factory=dict)
    texts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _views: dict[int, ChunkView] = field(default_factory=dict)
    _table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def open(self, start: int, newest: int, programs: tuple[Program | None, ...], table: np.ndarray) -> None:
        """Begins the frames [start, start + newest) by the programs of `Plan.programs_for_chunk`; evicts what they do not see.

        Cached frames from `start` on are forgotten.
        """
        self._table, self.newest = table, newest
        chosen = {index: programs[index] for index in np.unique(table).tolist()}
        plans = {index: full_attention(start + newest, newest) if program is None else program.branches["main"]
                 for index, program in chosen.items()}  # fmt: skip
        seen = np.stack([plan.passes[0].visible.any(axis=0) for plan in plans.values()])
        self.keep([frame for frame in self.frames if frame < start and seen[:, frame].any()])
        slots = [*self.frames, *range(start, start + newest)]
        if len(slots) > self.capacity:
            raise ValueError(f"{len(slots)} frames for {self.capacity} slots")
        self.visible_to_all_layers = [frame for frame in slots if seen[:, frame].all()]
        self._views = {index: chunk_view(plan, slots) for index, plan in plans.items()}

    def keep(self, frames: list[int]) -> None:
        """Evicts all cached frames but these."""
        slots = [self.frames.index(frame) for frame in frames]
        if slots != list(range(len(slots))):
            chosen = np.array(slots)
            for layer in self.layers.values():
                for x in (layer.keys, layer.values):
                    by_frame = x.unflatten(1, (self.capacity, -1))
                    by_frame[:, : len(slots)] = by_frame[:, on_device(chosen, x.device)]
        self.frames = frames

    def close(self, start: int) -> None:
        """The newest frames, from `start` on, which were written, are cached from now on."""
        self.frames = [*self.frames, *range(start, start + self.newest)]

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

        q, k, v: of the newest frames, before rotary embedding. stock: cos and sin of their own tables, [c n, P].
        """
        tokens = q.shape[1] // self.newest
        frame = stock[0][:tokens], stock[1][:tokens]
        start, end = len(self.frames) * tokens, (len(self.frames) + self.newest) * tokens
        if layer not in self.layers:
            shape = (k.shape[0], self.capacity * tokens, *k.shape[2:])
            self.layers[layer] = LayerCache(k.new_empty(shape), k.new_empty(shape), v.new_empty(shape))
        cache, view = self.layers[layer], self._views[int(self._table[layer, step])]
        if view.tables is None:
            view.tables = self.rotary.frame_tables_at(frame, view.positions - view.time_offset, view.scale)
            if view.time_offset:
                view.query_tables = self.rotary.frame_tables_at(frame, view.positions[-self.newest :], view.scale)
        cos, sin = view.tables
        if cache.view is not view and start:
            cache.rotated_keys[:, :start] = self.rotary.rotate(cache.keys[:, :start], (cos[:start], sin[:start]))
        cache.view = view
        newest_tables = (cos[start:end], sin[start:end])
        cache.rotated_keys[:, start:end], cache.values[:, start:end] = self.rotary.rotate(k, newest_tables), v
        if self.writing:
            cache.keys[:, start:end] = k
        elif observer is not None:
            all_keys, all_values = (torch.cat([past[:, :start], x], dim=1) for past, x in ((cache.keys, k), (cache.values, v)))
            shape = (self.newest, len(self.frames) + self.newest)
            rotate = lambda x, times: self.rotary.rotate(x, self.rotary.frame_tables_at(frame, times, None))  # noqa: E731
            observer(AttentionInputs(layer, shape, q, all_keys, all_values, rotate, attend))
        q = self.rotary.rotate(q, view.query_tables or newest_tables)
        if view.logit_scale != 1:
            q = q * view.logit_scale
        keys, values = (frames_of(x, view.ranges, tokens) for x in (cache.rotated_keys, cache.values))
        if view.logits is None and view.positive is None:
            return attend(q, keys, values)
        outputs = []
        for index, row in enumerate(q.split(tokens, dim=1)):
            logits = None if view.logits is None else view.logits[:, index]
            signs = None if view.positive is None else SignFactors(view.positive[index : index + 1])
            outputs.append(attend_scaled(attend, logits, row, keys, values, None, signs, view.centred))
        return torch.cat(outputs, dim=1)
