"""Existing videos as inputs: those that longgen wrote carry their preset, prompt and seed; others are known by their names."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from longgen import naming, progress, resolve
from longgen.compare.grid import plan_fields, record_fields
from longgen.compare.record import Cell, read
from longgen.compare.scores import file_hash
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.progress import Log
from longgen.run_settings import TREATMENT
from longgen.video import is_partial, read_settings
from longgen.video_info import facts, unreadable

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")  # of the videos of a folder, in any case
LISTED = 8  # names written out


def expand_paths(paths: Sequence[Path], log: Log = progress.no_report) -> list[Path]:
    """The videos behind `paths`, each once: a path is a video, a run folder, a folder of an earlier comparison, or one of videos.

    log: receives a sentence about what is skipped. Raises LonggenError.
    """
    listed: list[Path] = []
    for path in paths:
        if path.is_dir() and (path / "run.json").is_file():
            video = naming.output_of(path)
            if not video.is_file():
                raise MissingError(f"{path} is a run whose video {video.name} does not exist", expected="a finished run",
                                   hint=f"longgen generate -o {video} --resume")  # fmt: skip
            listed.append(video)
        elif (path / "compare.json").is_file():
            cells = read(path / "compare.json").cells
            listed += [path / cell.video for cell in cells if cell.video is not None]
        elif path.is_dir():
            listed += _videos_in(path, log)
        else:
            listed.append(path)
    unique: dict[object, Path] = {}
    for video in listed:
        first = unique.setdefault(_identity(video), video)
        if first is not video:
            log(f"{video} {f'and {first} are the same file' if first != video else 'is listed more than once'}: it is used once")
    return [*unique.values()]


def _identity(video: Path) -> object:
    """Equal for all names of one file, including hard and symbolic links."""
    try:
        stat = video.stat()
    except (OSError, ValueError):
        return str(video)
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(video)


def _videos_in(folder: Path, log: Log) -> list[Path]:
    """The videos of `folder`; what is skipped is logged."""
    inner = folder / "videos"
    if inner.is_dir():  # of an interrupted comparison
        beside = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        if beside:
            log(f"skipped in {folder}, whose folder {inner.name} is compared: {join_names(beside)}")
        folder = inner
    videos, skipped = [], dict[str, list[str]]()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.suffix == ".run" and naming.output_of(path).is_file():
            continue
        reason = _skip_reason(path)
        if reason is None:
            videos.append(path)
        else:
            skipped.setdefault(reason, []).append(path.name)
    if not videos:
        reasons = "".join(f"; {reason}: {join_names(names)}" for reason, names in skipped.items())
        raise MissingError(f"{folder} contains no video{reasons}", hint="check the path, or list the files themselves",
                           expected=f"a folder with {', '.join(SUFFIXES)}, or a video, NAME.run, DIR of compare")  # fmt: skip
    for reason, names in skipped.items():
        log(f"skipped in {folder}, {reason}: {join_names(names)}")
    return videos


def _skip_reason(path: Path) -> str | None:
    """Why an entry of a folder is not one of its videos, or None."""
    if path.name.startswith("."):
        return "hidden"
    if is_partial(path):
        return "incomplete"
    if path.suffix.lower() in SUFFIXES:
        return None
    if path.is_dir():
        return "a run without its video" if path.suffix == ".run" else "a subfolder"
    return f"not {', '.join(SUFFIXES)}"


def join_names(names: Sequence[str]) -> str:
    """`names` separated by commas, or the first of them and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def read_videos(paths: Sequence[Path], log: Log = progress.no_report) -> dict[Path, Cell]:
    """The videos of `paths` as cells without scores. Raises LonggenError for an unreadable or truncated one, UsageError for none.

    Rows are labelled by preset; where two presets of one name differ otherwise, the second gets `#2` after its name. Other videos
    are labelled by file name, with as much of the path as tells them apart. log: receives what is skipped, and why.
    """
    labels: dict[str, str] = {}  # by settings
    taken: set[tuple[str, object, object]] = set()
    counts = Counter[str]()  # of labels by preset
    cells: dict[Path, Cell] = {}
    for path in expand_paths(paths, log):
        info, settings = facts(path), _settings(path)
        caveats = [*info.notes]
        if info.cut is not None and not is_partial(path):
            raise unreadable(path, info.cut, "copy or download it again; ffmpeg -i FILE -c copy WHOLE.mp4 keeps what there is")
        if is_partial(path):
            caveats.append("it is incomplete; its frames so far are compared")
        fields = record_fields(path, settings) | {"preset": "", "fps": info.fps, "size": info.size, "caveats": caveats}
        if settings:
            name = str(settings["preset"].get("name"))
            treatment = json.dumps([name, *(settings.get(key) for key in TREATMENT)], sort_keys=True)
            sample = settings["prompt"], settings["seed"]
            if treatment not in labels or (labels[treatment], *sample) in taken:
                counts[name] += 1
                labels[treatment] = name if counts[name] == 1 else f"{name} #{counts[name]}"
                if counts[name] > 1:
                    log(f"{labels[treatment]} stands for {path} and for videos with the same settings")
            taken.add((labels[treatment], *sample))
            fields["preset"] = labels[treatment]
            with contextlib.suppress(LonggenError):  # of an unknown backbone, or another version of longgen
                fields |= plan_fields(resolve.from_settings(settings, path))
        cells[path] = Cell(name="", status="done", prompt=settings.get("prompt"), seed=settings.get("seed"), **fields)
    if not cells:
        raise UsageError("there is no video to compare", expected="videos, or folders with some", hint="list one")
    foreign = [path for path, cell in cells.items() if not cell.preset]
    file_labels = dict(zip(foreign, _file_labels(foreign, {label for label, _, _ in taken}), strict=True))
    names = Counter[str]()
    for path, cell in cells.items():
        label = file_labels.get(path, cell.preset)
        words = "-".join(naming.slug(str(part), (60, 60)) for part in (label, cell.prompt, cell.seed) if part is not None)
        names[words] += 1
        name = f"{words}-{file_hash(path)[:8]}" + f"-{names[words]}" * (names[words] > 1)
        cells[path] = cell.model_copy(update={"name": name, "preset": label})
    return cells


def _file_labels(files: Sequence[Path], taken: Collection[str]) -> list[str]:
    """A unique label for each of `files`, outside `taken`: its stem, its name, or the end of its path."""
    forms = [[file.stem, *("/".join(file.parts[-parts:]) for parts in range(1, len(file.parts) + 1))] for file in files]
    names = [form[0] for form in forms]
    for level in range(1, max(map(len, forms), default=0)):
        count = Counter([*names, *taken])
        names = [form[min(level, len(form) - 1)] if count[name] > 1 else name for name, form in zip(names, forms, strict=True)]
    count = Counter([*names, *taken])
    return [str(file.absolute()) if count[name] > 1 else name for name, file in zip(names, files, strict=True)]


def _settings(video: Path) -> dict[str, Any]:
    """The settings embedded in `video`; empty if it is not a single generation of longgen."""
    try:
        settings = read_settings(video)
    except LonggenError:
        return {}
    complete = {"prompt", "seed", "preset", "sample", "backbone", "dtype"} <= settings.keys()
    return settings if complete and isinstance(settings["preset"], dict) else {}
