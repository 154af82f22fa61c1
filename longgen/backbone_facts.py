"""What a backbone is and needs, before any of it is loaded: bytes, memory, whether it is here, and whose settings it has."""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path
from typing import Any

from longgen import cost
from longgen import preset as presets
from longgen.backbones import hub, tiny_grammar
from longgen.backbones.registry import published_name
from longgen.backbones.sources import REPOSITORIES, SOURCES, differences, in_use
from longgen.backbones.spec import BackboneSpec
from longgen.describe import WIDTH, flow_shift_label
from longgen.errors import UsageError
from longgen.plan import Plan
from longgen.planner import build, stand_in
from longgen.terminal import cut_to_width, hanging, refilled
from longgen.textfile import on_one_line
from longgen.units import human_bytes

LONG_PX = 321  # frames that memory is quoted for, or the nearest length that the backbone makes
OFFLOADS = ("none", "model", "group", "sequential")


def backbone_dict(spec: BackboneSpec) -> dict[str, Any]:
    """The facts of a backbone as plain data, without what is asked of the disk; for `tiny` also its grammar of prompts."""
    words = {slot: list(words) for slot, words in tiny_grammar.SLOTS.items()}
    return dataclasses.asdict(spec) | ({"grammar": tiny_grammar.GRAMMAR, "words": words} if spec.name == "tiny" else {})


def needs(spec: BackboneSpec) -> dict[str, Any]:
    """Bytes of the weights as they are loaded, of its files on this machine, and at the peak of a long video by kind of offload.

    Raises UsageError where the backbone can make no video of LONG_PX frames.
    """
    weights, companions = (cost.BYTES[spec.dtype] * count for count in (spec.parameters, spec.companions))
    plan, peaks = peaks_of(spec, LONG_PX, spec.dtype)
    return {
        "weights_bytes": {"transformer": weights, "text encoder and VAE": companions},
        "frames": plan.written_px,
        "size": plan.size,
        "peak_bytes": peaks,
        "on_disk": on_disk(spec),
    }


def peaks_of(spec: BackboneSpec, frames: int, dtype: str) -> tuple[Plan, dict[str, int]]:
    """The plan of so many `frames`, direct or, of a causal model, rolled out, and its estimated peak bytes by kind of offload.

    Raises UsageError where the backbone cannot make that length.
    """
    plan = build(presets.load("self-forcing" if spec.causal else "direct", sample=presets.Sample(frames=frames)), spec,
                 conditions=stand_in(spec))  # fmt: skip
    return plan, {offload: cost.memory_bytes(plan, dtype, offload)["peak"] for offload in OFFLOADS}


def on_disk(spec: BackboneSpec) -> dict[str, Any]:
    """Where the files of `spec` are on this machine, their bytes, and the patterns and files of which nothing is here."""
    folder = Path(spec.source) if Path(spec.source).is_dir() else hub.cached_folder(spec.source)
    files = [] if folder is None else [path for path in folder.rglob("*") if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in files} if folder is not None else {}
    patterns = hub.download_patterns(spec)
    own = [path for path, name in names.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    missing = [pattern for pattern in patterns if not fnmatch.filter(names.values(), pattern)]
    for place in filter(None, (spec.checkpoint, spec.lora)):
        path = _checkpoint(place)
        if path is None:
            missing.append(place)
        else:
            own += [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {
        "folder": None if folder is None else str(folder),
        "bytes": sum(path.stat().st_size for path in own),
        "missing": missing,
    }


def _checkpoint(place: str) -> Path | None:
    """The file or folder `place` of this machine: a path, or `owner/name/path/in/repository` in the local cache."""
    if Path(place).exists():
        return Path(place)
    owner, _, rest = place.partition("/")
    name, _, inner = rest.partition("/")
    folder = hub.cached_folder(f"{owner}/{name}") if inner else None
    return folder / inner if folder is not None and (folder / inner).exists() else None


def published(spec: BackboneSpec) -> dict[str, Any]:
    """Of a published backbone, each setting as its publisher has it: value, file and commit, and why another one is in use."""
    rows = {}
    for setting, (value, where, why) in SOURCES.get(published_name(spec), {}).items():
        repository, _, path = where.partition(" ")
        owner, commit = REPOSITORIES[repository]
        rows[setting] = {"value": value, "in_use": in_use(spec).get(setting), "source": f"{owner}@{commit} {path}", "why": why}
    return rows


def backbone_text(spec: BackboneSpec, columns: int | None = None) -> str:
    """The facts of a backbone; for `tiny` also the sentences that it knows. columns: of a terminal; commands are not wrapped."""
    below = "" if spec.boundary is None else f", below {spec.boundary:g}"
    low_noise = "" if spec.guidance_scale_2 is None else f" ({spec.guidance_scale_2:g} at low noise{below})"
    latent = "latent" if spec.token_lat == 1 else f"tokens of {spec.token_lat} latent ones"
    rows = {
        "what": [spec.about],
        "weights": _weights(spec),
        "license": [spec.license],
        "native": [f"{spec.native_px} frames ({spec.native_lat} {latent}), {spec.size[0]}x{spec.size[1]}, {spec.fps} fps"],
        "lengths": [f"{spec.stride_t}n+1 frames"],
        "sizes": ["width a multiple of {}, height of {}".format(*spec.size_multiple)],
        "defaults": [f"{spec.steps} step{'s' * (spec.steps != 1)}, guidance {spec.guidance_scale:g}{low_noise}, {spec.dtype}"],
        "scheduler": [", ".join(filter(None, (spec.scheduler, flow_shift_label(spec))))],
        "negative": [cut_to_width(on_one_line(spec.negative_prompt), max(40, min(columns or WIDTH, WIDTH)) - 14) or "none"],
        "transformer": [f"{spec.layers} layers, {spec.heads} heads x {spec.head_dim}, {spec.parameters / 1e6:,.0f}M parameters"],
        "can": [", ".join(spec.capabilities)],
        **_needs_rows(spec),
        **_published_rows(spec),
    }
    commands = hub.download_commands(spec)
    lines = [hanging(f"  {key if row == 0 else '':<12}", line, None if line in commands else columns)
             for key, texts in rows.items() for row, line in enumerate(texts)]  # fmt: skip
    text = "\n".join([spec.name, *lines, *(hanging("note: ", note, columns) for note in spec.file_notes)])
    if spec.built_in:
        text += "\n\nprompts it knows:\n" + refilled(tiny_grammar.describe(), columns)
    return text


def _weights(spec: BackboneSpec) -> list[str]:
    if spec.files:
        return [*spec.files, f"the rest from {'the package' if spec.built_in else spec.source}"]
    return ["in the package"] if spec.built_in else [*filter(None, (spec.checkpoint, spec.lora, spec.source))]


def _needs_rows(spec: BackboneSpec) -> dict[str, list[str]]:
    try:
        found = needs(spec)
    except UsageError as error:
        return {"memory": [f"not known for {LONG_PX} frames: {error.given}"]}
    disk, peaks = found["on_disk"], found["peak_bytes"]
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in found["weights_bytes"].items())
    larger = [] if spec.dtype == "fp32" else ["(on disk up to twice that, where files are in fp32)"]
    here = [f"yes, {human_bytes(disk['bytes'])} in {'the package' if spec.built_in else disk['folder']}"]
    if not disk["bytes"]:
        here = ["no; to download it:", *hub.download_commands(spec)]
    elif disk["missing"]:
        here = [f"in part, {human_bytes(disk['bytes'])}; there is nothing of", ", ".join(disk["missing"])]
    width, height = found["size"]
    return {
        "bytes": [f"{parts}, in {spec.dtype}", *larger],
        "downloaded": here,
        "memory": [f"of {found['frames']} frames of {width}x{height}, estimated peak on the device:",
                   ", ".join(f"--offload {offload} {human_bytes(size)}" for offload, size in peaks.items())],
    }  # fmt: skip


def _published_rows(spec: BackboneSpec) -> dict[str, list[str]]:
    rows = published(spec)
    others = differences(published_name(spec)) if rows else {}
    return {
        **({"settings": [f"github.com/{place}" for place in dict.fromkeys(row["source"].split()[0] for row in rows.values())]}
           if rows else {}),
        **({"not theirs": [f"{setting}: theirs is {source.value}" for setting, (_, source) in others.items()]} if others else {}),
    }  # fmt: skip
