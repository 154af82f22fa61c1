"""Files that are whole or not there: checkpoints, latents and run.json, each written beside its name and moved onto it.

The latents of a stream are a folder of such files, one for each chunk: `Chunks`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
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
                           do="free some space, then the same command again, with --resume if it has that") from None  # fmt: skip


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


class Chunks:
    """The latents of a stream in `folder`, a file for each chunk: written once, read when asked for, never held.

    Its length is the count of consecutive whole files from the first on: a gap ends it, and so does a damaged last one.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        self._count = next(index for index in itertools.count() if self._path(index).name not in names)
        while self._count:
            try:
                self.state()
                break
            except (LonggenError, KeyError):
                self._count -= 1

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06}.safetensors"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """The latents [1, C, c, h, w] of chunk `index`."""
        return load_tensors(self._path(range(self._count)[index]))[0]["latents"]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(self._count))

    def frames(self, count: int) -> Iterator[Tensor]:
        """The first `count` latent frames [1, C, 1, h, w], or as many as there are, one at a time."""
        return itertools.islice((frame for chunk in self for frame in chunk.split(1, dim=2)), count)

    def append(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Writes the next chunk: its "latents" [1, C, c, h, w] among `tensors`, and what `pack` described as `state`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._path(self._count), tensors, self.settings | {"state": state})
        self._count += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the state that the last chunk was appended with."""
        tensors, kept = load_tensors(self._path(self._count - 1))
        return tensors, kept["state"]

    def kept(self) -> dict[str, Any]:
        """The settings that the first chunk was appended with."""
        return {key: value for key, value in load_tensors(self._path(0))[1].items() if key != "state"}

    def clear(self) -> None:
        """Removes every chunk, and the folder if nothing else is in it."""
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.partial")]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self._count = 0
