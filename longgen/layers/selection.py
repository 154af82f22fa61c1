"""Which layers a preset acts in, where it leaves that to a probe: `layers = "position-sensitive"` or `"context-sensitive"`.

The verdicts are, in this order: those of a probe that is named; of the newest probe that is kept of the same weights at the same
length; of the list published for the backbone. `@all`, `@none` and `@random:SEED` behind a preset's name are the controls of
FreeLOC's ablation: every layer, no layer, and the verdicts dealt to layers at random.
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
from longgen.layers.probe_file import KINDS, Probe, read
from longgen.layers.store import probes_of
from longgen.preset import Preset
from longgen.technique import VERDICTS
from longgen.units import count_label

HOW = re.compile(r"probed|all|none|random(:\d{1,9})?")
PUBLISHED = "published"


def split(name: str) -> tuple[str, str | None]:
    """`freeloc@random:1` as the preset's name and how its layers are chosen; None where it does not say."""
    base, at, how = name.rpartition("@")
    return (base, how) if at and HOW.fullmatch(how) else (name, None)


def chosen(
    preset: Preset, spec: BackboneSpec, how: str | None = None, probe: str | None = None, lora: tuple[str, ...] = ()
) -> tuple[Preset, tuple[str, ...]]:
    """`preset` with its layers written out, and in words where they come from; itself where it leaves nothing to a probe.

    how: see above. probe: a probe's file, or `published`. Raises UsageError for a probe of other weights or another length.
    """
    if how is not None and not HOW.fullmatch(how):
        raise UsageError(
            f"--layers {how!r} is no choice of layers", expected="probed, all, none, random or random:SEED", hint="take one"
        )
    if not asks(preset):
        if how is None and probe is None:
            return preset, ()
        given = f"--layers {how}" if how is not None else f"--probe {probe}"
        raise UsageError(f"{given}: {preset.name} leaves no layers to a probe", expected="a preset that does, as freeloc",
                         hint="leave it out, or --set technique.layers=position-sensitive")  # fmt: skip
    if how is not None:
        preset = preset.model_copy(update={"name": f"{preset.name}@{how}"})
    if how in ("all", "none"):
        wanted = tuple(range(spec.layers)) if how == "all" else ()
        unread = () if probe is None else (f"--probe {probe} is not read: the layers are {how}",)
        return _with(preset, dict.fromkeys(VERDICTS, wanted)), (f"{how} of the layers, whatever a probe says", *unread)
    verdicts, origin = _verdicts(preset, spec, probe, lora)
    if verdicts is None:
        return preset, ()  # the plan refuses it, and says what there is
    if how is not None and how.startswith("random"):
        seed = int(how.partition(":")[2] or 0)
        deal = np.random.default_rng(seed).permutation(spec.layers)
        verdicts = {name: tuple(sorted(int(deal[layer]) for layer in layers)) for name, layers in verdicts.items()}
        origin = f"dealt at random (seed {seed}), as many as {origin}"
    used = [t.layers for t in preset.techniques if isinstance(t.layers, str) and t.layers in verdicts]
    said = ", ".join(f"{name} {count_label(verdicts[name], spec.layers)}" for name in dict.fromkeys(used))
    return _with(preset, verdicts), (f"layers: {said}; {origin}",)


def lacks(preset: Preset, spec: BackboneSpec, lora: tuple[str, ...] = ()) -> bool:
    """Whether `preset` needs a probe of `spec` that is not kept, at its length, and nobody has published a list."""
    frames_px = frames.round_up(preset.sample_on(spec).frames or spec.native_px, spec.stride_t)
    return asks(preset) and not spec.verdicts and all(found.settings.frames != frames_px for found, _ in probes_of(spec, lora))


def asks(preset: Preset) -> bool:
    """Whether `preset` leaves layers to a probe."""
    return any(technique.layers in VERDICTS for technique in preset.techniques)


def _with(preset: Preset, verdicts: Mapping[str, tuple[int, ...]]) -> Preset:
    techniques = tuple(
        one.model_copy(update={"layers": verdicts[one.layers]}) if isinstance(one.layers, str) and one.layers in verdicts else one
        for one in preset.techniques
    )
    return preset.model_copy(update={"techniques": techniques})


def _verdicts(
    preset: Preset, spec: BackboneSpec, probe: str | None, lora: tuple[str, ...]
) -> tuple[Mapping[str, tuple[int, ...]] | None, str]:
    """Layers by verdict, and where they come from, in words; None where nobody has probed."""
    frames_px = frames.round_up(preset.sample_on(spec).frames or spec.native_px, spec.stride_t)
    if probe not in (None, PUBLISHED):
        assert probe is not None
        path = Path(probe)
        found = read(path / "probe.json" if path.is_dir() else path)
        unchecked = _check(found, path, spec, frames_px, lora)
        return _of(found), f"by the probe {path}{unchecked}"
    if probe is None:
        kept = probes_of(spec, lora)
        fitting = [(found, path) for found, path in kept if found.settings.frames == frames_px]
        if fitting:
            found, path = fitting[0]
            return _of(found), f"by the {found.settings.mode} probe in {_at_home(path)}"
        if kept and not spec.verdicts:
            lengths = ", ".join(str(length) for length in sorted({found.settings.frames for found, _ in kept}))
            raise UsageError(f"{spec.name} was probed for {lengths} frames, and this video has {frames_px}",
                             expected="a probe for the same length",
                             hint=f"longgen probe --backbone {spec.name} --frames {frames_px}, or --probe run")  # fmt: skip
    if probe == PUBLISHED and not spec.verdicts:
        raise UsageError(f"--probe published: nobody has published which layers of {spec.name} are sensitive",
                         expected="a backbone with a published list (wan2.1-1.3b)",
                         hint="--probe run, or longgen probe first")  # fmt: skip
    return (spec.verdicts or None), "by the published list"


def _at_home(path: Path) -> str:
    """`path` with ~ for the home of who runs this."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _of(probe: Probe) -> dict[str, tuple[int, ...]]:
    return {f"{kind}-sensitive": probe.sensitive(kind) for kind in KINDS}


def _check(probe: Probe, path: Path, spec: BackboneSpec, frames_px: int, lora: tuple[str, ...]) -> str:
    """Raises UsageError where `probe` is of other weights or another length; says where weights cannot be compared."""
    again = f"longgen probe --backbone {spec.name} --frames {frames_px}, or --probe run"
    if len(probe.layers) != spec.layers:
        raise UsageError(f"--probe {path} is of {probe.backbone} with {len(probe.layers)} layers, {spec.name} has {spec.layers}",
                         expected=f"a probe of {spec.name}", hint=again)  # fmt: skip
    try:
        weights = fingerprint(spec, lora)
    except MissingError:
        weights = ""
    if weights and probe.weights != weights:
        raise UsageError(f"--probe {path} is of other weights: {probe.backbone}, fingerprint {probe.weights[:12]}, and {spec.name} "
                         f"has {weights[:12]}", expected="a probe of the same weights", hint=again)  # fmt: skip
    if probe.settings.frames != frames_px:
        raise UsageError(f"--probe {path} is for {probe.settings.frames} frames, and this video has {frames_px}",
                         expected="a probe for the same length", hint=again)  # fmt: skip
    return "" if weights else f" (the weights of {spec.name} are not on this machine: not compared)"
