"""run.json: what a run was made with, where and how long, written anew at each of its stages."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longgen import disk, rundir
from longgen.describe import plan_dict
from longgen.device import device_name, memory_bytes
from longgen.run_settings import SCHEMA

if TYPE_CHECKING:
    from longgen.plan import Plan


class RunRecord:
    """The run.json of a run under way. seconds: by phase; a phase that an earlier run did is 0."""

    def __init__(self, output: Path, plan: Plan, run_settings: dict[str, Any], device: str, load_s: float) -> None:
        self.path, self.device = rundir.run_folder(output) / rundir.RECORD, device
        self.seconds = {"load": round(load_s, 3), "sample": 0.0, "decode": 0.0}
        described = plan_dict(plan)
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "status": "running",
            "settings": run_settings,
            "frames": plan.frames_px,
            "latent_frames": plan.frames_lat,
            "techniques": described["techniques"],
            "branches": described["branches"],
            "cost_ratio": described["cost_ratio"],
            "notes": described["notes"],
            "device": device_name(device),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "seconds": {},
            "peak_memory_bytes": 0,
        }

    def write(self, status: str, **more: Any) -> None:
        self.content.update(status=status, seconds=self.seconds, peak_memory_bytes=memory_bytes(self.device), **more)
        disk.save_record(self.path, self.content)
