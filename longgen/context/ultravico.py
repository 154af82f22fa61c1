"""UltraViCo: positive attention logits of frames further apart than half the trained window are multiplied by a constant below 1.

Paper: UltraViCo, arXiv 2511.20123 (ICLR 2026); code: GitHub thu-ml/DiT-Extrapolation, branches ultra-wan at 6a47654 and
ultra-hunyuan at 386bee7 (sageattn/attn_qk_int8_per_block.py, src/para_attn/sage_attn/attn_qk_int8_per_block.py).

Legend: T latent frames, T0 of them in training, i query frame, j key frame, D = i - j, s a logit, n tokens per latent frame.

    s <- alpha s   where |D| > T0 / 2 and s > 0                  alpha = 0.9, in all layers and steps                [code]
    s <- beta s    where |D| is within 4 of a multiple of `period` and s > 0, instead of alpha; beta = 0.6           [code]
`period`: the latent frames after which a longer clip repeats itself: 50 on HunyuanVideo [code: 46 .. 54, 96 .. 104, 146 .. 154,
196 .. 204; further multiples derived], none on other backbones, where there is no beta. The README asks for alpha < beta, and its
own default contradicts it.

`origin = "zero"`: s > 0 asks for the sign of the logit itself, as the kernel and the equation read. `origin = "mean"`: for that of
its difference from the mean of its query's logits, which is what the code's numbers come from: its kernel is SageAttention's with
smoothed keys, from which the mean of all keys has been taken [code]. To an ordinary softmax that is nothing; here it decides which
logits are damped.
`sign = "any"`: all logits of those pairs are multiplied, whatever their sign; a variant of our own, for which every attention
kernel serves, at no cost [derived].
`first_frame`: queries of the first latent frame do not see key frames from T0 on, which the code has for Wan and the paper does not
state; off here.

Text inside self-attention keeps its logits [code].

Differs from the reference: distances are in frames and not in raster tokens, so that of two frames 10 apart 12.5% of the token
pairs are damped in the code and none here, and of two frames 11 apart 87.5% and all (T0 = 21); the mean is over the frames that a
query sees and the text. No int8.

Caveat: no attention kernel knows signs: on a CPU logits are written down, a block at a time, and so they are on a GPU where
FlexAttention cannot be compiled. A chosen --attention backend has no say in these layers, which a note says.

Neutral: alpha = 1 and beta = 1; and clips of native length or below, where the code would act beyond T0 / 2 [derived].
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, distances
from longgen.technique import LONGEST, FrameTechnique

NEAR = 4  # latent frames from a multiple of the period


class UltraViCo(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "UltraViCo, arXiv 2511.20123"
    exclusive: ClassVar[tuple[str, ...]] = ("the damping of far logits",)
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    alpha: float = Field(0.9, ge=0, le=1)
    beta: float = Field(0.6, ge=0, le=1)
    period: int | None = Field(None, ge=2 * NEAR + 1, le=LONGEST)
    sign: Literal["positive", "any"] = "positive"
    origin: Literal["zero", "mean"] = "zero"
    first_frame: bool = False

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        if geometry.ratio == 1:
            return plan
        table = self.table(geometry)
        if (table != 1).any():
            name = "positive_logit_scale" if self.sign == "positive" else "logit_scale"
            plan = plan.each(lambda pass_: pass_.with_columns(**{name: table}))
            plan = replace(plan, centred=self.sign == "positive" and self.origin == "mean")
        if not self.first_frame:
            return plan
        frame = np.arange(geometry.frames_lat)
        return plan.see_only((frame[:, None] > 0) | (frame < geometry.native_lat))

    def table(self, geometry: Geometry) -> np.ndarray:
        """The factor of every pair of frames, [T, T]."""
        apart = np.abs(distances(geometry.frames_lat))
        table, period = np.where(apart > geometry.native_lat / 2, self.alpha, 1.0), self.period or geometry.repetition_lat
        if period is None:
            return table
        harmonic = np.round(apart / period)
        return np.where((harmonic > 0) & (np.abs(apart - harmonic * period) <= NEAR), self.beta, table)
