"""Runs the generations of a probe: ordinary ones whose attention is recorded and, in full mode, one per modification of each layer.

    native    at the native length, recorded: the logit change of every layer, keys shifted by -2 T0, -T0, T0 and 2 T0     [2nd]
    long      at the long length, recorded: the entropy change within a window of T0, the effective ranks within T0, 2 T0, 4 T0
              and, with `heads`, what heads see of a rollout's past
    shift     at the native length, the keys of one layer shifted: how the final latent and the video differ from `native`
    window    at the long length, a window of T0 in one layer: how they differ from `long`

A quick probe has only the first two. The change of a latent is ||x' - x|| / ||x||; that of a video the mean over the metrics m of
`longgen.metrics` of |m' - m| / (|m'| + |m|) [derived]. Attention is recorded in STEPS evenly spaced steps [derived].

Every run is saved when it is done, so that an interrupted probe resumes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longgen import arguments, checkpoint, cost, disk, frames, planner, preset
from longgen.backbones import tiny_grammar
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import RELATIVE_POSITIONS, BackboneSpec
from longgen.conditions import NOTHING, Conditions
from longgen.context.window import Window
from longgen.errors import LonggenError, UsageError
from longgen.layers.probe_file import ProbeRun, ProbeSettings, ScoreName
from longgen.loops import PROMPTS, sample
from longgen.loops.denoiser import Denoiser
from longgen.metrics.score import Scorer
from longgen.out_of_memory import translate_oom
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.planner import LONG
from longgen.probe.instrument import AttentionRecorder, local_window, modify_layer, observable, recording, shift_keys
from longgen.progress import OnProgress, Phase

STEPS = 4  # in which attention is recorded
MOST_STEPS = 10  # of a probing run, unless --steps says otherwise
WINDOWS = (1, 2, 4)
ALL = 1_000_000  # latent frames: a window that hides nothing
RERUN: tuple[ScoreName, ...] = ("latent", "video")
Scores = dict[ScoreName, list[float]]
Values = Mapping[str, float | None]


def make_settings(
    spec: BackboneSpec,
    mode: Literal["full", "quick"],
    frames_px: int | None,
    steps: int | None,
    prompts: list[str] | None,
    seeds: tuple[int, ...],
    size: tuple[int, int] | None,
    dtype: str,
    lora: tuple[str, ...],
    conditions: Conditions = NOTHING,
    heads: bool = False,
) -> ProbeSettings:
    """The settings of a probe of `spec`, with defaults for what is None. Raises UsageError."""
    if heads and not spec.causal:
        raise UsageError(f"--heads: {spec.name} denoises a whole clip at once, where no frame is past to another",
                         expected="a causal backbone, such as tiny-causal", hint="leave --heads out")  # fmt: skip
    prompts, seeds = None if prompts is None else arguments.texts("prompts", prompts), arguments.seeds(seeds)
    frames_px = frames_px or frames.pixel_frames(LONG * spec.native_lat - LONG + 1, spec.stride_t)
    sample = preset.Sample(frames=frames_px, size=size, steps=steps or min(spec.steps, MOST_STEPS))
    long = planner.build(_stock_preset(spec, sample), spec, conditions=conditions)
    if long.frames_lat <= spec.native_lat:
        raise UsageError(f"--frames {long.frames_px} is not longer than the training length of {spec.name}: no context to cut",
                         expected=f"more than {spec.native_px} frames", hint="leave --frames and --duration out")  # fmt: skip
    defaults = [words.prompt for words in tiny_grammar.HELD_OUT[-2:]] if spec.built_in else list(PROMPTS)
    multiples = (-2, -1, 1, 2) if RELATIVE_POSITIONS in spec.capabilities else ()
    return ProbeSettings(
        mode=mode, frames=long.frames_px, native_frames=spec.native_px, size=long.size, steps=long.steps,
        observed_steps=tuple(np.unique(np.linspace(0, long.steps - 1, STEPS).round().astype(int)).tolist()),
        guidance_scale=long.sample.guidance_scale or 0.0, shifts=tuple(multiple * spec.native_lat for multiple in multiples),
        windows=WINDOWS, prompts=tuple(prompts or defaults), seeds=seeds, dtype=dtype, lora=lora, conditions=conditions.as_dict(),
        heads=heads or None,
    )  # fmt: skip


def _stock_preset(spec: BackboneSpec, sample: preset.Sample) -> preset.Preset:
    """No technique; for a causal backbone, attention over the whole history."""
    return preset.Preset(name="direct", sample=sample, techniques=(Window(frames=ALL),) if spec.causal else ())


@dataclass
class PartialResults:
    """Finished runs of a probe under way: a folder with a JSON file per run, and the latents that other runs are compared with."""

    folder: Path

    def has(self, name: str) -> bool:
        try:
            self.load(name)
        except LonggenError:  # missing or damaged
            return False
        return True

    def load(self, name: str) -> dict[str, Any]:
        return disk.load_record(self.folder / f"{name}.json")

    def save(self, name: str, values: dict[str, Any]) -> None:
        disk.save_record(self.folder / f"{name}.json", values)

    def load_latents(self, name: str) -> Tensor:
        return checkpoint.load_tensors(self.folder / f"{name}.safetensors")[0]["latents"]

    def save_latents(self, name: str, latents: Tensor) -> None:
        checkpoint.save_tensors(self.folder / f"{name}.safetensors", {"latents": latents}, {})

    def clear(self) -> None:
        for path in (*self.folder.glob("*.json"), *self.folder.glob("*.safetensors")):
            path.unlink(missing_ok=True)
        if self.folder.is_dir():
            self.folder.rmdir()


@dataclass
class ProbeRunner:
    """Executes the runs of a probe. load_model: called only if a run is left to do. phase: counts runs.

    cost: FLOPs of a run by its pixel frames; left: of all runs to come, for the time estimate. Videos are scored in a thread of
    their own while the model generates the next.
    """

    load_model: Callable[[], PipelineBackbone]
    settings: ProbeSettings
    results: PartialResults
    cost: dict[int, float]
    left: float
    phase: Phase
    runs: int = 0
    computed: float = 0.0
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    scoring: Future[None] | None = None

    def record(self, name: str, plan: Plan, prompt: str, seed: int, shifts: tuple[int, ...], windows: tuple[int, ...]) -> None:
        """A generation by `plan` whose attention is recorded."""
        if not self.results.has(name):
            model, steps = self.load_model(), self.settings.observed_steps
            heads = bool(windows and self.settings.heads)
            recorder = AttentionRecorder(model, plan, steps, shifts, windows, heads)
            with recording(recorder):
                latents = self._sample(model, observable(plan, steps), prompt, seed)
            scores: dict[str, Any] = {}
            if shifts:
                scores["position"] = recorder.relative_change(*(f"shift {shift}" for shift in shifts))
            if windows:
                scores["context"] = recorder.relative_change("window")
                scores["effective_rank"] = {f"{window}x": recorder.effective_rank(window) for window in windows}
            if heads:
                scores["heads"] = recorder.head_shares()
            if self.settings.mode == "full":
                self.results.save_latents(name, latents)
                self._score(model, plan, latents, lambda metrics: self.results.save(name, scores | {"metrics": metrics}))
            else:
                self.results.save(name, scores)
        self._finish_run(plan)

    def compare(self, name: str, plan: Plan, prompt: str, seed: int, reference: str) -> None:
        """A generation by `plan`, and how far it is from the recorded one called `reference`: `latent` and `video`."""
        if not self.results.has(name):
            model = self.load_model()
            latents = self._sample(model, plan, prompt, seed)
            original = self.results.load_latents(reference).to(latents)
            distance = float((latents - original).norm() / original.norm())

            def save(metrics: Values) -> None:
                video = _relative_difference(metrics, self.results.load(reference)["metrics"])
                self.results.save(name, {"latent": distance, "video": video})

            self._score(model, plan, latents, save)
        self._finish_run(plan)

    def _score(self, model: PipelineBackbone, plan: Plan, latents: Tensor, save: Callable[[Values], None]) -> None:
        """Scores the video in the background, once the one before is done."""
        batches, scorer = [*model.decode(latents)], Scorer(plan.sample.fps or plan.spec.fps)

        def score() -> None:
            for frames_px in batches:
                scorer.add(frames_px)
            save(scorer.result().values)

        self.wait()
        self.scoring = self.thread.submit(score)

    def wait(self) -> None:
        """Waits for the video being scored; re-raises what went wrong there."""
        if self.scoring is not None:
            self.scoring.result()

    def _sample(self, model: PipelineBackbone, plan: Plan, prompt: str, seed: int) -> Tensor:
        cost = self.cost[plan.frames_px]

        generator = torch.Generator().manual_seed(seed)
        denoiser = Denoiser(model, plan, prompt, model.given(plan, generator))
        latents = sample(denoiser, denoiser.initial_noise(generator), generator,
                         lambda state: self._report(cost * state.done / plan.rounds))  # fmt: skip
        self.computed += cost
        return latents

    def _finish_run(self, plan: Plan) -> None:
        self.runs, self.left = self.runs + 1, self.left - self.cost[plan.frames_px]
        self._report()

    def _report(self, running: float = 0.0) -> None:
        """running: FLOPs done of the current run."""
        self.phase.at(self.runs, self.computed + running, self.left - running)


def measure(
    load_model: Callable[[], PipelineBackbone],
    spec: BackboneSpec,
    settings: ProbeSettings,
    results: PartialResults,
    model_settings: ModelSettings,
    report: OnProgress,
    conditions: Conditions = NOTHING,
) -> tuple[list[ProbeRun], dict[str, list[float]]]:
    """The scores of every prompt and seed, and the mean effective ranks by window, one per layer.

    conditions: those that `settings` were made with.
    """
    run_samples(load_model, spec, settings, results, model_settings, report, conditions)
    full, layers, shifts = settings.mode == "full", range(spec.layers), settings.shifts
    runs, ranks = [], []
    for name, number, _, seed in samples_of(settings):
        at_native, at_long = (results.load(f"{name}-{length}") for length in ("native", "long"))
        position: Scores = {"attention": at_native.get("position", [0.0] * spec.layers)}
        context: Scores = {"attention": at_long["context"]}
        for score in RERUN if full else ():
            by_shift = [[results.load(f"{name}-shift{by:+}-{layer}")[score] for by in shifts] for layer in layers]
            position[score] = [float(np.mean(values)) if values else 0.0 for values in by_shift]
            context[score] = [results.load(f"{name}-window-{layer}")[score] for layer in layers]
        scores: Any = {"position": position, "context": context}
        runs.append(ProbeRun(prompt=number, seed=seed, scores=scores, heads=at_long.get("heads")))
        ranks.append(at_long["effective_rank"])
    return runs, {window: np.mean([by_window[window] for by_window in ranks], axis=0).tolist() for window in ranks[0]}


def samples_of(settings: ProbeSettings) -> list[tuple[str, int, str, int]]:
    """Of each prompt and seed a name, the prompt's number, the prompt and the seed; they can be measured apart."""
    return [(f"{number}-{seed}", number, prompt, seed) for number, prompt in enumerate(settings.prompts) for seed in settings.seeds]


def run_samples(
    load_model: Callable[[], PipelineBackbone],
    spec: BackboneSpec,
    settings: ProbeSettings,
    results: PartialResults,
    model_settings: ModelSettings,
    report: OnProgress,
    conditions: Conditions = NOTHING,
    only: Collection[str] | None = None,
) -> None:
    """The runs of all samples, or of those whose names are in `only`, that are not in `results`."""
    disk.make_folder(results.folder)
    native, long = (
        planner.build(
            _stock_preset(spec, preset.Sample(frames=count, size=settings.size, steps=settings.steps)), spec, conditions=conditions
        )
        for count in (settings.native_frames, settings.frames)
    )
    full, shifts = settings.mode == "full", settings.shifts
    layers = range(spec.layers) if full else range(0)  # that are modified one by one
    flops = {plan.frames_px: cost.ratio(plan) * cost.flops(plan, None, plan.grid) * plan.steps for plan in (native, long)}
    counts = {native.frames_px: 1 + len(layers) * len(shifts), long.frames_px: 1 + len(layers)}
    samples = [sample for sample in samples_of(settings) if only is None or sample[0] in only]
    left = len(samples) * sum(flops[frames_px] * count for frames_px, count in counts.items())
    phase = Phase("probe", len(samples) * sum(counts.values()), model_settings.device, report)
    runner = ProbeRunner(load_model, settings, results, flops, left, phase)
    shift_of = {f"shift{by:+}": shift_keys(by) for by in shifts}
    remains = "finished runs are kept: the same command goes on"
    try:
        with translate_oom("probing", model_settings, remains, long):
            for name, _, prompt, seed in samples:
                runner.record(f"{name}-native", native, prompt, seed, shifts, ())
                runner.record(f"{name}-long", long, prompt, seed, (), settings.windows)
                for layer, (label, shift) in itertools.product(layers, shift_of.items()):
                    runner.compare(f"{name}-{label}-{layer}", modify_layer(native, layer, shift), prompt, seed, f"{name}-native")
                for layer in layers:
                    runner.compare(f"{name}-window-{layer}", modify_layer(long, layer, local_window), prompt, seed, f"{name}-long")
            runner.wait()
    finally:
        runner.thread.shutdown()


def _relative_difference(first: Values, second: Values) -> float:
    """The mean of |m' - m| / (|m'| + |m|), 0 to 1, over the metrics that both have."""
    pairs = [(a, b) for a, b in ((first[name], second[name]) for name in first) if a is not None and b is not None]
    return float(np.mean([abs(a - b) / (abs(a) + abs(b)) if a != b else 0.0 for a, b in pairs])) if pairs else 0.0
