"""longgen plan: what would run, as text, JSON or tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
                               preset.layers, preset.probe, allow_code=preset.allow_code, conditions=conditions,
                               **_of_least(gpus, guidance_parallel)))  # fmt: skip
    inputs.check_fit(context, [plan])
    if npz is not None:
        _export(plan, npz, options.overwrite)
        logger(options.quiet)(f"tables written to {npz}")
    dtype_name = dtype or plan.spec.dtype
    data = plan_dict(plan) | {"memory_bytes": cost.memory_bytes(plan, dtype_name, offload), "estimate": None}
    lines: list[str] = []
    if guidance_parallel and gpus is None:
        raise UsageError("--guidance-parallel needs --gpus", expected="both, or none", hint="add --gpus 2")
    if gpus is not None:
        data["gpus"], lines = _split(plan, gpus, guidance_parallel, dtype_name, offload)
    if not plan.spec.built_in:
        shown_card = shown_card or cards.card_here() or cards.CARDS[cards.DEFAULT]
        data["estimate"] = {
            "card": shown_card.name,
            "seconds": round(cost.seconds(plan, shown_card, dtype_name), 1),
            "measured": False,
        }
    text = plan_text(plan, dtype_name, offload, card=None if plan.spec.built_in else shown_card)
    answer("\n".join([text, *lines]), data, options.as_json)


def _of_least(gpus: str | None, guidance_parallel: bool) -> dict[str, Any]:
    """What a recommended preset takes into account: the first number of GPUs, which `_split` checks."""
    first = (gpus or "").split(",")[0].strip()
    return {"gpus": int(first), "guidance_parallel": guidance_parallel} if first.isdecimal() and 2 <= int(first) <= 1024 else {}


def _split(plan: Plan, gpus: str, guidance_parallel: bool, dtype: str, offload: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What one GPU has of `plan`, for each of the numbers `gpus`, as data and as lines. Raises UsageError where none can be."""
    from longgen import split
    from longgen.backbones.settings import ModelSettings
    from longgen.units import human_bytes

    counts = [int(part) if part.strip().isdecimal() else 0 for part in gpus.split(",")]
    if min(counts) < 2 or max(counts) > 1024:
        raise UsageError(
            f"--gpus {gpus} is no number of GPUs", expected="2 or more; several with commas, as 2,4", hint="correct it"
        )
    found: list[dict[str, Any]] = []
    lines, errors = [""], []
    ways = {"heads": "tokens and heads shared", "clips": "clips shared out", "whole": "guidance's two calls apart"}
    for count in dict.fromkeys(counts):
        settings = ModelSettings("cuda", dtype, offload=offload, gpus=count, guidance_parallel=guidance_parallel)
        try:
            rank = split.numbers(plan, settings)
        except UsageError as error:
            errors.append(error)
            lines.append(f"on {count} GPUs: refused, {error.given}")
            continue
        found.append(rank)
        how = ways[rank["how"]] + ", guidance's two calls apart" * (rank["guidance_parallel"] and rank["how"] != "whole")
        lines.append(f"on {count} GPUs: {how}; each {rank['arithmetic']:.3f} of the arithmetic, {human_bytes(rank['peak_bytes'])} "
                     f"peak, {human_bytes(rank['sent_bytes'])} sent a step")  # fmt: skip
    if not found:
        raise errors[0]
    return found, lines


def _export(plan: Plan, export: Path, overwrite: bool) -> None:
    """Writes the tables of `plan` as a NumPy archive."""
    import numpy as np

    from longgen import disk

    if export.suffix != ".npz":
        raise UsageError(f"--npz {export}: tables are written as a NumPy archive", expected="a name ending in .npz",
                         hint=f"use {export.with_suffix('.npz')}")  # fmt: skip
    disk.check_new(export, overwrite, "--npz")
    if not export.parent.is_dir():
        raise LonggenError(f"{export} cannot be written: {export.parent} does not exist", expected="an existing folder",
                           hint="create it, or give another --npz")  # fmt: skip

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plan.arrays())

    disk.replace_file(export, write)
