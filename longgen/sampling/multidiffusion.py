"""MultiDiffusion in time: the layout of overlapping clips, which are denoised together.

The loop is `longgen.loops.multidiffusion`. Where one clip is the whole video, this is direct sampling, bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from pydantic import Field

from longgen.sampling.clips import Clips
from longgen.technique import LONGEST, Sampling


class MultiDiffusion(Sampling):
    """A layout of clips. frames: latent frames of a clip; the native length T0 by default."""

    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)
    loop: ClassVar[str] = "multidiffusion"

    frames: int | None = Field(None, ge=1, le=LONGEST)

    @abstractmethod
    def clips(self, frames_lat: int, length: int, timestep: float, shift: int) -> Clips:
        """The clips of `length` frames, fewer than T, at a step. shift: drawn anew for each step, below `shifts(length)`."""

    def shifts(self, length: int) -> int:
        """The number of places that clips can be at; where there are several, they move from step to step."""
        return 1

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        return min(frames_lat, self.frames or native_lat)

    def calls(self, frames_lat: int, native_lat: int) -> float:
        length = self.frames_per_call(frames_lat, native_lat)
        if length == frames_lat:
            return 1.0
        shifts = range(self.shifts(length))
        return sum(len(self.clips(frames_lat, length, 500.0, shift).frames) for shift in shifts) / len(shifts)
