"""longgen plan: what would run, as text, JSON or tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longgen.cli import inputs
from longgen.cli import options as opt
from longgen.cli.app import answer, app, logger
from longgen.errors import LonggenError, UsageError, conflict

if TYPE_CHECKING:
    from longgen.plan import Plan


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
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE.npz", help="Write the frame-plan tables.")] = None,
    options: opt.OutputOptions,
) -> None:
    """Show what would run: its tables, its cost relative to direct sampling, its memory and time, estimated. Loads no weights."""
    from longgen import cards, cost
    from longgen.describe import plan_dict, plan_text
    from longgen.resolve import PlanRequest, resolve

    if preset.probe == "run":
        raise conflict("--probe run", "plan", "it runs the model, and plan loads no weights", "a probe's file, or published",
                       "longgen probe first; plan then uses the stored probe")  # fmt: skip
    shown_card = cards.card_named(card) if card is not None else None
    spec, overrides = inputs.choose_backbone(backbone, quiet=True), (*(preset.overrides or ()),)
    if spec.built_in and "card" in opt.given_options(context):  # a variable may be set for other models
        raise UsageError(f"--card has no effect on {spec.name}: no time on a GPU is estimated for built-in models",
                         expected="--card with a published model", hint="leave it out, or give another --backbone")  # fmt: skip
    conditions = start.conditions()
    plan = resolve(PlanRequest(preset.preset, spec, overrides, sample.sample(fps), sample.duration, inputs.read_schedule(schedule),
                               preset.layers, preset.probe, allow_code=preset.allow_code, conditions=conditions))  # fmt: skip
    inputs.check_fit(context, [plan])
    if export is not None:
        _export(plan, export, options.overwrite)
        logger(options.quiet)(f"tables written to {export}")
    dtype_name = dtype or plan.spec.dtype
    data = plan_dict(plan) | {"memory_bytes": cost.memory_bytes(plan, dtype_name, offload), "estimate": None}
    if not plan.spec.built_in:
        shown_card = shown_card or cards.card_here() or cards.CARDS[cards.DEFAULT]
        data["estimate"] = {
            "card": shown_card.name,
            "seconds": round(cost.seconds(plan, shown_card, dtype_name), 1),
            "measured": False,
        }
    answer(plan_text(plan, dtype_name, offload, card=None if plan.spec.built_in else shown_card), data, options.as_json)


def _export(plan: Plan, export: Path, overwrite: bool) -> None:
    """Writes the tables of `plan` as a NumPy archive."""
    import numpy as np

    from longgen import disk

    if export.suffix != ".npz":
        raise UsageError(f"--export {export}: tables are written as a NumPy archive", expected="a name ending in .npz",
                         hint=f"use {export.with_suffix('.npz')}")  # fmt: skip
    disk.check_new(export, overwrite, "--export")
    if not export.parent.is_dir():
        raise LonggenError(f"{export} cannot be written: {export.parent} does not exist", expected="an existing folder",
                           hint="create it, or give another --export")  # fmt: skip

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plan.arrays())

    disk.replace_file(export, write)
