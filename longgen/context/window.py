"""Sliding-window (local) attention over frames: a frame sees the frames of its native neighbourhood only.

The baseline that long-video papers compare against (FreeNoise, FreeLong and FreeSpec call it "sliding window").
`frames`: the window's length in latent frames; the native length T0 by default. `edge = "shift"` shifts the window
into the clip at its ends, so that every frame sees as many frames as in training and a clip of native length is
unchanged (neutral, bit for bit); `edge = "clip"` truncates it there. [derived: the papers do not say]

In a rollout the window ends with the newest chunk, as Self-Forcing's cache does (`local_attn_size`), and `edge` has no effect.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry, visible_from_ranges
from longgen.frames import local_windows
from longgen.technique import LONGEST, FrameTechnique


class Window(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "baseline of FreeNoise, FreeLong and FreeSpec"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window",)

    frames: int | None = Field(None, ge=1, le=LONGEST)
    edge: Literal["shift", "clip"] = "shift"

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        window = self.frames or geometry.native_lat
        if geometry.chunk_lat:
            return plan.see_only(np.broadcast_to(np.arange(geometry.frames_lat) >= geometry.frames_lat - window, plan.shape))
        return plan.see_only(visible_from_ranges(local_windows(geometry.frames_lat, window, self.edge)))
