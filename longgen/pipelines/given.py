"""What a clip begins and ends with, ready for a pipeline: clean latents, and the pictures that they are of.

Legend: C channels, m latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Given:
    """latents: [1, C, m, h, w], clean and normalised as the transformer sees them, of the first frames; None where the pipeline
    encodes the pictures itself. image, last_image: pictures of the clip's size, for pipelines that encode them, or encode them in
    another way too; None where the latents come from a video.
    zero_padded: for a model with a condition beside the noise, see `longgen.sampling.svi`: behind `latents` it holds zeros in
    place of an encoded grey video, its mask marks the first latent frame alone, and all frames are sampled.

    Of a run that a new one goes on from: before [1, C, *, h, w], its latents before `latents`, which only the decoder sees;
    generator, the state of its generator, and carried, the last frames of its noise by step, where the new one draws on.
    """

    latents: Tensor | None
    image: Image | None = None
    last_image: Image | None = None
    zero_padded: bool = False
    before: Tensor | None = None
    generator: Tensor | None = None
    carried: tuple[Tensor | None, ...] = ()


def put_back(given: Given | None, x: Tensor) -> Tensor:
    """x [1, C, T, h, w] with the clean latents of `given` as its first frames; x itself where there are none."""
    if given is None or given.latents is None:
        return x
    return torch.cat([given.latents.to(x), x[:, :, given.latents.shape[2] :]], dim=2)
