"""Cached scores of videos: recomputed only if the video or the code of the metrics changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from longgen import disk, ffmpeg, metrics, video, video_info
from longgen.backbones import tiny_grammar
from longgen.errors import LonggenError, UsageError, unknown_name
from longgen.metrics import METRICS, in_order
from longgen.metrics.score import score_video
from longgen.metrics.vbench import DIMENSIONS, FEATURES, musiq

ALWAYS = "motion"  # no other metric is shown without it: most look good where nothing moves
DECODING = [Path(str(module.__file__)) for module in (ffmpeg, video_info, video)]  # the code that decides what frames look like
DIGITS = 5  # of the numbers of a curve, so that 24 videos of a minute fit into a page


def parse_metrics(names: str | None) -> list[str]:
    """The comma-separated metrics of `names`, in the order of tables; None stands for all of longgen's own.

    `own` expands to these, `vbench` to all of VBench's that can be installed, `features` to those of EfficientNet. `motion` is
    always included. Raises UsageError for an unknown name.
    """
    if names is None:
        return [*METRICS]
    vbench = [
        row.key for name, row in DIMENSIONS.items() if name not in FEATURES and (name != "imaging_quality" or musiq.installed())
    ]
    known = {key: [key] for key in (*METRICS, *(row.key for row in DIMENSIONS.values()))}
    known |= {"own": [*METRICS], "vbench": vbench, "features": [*FEATURES]}
    selected = [ALWAYS]
    for name in map(str.strip, names.split(",")):
        if not name:
            raise UsageError(f"invalid --metrics {names!r}", expected=", ".join(known), hint="separate names by commas")
        if name not in known:
            raise unknown_name("metric", name, known, "leave --metrics out for all of longgen's own")
        selected += known[name]
    return in_order(selected)


def video_scores(path: Path, seams: list[int], prompt: str | None, cache_file: Path) -> dict[str, Any]:
    """`frames`, `metrics`, `curves`, `details`, `times` and `caveats` of a Cell for the video at `path`. Raises LonggenError."""

    def compute() -> dict[str, Any]:
        score = score_video(path, seams, prompt)
        return {
            "frames": score.frames,
            "metrics": score.values,
            "curves": rounded(score.curves),
            "times": None if score.times is None else [*score.times],
            "caveats": [*score.notes],
            "details": {name: number if number is None or np.isfinite(number) else None for name, number in score.details.items()},
        }

    return cached(cache_file, {"video": file_hash(path), "code": code_hash(), "seams": seams, "prompt": prompt}, compute)


def cached(cache_file: Path, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of `cache_file` if it was written for an equal `key`; otherwise computed and written."""
    try:
        record = disk.load_record(cache_file)
        if record["key"] == key:
            return record["scores"]
    except (LonggenError, KeyError):
        pass  # missing, damaged, or of another version
    scores = compute()
    disk.make_folder(cache_file.parent)
    disk.save_record(cache_file, {"key": key, "scores": scores})
    return scores


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hash_of([path])


@cache
def code_hash() -> str:
    """Hash of the code that computes the scores, and of the versions of its libraries."""
    files = [*sorted(Path(str(metrics.__file__)).parent.glob("*.py")), Path(str(tiny_grammar.__file__)), *DECODING]
    return hash_of(files, [cv2.__version__, np.__version__])


def hash_of(files: Iterable[Path], versions: Sequence[str] = ()) -> str:
    """SHA-256 of the contents of `files` and of `versions`, in hexadecimal digits."""
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def rounded(curves: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Curves as a Cell stores them."""
    return {name: [float(f"{number:.{DIGITS}g}") if np.isfinite(number) else None for number in curve.tolist()]
            for name, curve in curves.items()}  # fmt: skip
