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
from longgen.cli import complete, inputs, messages
from longgen.cli import options as opt
from longgen.cli.app import answer, app, logger, progress_shown
from longgen.errors import UsageError

if TYPE_CHECKING:
    from longgen.api.compare import Measures
    from longgen.backbones.spec import BackboneSpec
    from longgen.compare.record import Comparison
    from longgen.compare.run import Make
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

    def all(self) -> Measures:
        """The same, for the function."""
        from longgen.api.compare import Measures

        return Measures(self.baseline, self.metrics, self.vbench_weights, tuple(self.vbench_json or ()), self.export_vbench,
                        export.parse(self.export))  # fmt: skip


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
    compare_new(spec, requests, texts, seeds, loading, output, measures, options, cluster)


def compare_new(
    spec: BackboneSpec,
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
        from longgen.api.compare import of_grid

    shard = cluster.checked()
    settings, log = inputs.model_settings(spec, loading), logger(options.quiet)
    with progress_shown(options.quiet) as report, contextlib.ExitStack() as held:

        def on_cluster(folder: Path) -> Make:
            from longgen.cluster import pool, tasks

            assert cluster.ray is not None
            workers = pool.pool(cluster.ray, cluster.ray_workers, spec, settings.device, folder, log)
            return functools.partial(tasks.cells, held.enter_context(workers), report=report, log=log)

        make_in = None if cluster.ray is None else on_cluster
        made = of_grid(
            spec, requests, prompts, seeds, settings, output, measures.all(), options.overwrite, log, report, shard, make_in
        )
    show(*made, measures, options)


def compare_existing(videos: list[Path], output: Path | None, measures: MetricOptions, options: opt.OutputOptions) -> None:
    """`longgen compare VIDEO VIDEO`. The folder of an earlier comparison alone is compared again, in place."""
    from longgen.api.compare import of_videos

    with progress_shown(options.quiet) as report:
        made = of_videos(videos, output, measures.all(), options.overwrite, report)
    show(*made, measures, options)


def show(comparison: Comparison, folder: Path, measures: MetricOptions, options: opt.OutputOptions) -> None:
    """The comparison on stdout, its files for papers, its videos laid out for VBench; a BatchError where a video failed."""
    from longgen.api.compare import finished
    from longgen.compare.table import text

    answer(text(comparison, messages.report_columns()), comparison.as_dict(), options.as_json, wrote=True)
    finished(comparison, folder, measures.all(), options.overwrite, logger(options.quiet))
