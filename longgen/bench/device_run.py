"""Runs what `longgen doctor --gpu` measures, within a budget of time, the most telling first; whatever is done is on disk.

In this order: rates of the card; each preset on a small model against the CPU; the stock pipeline, direct sampling and the presets
at full size with random weights, those with a target first; then the presets of causal models; then more rounds while time is left.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import longgen
from longgen import cost, preset
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.bench import device_check, steps
from longgen.bench.card_rates import card_rates
from longgen.bench.device_report import TARGETS, Check, DeviceReport, Timing
from longgen.bench.record import DIRECT, StepTiming
from longgen.bench.run import versions
from longgen.bench.step_types import ROUND, StepType, step_types
from longgen.cards import card_of
from longgen.device import device_name
from longgen.errors import LonggenError, UsageError
from longgen.frames import pixel_frames
from longgen.layers.selection import uses_probe
from longgen.pipelines import random_weights
from longgen.plan import Plan
from longgen.planner import LONG, stand_in
from longgen.preset import Sample
from longgen.progress import OnProgress, Phase
from longgen.resolve import PlanRequest, resolve

ROUNDS = 3  # of measurements at full size, while time is left
Measure = Callable[[], None]


def default_frames(spec: BackboneSpec) -> int:
    """LONG times the native length: 321 frames of Wan 2.1, which the targets are for."""
    return pixel_frames(LONG * spec.native_lat - LONG + 1, spec.stride_t)


def new_report(spec: BackboneSpec, settings: ModelSettings, frames: int, size: tuple[int, int] | None) -> DeviceReport:
    """An empty report of this machine."""
    run = {"backbone": spec.name, "frames": frames, "size": [*(size or spec.size)], "dtype": settings.dtype}
    return DeviceReport(longgen.__version__, device_name(settings.device), versions(), run)


class Deadline:
    """A budget of `minutes`; a run that was interrupted has one of its own when it goes on."""

    def __init__(self, minutes: float) -> None:
        self.start, self.seconds = time.monotonic(), 60 * minutes

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    @property
    def over(self) -> bool:
        return self.spent >= self.seconds


def run(
    report: DeviceReport, spec: BackboneSpec, causal: BackboneSpec, settings: ModelSettings, names: Sequence[str], minutes: float,
    folder: Path, on_progress: OnProgress,
) -> None:  # fmt: skip
    """Adds to `report` what is missing in it, and writes it into `folder` after every measurement.

    causal: the backbone of presets that `spec` is none for. Raises LonggenError where the device no longer answers.
    """
    deadline, before = Deadline(minutes), report.seconds
    frames, size = report.settings["frames"], tuple(report.settings["size"])

    def save() -> None:
        report.seconds = before + deadline.spent
        report.save(folder)

    plans: dict[str, tuple[BackboneSpec, Plan]] = {}
    for name in ordered(names):
        for backbone in (spec, causal):
            try:
                sample = Sample(frames=frames, size=size) if backbone is spec else Sample(frames=frames)
                plans[name] = backbone, make_plan(name, backbone, sample)
                report.unsupported.pop(name, None)
                break
            except UsageError as error:
                report.unsupported.setdefault(name, error.given)
    if not report.card:
        report.card = card_rates(settings.device, settings.dtype)
        save()
    report.stopped = None
    _check_all(report, plans, (spec, causal), settings, frames, deadline, save, on_progress)
    for backbone, rounds in ((spec, 1), (causal, 1), (spec, ROUNDS)):
        wanted = {name: plan for name, (other, plan) in plans.items() if other is backbone}
        _measure_all(report, backbone, wanted, rounds, settings, deadline, save, on_progress)
    left = [name for name in plans if name not in report.checks or not report.is_measured(name)]
    if left:
        report.stopped = f"the {minutes:g} minutes were over before {', '.join(left)}; the same command goes on"
    save()


def ordered(names: Sequence[str]) -> list[str]:
    """Direct sampling, the presets with a target, the others."""
    return sorted(dict.fromkeys((DIRECT, *names)), key=lambda name: (name != DIRECT, [*TARGETS, name].index(name)))


def make_plan(name: str, spec: BackboneSpec, sample: Sample) -> Plan:
    """The plan of the preset `name`; where it leaves its layers to a probe, by the published one or else in all layers."""
    loaded = preset.load(name)
    layers: dict[str, Any] = {} if not uses_probe(loaded) else {"probe": "published"} if spec.verdicts else {"layers": "all"}
    return resolve(PlanRequest(name, spec, sample=sample, conditions=stand_in(spec), **layers))


def _check_all(
    report: DeviceReport, plans: dict[str, tuple[BackboneSpec, Plan]], backbones: Sequence[BackboneSpec], settings: ModelSettings,
    frames: int, deadline: Deadline, save: Measure, on_progress: OnProgress,
) -> None:  # fmt: skip
    """Every preset that is not in the report's checks, on the small model of its backbone."""
    done = [name for name in plans if name in report.checks]
    phase = Phase("check", len(plans), settings.device, on_progress, len(done))
    for backbone in backbones:
        names = [name for name, (other, _) in plans.items() if other is backbone and name not in report.checks]
        small = device_check.small(backbone)
        pair = device_check.Pair(small, settings.device, settings.dtype) if names and not deadline.over else None
        for name in names:
            if deadline.over or pair is None:
                return
            check = Check(backbone.name, dtype=settings.dtype)
            with _failures(check, settings.device):
                plan = device_check.small_plan(name, small, make_plan, frames)
                check = pair.check(plan)
            report.checks[name] = check
            save()
            _raise_if_lost(check, settings.device, name)
            phase.at(len(report.checks))


def _measure_all(
    report: DeviceReport, spec: BackboneSpec, plans: dict[str, Plan], rounds: int, settings: ModelSettings, deadline: Deadline,
    save: Measure, on_progress: OnProgress,
) -> None:  # fmt: skip
    """Steps of every type of every preset, and of the stock pipeline, until each was measured `rounds` times."""
    targets = _targets(report, plans, settings)
    missing = [(number, target) for number in range(rounds) for target in targets if target.timing.rounds <= number]
    missing = [(number, target) for number, target in missing if target.timing.failure is None]
    if not missing or deadline.over:
        return
    backbone = random_weights.build(spec, settings)
    phase, done, left = Phase("measure", len(missing), settings.device, on_progress), 0.0, sum(each.work for _, each in missing)
    for index, (number, target) in enumerate(missing):
        if deadline.over:
            break
        if target.timing.failure is None:
            with _failures(target.timing, settings.device):
                measured = [measure(backbone, number, number == 0) for measure in target.measures]
                _add(target.timing, {name: step for part in measured for name, step in part.items()})
            save()
            _raise_if_lost(target.timing, settings.device, target.name)
        done, left = done + target.work, left - target.work
        phase.at(index + 1, done, left)
    del backbone
    _free()


class Target(NamedTuple):
    """A preset to measure at full size: where it is written, how its steps are measured, and their arithmetic, for the ETA."""

    name: str
    timing: Timing
    measures: list[steps.MeasureStep]
    work: float


def _targets(report: DeviceReport, plans: dict[str, Plan], settings: ModelSettings) -> list[Target]:
    """The stock pipeline, where direct sampling is among `plans`, and each of these."""
    targets, card = [], card_of(report.device.partition("(")[2].removesuffix(")"))  # as `device_name` writes it
    for name, plan in plans.items():
        if name == DIRECT:
            stock = StepType(steps.STOCK, plan.steps, plan, tuple(range(plan.steps)))
            timing = report.timings.setdefault(stock.name, Timing(plan.spec.name, [StepTiming(stock.name, stock.count)]))
            targets.append(Target(stock.name, timing, [functools.partial(steps.measure_stock, stock, False)], cost.ratio(plan)))
        types, memory = step_types(plan), cost.memory_bytes(plan, settings.dtype)
        timing = report.timings.setdefault(name, Timing(
            plan.spec.name, [StepTiming(each.name, each.count) for each in types], floor=cost.ratio(plan),
            estimated_seconds=None if card is None else cost.seconds(plan, card, settings.dtype),
            estimated_bytes=memory["weights"] + memory["activations"],
        ))  # fmt: skip
        parts = steps.measurements(plan, types, cached=False)
        share = plan.spec.steps / plan.rounds if types[0].name == ROUND else 1.0  # of a queue's run, what a step is of another's
        work = sum(share * cost.ratio(measured[0].plan) for measured, _ in parts)
        targets.append(Target(name, timing, [measure for _, measure in parts], work))
    return targets


def _add(timing: Timing, measured: dict[str, steps.Measurement]) -> None:
    for step in timing.steps:
        seconds, peak = measured[step.name]
        step.seconds.append(seconds)
        step.peak_bytes = peak if step.peak_bytes is None else max(step.peak_bytes, peak or 0)


@contextmanager
def _failures(row: Check | Timing, device: str) -> Iterator[None]:
    """Stores any error in `row`, so that the others go on: this run is there to find them."""
    try:
        yield
    except Exception as error:
        reason = error.given if isinstance(error, LonggenError) else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        row.failure = reason
        _free()


def _raise_if_lost(row: Check | Timing, device: str, name: str) -> None:
    """After an illegal access to memory, a CUDA device answers nothing more in this process."""
    if row.failure is None or device == "cpu":
        return
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError as error:
        raise LonggenError(f"the device no longer answers after {name}: {row.failure}", expected="a device that goes on",
                           hint=f"the same command goes on without {name}") from error  # fmt: skip


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
