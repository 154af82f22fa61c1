"""longgen generate: from flags to videos."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longgen.cli import inputs, messages
from longgen.cli import options as opt
from longgen.cli.app import about_video, answer, app, logger, progress_shown, take_rank, unlogged
from longgen.cli.probe import probe_first
from longgen.errors import BatchError, UsageError, conflict, shown
from longgen.textfile import on_one_line

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.pipelines.base import PipelineBackbone
    from longgen.preview import Preview
    from longgen.ranks import Ranks
    from longgen.resolve import PlanRequest
    from longgen.run import Job
    from longgen.rundir import JobRequest
    from longgen.shards import Shard


@dataclass(frozen=True)
class PromptOptions:
    """What the videos show: one of the first four."""

    words: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]", help="What the video shows, in quotes.")] = None
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The same, as an option.")] = None
    prompts: opt.PromptsFile = None
    schedule: opt.ScheduleFile = None
    negative_prompt: opt.Negative = None

    def settled(self) -> PromptOptions:
        """With the prompt of the argument as that of the option. Raises UsageError for both, and for several arguments."""
        if not self.words:
            return self
        for other, value in (("--prompt", self.prompt), ("--prompts", self.prompts), ("--schedule", self.schedule)):
            if value is not None:
                raise conflict(
                    f"the prompt {shown(self.words[0], 60)}", other, hint=f"leave one out; after {other} comes its value"
                )
        if len(self.words) > 1:
            quoted = shlex.quote(on_one_line(" ".join(self.words), 200))
            raise UsageError(f"the prompt is {len(self.words)} arguments: {', '.join(map(shown, self.words))[:200]}",
                             expected="one, in quotes", hint=f"longgen generate {quoted} and then the options")  # fmt: skip
        return dataclasses.replace(self, words=None, prompt=self.words[0])


@dataclass(frozen=True)
class RunOptions:
    """Where the videos go, and what becomes of what is there already."""

    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE|DIR",
                     help="A name in .mp4, .webm or .gif (default: PROMPT-SEED.mp4 here, numbered if another run has that name)"),
    ] = None  # fmt: skip
    resume: Annotated[bool, typer.Option("--resume", help="Continue the stopped run of this output.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over, and replace existing files.")] = False
    preview: Annotated[
        str | None,
        typer.Option("--preview", metavar="[EVERY]", help="Keep a strip of frames in the run's folder while sampling, a new one "
                                                          "every so many steps; alone: as often as costs 3% of the time."),
    ] = None  # fmt: skip
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would run, load nothing.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each video as it is finished.")] = False
    quiet: opt.Quiet = False
    log_file: opt.LogFile = None


@app.command()
def generate(
    context: typer.Context,
    text: PromptOptions,
    start: opt.StartOptions,
    sample: opt.SampleOptions,
    *,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, max=2**63 - 1, envvar="LONGGEN_SEED", help="The seed of the noise (default: drawn and printed)."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N", help="A video for each prompt and each of these seeds, as 0,1,2.")
    ] = None,
    fps: opt.Fps = None,
    preset: opt.PresetOptions,
    backbone: opt.Backbone = None,
    model: opt.ModelOptions,
    together: opt.RankOptions,
    cluster: opt.ClusterOptions,
    options: RunOptions,
) -> None:
    """Make a video, or one for each line of a file of prompts."""
    from longgen.progress import working
    from longgen.resolve import PlanRequest

    take_rank()
    text = text.settled()
    if options.resume and options.overwrite:
        raise conflict("--resume", "--overwrite")
    every = _preview_every(options.preview)
    if options.preview is not None and cluster.ray is not None:
        raise conflict("--preview", "--ray", "workers have no terminal")
    shard = cluster.checked()
    apart = cluster.ray is not None or shard is not None
    if apart:
        if text.prompts is None and seeds is None:
            raise UsageError(f"{'--ray' if shard is None else '--shard'} shares out several videos, and this makes one",
                             expected="--prompts FILE, or --seeds N,N", hint="--gpus N splits one video")  # fmt: skip
        if "gpus" in opt.given_options(context) and (together.gpus or 1) > 1:
            raise conflict("--ray" if shard is None else "--shard", f"--gpus {together.gpus}", "each video is made by one GPU")
    loading = model.settings() | (together.settings() if not apart else {"gpus": 1, "guidance_parallel": False})

    def chosen(quiet: bool) -> tuple[list[Job], ModelSettings]:
        """The videos and how the model is loaded, from all that the command line names. Raises LonggenError and its kinds."""
        own, of_run = dataclasses.replace(options, quiet=quiet), dict(loading)
        if options.resume and options.output and text.prompt is None and text.prompts is None and text.schedule is None:
            stored, changes = inputs.stored_job(context, Path(options.output), preset.allow_code)
            requested, of_run = [stored], loading | changes
        else:
            size = sample.sample(fps, text.negative_prompt)
            schedule = inputs.read_schedule(text.schedule, text.prompt, text.prompts)
            conditions = start.conditions(options.output if options.resume else None)
            spec = inputs.choose_backbone(backbone, quiet)
            request = PlanRequest(preset.preset, spec, (*(preset.overrides or ()),), size, sample.duration, schedule, preset.layers,
                                  preset.probe, loading["lora"], preset.allow_code, conditions, loading["gpus"],
                                  loading["guidance_parallel"])  # fmt: skip
            if seeds is not None and "seed" in opt.given_options(context):
                raise conflict("--seeds", "--seed")
            requested = _requested(text, request, seed, seeds, loading, own, shard is not None)
            inputs.check_fit(context, [job.plan for job in requested])
        if shard is not None:
            requested = _share(shard, requested)
        return _jobs(requested, inputs.model_settings(requested[0].plan.spec, of_run), own)

    team = _ranks(loading, options)
    if team is None:
        with unlogged():
            chosen(quiet=True)  # refuses here, before processes are started, which then say the notes
        return _launch(loading["gpus"])
    with progress_shown(options.quiet or options.dry_run) as report, working("prepare", report):
        jobs, settings = team.decide(lambda: chosen(options.quiet))
    if options.preview is not None and settings.offload == "model":
        raise conflict("--preview", "--offload model", "the transformer would leave the card for each strip",
                       hint="use --offload group, or leave --preview out")  # fmt: skip
    if options.dry_run:
        return _print_dry_run(jobs, settings, options)
    _make(jobs, settings, options, cluster, every)


def _preview_every(text: str | None) -> int | None:
    """The steps between two strips of --preview; None where the time decides. Raises UsageError."""
    if text in (None, "auto"):
        return None
    if not (text or "").isdecimal() or not 1 <= int(text or "0") <= 10_000:
        raise UsageError(f"--preview {shown(text)} is no number of steps", expected="1 to 10000, or --preview alone",
                         hint="correct it")  # fmt: skip
    return int(text or "0")


def _share(shard: Shard, requested: list[JobRequest]) -> list[JobRequest]:
    """Those of `requested` that are of `shard`. Raises UsageError where there are none, or seeds that each job would draw."""
    from longgen import cost

    own = [requested[index] for index in shard.of([cost.ratio(request.plan) for request in requested])]
    if not own:
        raise UsageError(f"--shard {shard} has no video: there are {len(requested)}",
                         expected="at most as many shards as videos", hint="use fewer shards")  # fmt: skip
    return own


def _ranks(loading: dict[str, Any], options: RunOptions) -> Ranks | None:
    """This process among those that make the videos; None where they are to be started. Raises UsageError."""
    from longgen import launch, ranks
    from longgen.backbones.defaults import default_device

    size = loading["gpus"]
    if size == 1:
        return ranks.ALONE
    device = loading["device"] or default_device()
    launch.check_device(size, device)
    if ranks.from_environment().size == 1:
        launch.check(size, device, sys.argv[1:])
        return ranks.ALONE if options.dry_run else None
    team = ranks.join(size, device)
    if (of_first := ranks.agree(sys.argv[1:])) != sys.argv[1:]:
        raise UsageError(f"the command differs from that of rank 0: {on_one_line(' '.join(of_first), 300)}",
                         expected="the same command on all ranks, which make one video together",
                         hint="for a video each, unset WORLD_SIZE, or SLURM_NTASKS")  # fmt: skip
    return team


def _launch(size: int) -> None:
    """Starts the ranks, which run this command, and waits for them. Raises what ended them."""
    from longgen import launch

    if (ended := launch.run(size, sys.argv[1:])) is not None:
        about_video(ended.video)
        raise ended.error


def _jobs(requested: list[JobRequest], settings: ModelSettings, options: RunOptions) -> tuple[list[Job], ModelSettings]:
    """The jobs of `requested`, with the LoRAs of their preset in the settings; notes settings without effect."""
    from longgen import rundir
    from longgen.pipelines.checks import check_plan
    from longgen.pipelines.preset_lora import settings_of

    settings = settings_of(requested[0].plan, settings)  # rows whose presets bring others are refused
    jobs = rundir.jobs_of(requested, settings, options.resume, options.overwrite)
    plans = dict.fromkeys(job.plan for job in jobs)
    inputs.say_notes((note for plan in plans for note in check_plan(plan, settings)), options.quiet)
    return jobs, settings


def _make(
    jobs: list[Job], settings: ModelSettings, options: RunOptions, cluster: opt.ClusterOptions, preview_every: int | None
) -> None:
    """Makes the videos, each with its line as soon as it is finished. Raises BatchError, and what `run.generate_jobs` does."""
    from longgen import run
    from longgen.cli.lines import Lines

    lines = Lines(jobs, options.as_json, options.quiet)
    with progress_shown(options.quiet) as report, lines.under_way():
        log = logger(options.quiet)
        if cluster.ray is None:
            preview = None if options.preview is None else _preview(preview_every, log)
            results = run.generate_jobs(jobs, settings, options.resume, report, log, options.overwrite, lines.show, preview)
        else:
            from longgen.cluster import pool, tasks

            with pool.pool(cluster.ray, cluster.ray_workers, jobs[0].plan.spec, settings.device, jobs[0].output.parent, log) as own:
                results = tasks.videos(own, jobs, settings, options.resume, options.overwrite, report, log, lines.show)
    lines.finish()
    if failed := sum(isinstance(result, run.Failure) for result in results):
        raise BatchError(f"{failed} of {len(results)} videos failed",
                         hint="the same command with --resume makes the rest; seeds that were drawn need --seed N")  # fmt: skip


def _preview(every: int | None, log: Callable[[str], None]) -> Callable[[PipelineBackbone, Job], Preview]:
    """What makes the preview of a video: its strips are drawn above the bars, in a terminal that can."""
    from longgen import bars, preview, rundir

    def draw(png: bytes) -> None:
        if (sequence := preview.escapes(png)) is not None:
            bars.draw(sequence)

    return lambda backbone, job: preview.Preview(backbone, job.plan, rundir.run_folder(job.output), every, draw, log)


def _requested(
    text: PromptOptions,
    request: PlanRequest,
    seed: int | None,
    seeds: str | None,
    loading: dict[str, Any],
    options: RunOptions,
    sharded: bool = False,
) -> list[JobRequest]:
    """The videos of a prompt, a file of prompts or a schedule; with `--probe run` after a probe."""
    from longgen import naming
    from longgen.prompts import Row

    shots = request.schedule.shots if request.schedule else ()
    rows = [Row(prompt=shots[0].prompt)] if shots else inputs.read_rows(text.prompt, text.prompts, options.quiet)
    if seeds is not None:
        rows = inputs.with_seeds(rows, inputs.parse_seeds(seeds))
    drawn = seed is None and any(row.seed is None for row in rows)
    if sharded and drawn:
        raise UsageError("--shard needs --seed: each job would draw its own, and could not go on with its videos",
                         expected="--seed N, --seeds N,N, or a column seed", hint="add it")  # fmt: skip
    if text.prompts is not None and options.resume and drawn:
        raise UsageError("--prompts with --resume needs --seed: a drawn seed cannot be recovered",
                         expected="--seed N, as printed by the first run, or a column seed", hint="add it")  # fmt: skip
    several = "--prompts" if text.prompts is not None else "--seeds" if seeds is not None else None
    if several is not None and options.output is not None and naming.is_video(options.output):
        raise UsageError(f"{several} makes several videos, but --output {options.output} names a single file", expected="a folder",
                         hint="give --output a folder")  # fmt: skip
    if request.probe == "run":
        if loading["gpus"] > 1:
            raise conflict("--probe run", f"--gpus {loading['gpus']}", "a probe runs on one GPU",
                           hint="longgen probe first; its result is stored")  # fmt: skip
        if options.dry_run:
            raise conflict("--probe run", "--dry-run", "it runs the model",
                           hint="longgen probe first; --dry-run then uses the stored probe")  # fmt: skip
        probed = inputs.first_to_probe(rows, request)
        probe = probe_first(probed.load_preset(), request.spec, loading, options.quiet, probed.conditions)
        request = dataclasses.replace(request, probe=probe)
    if options.resume and several is None and seed is None:
        seed = inputs.stored_seed(options.output)
    if options.resume and request.preset is None:
        rows = inputs.with_stored_presets(rows, request, seed, options.output, options.quiet)
    plans = inputs.plans_of_rows(rows, request, options.quiet)
    requested = inputs.jobs_of_rows(rows, plans, seed, options.output, options.quiet)
    inputs.warn_of_grammar(request.spec, [shot.prompt for shot in shots or rows], options.quiet)
    return requested


def _print_dry_run(jobs: list[Job], settings: ModelSettings, options: RunOptions) -> None:
    from longgen.cli.estimates import Times
    from longgen.describe import plan_dict, plan_text, start_dict
    from longgen.pipelines.checks import check_settings
    from longgen.pipelines.token_limit import cut_notes, tokenizer_on_disk
    from longgen.terminal import refilled

    plans = dict.fromkeys(job.plan for job in jobs)
    spec = jobs[0].plan.spec
    inputs.say_notes(check_settings(spec, settings), options.quiet)
    tokenizer = tokenizer_on_disk(spec)
    inputs.say_notes((note for job in jobs for note in cut_notes(job.plan, [job.prompt], tokenizer)), options.quiet)
    texts, times = [], Times(settings)
    for plan in plans:
        outputs = ", ".join(str(job.output) for job in jobs if job.plan is plan)
        texts.append(
            f"{plan_text(plan, settings.dtype, settings.offload, tables=False, notes=False)}\n{times.line(plan)}\n"
            f"would write: {outputs}"
        )
    videos = [{"prompt": job.prompt, "seed": job.seed, "output": str(job.output), "preset": job.plan.preset.name,
               "frames": job.plan.frames_px, "starts_from": start_dict(job.plan),
               "sample": job.plan.sample.model_dump(mode="json")} for job in jobs]  # fmt: skip
    if len(jobs) > 1 and (whole := times.whole([job.plan for job in jobs])):
        texts.append(whole)
    data = (
        plan_dict(jobs[0].plan)
        | {"estimate": times.as_dict(jobs[0].plan)}
        | {"outputs": [str(job.output) for job in jobs], "videos": videos}
    )
    answer(refilled("\n\n".join(texts), messages.stdout_columns()), {"status": "planned"} | data, options.as_json, indent=None)
