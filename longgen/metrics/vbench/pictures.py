"""Preprocessing of the networks: torchvision's transforms of float frames with antialias=False, in pure torch.

Legend: F frames, H, W pixels. Frames are [F, 3, H, W] float32 from 0 to 255. Source: vbench/utils.py `dino_transform` and
`clip_transform`, vbench/imaging_quality.py `transform`; torchvision/transforms/functional.py for sizes and rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SIDE = 224  # of the short side or the square, for DINO and CLIP
LONGEST = 512  # of the long side, for MUSIQ
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def for_dino(frames: torch.Tensor) -> torch.Tensor:
    """Short side 224, bilinear; aspect ratio preserved."""
    return _normalised(_resized(frames, _short_side(frames), "bilinear"), IMAGENET)


def for_clip(frames: torch.Tensor) -> torch.Tensor:
    """Short side 224, bicubic without clamping; then a centre crop."""
    frames = _resized(frames, _short_side(frames), "bicubic")
    top, left = (round((length - SIDE) / 2) for length in frames.shape[2:])
    return _normalised(frames[..., top : top + SIDE, left : left + SIDE], CLIP)


def for_musiq(frames: torch.Tensor) -> torch.Tensor:
    """Long side at most 512, bilinear; from 0 to 1."""
    height, width = frames.shape[2:]
    scale = LONGEST / max(height, width)
    return (_resized(frames, (int(scale * height), int(scale * width)), "bilinear") if scale < 1 else frames) / 255


def _short_side(frames: torch.Tensor) -> tuple[int, int]:
    height, width = frames.shape[2:]
    return (SIDE, int(SIDE * width / height)) if height <= width else (int(SIDE * height / width), SIDE)


def _resized(frames: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    if size == tuple(frames.shape[2:]):
        return frames
    return F.interpolate(frames, size=size, mode=mode, align_corners=False, antialias=False)


def _normalised(frames: torch.Tensor, scale: tuple[tuple[float, ...], tuple[float, ...]]) -> torch.Tensor:
    mean, deviation = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in scale)
    return (frames / 255 - mean) / deviation
