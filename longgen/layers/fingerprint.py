"""Fingerprint of a set of weights: a SHA-256 over samples of its files, without loading them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from longgen.backbones import hub
from longgen.backbones.spec import BackboneSpec
from longgen.errors import MissingError

BLOCK, BLOCKS = 16_384, 256  # bytes, and how many evenly spaced blocks of a file are read: training changes all of a tensor
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def fingerprint(spec: BackboneSpec, lora: tuple[str, ...] = ()) -> str:
    """A digest of the transformer weights of `spec` with `lora`. Raises MissingError if they are not on this machine."""
    sources = [source for source in (spec.checkpoint, spec.lora) if source] if spec.checkpoint else [*spec.files] or [spec.source]
    digest = hashlib.sha256()
    for source in sources:
        for path in _weight_files(source, pipeline=source == spec.source):
            _update(digest, path)
    for text in lora:
        digest.update(text.encode())
        path = Path(text.rpartition(":")[0] or text)
        if path.is_file():
            _update(digest, path)
    return digest.hexdigest()


def of_files(paths: Iterable[str]) -> str:
    """A digest of files by their content, wherever they lie and whatever they are called. Raises MissingError."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        if not path.is_file():
            raise MissingError(f"{path}: no such file", expected="the weights that the run is made with", hint="check the path")
        stat = path.stat()
        digest.update(_content(path, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _content(path: Path, size: int, changed_ns: int) -> bytes:
    digest = hashlib.sha256()
    _update(digest, path, named=False)
    return digest.digest()


def _update(digest: hashlib._Hash, path: Path, named: bool = True) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name if named else ''} {size}".encode())
    with path.open("rb") as file:
        if size <= 2 * BLOCK * BLOCKS:
            digest.update(file.read())
            return
        for index in range(BLOCKS):
            file.seek(index * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))


def _weight_files(source: str, pipeline: bool) -> list[Path]:
    """The weight files of `source`, which is a file, a folder or a hub repository; of a whole pipeline, its transformers' only."""
    path = Path(os.path.expanduser(source))
    if not path.exists():
        owner, name, *inner = source.split("/") if "/" in source else ["", source]
        folder = hub.cached_folder(f"{owner}/{name}")
        path = path if folder is None else folder.joinpath(*inner)
    if path.is_file():
        return [path]
    folders = [path / "transformer", path / "transformer_2"] if pipeline else [path, path / "transformer"]
    by_folder = [sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)) for folder in folders]
    files = [file for part in (by_folder if pipeline else [part for part in by_folder if part][:1]) for file in part]
    if not files:
        raise MissingError(f"the weights of {source} are not on this machine", expected="weights in the local cache or in a folder",
                           hint="generate with it once, which downloads them")  # fmt: skip
    return files
