"""Measures what step caches and `--compile` do to presets: the latent is bit-identical, approximate by how much, or unsupported.

Every preset generates one video without and one with each accelerator, from the same noise. One model is in memory at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longgen import cost, progress
from longgen.backbones.settings import ModelSettings
from longgen.bench.record import DIRECT, Report, rounded
from longgen.bench.run import Plans, capture_error, settings_of, versions
from longgen.device import device_name
from longgen.errors import LonggenError
from longgen.loops import magcache, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.progress import OnProgress, Phase

COMPILE = "compile"  # the other accelerators are step caches
SEED = 1  # MagCache calibrates its ratios with 0, and would know that video


@dataclass
class AcceleratedRun:
    """A preset with an accelerator. difference: |x' - x| / |x| of the latents; None if not measured.

    psnr: of the frames, in dB. computed: fraction of the last layer's calls that a step cache does not skip. seconds: as in
    `AcceleratedPreset`; with `compile` those of a second run. error: why it is unsupported.
    """

    accelerator: str
    difference: float | None = None
    psnr: float | None = None
    computed: float | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def verdict(self) -> Literal["equal", "approximate", "unsupported", "not measured"]:
        if self.error is not None:
            return "unsupported"
        if self.difference is None:
            return "not measured"
        return "approximate" if self.difference else "equal"

    def as_dict(self, plain_seconds: float) -> dict[str, Any]:
        """plain_seconds: of sampling without an accelerator."""
        fields = {"accelerator": self.accelerator, "verdict": self.verdict}
        if self.difference is None:
            return fields | ({} if self.error is None else {"reason": self.error})
        return fields | {
            "relative_difference": self.difference,
            "psnr_db": rounded(self.psnr, 2),
            "computed": rounded(self.computed),
            "seconds": round(self.seconds, 3),
            "time_ratio": round(self.seconds / plain_seconds, 4),
        }


@dataclass
class AcceleratedPreset:
    """A preset with each accelerator. seconds: of sampling without any; process time on a CPU. error: why it failed."""

    preset: str
    runs: list[AcceleratedRun]
    seconds: float = 0.0
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        if self.error is not None or not self.seconds:
            return {"preset": self.preset, "error": self.error or "not measured"}
        runs = [run.as_dict(self.seconds) for run in self.runs]
        return {"preset": self.preset, "seconds": round(self.seconds, 3), "accelerators": runs}


class AcceleratorReport(Report):
    """What accelerators do to presets."""

    rows: list[AcceleratedPreset]


class _Sampled(NamedTuple):
    latents: Tensor
    seconds: float
    calls: int


@dataclass
class _Meter:
    """Progress in rounds of sampling, with the remaining time estimated by their FLOPs."""

    phase: Phase
    work: float
    done: int = 0
    spent: float = 0.0

    def at(self, plan: Plan, done: int) -> None:
        """`done` rounds of the current `plan` are done."""
        spent = self.spent + cost.ratio(plan) * done / plan.rounds
        self.phase.at(self.done + done, spent, self.work - spent)

    def finish(self, plan: Plan, runs: int) -> None:
        """So many runs by `plan` are done, or will not be."""
        self.done, self.spent = self.done + runs * plan.rounds, self.spent + runs * cost.ratio(plan)
        self.at(plan, 0)


def measure_accelerators(
    plans: Plans,
    accelerators: Sequence[str],
    load: Callable[[ModelSettings], PipelineBackbone],
    model_settings: ModelSettings,
    prompt: str,
    report: OnProgress = progress.no_report,
) -> AcceleratorReport:
    """Measures the presets of `plans` with each of `accelerators`: `compile`, or a cache such as `first-block:0.1`.

    Ctrl-C keeps what is done. Raises the errors of direct sampling and of loading.
    """
    baseline = plans[DIRECT]
    if not isinstance(baseline, Plan):
        raise baseline
    rows, planned = [], []
    for name, plan in plans.items():
        rows.append(AcceleratedPreset(plan.preset.name if isinstance(plan, Plan) else name, [*map(AcceleratedRun, accelerators)]))
        if isinstance(plan, Plan):
            planned.append((rows[-1], plan))
        else:
            rows[-1].error = plan.given
    settings = settings_of(baseline, model_settings) | {"prompt": prompt, "seed": SEED}
    result = AcceleratorReport(baseline.spec.name, device_name(model_settings.device), versions(), settings, rows)
    repeats = sum(map(_repeats, (None, *accelerators)))
    phase = Phase("bench", repeats * sum(plan.rounds for _, plan in planned), model_settings.device, report)
    meter = _Meter(phase, repeats * sum(cost.ratio(plan) for _, plan in planned))
    originals: dict[str, _Sampled] = {}  # by preset, without an accelerator
    try:
        for number, accelerator in enumerate((None, *accelerators)):
            gc.collect()  # the previous model has reference cycles
            if model_settings.device.startswith("cuda"):
                torch.cuda.empty_cache()
            change = {"compile": True} if accelerator == COMPILE else {"cache": accelerator} if accelerator else {}
            try:
                model = load(model_settings.replace(**change))
            except LonggenError as error:
                if accelerator is None:
                    raise
                for row, plan in planned:
                    row.runs[number - 1].error = error.given
                    meter.finish(plan, _repeats(accelerator))
                continue
            for row, plan in planned:
                with capture_error(row.runs[number - 1] if accelerator else row):
                    if accelerator is None:
                        originals[row.preset] = _sample(model, plan, prompt, meter, 0)
                        row.seconds = originals[row.preset].seconds
                    elif row.preset in originals:
                        _accelerate(row.runs[number - 1], plan, originals[row.preset], model, prompt, meter)
                meter.finish(plan, _repeats(accelerator))
            del model
    except KeyboardInterrupt as stop:
        result.stopped = stop
    return result


def _repeats(accelerator: str | None) -> int:
    """The first run of compiled blocks compiles them."""
    return 2 if accelerator == COMPILE else 1


def _accelerate(run: AcceleratedRun, plan: Plan, original: _Sampled, model: PipelineBackbone, prompt: str, meter: _Meter) -> None:
    for number in range(_repeats(run.accelerator)):
        sampled = _sample(model, plan, prompt, meter, number * plan.rounds)
    difference = ((sampled.latents - original.latents).norm() / original.latents.norm()).item()
    run.psnr = _psnr(model, original.latents, sampled.latents) if difference else None
    run.computed = None if run.accelerator == COMPILE else sampled.calls / original.calls
    run.seconds, run.difference = sampled.seconds, difference


def _sample(backbone: PipelineBackbone, plan: Plan, prompt: str, meter: _Meter, rounds_before: int) -> _Sampled:
    """The latent of `plan`. Missing MagCache ratios are calibrated first, which does not count as time."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    clock = time.process_time if backbone.device.type == "cpu" else time.perf_counter  # others may use the machine too
    with magcache.skipping(backbone, plan, lambda: Phase("calibrate", plan.steps, meter.phase.device, meter.phase.report).at):
        generator = torch.Generator().manual_seed(SEED)
        denoiser = Denoiser(backbone, plan, prompt, backbone.given(plan, generator))
        noise = denoiser.initial_noise(generator)
        hooks = [
            backbone.layers(transformer)[-1].register_forward_hook(count)
            for transformer in backbone.transformers if not backbone.model_settings.compile
        ]  # fmt: skip
        meter.at(plan, rounds_before)
        began = clock()
        try:
            latents = sample(denoiser, noise, generator, lambda state: meter.at(plan, rounds_before + state.done))
            return _Sampled(latents.float().cpu(), clock() - began, calls)
        finally:
            for hook in hooks:
                hook.remove()


def _psnr(backbone: PipelineBackbone, original: Tensor, accelerated: Tensor) -> float:
    """Of 8-bit frames, summed one by one: a long video in float64 would take gigabytes."""
    frames = [*backbone.decode(original.to(backbone.device))]  # not interleaved: a VAE may cache what it decoded last
    pairs = zip(frames, backbone.decode(accelerated.to(backbone.device)), strict=True)
    errors = [np.square(frame.astype(np.float64) - other).mean() for frame, other in pairs]
    return float(10 * np.log10(255**2 / max(np.mean(errors), 1e-10)))
