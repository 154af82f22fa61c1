"""A probe from its settings to probe.json: what is kept is taken, what is unfinished goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from longgen import __version__, disk
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import RELATIVE_POSITIONS, BackboneSpec
from longgen.errors import MissingError, UsageError
from longgen.layers import store
from longgen.layers.fingerprint import fingerprint
from longgen.layers.probe_file import Probe, ScoreName, Settings, read
from longgen.pipelines import loading
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.token_limit import cut_notes, tokenizer_of
from longgen.probe.classify import judge
from longgen.probe.measure import Parts, measure
from longgen.progress import Progress, memory_bytes
from longgen.resolve import PlanRequest, resolve
from longgen.run import device_name


def probe(
    spec: BackboneSpec,
    model_settings: ModelSettings,
    settings: Settings,
    metric: ScoreName | None = None,
    threshold: float | None = None,
    top: int | None = None,
    again: bool = False,
    report: Callable[[Progress], None] = lambda now: None,
    log: Callable[[str], None] = lambda message: None,
) -> tuple[Probe, Path]:
    """The probe of `spec` with `settings`, and where it is kept; measured where it is not kept, or `again`.

    metric, threshold, top: how scores become verdicts, and they need no measuring; the metric is by default what a change of a
    layer does to the latent, or in a quick probe attention alone. Raises UsageError for what cannot be.
    """
    metric = metric or ("latent" if settings.mode == "full" else "attention")
    if settings.mode == "quick" and metric != "attention":
        raise UsageError(f"--quick with --metric {metric}: a quick probe measures attention alone", expected="--metric attention",
                         hint="leave --quick out")  # fmt: skip
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold} is no score", expected="a number from 0 on", hint="leave it out")
    if top is not None and threshold is not None:
        raise UsageError("--top and --threshold are both given", expected="one of them", hint="leave one out")
    if top is not None and top > spec.layers:
        raise UsageError(f"--top {top}: {spec.name} has {spec.layers} layers", expected=f"0 to {spec.layers}", hint="take fewer")
    loaded: list[PipelineBackbone] = []

    def load() -> PipelineBackbone:
        if not loaded:
            loaded.append(loading.load(spec, model_settings))
            cut = cut_notes(resolve(PlanRequest("direct", spec)), settings.prompts, tokenizer_of(loaded[0]))
            for note in [*loaded[0].notes, *cut]:
                log(f"note: {note}")
        return loaded[0]

    weights = _weights(spec, model_settings, load)
    folder = store.folder_of(weights, settings)
    with disk.held(folder / disk.LOCK, f"the probe in {folder}"):
        return _probe(spec, model_settings, settings, weights, load, folder, metric, threshold, top, again, report, log)


def _probe(
    spec: BackboneSpec,
    model_settings: ModelSettings,
    settings: Settings,
    weights: str,
    load: Callable[[], PipelineBackbone],
    folder: Path,
    metric: ScoreName,
    threshold: float | None,
    top: int | None,
    again: bool,
    report: Callable[[Progress], None],
    log: Callable[[str], None],
) -> tuple[Probe, Path]:
    """`probe`, of the weights with that fingerprint, kept in `folder`."""
    path, parts = folder / "probe.json", Parts(folder / "parts")
    before = read(path) if path.is_file() and not again else None
    if again:
        parts.clear()
    began = time.monotonic()
    if before is None:
        runs, ranks = measure(load, spec, settings, parts, model_settings.device, report)
        took, peak, device = time.monotonic() - began, memory_bytes(model_settings.device), device_name(model_settings.device)
    else:
        log(f"measured before: {path}")
        runs, took, peak, device = before.runs, before.seconds, before.peak_memory_bytes, before.device
        ranks = {name: [layer.effective_rank[name] for layer in before.layers] for name in before.layers[0].effective_rank}
    fields = judge(runs, ranks, metric, threshold, top)
    if RELATIVE_POSITIONS not in spec.capabilities:
        fields["warnings"].append(
            f"{spec.name} has no rotary time positions: there is nothing to shift, and no layer is sensitive to it"
        )
    if settings.mode == "quick":
        fields["agreement"] = next(
            (other.agreement for other, _ in store.probes_of(spec, model_settings.lora)
             if other.settings.mode == "full" and other.settings.frames == settings.frames),
            fields["agreement"],
        )  # fmt: skip
    made = Probe(longgen=__version__, backbone=spec.name, weights=weights, settings=settings, runs=runs, seconds=round(took, 1),
                 peak_memory_bytes=peak, device=device, **fields)  # fmt: skip
    disk.make_folder(folder)
    disk.save_json(path, made.as_dict())
    os.utime(path)
    parts.clear()
    return made, path


def _weights(spec: BackboneSpec, model_settings: ModelSettings, load: Callable[[], PipelineBackbone]) -> str:
    """The fingerprint of the weights; they are loaded, and so downloaded, where they are not here yet."""
    try:
        return fingerprint(spec, model_settings.lora)
    except MissingError:
        load()
        return fingerprint(spec, model_settings.lora)
