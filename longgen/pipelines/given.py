"""What a clip begins and ends with, ready for a pipeline: clean latents, and the pictures that they are of.

Legend: C channels, m latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Given:
    """latents: [1, C, m, h, w], clean and normalised as the transformer sees them, of the first frames; None where the pipeline
    encodes the pictures itself. image, last_image: pictures of the clip's size, for pipelines that encode them, or encode them in
    another way too; None where the latents come from a video.

    Of models whose input has channels for a condition, as Wan I2V's. marked: how many of the latents its mask calls known, all if
    None. blank: whether the frames after them are zeros in it, as SVI's LoRAs were trained, and not the encoding of grey frames.
    """

    latents: Tensor | None
    image: Image | None = None
    last_image: Image | None = None
    marked: int | None = None
    blank: bool = False
