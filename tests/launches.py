"""The launch budget: how many kernels a layer may launch, by preset, on every family at its published size.

    python -m tests.launches                         every preset on every family, as the table of longgen/docs/launches.md
    python -m tests.launches wan2.1-1.3b vrpr,tsa    some of them

freeloc@stripes is the paper's combination, stripes at VRPR's times, in all layers. Counted as `longgen bench --count` does, at
four times the native length: launches of a layer in one model call after the first, at most over the kinds of step and layer;
copies from the host, and waits other than eigenproblems', of which there must be none.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from longgen import frames, planner, preset
from longgen.backbones.registry import SPECS
from longgen.bench.count import LayerCount, StepCount, count_plan, total
from longgen.cards import EIGEN
from longgen.errors import LonggenError
from longgen.plan import Plan
from tests.stacks import STACKS

FAMILIES = ("wan2.1-1.3b", "ltx-2b", "cogvideox-2b", "cogvideox-5b", "hunyuanvideo", "self-forcing")
FUSIONS, MANY, MOST = 400, 600, 1500
BUDGETS = {  # of the presets that are not windows, frequencies or noise
    "freelong": FUSIONS, "freelongpp": FUSIONS, "freespec": FUSIONS, "sink-window": FUSIONS, "glc-diffusion": FUSIONS,
    "vrpr": MANY, "tsa": MANY, "freeloc": MANY, "freenoise": MANY, "freepca": MANY, "keyframes": MANY,
    "longdiff": MOST,
}  # fmt: skip
BUDGET = 250
STRIPES = {"freeloc@stripes": ("vrpr.layers=all", "tsa.layers=all", "tsa.reencode=vrpr")}
PRESETS = (*STACKS, *STRIPES)


class Cost(NamedTuple):
    """The most over the kinds of step and layer of a preset. waits: other than eigenproblems'."""

    launches: int
    copies: int
    waits: int


def budget(name: str) -> int:
    return BUDGETS.get(name.partition("@")[0], BUDGET)


def plan_of(name: str, backbone: str) -> Plan:
    """The plan of a preset at four times the native length, in all layers where it needs a probe. Raises LonggenError."""
    spec = SPECS[backbone]
    length = frames.pixel_frames(planner.LONG * spec.native_lat - planner.LONG + 1, spec.stride_t)
    loaded = preset.load(name.partition("@")[0], STRIPES.get(name, ()), preset.Sample(frames=length))
    asked = loaded.model_copy(update={"backbone_samples": {}})
    return planner.build(asked, planner.as_if_probed(spec), conditions=planner.stand_in(spec))


def cost_of(steps: list[StepCount]) -> Cost:
    layers: list[LayerCount] = [layer for step in steps for layer in step.layers]
    return Cost(
        max(total(layer.operators, "launches") for layer in layers),
        max(total(layer.operators, "copies") for layer in layers),
        max(sum(number * operator.waits for operator, number in layer.operators.items() if operator.kind != EIGEN)
            for layer in layers),
    )  # fmt: skip


def count(name: str, backbone: str) -> Cost:
    return cost_of(count_plan(plan_of(name, backbone), "bf16"))


def faults(name: str, cost: Cost) -> list[str]:
    """What `cost` is over."""
    found = [f"{cost.launches} launches, of {budget(name)}"] if cost.launches > budget(name) else []
    found += [f"{cost.copies} copies from the host"] if cost.copies else []
    return found + ([f"{cost.waits} waits"] if cost.waits else [])


def main(backbones: list[str], names: list[str]) -> int:
    """Prints the table row by row, and what is over its budget."""
    over = []
    print("| preset | budget | " + " | ".join(backbones) + " |\n|---|---|" + "---|" * len(backbones))
    for name in names:
        cells = []
        for backbone in backbones:
            try:
                cost = count(name, backbone)
            except LonggenError:
                cells.append("–")
                continue
            extra = [f"{cost.copies} copies"] * bool(cost.copies) + [f"{cost.waits} waits"] * bool(cost.waits)
            cells.append(", ".join([f"{cost.launches:,} ({cost.launches / budget(name):.2f})", *extra]))
            over += [f"{name} on {backbone}: {fault}" for fault in faults(name, cost)]
        print(f"| `{name}` | {budget(name):,} | {' | '.join(cells)} |", flush=True)
    print("\n".join(["", f"{len(over)} over budget", *over]), file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    given = [argument.split(",") for argument in sys.argv[1:]]
    sys.exit(main(given[0] if given else [*FAMILIES], given[1] if given[1:] else [*PRESETS]))
