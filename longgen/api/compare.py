"""`longgen compare` in Python: a grid of presets, prompts and seeds, or existing videos, as one video, one table and one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from longgen import arguments, disk, naming, notebook, start
from longgen import export as exporting
from longgen.api import choices, probe
from longgen.api.choices import ShowProgress
from longgen.api.words import EARLIER, Dtype, FileName, Offload, log_of, public
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.compare import grid, table
from longgen.compare.export import exports, files
from longgen.compare.inputs import expand_paths
from longgen.compare.record import Cell, Comparison
from longgen.compare.run import Make, compare_presets, compare_videos, default_folder, earlier_folder, free_folder
from longgen.compare.vbench import export_for_vbench
from longgen.errors import BatchError, UsageError
from longgen.layers import selection
from longgen.metrics import describe, in_order
from longgen.metrics.vbench.export import check
from longgen.pictures import FITS
from longgen.pipelines.checks import check_plan
from longgen.progress import Log, OnProgress, clock_text
from longgen.resolve import PlanRequest
from longgen.shards import Shard

OF_VIDEOS = {
    "videos", "baseline", "metrics", "vbench_weights", "vbench_json", "export_vbench", "export", "output", "overwrite", "log",
    "progress",
}  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """What is measured, and against which preset; see `compare`. metrics: names with commas."""

    baseline: str | None = None
    metrics: str | None = None
    vbench_weights: Path | None = None
    vbench_json: tuple[Path, ...] = ()
    export_vbench: Path | None = None
    formats: tuple[str, ...] = ()  # of files for papers


@dataclass(frozen=True)
class CompareResult:
    """A comparison: its videos with their scores, and the table of presets. `str()` is the text of `longgen compare`.

    comparison: the content of compare.json, see `longgen.compare.record`. folder: where everything is.
    """

    comparison: Comparison
    folder: Path

    @property
    def cells(self) -> list[Cell]:
        """The videos, in order."""
        return self.comparison.cells

    @property
    def page(self) -> Path:
        """The comparison as an HTML page, with its videos inside where they are small."""
        return self.folder / "report.html"

    @property
    def side_by_side(self) -> tuple[Path, ...]:
        """A video for each prompt, which shows all of it in step."""
        return tuple(self.folder / view.side_by_side for view in self.comparison.watch)

    def as_dict(self) -> dict[str, Any]:
        """The content of compare.json."""
        return self.comparison.as_dict()

    def __str__(self) -> str:
        return table.text(self.comparison)

    def _repr_html_(self) -> str:
        rows = self.comparison.table
        names = in_order(name for row in rows for name in row.metrics)
        metrics = [describe(name) for name in names]
        heads = ("preset", *(f"{one.name} {table.ARROWS[one.better]} {one.unit}".strip() for one in metrics), "time")
        cells = [(row.preset, *("" if (value := row.metrics.get(name)) is None else f"{value.mean:.3g}" for name in names),
                  "" if row.seconds is None else clock_text(row.seconds)) for row in rows]  # fmt: skip
        prompts = [prompt for prompt in self.comparison.prompts if prompt is not None]
        return notebook.shown(prompts[0] if len(prompts) == 1 else f"{len(self.cells)} videos", heads=heads, rows=cells,
                              files=self.side_by_side[:1], links=[self.page], notes=self.comparison.warnings,
                              text=str(self))  # fmt: skip


@public(**{name: EARLIER[name] for name in ("sample", "model", "report")})
def compare(
    videos: Sequence[FileName] | None = None,
    *,
    prompt: str | None = None,
    prompts: FileName | Sequence[str] | None = None,
    presets: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    negative_prompt: str | None = None,
    image: FileName | None = None,
    last_image: FileName | None = None,
    continue_from: FileName | None = None,
    join: bool = False,
    fit: Literal["crop", "pad"] = "crop",
    frames: int | None = None,
    duration: str | None = None,
    size: tuple[int, int] | str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    flow_shift: float | None = None,
    fps: int | None = None,
    overrides: Sequence[str] | None = None,
    probe: str | None = None,
    allow_code: bool = False,
    backbone: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    offload: Offload = "none",
    lora: Sequence[str] | None = None,
    quantize: Literal["fp8", "int8"] | None = None,
    attention: str | None = None,
    cache: str | None = None,
    compile: bool = False,
    vae_tiling: bool = False,
    vae: FileName | None = None,
    text_encoder: FileName | None = None,
    clip_batch: int = 1,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    vbench_weights: FileName | None = None,
    vbench_json: Sequence[FileName] | None = None,
    export_vbench: FileName | None = None,
    export: Sequence[str] | None = None,
    output: FileName | None = None,
    overwrite: bool = False,
    log: Log | None = None,
    progress: ShowProgress = False,
) -> CompareResult:
    """Compares presets, by a video for each preset, prompt and seed; or existing videos: `longgen compare`.

    videos: files, run folders, or the folder of an earlier comparison; only baseline, metrics, vbench_*, export and output may
    then be given. prompt, or prompts, a list or a file of them. presets: names or TOML files. seeds: a video for each.
    baseline: the preset that differences are relative to (default: direct, if compared). metrics: names, "own" for all of longgen's
    (the default), "vbench" for those of VBench whose weights are there. vbench_weights: their folder. vbench_json: results of
    VBench's own program, to read where they end in .json, else a folder to write such files to. export_vbench: a folder for its
    input. export: also tables for papers ("csv", "latex", "markdown") and vector figures ("svg", "pdf"). output: the folder of
    everything (default: compare-PROMPT here). The others are those of `longgen.generate`.

    Existing videos of the grid are kept, so that the same call continues after a stop. Raises BatchError where a video failed, when
    the others are made and compared, and LonggenError and its kinds.
    """
    given, say = locals(), log_of(log)
    measures = Measures(baseline, None if metrics is None else ",".join(metrics), None if vbench_weights is None else
                        Path(vbench_weights), tuple(map(Path, vbench_json or ())),
                        None if export_vbench is None else Path(export_vbench),
                        exporting.parse(None if export is None else [*export]))  # fmt: skip
    folder = None if output is None else Path(output)
    if measures.export_vbench is not None:
        check(measures.export_vbench, overwrite)
    with choices.reported(progress) as report:
        if videos:
            others = ", ".join(name for name in DEFAULTS if name not in OF_VIDEOS and given[name] != DEFAULTS[name])
            if others:
                raise UsageError(
                    f"{others} cannot be combined with existing videos: such parameters are for making new ones",
                    expected=f"with videos: {', '.join(sorted(OF_VIDEOS))}",
                    hint=f"leave out the videos, or {others}",
                )
            return finished(*of_videos([*map(Path, videos)], folder, measures, overwrite, report), measures, overwrite, say)
        if not presets:
            raise UsageError("nothing to compare", expected="presets=[NAME, NAME] with prompt or prompts; or videos",
                             hint='for example presets=["direct", "sliding-window"], prompt="a red circle"')  # fmt: skip
        texts, numbers = choices.texts(prompt, prompts, say), arguments.seeds(seeds)
        spec = choices.backbone(backbone, say)
        settings = choices.model_settings(spec, {name: given[name] for name in ModelSettings.model_fields if name in given})
        conditions = start.read(image, last_image, continue_from, join, fit)
        start.check_fit(fit != FITS[0], bool(conditions))
        requests = [PlanRequest(name, spec, (*(overrides or ()),), choices.sample(given), duration, probe=probe, lora=settings.lora,
                                allow_code=allow_code, conditions=conditions) for name in presets]  # fmt: skip
        made = of_grid(spec, requests, texts, numbers, settings, folder, measures, overwrite, say, report)
    return finished(*made, measures, overwrite, say)


def of_grid(
    spec: BackboneSpec,
    requests: Sequence[PlanRequest],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: ModelSettings,
    output: Path | None,
    measures: Measures,
    overwrite: bool,
    log: Log,
    report: OnProgress,
    shard: Shard | None = None,
    make_in: Callable[[Path], Make] | None = None,
) -> tuple[Comparison, Path]:
    """Makes the videos of the grid that do not exist yet, and compares all.

    requests: one for each preset, of `spec`. shard, and make_in for the folder of its videos: see
    `longgen.compare.run.compare_presets`. Returns the comparison and its folder. Raises LonggenError and its kinds.
    """
    if any(request.probe in (None, "run") for request in requests):
        stored = _quick_probe(requests, settings, log, report)
        requests = [replace(request, probe=stored) for request in requests]
    plans = grid.plans(requests)
    choices.say_notes((note for plan in plans for note in plan.notes), log)
    choices.say_notes(choices.grammar_notes(spec, prompts), log)
    default = default_folder(prompts)
    planned = grid.planned_videos(plans, dict.fromkeys(prompts), seeds, settings, default)
    if shard is not None:  # its folder has the same name whatever the others do
        folder = (output or default) / shard.folder
    elif output is None and not default.exists() and (earlier := earlier_folder(planned)) is not None:
        folder = earlier
        log(f"note: going on in {folder}, which has videos of this comparison; --output names another")
    else:
        folder = output or free_folder(default, lambda record: [f"videos/{video.name}.mp4" for video in planned])
    _check_export(folder, prompts, measures, overwrite)
    unused = [check_plan(plan, settings) for plan in plans]
    if all(unused):  # a setting that one of the presets uses is meant for that one
        choices.say_notes((note for notes in unused for note in notes), log)
    comparison = compare_presets(
        plans, prompts, seeds, settings, folder, measures.baseline, measures.metrics, report, log, measures.vbench_weights,
        measures.vbench_json, overwrite, shard, None if make_in is None else make_in(folder / "videos"),
    )  # fmt: skip
    return comparison, folder


def of_videos(
    videos: list[Path], output: Path | None, measures: Measures, overwrite: bool, report: OnProgress
) -> tuple[Comparison, Path]:
    """Compares existing videos. The folder of an earlier comparison alone is compared again, in place. Raises LonggenError."""
    in_place = len(videos) == 1 and (videos[0] / "compare.json").is_file()
    folder = output or (videos[0] if in_place else Path(f"compare-{naming.slug(videos[0].stem)}"))
    if output is None and not in_place:
        folder = free_folder(folder, lambda record: [str(video.absolute()) for video in expand_paths(videos)])
    _check_export(folder, (), measures, overwrite or in_place)
    comparison = compare_videos(videos, folder, measures.baseline, measures.metrics, report, measures.vbench_weights,
                                measures.vbench_json, overwrite or in_place)  # fmt: skip
    return comparison, folder


def _check_export(folder: Path, prompts: Sequence[str], measures: Measures, overwrite: bool) -> None:
    """Refuses to replace files for papers that are not of a comparison in `folder`."""
    own = (folder / "compare.json").is_file()
    for kind in measures.formats:
        for name in files(prompts):
            disk.check_new(folder / exporting.FOLDER / f"{name}.{exporting.SUFFIXES[kind]}", overwrite, "--export", own)


def finished(comparison: Comparison, folder: Path, measures: Measures, overwrite: bool, log: Log) -> CompareResult:
    """The result, with files for papers and for VBench where they are asked for. Raises BatchError where a video failed."""
    for view in comparison.watch:
        log(f"side by side: {folder / view.side_by_side}")
    log(f"report: {folder / 'report.html'}")
    if measures.formats:
        written = exports(comparison).write(measures.formats, folder / exporting.FOLDER)
        log(f"export: {len(written)} files in {folder / exporting.FOLDER}: {', '.join(path.name for path in written)}")
    if measures.export_vbench is not None:
        commands = export_for_vbench(comparison, folder, measures.export_vbench, overwrite)
        log("\n".join(["VBench's own program, where it is installed, scores the videos with:", *commands,
                       "then --vbench-json FILE with each results_TIME_eval_results.json adds its numbers here"]))  # fmt: skip
    failed = [cell for cell in comparison.cells if cell.status == "failed"]
    if failed:
        raise BatchError(f"{len(failed)} of {len(comparison.cells)} videos failed: {failed[0].name}: {failed[0].error}",
                         hint="the same command makes the rest, and keeps what exists")  # fmt: skip
    return CompareResult(comparison, folder)


def _quick_probe(requests: Sequence[PlanRequest], settings: ModelSettings, log: Log, report: OnProgress) -> str | None:
    """The probe that the presets need: with `--probe run` always, else where none is stored or published; None where none is."""
    probing = [request for request in requests if not str(request.preset).endswith(("@all", "@none"))]
    for request, preset in [(request, replace(request, overrides=()).load_preset()) for request in probing]:
        lacks = selection.probe_missing(preset, request.spec, request.lora) and not request.overrides
        if selection.uses_probe(preset) if request.probe == "run" else lacks:
            log(f"{preset.name} needs to know which layers of {request.spec.name} are sensitive: running a quick probe first")
            return probe.quick(preset, request.spec, settings, request.conditions, log, report)
    return None


DEFAULTS = {name: parameter.default for name, parameter in signature(compare).parameters.items()}
