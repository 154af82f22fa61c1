"""Runs a benchmark: a step of every type of every preset, in rounds, so that a drift of the machine affects all alike."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch

from longgen import arguments, cost, progress
from longgen.backbones.settings import ModelSettings
from longgen.bench import steps
from longgen.bench.count import count_plan
from longgen.bench.memory import weight_bytes
from longgen.bench.record import DIRECT, BenchResult, PresetTiming, StepTiming
from longgen.bench.step_types import StepType, step_types
from longgen.cards import Card, card_of
from longgen.device import chain, device_name, lacks_memory
from longgen.errors import LonggenError, OutOfMemoryError
from longgen.out_of_memory import cheapest
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.planner import stand_in
from longgen.progress import OnProgress, Phase
from longgen.resolve import PlanRequest, check_overrides, resolve

Plans = dict[str, Plan | LonggenError]
LACKING = "out of memory"  # how the error of a row begins that could not be measured for it


class HasError(Protocol):
    """A result that can fail while the others continue."""

    error: str | None


class Target(NamedTuple):
    """One measurement of `row`. work: its FLOPs, for the time estimate."""

    row: PresetTiming
    measure: steps.MeasureStep
    work: float


def plan_presets(names: Sequence[str], request: PlanRequest) -> Plans:
    """The plan of `request` with each preset, or the error; direct sampling always comes first.

    A backbone that needs a picture gets a grey one where `request` has none.
    An override applies to the presets that have its technique, `probe` to those that use one. Raises UsageError for an override
    that applies to none.
    """
    plans: Plans = {}
    fitted: list[PlanRequest] = []
    if not request.conditions:
        request = replace(request, conditions=stand_in(request.spec))
    for name in dict.fromkeys((DIRECT, *names)):
        try:
            fitted.append(replace(request, preset=name).fitted())
            plans[name] = resolve(fitted[-1])
        except LonggenError as error:
            plans[name] = error
    check_overrides(request.overrides, fitted)
    return plans


def bench(
    plans: Plans,
    load: Callable[[], PipelineBackbone],
    model_settings: ModelSettings,
    rounds: int,
    shape: bool = False,
    report: OnProgress = progress.no_report,
) -> BenchResult:
    """Measures every step type of the presets in `plans`, and of the stock pipeline, `rounds` times. Ctrl-C keeps what is done.

    plans: from `plan_presets`. load: called once all plans are known. Raises the error of direct sampling, and OutOfMemoryError
    where no step fits.
    """
    rounds = arguments.whole_number("rounds", rounds, 1)
    baseline = plans[DIRECT]
    if not isinstance(baseline, Plan):
        raise baseline
    rows, targets = _targets(plans, baseline, model_settings.cache is not None)
    card, no_estimate = card_of_run(model_settings), ""
    if card is not None:
        try:
            _estimate(rows, plans, card, model_settings.dtype)
        except LonggenError as error:  # what is measured does not depend on it
            card, no_estimate = None, error.given
    settings = settings_of(baseline, model_settings) | {"rounds": rounds}
    result = BenchResult(baseline.spec.name, device_name(model_settings.device), versions(), settings, rows, shape, 0)
    result.card, result.no_estimate = (None if card is None else card.name), no_estimate
    model = load()
    result.weights_bytes = weight_bytes(model.transformers)
    done, left = 0.0, rounds * sum(target.work for target in targets)
    try:
        phase = Phase("bench", rounds * len(targets), model_settings.device, report)
        for number in range(rounds * len(targets)):
            target = targets[number % len(targets)]
            if target.row.error is None:
                with capture_error(target.row):
                    for name, step in target.measure(model, number // len(targets), number < len(targets)).items():
                        timing = next(timing for timing in target.row.timings if timing.name == name)
                        timing.seconds.append(step.seconds)
                        if step.peak_bytes is not None:
                            timing.peak_bytes = max(timing.peak_bytes or 0, step.peak_bytes)
            done, left = done + target.work, left - target.work
            phase.at(number + 1, done, left)
    except KeyboardInterrupt as stop:
        result.stopped = stop
    if all((row.error or "").startswith(LACKING) for row in rows):
        remedy = cheapest(baseline, model_settings)
        lead = "" if remedy is None else f"{remedy}; or "
        raise OutOfMemoryError(f"{rows[0].error}, and so of every preset",
                               expected="what longgen plan estimates fits the device",
                               hint=f"{lead}fewer --frames or a smaller --size")  # fmt: skip
    return result


def card_of_run(model_settings: ModelSettings) -> Card | None:
    """The card whose rates tell how long the run takes; None on other devices, and with settings that change what is launched."""
    changed = model_settings.cache or model_settings.attention or model_settings.compile or model_settings.clip_batch > 1
    if not model_settings.device.startswith("cuda") or changed or model_settings.offload != "none":
        return None
    return card_of(torch.cuda.get_device_name(model_settings.device))


def _estimate(rows: list[PresetTiming], plans: Plans, card: Card, dtype: str) -> None:
    """The estimated seconds of every step, before any is measured: the table then says by how much they were off."""
    for plan in plans.values():
        if isinstance(plan, Plan):
            seconds = {count.name: count.seconds(card) for count in count_plan(plan, dtype)}
            names = (plan.preset.name, steps.STOCK) if plan.preset.name == DIRECT else (plan.preset.name,)
            for timing in (timing for row in rows if row.preset in names for timing in row.timings):
                timing.estimated = seconds.get(DIRECT if timing.name == steps.STOCK else timing.name)


def _targets(plans: Plans, baseline: Plan, cached: bool) -> tuple[list[PresetTiming], list[Target]]:
    """A row for the stock pipeline, unless the backbone is causal, and for each preset; and what to measure for them, in order."""
    rows, targets = [], []
    if baseline.chunk_lat is None:
        stock = StepType(steps.STOCK, baseline.steps, baseline, tuple(range(baseline.steps)))
        rows.append(PresetTiming(stock.name, [StepTiming(stock.name, stock.count)]))
        targets.append(Target(rows[0], functools.partial(steps.measure_stock, stock, cached), cost.ratio(baseline)))
    for name, plan in plans.items():
        rows.append(PresetTiming(plan.preset.name if isinstance(plan, Plan) else name))
        if not isinstance(plan, Plan):
            rows[-1].error = plan.given
            continue
        rows[-1].floor = cost.ratio(plan) / cost.ratio(baseline)
        for types, measure in steps.measurements(plan, step_types(plan), cached):
            rows[-1].timings += [StepTiming(step_type.name, step_type.count) for step_type in types]
            targets.append(Target(rows[-1], measure, cost.ratio(types[0].plan)))
    return rows, targets


@contextmanager
def capture_error(row: HasError) -> Iterator[None]:
    """Stores an error of longgen, or a lack of memory, in `row`, so that the others continue."""
    try:
        yield
    except LonggenError as error:
        row.error = error.given
    except Exception as error:
        if not any(map(lacks_memory, chain(error))):
            raise
        row.error = f"{LACKING}: {' '.join(str(error).split())[:100]}"


def versions() -> dict[str, str]:
    """Versions of the libraries that determine the speed of a step."""
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}


def settings_of(yardstick: Plan, model_settings: ModelSettings) -> dict[str, Any]:
    """What is run, by the plan of direct sampling."""
    shift = {} if yardstick.sample.flow_shift is None else {"flow_shift": yardstick.sample.flow_shift}
    start = {"conditions": yardstick.conditions.as_dict()} if yardstick.conditions else {}
    return {
        "frames": yardstick.frames_px, "latent_frames": yardstick.frames_lat, "size": [*yardstick.size],
        "tokens": yardstick.tokens, "steps": yardstick.steps, "guidance_scale": yardstick.sample.guidance_scale, **shift,
        "dtype": model_settings.dtype, "offload": model_settings.offload, **model_settings.stored(), **start,
    }  # fmt: skip
