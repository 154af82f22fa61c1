"""Dummy Forcing: attention heads that look at little but their own chunk see no past; each other head sees the part that it needs.

Paper: Dummy Forcing, arXiv 2601.20499; code: GitHub csguoh/DummyForcing, 28128ed (wan/modules/dummyforcing.py, causal_model.py).

Legend: h head, of all L layers' heads; c latent frames of the newest chunk, n tokens per latent frame; first, middle, last, after,
dummy: the parameters, in latent frames but the share `dummy`.

Until `after` frames are done all heads see the first `first` frames, the `middle` before the chunk, and the chunk. The chunk that
reaches `after` measures heads in its clean pass, over what it sees: of n / 3 of its tokens as queries
    a_h = mean attention on the first frames,  b_h = mean attention on the frames between them and the chunk       [code]
    dummies: the round(dummy L H) heads of least max(a_h / sum a, b_h / sum b), over all layers                     [code]
    first:   of the others those with a_h / sum a >= b_h / sum b                                                    [code]
    middle:  the rest                                                                                               [code]
From then on a head sees the chunk and
    dummy    the `last` frames before it                                                                            [code]
    first    the first `first` frames                                                                               [code]
    middle   the `middle` frames before it                                                                          [code]

Constants: `dummy` = 0.5, which is 180 of the 360 heads of Wan 1.3B [code]; the README's quarter is of heads that are seen to be
dummies, not of those that are treated as such. `first` = 1, `last` = 1, `middle` = 3, one chunk, and `after` = 6, the second chunk
(`ar_start` 1), for Self-Forcing and Causal Forcing [code]; `after` = 9 (`ar_start` 2) for LongLive, and `middle` = 6 where its
prompts change [code].

Differs from the reference: queries are spaced evenly where it draws them, so that a run repeats, resumes and goes on with the
same heads [derived] · of guidance, which it has not, both texts count [derived] · where `ar_start` is 2 it takes a chunk's worth of
tokens for the first frame, though it keeps one frame there: two frames of the middle count as first, and here they do not [derived]
· what it caches of a frame differs by head; here the keys of all heads stay while any head sees the frame · where a prompt changes,
it runs the last twelve frames again, all heads seeing all; here the rollout's `switch` runs those in the cache, seen by groups.

Caveat: which heads are dummies is known at run time only. Their share is known, so a plan counts the others as if all saw the
larger of `first` and `middle`: its attention is an upper bound.

Neutral: dummy = 0, with `first` or `middle` so large that nothing is hidden; and a video that ends with the chunk that measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from longgen.frameplan import FramePlan, Geometry
from longgen.technique import LONGEST, HeadTechnique


class DummyForcing(HeadTechnique):
    """dummy: the share of heads. first, middle, last: what the groups see beside the chunk. after: see above."""

    paper: ClassVar[str] = "Dummy Forcing, arXiv 2601.20499"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window",)

    dummy: float = Field(0.5, ge=0, lt=1)
    first: int = Field(1, ge=1, le=LONGEST)
    middle: int = Field(3, ge=1, le=LONGEST)
    last: int = Field(1, ge=0, le=LONGEST)
    after: int = Field(6, ge=1, le=LONGEST)

    @property
    def first_lat(self) -> int:
        return self.first

    @property
    def measured_lat(self) -> int:
        return self.after

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        return self._see(plan, self.first, max(self.middle, self.last if self.dummy else 0))

    def branches(self, plan: FramePlan, geometry: Geometry) -> dict[str, FramePlan]:
        groups = {"first": (self.first, 0), "middle": (0, self.middle)} | ({"dummy": (0, self.last)} if self.dummy else {})
        return {name: self._see(plan, *sizes) for name, sizes in groups.items()}

    def _see(self, plan: FramePlan, first: int, before: int) -> FramePlan:
        """`plan` with no more than the chunk, the `first` frames, and those right `before` it in view."""
        queries, frames_lat = plan.shape
        frame = np.arange(frames_lat)
        return plan.see_only(np.broadcast_to((frame < first) | (frame >= frames_lat - queries - before), plan.shape))

    def assign(self, attention: np.ndarray) -> np.ndarray:
        by_head = attention.reshape(-1, 3)[:, :2]
        share = by_head / np.maximum(by_head.sum(axis=0), np.finfo(np.float64).tiny)
        groups = np.where(share[:, 0] < share[:, 1], "middle", "first").astype(object)
        groups[np.argsort(share.max(axis=1), kind="stable")[: self.dummies(len(share))]] = "dummy"
        return groups.reshape(attention.shape[:2])

    def dummies(self, heads: int) -> int:
        """How many of `heads`, those of all layers together, are dummies."""
        return round(self.dummy * heads)

    def most(self, by_group: Mapping[str, float]) -> float:
        others = max((cost for name, cost in by_group.items() if name != "dummy"), default=0.0)
        return self.dummy * by_group.get("dummy", 0.0) + (1 - self.dummy) * others

    def describe(self, heads: int) -> str:
        return f"{self.dummies(heads)} of {heads} heads in dummy, the others in first or middle"
