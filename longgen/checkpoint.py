"""Atomic, checksummed safetensors files: checkpoints and latents. A reader sees a complete file or none.

The latents of a rollout or a chain are a folder of such files, one for each chunk or clip: `Chunks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longgen.disk import damaged, make_folder, replace_file
from longgen.errors import LonggenError, MissingError

UNCHECKED_SCHEMA = 1  # of settings in files of longgen 0.5.0 and before, which have no checksum


def save_tensors(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Writes tensors and JSON `settings` into one safetensors file, atomically, with a checksum of both."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}  # no shared memory
    plain = json.loads(json.dumps(settings))
    metadata = {"longgen": json.dumps({"settings": plain, "checksum": _checksum(tensors, plain)})}

    def write(partial: Path) -> None:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # a type of its own for what the system refused
            raise OSError(str(error)) from None

    replace_file(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a file that `save_tensors` wrote, in 0.5.0 without a checksum. Raises MissingError, LonggenError."""
    if not path.is_file():
        raise MissingError(f"{path} is not there", expected="a safetensors file that longgen wrote", hint="check the path")
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {}).get("longgen", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no dict
    except (SafetensorError, OSError, ValueError, RecursionError, RuntimeError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(stored, dict):
        raise LonggenError(f"{path} was not written by longgen", expected="checkpoint.safetensors or latents.safetensors of a run",
                           hint="check the path")  # fmt: skip
    if "settings" not in stored and "checksum" not in stored and stored.get("schema") == UNCHECKED_SCHEMA:
        return tensors, stored
    settings = stored.get("settings")
    if set(stored) != {"settings", "checksum"} or not isinstance(settings, dict):
        raise damaged(path, "its description is not whole")
    if stored["checksum"] != _checksum(tensors, settings):
        raise damaged(path, "its content does not fit its checksum")
    return tensors, settings


def check_latents(path: Path, latents: Tensor | None, shape: tuple[int | None, ...]) -> Tensor:
    """`latents` of the file `path`, where they are finite numbers of `shape`, in which None is any. Raises LonggenError."""
    if latents is None:
        raise damaged(path, "it holds no latents")
    if latents.ndim != len(shape) or any(size not in (None, actual) for size, actual in zip(shape, latents.shape, strict=True)):
        expected = "x".join("?" if size is None else str(size) for size in shape)
        raise damaged(path, f"its latents are {'x'.join(map(str, latents.shape))}, and those of this run {expected}")
    check_finite(path, {"latents": latents})
    return latents


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises LonggenError where `tensors` hold NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise damaged(path, f"not all of its {name} are finite numbers")


def _checksum(tensors: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """BLAKE2 over the settings and over each tensor's name, type, shape and bytes."""
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), [*tensor.shape]]).encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(state: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits nested state into named tensors and a JSON description, which `unpack` joins again."""
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
            return tensors[value["tensor"]]  # KeyError for one that is not there
        return [restore(item) for item in value] if isinstance(value, list) else value

    return {name: restore(value) for name, value in described.items()}


class Chunks:
    """The latents of a rollout in `folder`, a file for each chunk, and those of a chain, for each clip: written once, read on
    demand, never held in memory.

    Its length is the count of consecutive whole files from the first on: a gap ends it, and so does a damaged last one, whose
    reason is then `damage`. Every file says which chunk it is, and the settings of its run, which are those of the first.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.damage: str | None = None
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        self._count = next(index for index in itertools.count() if self._path(index).name not in names)
        while self._count:
            try:
                self.state()
                break
            except LonggenError as error:
                self.damage = self.damage or error.given
                self._count -= 1

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06}.safetensors"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """The latents [1, C, c, h, w] of chunk `index`."""
        return self._read(range(self._count)[index])[0]["latents"]

    def frames(self, count: int) -> Iterator[Tensor]:
        """The first `count` latent frames [1, C, 1, h, w], or as many as there are, one at a time."""
        return itertools.islice((frame for index in range(self._count) for frame in self[index].split(1, dim=2)), count)

    def append(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Writes the next chunk: its "latents" [1, C, c, h, w] among `tensors`, and what `pack` described as `state`."""
        make_folder(self.folder)
        save_tensors(self._path(self._count), tensors, self.settings | {"state": state, "chunk": self._count})
        self._count += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the state that the last chunk was appended with."""
        tensors, stored = self._read(self._count - 1)
        return tensors, stored["state"]

    def stored_settings(self) -> dict[str, Any]:
        """The settings that the first chunk was appended with."""
        return {key: value for key, value in self._read(0)[1].items() if key not in ("state", "chunk")}

    def check(self, shape: tuple[int | None, ...], frames: Sequence[int] | None = None) -> None:
        """Raises LonggenError where a chunk's latents are not of `shape`, or the settings are not those of the first.

        frames: of each chunk its latent frames, where they differ.
        """
        first = self.stored_settings() if self._count else {}
        for index in range(self._count):
            tensors, stored = self._read(index)
            own = shape if frames is None else (*shape[:2], frames[index], *shape[3:])
            check_latents(self._path(index), tensors["latents"], own)
            check_finite(self._path(index), tensors)
            if any(stored.get(key) != value for key, value in first.items() if key not in ("longgen", "libraries")):
                raise damaged(self._path(index), "it is another run's")

    def _read(self, index: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self._path(index)
        tensors, stored = load_tensors(path)
        if "latents" not in tensors or not isinstance(stored.get("state"), dict):
            raise damaged(path, "it is no chunk of a stream")
        if stored.get("chunk", index) != index:
            raise damaged(path, f"it is chunk {stored['chunk']}")
        return tensors, stored

    def __reduce__(self) -> tuple[type[list[Tensor]], tuple[list[Tensor]]]:
        """For other ranks, which may not see the folder: the chunks themselves."""
        return list, ([*(self[index] for index in range(self._count))],)

    def clear(self) -> None:
        """Removes every chunk, the last first, and the folder if nothing else is in it."""
        for path in [*sorted(self.folder.glob("*.safetensors"), reverse=True), *self.folder.glob(".*.partial")]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self._count = 0
