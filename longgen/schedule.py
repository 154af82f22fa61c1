"""Prompt schedules: prompts that change over time, and the weight of each in every latent frame. Independent of any model.

    common = "cinematic, 4k"     # optional: every shot's prompt becomes "<prompt>, <common>"
    blend = "1s"                 # optional, default 0s: the duration of the cross-fade between shots
    [[shot]]                     # the first shot begins at 0
    prompt = "a large red circle bouncing on a navy background"
    [[shot]]
    at = "4s"
    prompt = "a large green square bouncing on a navy background"
    image = "square.png"         # optional: a picture that the shot begins with, beside this file; see `settled`
    cut = true                   # optional: in a rollout, a hard cut; see `longgen.sampling.rollout`

Pixel frame p is shown at time p / fps. Latent frame 0 holds pixel frame 0, latent frame j >= 1 the `stride` pixel frames from
stride (j - 1) + 1 to stride j.

Without blend there are hard cuts: a pixel frame has the last shot with at <= p / fps, and a latent frame has the shot of its last
pixel frame. So the latent frame that holds the first pixel frame of a shot is the first with that shot, at full weight; the cut
comes up to stride - 1 pixel frames early, never late.

With a blend b each cut is a linear cross-fade over [at - b/2, at + b/2], and a latent frame has the mean of its pixel frames. Shots
must not be shorter than b, so that no two fades overlap; a video may end within a fade.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from longgen import frames, pictures, textfile, units
from longgen.conditions import Conditions
from longgen.errors import LonggenError, UsageError, conflict, shown
from longgen.naming import INPUTS
from longgen.pictures import FITS, Picture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_LINES = 500  # of one statement, which is parsed again with each of its lines to find its end


@dataclass(frozen=True)
class Shot:
    """`prompt`, including the text common to all shots, from the time `at` in seconds. image: what the shot begins with. cut:
    whether its first chunk stands apart in time from what it sees of the shot before.
    """

    at: Fraction
    prompt: str
    image: Picture | None = None
    cut: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As plain data; the picture as its hash."""
        image = {} if self.image is None else {"image": self.image.sha256}
        return {"at": str(self.at), "prompt": self.prompt} | image | ({"cut": True} if self.cut else {})


@dataclass(frozen=True)
class PromptSchedule:
    """Shots in order of time, the first at 0, and the duration of cross-fades in seconds."""

    shots: tuple[Shot, ...]
    blend: Fraction = Fraction(0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, equal for equal schedules; times as exact fractions of a second, `15/2`."""
        return {"blend": str(self.blend), "shots": [shot.as_dict() for shot in self.shots]}

    def as_toml(self) -> str:
        """The schedule as a TOML file that `load` reads back equal; pictures by their absolute paths."""
        text = f"blend = {_exactly(self.blend)}\n"
        for shot in self.shots:
            text += f"[[shot]]\nat = {_exactly(shot.at)}\nprompt = {textfile.toml_value(shot.prompt)}\n"
            if shot.image is not None:
                text += f"image = {textfile.toml_value(str(shot.image.path.absolute()))}\n"
            text += "cut = true\n" if shot.cut else ""
        return text

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], picture: Callable[[str], Picture] | None = None) -> PromptSchedule:
        """The schedule that `as_dict` wrote. picture: the picture of a hash; needed where a shot begins with one."""
        shots = []
        for shot in data["shots"]:
            image = None if "image" not in shot else picture(shot["image"]) if picture else _gone(shot["image"])
            shots.append(Shot(Fraction(shot["at"]), shot["prompt"], image, shot.get("cut", False)))
        return cls(tuple(shots), Fraction(data["blend"]))

    @property
    def pictures(self) -> dict[str, Picture]:
        """The pictures by their shots."""
        return {f"shot {number}: image": shot.image for number, shot in enumerate(self.shots, 1) if shot.image is not None}

    def keep(self, folder: Path) -> None:
        """Copies the pictures to INPUTS in the run's `folder`, each under its hash. Raises LonggenError."""
        for picture in self.pictures.values():
            pictures.keep(picture, folder / INPUTS)


def _gone(sha256: str) -> Picture:
    return Picture(Path(sha256), sha256, (0, 0))


def settled(schedule: PromptSchedule | None, conditions: Conditions) -> tuple[PromptSchedule | None, Conditions]:
    """Both as a plan has them: the first shot's picture is the video's first frame, as `--image` is; without any picture and any
    earlier video there is nothing to fit. Raises UsageError where what it starts from is given twice.
    """
    first = None if schedule is None else schedule.shots[0].image
    if schedule is not None and first is not None:
        if conditions.past is not None:
            raise conflict("the picture of the schedule's first shot", "--continue",
                           "the last frames of the earlier video are what it starts from")  # fmt: skip
        if conditions.image is not None and conditions.image.sha256 != first.sha256:
            raise conflict("--image", "the picture of the schedule's first shot", "both are the first frame")
        conditions = replace(conditions, image=first)
        schedule = replace(schedule, shots=(replace(schedule.shots[0], image=None), *schedule.shots[1:]))
    if not conditions and not (schedule and schedule.pictures):
        conditions = replace(conditions, fit=FITS[0])
    return schedule, conditions


def load(path: Path) -> PromptSchedule:
    """The schedule in the TOML file `path`.

    Raises as `textfile.read` does, and UsageError with every error of the file, each with its line and key.
    """
    text = textfile.read(path, "schedule") + "\n"
    tables = textfile.toml(text, f"schedule {path}")
    errors = _Errors(text)
    errors.check_keys(0, tables, ("common", "blend", "shot"))
    common = errors.read_text(0, "common", tables["common"]) if "common" in tables else ""
    blend = errors.read_time(0, "blend", tables.get("blend", "0s"))
    stack = tables.get("shot", [])
    if not isinstance(stack, list) or not stack or not all(isinstance(table, dict) for table in stack):
        errors.add(0, "shot", ": must be [[shot]] tables, at least one")
        stack = []
    times: list[Fraction | None] = []
    shots = []
    for number, table in enumerate(stack, 1):
        errors.check_keys(number, table, ("at", "prompt", "image", "cut"))
        prompt = errors.read_text(number, "prompt", table.get("prompt"))
        at = errors.read_time(number, "at", table.get("at", "0s" if number == 1 else None))
        if number == 1 and at:
            errors.add(number, "at", f" = {shown(table['at'])}, but the first shot must begin at 0")
        before = next((time for time in reversed(times) if time is not None), None)
        if before is not None and at is not None and at <= before:
            errors.add(number, "at", f" = {shown(table['at'])} is not after {_say(before)}, where an earlier shot begins")
        times.append(at)
        image = errors.read_picture(number, "image", table["image"], path) if "image" in table else None
        cut = errors.read_cut(number, table.get("cut", False), blend)
        shots.append(Shot(at or Fraction(0), f"{prompt}, {common}" if common else prompt, image, cut))
    for number, (start, end) in enumerate(pairwise(times), 1):
        if blend is not None and start is not None and end is not None and 0 < end - start < blend:
            reason = f" is longer than shot {number}, {_say(end - start)}: the fades would overlap"
            errors.add(0, "blend", f" = {shown(tables['blend'])}{reason}")
    if errors.messages:
        raise UsageError(f"schedule {path}:\n" + "\n".join(f"    {message}" for _, message in sorted(errors.messages)),
                         expected="what each line names", hint="correct these lines")  # fmt: skip
    return PromptSchedule(tuple(shots), blend or Fraction(0))


class _Errors:
    """Collects the errors of a schedule file, each with its line, while its values are read. Shot 0 is the top of the file."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: dict[tuple[int, str], int] = {}
        self.messages: list[tuple[int, str]] = []

    def add(self, shot: int, key: str, error: str) -> None:
        self.lines.update(self.lines or _lines(self.text))  # slow, and only errors need them
        line = next((self.lines[place] for place in ((shot, key), (shot, ""), (0, "shot")) if place in self.lines), 1)
        self.messages.append((line, f"line {line}: {f'shot {shot}: ' * (shot > 0)}{key}{error}"))

    def check_keys(self, shot: int, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in sorted(table.keys() - set(known)):
            self.add(shot, key[:100], f": unknown key; known keys: {', '.join(known)}")

    def read_text(self, shot: int, key: str, value: Any) -> str:
        if isinstance(value, str) and not textfile.flaw(value):
            return value.strip()
        wrong = f"{textfile.flaw(value)}" if isinstance(value, str) else f"= {shown(value)} is not text"
        self.add(shot, key, " is missing" if value is None else f" {wrong}")
        return ""

    def read_time(self, shot: int, key: str, value: Any) -> Fraction | None:
        if value is None:
            self.add(shot, key, " is missing; only the first shot may omit it")
            return None
        try:
            return units.seconds(value if isinstance(value, str) else "", "")
        except UsageError as error:
            self.add(shot, key, f" = {shown(value)} is not a time; expected, in quotes: {error.expected}")
            return None

    def read_cut(self, shot: int, value: Any, blend: Fraction | None) -> bool:
        if not isinstance(value, bool):
            self.add(shot, "cut", f" = {shown(value)} is neither true nor false")
        elif value and shot == 1:
            self.add(shot, "cut", ": before the first shot there is nothing to cut from")
        elif value and blend:
            self.add(shot, "cut", f": blend = {_say(blend)} fades the texts of all shots into each other, which a cut cannot")
        return value is True

    def read_picture(self, shot: int, key: str, value: Any, schedule: Path) -> Picture | None:
        if not isinstance(value, str) or not value.strip():
            self.add(shot, key, f" = {shown(value)} is not the name of a file")
            return None
        try:
            return pictures.read(schedule.parent / value, "")
        except LonggenError as error:
            self.add(shot, key, f": {error.given.strip()}; expected: {error.expected}")
            return None


def _lines(text: str) -> dict[tuple[int, str], int]:
    """The lines, from 1, of the keys (shot, key) and headers (shot, "") of a valid TOML file; shot 0 is its top.

    tomllib does not report lines. But a whole statement parses alone, and no shorter run of its lines does: so the file is split
    into statements by parsing, and text in strings or comments is never mistaken for a header.
    """
    lines: dict[tuple[int, str], int] = {}
    shots = table = 0  # headers so far; the shot whose keys follow, -1 in a table that no schedule has
    start, statement = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            if number - start > MOST_LINES:
                return lines
            continue  # the statement continues on the next line
        header = statement.lstrip().startswith("[")
        for key, value in parsed.items():  # one, or none for blank lines and comments
            if header and key == "shot" and isinstance(value, list):
                shots = table = shots + 1
                lines[shots, ""] = start
            elif header:  # not of a schedule: [shot.key] belongs to the last shot, others to the top
                table = -1
                lines.setdefault((shots, next(iter(value))) if key == "shot" and shots else (0, key), start)
            else:
                lines.setdefault((table, key), start)
        start, statement = number + 1, ""
    return lines


def check(schedule: PromptSchedule, frames_px: int, fps: int) -> None:
    """Raises UsageError where a shot begins after a video of `frames_px` frames has ended."""
    duration = Fraction(frames_px, fps)
    late = [f"shot {number} at {_say(shot.at)}" for number, shot in enumerate(schedule.shots, 1) if shot.at >= duration]
    if late:
        raise UsageError(f"the schedule has {', '.join(late)}, but the video ends at {_say(duration)}",
                         expected=f"shots that begin before {_say(duration)}",
                         hint="make the video longer (--duration, --frames), or the shots earlier")  # fmt: skip


def weights(schedule: PromptSchedule, frames_px: int, stride: int, fps: int) -> np.ndarray:
    """Prompt weights [S shots, T latent frames] float64: the share of each shot's text in each latent frame; columns sum to one.

    Raises UsageError where a shot is too short to have any.
    """
    shots, frames_lat = schedule.shots, frames.latent_frames(frames_px, stride)
    fades = np.zeros((len(shots) + 1, frames.pixel_frames(frames_lat, stride)))  # cumulative shares; the last row stays 0
    fades[0] = 1
    for fade, shot in zip(fades[1:], shots[1:], strict=False):
        start = shot.at - schedule.blend / 2
        first, last = max(0, ceil(start * fps)), ceil((start + schedule.blend) * fps)  # pixel frames; equal without blend
        fade[first:last] = [float((Fraction(p, fps) - start) / schedule.blend) for p in range(first, min(last, len(fade)))]
        fade[last:] = 1
    shares = fades[:-1] - fades[1:]
    groups = shares[:, 1:].reshape(len(shots), frames_lat - 1, stride)
    table = np.concatenate([shares[:, :1], groups.mean(axis=2) if schedule.blend else groups[:, :, -1]], axis=1)
    _refuse_unseen(schedule, table, "frame", Fraction(stride, fps))
    return table


def weights_after(schedule: PromptSchedule, frames_px: int, stride: int, fps: int) -> np.ndarray:
    """As `weights`, for a video that goes on from another: every latent frame holds `stride` of its frames, from time 0."""
    later = tuple(
        Shot(shot.at + Fraction(1, fps) if number else shot.at, shot.prompt) for number, shot in enumerate(schedule.shots)
    )
    return weights(PromptSchedule(later, schedule.blend), frames_px + 1, stride, fps)[:, 1:]


def by_chunk(schedule: PromptSchedule, shares: np.ndarray, chunk: int, frame_s: Fraction = Fraction(0)) -> np.ndarray:
    """Prompt weights by chunk [chunks, S]: the shares [S, T] of `weights` in each `chunk` latent frames of `frame_s` seconds.

    With a blend they are means over frames; without, a chunk has the shot of its first frame, so that a shot begins with the first
    chunk that starts in it. Raises UsageError for a shot that no chunk has.
    """
    if schedule.blend:
        table = np.stack([shares[:, first : first + chunk].mean(axis=1) for first in range(0, shares.shape[1], chunk)])
    else:
        table = shares[:, ::chunk].T
    _refuse_unseen(schedule, table.T, f"chunk of {chunk} latent frames", chunk * frame_s)
    return table


def seen_by(schedule: PromptSchedule, shares: np.ndarray, first_lat: int, end_lat: int, before_s: Fraction) -> PromptSchedule:
    """The shots that latent frames [first, end) of a longer video see, at times from the first of them on; without pictures.

    shares [S, T]: those of `weights`; frames beyond the video's end are as its last. before_s: the time of the first of them. A
    fade that has begun before comes out as what is left of it.
    """
    frames_lat = np.clip(np.arange(first_lat, end_lat), 0, shares.shape[1] - 1)
    seen = np.flatnonzero(shares[:, frames_lat[1:] if len(frames_lat) > 1 else frames_lat].any(axis=1))
    shots = [Shot(schedule.shots[shot].at - before_s, schedule.shots[shot].prompt) for shot in seen]
    return PromptSchedule((replace(shots[0], at=Fraction(0)), *shots[1:]), schedule.blend)


def since_switch(shares: np.ndarray) -> list[int | None]:
    """Of each chunk, how many chunks ago the prompt last changed: 0 where it does there, None where it never has.

    shares [chunks, P]: of each prompt in each chunk.
    """
    since: list[int | None] = []
    for index in range(len(shares)):
        before = since[-1] if since else None
        changed = index > 0 and not np.array_equal(shares[index], shares[index - 1])
        since.append(0 if changed else None if before is None else before + 1)
    return since


def _refuse_unseen(schedule: PromptSchedule, table: np.ndarray, where: str, least_s: Fraction) -> None:
    unseen = [f"shot {number} at {_say(schedule.shots[number - 1].at)}" for number in 1 + np.flatnonzero(~table.any(axis=1))]
    if unseen:
        raise UsageError(f"the schedule's {', '.join(unseen)} is too short to appear in any {where}",
                         expected=f"shots of {_say(least_s)} or longer, before the video ends",
                         hint="make it longer, or remove it")  # fmt: skip


def _exactly(seconds: Fraction) -> str:
    """A time from a file, exactly, in quotes; it has nine decimals at most."""
    whole, rest = divmod(seconds * 10**9, 10**9)
    text = f"{whole}.{int(rest):09}".rstrip("0").rstrip(".")
    return f'"{text}s"'


def _say(seconds: Fraction) -> str:
    return f"{float(seconds):.6g}s"
