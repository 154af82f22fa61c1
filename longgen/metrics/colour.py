"""Drift of colour, contrast, saturation and sharpness: slopes of per-frame statistics, and their change from start to end.

FramePack (2504.12626) compares the first 15% of a video with the last 15%. Of the six statistics that is the slope times the
length, for a steady drift 0.85 of it: on three clips of real footage, with cuts and without, 0.8 to 1.1 of it (measured). So one of
them is a metric, drift, per second, which compares videos of different lengths; the other is among the details. Sharpness is a few
Lab units at most, so its loss hardly shows among the other five: as a ratio of the ends it is a metric of its own, detail.
"""

from __future__ import annotations

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

LEAST_S = 1.0  # over less, a slope mostly reflects motion
FINE_PX = SIDE / 96  # sharpness is detail finer than about a hundredth of the shorter side
SHARE = 0.15  # of the frames, at either end [paper]
LEAST_DETAIL = 0.1  # Lab units, invisible: two plain pictures have the same detail
PARTS = ("brightness", "green_red", "blue_yellow", "contrast", "saturation", "sharpness")


class Colour:
    """Six statistics of each frame, all in Lab units, of which 2 are visible side by side.

    brightness, green_red, blue_yellow: means of L*, a*, b*. contrast: standard deviation of L*. saturation: mean length of
    (a*, b*). sharpness: mean distance of L* from a blurred copy.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._rows: list[tuple[float, ...]] = []

    def add(self, now: Picture) -> None:
        light = now.lab[..., 0]
        fine = np.abs(light - cv2.GaussianBlur(light, (0, 0), FINE_PX)).mean()
        chroma = cv2.magnitude(now.lab[..., 1], now.lab[..., 2]).mean()
        self._rows.append((*now.lab.mean(axis=(0, 1), dtype=float).tolist(), float(light.std()), float(chroma), float(fine)))

    def curves(self) -> dict[str, np.ndarray]:
        """[F] for each of PARTS."""
        return dict(zip(PARTS, np.array(self._rows).reshape(-1, len(PARTS)).T, strict=True))

    def slopes(self, times_s: np.ndarray | None = None) -> dict[str, float] | None:
        """The least-squares slope per second of each of PARTS, or None if the video is shorter than LEAST_S.

        times_s [F]: of the frames, for a variable frame rate.
        """
        if len(self._rows) < max(LEAST_S * self._fps, 2):
            return None
        times_s = np.arange(len(self._rows)) / self._fps if times_s is None else times_s
        times_s = times_s - times_s.mean()
        return {name: float(times_s @ curve / (times_s @ times_s)) for name, curve in self.curves().items()}

    def ends(self) -> tuple[dict[str, float], float] | None:
        """What the last SHARE of the frames has more than the first, for each of PARTS; and `detail`, its sharpness in per cent of
        that of the first. None if the video is shorter than LEAST_S.
        """
        if len(self._rows) < max(LEAST_S * self._fps, 2):
            return None
        count = max(round(SHARE * len(self._rows)), 1)
        first, last = ({name: float(curve[part].mean()) for name, curve in self.curves().items()}
                       for part in (slice(count), slice(-count, None)))  # fmt: skip
        detail = 100 * (last["sharpness"] + LEAST_DETAIL) / (first["sharpness"] + LEAST_DETAIL)
        return {name: last[name] - first[name] for name in PARTS}, detail


def drift(changes: dict[str, float]) -> float:
    """Euclidean norm of `changes`: all six have the same unit, so they are not weighted (derived)."""
    return float(np.sqrt(sum(change**2 for change in changes.values())))
