"""Gen-L-Video: MultiDiffusion in time. Overlapping clips are denoised together; each frame averages the clips it is in.

Paper: Gen-L-Video, arXiv 2305.18264; code: GitHub G-U-N/Gen-L-Video.

Legend: T latent frames, T0 of them in training, L frames of a clip, S stride.

    clips [k S, k S + L), k = 0, 1, ..;  v_t = sum_k W_k v_k(t) / sum_k W_k over the clips that hold frame t   [paper; code: W = 1]

Constants: L = T0 [code: 16] · S = L / 2 [code: the functions' default; its configs have L / 4] · weights uniform [code]; the
pyramid 1, 2, .. 2, 1 hides the seams of short overlaps [derived].

Differs from the reference: the model's predictions are averaged and the scheduler steps once (the code steps it for every
clip, which breaks every solver that keeps a state; for Euler and DDIM both are the same) · where (T - L) is no multiple of
S, one more clip [T - L, T) ends the video (the code leaves those frames 0).

Caveat: frames more than L apart influence each other through overlaps only, so content drifts over long videos.

Neutral: videos of at most L frames.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.sampling.clips import Clips, merged, overlapping, triangular
from longgen.sampling.multidiffusion import MultiDiffusion
from longgen.technique import LONGEST, check_stride


class GenLVideo(MultiDiffusion):
    paper: ClassVar[str] = "Gen-L-Video, arXiv 2305.18264"

    stride: int | None = Field(None, ge=1, le=LONGEST)
    weights: Literal["uniform", "pyramid"] = "uniform"

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        length = self.frames or native_lat
        check_stride("gen-l-video", self.stride or 1, length)
        return super().frames_per_call(frames_lat, native_lat)

    def clips(self, frames_lat: int, length: int, timestep: float, shift: int) -> Clips:
        stride = self.stride or max(1, length // 2)
        frames = overlapping(frames_lat, length, np.arange(0, frames_lat - length + stride, stride))
        weight = np.ones(length) if self.weights == "uniform" else triangular(length)
        return merged([(1.0, frames, np.broadcast_to(weight, frames.shape))], frames_lat)
