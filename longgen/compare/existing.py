"""Videos that are there already: those that longgen wrote tell their preset, prompt and seed, others are known by their names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longgen import run
from longgen.compare.record import read
from longgen.compare.seams import seams
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.plan import Plan
from longgen.video import read_settings, size_and_fps

TREATMENT = tuple(key for key in run.IDENTITY if key not in ("prompt", "seed"))  # videos that are equal in these share a row


@dataclass(frozen=True)
class Found:
    """A video, and what it says of how it was made: nothing where longgen did not write it. label: of its row in tables."""

    video: Path
    label: str
    size: tuple[int, int]
    fps: float
    settings: dict[str, Any]
    plan: Plan | None
    seams: list[int]

    @property
    def prompt(self) -> str | None:
        return self.settings.get("prompt")

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")


def videos(paths: Sequence[Path]) -> list[Path]:
    """The videos that `paths` mean, each once: a video, a run's folder, or a folder of an earlier compare. Raises LonggenError."""
    named: list[Path] = []
    for path in paths:
        if path.is_dir() and (path / "run.json").is_file():
            video = path.with_suffix(".mp4")
            if not video.is_file():
                raise MissingError(f"{path} is a run whose video {video.name} is not there", accepted="a run that is finished",
                                   do=f"longgen generate -o {video} --resume")  # fmt: skip
            named.append(video)
        elif (path / "compare.json").is_file():
            cells = read(path / "compare.json").cells
            named += [path / cell.video for cell in cells if cell.video is not None]
        elif path.is_dir():
            folder = path / "videos" if (path / "videos").is_dir() else path
            inside = [video for video in sorted(folder.glob("*.mp4")) if not video.name.endswith(".partial.mp4")]
            if not inside:
                raise MissingError(f"{path} holds no video", accepted="a video, a folder NAME.run, or a folder of longgen compare",
                                   do="check the path")  # fmt: skip
            named += inside
        else:
            named.append(path)
    unique: dict[str, Path] = {}
    for video in named:
        unique.setdefault(os.path.realpath(video), video)
    return [*unique.values()]


def found(paths: Sequence[Path]) -> list[Found]:
    """The videos of `paths`. Raises LonggenError for one that is none, and UsageError where there is none.

    Rows are called as the presets are; where two are called alike and differ otherwise, the second has `#2` behind its name.
    """
    labels: dict[str, str] = {}  # of settings
    taken: set[tuple[str, object, object]] = set()
    named: dict[str, int] = {}
    made = []
    for video in videos(paths):
        (size, fps), settings = size_and_fps(video), _settings(video)
        table = settings.get("preset")
        name = str(table.get("name")) if isinstance(table, dict) else video.stem
        treatment = json.dumps([name, *(settings.get(key) for key in TREATMENT)], sort_keys=True)
        where = settings.get("prompt"), settings.get("seed")
        if treatment not in labels or (labels[treatment], *where) in taken:
            named[name] = named.get(name, 0) + 1
            labels[treatment] = name if named[name] == 1 else f"{name} #{named[name]}"
        label = labels[treatment]
        taken.add((label, *where))
        plan, edges = None, []
        if settings:
            try:
                plan = run.plan_of(settings, video)
                edges = seams(plan)
            except LonggenError:
                pass  # of a backbone that is not here, or of another longgen
        made.append(Found(video, label, size, fps, settings, plan, edges))
    if not made:
        raise UsageError("there is no video to compare", accepted="videos, or folders with some", do="name one")
    return made


def _settings(video: Path) -> dict[str, Any]:
    """The settings stored in `video`; none where it is not one generation of longgen's."""
    try:
        settings = read_settings(video)
    except LonggenError:
        return {}
    return settings if {"prompt", "seed", "preset", "sample", "backbone", "dtype"} <= settings.keys() else {}
