"""Finds a backbone: by its name, by a diffusers folder or hub id, or in a file of weights."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from longgen.backbones import formats, registry, single_file
from longgen.backbones.causal_wan import SELF_FORCING, resized
from longgen.backbones.pipeline_folder import from_folder, from_hub
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import FAMILY as WAN
from longgen.backbones.wan import WAN_14B
from longgen.errors import LonggenError, MissingError, UsageError, unknown_name

CAUSAL = [spec.name for spec in SPECS.values() if spec.causal]
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_WEIGHTS = "a .pt or .safetensors file, or a folder with one or with a transformer that diffusers wrote"


def find(name: str) -> BackboneSpec:
    """The spec of the backbone that `--backbone` names: a name, a diffusers folder, a hub id, a file of weights, or NAME:PATH.

    `NAME:PATH` is the backbone NAME with the weights in a file, of a causal one in a folder too. A file alone is told by its
    header; two with a comma between them are the experts of Wan 2.2. It is `self-forcing:FILE` if something in it says that the
    model is causal, for tensor names and shapes are the same for bidirectional models; a torch file has to say so.
    Raises UsageError for a name that is none of these or a model that longgen cannot drive, MissingError where the hub cannot be
    reached, LonggenError where a file is damaged.
    """
    if name in SPECS:
        return SPECS[name]
    base, colon, place = name.partition(":")
    if colon and base in SPECS:
        return _from_weights(SPECS[base], place) if SPECS[base].causal else _from_files(place, SPECS[base])
    path = Path(os.path.expanduser(name))
    if name and os.path.isdir(path):  # "" would be the current folder; Path.is_dir raises where a name is too long
        return from_folder(path)
    if colon and re.fullmatch(r"[\w.-]{2,}", base) and not os.path.exists(path):
        raise unknown_name("backbone", base, CAUSAL, "NAME:PATH takes one of these")
    if (name and os.path.exists(path)) or path.suffix.lower() in formats.SUFFIXES:
        return _from_files(name)
    if path.is_absolute() or name.startswith((".", "~")):
        raise MissingError(f"--backbone {name}: no such folder", expected="a folder with model_index.json, or a backbone's name",
                           hint="longgen backbones list")  # fmt: skip
    if name.count("/") == 1:
        return from_hub(name)
    specs = registry.all_specs()
    if name in specs:
        return specs[name]
    raise unknown_name("backbone", name, specs, "choose one of these, a hub id (owner/name) or a diffusers folder")


def files_in(folder: Path) -> list[tuple[Path, BackboneSpec | LonggenError]]:
    """Every file of weights in `folder`, with its model or with why it is none that longgen drives. Raises MissingError."""
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder", expected="a folder with files of weights", hint="check the path")
    found: list[tuple[Path, BackboneSpec | LonggenError]] = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in formats.SUFFIXES):
        try:
            found.append((path, find(str(path))))
        except LonggenError as error:
            found.append((path, error))
    return found


def _from_files(place: str, base: BackboneSpec | None = None) -> BackboneSpec:
    """The model in the file or files at `place`. base: the bidirectional backbone that the user says it is."""
    if base is not None and os.path.isdir(os.path.expanduser(place)):
        raise UsageError(f"--backbone {base.name}:{place} is a folder", hint="give the folder without a name before it",
                         expected=f"NAME:FILE, a diffusers folder, or NAME:FOLDER with {', '.join(CAUSAL)}")  # fmt: skip
    files = single_file.split(place)
    if base is None and len(files) == 1 and os.path.exists(files[0]):
        kind = formats.form(files[0], single_file.EXPECTED)
        if kind in ("zip", "pickle") or (kind == "safetensors" and single_file.says_causal(files[0])):
            return _from_weights(SELF_FORCING, place, says_causal=False)
    return single_file.from_files(place, base)


def _from_weights(spec: BackboneSpec, place: str, says_causal: bool = True) -> BackboneSpec:
    """The causal `spec` with the weights at `place`; a pipeline in the same folder gives the VAE and the text encoder.

    says_causal: whether the user called the weights causal; otherwise the file has to say so.
    """
    path = Path(os.path.abspath(os.path.expanduser(place)))
    if not place or not os.path.exists(path):
        given = f"{spec.name}:{place}" if says_causal else place
        raise MissingError(f"--backbone {given}: no such file or folder", expected=_WEIGHTS, hint="check the path")
    from longgen.backbones import checkpoints  # here: it imports torch

    weights, lora = _locate(spec, path)
    tensors, causal = checkpoints.examine(weights)
    width = tensors["patch_embedding.weight"].shape[0]
    bases = [from_folder(path)] if (path / "model_index.json").is_file() else [spec, WAN_14B]
    base = next((base for base in bases if base.width == width), bases[0])
    checkpoints.config(weights, tensors, base)  # raises where the sizes differ
    if not says_causal and not causal:
        known = [model.name for model in WAN.specs if model.width == width and not model.built_in and model.experts == 1]
        bidirectional = f"{known[0]}:{place}" if path.suffix == ".safetensors" and known else "FOLDER"
        raise UsageError(f"{path} is a Wan transformer of width {width}, as {base.name}, and nothing in it says whether it is "
                         "causal (sees the past only) or bidirectional", expected=f"{', '.join(f'{name}:FILE' for name in CAUSAL)} "
                         "for causal weights; the whole diffusers folder for bidirectional ones",
                         hint=f"causal: --backbone {SELF_FORCING.name}:{place}; bidirectional: "
                              f"--backbone {bidirectional}")  # fmt: skip
    return replace(
        resized(spec, base), name=f"{spec.name}:{path}", about=f"{spec.name} with the weights in {weights.name}",
        license="see its model card", checkpoint=str(weights), lora=None if lora is None else str(lora),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
    )  # fmt: skip


def _locate(spec: BackboneSpec, path: Path) -> tuple[Path, Path | None]:
    """The file or folder at `path` that holds the transformer of `spec`, and the one with its LoRA.

    In a folder: the file of the published name, at its place on the hub or at the top; else the only file of weights there; else
    a transformer that diffusers wrote. The LoRA lies beside a file, under its published name.
    """
    published, lora_name = "/".join((spec.checkpoint or "").split("/")[2:]), Path(spec.lora or "").name
    weights, weights_name = path, Path(published).name
    if path.is_dir():
        files = [] if (path / "config.json").is_file() else sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        files = [file for file in files if file.name != lora_name]
        candidates = [path / published, path / weights_name, *files[:1], path, path / "transformer"]
        present = [place for place in candidates if place.is_file() or (place / "config.json").is_file()]
        if not present:
            raise MissingError(f"--backbone {spec.name}:{path} has no weights in it", expected=_WEIGHTS, hint="check the folder")
        weights = present[0]
        if weights in files and weights.name != weights_name and len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UsageError(f"--backbone {spec.name}:{path} holds several files of weights: {names}", expected="one",
                             hint=f"give one of them, as {spec.name}:{weights}")  # fmt: skip
    if not lora_name or weights.is_dir() or weights.name == lora_name:
        return weights, None
    if weights.with_name(lora_name).is_file():
        return weights, weights.with_name(lora_name)
    if weights.name == weights_name:  # under another name it may be merged
        raise MissingError(f"--backbone {spec.name}:{path}: its LoRA {lora_name} is not beside {weights}",
                           expected=f"{weights_name} and {lora_name} in one folder", hint=f"copy {lora_name} there")  # fmt: skip
    return weights, None
