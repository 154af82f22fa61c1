"""Runs a program: the attention outputs of its branches' frame plans, and their fusion.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim. Tokens are
frame-major: the tokens of a latent frame are n neighbours, in raster order. q, k, v come before rotary embedding, as
[B, N, H, D].

For any table the result equals one softmax over [N, N] whose logits between frames i and j are rotated to rel[i, j], changed by the
pass's columns and masked by visible[i, j] and the bands; tests hold that slow form. Where the attention backend returns the
log-sum-exp, and that is cheaper, passes are merged from parts (`partition`, `lse_merge`) and bands are computed apart (`banded`);
else one pass runs after the other (`lowering`, `sequential`). A pass at p[i] - p[j] without columns always runs the second way,
full attention as the stock call.

Text inside self-attention (CogVideoX, HunyuanVideo) is seen by every query frame, from the time rel[i, 0] - rel[0, 0] [derived].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longgen.attention.banded import attend_bands, split
from longgen.attention.context import AttentionContext
from longgen.attention.lse_merge import PlanMerge
from longgen.attention.partition import partition, sequential_cost
from longgen.attention.sequential import RotatedQK, call_list, run_passes, unless_native
from longgen.frameplan import FramePlan
from longgen.program import Program
from longgen.technique import Step


def run(program: Program, ctx: AttentionContext, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    """The attention output [B, N, H * D] of one layer in one step."""
    ctx.observe(q, k, v)
    anchor = next(iter(program.branches.values())).anchor
    if anchor:
        k, v = ctx.anchored(k, v, anchor)

    if program.fusion is None:
        (branch,) = program.branches
        return Branches(program, ctx, q, k, v)(branch)
    return program.fusion.fuse(Branches(program, SharedRotation(ctx, q, k), q, k, v), step, ctx.grid)


class SharedRotation:
    """`ctx` for several branches: q and k are rotated to the backbone's own times once for all of them."""

    def __init__(self, ctx: AttentionContext, q: Tensor, k: Tensor) -> None:
        self.ctx, self.inputs, self.rotated = ctx, (q, k), dict[int, Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ctx, name)

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        which = next((index for index, tensor in enumerate(self.inputs) if x is tensor), None)
        if which is None or positions is not None or scale is not None:
            return self.ctx.rotate(x, positions, scale)
        if which not in self.rotated:
            self.rotated[which] = self.ctx.rotate(x, None, None)
        return self.rotated[which]


@dataclass
class Branches:
    """The attention outputs of a program's branches, computed on demand (`longgen.technique.Attend`)."""

    program: Program
    ctx: AttentionContext
    q: Tensor
    k: Tensor
    v: Tensor

    def __call__(self, branch: str) -> Tensor:
        return run_plan(self.program.branches[branch], self.ctx, self.q, self.k, self.v).flatten(2)

    def apart(self, branch: str, groups: int) -> Iterator[tuple[int, Tensor]]:
        plan, qkv = self.program.branches[branch], (self.q, self.k, self.v)
        merge = merge_if_cheaper(plan, self.ctx, self.q) if plan.key_frames is None else None
        if merge is not None:
            yield from ((group, output.flatten(2)) for group, output in merge.groups(groups, self.ctx, *qkv))
            return
        size, tokens = len(plan.passes) // groups, self.q.shape[1] // plan.frames_lat
        rotated: RotatedQK = {}
        for group in range(groups):
            part = replace(plan, passes=plan.passes[group * size : (group + 1) * size])
            frames = np.flatnonzero(np.any([pass_.weight > 0 for pass_ in part.passes], axis=0))
            output = run_plan(part, self.ctx, *qkv) if plan.key_frames else run_passes(part, self.ctx, *qkv, rotated)
            yield group, output.unflatten(1, (-1, tokens))[:, frames].flatten(1, 2).flatten(2)


def run_text(program: Program, ctx: AttentionContext, text_q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The text's own attention output [B, L, H * D]: over the text and every frame, at the first branch's positions."""
    plan = next(iter(program.branches.values()))
    positions = plan.passes[0].rel[:, 0] - plan.passes[0].rel[0, 0]
    k = ctx.rotate(k, unless_native(positions), plan.frequency_scale)
    return ctx.attend(text_q, k, v).flatten(2)


def run_plan(plan: FramePlan, ctx: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes; zero for frames that no pass computes."""
    if plan.key_frames is not None:
        return _with_key_frames(plan, ctx, q, k, v)
    merge = merge_if_cheaper(plan, ctx, q)
    if merge is not None:
        return merge.mean(ctx, q, k, v)
    banded = _banded(plan, ctx, q, k, v)
    return run_passes(plan, ctx, q, k, v) if banded is None else banded


def merge_if_cheaper(plan: FramePlan, ctx: AttentionContext, q: Tensor) -> PlanMerge | None:
    """What merges the plan's passes, where that is cheaper than one after the other."""
    kernel = ctx.attention_with_lse(q)
    if kernel is None or any(pass_.band is not None for pass_ in plan.passes):
        return None
    if len(plan.passes) == 1 and plan.passes[0].logits is None and not call_list(plan.passes[0], False).rotates_keys:
        return None
    tokens, text_tokens = q.shape[1] // plan.frames_lat, 0 if ctx.text is None else ctx.text[0].shape[1]
    parts = partition(plan.passes, tokens, plan.key_frames is not None, text_tokens)
    calls = [call_list(pass_, ctx.text is not None) for pass_ in plan.passes]
    cheaper = parts.cost(tokens, text_tokens) < sequential_cost(calls, tokens, text_tokens)
    return PlanMerge(plan, parts, kernel) if cheaper else None


def _banded(plan: FramePlan, ctx: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """`run_plan` of one pass with bands, computed apart from what is seen whole; None where that cannot be."""
    if len(plan.passes) > 1 or plan.passes[0].band is None:
        return None
    kernel, masked_kernel = ctx.attention_with_lse(q), ctx.attention_with_lse(q, masked=True)
    parts = None if kernel is None or masked_kernel is None else split(plan.passes[0])
    if kernel is None or masked_kernel is None or parts is None:
        return None
    whole, text_tokens = replace(plan, passes=parts[:1]), 0 if ctx.text is None else ctx.text[0].shape[1]
    merge = PlanMerge(whole, partition(whole.passes, q.shape[1] // plan.frames_lat, text_tokens=text_tokens), kernel)
    return merge.mean(ctx, q, k, v, band=attend_bands(parts[1], plan, ctx, masked_kernel, q, k, v))


def _with_key_frames(plan: FramePlan, ctx: AttentionContext, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`run_plan` for each sample with the key frames that its own features choose."""
    assert plan.key_frames is not None
    outputs, merge = [], merge_if_cheaper(plan, ctx, q)
    for index in range(q.shape[0]):
        chosen = np.zeros(plan.frames_lat, dtype=bool)
        chosen[plan.key_frames.choose(ctx.features[index].unflatten(0, (plan.frames_lat, -1)))] = True
        sample, rows = ctx.sample(index), slice(index, index + 1)
        if merge is not None:
            outputs.append(merge.mean(sample, q[rows], k[rows], v[rows], chosen))
        else:
            visible = np.broadcast_to(chosen, (len(chosen), len(chosen)))
            outputs.append(run_passes(replace(plan, key_frames=None).see_also(visible), sample, q[rows], k[rows], v[rows]))
    return torch.cat(outputs)
