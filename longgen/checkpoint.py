"""Files that are whole or not there: checkpoints, latents and run.json, each written beside its name and moved onto it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longgen.errors import LonggenError, MissingError


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make a file beside `path`, forces it to the disk and moves it onto `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:  # safetensors has a type of its own for what the system refused
        partial.unlink(missing_ok=True)
        raise LonggenError(f"{path} could not be written: {error}", accepted="a folder with room that may be written to",
                           do="free some space, then add --resume to go on from the last checkpoint") from None  # fmt: skip


def save_json(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, lambda partial: _write_text(partial, json.dumps(content, indent=2) + "\n"))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Writes tensors and plain `settings` into one safetensors file."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}  # no shared memory
    metadata = {"longgen": json.dumps(settings)}
    replace_file(path, lambda partial: save_file(tensors, partial, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a file that `save_tensors` wrote. Raises MissingError or LonggenError."""
    if not path.is_file():
        raise MissingError(f"{path} is not there", accepted="a safetensors file that longgen wrote", do="check the path")
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {}).get("longgen", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise LonggenError(f"{path} is damaged: {error}", accepted="a safetensors file that longgen wrote",
                           do="remove it, or start again with --overwrite") from None  # fmt: skip
    if not isinstance(settings, dict):
        raise LonggenError(f"{path} was not written by longgen", accepted="checkpoint.safetensors or latents.safetensors of a run",
                           do="check the path")  # fmt: skip
    return tensors, settings


def pack(state: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits plain state into tensors by name and a description that `unpack` puts together again."""
    tensors: dict[str, Tensor] = {}

    def describe(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, list):
            return [describe(item, f"{name}.{index}") for index, item in enumerate(value)]
        return value

    return tensors, {name: describe(value, f"{prefix}.{name}") for name, value in state.items()}


def unpack(tensors: dict[str, Tensor], described: dict[str, Any]) -> dict[str, Any]:
    """The state that `pack` split."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value["tensor"]]
        return [restore(item) for item in value] if isinstance(value, list) else value

    return {name: restore(value) for name, value in described.items()}
