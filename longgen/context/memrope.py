"""MemRoPE: in a rollout, frames that leave the cache go into two moving averages, which stay in view behind the sink.

Paper: MemRoPE, arXiv 2603.12513 (ECCV 2026), code: GitHub YoungRaeKimm/MemRoPE, b89bf5b (Apache-2.0).

Legend: W slots of a frame each, s of the sink, c frames of a chunk, t its first frame, n tokens a frame; x the mean of the frames
that leave with a chunk, M a moving average, of keys before rotary embedding and of values alike.

    t + c <= W: the chunk sees all frames so far, at their times                                             [code]
    t + c > W:  it sees W slots at times 0 .. W - 1: s frames of the sink, the long and the short average,
                W - s - 2 - c recent frames, and itself                                                      [code]
    M <- a x + (1 - a) M,  a = `long` = 0.01 and `short` = 0.1; the first time M = x                         [configs]
    x is the mean over the frames' tokens too: one vector a head, which stands n times                       [code, as configured]
    `per_token`: x is a mean over frames only, of each token of a frame                                      [code, with `adaptive`]
    `adaptive`: the short average's a differs by token, a (0.1 + 4.9 d / max d over tokens), d the mean over
                heads of |x - M| of keys; per_token then, as in the code                                     [code, off in configs]
`frames`: W = 12 in the shipped configs; 12 by default, and the native length where that is less [derived]. `sink`: s = 3.
Averages are made in the first pass of a chunk. The first time, frames s and s + 1, whose slots they take, are in none [code].

Where chunks begin elsewhere, as after a picture, the first average is of fewer frames [as the code would]. Where a prompt changes,
averages stay as they were: `recache` runs the recent frames again [derived]; `flush` is refused, as what it drops is in them.

Differs from the code: averages are held in single precision, where the code holds them in that of the cache.

Caveat: one vector a head has no picture in it. Frames s and s + 1 are lost.

Neutral: while all of the video has W slots; then it is a window of W frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry
from longgen.memory import Held, InTime, KeysValues, MemorySlot, Source
from longgen.technique import LONGEST, FrameTechnique, Share

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = 2  # of averages
SHIPPED = 12  # slots in all
ADAPTIVE = (0.1, 5.0)  # times `short`: the least and the greatest rate of a token


class MemRope(FrameTechnique):
    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "MemRoPE, arXiv 2603.12513"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window", "the attention sink", "the relative times")
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)
    after_context: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True

    frames: int | None = Field(None, ge=1, le=LONGEST)
    sink: int = Field(3, ge=0, le=LONGEST)
    long: Share = 0.01
    short: Share = 0.1
    per_token: bool = False
    adaptive: bool = False

    @model_validator(mode="after")
    def _rates_by_token(self) -> MemRope:
        if self.adaptive and not self.per_token:
            raise ValueError("adaptive has a rate for each token, so that the averages must be per_token = true")
        if self.adaptive and ADAPTIVE[1] * self.short > 1:
            raise ValueError(f"adaptive multiplies short by up to {ADAPTIVE[1]:g}: it must be at most {1 / ADAPTIVE[1]:g}")
        return self

    def sink_lat(self, geometry: Geometry) -> int:
        return self.sink

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        assert geometry.chunk_lat is not None  # only rollouts have a KV cache
        window, least = self.frames or min(SHIPPED, geometry.native_lat), self.sink + SLOTS + geometry.chunk_lat
        if window < least:
            raise UsageError(f"memrope.frames = {window} slots are fewer than a sink of {self.sink}, {SLOTS} averages and a chunk "
                             f"of {geometry.chunk_lat}", expected=f"{least} or more",
                             hint=f"--set memrope.frames={least} or more, or a smaller memrope.sink")  # fmt: skip
        last, queries = plan.frames_lat, plan.shape[0]
        start = last - queries
        if last <= window or start == 0:
            return plan
        recent = start - max(0, window - self.sink - SLOTS - queries)
        oldest = self.sink + SLOTS + max(0, start - window)  # of the chunk before this one; the first time, what averages leave
        cached = plan.frames_shown
        leaving = tuple(frame for frame in range(oldest, recent) if cached[frame])
        memory = MovingAverages(leaving, (self.long, self.short), self.per_token, self.adaptive)
        sources: list[Source] = [*range(self.sink), *map(MemorySlot, range(SLOTS)), *range(recent, last)]
        return plan.show(sources, np.arange(len(sources), dtype=np.float64), memory)


@dataclass(frozen=True)
class MovingAverages:
    """The moving averages of frames that leave (`longgen.memory.Memory`), slot by slot with their `rates`."""

    frames: tuple[int, ...]
    rates: tuple[float, float]
    per_token: bool
    adaptive: bool

    slots: ClassVar[int] = SLOTS
    queries_of: ClassVar[None] = None
    rotated_in_space: ClassVar[bool] = False
    period: ClassVar[int] = 1

    @property
    def over_heads(self) -> bool:
        return self.adaptive

    def phrase(self, slot: int) -> str:
        rate = f"about {self.rates[slot]:g}" if self.adaptive and slot == 1 else f"{self.rates[slot]:g}"
        return f"{('long', 'short')[slot]} average of the frames that left, by {rate} a chunk"

    def update(self, held: Held | None, leaving: KeysValues, queries: Tensor | None, in_time: InTime) -> Held:
        import torch  # lazy: plans need no torch

        means = [self._mean(x) for x in leaving]
        if held is None:
            keys, values = (torch.cat([mean] * SLOTS, dim=1) for mean in means)
            return keys, values
        pairs = [x.chunk(SLOTS, dim=1) for x in held]  # [B, n, H, D] each
        rates: list[float | Tensor] = [*self.rates]
        if self.adaptive:
            motion = (means[0] - pairs[0][1]).norm(dim=-1).mean(dim=-1)
            least, most = (times * self.rates[1] for times in ADAPTIVE)
            share = motion / (motion.amax(dim=-1, keepdim=True) + 1e-8)
            rates[1] = (least + share * (most - least))[..., None, None]
        keys, values = (
            torch.cat([rate * mean + (1 - rate) * before for rate, before in zip(rates, pair, strict=True)], dim=1)
            for mean, pair in zip(means, pairs, strict=True)
        )
        return keys, values

    def _mean(self, x: Tensor) -> Tensor:
        """[B, n, H, D] of the frames' keys or values [B, f n, H, D]."""
        by_frame = x.float().unflatten(1, (len(self.frames), -1))
        if self.per_token:
            return by_frame.mean(dim=1)
        return by_frame.mean(dim=(1, 2), keepdim=True).flatten(1, 2).expand(-1, by_frame.shape[2], -1, -1)
