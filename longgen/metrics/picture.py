"""A frame at the common resolution of all metrics, which makes small and large videos comparable."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 192  # pixels of the shorter side. Derived: of 64, 128, 192, 256 the least at which motion of a quarter of a 64th registers


@dataclass(frozen=True)
class Picture:
    """One frame with a shorter side of SIDE pixels."""

    luma: np.ndarray  # [h, w] uint8
    lab: np.ndarray  # [h, w, 3] float32: CIE L* in [0, 100], a*, b*


def picture(frame: np.ndarray) -> Picture:
    """`frame` [H, W, 3] uint8 sRGB, scaled."""
    height, width = frame.shape[:2]
    scale = SIDE / min(height, width)
    size = (max(round(width * scale), SIDE), max(round(height * scale), SIDE))
    rgb = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return Picture(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), lab)
