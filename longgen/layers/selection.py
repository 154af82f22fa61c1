"""Resolves `layers = "position-sensitive"` or `"context-sensitive"` in a preset to layer indices.

The verdicts come from, in this order: a probe that is named; the newest cached probe of the same weights at the same length; the
list published for the backbone. `@all`, `@none` and `@random:SEED` after a preset's name are the controls of FreeLOC's ablation:
every layer, no layer, and the verdicts assigned to layers at random.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longgen import frames
from longgen.backbones.spec import BackboneSpec
from longgen.errors import MissingError, UsageError
from longgen.layers.fingerprint import fingerprint
from longgen.layers.probe_file import SENSITIVITIES, VERDICT_OF, Probe, cached_probes, read
from longgen.preset import Preset
from longgen.technique import VERDICTS
from longgen.units import count_label

CONTROL = re.compile(r"probed|all|none|random(:\d{1,9})?")
PUBLISHED = "published"


def split_name(name: str) -> tuple[str, str | None]:
    """`freeloc@random:1` as the preset's name and the control after it, or None."""
    base, at, control = name.rpartition("@")
    return (base, control) if at and CONTROL.fullmatch(control) else (name, None)


def resolve_layers(
    preset: Preset,
    spec: BackboneSpec,
    control: str | None = None,
    probe: str | None = None,
    lora: tuple[str, ...] = (),
    pictured: bool = False,
) -> tuple[Preset, tuple[str, ...]]:
    """`preset` with explicit layer indices, and notes that say where they come from; unchanged if it names no verdicts.

    probe: a probe file or its folder, or `published`. pictured: whether the video starts from a picture: a probe whose runs did
    too comes first then, and last otherwise; a note says where it is of the other kind. Raises UsageError for a probe of other
    weights or another length.
    """
    if control is not None and not CONTROL.fullmatch(control):
        raise UsageError(f"invalid --layers {control!r}", expected="probed, all, none, random or random:SEED", hint="pass one")
    if not uses_probe(preset):
        if control is None and probe is None:
            return preset, ()
        option = f"--layers {control}" if control is not None else f"--probe {probe}"
        raise UsageError(f"{option}: {preset.name} does not select its layers by a probe", expected="a preset that does, such as "
                         "freeloc", hint="leave it out, or add --set technique.layers=position-sensitive")  # fmt: skip
    if control is not None:
        preset = preset.model_copy(update={"name": f"{preset.name}@{control}"})
    if control in ("all", "none"):
        layers = tuple(range(spec.layers)) if control == "all" else ()
        ignored = () if probe is None else (f"--probe {probe} is ignored: the layers are {control}",)
        return _with_layers(preset, dict.fromkeys(VERDICTS, layers)), (f"layers: {control}, regardless of any probe", *ignored)
    verdicts, origin = _verdicts(preset, spec, probe, lora, pictured)
    if verdicts is None:
        return preset, ()  # the plan rejects it, and says what to do
    if control is not None and control.startswith("random"):
        seed = int(control.partition(":")[2] or 0)
        permutation = np.random.default_rng(seed).permutation(spec.layers)
        verdicts = {name: tuple(sorted(int(permutation[layer]) for layer in layers)) for name, layers in verdicts.items()}
        origin = f"assigned at random (seed {seed}), as many as {origin}"
    used = [t.layers for t in preset.techniques if isinstance(t.layers, str) and t.layers in verdicts]
    lists = ", ".join(f"{name} {count_label(verdicts[name], spec.layers)}" for name in dict.fromkeys(used))
    return _with_layers(preset, verdicts), (f"layers: {lists}; {origin}",)


def uses_probe(preset: Preset) -> bool:
    """Whether `preset` selects layers by a probe's verdicts."""
    return any(technique.layers in VERDICTS for technique in preset.techniques)


def probe_missing(preset: Preset, spec: BackboneSpec, lora: tuple[str, ...] = ()) -> bool:
    """Whether `preset` needs a probe of `spec` and there is neither a cached one for its length nor a published list."""
    frames_px = _frames_px(preset, spec)
    return uses_probe(preset) and not spec.verdicts and all(p.settings.frames != frames_px for p, _ in cached_probes(spec, lora))


def _frames_px(preset: Preset, spec: BackboneSpec) -> int:
    return frames.round_up(preset.sample_on(spec).frames or spec.native_px, spec.stride_t)


def _with_layers(preset: Preset, verdicts: Mapping[str, tuple[int, ...]]) -> Preset:
    techniques = tuple(
        t.model_copy(update={"layers": verdicts[t.layers]}) if isinstance(t.layers, str) and t.layers in verdicts else t
        for t in preset.techniques
    )
    return preset.model_copy(update={"techniques": techniques})


def _verdicts(
    preset: Preset, spec: BackboneSpec, probe: str | None, lora: tuple[str, ...], pictured: bool
) -> tuple[Mapping[str, tuple[int, ...]] | None, str]:
    """Layers by verdict and their origin in words; None if there is neither a probe nor a published list."""
    frames_px = _frames_px(preset, spec)
    hint = f"longgen probe --backbone {spec.name} --frames {frames_px}, or --probe run"
    chosen: tuple[Probe, str] | None = None
    if probe is None:
        cached = cached_probes(spec, lora)
        cached.sort(key=lambda entry: (entry[0].settings.conditions is not None) != pictured)  # else as they were, newest first
        for candidate, path in cached:
            if chosen is None and candidate.settings.frames == frames_px:
                short = f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
                chosen = candidate, f"by the {candidate.settings.mode} probe in {short}"
        if chosen is None and cached and not spec.verdicts:
            lengths = ", ".join(str(length) for length in sorted({candidate.settings.frames for candidate, _ in cached}))
            raise UsageError(f"{spec.name} was probed for {lengths} frames, and this video has {frames_px}",
                             expected="a probe for the same length", hint=hint)  # fmt: skip
    elif probe != PUBLISHED:
        path = Path(probe)
        named = read(path / "probe.json" if path.is_dir() else path)
        chosen = named, f"by the probe {path}{_check(named, path, spec, frames_px, lora, hint)}"
    elif not spec.verdicts:
        raise UsageError(f"--probe published: no list of sensitive layers has been published for {spec.name}",
                         expected="a backbone with a published list (wan2.1-1.3b)",
                         hint="--probe run, or longgen probe first")  # fmt: skip
    if chosen is None:
        return (spec.verdicts or None), "by the published list"
    probed, origin = chosen
    if (probed.settings.conditions is not None) != pictured:
        origin += ", whose runs started from text alone" if pictured else ", whose runs started from a picture"
    return {VERDICT_OF[sensitivity]: probed.sensitive(sensitivity) for sensitivity in SENSITIVITIES}, origin


def _check(probe: Probe, path: Path, spec: BackboneSpec, frames_px: int, lora: tuple[str, ...], hint: str) -> str:
    """Raises UsageError if `probe` is of other weights or another length; notes it if the weights cannot be compared."""
    try:
        weights = fingerprint(spec, lora)
    except MissingError:
        weights = ""
    for differs, given, expected in (
        (len(probe.layers) != spec.layers,
         f"of {probe.backbone} with {len(probe.layers)} layers, {spec.name} has {spec.layers}", f"of {spec.name}"),
        (weights and probe.weights != weights, f"of other weights: {probe.backbone}, fingerprint {probe.weights[:12]}, but "
         f"{spec.name} has {weights[:12]}", "of the same weights"),
        (probe.settings.frames != frames_px,
         f"for {probe.settings.frames} frames, and this video has {frames_px}", "for the same length"),
    ):  # fmt: skip
        if differs:
            raise UsageError(f"--probe {path} is {given}", expected=f"a probe {expected}", hint=hint)
    return "" if weights else f" (the weights of {spec.name} are not on this machine, so they were not compared)"
