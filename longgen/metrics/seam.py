"""Whether the boundaries of a technique show."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

BESIDE_S = 1.0  # how far to either side "just beside" reaches: motion may change over a video
LEAST = 0.1  # units of Lab, below what any display shows: keeps a still picture from dividing by nothing


def ratios(difference: np.ndarray, seams: Collection[int], fps: float) -> dict[int, float]:
    """For each seam that lies in the video, the change across it over the median change beside it.

    `difference` [F] is the change from the frame before, `seams` the first frame after each edge. Beside it are the frames within
    BESIDE_S that are no seams themselves; a seam that has none gets no ratio.
    """
    reach = max(round(BESIDE_S * fps), 1)
    found = {}
    for seam in sorted({seam for seam in seams if seam < len(difference)}):
        beside = [frame for frame in range(max(seam - reach, 1), min(seam + reach + 1, len(difference))) if frame not in seams]
        if beside:
            found[seam] = float((difference[seam] + LEAST) / (np.median(difference[beside]) + LEAST))
    return found
