"""Where longgen keeps what it computes once for a machine: converted weights, probes, ratios of MagCache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder `kind` in the user's cache, which XDG_CACHE_HOME names (default ~/.cache); it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longgen" / kind
