"""Tiered sparse attention (TSA): near frames and a sink in full, a spatial band of mid-range frames, nothing beyond.

Paper: TSA of FreeLOC, arXiv 2603.25209 (CVPR 2026); code: GitHub Westlake-AGI-Lab/FreeLOC.

Legend: T latent frames, T0 of them in training, i query frame, j key frame, D = i - j, n tokens per latent frame, q and k
tokens counted in raster order within their frames.

    j = 0, |D| <= D2 the whole frame, for every query frame: the sink is never a band                         [code]
    |D| <= D1        the whole frame                          D1 = `dense` = 8                                [code]
    D1 < |D| <= D2   the tokens k with |q - k| < share * n    D2 = `stripe` = 24                              [code]
                     `stripe_share` = 1/8: 195 of Wan's 1560 tokens, 3.75 rows; a band in space, not in time  [code]
    D > D2           frame 0 alone, at the time floor(i / G) + W, `sink`                                      [code]
    D < -D2          frames T-3 .. T-1, at the time floor(i / G) - (floor(j / G) + W), `tail`, off here: the code has such an
                     anchor at T = 81, which the paper does not state                                          [code]
G = 8 and W = 10 for T0 = 21, T = 41 and 81 [code]. Elsewhere [derived] W = T0 // 2 and G = max(8, floor((T - 1) / (T0 - W)) + 1),
the smallest with which no anchor is further than T0 - 1. `sink = false`: frame 0 is treated as any other.

`reencode = "sink"`: only the anchors get these times; all other pairs keep theirs. `reencode = "vrpr"`: the anchors, too,
keep the times of vrpr (or another technique of the slot positions). That removes two defects of the published rule:
distances 21 .. 24 are out of the trained range, and the sink's time jumps back from 24 to 13 at the edge.
In the code a listed layer gets TSA and every other layer VRPR; in the paper the listed layers get both.

Differs from the reference: tiers end at frames (the code's edges are in raster tokens, rounded up to a multiple of 128, so
that its sink includes 104 tokens of frame 1).

Caveat: it acts at native length too, where it keeps 75% of all token pairs (T = 41: 50%, T = 81: 28%).

Neutral: clips of at most D1 + 1 frames; with `stripe_share = 1`, of at most D2 + 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, Pass, distances
from longgen.technique import LONGEST, FrameTechnique

GRAIN = 8  # query frames that share a time of the sink; more where the clip is too long for it
TAIL = 3  # frames


class Tsa(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "TSA of FreeLOC, arXiv 2603.25209"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window", "the attention sink")
    requires: ClassVar[tuple[str, ...]] = ("relative-positions", "whole-clip")

    dense: int = Field(8, ge=0, le=LONGEST)
    stripe: int = Field(24, ge=0, le=LONGEST)
    stripe_share: float = Field(0.125, gt=0, le=1)
    sink: bool = True
    tail: bool = False
    reencode: Literal["sink", "vrpr"] = "sink"

    @model_validator(mode="after")
    def _tiers_in_order(self) -> Tsa:
        if self.stripe < self.dense:
            raise UsageError(f"tsa.stripe = {self.stripe} is below tsa.dense = {self.dense}: bands begin where whole frames end",
                             expected=f"{self.dense} or more; {self.dense} for no bands",
                             hint=f"--set tsa.stripe={self.dense}, or a smaller tsa.dense")  # fmt: skip
        return self

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        frames_lat, native = geometry.frames_lat, geometry.native_lat
        distance = distances(frames_lat)
        if self.reencode == "vrpr" and geometry.ratio > 1 and all(np.array_equal(p.rel, distance) for p in plan.passes):
            raise UsageError("tsa.reencode = vrpr, but nothing changes the relative times in the layers and steps of tsa",
                             expected="vrpr stacked in the same layers and steps, or tsa.reencode = sink",
                             hint="--set tsa.reencode=sink, or give vrpr the layers and steps of tsa")  # fmt: skip
        frame = np.arange(frames_lat)
        banded = (np.abs(distance) > self.dense) & (np.abs(distance) <= self.stripe) & ((frame > 0) | (not self.sink))
        sink = (distance > self.stripe) & (frame == 0) & self.sink
        tail = (distance < -self.stripe) & (frame >= frames_lat - TAIL) & self.tail
        visible = (np.abs(distance) <= self.stripe) | sink | tail
        band = np.where(banded, self.stripe_share, 1.0)
        if frames_lat <= self.stripe + 1 and (band == 1).all():
            return plan
        middle = native // 2
        coarse = (frame // max(GRAIN, (frames_lat - 1) // (native - middle) + 1)).astype(np.float64)

        def restrict(pass_: Pass) -> Pass:
            rel = pass_.rel
            if self.reencode == "sink":
                rel = np.where(sink, coarse[:, None] + middle, np.where(tail, coarse[:, None] - (coarse + middle), rel))
            return replace(pass_, rel=rel, visible=pass_.visible & visible).with_columns(band=band)

        return plan.each(restrict)
