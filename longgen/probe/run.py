"""Runs a whole probe from its settings to probe.json: returns a cached one, or resumes or starts the measurement."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from longgen import __version__, disk, progress
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import RELATIVE_POSITIONS, BackboneSpec
from longgen.conditions import NOTHING, Conditions
from longgen.device import device_name
from longgen.errors import MissingError, UsageError
from longgen.layers.fingerprint import fingerprint
from longgen.layers.probe_file import Probe, ProbeSettings, ScoreName, cached_probes, probe_folder, read
from longgen.out_of_memory import translate_oom
from longgen.pipelines import loading
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.token_limit import cut_notes, tokenizer_of
from longgen.probe.classify import classify
from longgen.probe.heads import group_heads
from longgen.probe.measure import PartialResults, measure
from longgen.progress import Log, OnProgress, memory_bytes
from longgen.resolve import PlanRequest, resolve


def probe(
    spec: BackboneSpec,
    model_settings: ModelSettings,
    settings: ProbeSettings,
    metric: ScoreName | None = None,
    threshold: float | None = None,
    top: int | None = None,
    again: bool = False,
    report: OnProgress = progress.no_report,
    log: Log = progress.no_report,
    conditions: Conditions = NOTHING,
    spread: Callable[[Path], None] | None = None,
) -> tuple[Probe, Path]:
    """The probe of `spec` with `settings` and its path in the cache; measured if it is not cached, or if `again`.

    metric, threshold, top: how scores become verdicts, which needs no measuring; the metric is by default the change of the latent
    when a layer is modified or, in a quick probe, of attention alone. conditions: what `settings` were made with. spread: makes
    runs elsewhere, whose results it leaves in the folder that it is given. Raises UsageError for an invalid combination.
    """
    metric = metric or ("latent" if settings.mode == "full" else "attention")
    _check_rule(spec, settings, metric, threshold, top)

    @cache
    def load_model() -> PipelineBackbone:
        with translate_oom("loading the model", model_settings, "or a smaller --backbone"):
            model = loading.load(spec, model_settings)
        for note in [
            *model.notes,
            *cut_notes(resolve(PlanRequest("direct", spec, conditions=conditions)), settings.prompts, tokenizer_of(model)),
        ]:
            log(f"note: {note}")
        return model

    try:
        weights = fingerprint(spec, model_settings.lora)
    except MissingError:
        load_model()  # downloads them
        weights = fingerprint(spec, model_settings.lora)
    folder = probe_folder(weights, settings)
    path, results = folder / "probe.json", PartialResults(folder / "parts")
    with disk.held(folder / disk.LOCK, f"the probe in {folder}"):
        if again:
            results.clear()
        cached = read(path) if path.is_file() and not again else None
        if cached is None:
            start, device = time.monotonic(), model_settings.device
            if spread is not None:
                spread(results.folder)
            runs, effective_ranks = measure(load_model, spec, settings, results, model_settings, report, conditions)
            costs: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "peak_memory_bytes": memory_bytes(device),
                     "device": device_name(device)}  # fmt: skip
        else:
            log(f"already measured: {path}")
            runs, costs = cached.runs, cached.model_dump(include={"seconds", "peak_memory_bytes", "device"})
            effective_ranks = {
                window: [layer.effective_rank[window] for layer in cached.layers] for window in cached.layers[0].effective_rank
            }
        fields = classify(runs, effective_ranks, metric, threshold, top)
        if RELATIVE_POSITIONS not in spec.capabilities:
            fields["warnings"].append(
                f"{spec.name} has no rotary time positions: there is nothing to shift, so no layer is position-sensitive"
            )
        if settings.mode == "quick":
            fields["agreement"] = next(
                (other.agreement for other, _ in cached_probes(spec, model_settings.lora)
                 if other.settings.mode == "full" and other.settings.frames == settings.frames),
                fields["agreement"],
            )  # fmt: skip
        result = Probe(
            longgen=__version__, backbone=spec.name, weights=weights, settings=settings, runs=runs,
            heads=group_heads(runs), **costs, **fields,
        )  # fmt: skip
        disk.make_folder(folder)
        disk.save_json(path, result.as_dict())
        os.utime(path)
        results.clear()
        return result, path


def _check_rule(spec: BackboneSpec, settings: ProbeSettings, metric: ScoreName, threshold: float | None, top: int | None) -> None:
    """Raises UsageError where scores cannot become verdicts in this way."""
    for wrong, given, expected, hint in (
        (settings.mode == "quick" and metric != "attention",
         f"--quick with --metric {metric}: a quick probe measures attention alone", "--metric attention", "leave --quick out"),
        (not math.isfinite(threshold or 0), f"--threshold {threshold} is not a score", "a number of 0 or more", "leave it out"),
        (None not in (top, threshold), "--top cannot be combined with --threshold", "one of them", "leave one out"),
        ((top or 0) > spec.layers, f"--top {top}: {spec.name} has {spec.layers} layers", f"0 to {spec.layers}", "pass fewer"),
    ):  # fmt: skip
        if wrong:
            raise UsageError(given, expected, hint)
