"""Attention processors that run programs on diffusers' modules, and one call of one layer as the executor sees it.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor

from longgen.attention import executor
from longgen.attention.lse_kernels import AttentionWithLSE, attention_with_lse
from longgen.attention.observer import AttentionInputs, Observer
from longgen.attention.rotary import Rotary, Tables, Times
from longgen.attention.ulysses import Ulysses
from longgen.device_tables import on_device
from longgen.pipelines.step_state import ClipBatch, StepState
from longgen.program import Program
from longgen.technique import Grid

Tensors = tuple[Tensor, Tensor, Tensor]  # q, k and v


def dispatch(q: Tensor, k: Tensor, v: Tensor, backend: Any, mask: Tensor | None = None) -> Tensor:
    """diffusers' attention of q [B, Nq, H, D] over k, v [B, Nk, H, D]. mask [Nq, Nk]: bool, or what is added to the logits."""
    if mask is not None:
        backend, mask = AttentionBackendName.NATIVE, mask[None, None]  # most others refuse masks; [Nq, Nk] would mean [B, Nk]
    return dispatch_attention_fn(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False, backend=backend)


def project(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [B, N, C] of `x`, before their norms."""
    return attn.to_qkv(x).chunk(3, dim=-1) if attn.fused_projections else (attn.to_q(x), attn.to_k(x), attn.to_v(x))


@dataclass
class LayerCall:
    """One call of one layer: the `AttentionContext` of a diffusers model.

    text: keys and values [B, L, H, D] that every query sees. layer: identifies the layer. clips: the clips of the model's call, of
    which this one's samples begin at `first`. room: as in `AttentionContext`.
    """

    grid: Grid
    features: Tensor
    rotary: Rotary | None
    stock: Tables | None
    backend: Any
    text: tuple[Tensor, Tensor] | None = None
    layer: int = 0
    clips: ClipBatch | None = None
    first: int = 0
    observer: Observer | None = None
    room: float = 0.0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.text is not None:
            k, v = (torch.cat([x, text], dim=1) for x, text in zip((k, v), self.text, strict=True))
            if mask is not None:
                shape = (len(mask), self.text[0].shape[1])
                mask = torch.cat([mask, mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)], dim=1)
        return dispatch(q, k, v, self.backend, mask)

    def rotate(self, x: Tensor, positions: Times | None, scale: np.ndarray | None) -> Tensor:
        if self.rotary is None or self.stock is None:
            return x
        if positions is None and scale is None:
            return self.rotary.rotate(x, self.stock)
        times = np.arange(self.grid[0], dtype=np.float64) if positions is None else positions
        return self.rotary.rotate_to(x, self.stock, times, scale)

    def rotate_time(self, x: Tensor, unrotated: Tensor, frames: Times, times: Times, scale: np.ndarray | None) -> None:
        if self.rotary is not None:
            x, unrotated = (tensor.unflatten(1, (-1, self.grid[1] * self.grid[2])) for tensor in (x, unrotated))
            self.rotary.rotate_time(x, unrotated, frames, times, scale)

    def attention_with_lse(self, q: Tensor, masked: bool = False) -> AttentionWithLSE | None:
        backend = self.backend or _AttentionBackendRegistry.get_active_backend()[0]
        return attention_with_lse(q.device, q.dtype, q.shape[3], masked) if backend == AttentionBackendName.NATIVE else None

    def observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if self.observer is not None:
            shape = (self.grid[0], self.grid[0])
            rotate = lambda x, times: self.rotate(x, times, None)  # noqa: E731
            self.observer(AttentionInputs(self.layer, shape, q, k, v, rotate, self.attend, self.text))

    def anchored(self, k: Tensor, v: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        if self.clips is None:
            return k, v
        mixed_k, mixed_v = [], []
        for sample_k, sample_v, (clip, anchor, sample) in zip(k, v, self.clips.rows[self.first :], strict=False):
            key = (self.layer, anchor, sample)
            if clip == anchor:  # it comes before the clips that borrow from it
                self.clips.anchor_kv[key] = sample_k.clone(), sample_v.clone()  # views would keep the whole batch
                mixed_k.append(sample_k)
                mixed_v.append(sample_v)
            else:
                anchor_k, anchor_v = self.clips.anchor_kv[key]
                mixed_k.append(sample_k.lerp(anchor_k, weight))
                mixed_v.append(sample_v.lerp(anchor_v, weight))
        return torch.stack(mixed_k), torch.stack(mixed_v)

    def sample(self, index: int) -> LayerCall:
        rows = slice(index, index + 1)
        return replace(self, features=self.features[rows], text=self.text and (self.text[0][rows], self.text[1][rows]))


class PlannedAttention:
    """Self-attention processor that runs the program of the current step. One object serves all layers with the same programs.

    What depends on step, layer or program is excluded from `torch.compile`: it would make a graph for each, and soon give up.
    whole_tables: where ranks share the tokens, each is handed the rotary tables of all, and not those of its own.
    """

    whole_tables: ClassVar[bool] = False

    def __init__(
        self,
        programs: Sequence[Program | None],
        grid: Grid,
        step_state: StepState,
        rotary: Rotary | None,
        stock: Any,
        backend: Any,
        room: float = 0.0,
    ):
        self.programs, self.grid, self.step_state, self.rotary, self.stock = programs, grid, step_state, rotary, stock
        self.room = room
        self._rotary_of_heads: Rotary | None = None  # of this rank's; kept, since it keeps tables
        self._attention_backend = getattr(stock, "_attention_backend", None) or backend  # diffusers sets these two by name
        self._parallel_config = getattr(stock, "_parallel_config", None)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """As diffusers calls a processor of self-attention, which passes arguments by these names."""
        if self.idle():
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

    @abstractmethod
    def attend(self, attn: Any, x: Tensor, text: Any, mask: Tensor | None, rotary: Any) -> Any:
        """What the module `attn` computes, by the program of this step. rotary: cos and sin as the transformer hands them over."""

    @torch.compiler.disable
    def idle(self) -> bool:
        """Whether the layer runs the backbone's own attention in this step."""
        return self.programs[self.step_state.index] is None

    @torch.compiler.disable
    def run(self, layer: Any, features: Tensor, tables: Tables | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output [B, N, H * D] of the module `layer` for q, k, v [B, N, H, D]. tables: the stock cos and sin [N, P] or None.

        With several ranks all of these are of this rank's tokens.
        """
        call = self.call(layer, features, tables)
        if self.split is not None:
            return self._run_split(self.split, call, q, k, v)
        call.stock = call.stock and self.tables_of(self._program, call.stock)
        return executor.run(self._program, call, q, k, v, self.step_state.step)

    def tables_of(self, program: Program, stock: Tables) -> Tables:
        """The tables [N, P] that `program` starts from, of all tokens, where the model has `stock`."""
        return stock

    def _run_split(self, split: Ulysses, call: LayerCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`run` on all tokens of this rank's heads."""
        program = self._program
        if any(branch.key_frames is not None for branch in program.branches.values()):
            call.features = split.gathered(call.features, 1)
        if call.stock is not None:
            whole = call.stock if self.whole_tables else self.step_state.all_tables(split, call.stock)
            call.stock = self.tables_of(program, whole)
            if self.rotary is not None and call.stock[0].shape[1] > q.shape[3] // 2:  # tables of all heads
                columns = split.own(call.stock[0].shape[1])
                call.stock = call.stock[0][:, columns], call.stock[1][:, columns]
                call.rotary = self._rotary_of_heads = self._rotary_of_heads or self.rotary.part(columns)
        q, k, v = (split.to_heads(x) for x in (q, k, v))
        all_heads = functools.partial(split.gathered, dim=2)
        output = executor.run(program, call, q, k, v, self.step_state.step, all_heads)
        if program.fusion is not None:
            return output[:, split.own(output.shape[1])]
        return split.to_tokens(output.unflatten(2, q.shape[2:])).flatten(2)

    @torch.compiler.disable
    def run_joint(
        self, layer: Any, features: Tensor, tables: Tables | None, qkv: Tensors, text: Tensors, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """`run` where `text`, q, k and v [B, L, H, D], takes part in self-attention; its output [B, L, H * D] comes second.

        first: the number of the first sample among those of the model's call.
        """
        (q, k, v), (text_q, text_k, text_v) = qkv, text
        call = self.call(layer, features, tables, (text_k, text_v), first)
        video = executor.run(self._program, call, q, k, v, self.step_state.step)
        return video, executor.run_text(self._program, call, text_q, k, v)

    @functools.cached_property
    def split(self) -> Ulysses | None:
        """The ranks that split the heads; None where one process has them all."""
        return Ulysses.of(self._parallel_config)

    @property
    def _program(self) -> Program:
        program = self.programs[self.step_state.index]
        assert program is not None
        return program

    def call(
        self, layer: Any, features: Tensor, tables: Tables | None, text: tuple[Tensor, Tensor] | None = None, first: int = 0
    ) -> LayerCall:
        """This call of the module `layer` for the executor. tables: the stock cos and sin [N, P] or None."""
        state = self.step_state
        return LayerCall(
            self.grid, features, self.rotary, tables, self._attention_backend,
            text, id(layer), state.clips, first, state.observer, self.room,
        )  # fmt: skip


class ScheduledCrossAttention:
    """Cross-attention processor of a prompt schedule: each frame attends to the texts of its shots, by its shares of them.

    text_tokens: L of each text. split: the ranks that share the tokens, if there are several. What stands before the texts, as Wan
    I2V's I tokens of pictures, is seen with each of them.
    """

    def __init__(self, step_state: StepState, stock: Any, text_tokens: int, split: Ulysses | None = None) -> None:
        self.step_state, self.stock, self.text_tokens, self.split = step_state, stock, text_tokens, split
        self._attention_backend = getattr(stock, "_attention_backend", None)  # diffusers sets these two by name
        self._parallel_config = getattr(stock, "_parallel_config", None)

    @torch.compiler.disable  # which frames read which text changes with the clip
    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None, rotary: Any
    ) -> Tensor:
        """hidden_states [B, N, C], encoder_hidden_states [B, I + S L, C], attention_mask [B, 1, S L] or None."""
        shares = self.step_state.shares
        if shares is None or len(shares) == 1:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        of_token = None if self.split is None else self._frames_of_tokens(self.split, hidden_states.shape[1], shares.shape[1])
        units = hidden_states.unflatten(1, (shares.shape[1], -1)) if of_token is None else hidden_states.unsqueeze(2)
        before = encoder_hidden_states.shape[1] - len(shares) * self.text_tokens
        pictures, all_texts = encoder_hidden_states.split((before, len(shares) * self.text_tokens), dim=1)
        texts = all_texts.chunk(len(shares), dim=1)
        masks = [None] * len(shares) if attention_mask is None else attention_mask.chunk(len(shares), dim=-1)
        output = torch.zeros_like(units)
        for share, text, mask in zip(shares if of_token is None else shares[:, of_token], texts, masks, strict=True):
            if count := np.count_nonzero(share):
                seen = on_device(np.flatnonzero(share), units.device)
                context = torch.cat([pictures, text], dim=1) if before else text
                part = self.stock(attn, units[:, seen].flatten(1, 2), context, mask, rotary).unflatten(1, (count, -1))
                output[:, seen] += on_device(share[share != 0], part.device, part.dtype).view(-1, 1, 1) * part
        return output.flatten(1, 2)

    @staticmethod
    def _frames_of_tokens(split: Ulysses, tokens: int, frames: int) -> np.ndarray:
        """The frame of each of this rank's tokens, which need not be whole frames."""
        return (split.rank * tokens + np.arange(tokens)) // (split.size * tokens // frames)
