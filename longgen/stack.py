"""From a stack of techniques to the program of every layer and step: which branches run there, each with its frame plan.

The techniques of a stack apply in the order of `longgen.technique`. Layers and steps with equal tables share one `Program`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry
from longgen.program import Program
from longgen.technique import FrameTechnique, FrequencyTechnique, Fusion, HeadTechnique, NoiseTechnique, Technique


@dataclass(frozen=True)
class PlacedTechnique:
    """A technique of the stack with the layers and steps in which it acts."""

    name: str
    technique: Technique
    layers: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def makes_noise(self) -> bool:
        """Whether it makes the initial noise, beside what its slot says."""
        return isinstance(self.technique, NoiseTechnique) and self.technique.noise


def programs_of(
    stack: tuple[PlacedTechnique, ...], geometry: Geometry, stock: FramePlan, layers: int, steps: int
) -> tuple[tuple[Program | None, ...], np.ndarray, list[str]]:
    """The distinct programs, the table [L, S] of their indices, and the names of techniques without effect.

    stock: the backbone's own attention, which the techniques change; index 0, None, stands for it. Raises UsageError for a stack
    that leaves a frame without keys.
    """
    programs: list[Program | None] = [None]
    index_of: dict[tuple[object, ...], int] = {}
    table = np.zeros((layers, steps), dtype=np.int64)
    by_case: dict[tuple[object, ...], Program] = {}
    effective: set[str] = set()
    alike: dict[tuple[int, ...], list[int]] = {}  # layers by the techniques that act in them
    for layer in range(layers):
        alike.setdefault(tuple(i for i, placed in enumerate(stack) if layer in placed.layers), []).append(layer)
    for (in_layer, members), step in itertools.product(alike.items(), range(steps)):
        active = tuple(i for i in in_layer if step in stack[i].steps)
        if not active:
            continue
        techniques = [stack[i].technique for i in active]
        split = any(isinstance(technique, Fusion) and step >= technique.split_step(steps) for technique in techniques)
        at_step = [technique.at_step(step, geometry) if isinstance(technique, FrameTechnique) else technique
                   for technique in techniques]  # fmt: skip
        of_step = tuple(new for new, technique in zip(at_step, techniques, strict=True) if new is not technique)
        case = active, split, of_step
        if case not in by_case:
            placed = [replace(stack[i], technique=technique) for i, technique in zip(active, at_step, strict=True)]
            by_case[case] = _branches(placed, geometry, stock, step, steps, effective)
        program = by_case[case]
        if len(program.branches) == 1 and next(iter(program.branches.values())).is_stock:
            continue
        key = (tuple((name, plan.key) for name, plan in program.branches.items()), program.fusion, program.heads)
        if key not in index_of:
            index_of[key] = len(programs)
            programs.append(program)
        table[members, step] = index_of[key]
    return tuple(programs), table, [placed.name for placed in stack if placed.name not in effective]


def _branches(
    active: list[PlacedTechnique], geometry: Geometry, stock: FramePlan, step: int, steps: int, effective: set[str]
) -> Program:
    """The program of one layer and step; adds to `effective` the names of techniques that changed a table."""
    branches, fusion, heads = {"main": stock}, None, None
    for placed in active:
        technique, before = placed.technique, {plan.key for plan in branches.values()}
        if isinstance(technique, HeadTechnique) and stock.shape[1] - stock.shape[0] >= technique.measured_lat:
            heads, branches = technique, technique.branches(branches["main"], geometry)
        elif isinstance(technique, FrameTechnique | FrequencyTechnique):
            try:
                branches = {name: technique.apply(plan, geometry) for name, plan in branches.items()}
            except ValueError as error:  # of tables that cannot be, as a technique from outside may make them
                raise UsageError(f"{placed.name} makes a frame plan that cannot be: {error}",
                                 expected="tables [Q, T] of finite numbers",
                                 hint="correct the technique, or remove it") from error  # fmt: skip
        elif isinstance(technique, Fusion):
            fusion, branches = technique.settled(geometry), technique.branches(branches["main"], geometry, step, steps)
        if {plan.key for plan in branches.values()} != before:
            effective.add(placed.name)
    for plan in branches.values():
        check_visibility(" and ".join(placed.name for placed in active), plan)
    if len(branches) > 1 and len({plan.key for plan in branches.values()}) == 1:
        branches = {"main": next(iter(branches.values()))}  # equal branches fuse to themselves
    return Program(branches, fusion, heads) if len(branches) > 1 else Program(branches)


def check_visibility(names: str, plan: FramePlan) -> None:
    """Raises UsageError where a query frame sees no key frame, or a chunk of a rollout not all of itself."""
    for pass_ in plan.passes:
        blind = np.flatnonzero((pass_.weight > 0) & ~pass_.visible.any(axis=1))
        if len(blind):
            raise UsageError(f"{names} leave frame {blind[0]} with no frame to attend to",
                             expected="a stack in which every frame attends to at least one",
                             hint="remove a technique, or widen a window")  # fmt: skip
        queries, keys = plan.shape
        if queries < keys and not pass_.visible[:, -queries:].all():
            raise UsageError(f"{names} hide part of a chunk of {queries} latent frames from itself",
                             expected=f"a window of at least {queries}", hint=f"--set window.frames={queries} or more")  # fmt: skip
