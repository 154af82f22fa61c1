"""Clips, uint8 [F, H, W, 3], whose motion is known: a texture that is panned, a square that crosses a plain ground."""

from __future__ import annotations

import cv2
import numpy as np

TEXTURE_PX = 1024
_NOISE = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(TEXTURE_PX, TEXTURE_PX, 3)), (0, 0), 12)
TEXTURE = (np.clip(128 + 40 * _NOISE / _NOISE.std(), 0, 255)).astype(np.float32)  # 256 of its pixels fill the shorter side


def pan(shift: np.ndarray, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """The texture through a window of `size` (width, height) that stands `shift` [F] shorter sides further right."""
    scale = 256 / min(size)
    frames = []
    for part in shift:
        place = np.array([[scale, 0, 256 * part + scale / 2], [0, scale, scale / 2]])
        frames.append(
            cv2.warpAffine(TEXTURE, place, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP)
        )
    return np.stack(frames).round().astype(np.uint8)


def square(left: np.ndarray, side: int = 64) -> np.ndarray:
    """A pale square, a quarter of the picture's side, whose left edge is at `left` [F], in sides."""
    frames = np.full((len(left), 1024, 1024), 60, np.uint8)
    for frame, part in zip(frames, left, strict=True):
        start = round(1024 * part)
        frame[384:640, start : start + 256] = 200
    small = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames])
    return np.repeat(small[..., None], 3, axis=-1)


def grey(levels: np.ndarray, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Plain frames of `levels` [F]."""
    return np.broadcast_to(np.asarray(levels, np.uint8)[:, None, None, None], (len(levels), *size[::-1], 3)).copy()
