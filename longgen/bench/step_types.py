"""Groups the steps of a run into types that cost the same, so that measuring one step of each is enough.

Legend: L layers, S steps, T latent frames. A step type is a distinct column of the plan's table [L, S], with the same techniques
editing the latent. Columns in which the same techniques act and as many pairs are computed are one: a technique has but moved on.
In a rollout the types are the first chunk, the last one and the clean passes, and a chunk in between counts as fractions of the
two, by its FLOPs; in a FIFO queue, a round of the full queue. The first clip of a queue is sampled one window at a time, of which
a round has several: its steps count as such fractions of a round.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from longgen import cost
from longgen.catalog import name_of
from longgen.plan import Plan
from longgen.program import Program

FIRST, LAST, CLEAN, ROUND = "first chunk", "last chunk", "clean pass", "round"


@dataclass(frozen=True, eq=False)
class StepType:
    """name: what such a step does. count: steps of it in a run. plan: the run's, with all steps of this type. steps: indices."""

    name: str
    count: float
    plan: Plan
    steps: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """One of its steps in the middle of the schedule, where a multistep scheduler has its full history."""
        return self.steps[len(self.steps) // 2]


def step_types(plan: Plan) -> list[StepType]:
    """The step types of `plan` in order of appearance; equal names are numbered."""
    if plan.chunk_lat is not None:
        flops = cost.chunk_flops(plan)
        share = (flops - flops[0]) / (flops[-1] - flops[0]) if flops[-1] > flops[0] else np.arange(plan.rounds) > 0
        chunks = (FIRST, plan.rounds - share.sum()), (LAST, share.sum()), (CLEAN, plan.rounds - 1)
        return [StepType(name, float(count), plan) for name, count in chunks if count]
    if plan.sampling is not None and plan.sampling.frame_levels and plan.call_geometry.frames_lat < plan.frames_lat:
        windows = (plan.calls - 1) * plan.steps / (plan.rounds - plan.steps)
        return [StepType(ROUND, plan.calls * plan.steps / windows, plan)]
    edits = [tuple(name_of(technique) for technique, active in plan.refinements if step in active) for step in range(plan.steps)]
    groups: dict[tuple[object, ...], list[int]] = {}
    costs = [None if program is None else (*program.branches, round(program.density, 6)) for program in plan.programs]
    for step in range(plan.steps):
        active = tuple(placed.name for placed in plan.techniques if step in placed.steps)
        groups.setdefault((active, *(costs[index] for index in plan.table[:, step]), edits[step]), []).append(step)
    named = [(" + ".join((_name(plan, steps[0]), *edits[steps[0]])), tuple(steps)) for steps in groups.values()]
    total, seen = Counter(name for name, _ in named), Counter[str]()
    types = []
    for name, steps in named:
        seen[name] += 1
        uniform = replace(plan, table=np.repeat(plan.table[:, steps[:1]], plan.steps, axis=1))
        count = len(steps) * (len(plan.clips) or 1)  # a step of a chain is of one clip
        types.append(StepType(f"{name}-{seen[name]}" if total[name] > 1 else name, count, uniform, steps))
    return types


def _name(plan: Plan, step: int) -> str:
    """`fused` if a fusion runs, else the names of branches; for stock attention in all layers `direct`, or `clips`."""
    column = (plan.programs[index] for index in plan.table[:, step])
    programs: list[Program] = [program for program in column if program is not None]
    if any(program.fusion is not None for program in programs):
        return "fused"
    names = dict.fromkeys(name for program in programs for name in program.branches)
    return "/".join(names) or ("direct" if plan.calls == 1 else "clips")
