"""Visibility of a technique's boundaries, relative to the usual change between frames."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

BESIDE_S = 1.0  # of the reference frames on either side: motion may change over a video
LEAST = 0.1  # Lab units, below what any display shows: avoids division by zero in a still picture


def ratios(difference: np.ndarray, seams: Collection[int], fps: float) -> dict[int, float]:
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
