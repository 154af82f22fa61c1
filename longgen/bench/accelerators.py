"""What step caches and `--compile` do to presets: to the latent nothing, bit for bit; something, and how much; or refused.

Every preset makes one video as it is, and one with each accelerator, from the same noise. One model is in memory at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longgen import cost, progress
from longgen.backbones.settings import ModelSettings
from longgen.bench.record import DIRECT
from longgen.bench.run import Plans, refusing, settings_of, versions
from longgen.device import device_name
from longgen.errors import LonggenError
from longgen.loops import magcache, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.progress import Phase, Progress

SCHEMA = 1
COMPILE = "compile"  # the other accelerators are step caches
SEED = 1  # MagCache measures its ratios with 0, and would know that video


@dataclass
class Pair:
    """A preset under an accelerator. difference: |x' - x| / |x| of the latents; None where not measured.

    psnr: of the frames, in dB. computed: calls of the last layer, of those without a step cache. seconds: as of
    the row; with `compile` those of a second run. error: why refused.
    """

    accelerator: str
    difference: float | None = None
    psnr: float | None = None
    computed: float | None = None
    seconds: float = 0.0
    error: str | None = None

    @property
    def verdict(self) -> Literal["equal", "approximate", "refused", "not measured"]:
        if self.error is not None:
            return "refused"
        if self.difference is None:
            return "not measured"
        return "approximate" if self.difference else "equal"


@dataclass
class Row:
    """A preset. seconds: of sampling as it is; on a CPU those that the process had it. error: why it cannot be measured."""

    preset: str
    pairs: list[Pair]
    seconds: float = 0.0
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        if self.error is not None or not self.seconds:
            return {"preset": self.preset, "error": self.error or "not measured"}
        return {"preset": self.preset, "seconds": round(self.seconds, 3), "accelerators": [self._pair(pair) for pair in self.pairs]}

    def _pair(self, pair: Pair) -> dict[str, Any]:
        named = {"accelerator": pair.accelerator, "verdict": pair.verdict}
        if pair.difference is None:
            return named | ({} if pair.error is None else {"reason": pair.error})
        return named | {
            "relative_difference": pair.difference,
            "psnr_db": None if pair.psnr is None else round(pair.psnr, 2),
            "computed": None if pair.computed is None else round(pair.computed, 4),
            "seconds": round(pair.seconds, 3),
            "time_ratio": round(pair.seconds / self.seconds, 4),
        }


@dataclass
class Composition:
    """What was measured. settings: what was run. stopped: what cut it short."""

    model: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row]
    stopped: KeyboardInterrupt | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "backbone": self.model,
            "device": self.device,
            "versions": self.versions,
            "settings": self.settings,
            "stopped": self.stopped is not None,
            "presets": [row.as_dict() for row in self.rows],
        }


@dataclass
class _Made:
    latents: Tensor
    seconds: float
    calls: int


@dataclass
class _Meter:
    """Progress by rounds of sampling, with the time to go by their arithmetic."""

    phase: Phase
    work: float
    done: int = 0
    spent: float = 0.0

    def at(self, plan: Plan, done: int) -> None:
        """`done` rounds of `plan` are done beside what is passed."""
        spent = self.spent + cost.ratio(plan) * done / plan.rounds
        self.phase.at(self.done + done, spent, self.work - spent)

    def passed(self, plan: Plan, runs: int) -> None:
        """So many runs by `plan` are done, or will not be."""
        self.done, self.spent = self.done + runs * plan.rounds, self.spent + runs * cost.ratio(plan)
        self.at(plan, 0)


def compose(
    made: Plans,
    accelerators: Sequence[str],
    load: Callable[[ModelSettings], PipelineBackbone],
    model_settings: ModelSettings,
    prompt: str,
    report: Callable[[Progress], None] = progress.no_report,
) -> Composition:
    """Measures the presets of `made` under each of `accelerators`: `compile`, or a cache as `first-block:0.1`.

    made: see `longgen.bench.run.plans`. Ctrl-C keeps what is done. Raises what stands against direct sampling, or loading.
    """
    yardstick = made[DIRECT]
    if not isinstance(yardstick, Plan):
        raise yardstick
    rows, planned = [], []
    for name, plan in made.items():
        rows.append(Row(plan.preset.name if isinstance(plan, Plan) else name, [Pair(text) for text in accelerators]))
        if isinstance(plan, Plan):
            planned.append((rows[-1], plan))
        else:
            rows[-1].error = plan.given
    settings = settings_of(yardstick, model_settings) | {"prompt": prompt, "seed": SEED}
    result = Composition(yardstick.spec.name, device_name(model_settings.device), versions(), settings, rows)
    runs = 1 + sum(map(_runs, accelerators))
    rounds, work = (runs * sum(parts) for parts in zip(*((plan.rounds, cost.ratio(plan)) for _, plan in planned), strict=True))
    meter = _Meter(Phase("bench", rounds, model_settings.device, report), work)
    plain: list[_Made | None] = []
    try:
        _plainly(planned, load(model_settings), prompt, plain, meter)
        for number, text in enumerate(accelerators):
            gc.collect()  # the model before has cycles
            if model_settings.device.startswith("cuda"):
                torch.cuda.empty_cache()
            pairs = [(row.pairs[number], plan, first) for (row, plan), first in zip(planned, plain, strict=True)]
            try:
                model = load(model_settings.replace(**({"compile": True} if text == COMPILE else {"cache": text})))
            except LonggenError as error:
                for pair, plan, _ in pairs:
                    pair.error = error.given
                    meter.passed(plan, _runs(text))
                continue
            for pair, plan, first in pairs:
                with refusing(pair):
                    if first is not None:
                        _accelerated(pair, plan, first, model, prompt, meter)
                meter.passed(plan, _runs(text))
            del model
    except KeyboardInterrupt as stop:
        result.stopped = stop
    return result


def _runs(accelerator: str) -> int:
    """The first of compiled blocks compiles them."""
    return 2 if accelerator == COMPILE else 1


def _plainly(
    planned: Sequence[tuple[Row, Plan]], model: PipelineBackbone, prompt: str, made: list[_Made | None], meter: _Meter
) -> None:
    """Into `made` what each preset samples as it is."""
    for row, plan in planned:
        made.append(None)
        with refusing(row):
            made[-1] = first = _sampled(model, plan, prompt, meter, 0)
            row.seconds = first.seconds
        meter.passed(plan, 1)


def _accelerated(pair: Pair, plan: Plan, first: _Made, model: PipelineBackbone, prompt: str, meter: _Meter) -> None:
    for number in range(_runs(pair.accelerator)):
        then = _sampled(model, plan, prompt, meter, number * plan.rounds)
    difference = ((then.latents - first.latents).norm() / first.latents.norm()).item()
    pair.psnr = _psnr(model, first.latents, then.latents) if difference else None
    pair.computed = None if pair.accelerator == COMPILE else then.calls / first.calls
    pair.seconds, pair.difference = then.seconds, difference


def _sampled(backbone: PipelineBackbone, plan: Plan, prompt: str, meter: _Meter, before: int) -> _Made:
    """The latent of `plan`. Ratios of MagCache that are not kept are measured first, and not counted."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def calibrating() -> Callable[[int], None]:
        return Phase("calibrate", plan.steps, meter.phase.device, meter.phase.report).at

    clock = time.process_time if backbone.device.type == "cpu" else time.perf_counter  # others may be at work on the machine
    with magcache.skipping(backbone, plan, calibrating):
        generator = torch.Generator().manual_seed(SEED)
        denoiser = Denoiser(backbone, plan, prompt)
        noise = denoiser.initial_noise(generator)
        hooks = [
            backbone.layers(transformer)[-1].register_forward_hook(count)
            for transformer in backbone.transformers if not backbone.model_settings.compile
        ]  # fmt: skip
        meter.at(plan, before)
        began = clock()
        try:
            latents = sample(denoiser, noise, generator, lambda state: meter.at(plan, before + state.done))
            return _Made(latents.float().cpu(), clock() - began, calls)
        finally:
            for hook in hooks:
                hook.remove()


def _psnr(backbone: PipelineBackbone, first: Tensor, then: Tensor) -> float:
    """Of 8-bit frames, summed one by one: a long video in float64 would take gigabytes."""
    frames = [*backbone.decode(first.to(backbone.device))]  # not side by side: a VAE may hold what it decoded last
    pairs = zip(frames, backbone.decode(then.to(backbone.device)), strict=True)
    errors = [np.square(one.astype(np.float64) - other).mean() for one, other in pairs]
    return float(10 * np.log10(255**2 / max(np.mean(errors), 1e-10)))
