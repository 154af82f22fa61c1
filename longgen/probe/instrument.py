"""Instrumented plans of a probe: one that lets attention be recorded, and one with a single layer modified.

Legend: L layers, S steps, T latent frames, T0 of them in training, Q query frames, K key frames.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longgen.attention.observer import AttentionInputs
from longgen.context.window import Window
from longgen.frameplan import FramePlan, Geometry, full_attention
from longgen.layers.probe_file import HeadSpan
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.probe import attention_stats
from longgen.probe.heads import TECHNIQUE
from longgen.program import Program

Modification = Callable[[FramePlan, Geometry], FramePlan]


def shift_keys(frames_lat: int) -> Modification:
    """Moves every key frame `frames_lat` latent frames later in time."""
    return lambda plan, geometry: plan.each(lambda pass_: replace(pass_, rel=pass_.rel - frames_lat))


def local_window(plan: FramePlan, geometry: Geometry) -> FramePlan:
    """Limits every frame to its native neighbourhood, as the technique `window` does."""
    return Window(frames=geometry.native_lat).apply(plan, geometry)


@dataclass(frozen=True, eq=False)
class SingleLayerPlan(Plan):
    """A plan of stock attention in which only `layer` has its frame plan modified, in every step."""

    layer: int = 0
    modification: Modification = local_window

    def programs_for_chunk(
        self,
        frames_lat: int,
        queries: int,
        held: Any = None,
        since_switch: int | None = None,
        cut: bool = False,
        steps: int | None = None,
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        programs, table = super().programs_for_chunk(frames_lat, queries, held, since_switch, cut, steps)
        return self._modify(programs, table, replace(self.geometry, frames_lat=frames_lat), queries)

    def _modify(
        self, programs: tuple[Program | None, ...], table: np.ndarray, geometry: Geometry, queries: int
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        table = table.copy()
        table[self.layer] = len(programs)
        return (*programs, Program({"main": self.modification(full_attention(geometry.frames_lat, queries), geometry)})), table


def modify_layer(plan: Plan, layer: int, modification: Modification) -> Plan:
    """`plan`, which must be of stock attention, with the frame plan of `layer` modified."""
    assert not plan.table.any()
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    modified = SingleLayerPlan(**fields, layer=layer, modification=modification)
    if plan.chunk_lat is not None:
        return modified  # its programs are built chunk by chunk
    programs, table = modified._modify(plan.programs, plan.table, plan.geometry, plan.frames_lat)
    return replace(modified, programs=programs, table=table)


def observable(plan: Plan, steps: tuple[int, ...]) -> Plan:
    """`plan`, which must be of stock attention, with calls that an observer sees in `steps`; its output is the same."""
    if plan.chunk_lat is not None:
        return plan  # an observer sees all of its calls
    table = plan.table.copy()
    table[:, list(steps)] = 1
    return replace(plan, programs=(None, Program({"main": full_attention(plan.frames_lat)})), table=table)


class AttentionRecorder:
    """Observer that accumulates attention statistics of every layer in `steps`.

    shifts: latent frames, for the logit change. windows: multiples of T0, for the effective rank; with any, entropies are read too.
    heads: whether to read what heads see, in the clean passes of a rollout's chunks that have a frame between them and the first.
    """

    def __init__(
        self,
        backbone: PipelineBackbone,
        plan: Plan,
        steps: tuple[int, ...],
        shifts: tuple[int, ...],
        windows: tuple[int, ...],
        heads: bool = False,
    ):
        self.plan, self.steps, self.shifts, self.windows, self.step_state = plan, steps, shifts, windows, backbone.step_state
        self.heads = heads
        layers = plan.spec.layers
        modules = [layer for transformer in backbone.transformers for layer in backbone.layers(transformer)]
        self.index = {id(module): number % layers for number, module in enumerate(modules)} | {i: i for i in range(layers)}
        self.sums: dict[tuple[int, int, str], np.ndarray] = defaultdict(lambda: np.zeros(2))  # by layer, step and score
        self.grams: dict[tuple[int, int, int], Tensor] = {}  # of a rollout's chunks together, by layer, step and window
        self.ranks: dict[tuple[int, int], list[float]] = defaultdict(list)  # by layer and window
        self.shares: dict[int, list[Tensor]] = defaultdict(list)  # [H, 3] of every chunk, by layer
        self.early: dict[int, Tensor] = {}  # of the chunk in which heads are grouped

    def __call__(self, inputs: AttentionInputs) -> None:
        step, layer = self.step_state.index, self.index[inputs.layer]
        if inputs.clean:
            if self.heads and inputs.shape[1] - inputs.shape[0] > 1:
                self._read_heads(layer, inputs)
            return
        if step not in self.steps:
            return
        for shift in self.shifts:
            self.sums[layer, step, f"shift {shift}"] += attention_stats.logit_change(inputs, shift)
        if self.windows:
            self.sums[layer, step, "window"] += attention_stats.entropy_change(inputs, self._visible(inputs, 1))
        for window in self.windows:
            grams = attention_stats.output_gram(inputs, self._visible(inputs, window))
            if self.plan.chunk_lat is None:
                self.ranks[layer, window] += attention_stats.effective_rank(grams).tolist()
            else:
                total = self.grams.get((layer, step, window))
                self.grams[layer, step, window] = grams if total is None else total + grams

    def _read_heads(self, layer: int, inputs: AttentionInputs) -> None:
        shares, (queries, keys) = attention_stats.head_shares(inputs), inputs.shape
        self.shares[layer].append(shares)
        if keys - queries < TECHNIQUE.measured_lat <= keys:
            self.early[layer] = shares

    def _visible(self, inputs: AttentionInputs, window: int) -> np.ndarray:
        """[Q, K]: which key frames the query frames see within a window of `window` T0."""
        queries, keys = inputs.shape
        geometry = replace(self.plan.geometry, frames_lat=keys)
        return Window(frames=window * geometry.native_lat).apply(full_attention(keys, queries), geometry).passes[0].visible

    def relative_change(self, *names: str) -> list[float]:
        """By layer, sqrt(sum of squared changes / sum of squares), averaged over steps and over the scores `names`."""

        def ratio(layer: int, step: int, name: str) -> float:
            change, total = self.sums[layer, step, name]
            return float(np.sqrt(change / total)) if total else 0.0

        pairs = list(itertools.product(self.steps, names))
        return [float(np.mean([ratio(layer, step, name) for step, name in pairs])) for layer in range(self.plan.spec.layers)]

    def effective_rank(self, window: int) -> list[float]:
        """By layer, of the output within `window` T0, averaged over steps and samples."""
        for (layer, _, size), grams in self.grams.items():
            if size == window:
                self.ranks[layer, size] += attention_stats.effective_rank(grams).tolist()
        return [float(np.mean(self.ranks[layer, window])) for layer in range(self.plan.spec.layers)]

    def head_shares(self) -> dict[HeadSpan, list[list[list[float]]]]:
        """[L, H, 3] each."""
        layers = range(self.plan.spec.layers)
        mean = [torch.stack(self.shares[layer]).mean(dim=0).tolist() for layer in layers]
        return {"mean": mean, "early": [self.early[layer].tolist() for layer in layers]}


@contextmanager
def recording(recorder: AttentionRecorder) -> Iterator[None]:
    """Within the context, `recorder` observes every attention call."""
    recorder.step_state.observer = recorder
    try:
        yield
    finally:
        recorder.step_state.observer = None
