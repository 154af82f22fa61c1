"""Ulysses: between layers a rank holds some of the tokens, and inside attention all tokens of some of the heads.

An all-to-all of q, k and v [B, N / P, H, D] gives each of P ranks [B, N, H / P, D]; another one takes the output back. So a frame
plan runs on whole frames and on fewer heads, as it is. What spans heads, as fusions do, gathers those of all ranks.

Each rank sends (P - 1) / P of what it holds: of q, k, v and the output 4 B (N / P) H D numbers; where heads are gathered, a
branch's output B N (H / P) D goes whole to the P - 1 others.

Legend: P ranks, B batch, N tokens of the video, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

_own: list[Any] = []  # the parallel configs of diffusers that longgen made


def adopt(config: Any) -> None:
    """`config`, diffusers' of a transformer, is one that longgen drives."""
    _own.append(config)


def forget(config: Any) -> None:
    """`config` is used no more."""
    _own[:] = [own for own in _own if own is not config]


def is_own(config: Any) -> bool:
    """Whether longgen made `config`; another one is somebody's who expects diffusers' own processors."""
    return any(config is own for own in _own)


@dataclass(frozen=True, eq=False)
class Ulysses:
    """The ranks of one group, which split the heads of attention. rank: this one's number among `size`."""

    group: Any
    size: int
    rank: int

    @classmethod
    def of(cls, config: Any) -> Ulysses | None:
        """The ranks of diffusers' `ParallelConfig`, which its attention processors carry; None without one."""
        if config is None:
            return None
        mesh = config.context_parallel_config._ulysses_mesh
        return cls(mesh.get_group(), mesh.size(), mesh.get_local_rank())

    def to_heads(self, x: Tensor) -> Tensor:
        """[B, N / P, H, D] of this rank's tokens as [B, N, H / P, D] of its heads."""
        batch, tokens, heads, dim = x.shape
        sent = x.view(batch, tokens, self.size, heads // self.size, dim).permute(2, 1, 0, 3, 4).contiguous()
        return self._all_to_all(sent).flatten(0, 1).permute(1, 0, 2, 3).contiguous()

    def to_tokens(self, x: Tensor) -> Tensor:
        """[B, N, H / P, D] of this rank's heads as [B, N / P, H, D] of its tokens."""
        batch, tokens, heads, dim = x.shape
        sent = x.view(batch, self.size, tokens // self.size, heads, dim).permute(1, 3, 0, 2, 4).contiguous()
        return self._all_to_all(sent).flatten(0, 1).permute(1, 2, 0, 3).contiguous()

    def gathered(self, x: Tensor, dim: int) -> Tensor:
        """The parts `x` of all ranks, one after the other along `dim`."""
        parts = x.new_empty((self.size, *x.shape))
        distributed.all_gather([*parts], x.contiguous(), group=self.group)
        return parts.movedim(0, dim).flatten(dim, dim + 1)

    def of_the_first(self, x: Tensor) -> Tensor:
        """The first rank's `x`, which is of one shape on all of them."""
        received = x.contiguous()
        distributed.broadcast(received, group_src=0, group=self.group)
        return received

    def own(self, count: int) -> slice:
        """This rank's part of `count` tokens, heads or columns."""
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def _all_to_all(self, x: Tensor) -> Tensor:
        received = torch.empty_like(x)
        distributed.all_to_all_single(received, x, group=self.group)
        return received
