"""Runs a whole comparison: generates or reads videos, scores them, and writes the table and the page.

DIR/videos/NAME.mp4, NAME.run/     the grid; existing videos stay where they are
DIR/scores/NAME.json               cached scores; NAME.vbench.json: those of VBench's networks
DIR/side-by-side/PROMPT.mp4        all videos of a prompt
DIR/sheets/PROMPT.png              contact sheet of them
DIR/compare.json, report.html      everything
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from longgen import __version__, arguments, cost, disk, ffmpeg, naming, progress, run_settings, rundir
from longgen.backbones.defaults import default_device
from longgen.backbones.settings import ModelSettings
from longgen.compare import grid, inputs, join, side_by_side, statistics
from longgen.compare.record import Cell, Comparison, PromptView, read
from longgen.compare.scores import file_hash, parse_metrics, video_scores
from longgen.compare.vbench import VBenchScores
from longgen.compare.verdict import verdict
from longgen.compare.warnings import collect_warnings
from longgen.device import device_name
from longgen.errors import LonggenError, UsageError
from longgen.plan import Plan
from longgen.progress import Log, OnProgress, Phase
from longgen.shards import Shard
from longgen.video import is_partial

BASELINE = "direct"  # if it is among the presets and no other is named
Make = Callable[[Sequence[grid.PlannedVideo]], Iterable[tuple[grid.PlannedVideo, str | None]]]
LIBRARIES = (*run_settings.LIBRARIES, "scipy")


def compare_presets(
    plans: Sequence[Plan],
    prompts: Sequence[str],
    seeds: Sequence[int],
    model_settings: ModelSettings,
    folder: Path,
    baseline: str | None = None,
    metrics: str | None = None,
    report: OnProgress = progress.no_report,
    log: Log = progress.no_report,
    vbench_weights: Path | None = None,
    vbench_json: Sequence[Path] = (),
    overwrite: bool = False,
    shard: Shard | None = None,
    make: Make | None = None,
) -> Comparison:
    """Generates the videos of the grid that are missing in `folder`, and compares all of them. plans: from `grid.plans`.

    A video that fails is a failed cell. metrics: comma-separated names; by default all of longgen's own. vbench_*: see
    `VBenchScores`. shard: the part of the grid that is made and compared. make: what generates the videos in place of this
    process, and yields each as `grid.generate_videos` does. Raises LonggenError.
    """
    prompts, seeds = [*dict.fromkeys(arguments.texts("prompts", prompts))], arguments.seeds(seeds)
    labels = [plan.preset.name for plan in plans]
    baseline = _baseline(baseline, labels)
    videos = grid.planned_videos(plans, prompts, seeds, model_settings, folder / "videos")
    if shard is not None:
        videos = [videos[index] for index in shard.of([cost.ratio(video.plan) for video in videos])]
        if not videos:
            raise UsageError(f"--shard {shard} has no video: the grid has {len(plans) * len(prompts) * len(seeds)}",
                             expected="at most as many shards as videos", hint="use fewer shards")  # fmt: skip
    files = _file_names(prompts)
    check_output(folder, [_relative(video.output, folder) for video in videos], files.values(), overwrite)
    vbench = VBenchScores(parse_metrics(metrics), vbench_weights, vbench_json, model_settings.device)
    cells: dict[str, Cell] = {}
    views: dict[str, list[PromptView]] = {}
    device = model_settings.device
    with disk.held(folder / disk.LOCK, str(folder)):
        made = grid.generate_videos(videos, report, log, device) if make is None else make(videos)
        for video, error in made:
            with progress.working("score", report):
                cells[video.name] = _scored(_planned_cell(video, error), video.output, folder, vbench.names)
            group = [cells[other.name] for other in videos if other.prompt == video.prompt and other.name in cells]
            if len(group) == sum(other.prompt == video.prompt for other in videos):  # the prompt's last
                row = len(plans) if shard is None else len(group)
                views[video.prompt] = _write_view(group, row, video.prompt, files[video.prompt], folder, report)
        ordered = [cells[video.name] for video in videos]
        in_order = [view for prompt in prompts for view in views.get(prompt, [])]
        return _finish(
            ordered, in_order, vbench, folder, report, [], backbone=plans[0].spec.name, presets=labels, prompts=prompts,
            seeds=[*seeds], baseline=baseline, device=device_name(device),
        )  # fmt: skip


def compare_videos(
    paths: Sequence[Path],
    folder: Path,
    baseline: str | None = None,
    metrics: str | None = None,
    report: OnProgress = progress.no_report,
    vbench_weights: Path | None = None,
    vbench_json: Sequence[Path] = (),
    overwrite: bool = False,
) -> Comparison:
    """Compares the videos of `paths`: files, run folders, folders of an earlier comparison. Raises LonggenError.

    Videos of one prompt are shown together; all of them are if one has no prompt, or no two have the same.
    metrics, vbench_*: as in `compare_presets`.
    """
    if (parts := join.parts(paths)) is not None:
        return _joined(parts, folder, baseline, metrics, report, vbench_weights, vbench_json, overwrite)
    notes: list[str] = []
    videos = inputs.read_videos(paths, notes.append)
    labels = [*dict.fromkeys(cell.preset for cell in videos.values())]
    baseline = _baseline(baseline, labels)
    files = _file_names(_groups([cell.prompt for cell in videos.values()]))
    check_output(folder, [_relative(video, folder) for video in videos], files.values(), overwrite)
    vbench = VBenchScores(parse_metrics(metrics), vbench_weights, vbench_json, default_device())
    with disk.held(folder / disk.LOCK, str(folder)):
        notes += _duplicates(videos)
        cells: list[Cell] = []
        phase = Phase("score", len(videos), "cpu", report)
        for number, (video, cell) in enumerate(videos.items(), start=1):
            cells.append(_scored(cell, video, folder, vbench.names))
            phase.at(number)
        for cell in cells:
            if cell.error is not None:
                raise LonggenError(f"{cell.video}: {cell.error}", expected="a video that can be scored", hint="leave it out")
        views: list[PromptView] = []
        for prompt, name in files.items():
            group = [cell for cell in cells if len(files) == 1 or cell.prompt == prompt]
            rows = [*dict.fromkeys(cell.preset for cell in group)]
            columns = [*dict.fromkeys(cell.seed for cell in group)]
            ordered = sorted(group, key=lambda cell: (columns.index(cell.seed), rows.index(cell.preset)))
            complete = len(group) == len(rows) * len(columns)
            views += _write_view(ordered, len(rows) if complete else len(group), prompt, name, folder, report)
        backbones = {cell.settings.get("backbone") for cell in cells}
        return _finish(
            cells, views, vbench, folder, report, notes, backbone=backbones.pop() if len(backbones) == 1 else None, presets=labels,
            prompts=[*dict.fromkeys(cell.prompt for cell in cells)], seeds=[*dict.fromkeys(cell.seed for cell in cells)],
            baseline=baseline, device=device_name("cpu"),
        )  # fmt: skip


def _joined(
    parts: dict[Path, Comparison], folder: Path, baseline: str | None, metrics: str | None, report: OnProgress,
    vbench_weights: Path | None, vbench_json: Sequence[Path], overwrite: bool,
) -> Comparison:  # fmt: skip
    """The whole of shards of one grid, with the scores that they have."""
    cells, missing = join.cells(parts)
    whole = next(iter(parts.values()))
    own = [_relative(Path(cell.video), folder) for cell in cells if cell.video is not None]
    files = _file_names(whole.prompts)
    check_output(folder, own, files.values(), overwrite)
    vbench = VBenchScores(parse_metrics(metrics), vbench_weights, vbench_json, default_device())
    with disk.held(folder / disk.LOCK, str(folder)):
        cells = [cell if cell.video is None else cell.model_copy(update={
            "video": _relative(Path(cell.video), folder),
            "metrics": {name: cell.metrics[name] for name in vbench.names if name in cell.metrics}}) for cell in cells]  # fmt: skip
        views: list[PromptView] = []
        for prompt in whole.prompts:
            group = [cell for cell in cells if cell.prompt == prompt]
            views += _write_view(group, len(whole.presets), prompt, files[prompt], folder, report)
        return _finish(
            cells, views, vbench, folder, report, missing, backbone=whole.backbone, presets=whole.presets, prompts=whole.prompts,
            seeds=whole.seeds, baseline=_baseline(baseline, whole.presets) if baseline else whole.baseline, device=whole.device,
        )  # fmt: skip


def _baseline(name: str | None, labels: Sequence[str]) -> str | None:
    if name is not None and name not in labels:
        raise UsageError(f"--baseline {name} is not among what is compared", expected=", ".join(labels), hint="name one of them")
    return name or (BASELINE if BASELINE in labels else None)


def _groups(prompts: Sequence[str | None]) -> list[str | None]:
    """Which prompts get a view of their own; a single view of all videos if not every prompt is known, or none occurs twice."""
    distinct = [*dict.fromkeys(prompts)]
    if None in distinct or len(distinct) == len(prompts):
        return [distinct[0] if len(distinct) == 1 else None]
    return distinct


def _relative(video: Path, folder: Path) -> str:
    """The path of `video` as stored in the compare.json of `folder`."""
    return video.relative_to(folder).as_posix() if video.is_relative_to(folder) else str(video.absolute())


def check_output(folder: Path, videos: Iterable[str], names: Iterable[str], overwrite: bool) -> None:
    """Refuses a `folder` in which the comparison of `videos`, with views in files of these `names`, would replace something.

    An earlier comparison of the same videos, or of some of them, may be replaced. Raises LonggenError.
    """
    ffmpeg.check_output(str(folder))
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, but a comparison needs a folder", expected="a folder",
                         hint="give another name")  # fmt: skip
    own = _compares(folder, videos)
    if own is False and not overwrite:
        raise UsageError(f"--output {folder} holds a comparison of other videos", expected="another folder, or --overwrite",
                         hint="give another name; --overwrite replaces its table and its page, and keeps its videos")  # fmt: skip
    for name in ("compare.json", "report.html"):
        disk.check_new(folder / name, overwrite, own=own is True)
    for name in names:
        video = folder / "side-by-side" / f"{name}.mp4"
        is_view = "shows" in (rundir.settings_inside(video) or {})
        disk.check_new(video, overwrite, own=is_view)
        disk.check_new(folder / "sheets" / f"{name}.png", overwrite, own=is_view)


def default_folder(prompts: Sequence[str]) -> Path:
    """`compare-PROMPT`; of several prompts `compare-PROMPT-and-N-more-HASH`, where the hash is of all of them in their order."""
    prompts = [*dict.fromkeys(prompts)]
    if len(prompts) == 1:
        return Path(f"compare-{naming.slug(prompts[0])}")
    code = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:8]
    return Path(f"compare-{naming.slug(prompts[0], (40, 80))}-and-{len(prompts) - 1}-more-{code}")


def earlier_folder(videos: Sequence[grid.PlannedVideo]) -> Path | None:
    """A folder `compare-*` here that has some of `videos` and no other, by whatever rule it was named; the one with the most."""
    names = {f"{video.name}.mp4" for video in videos}
    found: dict[Path, int] = {}
    for folder in sorted(Path().glob("compare-*/videos")):
        finished = {path.name for path in folder.glob("*.mp4") if not is_partial(path)}
        if finished and finished <= names:
            found[folder.parent] = len(finished)
    return max(found, key=found.__getitem__, default=None)


def free_folder(folder: Path, videos: Callable[[Path], Iterable[str]]) -> Path:
    """`folder`, or the first numbered one without a comparison of other videos than `videos` gives for it."""

    def is_taken(candidate: Path) -> bool:
        return os.path.lexists(candidate) and (not candidate.is_dir() or _compares(candidate, videos(candidate)) is False)

    return naming.first_free(folder, is_taken)


def _compares(folder: Path, videos: Iterable[str]) -> bool | None:
    """Whether the comparison in `folder` is of some of `videos`; None if there is no comparison."""
    if not (folder / "compare.json").is_file():
        return None
    try:
        comparison = read(folder / "compare.json")
    except LonggenError:
        return False
    return {cell.video for cell in comparison.cells if cell.status == "done"} <= {*videos}


def _planned_cell(video: grid.PlannedVideo, error: str | None) -> Cell:
    """The cell of a video of the grid, not scored yet."""
    plan, fields = video.plan, {"settings": video.settings} if error else grid.record_fields(video.output, video.settings)
    return Cell(
        name=video.name, preset=plan.preset.name, prompt=video.prompt, seed=video.seed, status="failed" if error else "done",
        error=error, fps=plan.sample.fps or plan.spec.fps, size=plan.size,
        **grid.plan_fields(plan), **fields,
    )  # fmt: skip


def _scored(cell: Cell, video: Path, folder: Path, names: Sequence[str]) -> Cell:
    """`cell` with its scores; failed if `video` cannot be scored."""
    if cell.status == "failed":
        return cell
    path = _relative(video, folder)
    try:
        scores = video_scores(video, cell.seams, cell.prompt, folder / "scores" / f"{cell.name}.json")
    except LonggenError as error:
        return cell.model_copy(update={"status": "failed", "error": error.given, "video": path})
    fields = scores | {
        "video": path,
        "metrics": {name: scores["metrics"][name] for name in names if name in scores["metrics"]},
        "details": cell.details | scores["details"],
        "caveats": [*cell.caveats, *scores["caveats"]],
    }
    return Cell.model_validate(cell.model_dump() | fields)


def _duplicates(videos: Iterable[Path]) -> list[str]:
    """A sentence for each group of identical files."""
    groups: dict[str, list[str]] = {}
    for video in videos:
        groups.setdefault(file_hash(video), []).append(str(video))
    return [f"identical files: {inputs.join_names(names)}" for names in groups.values() if len(names) > 1]


def _file_names(prompts: Iterable[str | None]) -> dict[str | None, str]:
    """A unique file name for each prompt, without a suffix."""
    names: dict[str | None, str] = {}
    for prompt in prompts:
        taken = {*names.values()}
        stem = Path("videos" if prompt is None else naming.slug(prompt))
        names[prompt] = naming.first_free(stem, lambda path, taken=taken: path.name in taken).name  # type: ignore[misc]
    return names


def _write_view(
    cells: Sequence[Cell], row: int, prompt: str | None, name: str, folder: Path, report: OnProgress
) -> list[PromptView]:
    """Writes the side-by-side video and the sheet of `cells`, with `row` of them beside each other; none if all failed."""
    if all(cell.status == "failed" for cell in cells):
        return []
    several_seeds, several_prompts = len({cell.seed for cell in cells}) > 1, len({cell.prompt for cell in cells}) > 1
    tiles = []
    for cell in cells:
        seed = f"seed {cell.seed}" if several_seeds and cell.seed is not None else None
        tile = side_by_side.Tile(", ".join(filter(None, (cell.preset, seed, cell.prompt if several_prompts else None))))
        if cell.status == "done" and cell.video is not None:
            video, times = folder / cell.video, tuple(cell.times or ())
            tile = side_by_side.Tile(tile.label, video, cell.size, cell.fps, cell.frames, file_hash(video), times)
        tiles.append(tile)
    view = PromptView(prompt=prompt, side_by_side=f"side-by-side/{name}.mp4", sheet=f"sheets/{name}.png")
    title = prompt or f"{len(cells)} videos"
    side_by_side.write(tiles, row, title, folder / view.side_by_side, folder / view.sheet, report)
    return [view]


def _finish(
    cells: list[Cell],
    views: list[PromptView],
    vbench: VBenchScores,
    folder: Path,
    report: OnProgress,
    notes: Sequence[str],
    **fields: Any,
) -> Comparison:
    """The comparison of `cells` with VBench's scores, written to compare.json and report.html. notes: warnings besides theirs."""
    from longgen.compare.page import write_page

    cells, warnings = vbench.join(cells, folder, report)
    phase = Phase("report", 1, "cpu", report, unit=progress.UNCOUNTED)
    vbench.write(cells, folder)
    presets, baseline = fields["presets"], fields["baseline"]
    differences = statistics.paired_differences(presets, cells, baseline, vbench.names)
    table = statistics.preset_rows(presets, cells, baseline, vbench.names, differences)
    comparison = Comparison(
        longgen=__version__, cells=cells, table=table, verdict=verdict(presets, cells, baseline, table, differences), watch=views,
        warnings=[*notes, *collect_warnings(cells, table), *warnings],
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES}, **fields,
    )  # fmt: skip
    disk.make_folder(folder)
    disk.save_json(folder / "compare.json", comparison.as_dict())
    write_page(comparison, folder)
    phase.at(1)
    return comparison
