"""Runs the block calls of a pass on an accelerator and merges their outputs as they come, by their log-sum-exp.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, S key frames chosen at run time.

The mean so far and its lse take in the output and lse of one more call:

    share = sigmoid(lse_call - lse)   mean = mean - share mean + share output   lse = log(exp lse + exp lse_call)

exact in real arithmetic, and stable. Samples count as heads ([N, B H, D]), so that one call has the blocks of all samples. Nothing
is read from the device. Beside q, k and v there are one rotated q and k at a time, the mean in single precision, and one output.

Key frames chosen at run time: a call for each of the S, of all query frames, whose lse is -inf in the frames that see it anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from longgen.attention.batched import BatchedPass, BlockCall
from longgen.attention.context import LayerInputs
from longgen.attention.lse_kernels import AttentionWithLSE
from longgen.attention.sequential import windows_of
from longgen.device_tables import double_on, on_device
from longgen.frameplan import FramePlan


class StreamingMean:
    """output [N, B H, D] and lse [N, B H] of what has come, in single precision or better; 0 and -inf where nothing has."""

    def __init__(self, like: Tensor) -> None:
        precise = torch.promote_types(like.dtype, torch.float32)
        self.output = torch.zeros(like.shape, dtype=precise, device=like.device)
        self.lse = self.output.new_full(like.shape[:2], -torch.inf)

    def add(self, call: BlockCall, tokens: int, output: Tensor, lse: Tensor) -> None:
        """output [count, f n, B H, D] and lse [count, B H, f n] of the query frames of `call`."""
        mean, mean_lse = (blocks_of(x, call.query, call.queries, call.step, call, tokens) for x in (self.output, self.lse))
        lse = lse.transpose(1, 2)
        if call.fresh:
            mean.copy_(output)
            mean_lse.copy_(lse)
            return
        merge(mean, mean_lse, output, lse)


def merge(mean: Tensor, mean_lse: Tensor, output: Tensor, lse: Tensor) -> None:
    """In place, merges `output` [.., D] and `lse` [..] of more keys into the mean so far."""
    share = (lse - mean_lse).sigmoid_()[..., None]
    mean.addcmul_(mean, share, value=-1).addcmul_(output, share)
    torch.logaddexp(mean_lse, lse, out=mean_lse)


def blocks_of(x: Tensor, first: int, frames: int, step: int, call: BlockCall, tokens: int) -> Tensor:
    """The blocks of `call` of x [N, ...]: `frames` frames from `first` and each `step` later, as a view [count, frames n, ...]."""
    return windows_of(x, first * tokens, frames * tokens, call.count, step * tokens)


def attend_batched(
    plan: FramePlan,
    lowered: BatchedPass,
    inputs: LayerInputs,
    kernel: AttentionWithLSE,
    more: Callable[[StreamingMean], None] | None = None,
) -> Tensor:
    """The output [B, N, H, D] of `plan`, which has one pass, `lowered`. more: adds what its query frames see besides."""
    mean = _mean(plan, lowered, inputs, kernel)
    if more is not None:
        more(mean)
    weight, output = plan.passes[0].weight, torch.empty_like(inputs.v, memory_format=torch.contiguous_format)
    if (weight != 1).any():
        mean.output.unflatten(0, (len(weight), -1)).mul_(on_device(weight, output.device, mean.output.dtype)[:, None, None, None])
    return output.copy_(mean.output.unflatten(1, inputs.v.shape[::2]).transpose(0, 1))


def _mean(plan: FramePlan, lowered: BatchedPass, inputs: LayerInputs, kernel: AttentionWithLSE) -> StreamingMean:
    """Of what `lowered` computes; all else is freed on return."""
    rotated, v = _Rotated(plan, lowered, inputs), samples_as_heads(inputs.v)
    mean, tokens = StreamingMean(v), len(v) // plan.frames_lat
    v = rotated.in_order(v)
    for group in lowered.groups:
        q, addend = rotated.queries(group.times, group.logits[0]), group.logits[1]
        k = None if group.table is None else rotated.keys(lowered.tables[group.table])
        for call in group.calls:
            queries = blocks_of(q, call.query, call.queries, call.step, call, tokens)
            if k is None:
                assert inputs.ctx.text is not None
                keys, values = (samples_as_heads(x)[None] for x in inputs.ctx.text)
            else:
                keys, values = (blocks_of(x, call.key, call.keys, call.key_step, call, tokens) for x in (k, v))
            output, lse = kernel(queries, keys, values)
            mean.add(call, tokens, output, lse + addend if addend else lse)
            del output, lse  # before the next call's
    if lowered.chosen is not None:
        _add_chosen(mean, lowered, rotated, v, kernel)
    return mean


def samples_as_heads(x: Tensor) -> Tensor:
    """x [B, N, H, D] as [N, B H, D]; a view of one sample."""
    return x.transpose(0, 1).flatten(1, 2)


class _Rotated:
    """q and k [N, B H, D] of a layer at the times they were last asked for."""

    def __init__(self, plan: FramePlan, lowered: BatchedPass, inputs: LayerInputs) -> None:
        self.plan, self.native, self.order, self.inputs = plan, lowered.native, lowered.order, inputs
        self.q: tuple[tuple[bytes, float], Tensor] | None = None
        self.k: tuple[bytes, Tensor] | None = None

    def queries(self, times: np.ndarray, factor: float) -> Tensor:
        """Queries at `times` [T], with `factor` on their logits."""
        key = times.tobytes(), factor
        if self.q is None or self.q[0] != key:
            self.q = None
            self.q = key, self._scaled(samples_as_heads(self._at(self.inputs.q, times)), factor)
        return self.q[1]

    def queries_at(self, times: list[Tensor]) -> Tensor:
        """Queries of each sample at its own `times` [T], which the device alone knows."""
        self.q = None
        samples = zip(self.inputs.q.split(1), times, strict=True)
        rotated = [self.inputs.ctx.rotate(q, at, self.plan.frequency_scale) for q, at in samples]
        return self._scaled(samples_as_heads(rotated[0] if len(rotated) == 1 else torch.cat(rotated)), 1.0)

    def keys(self, times: np.ndarray) -> Tensor:
        key = times.tobytes()
        if self.k is None or self.k[0] != key:
            self.k = None
            self.k = key, self.in_order(samples_as_heads(self._at(self.inputs.k, times)))
        return self.k[1]

    def in_order(self, x: Tensor) -> Tensor:
        """Keys or values [N, B H, D] in the order in which calls count key frames."""
        if self.order is None:
            return x
        return x.unflatten(0, (len(self.order), -1)).index_select(0, on_device(self.order, x.device)).flatten(0, 1)

    def _at(self, x: Tensor, times: np.ndarray) -> Tensor:
        return self.inputs.ctx.rotate(x, None if self.native else times, self.plan.frequency_scale)

    def _scaled(self, q: Tensor, factor: float) -> Tensor:
        factor *= self.plan.logit_scale
        return q if factor == 1 else q * factor


def _add_chosen(mean: StreamingMean, lowered: BatchedPass, rotated: _Rotated, v: Tensor, kernel: AttentionWithLSE) -> None:
    """Adds the key frames that each sample's features choose: of all samples the first, then of all the second, .."""
    plan, chosen, inputs = rotated.plan, lowered.chosen, rotated.inputs
    assert plan.key_frames is not None
    assert chosen is not None
    frames_lat, batch, device = plan.frames_lat, len(inputs.v), v.device
    features = inputs.ctx.features.unflatten(1, (frames_lat, -1))
    frames = [plan.key_frames.choose(sample) for sample in features]

    def picked(table: np.ndarray, dtype: torch.dtype) -> Tensor:
        """The rows of `table` [T, T] of the chosen frames, [S, B, T]."""
        on = on_device(table, device, dtype)
        return torch.stack([on.index_select(0, sample) for sample in frames], dim=1)

    def of_frames(x: Tensor) -> Tensor:
        """x [N, B H, D] of the chosen frames, [S, n, B H, D]."""
        samples = x.unflatten(0, (frames_lat, -1)).unflatten(2, (batch, -1)).unbind(2)
        return torch.stack([x.index_select(0, sample) for x, sample in zip(samples, frames, strict=True)], dim=2).flatten(2, 3)

    keys, values = (of_frames(x) for x in (rotated.keys(lowered.tables[chosen.table]), v))
    addends = picked(chosen.addend, mean.lse.dtype)
    factors = None if (chosen.factor == 1).all() else picked(chosen.factor, inputs.q.dtype)
    times = picked(chosen.times, double_on(device)) if chosen.times.ndim > 1 else None
    call, tokens = BlockCall(0, frames_lat, 0, 1), len(v) // frames_lat
    for index in range(len(keys)):
        q = rotated.queries(chosen.times, 1.0) if times is None else rotated.queries_at(list(times[index]))
        if factors is not None:
            by_frame = q.unflatten(0, (frames_lat, -1)).unflatten(2, (batch, -1))
            q = (by_frame * factors[index].T[:, None, :, None, None]).flatten(2, 3).flatten(0, 1)
        output, lse = kernel(q[None], keys[index][None], values[index][None])
        by_frame = lse.unflatten(2, (frames_lat, -1)).unflatten(1, (batch, -1)) + addends[index][:, None, :, None]
        mean.add(call, tokens, output, by_frame.flatten(1, 2).flatten(2, 3))
        del q, output, lse, by_frame
