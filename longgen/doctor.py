"""Checks what generating needs on this machine: Python, libraries, GPU, ffmpeg, disk and models. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from longgen import ffmpeg
from longgen.errors import LonggenError

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pydantic", "typer", "imageio-ffmpeg")
FREE_ENOUGH = 5 * 1000**3  # bytes of free disk space, below which a long run may not fit


class Finding(NamedTuple):
    name: str
    ok: bool
    value: str


def examine() -> list[Finding]:
    """One finding per requirement."""
    findings = [Finding("python", sys.version_info >= (3, 10), sys.version.split()[0])]
    for library in LIBRARIES:
        try:
            findings.append(Finding(library, True, importlib.metadata.version(library)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(library, False, "not installed"))
    return [*findings, _gpu(), _ffmpeg(), _disk(), _hub_cache()]


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", True, f"none usable by torch {torch.__version__}: the default backbone is tiny")
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding("gpu", True, "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards))


def _ffmpeg() -> Finding:
    try:
        encoders = ffmpeg.run(["-encoders"])
    except LonggenError as error:
        return Finding("ffmpeg", False, error.given)
    has_x264 = b"libx264" in encoders.stdout
    return Finding("ffmpeg", has_x264, f"{ffmpeg.program()}, {'with' if has_x264 else 'without'} libx264")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    return Finding("disk", free > FREE_ENOUGH, f"{free / 1e9:.0f} GB free in {Path.cwd()}")


def _hub_cache() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    offline = " (offline)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    return Finding("hub cache", True, f"{cache}{offline}: {', '.join(models) or 'empty'}")
