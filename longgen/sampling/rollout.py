"""Autoregressive rollout: a causal model generates chunk by chunk, to any length, over a key/value cache.

Papers: Self-Forcing, arXiv 2506.08009, code 33593df (the loop); LongLive, arXiv 2509.22622, code v1.0 e52d9ef (re-caching where the
prompt changes); infinity-RoPE, arXiv 2511.20649, code 63d7b84 (flushing there, and the cut).

Legend: c latent frames of a chunk, S steps, sigma_j the noise level of step j, t_j = 1000 sigma_j, v the model's velocity.

    sigma_j = s u / (1 + (s - 1) u),  u = 1 - j / S, s the model's shift                                     [code]
    for each chunk: x = noise, and for j = 0 .. S - 1
        x0 = x - sigma_j v(x, t_j, cache)
        x  = (1 - sigma_(j+1)) x0 + sigma_(j+1) e,  e fresh noise; the last x0 is the chunk                  [code]
    then v(x0, t = `context_noise`, cache), only for the keys and values that it leaves in the cache         [code]

Constants: c = 3, S = 4 and s = 5, so that t = 1000, 937.5, 833.3, 625; context_noise = 0 [code]. What a chunk sees of the past, and
at which times, is decided by the frame plan: the techniques window, sink, rebase, flex.

A prompt changes with the first chunk that starts at or after the change: the chunk in which it falls is made with the one before,
so that latent frames 40, 80, 120, 160 and 200 become 42, 81, 120, 162 and 201 [code, LongLive]. `switch` says what becomes of the
cache there:
    recache   its frames run again with the new prompt, clean and all at once. While the window holds all of the video so far the
              sink is among them; later it keeps the prompt that it had, and the rest see it so [code, LongLive]. Where windows
              differ by layer or step, only the frames in all of them [derived]
    flush     only the sink and the last `kept` frames stay: 2 in infinity-RoPE's code, 1 in its paper
    keep      it stays: only the text changes
In a schedule with a blend a chunk has the mean of its frames' texts [derived].

A shot with `cut = true` is a hard cut: in all passes of its first chunk, the clean one too, the chunk's frames stand apart in time
from all that they see of the past, and the next chunk stands where it would without the cut. With p_j the time of frame j from the
earliest that the chunk sees on, s the chunk's first frame:
    p_i <- p_i + `cut_time` - p_s  for the frames i of the chunk,  `cut_time` = 45                           [code, infinity-RoPE]
There the past is the sink and two frames after a flush, at 0, 1, 2, and the chunk at 45, 46, 47. The same holds with any `switch`
and any past [derived]. It is refused where the newest of the past would be within the trained length of the chunk, as with a sink
at its own time, long ago [derived].
Frequencies are scaled (flex) by the times without the cut, which would undo it [derived].

A video that begins with m clean latent frames, of a picture or of an earlier video, runs the clean pass over them in chunks, of
which the first has m mod c frames, and goes on in chunks of c from frame m. Self-Forcing's `initial_latent` likewise, where m mod c
is 0, or 1 as of one picture [code]; any other, and `context_noise` instead of 0 there too [derived]. All of an earlier rollout is
given, with the frames of its last chunk beyond its end, the state of its generator and the noise that it carries over: so two parts
are one rollout, bit for bit. Its frames keep the prompts that they were made with; another prompt is a change at the first new
chunk. A schedule counts from the first new frame on [derived].

Differs from the references: keys are cached before rotary positions [as infinity-RoPE]; all in float32, x0 too, where the
reference takes float64 · frames of the last chunk beyond the video's end are generated and dropped [derived] · guidance, which
none of them has, runs both texts in one batch [derived].
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Pass
from longgen.technique import LONGEST, Sampling


class Rollout(Sampling):
    """chunk: c. context_noise: the timestep of the clean pass. switch, kept, cut_time: see above."""

    paper: ClassVar[str] = "Self-Forcing, arXiv 2506.08009"
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)
    streams: ClassVar[bool] = True
    in_chunks: ClassVar[bool] = True
    loop: ClassVar[str] = "rollout"

    chunk: int = Field(3, ge=1, le=LONGEST)
    context_noise: float = Field(0.0, ge=0, le=1000)
    switch: Literal["recache", "flush", "keep"] = "recache"
    kept: int = Field(2, ge=1, le=LONGEST)
    cut_time: int = Field(45, ge=1, le=LONGEST)

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        if self.chunk > native_lat:
            raise UsageError(f"rollout.chunk = {self.chunk} latent frames, but the model was trained on {native_lat} in all",
                             expected=f"1 to {native_lat}", hint="leave it out for the 3 of published models")  # fmt: skip
        return self.chunk

    def calls(self, frames_lat: int, native_lat: int) -> float:
        return self.rounds(frames_lat, native_lat, 1)

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """The number of chunks."""
        return -(-frames_lat // self.chunk)

    def cut_apart(self, plan: FramePlan, native_lat: int) -> FramePlan:
        """`plan` of a chunk, whose frames it moves to `cut_time` after the earliest that they see.

        Raises UsageError where they would stand no further from the newest of these than frames did in training, `native_lat`.
        """
        queries = plan.shape[0]

        def apart(p: Pass) -> Pass:
            past = p.rel[0, :-queries][p.visible[0, :-queries]]
            if not len(past):
                return p
            jump = self.cut_time - past.max()
            if past.min() + jump < native_lat:
                start, after = plan.frames_lat - queries, past.min() + jump
                raise UsageError(f"the cut at latent frame {start} moves its chunk to {self.cut_time} after the first frame it "
                                 f"sees (rollout.cut_time), {after:g} after the last: no further than in training",
                                 expected=f"{native_lat} or more after the last: no sink, or one that rebase moves along",
                                 hint="use --preset infinity-rope, a stack with rebase, or a larger rollout.cut_time")  # fmt: skip
            rel = p.rel.copy()
            rel[:, :-queries] += jump
            return replace(p, rel=rel)

        return plan.each(apart)
