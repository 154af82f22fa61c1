"""Which parts of its clips a batch of the training on pictures keeps, and with how many clean latents each begins.

Legend: B clips of the batch, T latent frames of a clip, K of them kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

PICTURED = 0.5  # of whole clips begin with clean latents; the others are as in the training on text alone
MOST_CLEAN_LAT = 6
MOST_CUT_LAT = 10  # of the 21, so that what is left has room for what is given and for more


def begun(frames_lat: int, batch: int, whole: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The latent frames that are kept, indices [K] of T, and how many clean ones of these each clip begins with, [B].

    A share of `whole` batches: whole clips, half of them from noise alone, the others from the latent of a picture or from up to
    MOST_CLEAN_LAT of a video. Half of the others: the clips from a later latent on, as where a video goes on from one of that kind.
    The rest: that with the first latent before it, as in a chain that keeps its picture in view.
    """
    several = torch.randint(1, MOST_CLEAN_LAT + 1, (batch,), generator=generator)
    which, cut = float(torch.rand((), generator=generator)), int(torch.randint(1, MOST_CUT_LAT + 1, (), generator=generator))
    if which < whole:
        known = torch.where(torch.rand(batch, generator=generator) < 0.5, 1, several)
        return torch.arange(frames_lat), torch.where(torch.rand(batch, generator=generator) < PICTURED, known, 0)
    later = torch.arange(cut, frames_lat)
    if which < (1 + whole) / 2:
        return later, several
    return torch.cat([torch.zeros(1, dtype=torch.long), later]), 1 + several
