"""Seconds and memory of earlier runs on this machine, kept in the cache, and the estimates of a new run that follow from them.

A run is compared with those of the same backbone, device and settings of the model; of these with the ones of its preset, if there
are some, and with the nearest in arithmetic. Nothing of prompts or files is kept.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from longgen import cost, disk
from longgen.backbones.settings import ModelSettings
from longgen.cache_folder import cache_folder
from longgen.closed import ClosedModel
from longgen.device import device_name
from longgen.errors import LonggenError
from longgen.plan import Plan

FILE = "timings.json"
MOST = 200  # runs that are kept, the newest
NEAREST = 5  # of them that an estimate is the median of
SPEED = ("dtype", "offload", "quantize", "attention", "cache", "compile", "clip_batch", "vae_tiling", "gpus", "guidance_parallel")


class Timing(ClosedModel):
    """One run. setup: what makes seconds comparable. flops, pixels: of sampling, of decoding. A phase that was not run is None."""

    setup: list[str]
    preset: str
    frames: int
    flops: float
    pixels: int
    load_s: float | None
    sample_s: float
    decode_s: float | None
    memory_bytes: int
    when: float


class _File(ClosedModel):
    runs: list[Timing]


class Estimate(NamedTuple):
    """Of a run, from `runs` earlier ones. seconds: by phase; those of sampling scale with arithmetic, of decoding with pixels.

    memory_bytes: the largest peak of runs of the same preset and length, None where there is none. same_preset: whether the runs
    were of the same preset.
    """

    seconds: dict[str, float]
    memory_bytes: int | None
    runs: int
    same_preset: bool

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def _path() -> Path:
    return cache_folder("timings") / FILE


def _setup(plan: Plan, settings: ModelSettings) -> list[str]:
    model = {name: getattr(settings, name) for name in SPEED}
    return [plan.spec.name, device_name(settings.device), *(f"{name}={value}" for name, value in model.items())]


def _pixels(plan: Plan) -> int:
    return plan.written_px * plan.size[0] * plan.size[1]


def _runs() -> list[Timing]:
    """The runs on file; none where there is no file, or one of another version."""
    with contextlib.suppress(OSError, ValidationError, ValueError):
        return _File.model_validate_json(_path().read_text(encoding="utf-8")).runs
    return []


def keep(plan: Plan, settings: ModelSettings, seconds: dict[str, float], memory_bytes: int, log: Callable[[str], None]) -> None:
    """Adds a run that one process made from beginning to end. seconds: by phase, 0 of one that was not run.

    A cache that cannot be written costs a note.
    """
    run = Timing(setup=_setup(plan, settings), preset=plan.preset.name, frames=plan.written_px, flops=cost.total_flops(plan),
                 pixels=_pixels(plan), load_s=seconds["load"] or None, sample_s=seconds["sample"],
                 decode_s=seconds["decode"] or None, memory_bytes=memory_bytes, when=round(time.time()))  # fmt: skip
    try:
        disk.make_folder(_path().parent)
        disk.save_json(_path(), _File(runs=[*_runs(), run][-MOST:]).model_dump(mode="json"))
    except (LonggenError, OSError) as error:
        log(f"note: how long this took could not be kept for later estimates: {getattr(error, 'given', error)}")


def estimate(plan: Plan, settings: ModelSettings) -> Estimate | None:
    """What a run of `plan` is likely to take, from earlier ones; None where there was none like it."""
    setup, flops = _setup(plan, settings), cost.total_flops(plan)
    alike = [run for run in _runs() if run.setup == setup and run.flops > 0]
    own = [run for run in alike if run.preset == plan.preset.name]
    runs = sorted(own or alike, key=lambda run: (max(run.flops / flops, flops / run.flops), -run.when))[:NEAREST] if flops else []
    if not runs:
        return None
    seconds = {"sample": statistics.median(run.sample_s / run.flops for run in runs) * flops}
    if loads := [run.load_s for run in alike if run.load_s is not None]:
        seconds = {"load": statistics.median(loads)} | seconds
    if decodes := [run.decode_s / run.pixels for run in runs if run.decode_s is not None]:
        seconds["decode"] = statistics.median(decodes) * _pixels(plan)
    peaks = [run.memory_bytes for run in own if (run.frames, run.pixels) == (plan.written_px, _pixels(plan))]
    return Estimate(seconds, max(peaks, default=None), len(runs), bool(own))


def sampling_s(plan: Plan, settings: ModelSettings) -> float | None:
    """The seconds of sampling alone by `estimate`."""
    found = estimate(plan, settings)
    return None if found is None else found.seconds["sample"]
