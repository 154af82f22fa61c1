"""State of the current model call, set by the sampling loop and read by attention processors: step, clips, texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longgen.technique import Step

if TYPE_CHECKING:
    from longgen.attention.observer import Observer
    from longgen.attention.rotary import Tables
    from longgen.attention.ulysses import Ulysses


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
    shares: np.ndarray | None = None  # [shots, frames]: the texts of this call, one after the other, and each frame's share of them
    _tables: tuple[Tensor, Tables] | None = None  # cos of this rank's tokens, and the tables of all tokens that it is of
    _read: dict[str, tuple[Any, tuple[float, ...]]] = field(default_factory=dict)  # tensors of the scheduler, and as numbers
    _text: tuple[Any, list[slice | Tensor]] = (None, [])  # the last mask, and the text that it shows

    @property
    def step(self) -> Step:
        return Step(self.index, self.scheduled("timesteps"))

    def scheduled(self, name: str) -> tuple[float, ...]:
        """The scheduler's `timesteps` or `sigmas`, read once a schedule: they may be on a GPU."""
        tensor = getattr(self.pipe.scheduler, name)
        if name not in self._read or self._read[name][0] is not tensor:
            self._read[name] = (tensor, tuple(tensor.tolist()))
        return self._read[name][1]

    def all_tables(self, split: Ulysses, tables: Tables) -> Tables:
        """The rotary tables of all tokens, gathered once a model call: its layers are handed the same ones."""
        cos = tables[0]
        held = None if self._tables is None else self._tables[0]
        if held is None or (held.data_ptr(), held.shape, held.stride()) != (cos.data_ptr(), cos.shape, cos.stride()):
            self._tables = cos, (split.gathered(cos, 0), split.gathered(tables[1], 0))  # held, so that its memory is not used again
        assert self._tables is not None
        return self._tables[1]

    def forget_tables(self) -> None:
        self._tables = None

    def visible_text(self, mask: Tensor, text_tokens: int) -> list[slice | Tensor]:
        """For each sample the text tokens that `mask` [B, 1, 1, N + L] or [B, L] shows, among the last `text_tokens` of its keys.

        Read from the device once a model call, all of whose layers have the same mask.
        """
        if self._text[0] is not mask:
            shown = [row.nonzero().flatten() for row in mask.flatten(1)[:, -text_tokens:].cpu()]
            first = [tokens.equal(torch.arange(len(tokens))) for tokens in shown]  # as all of diffusers' are
            self._text = (mask, [slice(len(tokens)) if is_first else tokens.to(mask.device)
                                 for tokens, is_first in zip(shown, first, strict=True)])  # fmt: skip
        return self._text[1]
