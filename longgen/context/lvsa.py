"""Rotating key frames: every frame sees its neighbours, the first frames and a grid of key frames that moves with each step.

Paper: LVSA, arXiv 2605.31057; code: GitHub JiusiServe/LongVideoSparseAttention at c72a36b (version 1.2.0).

Legend: T latent frames, T0 of them in training, i query frame, j key frame, s step of the schedule, kfi interval of the key frames.

    globals(s) = 0 .. first-1, and (o + m kfi) mod T for m = 0 .. ceil(T / kfi) - 1, with o = s mod kfi              [code]
    visible(i, j) = j in globals(s), or j in the window of i                                                       [code]
    window of i: 2 window + 1 frames around i, shifted into the clip at its ends, then made longer by a frame before it and a
                 frame after it in turn, until it has 2 window + 1 frames that are not global, or is the clip       [code]

With budget = max(first + 1, floor(sparsity_scale T0)), `interval` by default is                                   [code]

    1                                           where T <= budget: everything is visible
    max(largest, ceil(max((T - m) / max(budget - m, 1), 1)))          else, m = 2 window + first

largest: the largest interval with budget - (2 window + 1) globals or more, counted at o = 0. So a frame sees about as
many frames as in training, at any length: 21 or 22 of 81 on Wan. A step's budget is the same for all its frames; from step to step
it differs by the globals that are first frames and on the grid.

`window` = 3, `first` = 1 [code: 12 and 4 video frames, over a stride of 4; in latent frames here whatever the stride], `rotate`
[readme; their scripts leave it off unless asked, and ask for it for the published figures]. `offset`: where the grid is in step 0,
or with `rotate = false` in all steps. T0 is the backbone's: 21 Wan, 33 HunyuanVideo, 13 CogVideoX, as theirs.

s counts the steps of the whole schedule: with `steps` = [from, to) the grid is where it is without; in clips all have that of their
step; Wan 2.2's second expert counts on; a run that is resumed has the grid that it would have had.

Differs from the reference: its scripts move the grid at the end of a step to that step's number, so that steps 0 and 1 both have
o = 0 and each later one is a step behind ours. Not here: its rules for a window that holds the whole clip, its guards for several
GPUs, and window = 0, where a frame need not see itself. Text in self-attention is seen by all frames, as there.

Caveats: positions are as they are, so the first frames and the key frames are seen at times beyond the trained range.

Neutral: T <= budget, which is native length and below; or interval = 1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, visible_from_ranges
from longgen.frames import local_windows
from longgen.technique import LONGEST, FrameTechnique


class Lvsa(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "LVSA, arXiv 2605.31057"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window", "the attention sink")
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    window: int = Field(3, ge=1, le=LONGEST)
    first: int = Field(1, ge=1, le=LONGEST)
    interval: int | None = Field(None, ge=1, le=LONGEST)
    rotate: bool = True
    offset: int = Field(0, ge=0, le=LONGEST)
    sparsity_scale: float = Field(1.0, gt=0, le=LONGEST)

    def at_step(self, step: int, geometry: Geometry) -> Lvsa:
        if not self.rotate:
            return self
        return self.model_copy(update={"rotate": False, "offset": (self.offset + step) % self._interval(geometry)})

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        frames_lat, interval = geometry.frames_lat, self._interval(geometry)
        shown = np.zeros(frames_lat, dtype=bool)
        shown[: self.first] = True
        shown[(self.offset % interval + interval * np.arange(-(-frames_lat // interval))) % frames_lat] = True
        visible = shown | visible_from_ranges(_windows(shown, self.window))
        return plan if visible.all() else plan.see_only(visible)

    def _interval(self, geometry: Geometry) -> int:
        """kfi, of the clip."""
        if self.interval is not None:
            return self.interval
        frames_lat, budget = geometry.frames_lat, max(self.first + 1, int(self.sparsity_scale * geometry.native_lat))
        if frames_lat <= budget:
            return 1
        wanted, taken = budget - (2 * self.window + 1), 2 * self.window + self.first
        grids = np.arange(1, frames_lat + 1)
        globals_ = self.first + (frames_lat - 1) // grids - (self.first - 1) // grids  # multiples from `first` on come to these
        largest = int(grids[globals_ >= wanted][-1])
        return max(largest, -(-max(frames_lat - taken, budget - taken) // max(budget - taken, 1)))


def _windows(shown: np.ndarray, window: int) -> list[tuple[int, int]]:
    """The windows (half-open) of all frames, `shown` [T] being global: as long as each needs for 2 `window` + 1 that are not."""
    frames_lat = len(shown)
    before = np.concatenate([[0], np.cumsum(~shown)])  # frames that are not global, before each
    wanted = min(2 * window + 1, int(before[-1]))
    start, stop = np.array(local_windows(frames_lat, 2 * window + 1, "shift")).T
    while (before[stop] - before[start] < wanted).any():
        start = np.where((before[stop] - before[start] < wanted) & (start > 0), start - 1, start)
        stop = np.where((before[stop] - before[start] < wanted) & (stop < frames_lat), stop + 1, stop)
    return list(zip(start.tolist(), stop.tolist(), strict=True))
