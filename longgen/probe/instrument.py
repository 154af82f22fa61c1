"""Plans for probing: a model that is watched, and a model with one layer changed.

Legend: L layers, S steps, T latent frames, T0 of them in training.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from longgen.attention.observer import AttentionInputs
from longgen.context.window import Window
from longgen.frameplan import FramePlan, Geometry, full_attention
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.probe import attention_stats
from longgen.program import Program

Change = Callable[[FramePlan, Geometry], FramePlan]


def shifted(frames_lat: int) -> Change:
    """Every key frame is `frames_lat` latent frames later than it is."""
    return lambda plan, geometry: plan.each(lambda one: replace(one, rel=one.rel - frames_lat))


def windowed(plan: FramePlan, geometry: Geometry) -> FramePlan:
    """Every frame sees its native neighbourhood, as the technique `window` has it."""
    return Window(frames=geometry.native_lat).apply(plan, geometry)


@dataclass(frozen=True, eq=False)
class Changed(Plan):
    """A plan in which `layer` alone does what `change` makes of its attention, in every step."""

    layer: int = 0
    change: Change = windowed

    def programs_for_chunk(self, frames_lat: int, queries: int, held: Any = None) -> tuple[tuple[Program | None, ...], np.ndarray]:
        return self._with(
            *super().programs_for_chunk(frames_lat, queries, held), replace(self.geometry, frames_lat=frames_lat), queries
        )

    def _with(
        self, programs: tuple[Program | None, ...], table: np.ndarray, geometry: Geometry, queries: int
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        table = table.copy()
        table[self.layer] = len(programs)
        return (*programs, Program({"main": self.change(full_attention(geometry.frames_lat, queries), geometry)})), table


def changed(plan: Plan, layer: int, change: Change) -> Plan:
    """`plan`, which must leave attention as it is, with `layer` changed."""
    assert not plan.table.any()
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    one = Changed(**fields, layer=layer, change=change)
    if plan.chunk_lat is not None:
        return one  # its programs are made chunk by chunk
    programs, table = one._with(plan.programs, plan.table, plan.geometry, plan.frames_lat)
    return replace(one, programs=programs, table=table)


def shown(plan: Plan, steps: tuple[int, ...]) -> Plan:
    """`plan`, which must leave attention as it is, with calls that can be watched in `steps`; its output is the same."""
    if plan.chunk_lat is not None:
        return plan  # all can
    table = plan.table.copy()
    table[:, list(steps)] = 1
    return replace(plan, programs=(None, Program({"main": full_attention(plan.frames_lat)})), table=table)


class Watch:
    """Reads scores off the calls of every layer in `steps`.

    shifts: latent frames, for the logit change. windows: multiples of T0, for the effective rank; with any, entropies are read too.
    """

    def __init__(
        self, backbone: PipelineBackbone, plan: Plan, steps: tuple[int, ...], shifts: tuple[int, ...], windows: tuple[int, ...]
    ):
        self.plan, self.steps, self.shifts, self.windows, self.step_state = plan, steps, shifts, windows, backbone.step_state
        layers = plan.spec.layers
        modules = [layer for transformer in backbone.transformers for layer in backbone.layers(transformer)]
        self.index = {id(module): number % layers for number, module in enumerate(modules)} | {i: i for i in range(layers)}
        self.sums: dict[tuple[int, int, str], np.ndarray] = defaultdict(lambda: np.zeros(2))  # by layer, step and score
        self.grams: dict[tuple[int, int, int], Tensor] = {}  # of a rollout's chunks together, by layer, step and window
        self.ranks: dict[tuple[int, int], list[float]] = defaultdict(list)  # by layer and window

    def __call__(self, seen: AttentionInputs) -> None:
        step, layer = self.step_state.index, self.index[seen.layer]
        if step not in self.steps:
            return
        for shift in self.shifts:
            self.sums[layer, step, f"shift {shift}"] += attention_stats.logit_change(seen, shift)
        if self.windows:
            self.sums[layer, step, "window"] += attention_stats.entropy_change(seen, self._visible(seen, 1))
        for window in self.windows:
            grams = attention_stats.output_gram(seen, self._visible(seen, window))
            if self.plan.chunk_lat is None:
                self.ranks[layer, window] += attention_stats.effective_rank(grams).tolist()
            else:
                before = self.grams.get((layer, step, window))
                self.grams[layer, step, window] = grams if before is None else before + grams

    def _visible(self, seen: AttentionInputs, window: int) -> np.ndarray:
        """[Q, K]: what query frames see of a window of `window` T0."""
        queries, keys = seen.shape
        geometry = replace(self.plan.geometry, frames_lat=keys)
        return Window(frames=window * geometry.native_lat).apply(full_attention(keys, queries), geometry).passes[0].visible

    def change(self, *names: str) -> list[float]:
        """By layer, sqrt(sum of squared changes / sum of squares), the mean over steps and over the scores `names`."""

        def share(layer: int, step: int, name: str) -> float:
            part, total = self.sums[layer, step, name]
            return float(np.sqrt(part / total)) if total else 0.0

        places = list(itertools.product(self.steps, names))
        return [float(np.mean([share(layer, step, name) for step, name in places])) for layer in range(self.plan.spec.layers)]

    def effective_rank(self, window: int) -> list[float]:
        """By layer, of the output within `window` T0, the mean over steps and samples."""
        for (layer, _, size), grams in self.grams.items():
            if size == window:
                self.ranks[layer, size] += attention_stats.effective_rank(grams).tolist()
        return [float(np.mean(self.ranks[layer, window])) for layer in range(self.plan.spec.layers)]


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Within the context, `watch` sees every call."""
    watch.step_state.observer = watch
    try:
        yield
    finally:
        watch.step_state.observer = None
