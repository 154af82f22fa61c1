"""longgen doctor: checks what generating needs on this machine, changing nothing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import typer

from longgen.cli.app import answer, app
from longgen.cli.options import Json
from longgen.errors import LonggenError

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pydantic", "typer", "imageio-ffmpeg")
FREE_ENOUGH = 5 * 1000**3  # bytes of free disk space, below which a long run may not fit


class Finding(NamedTuple):
    name: str
    ok: bool
    value: str


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, GPU, ffmpeg, disk, caches."""
    from importlib import metadata

    findings = [Finding("python", sys.version_info >= (3, 10), sys.version.split()[0])]
    for library in LIBRARIES:
        try:
            findings.append(Finding(library, True, metadata.version(library)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(library, False, "not installed"))
    free = shutil.disk_usage(".").free
    disk = Finding("disk", free > FREE_ENOUGH, f"{free / 1e9:.0f} GB free in {Path.cwd()}")
    findings += [_gpu(), _ffmpeg(), disk, _hub_cache()]
    lines = [f"{'ok  ' if finding.ok else 'BAD '}{finding.name:<16}{finding.value}" for finding in findings]
    answer("\n".join(lines), [finding._asdict() for finding in findings], as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _gpu() -> Finding:
    import torch

    from longgen.backbones.defaults import gpu_driver, has_gpu

    if not has_gpu():
        driver = gpu_driver()
        but = "" if driver is None else f", although a driver is here ({driver}); a torch built for it may help"
        return Finding("gpu", True, f"none usable by torch {torch.__version__}{but}: the default backbone is tiny")
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding("gpu", True, "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards))


def _ffmpeg() -> Finding:
    from longgen import ffmpeg

    try:
        encoders = ffmpeg.run(["-encoders"])
    except LonggenError as error:
        return Finding("ffmpeg", False, error.given)
    has_x264 = b"libx264" in encoders.stdout
    return Finding("ffmpeg", has_x264, f"{ffmpeg.program()}, {'with' if has_x264 else 'without'} libx264")


def _hub_cache() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    offline = " (offline)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    return Finding("hub cache", True, f"{cache}{offline}: {', '.join(models) or 'empty'}")
