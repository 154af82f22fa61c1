"""Participative compression: in a rollout, of frames that leave the cache the tokens most asked for stay in view.

Paper: Deep Forcing, arXiv 2512.05081, code: GitHub Nizben/Spectral_C, ea9961a (causal_model.py).

Legend: M frames of the window, c of a chunk, s of the sink, C of chosen tokens, R recent ones with the chunk, n tokens a frame, H
heads; q_i, k_j a query and a key, rotated in space and time.

    while all has room in M slots, the chunk sees all frames so far, at their times                          [paper, code]
    a chunk that would need more: it sees s + C + R slots, the sink, C n chosen tokens, R - c frames before
        it, and itself; the next chunks see these and what came after, until M overflows again               [paper, code]
    chosen: of the tokens in between, those chosen before and those of frames that leave, the C n of greatest
        phi_j = sum over heads and queries i of q_i . k_j;  one choice a layer                               [paper, code]
    the sink, chosen tokens and recent frames stand at consecutive times, n tokens to a frame; tokens keep
        their places in the frame                                                                            [paper]
    a token that was chosen `reuse` times is not chosen again                                                [code]
For chunks of 3, M = 21, s = 10, C = 2 and R = 4 it is every second chunk: at latent frames 21, 27, 33        [code].
`frames` is M, the native length by default, `top` C, and `recent` R, a chunk and a frame by default: the 4 of the code.
`sink` is s, 10 by default, or what M leaves where that is less [derived].

The choice is by the clean queries of the R - c frames before the chunk [derived]. The authors add those of the chunk itself, as its
first step has them: of noise, so that the same tokens could be chosen again neither on resume nor where a video goes on from
another, without keeping every choice of every layer. By clean frames alone the clean passes choose again what they chose.

Differs from the code, by which the published numbers were made: that, and times. There a chosen token stays at its own time, up to
40 frames ago, which the paper's re-rotation is to prevent: that branch is in the code and never runs; and its sink stands 4 before.
Where fewer than C n tokens are below `reuse`, others are chosen as well, where the code keeps fewer [derived].

Where a prompt changes, what is chosen stays: `recache` runs the recent frames again and chooses nothing; `flush` is refused, as
what it drops is among the chosen [derived].

Neutral: while all of the video has M slots; then it is a window of M frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry
from longgen.memory import Held, InTime, KeysValues, MemorySlot, Source
from longgen.technique import LONGEST, FrameTechnique

if TYPE_CHECKING:
    from torch import Tensor

SINK = 10
MOST_REUSE = 255  # counts are bytes


class ParticipativeCompression(FrameTechnique):
    """frames, sink, top, recent, reuse: see above; reuse = 0 is no limit."""

    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "Deep Forcing, arXiv 2512.05081"
    exclusive: ClassVar[tuple[str, ...]] = ("the context window", "the attention sink", "the relative times")
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)
    after_context: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True

    frames: int | None = Field(None, ge=1, le=LONGEST)
    sink: int | None = Field(None, ge=0, le=LONGEST)
    top: int = Field(2, ge=1, le=LONGEST)
    recent: int | None = Field(None, ge=2, le=LONGEST)
    reuse: int = Field(7, ge=0, le=MOST_REUSE)

    def sink_lat(self, geometry: Geometry) -> int:
        assert geometry.chunk_lat is not None  # only rollouts have a KV cache
        left = (self.frames or geometry.native_lat) - self.top - (self.recent or geometry.chunk_lat + 1)
        return max(0, min(SINK, left)) if self.sink is None else self.sink

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        assert geometry.chunk_lat is not None  # only rollouts have a KV cache
        chunk, window = geometry.chunk_lat, self.frames or geometry.native_lat
        recent = self.recent or chunk + 1
        sink = self.sink_lat(geometry)
        slots = sink + self.top + recent
        if recent <= chunk:
            raise UsageError(f"participative-compression.recent = {recent} leave none before a chunk of {chunk} to choose by",
                             expected=f"{chunk + 1} or more", hint="leave it out for one frame")  # fmt: skip
        if window < slots:
            raise UsageError(f"participative-compression.frames = {window} slots are fewer than a sink of {sink}, {self.top} "
                             f"frames of chosen tokens and {recent} recent ones", expected=f"{slots} or more",
                             hint=f"--set participative-compression.frames={slots} or more, or a smaller sink")  # fmt: skip
        last, start = plan.frames_lat, plan.frames_lat - plan.shape[0]
        if last <= window or start == 0:
            return plan
        period, first = 1 + (window - slots) // chunk, window + 1 + (last - window - 1) % chunk  # `first`: the end of a chunk
        phase = (last - first) // chunk % period
        oldest, before = last - phase * chunk - recent, sink  # in view from now on, and until now
        leaving: tuple[int, ...] = ()
        if phase == 0:
            before = sink if last == first else last - period * chunk - recent
            leaving = tuple(frame for frame in np.flatnonzero(plan.frames_shown).tolist() if before <= frame < oldest)
        memory = ChosenTokens(leaving, tuple(range(oldest, start)) if leaving else (), self.top, self.reuse, period)
        sources: list[Source] = [*range(sink), *map(MemorySlot, range(self.top)), *range(oldest, last)]
        return plan.show(sources, np.arange(len(sources), dtype=np.float64), memory)


@dataclass(frozen=True)
class ChosenTokens:
    """The chosen tokens (`longgen.memory.Memory`), in the order of time, and how often each was chosen, [B, slots n] bytes."""

    frames: tuple[int, ...]
    queries_of: tuple[int, ...]
    slots: int
    reuse: int
    period: int

    rotated_in_space: ClassVar[bool] = True
    over_heads: ClassVar[bool] = True

    def phrase(self, slot: int) -> str:
        return "tokens of frames that left, those most asked for"

    def update(self, held: Held | None, leaving: KeysValues, queries: Tensor | None, in_time: InTime) -> Held:
        import torch  # lazy: plans need no torch

        assert queries is not None
        tokens = leaving[0].shape[1] // len(self.frames)
        keys, values, times = leaving[0], leaving[1], [*self.frames]
        counts = torch.zeros(keys.shape[:2], dtype=torch.uint8, device=keys.device)
        if held is not None:
            keys, values, counts = (
                torch.cat([old.to(x.dtype), x], dim=1) for old, x in zip(held, (keys, values, counts), strict=True)
            )
            times = [*range(times[0] - self.slots, times[0]), *times]
        asking = queries[:, : len(self.queries_of) * tokens].float()  # those of the chunk itself come after
        sought = in_time(asking, np.array(self.queries_of, dtype=np.float64)).sum(dim=1)
        scores = torch.einsum("bjhd,bhd->bj", in_time(keys.float(), np.array(times, dtype=np.float64)), sought)
        if self.reuse:
            scores = scores.masked_fill(counts >= self.reuse, -torch.inf)
        chosen = scores.topk(self.slots * tokens, dim=1).indices.sort(dim=1).values
        wide = chosen[:, :, None, None].expand(-1, -1, *keys.shape[2:])
        counts = counts.gather(1, chosen)
        return keys.gather(1, wide), values.gather(1, wide), counts + (counts < MOST_REUSE).to(counts.dtype)
