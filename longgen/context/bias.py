"""Bias on past frames: in a rollout, cached frames other than the first are attended to less.

Source: "negative attention bias" of Krea Realtime 14B, a Self-Forcing model; no paper. Krea's own repository lacks it: code of
GitHub daydreamlive/scope, 68b0f95, krea_realtime_video/modules/causal_model.py and pipeline.py. As a soft change of prompt, in a
fork of scope, of which we have a description alone.

Legend: i query frame, j key frame.

    logit_bias(i, j) = log `factor` where j is neither of the newest chunk nor the first frame that it sees      [code]
so that the softmax counts such a frame `factor` times.
`factor` = 0.3, by default and in its workflows; the interface offers 0.01 to 1                                  [code]
Which frame is the first: the oldest slot of the cache, so with a sink the video's first frame, and in a window without one the
oldest that is left [code: Krea's cache has no sink, and its oldest slot moves with the window]; with rolling-sink whatever frame
that slot holds, and a mean of memrope is a frame like the others [derived].

Soft change of prompt: `after_switch` instead of `factor` in the first `chunks` chunks with another prompt, so that they hold less
to what was made with the last one. `after_switch` is `factor` unless given, `chunks` = 4 [derived: the numbers of the fork were not
found]. In a schedule with a blend each chunk whose mix of texts is another is such a change.

Differs from the code: there, cached frames are computed anew before every chunk, without the bias, with the current prompt and
seeing only one another; the oldest of them is the decoded picture, encoded again. Here the clean pass leaves them in the cache,
under the bias as the denoising passes are [derived]. There, keys are padded with zeros to a multiple of 128, and the softmax
counts these too (112 of them at 832x480); here it does not.

Caveat: attention with a bias needs a mask or several calls instead of one, which costs time on a GPU.

Neutral: `factor` = 1 without `after_switch`, and wherever a chunk sees no past frame but one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, Pass
from longgen.technique import LONGEST, FrameTechnique


class Bias(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "Krea Realtime 14B, in daydreamlive/scope"
    exclusive: ClassVar[tuple[str, ...]] = ("the bias on past frames",)
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)
    after_context: ClassVar[bool] = True  # which slot is the oldest is known then

    factor: float = Field(0.3, gt=0, le=1)
    after_switch: float | None = Field(None, gt=0, le=1)
    chunks: int = Field(4, ge=1, le=LONGEST)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        factor, since = self.factor, geometry.since_switch
        if self.after_switch is not None and since is not None and since < self.chunks:
            factor = self.after_switch
        if factor == 1:
            return plan
        queries, columns = plan.shape
        past = np.arange(columns) < columns - queries

        def lowered(p: Pass) -> Pass:
            first = p.visible.cumsum(axis=1) == 1  # and the hidden ones behind it, which do not matter
            return p.with_columns(logit_bias=np.where(p.visible & past & ~first, math.log(factor), 0.0))

        return plan.each(lowered)
