"""Clips that start from a picture: the pictures, and how a clip of a built-in model begins with its own.

first_frame  1.0 where the first frame is the picture: its PSNR is at most LOSS_DB below that of the VAE alone
picture_db   PSNR of the first frame against the picture
start        how much more the picture changes to the second frame than from frame to frame after it, by the metric `seam`;
             of clips without that frame nan
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from PIL import Image

from longgen import pictures
from longgen.backbones import tiny_grammar
from longgen.backbones.tiny import clips
from longgen.backbones.wan import TINY
from longgen.conditions import Conditions
from longgen.metrics.change import Change, seam_ratios
from longgen.metrics.picture import picture

LOSS_DB = 1.0


def rendered(words: tiny_grammar.Words, frames_px: int, seed: int) -> torch.Tensor:
    """A rendered clip [3, F, S, S] in [-1, 1]."""
    scene = clips.draw_scene(words, torch.Generator().manual_seed(seed))
    video, _ = clips.render(scene, torch.arange(frames_px, dtype=torch.float32))
    return video.transpose(0, 1)


def to_bytes(video: torch.Tensor) -> np.ndarray:
    return (rearrange(video, "c f h w -> f h w c") * 127.5 + 127.5).round().clamp(0, 255).byte().numpy()


def conditions_of(words: tiny_grammar.Words, seed: int, folder: Path) -> Conditions:
    """The first frame of a rendered clip, written to `folder` as a PNG file and read as a user's."""
    path = folder / f"{words.prompt.replace(' ', '-')}-{seed}.png"
    Image.fromarray(to_bytes(rendered(words, 1, seed))[0]).save(path)
    return Conditions(image=pictures.read(path))


def psnr_db(frames: np.ndarray, truth: np.ndarray) -> float:
    """PSNR of `frames` against `truth`, both uint8 and of one shape."""
    return 10 * math.log10(255**2 / max(np.square(frames.astype(np.float64) - truth).mean(), 1e-9))


def vae_psnr_db(vae: AutoencoderKLWan, video: torch.Tensor) -> float:
    """PSNR of one clip [3, F, S, S] after the VAE's encoding and decoding, on 8-bit pixels."""
    with torch.no_grad():
        again = vae.decode(vae.encode(video[None].to(vae.device)).latent_dist.mode()).sample[0].cpu()
    return psnr_db(to_bytes(again.clamp(-1, 1)), to_bytes(video))


def score(frames: np.ndarray, given: Conditions, vae: AutoencoderKLWan) -> dict[str, float]:
    """How the clip `frames`, uint8 [F, S, S, 3], begins with the picture of `given`: the values of this module's docstring."""
    assert given.image is not None
    shown = np.array(pictures.fitted(given.image, TINY.size, given.fit))
    alone_db = vae_psnr_db(vae, torch.tensor(shown).permute(2, 0, 1)[:, None] / 127.5 - 1)
    picture_db = psnr_db(frames[0], shown)
    return {"first_frame": float(picture_db >= alone_db - LOSS_DB), "picture_db": picture_db, "start": seam(frames, [1])}


def seam(frames: np.ndarray, seams: Collection[int]) -> float:
    """The metric `seam` of `frames`, uint8 [F, S, S, 3], at `seams`; nan where there are none."""
    change = Change()
    for frame in frames:
        change.add(picture(frame))
    ratios = seam_ratios(np.array(change.difference), seams, TINY.fps)
    return float(np.mean([*ratios.values()])) if ratios else float("nan")
