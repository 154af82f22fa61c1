"""Videos that are there already: those that longgen wrote tell their preset, prompt and seed, others are known by their names."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longgen import progress, resolve, run
from longgen.compare.record import read
from longgen.compare.seams import seams
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.plan import Plan
from longgen.video import is_partial, read_settings
from longgen.video_info import facts, unreadable

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")  # taken from a folder, in letters of any case
NAMED = 8  # files of a folder that are left out, written out
TREATMENT = tuple(key for key in run.IDENTITY if key not in ("prompt", "seed"))  # videos that are equal in these share a row


@dataclass(frozen=True)
class Found:
    """A video, and what it says of how it was made: nothing where longgen did not write it. label: of its row in tables.

    caveats: what is to be noted of the file, as words that follow its name.
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


def videos(paths: Sequence[Path], log: Callable[[str], None] = progress.no_report) -> list[Path]:
    """The videos that `paths` mean, each once: a video, a run's folder, a folder of an earlier compare, or a folder of videos.

    tell: is given a sentence for what is left out. Raises LonggenError.
    """
    named: list[Path] = []
    for path in paths:
        if path.is_dir() and (path / "run.json").is_file():
            video = path.with_suffix(".mp4")
            if not video.is_file():
                raise MissingError(f"{path} is a run whose video {video.name} is not there", expected="a run that is finished",
                                   hint=f"longgen generate -o {video} --resume")  # fmt: skip
            named.append(video)
        elif (path / "compare.json").is_file():
            cells = read(path / "compare.json").cells
            named += [path / cell.video for cell in cells if cell.video is not None]
        elif path.is_dir():
            named += _inside(path, log)
        else:
            named.append(path)
    unique: dict[object, Path] = {}
    for video in named:
        first = unique.setdefault(_identity(video), video)
        if first is not video:
            log(f"{video} {f'and {first} are one file' if first != video else 'is named more than once'}: it is taken once")
    return [*unique.values()]


def _identity(video: Path) -> object:
    """Equal for names of one file, links of both kinds among them."""
    try:
        here = video.stat()
    except (OSError, ValueError):
        return str(video)
    return (here.st_dev, here.st_ino) if here.st_ino else os.path.realpath(video)


def _inside(folder: Path, log: Callable[[str], None]) -> list[Path]:
    """The videos of `folder`, and what was left out of it told to `tell`."""
    inner = folder / "videos"
    if inner.is_dir():  # of a comparison that did not come to its end
        beside = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        if beside:
            log(f"left out of {folder}, whose folder {inner.name} is compared: {listed(beside)}")
        folder = inner
    taken, left = [], dict[str, list[str]]()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.suffix == ".run" and path.with_suffix(".mp4").is_file():
            continue
        why = _left_out(path)
        if why is None:
            taken.append(path)
        else:
            left.setdefault(why, []).append(path.name)
    if not taken:
        said = "".join(f"; {why}: {listed(names)}" for why, names in left.items())
        raise MissingError(f"{folder} holds no video{said}", hint="check the path, or name the files themselves",
                           expected=f"a folder with {', '.join(SUFFIXES)}, or a video, NAME.run, DIR of compare")  # fmt: skip
    for why, names in left.items():
        log(f"left out of {folder}, {why}: {listed(names)}")
    return taken


def _left_out(path: Path) -> str | None:
    """Why what is in a folder is not taken for one of its videos, or None."""
    if path.name.startswith("."):
        return "hidden"
    if is_partial(path):
        return "not complete yet"
    if path.suffix.lower() in SUFFIXES:
        return None
    if path.is_dir():
        return "a run without its video" if path.suffix == ".run" else "a folder in it"
    return f"not called {', '.join(SUFFIXES)}"


def listed(names: Sequence[str]) -> str:
    """`names` with commas between, or the first of them and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def found(paths: Sequence[Path], log: Callable[[str], None] = progress.no_report) -> list[Found]:
    """The videos of `paths`. Raises LonggenError for one that is none or not whole, and UsageError where there is none.

    Rows are called as the presets are; where two are called alike and differ otherwise, the second has `#2` behind its name. Other
    videos are called as their files, by as much of the path as tells them apart. tell: is given what is left out, and why.
    """
    labels: dict[str, str] = {}  # of settings
    taken: set[tuple[str, object, object]] = set()
    named: dict[str, int] = {}
    made: list[Found] = []
    others: list[int] = []  # their places in it, of those that longgen did not write
    for video in videos(paths, log):
        film, settings = facts(video), _settings(video)
        caveats = [*film.notes]
        if film.cut is not None and not is_partial(video):
            raise unreadable(video, film.cut, "copy or download it again; ffmpeg -i FILE -c copy WHOLE.mp4 keeps what there is")
        if is_partial(video):
            caveats.append("it is not complete yet; what it holds so far is compared")
        if not settings:
            others.append(len(made))
            made.append(Found(video, "", film.size, film.fps, {}, None, [], caveats))
            continue
        name = str(settings["preset"].get("name"))
        treatment = json.dumps([name, *(settings.get(key) for key in TREATMENT)], sort_keys=True)
        where = settings.get("prompt"), settings.get("seed")
        if treatment not in labels or (labels[treatment], *where) in taken:
            named[name] = named.get(name, 0) + 1
            labels[treatment] = name if named[name] == 1 else f"{name} #{named[name]}"
            if named[name] > 1:
                log(f"{labels[treatment]} is {video}, and what was made alike")
        label = labels[treatment]
        taken.add((label, *where))
        plan, edges = None, []
        try:
            plan = resolve.from_settings(settings, video)
            edges = seams(plan)
        except LonggenError:
            pass  # of a backbone that is not here, or of another longgen
        made.append(Found(video, label, film.size, film.fps, settings, plan, edges, caveats))
    if not made:
        raise UsageError("there is no video to compare", expected="videos, or folders with some", hint="name one")
    for index, label in zip(others, _names([made[index].video for index in others], {one[0] for one in taken}), strict=True):
        made[index] = replace(made[index], label=label)
    return made


def _names(files: Sequence[Path], taken: Collection[str]) -> list[str]:
    """For each of `files` a name that no other has, nor `taken`: its stem, its name, or the end of its path."""
    forms = [[file.stem, *("/".join(file.parts[-parts:]) for parts in range(1, len(file.parts) + 1))] for file in files]
    names = [form[0] for form in forms]
    for level in range(1, max(map(len, forms), default=0)):
        count = Counter([*names, *taken])
        names = [form[min(level, len(form) - 1)] if count[name] > 1 else name for name, form in zip(names, forms, strict=True)]
    count = Counter([*names, *taken])
    return [str(file.absolute()) if count[name] > 1 else name for name, file in zip(names, files, strict=True)]


def _settings(video: Path) -> dict[str, Any]:
    """The settings stored in `video`; none where it is not one generation of longgen's."""
    try:
        settings = read_settings(video)
    except LonggenError:
        return {}
    whole = {"prompt", "seed", "preset", "sample", "backbone", "dtype"} <= settings.keys() and isinstance(settings["preset"], dict)
    return settings if whole else {}
