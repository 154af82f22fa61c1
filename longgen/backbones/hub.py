"""Files of the Hugging Face hub: from the local cache, else from the network, and one error where neither has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from longgen.backbones.registry import family_of
from longgen.backbones.spec import BackboneSpec
from longgen.errors import MissingError

T = TypeVar("T")


def fetch(what: str, hub_id: str, get: Callable[[bool], T], expected: str, hint: str) -> T:
    """`get(True)`, which looks into the local cache only, else `get(False)`. Raises MissingError about `what`."""
    from huggingface_hub import HfApi  # here: it costs 0.3 s, and most calls never ask the hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return get(True)
        except LocalEntryNotFoundError:
            HfApi().model_info(hub_id, timeout=10)  # fails at once without network, where downloads try for 23 s
            return get(False)
    except Exception as error:  # of many types: the client lets its HTTP library's errors through
        raise not_fetched(what, error, expected, hint) from None


def offline() -> bool:
    """Whether the user's environment forbids downloads."""
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()


def cached_folder(hub_id: str) -> Path | None:
    """The folder of the repository `hub_id` in the local cache, whole or in part; None where there is none.

    Mostly it is a part: nobody wants all of LTX-Video's single files, 100 GB of them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except HFValidationError:
        return None
    except LocalEntryNotFoundError as error:  # newer versions of the client refuse a part, and say where it is
        place = getattr(error, "snapshot_path", None)
        return None if place is None else Path(place)


def not_fetched(what: str, error: Exception, expected: str, hint: str) -> MissingError:
    """The error for `what`, which the client of the hub did not get for the reason `error`."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    given = f"{what} is not in the local cache and cannot be fetched from the hub: {reason}"
    return MissingError(given, expected=expected, hint=hint)


def download_command(place: str) -> str:
    """The command that downloads what is at `place`: `owner/name/path/in/repository`, of a file or a folder."""
    owner, name, *inner = place.split("/")
    file = "/".join(inner)
    return f"hf download {owner}/{name} " + (file if Path(file).suffix else f'--include "{file}/*"')


def download_patterns(spec: BackboneSpec) -> list[str]:
    """The files of the hub id `spec.source` that are loaded, as globs: its diffusers folders, not the single files beside them.

    Those of Lightricks/LTX-Video are over 100 GB. Where `spec.checkpoint` replaces the transformer, its config alone; where
    `spec.files` do, nothing of it.
    """
    transformers = ("transformer/*", *(("transformer_2/*",) if spec.experts == 2 else ()))
    parts = ("transformer/config.json",) if spec.checkpoint else () if spec.files else transformers
    family = family_of(spec)
    folders = (*family.folders, *(family.picture_folders if spec.image_tokens else ()))
    return ["model_index.json", *(f"{folder}/*" for folder in folders), *parts]


def download_commands(spec: BackboneSpec) -> list[str]:
    """The commands that download all of `spec` into FOLDER, and nothing that is not loaded."""
    included = " ".join(f'--include "{pattern}"' for pattern in download_patterns(spec))
    files = [place for place in (spec.checkpoint, spec.lora) if place and not os.path.exists(place)]
    commands = [f"hf download {spec.source} {included}", *map(download_command, files)]
    return [f"{command} --local-dir FOLDER" for command in commands]
