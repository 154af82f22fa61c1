"""Attention sink: the first frames stay visible to every frame.

Paper: FLEX, arXiv 2602.14027, which adds a sink to models that were not trained with one; no code is released. The sink
itself is StreamingLLM's (arXiv 2309.17453): softmax attention leans on the first keys, and a window that loses them drifts.

Legend: i query frame, j key frame.

    visible(i, j) <- visible(i, j) or j < frames
`frames` = 3 [derived: our copy of the paper does not give it; one chunk of the models that FLEX is used with]. They are
seen whole, at the relative times that the stack's positions give them.

In a rollout, the paper's setting, they are the keys and values that the cache never evicts. In a clip they are denoised
together with the frames that see them [derived].

Caveat: with rel = i - j, late frames see the sink at times beyond the trained range. FLEX therefore slows the
temporal frequencies down (technique `flex`); vrpr and longdiff keep the times themselves in range.

Neutral: where these frames are visible already, as with full attention.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry
from longgen.technique import LONGEST, FrameTechnique


class Sink(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "FLEX, arXiv 2602.14027"
    exclusive: ClassVar[tuple[str, ...]] = ("the attention sink",)

    frames: int = Field(3, ge=1, le=LONGEST)

    def sink_lat(self, geometry: Geometry) -> int:
        return self.frames

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        first = np.arange(geometry.frames_lat) < self.frames
        return plan.see_also(np.broadcast_to(first, plan.shape))
