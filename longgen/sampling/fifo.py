"""FIFO-Diffusion: a queue of frames at rising noise levels; each round denoises all by one level and the first one leaves.

Paper: FIFO-Diffusion, arXiv 2405.11473; code: GitHub jjihwan/FIFO-Diffusion_public.

Legend: T latent frames of the video, T0 of them in training, f frames of a model call, n partitions, S = n f steps and places
of the queue, h places of lookahead, K windows, sigma_0 = 1 > sigma_1 > .. > sigma_S = 0, v the model's velocity.

    start:     x0 = f frames, sampled as usual in S steps; place i = 0 .. S - 1 of the queue is
               (1 - s_i) x0[max(0, i - (S - f))] + s_i noise,  s_i = sigma_(S-1-i)            [code; derived: the flow form]
    a round:   place i  +=  (sigma_(S-i) - s_i) v_i;  place 0 is clean and goes out, all move up by one, N(0, 1) enters at the end
    the first S - f frames that go out are dropped                                                                     [code]
    windows without lookahead: [r f, (r + 1) f), r = 0 .. n - 1, all of it kept                                       [paper]
    with lookahead: h = f // 2 frames that went out last stand before the queue; 2 n windows end at places e_r = ceil((r + 1) f / 2)
               of the queue, and keep their places from e_(r-1) on, the noisier half        [paper; odd f: code, Open-Sora's]

Positions in a window are 0 .. f - 1, as in training, whatever T is.

For odd f, as on Open-Sora Plan (17) and Wan (21), the kept halves take turns of (f + 1) / 2 and (f - 1) / 2 places, the larger
first, so that each place is kept once, as in the authors' script for Open-Sora [code].

Constants: f = T0, n = 4, lookahead [code]. The schedule has n f steps [paper], and nothing else.

Differs from the reference: a flow-matching Euler step in place of DDIM with eta 1 [derived] · places of lookahead are labelled
with timestep 0, which they are at; the reference labels them with the lowest noise level and noises them at first [derived] ·
windows read the queue as it was at the start of the round, as the reference's descending order does · the T frames that are kept
begin at the run's own noise, so that techniques of noise act on it [derived] · a frame plan with parts of the schedule takes a
window's step at its middle place [derived] · Wan 2.2's experts each predict the frames of their own timesteps, and see the
others' [derived] · a checkpoint every 8 rounds [derived].

With a schedule of prompts all of the queue has the prompt of the frame that goes out, as in the code.

Caveats: no model but Wan 2.2 TI2V and LTX-Video has seen frames of different noise levels in training, and those two only clean
ones beside noisy ones. A frame sees at most f neighbours, so content drifts. Per-token timesteps cost memory for modulation.

Neutral: videos of at most f frames, which are sampled directly.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

from pydantic import Field

from longgen.errors import UsageError
from longgen.technique import LONGEST, TIMESTEPS, Sampling


class Fifo(Sampling):
    """frames: f, the native length T0 by default. partitions: n. lookahead: a window keeps its noisier half only."""

    paper: ClassVar[str] = "FIFO-Diffusion, arXiv 2405.11473"
    exclusive: ClassVar[tuple[str, ...]] = ("the order of sampling", "the anchor of clips")  # windows have no first among them
    requires: ClassVar[tuple[str, ...]] = ("frame-timesteps", "whole-clip")
    frame_levels: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    loop: ClassVar[str] = "fifo"

    frames: int | None = Field(None, ge=2, le=LONGEST)
    partitions: int = Field(4, ge=1, le=TIMESTEPS)
    lookahead: bool = True

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        return min(frames_lat, self.frames or native_lat)

    def schedule_steps(self, frames_lat: int, native_lat: int, requested: int | None) -> int | None:
        length = self.frames_per_call(frames_lat, native_lat)
        if length == frames_lat:
            return requested
        places, most = self.partitions * length, TIMESTEPS // length
        if places > TIMESTEPS:
            raise UsageError(f"fifo.partitions = {self.partitions} of {length} latent frames are {places} places, each at a noise "
                             f"level of its own, and models know {TIMESTEPS}",
                             expected=f"1 to {most}" if most else "fewer fifo.frames",
                             hint=f"--set fifo.partitions={min(4, most)}" if most else "leave fifo.frames out")  # fmt: skip
        if requested not in (None, places):
            raise UsageError(f"fifo denoises a queue with one place for each step, {self.partitions} partitions of {length} latent "
                             f"frames, and {requested} steps are asked for", expected=f"--steps {places}",
                             hint=f"--steps {places} or leave it out; fifo.partitions and fifo.frames change it")  # fmt: skip
        return places

    def calls(self, frames_lat: int, native_lat: int) -> float:
        length = self.frames_per_call(frames_lat, native_lat)
        if length == frames_lat:
            return 1.0
        places = self.partitions * length
        return 1 + (frames_lat + places - length) * len(self.windows(length)) / places

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """The steps of the first clip, and then one for each frame that goes out."""
        length = self.frames_per_call(frames_lat, native_lat)
        return steps if length == frames_lat else steps + frames_lat + steps - length

    def lookahead_places(self, length: int) -> int:
        """Places of lookahead before the queue; both together are the line."""
        return length // 2 if self.lookahead else 0

    def windows(self, length: int) -> list[tuple[int, int]]:
        """(start, kept): a model call sees the `length` places of the line from `start` on; those from `kept` on are updated."""
        if not self.lookahead:
            return [(start, start) for start in range(0, self.partitions * length, length)]
        ends = [self.lookahead_places(length) + (half * length + 1) // 2 for half in range(2 * self.partitions + 1)]
        return [(end - length, kept) for kept, end in itertools.pairwise(ends)]
