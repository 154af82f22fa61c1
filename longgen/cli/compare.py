"""longgen compare: a grid of presets, prompts and seeds, or existing videos, as one video, one table and one page."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longgen import export
from longgen.cli import complete, inputs
from longgen.cli import options as opt
from longgen.cli.app import answer, app, logger, progress_shown
from longgen.cli.probe import probe_first
from longgen.errors import BatchError, UsageError

if TYPE_CHECKING:
    from longgen.compare.record import Comparison
    from longgen.resolve import PlanRequest

OF_VIDEOS = {  # the options that apply to existing videos
    "videos", "baseline", "metrics", "vbench_weights", "vbench_json", "export_vbench", "export", "output", "overwrite", "as_json",
    "quiet", "log_file",
}  # fmt: skip


@dataclass(frozen=True)
class GridOptions:
    """The grid: presets, prompts and seeds."""

    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What the videos show.")] = None
    prompts: opt.PromptsFile = None
    presets: Annotated[
        str | None,
        typer.Option(
            "--presets",
            metavar="NAME,NAME",
            autocompletion=complete.list_of_presets,
            help="Presets or TOML files, as direct,sliding-window,freespec.",
        ),
    ] = None
    seeds: opt.Seeds = "0"
    negative_prompt: opt.Negative = None


@dataclass(frozen=True)
class MetricOptions:
    """What is measured on the videos, and against which preset."""

    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="PRESET",
            autocompletion=complete.presets,
            help="The preset that differences are relative to (default: direct, if compared).",
        ),
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="NAME,NAME", help="The metrics to show, always with motion: own (the default) for all of "
                     "longgen's, vbench for those of VBench whose weights are available, features for those of "
                     "EfficientNet, and single ones, as vbench.subject_consistency."),
    ] = None  # fmt: skip
    vbench_weights: Annotated[
        Path | None,
        typer.Option("--vbench-weights", envvar="LONGGEN_VBENCH_WEIGHTS", metavar="DIR", help="The folder of VBench's weights."),
    ] = None
    vbench_json: Annotated[
        list[Path] | None,
        typer.Option("--vbench-json", metavar="FILE.json|DIR", help="NAME.json: results of VBench's own program, to read and show; "
                     "any other name: a folder to write such files to. Repeatable."),
    ] = None  # fmt: skip
    export_vbench: Annotated[
        Path | None,
        typer.Option("--export-vbench", metavar="DIR", help="Copy the videos for VBench's own program, and print its commands."),
    ] = None
    export: opt.Export = None


@app.command()
def compare(
    context: typer.Context,
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[VIDEO|RUN_DIR]...", help="Existing videos, in place of --presets and a prompt."),
    ] = None,
    *,
    cells: GridOptions,
    start: opt.StartOptions,
    sample: opt.SampleOptions,
    fps: opt.Fps = None,
    overrides: opt.Set = None,
    probe: opt.Probe = None,
    allow_code: opt.AllowCode = False,
    backbone: opt.Backbone = None,
    model: opt.ModelOptions,
    measures: MetricOptions,
    cluster: opt.ClusterOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where everything goes (default: compare-PROMPT here).")
    ] = None,
    options: opt.LoggedOptions,
) -> None:
    """Compare presets: videos side by side, a table of metrics, a page to share.

    Makes a video for each preset, prompt and seed. Existing ones are kept, so that the same command continues after a stop.
    """
    export.parse(measures.export)
    if measures.export_vbench is not None:
        from longgen.metrics.vbench.export import check

        check(measures.export_vbench, options.overwrite)
    if videos:
        others = ", ".join(option for name, option in opt.given_options(context).items() if name not in OF_VIDEOS)
        if others:
            raise UsageError(f"{others} cannot be combined with existing videos: such options are for making new ones",
                             expected="with videos: --baseline, --metrics, --vbench-weights, --vbench-json, --export-vbench, "
                                      "--export, --output, --overwrite, --json, --quiet and --log-file",
                             hint=f"leave out the videos, or {others}")  # fmt: skip
        return compare_existing(videos, output, measures, options)
    if cells.presets is None:
        raise UsageError("nothing to compare", expected="--presets NAME,NAME with --prompt or --prompts; or videos",
                         hint='for example --presets direct,sliding-window --prompt "a red circle"')  # fmt: skip
    from longgen.resolve import PlanRequest
    from longgen.start import check_fit

    texts, seeds = inputs.read_prompts(cells.prompt, cells.prompts, options.quiet), inputs.parse_seeds(cells.seeds)
    spec, loading = inputs.choose_backbone(backbone, options.quiet), model.settings()
    request = PlanRequest("", spec, (*(overrides or ()),), sample.sample(fps, cells.negative_prompt), sample.duration, probe=probe,
                          lora=loading["lora"], allow_code=allow_code, conditions=start.conditions())  # fmt: skip
    check_fit("fit" in opt.given_options(context), bool(request.conditions))
    requests = [replace(request, preset=name) for name in inputs.parse_names(cells.presets)]
    compare_new(requests, texts, seeds, loading, output, measures, options, cluster)


def compare_new(
    requests: Sequence[PlanRequest],
    prompts: list[str],
    seeds: tuple[int, ...],
    loading: dict[str, Any],
    output: Path | None,
    measures: MetricOptions,
    options: opt.OutputOptions,
    cluster: opt.ClusterOptions,
) -> None:
    """`longgen compare --presets NAME,NAME`: makes the videos of the grid that do not exist yet."""
    from longgen.progress import working

    with progress_shown(options.quiet) as report, working("prepare", report):  # imports that take seconds
        from longgen.compare import grid
        from longgen.compare.run import compare_presets, default_folder, earlier_folder, free_folder
        from longgen.pipelines.checks import unused_settings

    shard = cluster.checked()
    if any(request.probe in (None, "run") for request in requests):
        probe = _quick_probe(requests, loading, options.quiet)
        requests = [replace(request, probe=probe) for request in requests]
    plans = grid.plans(requests)
    spec = requests[0].spec
    inputs.say_notes((note for plan in plans for note in plan.notes), options.quiet)
    inputs.warn_of_grammar(spec, prompts, options.quiet)
    settings = inputs.model_settings(spec, loading)
    default = default_folder(prompts)
    planned = grid.planned_videos(plans, dict.fromkeys(prompts), seeds, settings, default)
    if shard is not None:  # its folder has the same name whatever the others do
        folder = (output or default) / shard.folder
    elif output is None and not default.exists() and (earlier := earlier_folder(planned)) is not None:
        folder = earlier
        inputs.say_notes([f"going on in {folder}, which has videos of this comparison; --output names another"], options.quiet)
    else:
        folder = output or free_folder(default, lambda record: [f"videos/{video.name}.mp4" for video in planned])
    check_export(folder, prompts, measures, options.overwrite)
    unused = [unused_settings(plan, settings) for plan in plans]
    if all(unused):  # a setting that one of the presets uses is meant for that one
        inputs.say_notes((note for notes in unused for note in notes), options.quiet)
    with progress_shown(options.quiet) as report, contextlib.ExitStack() as held:
        log, make = logger(options.quiet), None
        if cluster.ray is not None:
            from longgen.cluster import pool, tasks

            workers = pool.pool(cluster.ray, cluster.ray_workers, spec, settings.device, folder / "videos", log)
            make = functools.partial(tasks.cells, held.enter_context(workers), report=report, log=log)
        comparison = compare_presets(
            plans, prompts, seeds, settings, folder, measures.baseline, measures.metrics, report, log, measures.vbench_weights,
            measures.vbench_json or (), options.overwrite, shard, make,
        )  # fmt: skip
    show(comparison, folder, measures, options)


def _quick_probe(requests: Sequence[PlanRequest], loading: dict[str, Any], quiet: bool) -> str | None:
    """The probe that the presets need: with `--probe run` always, else where none is stored or published; None where none is."""
    from longgen.layers import selection

    probing = [request for request in requests if not str(request.preset).endswith(("@all", "@none"))]
    for request, preset in [(request, replace(request, overrides=()).load_preset()) for request in probing]:
        lacks = selection.probe_missing(preset, request.spec, request.lora) and not request.overrides
        if selection.uses_probe(preset) if request.probe == "run" else lacks:
            logger(quiet)(
                f"{preset.name} needs to know which layers of {request.spec.name} are sensitive: running a quick probe first"
            )
            return probe_first(preset, request.spec, loading, quiet, request.conditions)
    return None


def compare_existing(videos: list[Path], output: Path | None, measures: MetricOptions, options: opt.OutputOptions) -> None:
    """`longgen compare VIDEO VIDEO`. The folder of an earlier comparison alone is compared again, in place."""
    from longgen import naming
    from longgen.compare.inputs import expand_paths
    from longgen.compare.run import compare_videos, free_folder

    in_place = len(videos) == 1 and (videos[0] / "compare.json").is_file()
    folder = output or (videos[0] if in_place else Path(f"compare-{naming.slug(videos[0].stem)}"))
    if output is None and not in_place:
        folder = free_folder(folder, lambda record: [str(video.absolute()) for video in expand_paths(videos)])
    check_export(folder, (), measures, options.overwrite or in_place)
    with progress_shown(options.quiet) as report:
        comparison = compare_videos(videos, folder, measures.baseline, measures.metrics, report, measures.vbench_weights,
                                    measures.vbench_json or (), options.overwrite or in_place)  # fmt: skip
    show(comparison, folder, measures, options)


def check_export(folder: Path, prompts: Sequence[str], measures: MetricOptions, overwrite: bool) -> None:
    """Refuses to replace files of `--export` that are not of a comparison in `folder`."""
    from longgen import disk
    from longgen.compare.export import files

    own = (folder / "compare.json").is_file()
    for kind in export.parse(measures.export):
        for name in files(prompts):
            disk.check_new(folder / export.FOLDER / f"{name}.{export.SUFFIXES[kind]}", overwrite, "--export", own)


def show(comparison: Comparison, folder: Path, measures: MetricOptions, options: opt.OutputOptions) -> None:
    """The comparison on stdout, its files for papers, its videos laid out for VBench; a BatchError where a video failed."""
    from longgen.compare.export import exports
    from longgen.compare.table import text
    from longgen.compare.vbench import export_for_vbench

    answer(text(comparison), comparison.as_dict(), options.as_json, wrote=True)
    log = logger(options.quiet)
    for watch in comparison.watch:
        log(f"side by side: {folder / watch.side_by_side}")
    log(f"report: {folder / 'report.html'}")
    if formats := export.parse(measures.export):
        written = exports(comparison).write(formats, folder / export.FOLDER)
        log(f"export: {len(written)} files in {folder / export.FOLDER}: {', '.join(path.name for path in written)}")
    if measures.export_vbench is not None:
        commands = export_for_vbench(comparison, folder, measures.export_vbench, options.overwrite)
        log("\n".join(["VBench's own program, where it is installed, scores the videos with:", *commands,
                       "then --vbench-json FILE with each results_TIME_eval_results.json adds its numbers here"]))  # fmt: skip
    failed = [cell for cell in comparison.cells if cell.status == "failed"]
    if failed:
        raise BatchError(f"{len(failed)} of {len(comparison.cells)} videos failed: {failed[0].name}: {failed[0].error}",
                         hint="the same command makes the rest, and keeps what exists")  # fmt: skip
