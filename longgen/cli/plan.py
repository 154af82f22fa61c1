"""longgen plan: what would run, as text, JSON or tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longgen.cli.app import answer, app, reports_errors, say
from longgen.cli.inputs import make_plan, parse_size, read_schedule
from longgen.cli.options import (
    Backbone,
    Dtype,
    Duration,
    FlowShift,
    Fps,
    Frames,
    Guidance,
    Json,
    Layers,
    Offload,
    Overwrite,
    Preset,
    Probe,
    Quiet,
    ScheduleFile,
    Set,
    Size,
    Steps,
)
from longgen.errors import LonggenError, UsageError


@app.command()
@reports_errors
def plan(
    preset: Preset = "direct",
    set_: Set = None,
    layers: Layers = None,
    probe: Probe = None,
    backbone: Backbone = None,
    frames: Frames = None,
    duration: Duration = None,
    size: Size = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    flow_shift: FlowShift = None,
    fps: Fps = None,
    schedule: ScheduleFile = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE.npz", help="Write the frame-plan tables.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what would run, with its tables, its cost against direct sampling and its memory; loads no weights."""
    from longgen import disk
    from longgen.describe import plan_text

    flags = dict(
        frames=frames, size=None if size is None else parse_size(size), steps=steps, guidance_scale=guidance_scale,
        flow_shift=flow_shift, fps=fps,
    )  # fmt: skip
    if probe == "run":
        raise UsageError("--probe run runs the model, and plan loads no weights", expected="a probe's file, or published",
                         hint="longgen probe first; plan then takes what is kept")  # fmt: skip
    made = make_plan(preset, set_, backbone, flags, duration, True, read_schedule(schedule, None, None), layers, probe)
    if export is not None:
        import numpy as np

        if export.suffix != ".npz":
            raise UsageError(f"--export {export}: tables are written as NumPy archives", expected="a name in .npz",
                             hint=f"take {export.with_suffix('.npz')}")  # fmt: skip
        disk.check_new(export, overwrite, "--export")
        if not export.parent.is_dir():
            raise LonggenError(f"{export} cannot be written: {export.parent} is not there", expected="a folder that is there",
                               hint="make it, or give another --export")  # fmt: skip

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **made.arrays())

        disk.replace_file(export, write)
        if not quiet:
            say(f"tables written to {export}")
    kind = dtype or made.spec.dtype
    answer(plan_text(made, kind, offload), made.as_dict() | {"memory_bytes": made.memory_bytes(kind, offload)}, as_json)
