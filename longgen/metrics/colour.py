"""How fast colour, contrast, saturation and sharpness wander off."""

from __future__ import annotations

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

LEAST_S = 1.0  # a slope over less says more about motion
FINE_PX = SIDE / 96  # what is finer than about a hundredth of the shorter side is sharpness
PARTS = ("brightness", "green_red", "blue_yellow", "contrast", "saturation", "sharpness")


class Colour:
    """Six numbers of each frame, all in units of Lab, in which 2 is a difference that one sees side by side.

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
        """The least-squares slope per second of each of PARTS, or None where the video is shorter than LEAST_S.

        times_s [F]: of the frames, where they do not come evenly.
        """
        if len(self._rows) < max(LEAST_S * self._fps, 2):
            return None
        times_s = np.arange(len(self._rows)) / self._fps if times_s is None else times_s
        times_s = times_s - times_s.mean()
        return {name: float(times_s @ curve / (times_s @ times_s)) for name, curve in self.curves().items()}


def drift(slopes: dict[str, float]) -> float:
    """The root of the sum of squares of `slopes`: the six are in one unit, so none is weighed (derived)."""
    return float(np.sqrt(sum(slope**2 for slope in slopes.values())))
