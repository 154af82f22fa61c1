"""Frame difference, frozen frames, and how visible a technique's boundaries are relative to the usual difference."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

CELL_PX = SIDE // 16
# Lab units; between frozen frames the mean of every cell is below. Derived: H.264 at crf 18 leaves up to 1.3 in a still picture;
# a texture that moves by a tenth of a 64th of the shorter side changes by 1.9 and more (measured).
FROZEN = 1.5
BESIDE_S = 1.0  # of the reference frames on either side: motion may change over a video
LEAST = 0.1  # Lab units, below what any display shows: avoids division by zero in a still picture


class Change:
    """The curves `difference` and `freeze`, of the CIE76 colour distance of each pixel to the previous frame.

    difference: its mean over the frame, in Lab units. freeze: 1.0 if its mean over the most changed cell, a square of a 16th of the
    shorter side, is below FROZEN, else 0.0. One cell decides, so a small object moving on a still background is not frozen. Frames
    where an object reverses its direction count as frozen, and so does every other frame of a video with duplicated frames.
    """

    def __init__(self) -> None:
        self.difference: list[float] = []
        self.freeze: list[float] = []
        self._previous: np.ndarray | None = None

    def add(self, now: Picture) -> None:
        if self._previous is None:
            self.difference.append(np.nan)
            self.freeze.append(np.nan)
        else:
            step = now.lab - self._previous
            distance = np.sqrt(np.einsum("hwc,hwc->hw", step, step))
            self.difference.append(float(distance.mean()))
            self.freeze.append(float(cv2.blur(distance, (CELL_PX, CELL_PX)).max() < FROZEN))
        self._previous = now.lab


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
