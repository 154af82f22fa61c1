"""What this machine has for generating: memory, threads, fonts, caches on disk, and which backbones fit at which length."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

from longgen import backbone_facts, cost
from longgen.backbones.defaults import default_dtype, has_gpu
from longgen.backbones.registry import SPECS
from longgen.backbones.spec import BackboneSpec
from longgen.cache_folder import cache_folder
from longgen.errors import UsageError

CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)  # of a container, versions 2 and 1
USABLE = 0.95  # of a card's memory; the rest is of the driver, and of fragments [derived]


class Memory(NamedTuple):
    """Bytes of the host, at most what a container may use, and of the largest card that torch can use: 0 where there is none."""

    total: int
    available: int
    card: int


def memory() -> Memory:
    """The memory of this machine."""
    import psutil  # accelerate needs it too

    host = psutil.virtual_memory()
    total, available, card = host.total, host.available, 0
    for file in CGROUP:
        with contextlib.suppress(OSError, ValueError):
            limit = int(file.read_text())
            total, available = min(total, limit), min(available, limit)
    if has_gpu():
        import torch

        card = max(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))
    return Memory(total, available, card)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in `folder`, each once, though links in a cache of the hub name it again; 0 where there is none."""
    count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                path = Path(parent) / name
                count += 0 if path.is_symlink() else path.stat().st_size
    return count


def caches() -> list[dict[str, Any]]:
    """The caches that longgen fills, by name: what they hold, where, their bytes, and a command that clears each."""
    from huggingface_hub.constants import HF_HUB_CACHE

    hub = Path(HF_HUB_CACHE)
    kinds = {"converted": "weights in diffusers' format", "probes": "probes", "magcache": "ratios of MagCache",
             "timings": "seconds of earlier runs, for estimates"}  # fmt: skip
    rows = [{"name": "hub", "holds": "downloaded models", "folder": str(hub), "bytes": folder_bytes(hub),
             "clear": "hf cache rm model/OWNER/NAME (hf cache ls shows them)"}]  # fmt: skip
    for kind, holds in kinds.items():
        folder = cache_folder(kind)
        clear = f'rmdir /s "{folder}"' if sys.platform == "win32" else f"rm -r {shlex.quote(str(folder))}"
        rows.append({"name": kind, "holds": holds, "folder": str(folder), "bytes": folder_bytes(folder), "clear": clear})
    return rows


def fonts() -> str | None:
    """How labels of comparisons are drawn; None where they would be in a bitmap font, whose letters are those of English alone."""
    from PIL import ImageFont, features

    font = ImageFont.load_default(20)
    return (
        f"{' '.join(filter(None, font.getname()[:2]))}, in Pillow"
        if features.check("freetype2") and hasattr(font, "getname")
        else None
    )


def fits(spec: BackboneSpec, memory: Memory) -> list[dict[str, Any]]:
    """For its native length and for `backbone_facts.LONG_PX` frames: the cheapest kind of offload with which `spec` fits, or None.

    On a card the peak must fit there, and with offload all weights in the host's memory; on a CPU the peak in what is available.
    """
    dtype, rows = default_dtype(spec, "cuda" if memory.card else "cpu"), []
    weights = cost.BYTES[dtype] * (spec.parameters + spec.companions)
    for frames in dict.fromkeys((spec.native_px, backbone_facts.LONG_PX)):
        try:
            plan, peaks = backbone_facts.peaks_of(spec, frames, dtype)
        except UsageError as error:
            rows.append({"frames": frames, "offload": None, "peak_bytes": None, "why": error.given})
            continue
        fitting = [
            offload for offload, peak in peaks.items()
            if (peak <= USABLE * memory.card and (offload == "none" or weights <= memory.total) if memory.card
                else offload == "none" and peak <= memory.available)
        ]  # fmt: skip
        offload = next(iter(fitting), None)
        least = min(peaks.values()) if memory.card else peaks["none"]
        rows.append(
            {"frames": plan.written_px, "offload": offload, "peak_bytes": peaks[offload] if offload else least, "why": None}
        )
    return rows


def all_fits(memory: Memory) -> dict[str, list[dict[str, Any]]]:
    """`fits` of every backbone that longgen knows."""
    return {name: fits(spec, memory) for name, spec in SPECS.items()}
