"""Existing videos as inputs: those that longgen wrote carry their preset, prompt and seed; others are known by their names."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longgen import progress, resolve
from longgen.compare.record import read
from longgen.compare.seams import seams
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.plan import Plan
from longgen.run_settings import TREATMENT
from longgen.video import is_partial, read_settings
from longgen.video_info import facts, unreadable

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")  # of the videos of a folder, in any case
LISTED = 8  # names written out


@dataclass(frozen=True)
class InputVideo:
    """A video and its embedded settings, which are empty if longgen did not write it. label: of its row in tables.

    caveats: notes on the file, phrased to follow its name.
    """

    video: Path
    label: str
    size: tuple[int, int]
    fps: float
    settings: dict[str, Any]
    plan: Plan | None
    seams: list[int]
    caveats: list[str] = field(default_factory=list)

    @property
    def prompt(self) -> str | None:
        return self.settings.get("prompt")

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")


def expand_paths(paths: Sequence[Path], log: Callable[[str], None] = progress.no_report) -> list[Path]:
    """The videos behind `paths`, each once: a path is a video, a run folder, a folder of an earlier comparison, or one of videos.

    log: receives a sentence about what is skipped. Raises LonggenError.
    """
    listed: list[Path] = []
    for path in paths:
        if path.is_dir() and (path / "run.json").is_file():
            video = path.with_suffix(".mp4")
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


def _videos_in(folder: Path, log: Callable[[str], None]) -> list[Path]:
    """The videos of `folder`; what is skipped is logged."""
    inner = folder / "videos"
    if inner.is_dir():  # of an interrupted comparison
        beside = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        if beside:
            log(f"skipped in {folder}, whose folder {inner.name} is compared: {join_names(beside)}")
        folder = inner
    videos, skipped = [], dict[str, list[str]]()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.suffix == ".run" and path.with_suffix(".mp4").is_file():
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


def read_videos(paths: Sequence[Path], log: Callable[[str], None] = progress.no_report) -> list[InputVideo]:
    """The videos of `paths`. Raises LonggenError for an unreadable or truncated one, and UsageError if there is none.

    Rows are labelled by preset; where two presets of one name differ otherwise, the second gets `#2` after its name. Other videos
    are labelled by file name, with as much of the path as tells them apart. log: receives what is skipped, and why.
    """
    labels: dict[str, str] = {}  # by settings
    taken: set[tuple[str, object, object]] = set()
    counts: dict[str, int] = {}  # of labels by preset
    videos: list[InputVideo] = []
    foreign: list[int] = []  # indices of those that longgen did not write
    for path in expand_paths(paths, log):
        info, settings = facts(path), _settings(path)
        caveats = [*info.notes]
        if info.cut is not None and not is_partial(path):
            raise unreadable(path, info.cut, "copy or download it again; ffmpeg -i FILE -c copy WHOLE.mp4 keeps what there is")
        if is_partial(path):
            caveats.append("it is incomplete; its frames so far are compared")
        if not settings:
            foreign.append(len(videos))
            videos.append(InputVideo(path, "", info.size, info.fps, {}, None, [], caveats))
            continue
        name = str(settings["preset"].get("name"))
        treatment = json.dumps([name, *(settings.get(key) for key in TREATMENT)], sort_keys=True)
        sample = settings.get("prompt"), settings.get("seed")
        if treatment not in labels or (labels[treatment], *sample) in taken:
            counts[name] = counts.get(name, 0) + 1
            labels[treatment] = name if counts[name] == 1 else f"{name} #{counts[name]}"
            if counts[name] > 1:
                log(f"{labels[treatment]} is {path}, and videos with the same settings")
        label = labels[treatment]
        taken.add((label, *sample))
        plan, edges = None, []
        try:
            plan = resolve.from_settings(settings, path)
            edges = seams(plan)
        except LonggenError:
            pass  # of an unknown backbone, or another version of longgen
        videos.append(InputVideo(path, label, info.size, info.fps, settings, plan, edges, caveats))
    if not videos:
        raise UsageError("there is no video to compare", expected="videos, or folders with some", hint="list one")
    file_labels = _file_labels([videos[index].video for index in foreign], {label for label, _, _ in taken})
    for index, label in zip(foreign, file_labels, strict=True):
        videos[index] = replace(videos[index], label=label)
    return videos


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
    complete = {"prompt", "seed", "preset", "sample", "backbone", "dtype"} <= settings.keys() and isinstance(
        settings["preset"], dict
    )
    return settings if complete else {}
