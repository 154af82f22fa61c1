"""Frame difference, frozen frames, and how visible a technique's boundaries are relative to the usual difference."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

CELL_PX = SIDE // 16
# Lab units; between frozen frames every cell differs by less, on average. Derived: H.264 at crf 18 leaves up to 2.5 between frames
# of still footage, whose pictures it refines for a while, however far apart they are; footage that moves by 0.05% of the shorter
# side a frame changes by 1.2 to 4.6 from frame to frame, and by 3.7 and more over STRETCH of them (measured).
FROZEN = 3.2
STRETCH = 4  # steps over which slow motion adds up while the errors of a codec do not
BESIDE_S = 1.0  # of the reference frames on either side: motion may change over a video
LEAST = 0.1  # Lab units, below what any display shows: avoids division by zero in a still picture


class Change:
    """The curves `difference` and `freeze`, of the CIE76 colour distance of each pixel to the previous frame.

    difference: its mean over the frame, in Lab units. freeze: 1.0 for a step from the previous frame in which nothing moves, else
    0.0: the mean distance over the most changed cell, a square of a 16th of the shorter side, is below FROZEN in this step, and
    between the ends of some STRETCH of such steps that it lies in, or of all that follow one another if they are fewer. One cell
    decides, so a small object moving on a still background is not frozen. Frames where an object reverses its direction count as
    frozen, and so does every other frame of a video with duplicated frames.
    """

    def __init__(self) -> None:
        self.difference: list[float] = []
        self.freeze: list[float] = []
        self._frames: deque[np.ndarray] = deque(maxlen=STRETCH + 1)  # Lab
        self._run = 0  # steps up to now, one after the other, that are below FROZEN

    def add(self, now: Picture) -> None:
        self._frames.append(now.lab)
        if len(self._frames) == 1:
            self.difference.append(np.nan)
            self.freeze.append(np.nan)
            return
        step = _distance(self._frames[-2], now.lab)
        self.difference.append(float(step.mean()))
        self.freeze.append(0.0)
        self._run = self._run + 1 if _most(step) < FROZEN else 0
        steps = min(self._run, STRETCH)
        if steps:
            alike = _most(_distance(self._frames[-1 - steps], now.lab)) < FROZEN
            if alike or self._run <= STRETCH:
                self.freeze[-steps:] = [float(alike)] * steps


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIE76 colour distance of each pixel [h, w]."""
    step = other - one
    return np.sqrt(np.einsum("hwc,hwc->hw", step, step))


def _most(distance: np.ndarray) -> float:
    """The mean of `distance` over the most changed cell."""
    return float(cv2.blur(distance, (CELL_PX, CELL_PX)).max())


def seam_ratios(difference: np.ndarray, seams: Collection[int], fps: float) -> dict[int, float]:
    """For each seam within the video, the change across it divided by the median change beside it.

    `difference` [F] is the change from the previous frame, `seams` the first frame after each boundary. Beside a seam are the
    frames within BESIDE_S that are not seams; a seam without any gets no ratio.
    """
    reach = max(round(BESIDE_S * fps), 1)
    by_seam = {}
    for seam in sorted({seam for seam in seams if seam < len(difference)}):
        beside = [frame for frame in range(max(seam - reach, 1), min(seam + reach + 1, len(difference))) if frame not in seams]
        if beside:
            by_seam[seam] = float((difference[seam] + LEAST) / (np.median(difference[beside]) + LEAST))
    return by_seam
