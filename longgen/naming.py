"""Output file names: slugs of prompts, and checks of the names that users give.

The default name is `PROMPT-SEED.mp4`. If it belongs to another run, it gets a number: `PROMPT-SEED-2.mp4`.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from longgen import disk, ffmpeg
from longgen.errors import UsageError

# in the folder of a run, see `longgen.rundir`
LATENTS, CHUNKS, STEP, RECORD, INPUTS = "latents.safetensors", "latents", "checkpoint.safetensors", "run.json", "inputs"
PREVIEW = "preview.png"
LONGEST_NAME = 230  # bytes; file systems allow 255, and temporary names are longer by up to 17
LONGEST_SLUG = 60, 120  # characters and bytes: names of two slugs, a seed and a hash still fit
SUFFIXES = (".mp4", ".webm", ".gif")  # of the videos that longgen writes
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789")}  # on Windows


def slug(text: str, longest: tuple[int, int] = LONGEST_SLUG) -> str:
    """Slug of `text`: letters, marks and digits of every script, in lower case, with hyphens for everything else.

    longest: in characters and bytes; it is cut between letters. `video` if nothing is left.
    """
    lower = unicodedata.normalize("NFC", text.lower())
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in lower)
    name = "-".join(words.split())
    characters, count = longest
    end = min(len(name), characters)
    while len(name[:end].encode()) > count or (0 < end < len(name) and unicodedata.category(name[end])[0] == "M"):
        end -= 1
    name = name[:end].strip("-")
    while name and unicodedata.category(name[0])[0] == "M":  # a combining mark would attach to the slash before it
        name = name[1:].lstrip("-")
    return f"{name}-video" if name in RESERVED else name or "video"


def key_of(path: Path) -> str:
    """Equal for paths that some file system treats as the same: case and Unicode composition are ignored."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()


def run_folder(output: Path) -> Path:
    """The folder of the run that makes `output`: `ball.run` of ball.mp4, `ball.webm.run` of ball.webm."""
    return output.with_suffix(".run") if is_plain(output) else output.with_name(f"{output.name}.run")


def output_of(folder: Path) -> Path:
    """The video beside the run folder `folder`: the inverse of `run_folder`."""
    inner = folder.with_suffix("")
    return inner if inner.suffix.lower() in SUFFIXES[1:] else folder.with_suffix(SUFFIXES[0])


def is_plain(output: Path) -> bool:
    """Whether `output` is an MP4, or of a kind that longgen does not write."""
    return output.suffix.lower() not in SUFFIXES[1:]


def is_video(output: str | Path) -> bool:
    """Whether `output` is named like a video that longgen writes."""
    return _suffix(str(output)).lower() in SUFFIXES


def is_file_name(output: str) -> bool:
    """Whether `output` is a file name; otherwise it is a folder for files with default names."""
    suffix = _suffix(output)
    return not output.endswith(("/", os.sep)) and suffix != "" and (suffix.lower() in SUFFIXES or not os.path.isdir(output))


def _suffix(output: str) -> str:
    name = Path(output).name
    return name if name in SUFFIXES else Path(output).suffix


def output_path(output: str | None, prompt: str, seed: int) -> Path:
    """The path of the video: `output` if that is a file name of `SUFFIXES`, else `<slug>-<seed>.mp4` in the folder `output`."""
    if output is not None:
        ffmpeg.check_output(output)
    kinds = "a name in .mp4, .webm or .gif"
    if "\0" in (output or ""):
        raise UsageError(f"--output {output!r}: the name contains a NUL byte", expected=f"{kinds}, or a folder", hint="remove it")
    if output is not None and is_file_name(output):
        suffix, shown = _suffix(output), disk.shortened(output)
        if output.endswith(tuple(f".partial{kind}" for kind in SUFFIXES)):
            raise UsageError(f"--output {shown}: that suffix marks incomplete videos", expected="another name",
                             hint=f"use {output.removesuffix(f'.partial{suffix}')}{suffix}")  # fmt: skip
        known = suffix.lower() in SUFFIXES
        if known and len(suffix) < len(os.fsencode(Path(output).name)) <= LONGEST_NAME:
            return Path(output)
        if known:
            raise UsageError(f"--output {shown}: the name is empty or too long", expected=f"a name of at most {LONGEST_NAME} bytes",
                             hint="give another name")  # fmt: skip
        raise UsageError(f"--output {shown}: longgen writes MP4, WebM and GIF only", expected=f"{kinds}, or a folder",
                         hint=f"use {Path(output).with_suffix('.mp4')}")  # fmt: skip
    return Path(output or ".") / f"{slug(prompt)}-{seed}.mp4"


def first_free(folder: Path, is_taken: Callable[[Path], bool]) -> Path:
    """`folder`, or with the first number from 2 on after its name that is not taken."""
    candidates = itertools.chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not is_taken(candidate))


def numbered(path: Path, number: int) -> Path:
    """`path` with `number` after its stem; the first has none."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
