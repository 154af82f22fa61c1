"""Files of the Hugging Face hub: from the local cache, else from the network, and one error where neither has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
