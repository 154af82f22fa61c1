"""The scores of a video, computed once: they are kept until the video or the code of the metrics is another."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from longgen import checkpoint, metrics
from longgen.backbones import tiny
from longgen.errors import UsageError, unknown_name
from longgen.metrics import METRICS
from longgen.metrics.score import score_video

ALWAYS = "motion"  # no other metric is shown without it: most look good where nothing moves
DIGITS = 5  # of the numbers of a curve, so that 24 videos of a minute fit into a page


def chosen(names: str | None) -> list[str]:
    """The metrics of `names`, with commas between, in the order of tables; all of longgen's own where it is None.

    `motion` is always among them. Raises UsageError for a name that is none.
    """
    if names is None:
        return [*METRICS]
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if not name:
            raise UsageError(f"--metrics {names!r} are no metrics", accepted=", ".join(METRICS), do="put commas between names")
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS, "leave --metrics out for all")
    return [name for name in METRICS if name in asked or name == ALWAYS]


def scored(video: Path, seams: list[int], prompt: str | None, kept: Path) -> dict[str, Any]:
    """`frames`, `metrics`, `curves` and `details` of a Cell for `video`, from the file `kept` or for it. Raises LonggenError."""
    key = {"video": file_hash(video), "code": code_hash(), "seams": seams, "prompt": prompt}
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["key"] == key:
            return before["scores"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there are none, or not such as this longgen writes
    score = score_video(video, seams, prompt)
    found = {
        "frames": score.frames,
        "metrics": score.values,
        "curves": {name: [_rounded(number) for number in curve.tolist()] for name, curve in score.curves.items()},
        "details": score.details,
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_json(kept, {"key": key, "scores": found})
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
    folders = [Path(str(package.__file__)).parent for package in (metrics, tiny)]
    files = [*sorted(folders[0].glob("*.py")), folders[1] / "measure.py", folders[1] / "grammar.py"]
    digest = hashlib.sha256(f"{cv2.__version__} {np.__version__}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _rounded(number: float) -> float | None:
    return float(f"{number:.{DIGITS}g}") if np.isfinite(number) else None
