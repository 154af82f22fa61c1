"""The kinds of step that a run by a plan has: steps in which the same layers do the same.

Legend: L layers, S steps, T latent frames. A kind is a distinct column of the plan's table [L, S], with the same techniques editing
the latent. Where frames are made in chunks, the kinds are the first chunk, the last one and the clean passes, and a chunk between
counts as parts of the two, by its arithmetic; where they wait in a queue, a round of the full queue. The first clip of a queue is
made a window at a time, of which a round has several: its steps count as such parts of a round.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from longgen import cost
from longgen.plan import Plan
from longgen.preset import name_of
from longgen.program import Program

FIRST, LAST, CLEAN, ROUND = "first chunk", "last chunk", "clean pass", "round"


@dataclass(frozen=True, eq=False)
class Kind:
    """name: what such a step does. count: how many a run has. plan: the run's, its steps all of this kind. steps: which were."""

    name: str
    count: float
    plan: Plan
    steps: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """One of its steps, amidst the schedule, where the scheduler keeps what it keeps of the steps before."""
        return self.steps[len(self.steps) // 2]


def kinds(plan: Plan) -> list[Kind]:
    """The kinds of `plan` in the order in which they come; two that would share a name are numbered."""
    if plan.chunk_lat is not None:
        each = cost.chunk_flops(plan)
        share = (each - each[0]) / (each[-1] - each[0]) if each[-1] > each[0] else np.arange(plan.rounds) > 0
        chunks = (FIRST, plan.rounds - share.sum()), (LAST, share.sum()), (CLEAN, plan.rounds - 1)
        return [Kind(name, float(count), plan) for name, count in chunks if count]
    if plan.sampling is not None and plan.sampling.frame_levels and plan.call_geometry.frames_lat < plan.frames_lat:
        windows = (plan.calls - 1) * plan.steps / (plan.rounds - plan.steps)
        return [Kind(ROUND, plan.calls * plan.steps / windows, plan)]
    edits = [tuple(name_of(one) for one, acts in plan.refinements if step in acts) for step in range(plan.steps)]
    groups: dict[tuple[bytes, tuple[str, ...]], list[int]] = {}
    for step in range(plan.steps):
        groups.setdefault((plan.table[:, step].tobytes(), edits[step]), []).append(step)
    named = [(" + ".join((_name(plan, steps[0]), *edits[steps[0]])), tuple(steps)) for steps in groups.values()]
    taken, seen = Counter(name for name, _ in named), Counter[str]()
    found = []
    for name, steps in named:
        seen[name] += 1
        alike = replace(plan, table=np.repeat(plan.table[:, steps[:1]], plan.steps, axis=1))
        found.append(Kind(f"{name}-{seen[name]}" if taken[name] > 1 else name, len(steps), alike, steps))
    return found


def _name(plan: Plan, step: int) -> str:
    """`fused` where a fusion runs, else the branch's name; of the backbone's own attention in all layers `direct`, or `clips`."""
    programs: list[Program] = [one for one in (plan.programs[index] for index in plan.table[:, step]) if one is not None]
    if any(program.fusion is not None for program in programs):
        return "fused"
    names = dict.fromkeys(name for program in programs for name in program.branches)
    return "/".join(names) or ("direct" if plan.calls == 1 else "clips")
