"""Runs a program: the attention outputs of its branches' frame plans, and their fusion.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim. Tokens are
frame-major: the tokens of a latent frame are n neighbours, in raster order. q, k, v come before rotary embedding, as
[B, N, H, D].

For any table the result equals one softmax over [N, N] whose logits between frames i and j are rotated to rel[i, j], changed by the
pass's columns and masked by visible[i, j] and the bands; tests hold that slow form. Where the attention backend returns the
log-sum-exp, and that is cheaper, passes are merged from parts (`partition`, `lse_merge`) and bands are computed apart (`banded`);
else one pass runs after the other (`lowering`, `sequential`). On a CPU a pass at p[i] - p[j] without columns always runs the second
way, full attention as the stock call. An accelerator takes a single pass in calls of many blocks each (`batched`, `streaming`),
where that is cheaper, and a CPU one in which most of what a frame sees are scattered frames that all see.

Text inside self-attention (CogVideoX, HunyuanVideo) is seen by every query frame, from the time rel[i, 0] - rel[0, 0] [derived].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longgen.attention.band_batches import add_bands
from longgen.attention.band_batches import split as split_in_batches
from longgen.attention.banded import attend_bands, split
from longgen.attention.batched import lower_batched
from longgen.attention.context import AttentionContext, LayerInputs
from longgen.attention.lowering import ranges_of
from longgen.attention.lse_merge import PlanMerge
from longgen.attention.partition import partition, sequential_cost
from longgen.attention.sequential import RotatedQK, call_list, frames_of, run_passes, unless_native
from longgen.attention.streaming import attend_batched
from longgen.attention.tile_merge import TileMerge
from longgen.attention.tiling import tile
from longgen.device_costs import costs_on
from longgen.frameplan import FramePlan, Pass
from longgen.program import Program
from longgen.technique import Step

AllHeads = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    """One process has all heads."""
    return x


def run(
    program: Program, ctx: AttentionContext, q: Tensor, k: Tensor, v: Tensor, step: Step, all_heads: AllHeads | None = None
) -> Tensor:
    """The attention output [B, N, H * D] of one layer in one step.

    all_heads: where q, k and v are of this rank's heads alone, [B, N, these * D] -> those of all ranks, which a fusion needs.
    """
    ctx.observe(q, k, v)
    anchor = next(iter(program.branches.values())).anchor
    if anchor:
        k, v = ctx.anchored(k, v, anchor)

    if program.fusion is None:
        (plan,) = program.branches.values()
        return run_plan(plan, LayerInputs(ctx, q, k, v)).flatten(2)
    inputs = LayerInputs(SharedRotation(ctx, q, k), q, k, v)
    return program.fusion.fuse(Branches(program, inputs, all_heads or _same), step, ctx.grid)


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
    inputs: LayerInputs
    all_heads: AllHeads = _same

    def __call__(self, branch: str) -> Tensor:
        return self.all_heads(run_plan(self.program.branches[branch], self.inputs).flatten(2))

    def apart(self, branch: str, groups: int) -> Iterator[tuple[int, Tensor]]:
        plan = self.program.branches[branch]
        merge = tiles_if_cheaper(plan, self.inputs, groups) or (
            merge_if_cheaper(plan, self.inputs) if plan.key_frames is None else None
        )
        if merge is not None:
            yield from ((group, self.all_heads(output.flatten(2))) for group, output in merge.groups(groups, self.inputs))
            return
        size, tokens = len(plan.passes) // groups, self.inputs.q.shape[1] // plan.frames_lat
        rotated: RotatedQK = {}
        for group in range(groups):
            part = replace(plan, passes=plan.passes[group * size : (group + 1) * size])
            computed = np.any([pass_.weight > 0 for pass_ in part.passes], axis=0)
            output = run_plan(part, self.inputs) if plan.key_frames else run_passes(part, self.inputs, rotated)
            own = frames_of(output, ranges_of(computed), tokens).flatten(2)
            yield group, self.all_heads(own.clone())  # and not a view, which keeps all


def run_text(program: Program, ctx: AttentionContext, text_q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The text's own attention output [B, L, H * D]: over the text and every frame, at the first branch's positions."""
    plan = next(iter(program.branches.values()))
    positions = plan.passes[0].rel[:, 0] - plan.passes[0].rel[0, 0]
    k = ctx.rotate(k, unless_native(positions), plan.frequency_scale)
    return ctx.attend(text_q, k, v).flatten(2)


def run_plan(plan: FramePlan, inputs: LayerInputs) -> Tensor:
    """The weighted mean [B, N, H, D] of the plan's passes; zero for frames that no pass computes."""
    if (batched := _batched(plan, inputs)) is not None:
        return batched
    if (tiles := tiles_if_cheaper(plan, inputs)) is not None:
        return tiles.mean(inputs)
    if plan.key_frames is not None:
        return _with_key_frames(plan, inputs)
    merge = merge_if_cheaper(plan, inputs)
    if merge is not None:
        return merge.mean(inputs)
    banded = _banded(plan, inputs)
    return run_passes(plan, inputs) if banded is None else banded


def tiles_if_cheaper(plan: FramePlan, inputs: LayerInputs, groups: int = 1) -> TileMerge | None:
    """What merges several passes, or groups of them, on an accelerator, where that is cheaper than one after the other."""
    costs, kernel = costs_on(inputs.q.device.type), inputs.ctx.attention_with_lse(inputs.q)
    if not costs.batched or kernel is None or len(plan.passes) == 1 or plan.computed_apart:
        return None
    tokens, text_tokens = inputs.q.shape[1] // plan.frames_lat, inputs.text_tokens
    chosen = 0 if plan.key_frames is None else plan.key_frames.count(plan.frames_lat)
    tiling = tile(plan.passes, tokens, costs, chosen, text_tokens, groups)
    if tiling is None:
        return None
    calls = [call_list(pass_, text_tokens > 0) for pass_ in plan.passes]  # which would wait to know the key frames
    cheaper = chosen > 0 or tiling.cost < sequential_cost(calls, tokens, text_tokens, costs)
    return TileMerge(plan, tiling, kernel) if cheaper else None


def merge_if_cheaper(plan: FramePlan, inputs: LayerInputs) -> PlanMerge | None:
    """What merges the plan's passes on the CPU, where that is cheaper than one after the other; tiles do it on accelerators."""
    kernel = inputs.ctx.attention_with_lse(inputs.q)
    if costs_on(inputs.q.device.type).batched or kernel is None or plan.computed_apart:
        return None
    if len(plan.passes) == 1 and plan.passes[0].logits is None and not call_list(plan.passes[0], False).rotates_keys:
        return None
    tokens, text_tokens = inputs.q.shape[1] // plan.frames_lat, inputs.text_tokens
    parts = partition(plan.passes, tokens, plan.key_frames is not None, text_tokens)
    calls = [call_list(pass_, text_tokens > 0) for pass_ in plan.passes]
    cheaper = parts.cost(tokens, text_tokens) < sequential_cost(calls, tokens, text_tokens)
    return PlanMerge(plan, parts, kernel) if cheaper else None


def _batched(plan: FramePlan, inputs: LayerInputs) -> Tensor | None:
    """`run_plan` of one pass in few calls, on a CPU where all see most key frames; None where that cannot be or does not pay."""
    costs, kernel = costs_on(inputs.q.device.type), inputs.ctx.attention_with_lse(inputs.q)
    pass_, text_tokens, tokens = plan.passes[0], inputs.text_tokens, inputs.q.shape[1] // plan.frames_lat
    if kernel is None or len(plan.passes) > 1 or plan.by_sign:
        return None
    if not costs.batched:
        lowered = lower_batched(pass_, text_tokens > 0) if plan.key_frames is None and seen_by_all(pass_) else None
        return None if lowered is None or lowered.order is None else attend_batched(plan, lowered, inputs, kernel)
    if pass_.band is not None:
        masked_kernel = inputs.ctx.attention_with_lse(inputs.q, masked=True)
        if masked_kernel is None or plan.key_frames is not None:
            return None
        whole, bands = split_in_batches(pass_)
        add = functools.partial(add_bands, bands=bands, plan=plan, inputs=inputs, kernel=masked_kernel, call=costs.call)
        return attend_batched(plan, lower_batched(whole, text_tokens > 0), inputs, kernel, add)
    lowered = lower_batched(pass_, text_tokens > 0, plan.key_frames is not None)
    if plan.key_frames is None:
        calls = [call_list(pass_, text_tokens > 0)]
        if lowered.cost(costs, tokens, text_tokens) >= sequential_cost(calls, tokens, text_tokens, costs):
            return None
    return attend_batched(plan, lowered, inputs, kernel)


@functools.lru_cache(maxsize=256)
def seen_by_all(pass_: Pass) -> bool:
    """Whether most key frames that a query frame sees are scattered ones that all see: one call then reads them once for all.

    A sink, and where the windows of a short clip overlap, are not scattered.
    """
    by_all = np.all(pass_.visible, axis=0)
    return pass_.band is None and len(ranges_of(by_all)) > 2 and bool(2 * by_all.sum() >= pass_.visible.sum(axis=1).mean())


def _banded(plan: FramePlan, inputs: LayerInputs) -> Tensor | None:
    """`run_plan` of one pass with bands, computed apart from what is seen whole; None where that cannot be."""
    if len(plan.passes) > 1 or plan.passes[0].band is None or plan.by_sign:
        return None
    kernel, masked_kernel = (inputs.ctx.attention_with_lse(inputs.q, masked) for masked in (False, True))
    if kernel is None or masked_kernel is None or (parts := split(plan.passes[0])) is None:
        return None
    whole, tokens = replace(plan, passes=parts[:1]), inputs.q.shape[1] // plan.frames_lat
    merge = PlanMerge(whole, partition(whole.passes, tokens, text_tokens=inputs.text_tokens), kernel)
    return merge.mean(inputs, band=attend_bands(parts[1], plan, inputs, masked_kernel))


def _with_key_frames(plan: FramePlan, inputs: LayerInputs) -> Tensor:
    """`run_plan` for each sample with the key frames that its own features choose."""
    assert plan.key_frames is not None
    outputs, merge = [], merge_if_cheaper(plan, inputs)
    for index, (q, k, v) in enumerate(zip(*(x.split(1) for x in (inputs.q, inputs.k, inputs.v)), strict=True)):
        sample = LayerInputs(inputs.ctx.sample(index), q, k, v)
        chosen = np.zeros(plan.frames_lat, dtype=bool)
        chosen[plan.key_frames.choose(inputs.ctx.features[index].unflatten(0, (plan.frames_lat, -1))).tolist()] = True
        if merge is not None:
            outputs.append(merge.mean(sample, chosen))
        else:
            visible = np.broadcast_to(chosen, (len(chosen), len(chosen)))
            outputs.append(run_passes(replace(plan, key_frames=None).see_also(visible), sample))
    return torch.cat(outputs)
