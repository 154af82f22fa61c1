"""Counts of pixel and latent frames, and sliding windows over frames. Pure integers, independent of any model.

A causal video VAE with temporal stride s turns `s * (n - 1) + 1` pixel frames into n latent frames.
"""

from __future__ import annotations

import functools


def latent_frames(frames_px: int, stride: int) -> int:
    """Latent frames that hold at least `frames_px` pixel frames."""
    return -(-(frames_px - 1) // stride) + 1


def pixel_frames(frames_lat: int, stride: int) -> int:
    """Pixel frames that `frames_lat` latent frames decode to."""
    return stride * (frames_lat - 1) + 1


def round_up(frames_px: int, stride: int) -> int:
    """The smallest count of the form `stride * n + 1` that is not below `frames_px`."""
    return pixel_frames(latent_frames(frames_px, stride), stride)


@functools.lru_cache(maxsize=256)
def local_windows(frames_lat: int, window: int, edge: str) -> tuple[tuple[int, int], ...]:
    """Sliding window: for each frame the half-open range of the `window` frames around it.

    `edge = "shift"`: at the ends of the video the window is shifted inwards, so that it keeps its length (and a clip of at most
    `window` frames sees all of itself). `edge = "clip"`: it is cut off there. An even window has one frame more before the frame
    than after it.
    """
    before = window // 2
    after = window - 1 - before
    ranges = []
    for frame in range(frames_lat):
        start, stop = frame - before, frame + after + 1
        if edge == "shift":
            start = max(0, min(start, frames_lat - window))
            stop = min(frames_lat, start + window)
        ranges.append((max(0, start), min(frames_lat, stop)))
    return tuple(ranges)
