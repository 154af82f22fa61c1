"""How much neighbouring frames differ, and how many hardly do."""

from __future__ import annotations

import cv2
import numpy as np

from longgen.metrics.picture import SIDE, Picture

CELL_PX = SIDE // 16
# Units of Lab that every cell stays below between frozen frames, on average. Derived: H.264 at crf 18 leaves up to 1.3 in a
# still picture; a texture that moves by a tenth of a 64th of the shorter side changes by 1.9 and more (measured).
FROZEN = 1.5


class Change:
    """The curves `difference` and `freeze`, of the CIE76 distance of each pixel's colour from that in the frame before.

    difference: its mean over the frame, in units of Lab. freeze: 1.0 where its mean over the most changed cell, a square of a 16th
    of the shorter side, is below FROZEN, else 0.0. One cell decides, so a small object that moves on a still ground is not frozen.
    An object is where it turns back, for a frame or two, and so is every other frame of a video that shows each frame twice.
    """

    def __init__(self) -> None:
        self.difference: list[float] = []
        self.freeze: list[float] = []
        self._before: np.ndarray | None = None

    def add(self, now: Picture) -> None:
        if self._before is None:
            self.difference.append(np.nan)
            self.freeze.append(np.nan)
        else:
            step = now.lab - self._before
            distance = np.sqrt(np.einsum("hwc,hwc->hw", step, step))
            self.difference.append(float(distance.mean()))
            self.freeze.append(float(cv2.blur(distance, (CELL_PX, CELL_PX)).max() < FROZEN))
        self._before = now.lab
