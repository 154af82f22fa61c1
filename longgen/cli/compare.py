"""longgen compare: a grid of presets, prompts and seeds, or videos that are there; one video to watch, one table, one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longgen.cli.app import answer, app, reports_errors, say
from longgen.cli.inputs import (
    backbone_asked,
    make_setup,
    parse_size,
    preset_asked,
    read_names,
    read_prompts,
    read_seeds,
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
    Lora,
    Negative,
    Offload,
    Overwrite,
    Probe,
    Quantize,
    Quiet,
    Seeds,
    Set,
    Size,
    Steps,
    Tiling,
)
from longgen.cli.probe import probe_first
from longgen.errors import BatchError, UsageError

if TYPE_CHECKING:
    from longgen.compare.record import Comparison

COMPARED = "the flags give it, and --seeds the seeds"
OF_VIDEOS = {  # what concerns videos that are there
    "videos", "baseline", "metrics", "vbench_weights", "vbench_json", "export_vbench", "output", "overwrite", "as_json", "quiet",
}  # fmt: skip
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="NAME,NAME", help="The metrics to show, always with motion: own (the default) for all of "
                 "longgen's, vbench for VBench's by weights that are here, and single ones, as vbench.subject_consistency."),
]  # fmt: skip
VBenchWeights = Annotated[
    Path | None,
    typer.Option("--vbench-weights", envvar="LONGGEN_VBENCH_WEIGHTS", metavar="DIR", help="Where the weights of VBench are."),
]
VBenchJson = Annotated[
    list[Path] | None,
    typer.Option("--vbench-json", metavar="FILE.json|DIR", help="NAME.json: results of VBench's own program, to read and show; "
                 "any other name: a folder to write such files to. Repeatable."),
]  # fmt: skip
ExportVBench = Annotated[
    Path | None,
    typer.Option("--export-vbench", metavar="DIR", help="Copy the videos for VBench's own program, and say how to run it."),
]


@app.command()
@reports_errors
def compare(
    context: typer.Context,
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[VIDEO|RUN_DIR]...", help="Videos that are there, in place of --presets and a prompt."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What the videos show.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="One prompt a line in .txt; also .csv and .jsonl.")
    ] = None,
    presets: Annotated[
        str | None, typer.Option("--presets", metavar="NAME,NAME", help="Presets or TOML files, as direct,sliding-window,freespec.")
    ] = None,
    seeds: Seeds = "0",
    negative_prompt: Negative = None,
    frames: Frames = None,
    duration: Duration = None,
    size: Size = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    flow_shift: FlowShift = None,
    fps: Fps = None,
    set_: Set = None,
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
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="PRESET", help="What differences are measured against (default: direct, if compared)."),
    ] = None,
    metrics: Metrics = None,
    vbench_weights: VBenchWeights = None,
    vbench_json: VBenchJson = None,
    export_vbench: ExportVBench = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where everything goes (default: compare-PROMPT here).")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare presets: videos side by side, a table of metrics, a page to share.

    Makes a video for each preset, prompt and seed; those that are there are kept, so that the same command goes on after a stop.
    """
    if export_vbench is not None:
        from longgen.metrics.vbench.export import check

        check(export_vbench, overwrite)
    if videos:
        given = [
            name for name in context.params
            if name not in OF_VIDEOS and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
        ]  # fmt: skip
        if given:
            options = ", ".join("--" + name.strip("_").replace("_", "-") for name in given)
            raise UsageError(f"videos that are there are given, and {options}, for making some",
                             expected="with videos: --baseline, --metrics, --vbench-weights, --vbench-json, --export-vbench, "
                                      "--output, --overwrite, --json and --quiet",
                             hint=f"leave out the videos, or {options}")  # fmt: skip
        rest = vbench_weights, vbench_json or (), export_vbench, overwrite, as_json, quiet
        return compare_existing(videos, output, baseline, metrics, *rest)
    if presets is None:
        raise UsageError("there is nothing to compare", expected="--presets NAME,NAME with --prompt or --prompts; or videos",
                         hint='for example --presets direct,sliding-window --prompt "a red circle"')  # fmt: skip
    from longgen import naming, preset
    from longgen.compare import grid
    from longgen.compare.run import compare_presets, free_folder
    from longgen.layers import selection
    from longgen.pipelines.checks import unused_settings
    from longgen.progress import reporter

    def log(message: str) -> None:
        if not quiet:
            say(message)

    loras = tuple(lora or ())
    texts, numbers, spec = read_prompts(prompt, prompts, quiet, COMPARED), read_seeds(seeds), backbone_asked(backbone, quiet)
    names = read_names(presets)
    loading = dict(device=device, dtype=dtype, offload=offload, lora=loras, quantize=quantize, attention=attention,
                   cache=cache, compile=compile_, vae_tiling=vae_tiling, clip_batch=clip_batch)  # fmt: skip
    flags: dict[str, Any] = dict(frames=frames, size=None if size is None else parse_size(size), steps=steps,
                                 guidance_scale=guidance_scale, negative_prompt=negative_prompt, flow_shift=flow_shift,
                                 fps=fps)  # fmt: skip
    if probe is None or probe == "run":
        bare = [preset_asked(name, None, backbone, flags, duration)[0] for name in names if not name.endswith(("@all", "@none"))]
        asking = [
            one
            for one in bare
            if (selection.uses_probe(one) if probe == "run" else selection.probe_missing(one, spec, loras) and not set_)
        ]
        if asking:
            log(f"{asking[0].name} leaves its layers to a probe of {spec.name}: a quick one comes first")
        probe = probe_first(asking[0], spec, loading, quiet) if asking else None
    plans = grid.plans(names, spec, set_ or (), preset.Sample(**flags), duration, probe, loras)
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        log(f"note: {note}")
    warn_of_grammar(spec, texts, quiet)
    model_settings = make_setup(spec, loading)
    default = Path(f"compare-{naming.slug(texts[0])}")
    places = grid.planned_videos(plans, dict.fromkeys(texts), numbers, model_settings, default)
    folder = output or free_folder(default, lambda made: [f"videos/{place.name}.mp4" for place in places])
    idle_in = [unused_settings(plan, model_settings) for plan in plans]
    if all(idle_in):  # where one preset goes by clips, it is meant for that one
        say_notes((note for notes in idle_in for note in notes), quiet)
    with reporter(quiet, say) as report:
        made = compare_presets(
            plans,
            texts,
            numbers,
            model_settings,
            folder,
            baseline,
            metrics,
            report,
            log,
            vbench_weights,
            vbench_json or (),
            overwrite,
        )
    show(made, folder, export_vbench, overwrite, as_json, quiet)


def compare_existing(
    videos: list[Path],
    output: Path | None,
    baseline: str | None,
    metrics: str | None,
    vbench_weights: Path | None,
    vbench_json: Sequence[Path],
    export_vbench: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """`longgen compare VIDEO VIDEO`. A folder of an earlier comparison alone is compared anew in its place."""
    from longgen import naming
    from longgen.compare import inputs
    from longgen.compare.run import compare_videos, free_folder
    from longgen.progress import reporter

    own = len(videos) == 1 and (videos[0] / "compare.json").is_file()
    folder = output or (videos[0] if own else Path(f"compare-{naming.slug(videos[0].stem)}"))
    if output is None and not own:
        folder = free_folder(folder, lambda made: [str(video.absolute()) for video in inputs.expand_paths(videos)])
    with reporter(quiet, say) as report:
        made = compare_videos(videos, folder, baseline, metrics, report, vbench_weights, vbench_json, overwrite or own)
    show(made, folder, export_vbench, overwrite, as_json, quiet)


def show(made: Comparison, folder: Path, export_vbench: Path | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """The comparison on stdout, its videos laid out for VBench; a BatchError where a video failed."""
    from longgen.compare.table import text
    from longgen.compare.vbench import export_for_vbench

    answer(text(made), made.as_dict(), as_json, made=True)
    if not quiet:
        for watch in made.watch:
            say(f"to watch: {folder / watch.side_by_side}")
        say(f"the page: {folder / 'report.html'}")
    if export_vbench is not None:
        commands = export_for_vbench(made, folder, export_vbench, overwrite)
        if not quiet:
            say("\n".join(["VBench's own program scores the videos so, where it is installed:", *commands,
                           "then --vbench-json FILE with each results_TIME_eval_results.json adds its numbers here"]))  # fmt: skip
    failed = [cell for cell in made.cells if cell.status == "failed"]
    if failed:
        raise BatchError(f"{len(failed)} of {len(made.cells)} videos failed: {failed[0].name}: {failed[0].error}",
                         hint="the same command makes the rest, and keeps what is there")  # fmt: skip
