"""Frame difference and frozen frames."""

from __future__ import annotations

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

CELL_PX = SIDE // 16
# Lab units; between frozen frames the mean of every cell is below. Derived: H.264 at crf 18 leaves up to 1.3 in a still picture;
# a texture that moves by a tenth of a 64th of the shorter side changes by 1.9 and more (measured).
FROZEN = 1.5


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
