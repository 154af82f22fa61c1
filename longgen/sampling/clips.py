"""Overlapping clips of a long video, each of native length, and the weights by which their predictions are averaged. Pure numpy.

Legend: T latent frames, L frames of a clip, K clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Clips:
    """K clips: `frames` [K, L] are the latent frames of each, `weight` [K, L] float64 their weights in the average.

    For every latent frame the weights over all clips sum to one. A frame of weight 0 is padding: the model sees it, and its
    prediction is dropped. anchors: for each clip the first clip of its path.
    """

    frames: np.ndarray
    weight: np.ndarray
    anchors: tuple[int, ...]

    def share(self, clip: int, shares: np.ndarray) -> np.ndarray:
        """The mean of the shots' `shares` [S, T] over the frames of `clip`, padding left out: [S]."""
        frames = self.frames[clip][self.weight[clip] > 0]
        return shares[:, frames].mean(axis=1)


def merged(paths: list[tuple[float, np.ndarray, np.ndarray]], frames_lat: int) -> Clips:
    """The clips of several paths, each (share, frames [K, L], weight [K, L]); shares sum to one.

    Within a path the weights of each latent frame are normalised to one; every path must cover every frame.
    """
    weights: list[np.ndarray] = []
    anchors: list[int] = []
    for share, path, weight in paths:
        total = np.bincount(path.ravel(), weights=weight.ravel(), minlength=frames_lat)
        weights.append(share * weight / total[path])
        anchors += [len(anchors)] * len(path)
    return Clips(np.concatenate([path for _, path, _ in paths]), np.concatenate(weights), tuple(anchors))


def overlapping(frames_lat: int, length: int, starts: np.ndarray) -> np.ndarray:
    """The frames [K, L] of clips at `starts`, clamped to the video; duplicates are dropped."""
    first = np.unique(np.clip(starts, 0, frames_lat - length))
    return first[:, None] + np.arange(length)


def triangular(length: int) -> np.ndarray:
    """The triangular window 1, 2, .. up to the middle and back, [L]."""
    index = np.arange(length)
    return np.minimum(index + 1, length - index).astype(np.float64)
