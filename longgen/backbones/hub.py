"""One error for files of the Hugging Face hub that cannot be had, whatever its client raised."""

from __future__ import annotations

from longgen.errors import MissingError


def not_fetched(what: str, error: Exception, expected: str, hint: str) -> MissingError:
    """The error for `what`. error: of huggingface_hub, which lets its HTTP library's errors through, of many types."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    given = f"{what} is not in the local cache and cannot be fetched from the hub: {reason}"
    return MissingError(given, expected=expected, hint=hint)
