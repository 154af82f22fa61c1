"""What to do when memory runs out: the remedy that costs the least time, and what it saves by the cost model of the plan."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from longgen import cost
from longgen.backbones.settings import ModelSettings
from longgen.device import chain, lacks_host_memory, lacks_memory
from longgen.errors import LonggenError, OutOfMemoryError
from longgen.plan import Plan
from longgen.units import human_bytes

LEAST_SAVING = 0.05  # of the peak; a remedy that saves less is named only where there is no better one
GPUS = ("cuda", "xpu")  # devices whose memory is not the host's


class Remedy(NamedTuple):
    """option: as on the command line. saving, peak: bytes on the device, estimated. goes_on: whether --resume accepts it."""

    option: str
    saving: int
    peak: int
    goes_on: bool

    def __str__(self) -> str:
        return f"{self.option} saves about {human_bytes(self.saving)} of {human_bytes(self.peak)}, estimated"


def remedies(plan: Plan, settings: ModelSettings) -> list[Remedy]:
    """What lowers the peak of `plan`, the cheapest in time first; those that would start the run over come last."""
    offloads = {"none": ("model", "group"), "model": ("group",)}.get(settings.offload, ())
    changes: dict[str, dict[str, Any]] = {
        **{f"--offload {name}": {"offload": name} for name in offloads if settings.device.startswith(GPUS)},
        "--clip-batch 1": {"clip_batch": 1},
        "--dtype bf16": {"dtype": "bf16" if settings.dtype == "fp32" else settings.dtype},
    }
    peak = _peak(plan, settings)
    options = [Remedy(option, peak - _peak(plan, settings.replace(**change)), peak, "offload" in change)
               for option, change in changes.items()]  # fmt: skip
    return [remedy for remedy in options if remedy.saving > 0]


def cheapest(plan: Plan, settings: ModelSettings) -> Remedy | None:
    """The first of `remedies` that saves a noticeable part, else the one that saves most."""
    options = remedies(plan, settings)
    noticeable = (remedy for remedy in options if remedy.saving >= LEAST_SAVING * remedy.peak)
    return next(noticeable, max(options, key=lambda remedy: remedy.saving, default=None))


def _peak(plan: Plan, settings: ModelSettings) -> int:
    memory = cost.memory_bytes(plan, settings.dtype, settings.offload)
    clips = settings.clip_batch if plan.in_clips else 1
    return memory["peak"] + (clips - 1) * memory["activations"]


@contextmanager
def translate_oom(
    stage: str, settings: ModelSettings, remains: str, plan: Plan | None = None, decoding: bool = False
) -> Iterator[None]:
    """Turns the many out-of-memory errors of libraries into one OutOfMemoryError, with the stage and the cheapest remedy.

    remains: what is on disk, or what else helps; the end of the hint. plan: what runs, where it is known. decoding: whether the VAE
    runs, whose memory the cost model does not count.
    """
    try:
        yield
    except LonggenError:
        raise
    except Exception as error:
        cause = next((link for link in chain(error) if lacks_memory(link)), None)
        if cause is None:
            raise
        gc.collect()
        reason = " ".join(str(cause).split())[:200] or "the host has no more"
        raise OutOfMemoryError(f"out of memory while {stage}: {reason}", expected="what longgen plan estimates fits the device",
                               hint=_hint(cause, settings, remains, plan, decoding)) from error  # fmt: skip


def _hint(cause: BaseException, settings: ModelSettings, remains: str, plan: Plan | None, decoding: bool) -> str:
    parts = ["take fewer --frames or a smaller --size", remains]
    if lacks_host_memory(cause) and settings.device.startswith(GPUS):
        return f"the host's memory ran out, not the GPU's: close other programs, leave --offload out, or {'; '.join(parts)}"
    if decoding:
        if plan is not None and settings.offload == "none" and settings.device.startswith(GPUS):
            memory = cost.memory_bytes(plan, settings.dtype)
            saving, peak = human_bytes(memory["weights"]), human_bytes(memory["peak"])
            remains = f"{remains} loads the VAE alone, which saves about {saving} of {peak}, estimated"
        return remains if settings.vae_tiling else f"--vae-tiling decodes in tiles; {remains}"
    if plan is not None and (remedy := cheapest(plan, settings)) is not None:
        return f"{remedy}{'' if remedy.goes_on else ' (the run starts over)'}; or {'; '.join(parts)}"
    return "; ".join(parts)
