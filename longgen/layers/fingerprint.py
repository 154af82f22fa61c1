"""What tells one set of weights from another without loading them: a digest of parts of their files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from longgen.backbones.spec import BackboneSpec
from longgen.errors import MissingError

BLOCK, BLOCKS = 16_384, 256  # bytes, and how many of a file are read, evenly apart: training changes all of a tensor
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def fingerprint(spec: BackboneSpec, lora: tuple[str, ...] = ()) -> str:
    """A digest of the transformers' weights of `spec` with `lora`. Raises MissingError where they are not on this machine."""
    places = [place for place in (spec.checkpoint, spec.lora) if place] if spec.checkpoint else [spec.source]
    digest = hashlib.sha256()
    for place in places:
        for path in _files(place, whole=place == spec.source):
            _add(digest, path)
    for text in lora:
        digest.update(text.encode())
        path = Path(text.rpartition(":")[0] or text)
        if path.is_file():
            _add(digest, path)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        if size <= 2 * BLOCK * BLOCKS:
            digest.update(file.read())
            return
        for index in range(BLOCKS):
            file.seek(index * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))


def _files(place: str, whole: bool) -> list[Path]:
    """The files of weights at `place`, a file, a folder or a place on the hub; of a `whole` pipeline those of its transformers."""
    path = Path(os.path.expanduser(place))
    if not path.exists():
        path = _on_hub(place)
    if path.is_file():
        return [path]
    folders = [path / "transformer", path / "transformer_2"] if whole else [path, path / "transformer"]
    found = [sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)) for folder in folders]
    files = [file for part in (found if whole else [part for part in found if part][:1]) for file in part]
    if not files:
        raise MissingError(f"{place} has no weights on this machine", expected="weights in the local cache or in a folder",
                           hint="generate with it once, which downloads them")  # fmt: skip
    return files


def _on_hub(place: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    owner, name, *inner = place.split("/") if "/" in place else ["", place]
    try:
        return Path(snapshot_download(f"{owner}/{name}", local_files_only=True)).joinpath(*inner)
    except (LocalEntryNotFoundError, HFValidationError):
        return Path(place)  # which is not there
