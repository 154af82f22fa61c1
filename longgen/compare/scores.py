"""The scores of a video, computed once: they are kept until the video or the code of the metrics is another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from longgen import disk, ffmpeg, metrics, video_info
from longgen import video as films
from longgen.backbones import tiny_grammar
from longgen.errors import LonggenError, UsageError, unknown_name
from longgen.metrics import METRICS, in_order
from longgen.metrics.score import score_video
from longgen.metrics.vbench import DIMENSIONS, musiq

ALWAYS = "motion"  # no other metric is shown without it: most look good where nothing moves
READING = [Path(str(module.__file__)) for module in (ffmpeg, video_info, films)]  # the code that decides what frames look like
DIGITS = 5  # of the numbers of a curve, so that 24 videos of a minute fit into a page


def chosen(names: str | None) -> list[str]:
    """The metrics of `names`, with commas between, in the order of tables; all of longgen's own where it is None.

    `own` stands for these, `vbench` for all of VBench's that can be installed. `motion` is always among them. Raises UsageError
    for a name that is none.
    """
    if names is None:
        return [*METRICS]
    free = [row.key for name, row in DIMENSIONS.items() if name != "imaging_quality" or musiq.installed()]
    known = {key: [key] for key in (*METRICS, *(row.key for row in DIMENSIONS.values()))} | {"own": [*METRICS], "vbench": free}
    asked = [ALWAYS]
    for name in map(str.strip, names.split(",")):
        if not name:
            raise UsageError(f"--metrics {names!r} are no metrics", expected=", ".join(known), hint="put commas between names")
        if name not in known:
            raise unknown_name("metric", name, known, "leave --metrics out for all of longgen's own")
        asked += known[name]
    return in_order(asked)


def scored(video: Path, seams: list[int], prompt: str | None, kept: Path) -> dict[str, Any]:
    """`frames`, `metrics`, `curves`, `details`, `times` and `caveats` of a Cell for `video`, from the file `kept` or for it.

    Raises LonggenError.
    """
    key = {"video": file_hash(video), "code": code_hash(), "seams": seams, "prompt": prompt}

    def make() -> dict[str, Any]:
        score = score_video(video, seams, prompt)
        return {
            "frames": score.frames,
            "metrics": score.values,
            "curves": rounded(score.curves),
            "times": None if score.times is None else [*score.times],
            "caveats": [*score.notes],
            "details": {name: number if number is None or np.isfinite(number) else None for name, number in score.details.items()},
        }

    return once(kept, key, make)


def once(kept: Path, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives: from the file `kept` where that was written for an equal `key`, else made, and written there."""
    try:
        before = disk.load_record(kept)
        if before["key"] == key:
            return before["scores"]
    except (LonggenError, KeyError):
        pass  # there are none, or not such as this longgen writes
    found = make()
    disk.make_folder(kept.parent)
    disk.save_record(kept, {"key": key, "scores": found})
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """A hash of the code that makes the scores, and of the versions of what it stands on."""
    files = [*sorted(Path(str(metrics.__file__)).parent.glob("*.py")), Path(str(tiny_grammar.__file__)), *READING]
    return hash_of(files, [cv2.__version__, np.__version__])


def hash_of(files: Iterable[Path], versions: Sequence[str]) -> str:
    """SHA-256 of the contents of `files` and of `versions`, in hexadecimal digits."""
    digest = hashlib.sha256(" ".join(versions).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def rounded(curves: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Curves as a Cell has them."""
    return {name: [float(f"{number:.{DIGITS}g}") if np.isfinite(number) else None for number in curve.tolist()]
            for name, curve in curves.items()}  # fmt: skip
