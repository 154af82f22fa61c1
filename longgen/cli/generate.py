"""longgen generate: from flags to videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longgen.cli.app import answer, app, reports_errors, say
from longgen.cli.inputs import (
    asked_of,
    kept_seed,
    make_setup,
    parse_size,
    plan_of_record,
    plans_of_rows,
    preset_asked,
    read_rows,
    read_schedule,
    rows_of,
    say_notes,
    warn_of_grammar,
)
from longgen.cli.options import (
    Attention,
    Backbone,
    Cache,
    ClipBatch,
    Compile,
    Device,
    Dtype,
    Duration,
    FlowShift,
    Fps,
    Frames,
    Guidance,
    Json,
    Layers,
    Lora,
    Negative,
    Offload,
    Preset,
    Probe,
    Quantize,
    Quiet,
    ScheduleFile,
    Set,
    Size,
    Steps,
    Tiling,
)
from longgen.cli.probe import probe_first
from longgen.errors import BatchError, UsageError

if TYPE_CHECKING:
    from longgen.run import Failure, Result


@app.command()
@reports_errors
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What the video shows.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="One prompt a line in .txt; a table in .csv; .jsonl.")
    ] = None,
    schedule: ScheduleFile = None,
    negative_prompt: Negative = None,
    frames: Frames = None,
    duration: Duration = None,
    size: Size = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    flow_shift: FlowShift = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**63 - 1, envvar="LONGGEN_SEED", help="(default: drawn and printed)")
    ] = None,
    fps: Fps = None,
    preset: Preset = "direct",
    set_: Set = None,
    layers: Layers = None,
    probe: Probe = None,
    backbone: Backbone = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = "none",
    lora: Lora = None,
    quantize: Quantize = None,
    attention: Attention = None,
    cache: Cache = None,
    compile_: Compile = False,
    vae_tiling: Tiling = False,
    clip_batch: ClipBatch = 1,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE.mp4|DIR", help="(default: PROMPT-SEED.mp4 here, numbered where that is another run's)"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where this output's run was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again, and replace what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would run, load nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a video, or one for each line of a file of prompts."""
    from longgen import run
    from longgen.pipelines.checks import check_settings, unused_settings

    flags = dict(frames=frames, size=None if size is None else parse_size(size), steps=steps, guidance_scale=guidance_scale,
                 negative_prompt=negative_prompt, flow_shift=flow_shift, fps=fps)  # fmt: skip
    if resume and overwrite:
        raise UsageError("--resume and --overwrite are both given", expected="one of them", hint="leave one out")
    loading = dict(device=device, dtype=dtype, offload=offload, lora=tuple(lora or ()), quantize=quantize, attention=attention,
                   cache=cache, compile=compile_, vae_tiling=vae_tiling, clip_batch=clip_batch)  # fmt: skip
    if prompt is None and prompts is None and schedule is None and resume and output:
        plan, asked, kept = plan_of_record(context, Path(output))
        loading |= kept
    else:
        shots = read_schedule(schedule, prompt, prompts)
        rows = rows_of(shots) if shots else read_rows(prompt, prompts, quiet)
        if prompts is not None and resume and seed is None and any(row.seed is None for row in rows):
            raise UsageError("--prompts with --resume and no --seed: a drawn seed cannot be found again",
                             expected="--seed N, as printed by the first run, or a column seed", hint="add it")  # fmt: skip
        if prompts is not None and output is not None and Path(output).suffix.lower() == ".mp4":
            raise UsageError(f"--prompts makes several videos, and --output {output} names one file", expected="a folder",
                             hint="give --output a folder")  # fmt: skip
        if probe == "run":
            if dry_run:
                raise UsageError("--probe run runs the model, and --dry-run loads nothing", expected="one of them",
                                 hint="longgen probe first; --dry-run then takes what is kept")  # fmt: skip
            probe = probe_first(*preset_asked(preset, set_, backbone, flags, duration), loading, quiet)
        plans = plans_of_rows(rows, preset, set_, backbone, flags, duration, quiet, shots, layers, probe, tuple(lora or ()))
        plan = plans[0]
        if resume and prompts is None and seed is None:
            seed = kept_seed(output)
        asked = asked_of(rows, plans, seed, output, quiet)
        warn_of_grammar(plan.spec, [shot.prompt for shot in shots.shots] if shots else [row.prompt for row in rows], quiet)
    model_settings = make_setup(plan.spec, loading)
    jobs = run.jobs_of(asked, model_settings, resume, overwrite)
    plans = [*dict.fromkeys(job.plan for job in jobs)]
    say_notes((note for one in plans for note in unused_settings(one, model_settings)), quiet)
    if dry_run:
        from longgen.describe import plan_text
        from longgen.pipelines.token_limit import cut_notes, tokenizer_on_disk

        say_notes(check_settings(plan.spec, model_settings), quiet)
        tokenizer = tokenizer_on_disk(plan.spec)
        say_notes((note for job in jobs for note in cut_notes(job.plan, [job.prompt], tokenizer)), quiet)
        names = [str(job.output) for job in jobs]
        texts = []
        for one in plans:
            own = [str(job.output) for job in jobs if job.plan is one]
            texts.append(
                f"{plan_text(one, model_settings.dtype, offload, tables=False, notes=False)}\nwould write: {', '.join(own)}"
            )
        described = [{"prompt": job.prompt, "seed": job.seed, "output": str(job.output), "preset": job.plan.preset.name,
                      "frames": job.plan.frames_px, "sample": job.plan.sample.model_dump(mode="json")} for job in jobs]  # fmt: skip
        return answer("\n\n".join(texts), plan.as_dict() | {"outputs": names, "videos": described}, as_json)
    from longgen.progress import reporter

    log = (lambda text: None) if quiet else say
    with reporter(quiet, say) as report:
        results = run.generate_jobs(jobs, model_settings, resume, report, log, overwrite)
    report_results(results, as_json, single=prompts is None)


def report_results(results: list[Result | Failure], as_json: bool, single: bool) -> None:
    """Results on stdout; a BatchError where some failed."""
    import dataclasses

    data = [dataclasses.asdict(result) for result in results]
    made, asked = [entry["output"] for entry in data if "error" not in entry], len(results)
    answer("\n".join(made), data[0] if single else data, as_json, made=bool(made))
    if len(made) < asked:
        raise BatchError(
            f"{asked - len(made)} of {asked} videos failed", hint="the same command with --resume --seed N makes the rest"
        )
