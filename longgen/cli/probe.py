"""longgen probe: which layers of a backbone are sensitive to position and to context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longgen import export, units
from longgen.cli import inputs, messages
from longgen.cli import options as opt
from longgen.cli.app import answer, app, logger, progress_shown

if TYPE_CHECKING:
    from longgen.backbones.spec import BackboneSpec
    from longgen.conditions import Conditions
    from longgen.preset import Preset

METRICS = Literal["attention", "latent", "video"]


@dataclass(frozen=True)
class RunsOptions:
    """The generations that are measured."""

    backbone: opt.Backbone = None
    frames: Annotated[int | None, opt.frames_option("4 times its native length")] = None
    duration: opt.Duration = None
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="In place of two built-in prompts.")] = None
    prompts: opt.PromptsFile = None
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="The first frame of every run; for videos that start from one.")
    ] = None
    fit: opt.Fit = "crop"
    seeds: opt.Seeds = "0,1"


@dataclass(frozen=True)
class JudgeOptions:
    """How scores become verdicts on layers."""

    metric: Annotated[
        METRICS | None,
        typer.Option("--metric", help="The score that decides: of attention itself, or of what changing it does to latents or "
                     "video (default: latent)."),
    ] = None  # fmt: skip
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, help="Layers that score higher are sensitive (default: split at the largest gap)."),
    ] = None
    top: Annotated[
        int | None, typer.Option("--top", min=0, metavar="K", help="The K layers with the highest scores are sensitive.")
    ] = None


@dataclass(frozen=True)
class ReportOptions:
    """What is measured anew, and where the report goes."""

    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps of each run (default: 10 at most).")] = None
    size: opt.Size = None
    quick: Annotated[bool, typer.Option("--quick", help="Observe two ordinary generations; change no layer.")] = False
    heads: Annotated[
        bool, typer.Option("--heads", help="Also what each attention head sees of the past; for causal backbones.")
    ] = False
    again: Annotated[bool, typer.Option("--again", help="Repeat measurements that are already stored.")] = False
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the report goes (default: probe-BACKBONE-FRAMES here)."),
    ] = None
    export: opt.Export = None
    overwrite: opt.Overwrite = False
    log_file: opt.LogFile = None


@app.command()
def probe(
    context: typer.Context, runs: RunsOptions, judge: JudgeOptions, options: ReportOptions, device: opt.DeviceOptions,
    cluster: opt.RayOptions, lora: opt.Lora = None, vae: opt.Vae = None, text_encoder: opt.TextEncoder = None,
    as_json: opt.Json = False, quiet: opt.Quiet = False,
) -> None:  # fmt: skip
    """Find the layers that are sensitive to position and to context.

    Presets such as freeloc use the result. Takes many short generations; with --quick two long ones.
    """
    from longgen import start
    from longgen.api.probe import log_report, reported
    from longgen.probe import measure
    from longgen.probe.report import text

    cluster.check_workers()
    formats = export.parse(options.export)
    spec = inputs.choose_backbone(runs.backbone, quiet)
    texts = None if runs.prompt is None and runs.prompts is None else inputs.read_prompts(runs.prompt, runs.prompts, quiet)
    if texts is not None:
        inputs.warn_of_grammar(spec, texts, quiet)
    conditions = start.read(runs.image, fit=runs.fit)
    start.check_fit("fit" in opt.given_options(context), bool(conditions))
    parts = {"lora": tuple(lora or ()), "vae": vae, "text_encoder": text_encoder}
    how = inputs.model_settings(spec, device.settings() | parts)
    frames = units.frames_asked(runs.frames, runs.duration, spec.fps)
    settings = measure.make_settings(
        spec, "quick" if options.quick else "full", frames, options.steps, texts, inputs.parse_seeds(runs.seeds),
        opt.parse_size(options.size), how.dtype, how.lora, conditions, options.heads,
    )  # fmt: skip
    log = logger(quiet)
    with progress_shown(quiet) as on_progress:

        def spread(folder: Path) -> None:
            from longgen.cluster import pool, tasks

            assert cluster.ray is not None
            with pool.pool(cluster.ray, cluster.ray_workers, spec, how.device, folder, log) as workers:
                tasks.probe_samples(workers, spec, settings, how, conditions, on_progress, log, folder)

        rule, apart = (judge.metric, judge.threshold, judge.top), None if cluster.ray is None else spread
        made = reported(spec, how, settings, rule, options.output, options.again, options.overwrite, conditions, log, on_progress,
                        apart, formats)  # fmt: skip
    answer(text(made.probe, messages.report_columns()), made.as_dict(), as_json, wrote=True)
    log_report(made, log)


def probe_first(preset: Preset, spec: BackboneSpec, loading: dict[str, Any], quiet: bool, conditions: Conditions) -> str:
    """`--probe run`: a quick probe at the length of the preset's video; see `longgen.api.probe.quick`."""
    from longgen.api.probe import quick

    with progress_shown(quiet) as report:
        return quick(preset, spec, inputs.model_settings(spec, loading), conditions, logger(quiet), report)
