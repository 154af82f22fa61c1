"""Runs a program: the attention outputs of its branches' frame plans, and their fusion.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim. Tokens are
frame-major: the tokens of a latent frame are n neighbours, in raster order. q, k, v come before rotary positions, as
[B, N, H, D].

For any table the result equals one softmax over [N, N] whose logits between frames i and j are rotated to rel[i, j] and
masked by visible[i, j] and the stripes; tests hold that slow form. Where the attention backend says how much it summed, and that
is cheaper, passes are merged from parts (`merge`, `parts`) and stripes are done apart (`bands`); else one pass comes after the
other (`passes`, `structure`). A pass at p[i] - p[j] without stripes always goes the second way, the neutral plan as the stock call.

Text inside self-attention (CogVideoX, HunyuanVideo) is seen by every query frame, from the time rel[i, 0] [derived].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from longgen.attention import banded, lse_merge
from longgen.attention.lowering import lower
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.partition import Partition, cost, partition
from longgen.attention.sequential import Kept, run_passes, schedule_of, unless_native
from longgen.frameplan import FramePlan
from longgen.program import Program
from longgen.technique import Grid, Step


class AttentionContext(Protocol):
    """What a backbone family lends the executor for one call of one layer."""

    grid: Grid  # latent frames, rows and columns of tokens
    features: Tensor  # the layer's input [B, N, C], text apart

    @property
    def joint(self) -> bool:
        """Whether `attend` adds text keys."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The backbone's own attention call: q [B, Nq, H, D], k and v [B, Nk, H, D] -> [B, Nq, H, D].

        It adds the text's keys and values, where the family has them. mask [Nq, Nk] is True where a key is seen.
        """
        ...

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        """x [B, T n, H, D] with time positions [T] (None: 0, 1, .. T-1) and in space; `scale` on temporal frequencies."""
        ...

    def rotate_time(self, x: Tensor, still: Tensor, frames: np.ndarray, times: np.ndarray, scale: np.ndarray | None) -> None:
        """In place, the `frames` of x [B, f n, H, D] become those of `still`, rotated in time to `times`."""
        ...

    def attention_with_lse(self, q: Tensor, masked: bool = False) -> AttentionWithLSE | None:
        """Attention like `attend`, of tensors like q, that says how much it summed; None where the backend does not tell.

        masked: one that takes a mask.
        """
        ...

    def observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Shows this call to whoever watches the model, as a probe does."""
        ...

    def anchored(self, k: Tensor, v: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """k and v with `weight` of those of each sample's anchor clip, which was here before; k and v where there is none."""
        ...

    def sample(self, index: int) -> AttentionContext:
        """The same for one sample of the batch."""
        ...


def run(program: Program, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    """The attention output [B, N, H * D] of one layer in one step."""
    family.observe(q, k, v)
    anchor = next(iter(program.branches.values())).anchor
    if anchor:
        k, v = family.anchored(k, v, anchor)

    if program.fusion is None:
        (branch,) = program.branches
        return Branches(program, family, q, k, v)(branch)
    return program.fusion.fuse(Branches(program, TurnedOnce(family, q, k), q, k, v), step, family.grid)


class TurnedOnce:
    """`family` for several branches: q and k are rotated to the backbone's own times once for all of them."""

    def __init__(self, family: AttentionContext, q: Tensor, k: Tensor) -> None:
        self.family, self.own, self.turned = family, (q, k), dict[int, Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        which = next((index for index, own in enumerate(self.own) if x is own), None)
        if which is None or positions is not None or scale is not None:
            return self.family.rotate(x, positions, scale)
        if which not in self.turned:
            self.turned[which] = self.family.rotate(x, None, None)
        return self.turned[which]


@dataclass
class Branches:
    """The attention outputs of a program's branches, computed when they are asked for (`longgen.technique.Attend`)."""

    program: Program
    family: AttentionContext
    q: Tensor
    k: Tensor
    v: Tensor

    def __call__(self, branch: str) -> Tensor:
        return run_plan(self.program.branches[branch], self.family, self.q, self.k, self.v).flatten(2)

    def apart(self, branch: str, groups: int) -> Iterator[tuple[int, Tensor]]:
        plan, qkv = self.program.branches[branch], (self.q, self.k, self.v)
        merging = _merging(plan, self.family, self.q) if plan.key_frames is None else None
        if merging is not None:
            yield from ((group, output.flatten(2)) for group, output in lse_merge.apart(*merging, plan, groups, self.family, *qkv))
            return
        size, tokens, kept = len(plan.passes) // groups, self.q.shape[1] // plan.frames_lat, Kept()
        for group in range(groups):
            one = replace(plan, passes=plan.passes[group * size : (group + 1) * size])
            frames = np.flatnonzero(np.any([part.weight > 0 for part in one.passes], axis=0))
            if plan.key_frames is None:
                output = run_passes(one, [schedule_of(part, self.family.joint) for part in one.passes], self.family, *qkv, kept)
            else:
                output = run_plan(one, self.family, *qkv)
            yield group, output.unflatten(1, (-1, tokens))[:, frames].flatten(1, 2).flatten(2)


def run_text(program: Program, family: AttentionContext, text_q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The text's own attention output [B, L, H * D]: over the text and every frame, at the first branch's positions."""
    plan = next(iter(program.branches.values()))
    positions = plan.passes[0].rel[:, 0] - plan.passes[0].rel[0, 0]
    k = family.rotate(k, unless_native(positions), plan.frequency_scale)
    return family.attend(text_q, k, v).flatten(2)


def run_plan(plan: FramePlan, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes; zero for frames that no pass computes."""
    if plan.key_frames is not None:
        return _with_key_frames(plan, family, q, k, v)
    merging = _merging(plan, family, q)
    if merging is not None:
        return lse_merge.mean(*merging, plan, family, q, k, v)
    striped = _striped(plan, family, q, k, v)
    if striped is not None:
        return striped
    schedules = [schedule_of(one, family.joint) for one in plan.passes]
    return run_passes(plan, schedules, family, q, k, v)


def _merging(plan: FramePlan, family: AttentionContext, q: Tensor) -> tuple[Partition, AttentionWithLSE] | None:
    """What merges the plan's passes, where that is cheaper than one after the other."""
    summing = family.attention_with_lse(q)
    if summing is None or any(one.stripe is not None for one in plan.passes):
        return None
    schedules = [schedule_of(one, False) for one in plan.passes]
    if len(schedules) == 1 and not schedules[0].keyed:
        return None
    tokens = q.shape[1] // plan.frames_lat
    made = partition(plan.passes, tokens, plan.key_frames is not None)
    return (made, summing) if made.cost(tokens) < cost(schedules, tokens) else None


def _striped(plan: FramePlan, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """`run_plan` of one pass with stripes, which are done apart from what is seen whole; None where that cannot be."""
    if len(plan.passes) > 1 or plan.passes[0].stripe is None:
        return None
    summing, masked = family.attention_with_lse(q), family.attention_with_lse(q, masked=True)
    if summing is None or masked is None:
        return None
    parts = banded.split(plan.passes[0])
    if parts is None:
        return None
    plan = replace(plan, passes=parts[:1])
    made = partition(plan.passes, q.shape[1] // plan.frames_lat)
    return lse_merge.mean(made, summing, plan, family, q, k, v, band=banded.banded(parts[1], plan, family, masked, q, k, v))


def _with_key_frames(plan: FramePlan, family: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`run_plan` for each sample with the key frames that its own features choose."""
    assert plan.key_frames is not None
    outputs, merging = [], _merging(plan, family, q)
    for index in range(q.shape[0]):
        seen = np.zeros(plan.frames_lat, dtype=bool)
        seen[plan.key_frames.choose(family.features[index].unflatten(0, (plan.frames_lat, -1)))] = True
        if merging is not None:
            one = slice(index, index + 1)
            outputs.append(lse_merge.mean(*merging, plan, family.sample(index), q[one], k[one], v[one], seen))
            continue
        chosen = replace(plan, key_frames=None).see_also(np.broadcast_to(seen, (len(seen), len(seen))))
        schedules = [lower(one, family.joint) for one in chosen.passes]
        outputs.append(run_passes(chosen, schedules, family.sample(index), *(x[index : index + 1] for x in (q, k, v))))
    return torch.cat(outputs)
