"""Clips of a long video, each as long as the model was trained on, and how their predictions become one. Pure numpy.

Legend: T latent frames, L frames of a clip, K clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Clips:
    """K clips: `frames` [K, L] are the latent frames of each, `weight` [K, L] float64 their part in the mean.

    For every latent frame the weights of all clips sum to one. A frame of weight 0 is padding: it is seen, not kept.
    anchors: for each clip the clip of its path that comes first.
    """

    frames: np.ndarray
    weight: np.ndarray
    anchors: tuple[int, ...]

    def share(self, clip: int, shares: np.ndarray) -> np.ndarray:
        """The mean over the kept frames of `clip` of the `shares` [S, T] of shots, [S]."""
        kept = self.frames[clip][self.weight[clip] > 0]
        return shares[:, kept].mean(axis=1)


def mean_of(paths: list[tuple[float, np.ndarray, np.ndarray]], frames_lat: int) -> Clips:
    """Clips of several paths, each (share, frames [K, L], weight [K, L]); shares sum to one.

    In each path the weights of a latent frame are divided by their sum; every path must cover every frame.
    """
    weights: list[np.ndarray] = []
    anchors: list[int] = []
    for share, path, weight in paths:
        total = np.bincount(path.ravel(), weights=weight.ravel(), minlength=frames_lat)
        weights.append(share * weight / total[path])
        anchors += [len(anchors)] * len(path)
    return Clips(np.concatenate([path for _, path, _ in paths]), np.concatenate(weights), tuple(anchors))


def overlapping(frames_lat: int, length: int, starts: np.ndarray) -> np.ndarray:
    """The frames [K, L] of clips at `starts`, moved inside the video; clips that are then the same are one."""
    first = np.unique(np.clip(starts, 0, frames_lat - length))
    return first[:, None] + np.arange(length)


def pyramid(length: int) -> np.ndarray:
    """1, 2, .. up to the middle and back: the weight of a clip's frames, [L]."""
    index = np.arange(length)
    return np.minimum(index + 1, length - index).astype(np.float64)
