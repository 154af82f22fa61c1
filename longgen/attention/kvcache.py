"""KV cache of an autoregressive rollout: keys and values of past frames, and attention of the newest frames over them.

Legend: B batch, F slots (cached frames, then the newest c), n tokens per latent frame, H heads, D head dim, P channel pairs of a
rotary table.

Keys are cached before rotary embedding, so that a frame plan may place them at other times in every chunk: re-based, slowed down,
or unchanged. A second buffer holds them rotated as the current chunk sees them, so that they are rotated once a chunk and not once
a denoising pass. The newest frames' keys and values are written behind the cached ones, so that attention reads views. A denoising
pass writes only to the slots of its own frames, and the clean pass after it stores their keys for good.

Between chunks, frames that no layer will see again are evicted, before attention: memory is that of what the plan shows.

Where a plan has `sources`, its key columns are not the slots in order: a frame stands elsewhere, or twice, or a column holds a slot
of a memory. Then a third buffer holds the values as the columns have them, and what is gathered and rotated is so once a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from longgen.attention.head_groups import HeadGroups, frame_shares
from longgen.attention.lowering import SAME, Range, ranges_of
from longgen.attention.observer import AttentionInputs, Observer
from longgen.attention.rotary import Rotary, Tables
from longgen.attention.score_blocks import SignFactors
from longgen.attention.sequential import attend_scaled, frames_of
from longgen.device_tables import on_device
from longgen.frameplan import FramePlan, full_attention
from longgen.memory import Held, Memory, MemorySlot
from longgen.program import Program

Attend = Callable[..., Tensor]  # q [B, c n, H, D], k and v [B, *, H, D], and a mask for plans with logit columns -> [B, c n, H, D]


@dataclass(eq=False)
class ChunkView:
    """What the newest frames see: key columns, which are the slots in order unless the plan has sources.

    ranges: of columns. positions [F]: the columns' times as queries; as keys they are `time_offset` earlier. logits: [2, c, visible
    columns], factors and addends of the pass's columns, or None. positive [c, visible columns]: factors on positive logits, or
    None; centred: as in the plan. held: what the columns before the newest frames hold, a slot's frame or a memory's slot. tables,
    query_tables: [F n, P] of the keys and [c n, P] of the queries, computed on first use.
    """

    ranges: tuple[Range, ...]
    positions: np.ndarray
    scale: np.ndarray | None
    logit_scale: float
    time_offset: float = 0.0
    logits: np.ndarray | None = None
    positive: np.ndarray | None = None
    centred: bool = False
    held: tuple[int | MemorySlot, ...] = ()
    tables: Tables | None = None
    query_tables: Tables | None = None


def chunk_view(plan: FramePlan, slots: list[int]) -> ChunkView:
    """`plan` over the frames in `slots`, the last Q of which are its query frames.

    All rows must see the same whole frames, at times p[i] - p[j] + time_offset; raises ValueError otherwise, and where a frame that
    a column holds is in no slot. The techniques that causal backbones accept only make plans of this form.
    """
    (pass_,), queries = plan.passes, plan.shape[0]
    columns = slots if plan.sources is None else list(range(len(plan.sources)))
    visible, rel = pass_.visible[:, columns], pass_.rel[:, columns]
    seen = np.flatnonzero(visible[0])
    positions = rel[0, seen[0]] - rel[0]
    differences = positions[-queries:, None] - positions
    offset = float((rel - differences)[0, seen[0]])
    offset = offset if abs(offset) > SAME else 0.0
    same_rows = (visible == visible[0]).all() and (np.abs(differences + offset - rel)[:, seen] <= SAME).all()
    if not same_rows or pass_.band is not None or plan.key_frames:
        raise ValueError("the frames of a chunk see different frames, or at times that are no differences of positions")
    logits = None if pass_.logits is None else pass_.logits[:, :, columns][:, :, seen]
    positive = None if pass_.positive is None else pass_.positive[:, columns][:, seen]
    past = slots[:-queries] if plan.sources is None else plan.sources[:-queries]
    held = tuple(slots.index(source) if isinstance(source, int) else source for source in past)
    return ChunkView(
        ranges_of(visible[0]), positions, plan.frequency_scale, plan.logit_scale, offset, logits, positive, plan.centred, held
    )


@dataclass
class LayerCache:
    """The slots of one layer's heads, or of a group of them, [B, F n, H, D] each: keys before rotary embedding, and values. By key
    column, for `view`: keys rotated, and values, which are those of the slots unless columns are gathered.

    queries: of the slots, before rotary embedding, where a memory reads them. memory: what it holds of its slots. updated:
    whether it has taken in what leaves with this chunk.
    """

    keys: Tensor
    rotated_keys: Tensor
    values: Tensor
    column_values: Tensor
    queries: Tensor | None = None
    memory: Held | None = None
    updated: bool = False
    view: ChunkView | None = None

    @property
    def stored(self) -> Iterator[Tensor]:
        """All that is kept of the frames in the slots."""
        return (x for x in (self.keys, self.values, self.queries) if x is not None)


@dataclass
class KVCache:
    """rotary: the model's. capacity: slots. frames: those cached, in order; after them come the newest, `newest` of them.

    columns: how many key columns there are at most, where the rollout's plans have sources; None: they are the slots.
    keeps_queries: for a memory. visible_to_all_layers: the cached and newest frames that every program shows. texts: the prompt's
    keys and values for cross-attention, by layer, until it changes. writing: whether the pass is the clean one, which stores keys.
    heads: their groups, where these see different frames. by_group: by layer and group, in the place of the layer's own.
    """

    rotary: Rotary
    capacity: int
    columns: int | None = None
    keeps_queries: bool = False
    heads: HeadGroups | None = None
    frames: list[int] = field(default_factory=list)
    newest: int = 0
    visible_to_all_layers: list[int] = field(default_factory=list)
    writing: bool = False
    layers: dict[int, LayerCache] = field(default_factory=dict)
    by_group: dict[tuple[int, str], LayerCache] = field(default_factory=dict)
    texts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _memory: Memory | None = None
    _measuring: bool = False
    _views: dict[int, dict[str, ChunkView]] = field(default_factory=dict)
    _table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def open(self, start: int, newest: int, programs: tuple[Program | None, ...], table: np.ndarray) -> None:
        """Begins the frames [start, start + newest) by the programs of `Plan.programs_for_chunk`; evicts what they do not see.

        Cached frames from `start` on are forgotten.
        """
        self._table, self.newest = table, newest
        self._measuring = self.heads is not None and self.heads.measured_in(start, start + newest)
        chosen = {index: programs[index] for index in np.unique(table).tolist()}
        plans = {index: {"main": full_attention(start + newest, newest)} if program is None else program.branches
                 for index, program in chosen.items()}  # fmt: skip
        shown, needed = (
            np.stack([np.any([getattr(plan, which) for plan in by_name.values()], axis=0) for by_name in plans.values()])
            for which in ("frames_shown", "frames_cached")
        )
        self.keep([frame for frame in self.frames if frame < start and needed[:, frame].any()])
        slots = [*self.frames, *range(start, start + newest)]
        if len(slots) > self.capacity:
            raise ValueError(f"{len(slots)} frames for {self.capacity} slots")
        self.visible_to_all_layers = [frame for frame in slots if shown[:, frame].all()]
        self._views = {index: {name: chunk_view(plan, slots) for name, plan in by_name.items()} for index, by_name in plans.items()}
        columns = newest + max(len(view.held) for by_name in self._views.values() for view in by_name.values())
        if columns > (self.columns or self.capacity):
            raise ValueError(f"{columns} key columns for {self.columns or self.capacity}")
        self._memory = next((plan.memory for by_name in plans.values() for plan in by_name.values() if plan.memory), None)
        for layer in self.layers.values():
            layer.updated = False

    def keep(self, frames: list[int]) -> None:
        """Evicts all cached frames but these."""
        slots = [self.frames.index(frame) for frame in frames]
        if slots != list(range(len(slots))):
            chosen = np.array(slots)
            for layer in (*self.layers.values(), *self.by_group.values()):
                for x in layer.stored:
                    by_frame = x.unflatten(1, (self.capacity, -1))
                    by_frame[:, : len(slots)] = by_frame[:, on_device(chosen, x.device)]
        self.frames = frames

    def close(self, start: int) -> None:
        """The newest frames, from `start` on, which were written, are cached from now on; those that the memory took in are not."""
        if self.heads is not None and self._measuring:
            self.heads.assign()
            for layer, groups in self.heads.by_layer.items():
                whole = self.layers.pop(layer)
                for name, heads in groups.items():
                    keys, rotated, values = (x[:, :, heads] for x in (whole.keys, whole.rotated_keys, whole.values))
                    self.by_group[layer, name] = LayerCache(keys, rotated, values, values)
            self._measuring = False
        self.frames = [*self.frames, *range(start, start + self.newest)]
        if self._memory is not None and self._memory.frames:
            self.keep([frame for frame in self.frames if frame not in self._memory.frames])

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
        views = self._views[int(self._table[layer, step])]
        groups = None if self.heads is None else self.heads.by_layer.get(layer)
        if groups is None:
            cache = self.layers.get(layer) or self._allocate(layer, k, v, k.shape[1] // self.newest)
            return self._attend(layer, cache, views["main"], attend, stock, q, k, v, observer)
        output = torch.empty_like(q)
        for name, heads in groups.items():
            view = views["main"] if len(views) == 1 else views[name]
            of_heads = q[:, :, heads], k[:, :, heads], v[:, :, heads]
            output[:, :, heads] = self._attend(layer, self.by_group[layer, name], view, attend, stock, *of_heads, observer)
        return output

    def _attend(
        self, layer: int, cache: LayerCache, view: ChunkView, attend: Attend, stock: Tables, q: Tensor, k: Tensor, v: Tensor,
        observer: Observer | None,
    ) -> Tensor:  # fmt: skip
        """`attend` of the heads in `cache`, all of the layer's or one group's."""
        tokens = q.shape[1] // self.newest
        frame = stock[0][:tokens], stock[1][:tokens]
        if view.tables is None:
            view.tables = self._key_tables(frame, view)
            if view.time_offset:
                view.query_tables = self.rotary.frame_tables_at(frame, view.positions[-self.newest :], view.scale)
        cos, sin = view.tables
        own, start = slice(len(self.frames) * tokens, (len(self.frames) + self.newest) * tokens), len(view.held) * tokens
        newest = slice(start, start + self.newest * tokens)
        if self._memory is not None and not cache.updated:
            self._update(cache, self._memory, q, frame, view.scale)
        if cache.view is not view and start:
            past = self._gather(cache, view, tokens) if self.columns else cache.keys[:, :start]
            cache.rotated_keys[:, :start] = self.rotary.rotate(past, (cos[:start], sin[:start]))
        cache.view = view
        newest_tables = (cos[newest], sin[newest])
        cache.rotated_keys[:, newest], cache.column_values[:, newest] = self.rotary.rotate(k, newest_tables), v
        if self.writing:
            cache.keys[:, own] = k
            if self.columns:
                cache.values[:, own] = v
            if cache.queries is not None:
                cache.queries[:, own] = q
        if observer is not None:
            held = own.start
            all_keys, all_values = (torch.cat([past[:, :held], x], dim=1) for past, x in ((cache.keys, k), (cache.values, v)))
            shape = (self.newest, len(self.frames) + self.newest)
            rotate = lambda x, times: self.rotary.rotate(x, self.rotary.frame_tables_at(frame, times, None))  # noqa: E731
            observer(AttentionInputs(layer, shape, q, all_keys, all_values, rotate, attend, clean=self.writing))
        q = self.rotary.rotate(q, view.query_tables or newest_tables)
        if view.logit_scale != 1:
            q = q * view.logit_scale
        keys, values = (frames_of(x, view.ranges, tokens) for x in (cache.rotated_keys, cache.column_values))
        if self.heads is not None and self._measuring and self.writing:
            past = [frame for first, last in view.ranges for frame in self.frames[first:last]]
            self.heads.measure(layer, frame_shares(q, keys, tokens, view.logits), past)
        if view.logits is None and view.positive is None:
            return attend(q, keys, values)
        outputs = []
        for index, row in enumerate(q.split(tokens, dim=1)):
            logits = None if view.logits is None else view.logits[:, index]
            signs = None if view.positive is None else SignFactors(view.positive[index : index + 1])
            outputs.append(attend_scaled(attend, logits, row, keys, values, None, signs, view.centred))
        return torch.cat(outputs, dim=1)

    def _allocate(self, layer: int, k: Tensor, v: Tensor, tokens: int) -> LayerCache:
        """Empty slots of `layer`, for keys and values like `k` and `v`."""
        slots, columns = (k.shape[0], self.capacity * tokens, *k.shape[2:]), self.columns or self.capacity
        keys, rotated, values = k.new_empty(slots), k.new_empty((slots[0], columns * tokens, *slots[2:])), v.new_empty(slots)
        column_values = torch.empty_like(rotated) if self.columns else values
        queries = k.new_empty(slots) if self.keeps_queries else None
        self.layers[layer] = LayerCache(keys, rotated, values, column_values, queries)
        return self.layers[layer]

    def _key_tables(self, frame: Tables, view: ChunkView) -> Tables:
        """Rotary tables of the key columns, from the stock tables of one frame; those of a memory may be of time alone."""
        times = view.positions - view.time_offset
        cos, sin = self.rotary.frame_tables_at(frame, times, view.scale)
        if self._memory is not None and self._memory.rotated_in_space:
            still = torch.ones_like(frame[0]), torch.zeros_like(frame[1])
            for column in [column for column, source in enumerate(view.held) if isinstance(source, MemorySlot)]:
                of_column = slice(column * len(still[0]), (column + 1) * len(still[0]))
                cos[of_column], sin[of_column] = self.rotary.frame_tables_at(still, times[column : column + 1], view.scale)
        return cos, sin

    def _update(self, cache: LayerCache, memory: Memory, q: Tensor, frame: Tables, scale: np.ndarray | None) -> None:
        """Has the memory of a layer take in the frames that leave. q: of the newest frames. frame: stock tables of one. scale: on
        temporal frequencies."""
        cache.updated = True
        if not memory.frames:
            return
        queries, tokens = None, len(frame[0])
        keys, values = (self._of_frames(x, memory.frames, tokens) for x in (cache.keys, cache.values))
        if memory.queries_of is not None:
            assert cache.queries is not None
            queries = torch.cat([self._of_frames(cache.queries, memory.queries_of, tokens), q], dim=1)
        if memory.rotated_in_space:
            keys = self._in_space(keys, frame)
            queries = None if queries is None else self._in_space(queries, frame)
        still = torch.ones_like(frame[0]), torch.zeros_like(frame[1])
        in_time = lambda x, times: self.rotary.rotate(x, self.rotary.frame_tables_at(still, times, scale))  # noqa: E731
        cache.memory = memory.update(cache.memory, (keys, values), queries, in_time)

    def _in_space(self, x: Tensor, frame: Tables) -> Tensor:
        """Keys or queries of whole frames rotated by their tokens' places, as at time 0."""
        return self.rotary.rotate(x, self.rotary.frame_tables_at(frame, np.zeros(x.shape[1] // len(frame[0])), None))

    def _of_frames(self, x: Tensor, frames: tuple[int, ...], tokens: int) -> Tensor:
        """The part of `x` [B, F n, H, D], by slot, that is of `frames`, which are cached."""
        slots = on_device(np.array([self.frames.index(frame) for frame in frames], dtype=np.int64), x.device)
        return x.unflatten(1, (-1, tokens))[:, slots].flatten(1, 2)

    def _gather(self, cache: LayerCache, view: ChunkView, tokens: int) -> Tensor:
        """The keys of the columns before the newest frames; their values are written in place."""
        slots = np.array([source if isinstance(source, int) else 0 for source in view.held])
        keys, values = (x.unflatten(1, (-1, tokens))[:, on_device(slots, x.device)] for x in (cache.keys, cache.values))
        for column, source in enumerate(view.held):
            if isinstance(source, MemorySlot):
                assert cache.memory is not None
                of_slot = slice(source.index * tokens, (source.index + 1) * tokens)
                keys[:, column], values[:, column] = (x[:, of_slot] for x in cache.memory[:2])
        cache.column_values[:, : len(slots) * tokens] = values.flatten(1, 2)
        return keys.flatten(1, 2)
