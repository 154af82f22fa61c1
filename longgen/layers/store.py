"""Where probes are kept: by the weights they are of, and by what was run.

~/.cache/longgen/probes/<fingerprint>/<settings>/probe.json     and beside it, until it is done, `parts/`
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from longgen.backbones.spec import BackboneSpec
from longgen.cache_folder import cache_folder
from longgen.errors import LonggenError, MissingError
from longgen.layers.fingerprint import fingerprint
from longgen.layers.probe_file import Probe, Settings, read


def folder_of(weights: str, settings: Settings) -> Path:
    """The folder of the probe with these settings of the weights with this fingerprint."""
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()
    return _folder(weights) / digest[:16]


def _folder(weights: str) -> Path:
    return cache_folder("probes") / weights[:16]


def probes_of(spec: BackboneSpec, lora: tuple[str, ...] = ()) -> list[tuple[Probe, Path]]:
    """All probes that are kept of the weights of `spec`, the newest first; none where its weights are not on this machine."""
    try:
        weights = fingerprint(spec, lora)
    except MissingError:
        return []
    paths = sorted(_folder(weights).glob("*/probe.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = []
    for path in paths:
        try:
            found.append((read(path), path))
        except LonggenError:  # of another version
            continue
    return [(probe, path) for probe, path in found if probe.weights == weights]
