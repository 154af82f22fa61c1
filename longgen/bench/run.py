"""Runs a benchmark: a step of every kind of every preset, then all of them again, so that a drift of the machine hits all alike."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from longgen import arguments, cost, progress
from longgen.backbones.settings import ModelSettings
from longgen.bench import steps
from longgen.bench.memory import weight_bytes
from longgen.bench.record import DIRECT, Bench, Row, Timed
from longgen.bench.step_types import Kind, kinds
from longgen.device import device_name
from longgen.errors import LonggenError
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.progress import Phase, Progress
from longgen.resolve import PlanRequest, check_overrides, resolve

Plans = dict[str, Plan | LonggenError]


class HasError(Protocol):
    """What can fail while the others go on."""

    error: str | None


@dataclass
class Target:
    """What is run in one go: of `row`, the kinds `timed`. work: its arithmetic, for the time to go."""

    row: Row
    timed: dict[str, Timed]
    visit: steps.Visit
    work: float


def plans(names: Sequence[str], request: PlanRequest) -> Plans:
    """By preset the plan of `request` with it, or why there is none; direct sampling comes first, named or not.

    An override goes to the presets that have its technique, `probe` to those that need one. Raises UsageError for an override
    that none of them takes.
    """
    by_name: Plans = {}
    fitted: list[PlanRequest] = []
    for name in dict.fromkeys((DIRECT, *names)):
        try:
            fitted.append(replace(request, preset=name).fitted())
            by_name[name] = resolve(fitted[-1])
        except LonggenError as error:
            by_name[name] = error
    check_overrides(request.overrides, fitted)
    return by_name


def bench(
    made: Plans,
    load: Callable[[], PipelineBackbone],
    model_settings: ModelSettings,
    rounds: int,
    shape: bool = False,
    report: Callable[[Progress], None] = progress.no_report,
) -> Bench:
    """Measures every kind of step of the presets in `made`, `rounds` times, and the stock pipeline's. Ctrl-C keeps what is done.

    made: see `plans`. load: the model, called once all plans are known. Raises what stands against direct sampling.
    """
    rounds = arguments.whole_number("rounds", rounds, 1)
    yardstick = made[DIRECT]
    if not isinstance(yardstick, Plan):
        raise yardstick
    rows, targets = _targets(made, yardstick, model_settings.cache is not None)
    settings = settings_of(yardstick, model_settings) | {"rounds": rounds}
    result = Bench(yardstick.spec.name, shape, device_name(model_settings.device), versions(), settings, rows)
    model = load()
    result.weights_bytes = weight_bytes(model.transformers)
    total, spent = rounds * len(targets), 0.0
    work = rounds * sum(target.work for target in targets)
    phase = Phase("bench", total, model_settings.device, report)
    try:
        for number in range(total):
            phase.at(number, spent, work - spent)
            target = targets[number % len(targets)]
            if target.row.error is None:
                with refusing(target.row):
                    for name, found in target.visit(model, number // len(targets), number < len(targets)).items():
                        timed = target.timed[name]
                        timed.seconds.append(found.seconds)
                        if found.peak_bytes is not None:
                            timed.peak_bytes = max(timed.peak_bytes or 0, found.peak_bytes)
            spent += target.work
        phase.at(total, spent, work - spent)
    except KeyboardInterrupt as stop:
        result.stopped = stop
    return result


def _targets(made: Plans, yardstick: Plan, cached: bool) -> tuple[list[Row], list[Target]]:
    """A row for the stock pipeline, where it has one to compare with, and for each preset; what is to be run for them, in order."""
    rows, targets = [], []

    def add(row: Row, own: Sequence[Kind], visit: steps.Visit, work: float) -> None:
        timed = {kind.name: Timed(kind.name, kind.count) for kind in own}
        row.kinds.extend(timed.values())
        targets.append(Target(row, timed, visit, work))

    if yardstick.chunk_lat is None:
        rows.append(Row(steps.STOCK))
        stock = Kind(steps.STOCK, yardstick.steps, yardstick, tuple(range(yardstick.steps)))
        add(rows[0], [stock], functools.partial(steps.of_stock, stock, cached), cost.ratio(yardstick))
    for name, plan in made.items():
        rows.append(Row(plan.preset.name if isinstance(plan, Plan) else name))
        if not isinstance(plan, Plan):
            rows[-1].error = plan.given
            continue
        rows[-1].floor = cost.ratio(plan) / cost.ratio(yardstick)
        for own, visit in steps.visits(plan, kinds(plan), cached):
            add(rows[-1], own, visit, cost.ratio(own[0].plan))
    return rows, targets


@contextmanager
def refusing(row: HasError) -> Iterator[None]:
    """What longgen refuses, or there is no memory for, is said of the row; the others go on."""
    try:
        yield
    except LonggenError as error:
        row.error = error.given
    except (MemoryError, torch.OutOfMemoryError) as error:
        row.error = f"out of memory: {' '.join(str(error).split())[:100]}"


def versions() -> dict[str, str]:
    """Of the libraries that decide how fast a step is."""
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}


def settings_of(yardstick: Plan, model_settings: ModelSettings) -> dict[str, Any]:
    """What is run, by the plan of direct sampling."""
    shift = {} if yardstick.sample.flow_shift is None else {"flow_shift": yardstick.sample.flow_shift}
    return {
        "frames": yardstick.frames_px, "latent_frames": yardstick.frames_lat, "size": [*yardstick.size],
        "tokens": yardstick.tokens, "steps": yardstick.steps, "guidance_scale": yardstick.sample.guidance_scale, **shift,
        "dtype": model_settings.dtype, "offload": model_settings.offload, **model_settings.stored(),
    }  # fmt: skip
