"""Flags to inputs: backbone, prompts, seeds, plans and model settings; or the run that --resume continues."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longgen.cli.app import logger
from longgen.cli.options import given_options
from longgen.errors import LonggenError, UsageError, conflict, shown

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.spec import BackboneSpec
    from longgen.plan import Plan
    from longgen.prompts import Row
    from longgen.resolve import PlanRequest
    from longgen.rundir import JobRequest
    from longgen.schedule import PromptSchedule


def choose_backbone(name: str | None, quiet: bool) -> BackboneSpec:
    """The backbone called `name`, or the default on this machine."""
    from longgen.api import choices

    return choices.backbone(name, logger(quiet))


def model_settings(spec: BackboneSpec, values: dict[str, Any]) -> ModelSettings:
    """How to load `spec`: the flags, and defaults for device and dtype."""
    from longgen.api import choices

    return choices.model_settings(spec, values)


def parse_names(text: str) -> list[str]:
    """`direct, freespec` as names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,5` as numbers. Raises UsageError."""
    parts, expected = [part.strip() for part in text.split(",")], "different integers from 0 on, as 0,1,2"
    if not all(re.fullmatch(r"[0-9]{1,19}", part) and int(part) < 2**63 for part in parts):
        raise UsageError(f"--seeds {shown(text)} is not a list of seeds", expected=expected, hint="correct it")
    seeds = tuple(map(int, parts))
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UsageError(f"--seeds {shown(text)}: {repeated[0]} is given twice, and a seed makes one video", expected=expected,
                         hint="leave one out")  # fmt: skip
    return seeds


def say_notes(notes: Iterable[str], quiet: bool) -> None:
    """Each note once, on stderr."""
    for note in dict.fromkeys(notes):
        logger(quiet)(f"note: {note}")


# Prompts


def read_rows(prompt: str | None, prompts: Path | None, quiet: bool) -> list[Row]:
    """One video for a prompt, or those of a file."""
    from longgen import prompts as files

    if prompt is not None and prompts is not None:
        raise conflict("--prompt", "--prompts", expected="--prompt TEXT, or --prompts FILE")
    if prompt is not None:
        return [files.Row(prompt=files.checked(prompt, "--prompt"))]
    if prompts is None:
        raise UsageError("no prompt is given", expected="a prompt in quotes, --prompt TEXT or --prompts FILE",
                         hint='for example --prompt "a red circle"')  # fmt: skip
    rows, notes = files.read(prompts)
    say_notes(notes, quiet)
    return rows


def with_seeds(rows: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    """Each row with each seed. Raises UsageError where a row has a seed of its own, or a name, which is for one video."""
    for row in rows:
        given = "seed" if row.seed is not None else "output" if row.output is not None and len(seeds) > 1 else None
        if given is not None:
            why = "a seed of its own" if given == "seed" else f"a single name for the videos of {len(seeds)} seeds"
            raise UsageError(f"line {row.line} of --prompts gives {why}, and --seeds is given too",
                             expected=f"--seeds, or the column {given}", hint="leave one out")  # fmt: skip
    return [row.model_copy(update={"seed": seed}) for row in rows for seed in seeds]


def read_prompts(prompt: str | None, prompts: Path | None, quiet: bool) -> list[str]:
    """The different prompts, of commands whose settings are the same for all."""
    from longgen.api import choices

    return choices.texts(prompt, prompts, logger(quiet))


def read_schedule(path: Path | None, prompt: str | None = None, prompts: Path | None = None) -> PromptSchedule | None:
    """The schedule of --schedule, which replaces --prompt and --prompts."""
    from longgen import schedule

    if path is None:
        return None
    if prompt is not None or prompts is not None:
        other = "--prompts" if prompt is None else "--prompt"
        raise conflict("--schedule", other, hint=f"leave {other} out")
    return schedule.load(path)


def warn_of_grammar(spec: BackboneSpec, texts: list[str], quiet: bool) -> None:
    """A note where a built-in model does not know a sentence."""
    from longgen.api import choices

    say_notes(choices.grammar_notes(spec, texts), quiet)


# Plans and jobs


def plans_of_rows(rows: Sequence[Row], request: PlanRequest, quiet: bool) -> list[Plan]:
    """The plan of each row: what the row gives, over `request`. Rows with equal settings share a plan. Prints the plans' notes."""
    from longgen.resolve import check_overrides, resolve

    requests = _row_requests(rows, request)
    by_settings: dict[Any, Plan] = {}
    plans: list[Plan] = []
    for row, of_row in zip(rows, requests, strict=True):
        with _naming_line_of(row):
            sample = of_row.sample.model_dump_json()
            start = json.dumps(of_row.conditions.as_dict())
            settings = of_row.preset, of_row.overrides, sample, of_row.duration, of_row.layers, of_row.probe, start
            if settings not in by_settings:
                by_settings[settings] = resolve(of_row)
        plans.append(by_settings[settings])
    check_overrides(request.overrides, requests)
    first = plans[0]
    for row, plan in zip(rows, plans, strict=True):
        if plan.preset.lora_on(plan.spec) != first.preset.lora_on(first.spec):
            other = f"{first.preset.name} in line {rows[0].line}"
            raise UsageError(f"line {row.line} of --prompts: {plan.preset.name} does not have the LoRAs of {other}, and all rows "
                             "share one loaded model", expected="presets with the same LoRAs",
                             hint="a file of prompts for each of them")  # fmt: skip
    say_notes((note for plan in plans for note in plan.notes), quiet)
    return plans


def first_to_probe(rows: Sequence[Row], request: PlanRequest) -> PlanRequest:
    """The request of the first row whose preset leaves its layers to a probe; `request` where none does."""
    from longgen.layers import selection

    requests = _row_requests(rows, request)
    return next((of_row for of_row in requests if selection.uses_probe(of_row.load_preset())), request)


def _row_requests(rows: Sequence[Row], request: PlanRequest) -> list[PlanRequest]:
    """The request of each row. Where rows name presets, each takes the overrides that are meant for it, as in a comparison."""
    several, requests = any(row.preset is not None for row in rows), []
    for row in rows:
        with _naming_line_of(row):
            of_row = _row_request(row, request)
            requests.append(of_row.fitted() if several else of_row)
    return requests


@contextlib.contextmanager
def _naming_line_of(row: Row) -> Iterator[None]:
    try:
        yield
    except LonggenError as error:
        if not row.line:
            raise
        raise type(error)(f"line {row.line} of --prompts: {error.given}", error.expected, error.hint) from None


def _row_request(row: Row, request: PlanRequest) -> PlanRequest:
    """The row's columns over the flags."""
    from longgen.prompts import IMAGES

    sample, duration = request.sample, request.duration if row.frames is None else None
    if row.duration is not None:
        sample, duration = sample.model_copy(update={"frames": None}), row.duration
    given = {column: getattr(row, column) for column in IMAGES if getattr(row, column) is not None}
    return replace(request, preset=row.preset or request.preset, sample=row.sample.over(sample), duration=duration,
                   conditions=replace(request.conditions, **given))  # fmt: skip


def jobs_of_rows(rows: Sequence[Row], plans: Sequence[Plan], seed: int | None, output: str | None, quiet: bool) -> list[JobRequest]:
    """The video of each row; notes rows that would make the same one, byte for byte."""
    from longgen import run, rundir

    jobs = []
    for row, plan in zip(rows, plans, strict=True):
        row_seed = seed if row.seed is None else row.seed
        target = output if row.output is None else str(Path(output or ".") / row.output)
        jobs.append(rundir.JobRequest(plan, row.prompt, run.draw_seed(plan) if row_seed is None else row_seed, target))
    first_lines: dict[Any, int] = {}
    for row, job in zip(rows, jobs, strict=True):
        first = first_lines.setdefault((id(job.plan), job.prompt, job.seed), row.line)
        if first != row.line:
            say_notes([f"lines {first} and {row.line} of --prompts have the same prompt, seed and settings: they make the same "
                       "video twice"], quiet)  # fmt: skip
    return jobs


def check_fit(context: typer.Context, plans: Iterable[Plan]) -> None:
    """Raises UsageError where --fit stands on the command line, and `plans` start from no picture."""
    from longgen import start

    start.check_fit("fit" in given_options(context), any(plan.fits for plan in plans))


# Resuming


def stored_job(context: typer.Context, output: Path, allow_code: bool) -> tuple[JobRequest, dict[str, Any]]:
    """`longgen generate -o ball.mp4 --resume`: the job and the settings that decide the latents, from the run's own record."""
    from longgen import run, rundir
    from longgen.run_settings import model_settings_in

    allowed = {"output", "resume", "allow_code", "device", "offload", "vae_tiling", "gpus", "guidance_parallel", "preview",
               "dry_run", "as_json", "quiet", "log_file"}  # fmt: skip
    others = ", ".join(option for name, option in given_options(context).items() if name not in allowed)
    if others:
        raise UsageError(f"--resume without --prompt takes every setting from the stored run; {others} cannot be combined with it",
                         expected="--output, --allow-code, --device, --offload, --vae-tiling, --gpus, --guidance-parallel, "
                                  "--preview, --dry-run, --json, --quiet and --log-file",
                         hint=f"leave {others} out, or give the whole command again")  # fmt: skip
    return run.stored_request(output, allow_code), model_settings_in(rundir.stored_record(output)["settings"])


def with_stored_presets(rows: Sequence[Row], request: PlanRequest, seed: int | None, output: str | None, quiet: bool) -> list[Row]:
    """Each row with the preset that its run began with, which may be another than the one that this version recommends."""
    from longgen import rundir

    kept, notes = [], []
    for row in rows:
        row_seed = seed if row.seed is None else row.seed
        target = output if row.output is None else str(Path(output or ".") / row.output)
        other = None if row_seed is None else rundir.kept_preset(_row_request(row, request), target, row.prompt, row_seed)
        if other is not None:
            notes.append(f"--resume without --preset goes on with {other}, with which the run began")
            row = row.model_copy(update={"preset": other})
        kept.append(row)
    say_notes(notes, quiet)
    return kept


def stored_seed(output: str | None) -> int:
    """The seed of the run that --resume continues, where --output names it."""
    from longgen import naming, rundir

    if output is None or not naming.is_video(output):
        raise UsageError("--resume without --seed needs the --output FILE.mp4 of the run", expected="--seed N or -o FILE.mp4",
                         hint="add one of them")  # fmt: skip
    return rundir.stored_record(Path(output))["settings"]["seed"]
