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

from longgen.attention.glimpse import Glimpse
from longgen.backbones import Backbone
from longgen.context.window import Window
from longgen.frameplan import Clip, FramePlan, neutral
from longgen.plan import Plan, Program
from longgen.probe import scores

Change = Callable[[FramePlan, Clip], FramePlan]


def shifted(frames_lat: int) -> Change:
    """Every key frame is `frames_lat` latent frames later than it is."""
    return lambda plan, clip: plan.each(lambda one: replace(one, rel=one.rel - frames_lat))


def windowed(plan: FramePlan, clip: Clip) -> FramePlan:
    """Every frame sees its native neighbourhood, as the technique `window` has it."""
    return Window(frames=clip.native_lat).reshape(plan, clip)


@dataclass(frozen=True, eq=False)
class Changed(Plan):
    """A plan in which `layer` alone does what `change` makes of its attention, in every step."""

    layer: int = 0
    change: Change = windowed

    def rolled(self, frames_lat: int, queries: int, held: Any = None) -> tuple[tuple[Program | None, ...], np.ndarray]:
        return self._with(*super().rolled(frames_lat, queries, held), replace(self.clip, frames_lat=frames_lat), queries)

    def _with(
        self, programs: tuple[Program | None, ...], table: np.ndarray, clip: Clip, queries: int
    ) -> tuple[tuple[Program | None, ...], np.ndarray]:
        table = table.copy()
        table[self.layer] = len(programs)
        return (*programs, Program({"main": self.change(neutral(clip.frames_lat, queries), clip)})), table


def changed(plan: Plan, layer: int, change: Change) -> Plan:
    """`plan`, which must leave attention as it is, with `layer` changed."""
    assert not plan.table.any()
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    one = Changed(**fields, layer=layer, change=change)
    if plan.chunk_lat is not None:
        return one  # its programs are made chunk by chunk
    programs, table = one._with(plan.programs, plan.table, plan.clip, plan.frames_lat)
    return replace(one, programs=programs, table=table)


def shown(plan: Plan, steps: tuple[int, ...]) -> Plan:
    """`plan`, which must leave attention as it is, with calls that can be watched in `steps`; its output is the same."""
    if plan.chunk_lat is not None:
        return plan  # all can
    table = plan.table.copy()
    table[:, list(steps)] = 1
    return replace(plan, programs=(None, Program({"main": neutral(plan.frames_lat)})), table=table)


class Watch:
    """Reads scores off the calls of every layer in `steps`.

    shifts: latent frames, for the logit change. windows: multiples of T0, for the effective rank; with any, entropies are read too.
    """

    def __init__(self, backbone: Backbone, plan: Plan, steps: tuple[int, ...], shifts: tuple[int, ...], windows: tuple[int, ...]):
        self.plan, self.steps, self.shifts, self.windows, self.clock = plan, steps, shifts, windows, backbone.clock
        layers = plan.spec.layers
        modules = [layer for transformer in backbone.transformers for layer in backbone.layers(transformer)]
        self.index = {id(module): number % layers for number, module in enumerate(modules)} | {i: i for i in range(layers)}
        self.sums: dict[tuple[int, int, str], np.ndarray] = defaultdict(lambda: np.zeros(2))  # by layer, step and score
        self.grams: dict[tuple[int, int, int], Tensor] = {}  # of a rollout's chunks together, by layer, step and window
        self.ranks: dict[tuple[int, int], list[float]] = defaultdict(list)  # by layer and window

    def __call__(self, seen: Glimpse) -> None:
        step, layer = self.clock.index, self.index[seen.layer]
        if step not in self.steps:
            return
        for shift in self.shifts:
            self.sums[layer, step, f"shift {shift}"] += scores.logit_change(seen, shift)
        if self.windows:
            self.sums[layer, step, "window"] += scores.entropy_change(seen, self._visible(seen, 1))
        for window in self.windows:
            grams = scores.output_gram(seen, self._visible(seen, window))
            if self.plan.chunk_lat is None:
                self.ranks[layer, window] += scores.effective_rank(grams).tolist()
            else:
                before = self.grams.get((layer, step, window))
                self.grams[layer, step, window] = grams if before is None else before + grams

    def _visible(self, seen: Glimpse, window: int) -> np.ndarray:
        """[Q, K]: what query frames see of a window of `window` T0."""
        queries, keys = seen.shape
        clip = replace(self.plan.clip, frames_lat=keys)
        return Window(frames=window * clip.native_lat).reshape(neutral(keys, queries), clip).passes[0].visible

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
                self.ranks[layer, size] += scores.effective_rank(grams).tolist()
        return [float(np.mean(self.ranks[layer, window])) for layer in range(self.plan.spec.layers)]


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Within the context, `watch` sees every call."""
    watch.clock.observer = watch
    try:
        yield
    finally:
        watch.clock.observer = None
