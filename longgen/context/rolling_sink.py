"""Rolling Sink: in a rollout, what is older than the last chunk shows the first frames, to and fro, at the older frames' times.

Paper: Rolling Sink, arXiv 2602.07775, code: GitHub haodong2000/RollingSink, d7fc0d9 (Apache-2.0).

Legend: K frames of the window, c of a chunk, R = K - c, t the chunk's first frame; a slot is a key column, tau its time.

    the chunk sees the slots of tau = max(0, t + c - K) .. t + c - 1                                         [code]
    slot tau holds frame tau, of the chunk itself and of the one before it: tau >= t - c                     [code]
    before, it holds frame tau mod R where floor(tau / R) is even, R - 1 - tau mod R where it is odd         [code]
So the first R frames, the sink, stand at their own times; then they come back backwards, forwards and so on, values as keys,
rotated to tau; tokens keep their places within a frame. Nothing happens while all of the video is in the window.
`frames`: K, the native length by default, 21 in the code, whose chunks have 3 frames.

The code replaces a chunk's keys and values after the clean pass of the next one. Keys are kept before rotary embedding, once for
each frame, and gathered with their times: the same numbers.

In the code K and every chunk's start are multiples of 3. By the equations above each frame has its slot wherever chunks begin, as
after a picture [derived]. Where a prompt changes, the sink stays as it was made: `recache` runs the frames after it again, `flush`
leaves it and the last frames, and the slots of those that go show the sink [derived].

Differs from the code: relative times as they are, where its table of rotary positions ends at frame 8,192.

Caveat: from 2 R frames on, history is early content: the video returns to how it began.

Neutral: while the window holds the whole video, and where K <= 2 c, so that no slot is older than the last chunk; then it is the
window.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry
from longgen.technique import LONGEST, FrameTechnique


class RollingSink(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "Rolling Sink, arXiv 2602.07775"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window", "the attention sink", "the relative times")
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)
    after_context: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True

    frames: int | None = Field(None, ge=1, le=LONGEST)

    def sink_lat(self, geometry: Geometry) -> int:
        assert geometry.chunk_lat is not None  # only rollouts have a KV cache
        window = self.frames or geometry.native_lat
        if window <= geometry.chunk_lat:
            raise UsageError(f"rolling-sink.frames = {window} has no room for frames before a chunk of {geometry.chunk_lat}",
                             expected=f"{geometry.chunk_lat + 1} or more", hint="leave it out for the native length")  # fmt: skip
        return window - geometry.chunk_lat

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        sink, last, queries = self.sink_lat(geometry), plan.frames_lat, plan.shape[0]
        assert geometry.chunk_lat is not None
        window, start = sink + geometry.chunk_lat, last - queries
        if last <= window or start == 0:
            return plan
        times, cached = np.arange(last - window, last), plan.frames_shown
        cached[: start - geometry.chunk_lat] = False
        round_trip = [*range(sink), *reversed(range(sink))]
        sources = [time if cached[time] else round_trip[time % (2 * sink)] for time in times.tolist()]
        return plan.show(sources, times.astype(np.float64), kept=range(sink))
