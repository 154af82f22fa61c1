"""How a step is shared out between ranks: operations and bytes that each of them counts, against one process and against the plan.

Run on every rank, by `longgen bench --gpus N`. Operations are those of matrix products, attention, Fourier transforms and
eigenproblems; bytes are what a rank hands to others in collectives.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longgen import planner, ranks, run, split
from longgen.backbones.settings import ModelSettings
from longgen.bench.operators import flops_of
from longgen.cards import OTHER
from longgen.errors import UsageError
from longgen.loops import PROMPTS, sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan
from longgen.terminal import WIDTH, tables
from longgen.units import human_bytes, short

WHOLE = ("all_to_all_single", "alltoall_base_")  # collectives of which a rank keeps its own part


@dataclass(frozen=True)
class RankRow:
    """A preset on N ranks. operations: of each rank in a step; ideal: a rank's share of what one process needs. sent: bytes of each
    rank in a step. planned_*: what `longgen plan --gpus N` says. error: why it cannot be split.
    """

    preset: str
    how: str = ""
    operations: tuple[int, ...] = ()
    ideal: float = 0.0
    sent: tuple[int, ...] = ()
    planned_operations: float = 0.0
    planned_sent: int = 0
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RankCounter(TorchDispatchMode):
    """Within the context, counts operations and bytes of this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.sent = 0
        self.counting, self.calls = False, 0

    def count(self, counting: bool) -> None:
        """Whether what follows is counted: the calls of the transformer, and not the text encoder's."""
        self.counting = counting
        self.calls += counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.counting:
            return output
        name = func._overloadpacket.__name__
        if "c10d" in func.namespace:
            self.sent += _sent(name, args)
        else:
            self.operations += _operations(func, name, args, kwargs, output)
        return output


def _operations(func: Any, name: str, args: Any, kwargs: Any, output: Any) -> int:
    """Of one operator; those that go through all elements once are left out, as in the cost of a plan."""
    inputs, outputs = ([x for x in tree_leaves(values) if isinstance(x, Tensor)] for values in (args, output))
    if name.endswith("_flash_attention_for_cpu"):  # which torch has no formula for
        q, k = inputs[:2]
        return 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]
    if not inputs:
        return 0
    kind, count = flops_of(func, name, args, kwargs, inputs, outputs, output)
    return 0 if kind == OTHER and "_fft_" not in name else int(count)


def _sent(name: str, args: Sequence[Any]) -> int:
    """Bytes that this rank hands to others in the collective `name`."""
    if name == "wait_tensor":
        return 0
    group = next((found for found in map(_group, args) if found is not None), None)
    if group is None:
        return 0
    handed = args[1] if name in ("allgather_", "alltoall_base_") else args[0]
    size, count = sum(x.nbytes for x in tree_leaves(handed) if isinstance(x, Tensor)), group.size()
    if name == "broadcast_":
        return size * (count - 1) if group.rank() == args[2] else 0
    return size * (count - 1) // count if name in WHOLE else size * (count - 1)


def _group(argument: Any) -> Any:
    if isinstance(argument, str):
        return distributed.distributed_c10d._resolve_process_group(argument)
    if isinstance(argument, torch.ScriptObject):
        try:
            return distributed.ProcessGroup.unbox(argument)
        except Exception:
            return None
    return None


def text(rows: Sequence[RankRow], backbone: str, size: int, width: int = WIDTH) -> str:
    """The rows as a table for a terminal."""
    head = ("preset", "split by", "operations", "of ideal", "of plan", "sent", "of plan")
    lines = [head]
    for row in rows:
        if row.error is not None:
            lines.append((row.preset, f"refused: {row.error}", "", "", "", "", ""))
            continue
        most, sent = max(row.operations), max(row.sent)
        of_plan = f"{sent / row.planned_sent:.2f}" if row.planned_sent else ""
        lines.append((row.preset, row.how, short(most), f"{most / row.ideal:.2f}", f"{most / row.planned_operations:.2f}",
                      human_bytes(sent), of_plan))  # fmt: skip
    legend = f"ideal: the operations of one process, divided by {size}; of plan: against longgen plan --gpus {size}"
    head_line = f"{backbone} on {size} ranks, a step of the busiest rank"
    return "\n".join([*textwrap.wrap(head_line, width), *tables(lines, width, left=2), *textwrap.wrap(legend, width)])


def measure(plans: dict[str, Plan | UsageError], settings: ModelSettings) -> list[RankRow]:
    """A row for each preset of `plans`; every rank calls this, and gets all rows. Raises what loading does."""
    here = ranks.current()
    rows: list[RankRow] = []
    loaded: dict[int, Any] = {}
    for name, plan in plans.items():
        try:
            if isinstance(plan, UsageError):
                raise plan
            planned = split.numbers(plan, settings)
        except UsageError as error:
            rows.append(RankRow(name, error=error.given))
            continue
        counted = []
        for gpus in (settings.gpus, 1):
            if gpus not in loaded:
                loaded[gpus], _ = run.load(plan.spec, settings.replace(gpus=gpus, guidance_parallel=False), plan=plan)
            loaded[gpus].model_settings = settings.replace(gpus=gpus, guidance_parallel=settings.guidance_parallel and gpus > 1)
            counted.append(_counted(loaded[gpus], plan))
        by_rank: list[Any] = [None] * here.size
        distributed.all_gather_object(by_rank, counted[0])
        alone = counted[1][0]
        rows.append(RankRow(name, planned["how"], tuple(made for made, _ in by_rank), alone / here.size,
                            tuple(sent for _, sent in by_rank), alone * planned["arithmetic"], planned["sent_bytes"]))  # fmt: skip
    return rows


def _counted(backbone: Any, plan: Plan) -> tuple[int, int]:
    """Operations and bytes of this rank in the transformer's calls of one step of `plan`."""
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, PROMPTS[0], backbone.given(plan, generator))
    noise, counter = denoiser.initial_noise(generator), RankCounter()
    hooks = [hook for transformer in backbone.transformers for hook in (
        transformer.register_forward_pre_hook(lambda *_: counter.count(True)),
        transformer.register_forward_hook(lambda *_: counter.count(False)),
    )]  # fmt: skip
    try:
        with counter:
            sample(denoiser, noise, generator)
    finally:
        for hook in hooks:
            hook.remove()
    steps = counter.calls if plan.chunk_lat is not None else plan.rounds  # a pass fills the cache after each chunk
    return counter.operations // steps, counter.sent // steps


def plans_for(preset_names: Sequence[str], spec: Any, frames: int | None, steps: int) -> dict[str, Plan | UsageError]:
    """The plans of presets by name, or why one cannot be."""
    from longgen import preset

    plans: dict[str, Plan | UsageError] = {}
    for name in preset_names:
        try:
            chosen = preset.load(name, (), preset.Sample(frames=frames, steps=None if name == "fifo" else steps))
            plans[name] = planner.build(chosen, planner.as_if_probed(spec), conditions=planner.stand_in(spec))
        except UsageError as error:
            plans[name] = error
    return plans
