"""Re-based relative positions: visible frames get consecutive times, however far apart they are in the video.

Papers: infinity-RoPE, arXiv 2511.20649 (block-relativistic RoPE: the cached window stands at 0 .. W-1, the query at its end), code
63d7b84; Deep Forcing, arXiv 2512.05081 (a deep sink, re-aligned to the window's tail), code: GitHub Nizben/Spectral_C, ea9961a.

Legend: i query frame, j key frame; a hole is a run of frames between visible ones that i does not see.

    rel(i, j) <- sum of steps from j to i along the frames that i sees: unchanged between neighbours, `gap` across a hole
`gap` = 1: the sink's last frame is directly before the window's first                                  [code, infinity-RoPE]
`gap` = 4: it is a chunk and a frame before it, for chunks of 3.    Its shift is counted to the chunk's first frame and the
           window to the chunk's last; so it stays as far off as it was when the cache first overflowed   [code, Deep Forcing]
`gap` = 0: at the same time, as rotating the sink by s_tail - s_sink gives                                [paper, Deep Forcing]
Deep Forcing's numbers come from its code, and its preset has 4; --set rebase.gap=0 is the equation.

So with `gap` = 1 the largest distance is the number of frames seen less one, and a window of at most T0 frames with its sink
stays in the trained range; with 4 it leaves it by 3. It depends on which frames the stack's context techniques show, and so
applies after them.

Caveat: it leaves `flex` nothing to slow down; the plan reports it. Time across a hole is lost: the model cannot tell how long
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
        def close_holes(pass_: Pass) -> Pass:
            rel, first_query = pass_.rel.copy(), plan.frames_lat - len(pass_.rel)  # the query frames are the last ones
            for row, visible in enumerate(pass_.visible):
                frames = np.flatnonzero(visible)
                steps = np.where(np.diff(frames) == 1, -np.diff(pass_.rel[row, frames]), self.gap)
                time = np.concatenate([[0.0], np.cumsum(steps)])
                rel[row, frames] = time[np.searchsorted(frames, first_query + row)] - time
            return replace(pass_, rel=rel)

        holes = any((np.diff(np.flatnonzero(visible)) > 1).any() for pass_ in plan.passes for visible in pass_.visible)
        return plan.each(close_holes) if holes else plan
