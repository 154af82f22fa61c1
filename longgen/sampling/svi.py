"""SVI 2.0 Pro: a chain for the LoRAs of Stable Video Infinity, whose clips see the first picture and the end of the clip before.

Paper: Stable Video Infinity, arXiv 2510.09212; code: vita-epfl/Stable-Video-Infinity, branch svi_wan22, read in the copy
millord237/Stable-Video-Infinity ab525e0 (diffsynth/pipelines/wan_video_svi_pro.py, inference_svi_2.0_pro.py, docs/svi), and
kijai/ComfyUI-KJNodes 3f20054 (nodes/nodes.py, WanImageToVideoSVIPro), which agrees.

Clips, seeds and their joining: `chain`. What these LoRAs were trained on, in the model's condition beside the noise:

    condition   [latent of the picture] [the last m latent frames of the clip before] [zeros], as latents           [code]
    mask        marks the first latent frame alone; the m that follow are seen, and sampled too                     [code]

Constants: m = 1, L = 21, the picture in view, 50 steps, shift 5, both LoRAs at strength 1 [code]; guidance 5 in its script, and
4 in its README. Trained at 832x480 [docs]. The experts' boundary is .875 in its pipeline; here the model's own [derived]. ComfyUI's
workflow for 2.0, with LightX2V LoRAs of .5 and 1 besides: 6 steps, shift 8, guidance 1.5.

Without the LoRAs zeros are not what the model knows: its own pipeline pads with an encoded grey video.

Differs from the reference: see `chain`.

Neutral: never; a video of at most L frames is one such clip.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longgen.sampling.chain import Chain
from longgen.technique import LONGEST, Model


class Svi(Chain):
    """See `chain`."""

    requires: ClassVar[tuple[str, ...]] = (*Chain.requires, "latent-condition")
    zero_padded: ClassVar[bool] = True

    overlap: int | None = Field(1, ge=1, le=LONGEST)
    reference: bool = True

    def most_given(self, model: Model) -> int:
        """Any number: the condition holds them, and they are sampled too."""
        return model.native_lat
