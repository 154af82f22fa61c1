"""What a sampling loop hands out after each step, chunk or round: all that a checkpoint needs to go on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class State(NamedTuple):
    """A run after `done` rounds.

    latents: as the loop needs them to go on: the pipeline's latents, the frames so far and the queue, or the newest chunk.
    scheduler: what the scheduler, or the loop in its place, keeps between steps. generator: the state of the random generator.
    """

    done: int
    latents: Tensor
    scheduler: dict[str, Any]
    generator: Tensor


OnStep = Callable[[State], None]
"""Called after each round with a state whose latents are finite; the state is only valid during the call."""
