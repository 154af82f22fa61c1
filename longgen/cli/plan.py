"""longgen plan: what would run, as text, JSON or tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longgen.cli import inputs, messages
from longgen.cli import options as opt
from longgen.cli.app import answer, app, logger
from longgen.errors import UsageError
from longgen.terminal import refilled


@app.command("plan")
def plan_command(
    context: typer.Context,
    preset: opt.PresetOptions,
    *,
    backbone: opt.Backbone = None,
    sample: opt.SampleOptions,
    fps: opt.Fps = None,
    start: opt.StartOptions,
    schedule: opt.ScheduleFile = None,
    dtype: opt.Dtype = None,
    offload: opt.Offload = "none",
    card: opt.Card = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="N[,N]", help="Also the cost and memory of each of N GPUs that split the video.")
    ] = None,
    guidance_parallel: opt.GuidanceParallel = False,
    npz: Annotated[Path | None, typer.Option("--npz", metavar="FILE.npz", help="Write the frame-plan tables.")] = None,
    options: opt.OutputOptions,
) -> None:
    """Show what would run, without weights: its tables, cost, memory and time.

    The cost is relative to direct sampling; memory and time are estimated.
    """
    from longgen.api.plan import result_of
    from longgen.resolve import PlanRequest

    spec, overrides = inputs.choose_backbone(backbone, quiet=True), (*(preset.overrides or ()),)
    if spec.built_in and "card" in opt.given_options(context):  # a variable may be set for other models
        raise UsageError(f"--card has no effect on {spec.name}: no time on a GPU is estimated for built-in models",
                         expected="--card with a published model", hint="leave it out, or give another --backbone")  # fmt: skip
    request = PlanRequest(preset.preset, spec, overrides, sample.sample(fps), sample.duration, inputs.read_schedule(schedule),
                          preset.layers, preset.probe, allow_code=preset.allow_code, conditions=start.conditions())  # fmt: skip
    made = result_of(request, dtype, offload, card, [] if gpus is None else _counts(gpus), guidance_parallel)
    inputs.check_fit(context, [made.plan])
    if npz is not None:
        made.save_tables(npz, options.overwrite)
        logger(options.quiet)(f"tables written to {npz}")
    answer(refilled(str(made), messages.stdout_columns()), made.as_dict(), options.as_json)


def _counts(gpus: str) -> list[int]:
    """`2,4` as numbers. Raises UsageError."""
    counts = [part.strip() for part in gpus.split(",")]
    if not all(count.isdecimal() for count in counts):
        raise UsageError(f"--gpus {gpus} is no number of GPUs", expected="2 or more; several with commas, as 2,4",
                         hint="correct it")  # fmt: skip
    return [*map(int, counts)]
