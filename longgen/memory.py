"""What a slot of a rollout's KV cache holds: a frame, or a memory that is made of frames as they leave the cache. No torch.

Legend: B batch, n tokens per latent frame, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

KeysValues = tuple["Tensor", "Tensor"]  # [B, *, H, D] each, keys not rotated in time
Held = tuple["Tensor", ...]  # keys and values of the slots, then whatever else the memory keeps
InTime = Callable[["Tensor", "np.ndarray"], "Tensor"]  # keys or queries [B, F n, H, D] rotated to the frames' times [F]


@dataclass(frozen=True)
class MemorySlot:
    """A key column that holds slot `index` of the memory."""

    index: int


Source = int | MemorySlot  # what a key column holds: a frame, by its number, or a slot of the memory


class Memory(Protocol):
    """What slots hold instead of frames, in every layer.

    slots: how many, of n tokens each. frames: the cached frames that it takes in with this chunk, after which they are gone.
    queries_of: the cached frames whose queries it reads beside the chunk's own; None where it reads none. rotated_in_space: whether
    keys and queries come to it rotated by their tokens' places in the frame, so that a slot may hold tokens of any; time is left.
    period: it takes frames in with every so many chunks. over_heads: whether what it does with one head depends on the others.
    """

    @property
    def slots(self) -> int: ...
    @property
    def frames(self) -> tuple[int, ...]: ...
    @property
    def queries_of(self) -> tuple[int, ...] | None: ...
    @property
    def rotated_in_space(self) -> bool: ...
    @property
    def period(self) -> int: ...
    @property
    def over_heads(self) -> bool: ...

    def phrase(self, slot: int) -> str:
        """What a slot holds, as `longgen plan` says it."""
        ...

    def update(self, held: Held | None, leaving: KeysValues, queries: Tensor | None, in_time: InTime) -> Held:
        """The slots' keys and values [B, slots n, H, D] from now on, in any dtype, and what else is handed back the next time.

        Called in every layer once a chunk, in its first pass, where `frames` is not empty. On resume, and over frames that are
        given, that is the clean pass, so that the chunk's own queries are others than they were. held: what it returned last; None
        the first time. leaving: of `frames`. queries: those of `queries_of` as the clean pass left them, then the chunk's. Keys and
        queries are before rotary embedding, or rotated in space; `in_time` rotates those in space as this chunk's plan does.
        """
        ...
