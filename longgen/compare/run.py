"""A whole comparison: videos to make or videos that are there, their scores, what to watch, the table, the page.

DIR/videos/NAME.mp4, NAME.run/     the grid; videos that were there before stay where they are
DIR/scores/NAME.json               what was measured, so that it is measured once; NAME.vbench.json: by VBench's networks
DIR/side-by-side/PROMPT.mp4        all tiles of a prompt
DIR/sheets/PROMPT.png              moments of them
DIR/compare.json, report.html      everything
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longgen import __version__, arguments, cost, disk, ffmpeg, naming, progress, run, rundir
from longgen.backbones.defaults import default_device
from longgen.backbones.settings import ModelSettings
from longgen.compare import grid, inputs, side_by_side, statistics
from longgen.compare.record import Cell, Comparison, Watch, read
from longgen.compare.scores import chosen, file_hash, scored
from longgen.compare.seams import seams
from longgen.compare.vbench import Numbers
from longgen.compare.warnings import cautions
from longgen.errors import LonggenError, UsageError
from longgen.plan import Plan
from longgen.progress import Progress

BASELINE = "direct"  # where it is among the presets and no other is named
LIBRARIES = (*run.LIBRARIES, "scipy")


def compare_presets(
    plans: Sequence[Plan],
    prompts: Sequence[str],
    seeds: Sequence[int],
    model_settings: ModelSettings,
    folder: Path,
    baseline: str | None = None,
    metrics: str | None = None,
    report: Callable[[Progress], None] = progress.no_report,
    log: Callable[[str], None] = progress.no_report,
    vbench_weights: Path | None = None,
    vbench_json: Sequence[Path] = (),
    overwrite: bool = False,
) -> Comparison:
    """Makes the videos of the grid that are not in `folder`, and compares them all. Plans are those of `grid.plans`.

    A video that cannot be made is a failed cell. metrics: names with commas between; all of longgen's own unless given.
    vbench_*: see `vbench.Numbers`. Raises LonggenError.
    """
    prompts, seeds = arguments.texts("prompts", prompts), arguments.seeds(seeds)
    labels = [plan.preset.name for plan in plans]
    against = _baseline(baseline, labels)
    prompts = list(dict.fromkeys(prompts))
    places = grid.places(plans, prompts, seeds, model_settings, folder / "videos")
    check(folder, [_place(place.output, folder) for place in places], _files(prompts).values(), overwrite)
    numbers = Numbers(chosen(metrics), vbench_weights, vbench_json, model_settings.device)
    with disk.held(folder / disk.LOCK, str(folder)):
        return _compare_presets(plans, labels, prompts, seeds, model_settings, folder, against, places, numbers, report, log)


def _compare_presets(
    plans: Sequence[Plan],
    labels: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    model_settings: ModelSettings,
    folder: Path,
    against: str | None,
    places: Sequence[grid.Place],
    numbers: Numbers,
    report: Callable[[Progress], None],
    log: Callable[[str], None],
) -> Comparison:
    cells: list[Cell] = []
    watched: list[Watch] = []
    files = _files(prompts)
    for place, error in grid.make(places, model_settings, report, log):
        cells.append(_measured(_cell(place, error), place.output, folder, numbers.names))
        group = [cell for cell in cells if cell.prompt == place.prompt]
        if len(group) == len(plans) * len(seeds):  # the prompt's last
            watched += _watch(group, len(plans), place.prompt, files[place.prompt], folder, report)
    return _concluded(
        cells, watched, numbers, folder, report, [], backbone=plans[0].spec.name, presets=[*labels], prompts=[*prompts],
        seeds=[*seeds], baseline=against, device=run.device_name(model_settings.device),
    )  # fmt: skip


def compare_videos(
    paths: Sequence[Path],
    folder: Path,
    baseline: str | None = None,
    metrics: str | None = None,
    report: Callable[[Progress], None] = progress.no_report,
    vbench_weights: Path | None = None,
    vbench_json: Sequence[Path] = (),
    overwrite: bool = False,
) -> Comparison:
    """Compares the videos of `paths`: MP4 files, run folders, folders of an earlier comparison. Raises LonggenError.

    Videos of one prompt are shown together; all of them are where one does not tell its prompt, or no two have the same.
    metrics, vbench_*: as in `compare_presets`.
    """
    told: list[str] = []
    videos = inputs.found(paths, told.append)
    labels = [*dict.fromkeys(video.label for video in videos)]
    against = _baseline(baseline, labels)
    prompts_of = _grouped([video.prompt for video in videos])
    check(folder, [_place(video.video, folder) for video in videos], _files(prompts_of).values(), overwrite)
    numbers = Numbers(chosen(metrics), vbench_weights, vbench_json, default_device())
    with disk.held(folder / disk.LOCK, str(folder)):
        return _compare_videos(videos, labels, told + _twins(videos), folder, against, numbers, report)


def _compare_videos(
    videos: Sequence[inputs.Found],
    labels: Sequence[str],
    told: Sequence[str],
    folder: Path,
    against: str | None,
    numbers: Numbers,
    report: Callable[[Progress], None],
) -> Comparison:
    taken: dict[str, int] = {}
    cells = []
    began = time.monotonic()
    for number, video in enumerate(videos, start=1):
        cells.append(_measured(_cell_of(video, taken), video.video, folder, numbers.names))
        spent_s = time.monotonic() - began
        report(
            Progress("score", number, len(videos), spent_s, spent_s / number * (len(videos) - number), progress.memory_bytes("cpu"))
        )
    for cell in cells:
        if cell.error is not None:
            raise LonggenError(f"{cell.video}: {cell.error}", expected="a video that can be scored", hint="leave it out")
    prompts = [*dict.fromkeys(cell.prompt for cell in cells)]
    seeds = [*dict.fromkeys(cell.seed for cell in cells)]
    shown = _grouped([cell.prompt for cell in cells])
    groups = {prompt: [cell for cell in cells if len(shown) == 1 or cell.prompt == prompt] for prompt in shown}
    watched, files = [], _files([*groups])
    for prompt, group in groups.items():
        rows = [*dict.fromkeys(cell.preset for cell in group)]
        columns = [*dict.fromkeys(cell.seed for cell in group)]
        ordered = sorted(group, key=lambda cell: (columns.index(cell.seed), rows.index(cell.preset)))
        whole = len(group) == len(rows) * len(columns)
        watched += _watch(ordered, len(rows) if whole else len(group), prompt, files[prompt], folder, report)
    backbones = {cell.settings.get("backbone") for cell in cells}
    return _concluded(
        cells, watched, numbers, folder, report, told, backbone=backbones.pop() if len(backbones) == 1 else None, presets=[*labels],
        prompts=prompts, seeds=seeds, baseline=against, device=run.device_name("cpu"),
    )  # fmt: skip


def _baseline(asked: str | None, labels: Sequence[str]) -> str | None:
    if asked is not None and asked not in labels:
        raise UsageError(f"--baseline {asked} is not among what is compared", expected=", ".join(labels), hint="name one of them")
    return asked or (BASELINE if BASELINE in labels else None)


def _grouped(prompts: Sequence[str | None]) -> list[str | None]:
    """What videos of these prompts are shown under: each prompt, or nothing where that says little."""
    known = [*dict.fromkeys(prompts)]
    return [known[0] if len(known) == 1 else None] if None in known or len(known) == len(prompts) else known


def _place(video: Path, folder: Path) -> str:
    """`video` as a comparison in `folder` has it."""
    return video.relative_to(folder).as_posix() if video.is_relative_to(folder) else str(video.absolute())


def check(folder: Path, videos: Iterable[str], names: Iterable[str], overwrite: bool) -> None:
    """Refuses a `folder` in which the comparison of `videos`, shown in files with these `names`, would replace something.

    An earlier comparison there, of the same videos or of some of them, is its own. Raises LonggenError.
    """
    ffmpeg.check_output(str(folder))
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, and a comparison is many", expected="a folder", hint="give another name")
    own = _is_of(folder, videos)
    if own is False and not overwrite:
        raise UsageError(f"--output {folder} holds a comparison of other videos", expected="another folder, or --overwrite",
                         hint="give another name; --overwrite replaces its table and its page, and keeps its videos")  # fmt: skip
    for name in ("compare.json", "report.html"):
        disk.check_new(folder / name, overwrite, own=own is True)
    for name in names:
        video = folder / "side-by-side" / f"{name}.mp4"
        shown = "shows" in (rundir.settings_inside(video) or {})
        disk.check_new(video, overwrite, own=shown)
        disk.check_new(folder / "sheets" / f"{name}.png", overwrite, own=shown)


def free(folder: Path, videos: Callable[[Path], Iterable[str]]) -> Path:
    """`folder`, or the first with a number behind it, that has no comparison of other videos than `videos` gives for it."""
    made, number = folder, 2
    while os.path.lexists(made) and (not made.is_dir() or _is_of(made, videos(made)) is False):
        made, number = Path(f"{folder}-{number}"), number + 1
    return made


def _is_of(folder: Path, videos: Iterable[str]) -> bool | None:
    """Whether what was compared in `folder` are some of `videos`; None where there is no comparison."""
    if not (folder / "compare.json").is_file():
        return None
    try:
        kept = read(folder / "compare.json")
    except LonggenError:
        return False
    return {cell.video for cell in kept.cells if cell.status == "done"} <= {*videos}


def _cell(place: grid.Place, error: str | None) -> Cell:
    """The cell of a place of the grid, without its scores."""
    plan, record = place.plan, {} if error else grid.record_of(place.output)
    described: dict[str, Any] = dict(
        name=place.name, preset=plan.preset.name, prompt=place.prompt, seed=place.seed, fps=plan.sample.fps or plan.spec.fps,
        size=plan.size, cost_ratio=round(cost.ratio(plan), 4), notes=[*plan.notes], seams=seams(plan),
        **_of_record(record, place.settings),
    )  # fmt: skip
    return Cell(status="failed" if error else "done", error=error, **described)


def _cell_of(video: inputs.Found, taken: dict[str, int]) -> Cell:
    """The cell of a video that was there, without its scores. taken: the names that are in use, to which its own is added."""
    parts = [video.label, *([] if video.prompt is None else [video.prompt]), *([] if video.seed is None else [str(video.seed)])]
    name = "-".join(naming.slug(part, (60, 60)) for part in parts)
    taken[name] = taken.get(name, 0) + 1
    name, plan = f"{name}-{file_hash(video.video)[:8]}" + f"-{taken[name]}" * (taken[name] > 1), video.plan
    return Cell(
        name=name, preset=video.label, prompt=video.prompt, seed=video.seed, status="done", fps=video.fps,
        size=video.size, cost_ratio=None if plan is None else round(cost.ratio(plan), 4),
        notes=[] if plan is None else [*plan.notes], seams=video.seams, caveats=video.caveats,
        **_of_record(grid.record_of(video.video), video.settings),
    )  # fmt: skip


def _of_record(record: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What a cell has from its run.json, where there is one; else `settings` alone."""
    told = {key: record[key] for key in ("device", "resumed") if key in record}
    return {
        "settings": record.get("settings", settings),
        "seconds": record.get("seconds", {}),
        "peak_memory_bytes": record.get("peak_memory_bytes", 0),
        "details": told,
    }


def _measured(cell: Cell, video: Path, folder: Path, names: Sequence[str]) -> Cell:
    """`cell` with its scores; failed where `video` cannot be scored."""
    if cell.status == "failed":
        return cell
    place = _place(video, folder)
    try:
        found = scored(video, cell.seams, cell.prompt, folder / "scores" / f"{cell.name}.json")
    except LonggenError as error:
        return cell.model_copy(update={"status": "failed", "error": error.given, "video": place})
    metrics = {name: found["metrics"][name] for name in names if name in found["metrics"]}
    details = cell.details | found["details"]
    caveats = [*cell.caveats, *found["caveats"]]
    own = {"video": place, "metrics": metrics, "details": details, "caveats": caveats}
    return Cell.model_validate(cell.model_dump() | found | own)


def _twins(videos: Sequence[inputs.Found]) -> list[str]:
    """A sentence for each group of videos that are equal byte for byte."""
    groups: dict[str, list[str]] = {}
    for one in videos:
        groups.setdefault(file_hash(one.video), []).append(str(one.video))
    return [f"equal byte for byte: {inputs.listed(names)}" for names in groups.values() if len(names) > 1]


def _files(prompts: Iterable[str | None]) -> dict[str | None, str]:
    """For each prompt a file name of its own, without its end."""
    names: dict[str | None, str] = {}
    for prompt in prompts:
        stem = name = "videos" if prompt is None else naming.slug(prompt)
        number = 1
        while name in names.values():
            number += 1
            name = f"{stem}-{number}"
        names[prompt] = name
    return names


def _watch(
    cells: Sequence[Cell], row: int, prompt: str | None, name: str, folder: Path, report: Callable[[Progress], None]
) -> list[Watch]:
    """Writes the video and the sheet of `cells`, of which `row` belong beside each other; nothing where none could be made."""
    done = [cell for cell in cells if cell.status == "done"]
    if not done:
        return []
    seeds, prompts = {cell.seed for cell in cells}, {cell.prompt for cell in cells}
    tiles = []
    for cell in cells:
        label = ", ".join([cell.preset, *([f"seed {cell.seed}"] if len(seeds) > 1 and cell.seed is not None else []),
                           *([cell.prompt] if len(prompts) > 1 and cell.prompt is not None else [])])  # fmt: skip
        if cell.status == "failed" or cell.video is None:
            tiles.append(side_by_side.Tile(label))
        else:
            video = folder / cell.video
            tiles.append(
                side_by_side.Tile(label, video, cell.size, cell.fps, cell.frames, file_hash(video), tuple(cell.times or ()))
            )
    began = time.monotonic()

    def at(frames: int, total: int) -> None:
        spent_s = time.monotonic() - began
        eta_s = spent_s / frames * (total - frames) if frames else None
        report(Progress("side by side", frames, total, spent_s, eta_s, progress.memory_bytes("cpu")))

    video, sheet = folder / "side-by-side" / f"{name}.mp4", folder / "sheets" / f"{name}.png"
    side_by_side.write(tiles, row, prompt or f"{len(cells)} videos", video, sheet, at)
    return [Watch(prompt=prompt, side_by_side=f"side-by-side/{name}.mp4", sheet=f"sheets/{name}.png")]


def _concluded(
    cells: list[Cell],
    watched: list[Watch],
    numbers: Numbers,
    folder: Path,
    report: Callable[[Progress], None],
    told: Sequence[str],
    **described: Any,
) -> Comparison:
    """The comparison of `cells`, with VBench's numbers, written to compare.json and report.html in `folder`.

    told: what is to be warned of beside the cells.
    """
    from longgen.compare.page import write_page

    cells, warnings = numbers.joined(cells, folder, report)
    numbers.write(cells, folder)
    table = statistics.rows(described["presets"], cells, described["baseline"], numbers.names)
    made = Comparison(
        longgen=__version__, cells=cells, table=table, watch=watched,
        warnings=[*told, *cautions(cells, table, described["baseline"]), *warnings],
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES}, **described,
    )  # fmt: skip
    disk.make_folder(folder)
    disk.save_json(folder / "compare.json", made.as_dict())
    write_page(made, folder)
    return made
