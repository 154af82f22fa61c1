"""Cache of finished probes, keyed by the weights and the settings they were measured with.

~/.cache/longgen/probes/<fingerprint>/<settings>/probe.json     and, until the probe is done, `parts/` beside it
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from longgen.backbones.spec import BackboneSpec
from longgen.cache_folder import cache_folder
from longgen.errors import LonggenError, MissingError
from longgen.layers.fingerprint import fingerprint
from longgen.layers.probe_file import Probe, ProbeSettings, read


def probe_folder(weights: str, settings: ProbeSettings) -> Path:
    """The cache folder of a probe with these settings of the weights with this fingerprint."""
    return _weights_folder(weights) / hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]


def _weights_folder(weights: str) -> Path:
    return cache_folder("probes") / weights[:16]


def cached_probes(spec: BackboneSpec, lora: tuple[str, ...] = ()) -> list[tuple[Probe, Path]]:
    """All cached probes of the weights of `spec`, newest first; none if the weights are not on this machine."""
    try:
        weights = fingerprint(spec, lora)
    except MissingError:
        return []
    probes = []
    for path in sorted(_weights_folder(weights).glob("*/probe.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            probes.append((read(path), path))
        except LonggenError:  # of another version
            continue
    return [(probe, path) for probe, path in probes if probe.weights == weights]
