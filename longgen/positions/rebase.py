"""Re-based positions: the frames that are seen stand side by side in time, however far apart they are in the video.

Papers: infinity-RoPE, arXiv 2511.20649 (block-relativistic RoPE: the cached window stands at 0 .. W-1, the query at its end), code
63d7b84; Deep Forcing, arXiv 2512.05081 (a deep sink, re-aligned to the window's tail), code: GitHub Nizben/Spectral_C, ea9961a.

Legend: i query frame, j key frame; of the frames that i sees, a hole is a place where some are left out.

    rel(i, j) <- the steps from j to i along the frames that i sees: as they were between neighbours, `gap` across a hole
`gap` = 1: the sink's last frame stands right before the window's first                                 [code, infinity-RoPE]
`gap` = 4: it stands a chunk and a frame before it, for chunks of 3. Its shift is counted to the chunk's first frame and the
           window to the chunk's last; so it stays as far off as it was when the cache first overflowed   [code, Deep Forcing]
`gap` = 0: on it, which is what turning the sink by s_tail - s_sink says                                  [paper, Deep Forcing]
Deep Forcing's numbers come from its code, and its preset has 4; --set rebase.gap=0 is the equation.

So with `gap` = 1 the largest distance is the number of frames seen less one, and a window of at most T0 frames with its sink
stays in the trained range; with 4 it leaves it by 3. It reads off what the stack's context shows, and so applies after it.

Caveat: with it `flex` has nothing to slow down; the plan says so. Time across a hole is lost: the model cannot tell how long
ago its sink was.

Neutral: where the frames seen have no hole, and positions are the model's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, Pass
from longgen.technique import LONGEST, FrameTechnique


class Rebase(FrameTechnique):
    slot: ClassVar[str] = "positions"
    paper: ClassVar[str] = "infinity-RoPE, arXiv 2511.20649"
    exclusive: ClassVar[tuple[str, ...]] = ("the relative times",)
    requires: ClassVar[tuple[str, ...]] = ("relative-positions",)
    after_context: ClassVar[bool] = True

    gap: int = Field(1, ge=0, le=LONGEST)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        def closed(one: Pass) -> Pass:
            rel, own = one.rel.copy(), plan.frames_lat - len(one.rel)  # rows are the last frames
            for row, seen in enumerate(one.visible):
                frames = np.flatnonzero(seen)
                steps = np.where(np.diff(frames) == 1, -np.diff(one.rel[row, frames]), self.gap)
                place = np.concatenate([[0.0], np.cumsum(steps)])
                rel[row, frames] = place[np.searchsorted(frames, own + row)] - place
            return replace(one, rel=rel)

        holes = any((np.diff(np.flatnonzero(seen)) > 1).any() for one in plan.passes for seen in one.visible)
        return plan.each(closed) if holes else plan
