"""State of the current model call, set by the sampling loop and read by attention processors: step, clips, texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longgen.technique import Step

if TYPE_CHECKING:
    from torch import Tensor

    from longgen.attention.observer import Observer


@dataclass
class ClipBatch:
    """The clips of one model call. rows: for each sample of its batch the clip, the clip's anchor, and the sample's number.

    anchor_kv: keys and values [T n, H, D] of anchors, by layer, anchor and sample, for the calls that follow.
    """

    rows: list[tuple[int, int, int]]
    anchor_kv: dict[tuple[int, int, int], tuple[Tensor, Tensor]]


@dataclass
class StepState:
    """The step of the pipeline's schedule, and what the current model call covers."""

    pipe: Any
    index: int = 0
    clips: ClipBatch | None = None
    observer: Observer | None = None  # sees each call of each layer that does not run the stock attention
    shares: Tensor | None = None  # [shots, frames]: the texts of this call, one after the other, and each frame's share of them
    _timesteps: tuple[Any, tuple[float, ...]] = (None, ())  # of the scheduler, and as numbers

    @property
    def step(self) -> Step:
        timesteps = self.pipe.scheduler.timesteps
        if self._timesteps[0] is not timesteps:  # read once a schedule: they may be on a GPU
            self._timesteps = (timesteps, tuple(timesteps.tolist()))
        return Step(self.index, self._timesteps[1])
