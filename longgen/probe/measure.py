"""Runs a probe: ordinary generations that are watched, and in full mode one more for each change of each layer.

    native    at the native length, watched: the logit change of every layer, keys moved by -2 T0, -T0, T0 and 2 T0     [2nd]
    long      at the long length, watched: the entropy change within a window of T0, the effective ranks within T0, 2 T0, 4 T0
    shift     at the native length, the keys of one layer moved: how the final latent and the video differ from `native`
    window    at the long length, a window of T0 in one layer: how they differ from `long`

A quick probe has the first two only. The change of a latent is ||x' - x|| / ||x||; that of a video the mean over the metrics m of
`longgen.metrics` of |m' - m| / (|m'| + |m|) [derived]. Attention is watched in STEPS steps, evenly apart [derived].

Every run is kept as it is done, so that a probe that was stopped goes on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longgen import arguments, checkpoint, cost, disk, frames, planner, preset
from longgen.backbones.spec import RELATIVE_POSITIONS, BackboneSpec
from longgen.backbones.tiny import grammar
from longgen.context.window import Window
from longgen.errors import LonggenError, UsageError
from longgen.layers.probe_file import Run, ScoreName, Settings
from longgen.loops import PROMPTS, sample
from longgen.loops.denoiser import Denoiser
from longgen.loops.state import State
from longgen.metrics.score import Scorer
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.planner import LONG
from longgen.probe.instrument import Watch, changed, shifted, shown, watching, windowed
from longgen.progress import Progress, memory_bytes

STEPS = 4  # in which attention is watched
MOST_STEPS = 10  # of a probing run, unless --steps says otherwise
WINDOWS = (1, 2, 4)
ALL = 1_000_000  # latent frames: a window that hides nothing
RERUN: tuple[ScoreName, ...] = ("latent", "video")
Scores = dict[ScoreName, list[float]]
Values = Mapping[str, float | None]


def settings_for(
    spec: BackboneSpec,
    mode: Literal["full", "quick"],
    frames_px: int | None,
    steps: int | None,
    prompts: list[str] | None,
    seeds: tuple[int, ...],
    size: tuple[int, int] | None,
    dtype: str,
    lora: tuple[str, ...],
) -> Settings:
    """What a probe of `spec` runs, with what is not given filled in. Raises UsageError."""
    prompts, seeds = None if prompts is None else arguments.texts("prompts", prompts), arguments.seeds(seeds)
    asked = frames_px or frames.pixel_frames(LONG * spec.native_lat - LONG + 1, spec.stride_t)
    sample = preset.Sample(frames=asked, size=size, steps=steps or min(spec.steps, MOST_STEPS))
    long = planner.build(_base(spec, sample), spec)
    if long.frames_lat <= spec.native_lat:
        raise UsageError(f"--frames {long.frames_px} is not longer than what {spec.name} was trained on: no context to cut",
                         expected=f"more than {spec.native_px} frames", hint="leave --frames out")  # fmt: skip
    own = [words.prompt for words in grammar.HELD_OUT[-2:]] if spec.built_in else list(PROMPTS)
    moves = (-2, -1, 1, 2) if RELATIVE_POSITIONS in spec.capabilities else ()
    return Settings(
        mode=mode, frames=long.frames_px, native_frames=spec.native_px, size=long.size, steps=long.steps,
        observed_steps=tuple(np.unique(np.linspace(0, long.steps - 1, STEPS).round().astype(int)).tolist()),
        guidance_scale=long.sample.guidance_scale or 0.0, shifts=tuple(move * spec.native_lat for move in moves), windows=WINDOWS,
        prompts=tuple(prompts or own), seeds=seeds, dtype=dtype, lora=lora,
    )  # fmt: skip


def _base(spec: BackboneSpec, sample: preset.Sample) -> preset.Preset:
    """No technique; of a causal backbone the whole history."""
    return preset.Preset(name="direct", sample=sample, techniques=(Window(frames=ALL),) if spec.causal else ())


@dataclass
class Parts:
    """What is done of a probe: a folder with a JSON file for each run, and the latents of those that others are compared with."""

    folder: Path

    def get(self, name: str) -> dict[str, Any] | None:
        try:
            return self.made(name)
        except LonggenError:  # not there, or damaged
            return None

    def made(self, name: str) -> dict[str, Any]:
        """What `put` wrote."""
        return disk.load_record(self.folder / f"{name}.json")

    def put(self, name: str, values: dict[str, Any]) -> None:
        disk.make_folder(self.folder)
        disk.save_record(self.folder / f"{name}.json", values)

    def put_latents(self, name: str, latents: Tensor) -> None:
        disk.make_folder(self.folder)
        checkpoint.save_tensors(self.folder / f"{name}.safetensors", {"latents": latents}, {})

    def latents(self, name: str) -> Tensor:
        return checkpoint.load_tensors(self.folder / f"{name}.safetensors")[0]["latents"]

    def clear(self) -> None:
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*.safetensors")):
            path.unlink(missing_ok=True)
        if self.folder.is_dir():
            self.folder.rmdir()


@dataclass
class Probing:
    """A probe under way. load: the backbone, called where something is left to run.

    cost: arithmetic of a run by its pixel frames; left: of all that are to come, for the time to go; runs: of `total`.
    Videos are measured in a thread of their own, while the model makes the next.
    """

    load: Callable[[], PipelineBackbone]
    settings: Settings
    parts: Parts
    total: int
    cost: dict[int, float]
    left: float
    device: str
    report: Callable[[Progress], None]
    runs: int = 0
    computed: float = 0.0
    began: float = field(default_factory=time.monotonic)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    measuring: Future[None] | None = None

    def watched(self, name: str, made: Plan, prompt: str, seed: int, shifts: tuple[int, ...], windows: tuple[int, ...]) -> None:
        """A generation by `made` whose attention is read."""
        if self.parts.get(name) is None:
            model, steps = self.load(), self.settings.observed_steps
            watch = Watch(model, made, steps, shifts, windows)
            with watching(watch):
                latents = self._sampled(model, shown(made, steps), prompt, seed)
            found: dict[str, Any] = {"position": watch.change(*(f"shift {shift}" for shift in shifts))} if shifts else {}
            if windows:
                found["context"] = watch.change("window")
                found["effective_rank"] = {f"{window}x": watch.effective_rank(window) for window in windows}
            if self.settings.mode == "full":
                self.parts.put_latents(name, latents)
                self._measure(model, made, latents, lambda metrics: self.parts.put(name, found | {"metrics": metrics}))
            else:
                self.parts.put(name, found)
        self._passed(made)

    def compared(self, name: str, made: Plan, prompt: str, seed: int, like: str) -> None:
        """A generation by `made`, and how far it is from the watched one called `like`: `latent` and `video`."""
        if self.parts.get(name) is None:
            model = self.load()
            latents = self._sampled(model, made, prompt, seed)
            before = self.parts.latents(like).to(latents)
            far = float((latents - before).norm() / before.norm())

            def put(metrics: Values) -> None:
                self.parts.put(name, {"latent": far, "video": _apart(metrics, self.parts.made(like)["metrics"])})

            self._measure(model, made, latents, put)
        self._passed(made)

    def _measure(self, model: PipelineBackbone, made: Plan, latents: Tensor, put: Callable[[Values], None]) -> None:
        """Has the metrics of a video `put`, once those of the one before are."""
        frames_px, scorer = [*model.decode(latents)], Scorer(made.sample.fps or made.spec.fps)

        def score() -> None:
            for some in frames_px:
                scorer.add(some)
            put(scorer.result().values)

        self.finish()
        self.measuring = self.thread.submit(score)

    def finish(self) -> None:
        """Waits for the video that is being measured; raises what went wrong there."""
        if self.measuring is not None:
            self.measuring.result()

    def _sampled(self, model: PipelineBackbone, made: Plan, prompt: str, seed: int) -> Tensor:
        cost = self.cost[made.frames_px]

        def on_step(state: State) -> None:
            self.at(cost * state.done / made.rounds)

        generator = torch.Generator().manual_seed(seed)
        denoiser = Denoiser(model, made, prompt)
        latents = sample(denoiser, denoiser.initial_noise(generator), generator, on_step)
        self.computed += cost
        return latents

    def _passed(self, made: Plan) -> None:
        self.runs, self.left = self.runs + 1, self.left - self.cost[made.frames_px]
        self.at(0.0)

    def at(self, running: float) -> None:
        """Reports; `running`: the arithmetic done of the run under way."""
        elapsed, computed = time.monotonic() - self.began, self.computed + running
        eta = elapsed / computed * (self.left - running) if computed else None
        self.report(Progress("probe", self.runs, self.total, elapsed, eta, memory_bytes(self.device)))


def measure(
    load: Callable[[], PipelineBackbone],
    spec: BackboneSpec,
    settings: Settings,
    parts: Parts,
    device: str,
    report: Callable[[Progress], None],
) -> tuple[list[Run], dict[str, list[float]]]:
    """The scores of every prompt and seed, and the mean effective ranks, by window one for each layer."""
    native, long = (
        planner.build(_base(spec, preset.Sample(frames=count, size=settings.size, steps=settings.steps)), spec)
        for count in (settings.native_frames, settings.frames)
    )
    full, layers, shifts = settings.mode == "full", range(spec.layers), settings.shifts
    flops = {plan.frames_px: cost.ratio(plan) * cost.flops(plan, None, plan.grid) * plan.steps for plan in (native, long)}
    each = {native.frames_px: 1 + full * len(layers) * len(shifts), long.frames_px: 1 + full * len(layers)}
    times = len(settings.prompts) * len(settings.seeds)
    left = times * sum(flops[frames_px] * count for frames_px, count in each.items())
    probing = Probing(load, settings, parts, times * sum(each.values()), flops, left, device, report)
    probing.at(0.0)
    grid = list(itertools.product(enumerate(settings.prompts), settings.seeds))
    moves = {f"shift{by:+}": shifted(by) for by in shifts}
    try:
        for (number, prompt), seed in grid:
            name = f"{number}-{seed}"
            probing.watched(f"{name}-native", native, prompt, seed, shifts, ())
            probing.watched(f"{name}-long", long, prompt, seed, (), settings.windows)
            for layer, (label, move) in itertools.product(layers if full else (), moves.items()):
                probing.compared(f"{name}-{label}-{layer}", changed(native, layer, move), prompt, seed, f"{name}-native")
            for layer in layers if full else ():
                probing.compared(f"{name}-window-{layer}", changed(long, layer, windowed), prompt, seed, f"{name}-long")
        probing.finish()
    finally:
        probing.thread.shutdown()
    runs, ranks = [], []
    for (number, _), seed in grid:
        name = f"{number}-{seed}"
        near, far = (parts.made(f"{name}-{length}") for length in ("native", "long"))
        position: Scores = {"attention": near.get("position", [0.0] * len(layers))}
        context: Scores = {"attention": far["context"]}
        for score in RERUN if full else ():
            moved = [[parts.made(f"{name}-{label}-{layer}")[score] for label in moves] for layer in layers]
            position[score] = [float(np.mean(some)) if some else 0.0 for some in moved]
            context[score] = [parts.made(f"{name}-window-{layer}")[score] for layer in layers]
        runs.append(Run(prompt=number, seed=seed, scores={"position": position, "context": context}))
        ranks.append(far["effective_rank"])
    return runs, {window: np.mean([one[window] for one in ranks], axis=0).tolist() for window in ranks[0]}


def _apart(one: Values, other: Values) -> float:
    """The mean over metrics of |m' - m| / (|m'| + |m|), 0 to 1; over those that both have."""
    pairs = [(a, b) for a, b in ((one[name], other[name]) for name in one) if a is not None and b is not None]
    return float(np.mean([abs(a - b) / (abs(a) + abs(b)) if a != b else 0.0 for a, b in pairs])) if pairs else 0.0
