"""Causal Wan: Self-Forcing, LongLive, tiny-causal. A stock WanTransformer3DModel, rolled out chunk by chunk over a cache.

Legend: B batch, c latent frames of a chunk, n tokens per latent frame, H heads, D head dim, C channels.

The state of a rollout lives in the attention processors, since WanTransformer3DModel passes nothing else through to them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor

from longgen.attention.head_groups import HeadGroups
from longgen.attention.kvcache import KVCache
from longgen.attention.rotary import Tables
from longgen.attention.ulysses import Ulysses
from longgen.pipelines import foreign_hooks
from longgen.pipelines.base import Text, Velocities, split_guidance
from longgen.pipelines.processors import dispatch
from longgen.pipelines.step_state import StepState
from longgen.pipelines.wan import Wan, qkv
from longgen.plan import Plan


class CachedAttention:
    """Self-attention processor of one layer: the newest frames attend over the KV cache."""

    def __init__(self, cache: KVCache, layer: int, step_state: StepState, stock: Any, backend: Any) -> None:
        self.cache, self.layer, self.step_state = cache, layer, step_state
        self._attention_backend = getattr(stock, "_attention_backend", None) or backend  # diffusers sets these two by name
        self._parallel_config = getattr(stock, "_parallel_config", None)

    def __call__(
        self, attn: WanAttention, hidden_states: Tensor, text: None, mask: Tensor | None, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        foreign_hooks.check_mask(mask)
        tables, q, k, v = qkv(attn, hidden_states, rotary)
        output = self.run(tables, q, k, v)
        return attn.to_out[1](attn.to_out[0](output.type_as(q)))

    @torch.compiler.disable  # every layer and chunk would be a graph
    def run(self, stock: Tables, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state, split = self.step_state, self.split
        if split is None:
            return self.cache.attend(self.layer, state.index, self.attend, stock, q, k, v, state.observer).flatten(2)
        stock = state.all_tables(split, stock)
        q, k, v = (split.to_heads(x) for x in (q, k, v))  # the cache then holds this rank's heads alone
        return split.to_tokens(self.cache.attend(self.layer, state.index, self.attend, stock, q, k, v, state.observer)).flatten(2)

    @functools.cached_property
    def split(self) -> Ulysses | None:
        """The ranks that split the heads; None where one process has them all."""
        return Ulysses.of(self._parallel_config)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return dispatch(q, k, v, self._attention_backend, mask)


class CachedText:
    """Cross-attention processor of one layer that computes the prompt's keys and values once a prompt."""

    def __init__(self, cache: KVCache, layer: int, stock: Any) -> None:
        self.cache, self.layer = cache, layer
        self._attention_backend = getattr(stock, "_attention_backend", None)  # diffusers sets these two by name
        self._parallel_config = None

    def __call__(self, attn: WanAttention, hidden_states: Tensor, text: Tensor, mask: None, rotary: None) -> Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k, v = self.keys_and_values(attn, text)
        output = dispatch_attention_fn(q, k, v, backend=self._attention_backend).flatten(2).type_as(q)
        return attn.to_out[1](attn.to_out[0](output))

    @torch.compiler.disable  # every layer would be a graph
    def keys_and_values(self, attn: WanAttention, text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, H, D] each."""
        if self.layer not in self.cache.texts:
            k, v = attn.to_kv(text).chunk(2, dim=-1) if attn.fused_projections else (attn.to_k(text), attn.to_v(text))
            self.cache.texts[self.layer] = (attn.norm_k(k).unflatten(2, (attn.heads, -1)), v.unflatten(2, (attn.heads, -1)))
        return self.cache.texts[self.layer]


class CausalWan(Wan):
    def chunk_schedule(self, plan: Plan, steps: int) -> Any:
        """The few levels of a rollout, 1, (S - 1) / S, .. 1 / S, shifted: for an Euler step that adds fresh noise, or for UniPC.

        UniPC's begin at 0.999, where its logarithm is finite, and its timesteps are rounded down [both: code, LongLive 2.0].
        """
        shift, device = plan.sample.flow_shift or self.spec.flow_shift, self.pipe._execution_device
        if self.spec.scheduler == UniPCMultistepScheduler.__name__:
            solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
            solver.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1], device=device)
            return solver
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
        scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1], device=device)
        return scheduler

    def velocity(self, transformer: Any, x: Tensor, timesteps: Tensor, text: Text, uncond: Text | None) -> Velocities:
        """Of one chunk [1, C, c, h, w], all of it at one timestep: both texts in one batch, so that the cache holds both."""
        words = text if uncond is None else {name: torch.cat([uncond[name], text[name]]) for name in text}
        batch = 1 if uncond is None else 2
        x_batch, times = x.to(transformer.dtype).expand(batch, -1, -1, -1, -1), timesteps[:, 0].expand(batch)
        predicted = transformer(hidden_states=x_batch, timestep=times, return_dict=False, **words)[0].to(x)
        return split_guidance(predicted, uncond)

    @contextmanager
    def rolling(self, plan: Plan) -> Iterator[KVCache]:
        """Within the context, the transformer sees its frames through the cache; afterwards it is as it was."""
        rotary = self.rotary()
        assert rotary is not None
        foreign_hooks.check_model(self.pipe, self.transformers)
        transformer = self.pipe.transformer
        split = Ulysses.of(transformer._parallel_config)
        heads = None if plan.head_groups is None else HeadGroups(*plan.head_groups, split)
        cache = KVCache(rotary, plan.slots_lat, plan.columns_lat, plan.keeps_queries, heads)
        self_attention, cross_attention = self.layers(transformer), self.text_layers(transformer)
        stocks = [(layer, layer.processor) for layer in (*self_attention, *cross_attention)]
        foreign_hooks.check_processors([processor for _, processor in stocks], self.stock)
        try:
            for index, layer in enumerate(self_attention):
                layer.set_processor(CachedAttention(cache, index, self.step_state, layer.processor, self.model_settings.attention))
            for index, layer in enumerate(cross_attention):
                layer.set_processor(CachedText(cache, index, layer.processor))
            yield cache
        finally:
            for layer, processor in stocks:
                layer.set_processor(processor)
