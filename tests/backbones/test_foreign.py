"""What others put on a model is refused by name before sampling, and what longgen knows goes on as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ContextParallelConfig, FirstBlockCacheConfig, ParallelConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, LayerSkipConfig, ModelHook, apply_layer_skip
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from longgen.errors import UsageError
from tests.backbones import family

PARALLEL = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))


class OwnProcessor(WanAttnProcessor):
    """A user's."""


def parallel_model(pipe: Any) -> None:
    pipe.transformer._parallel_config = PARALLEL  # as enable_parallelism leaves it


def parallel_processor(pipe: Any) -> None:
    pipe.transformer.blocks[1].attn1.processor._parallel_config = PARALLEL


def parallel_text(pipe: Any) -> None:
    pipe.vae._parallel_config = PARALLEL


def parallel_hook(pipe: Any) -> None:
    HookRegistry.check_if_exists_or_initialize(pipe.transformer.blocks[0]).register_hook(ModelHook(), "cp_input---blocks.0")


def broadcast(pipe: Any) -> None:
    config = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)
    pipe.transformer.enable_cache(config)


def skip(pipe: Any) -> None:
    apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[0], fqn="blocks"))


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (parallel_model, r"transformer runs in parallel \(ParallelConfig\)"),
        (parallel_processor, "transformer runs in parallel"),
        (parallel_text, "vae runs in parallel"),
        (parallel_hook, r"in parallel \(cp_input---blocks.0\)"),
        (broadcast, "hook pyramid_attention_broadcast"),
        (skip, "hook layer_skip_hook"),
    ],
)
def test_what_hooks_into_a_model_is_refused_by_name(
    put: Callable[[Any], None], said: str, model_folder: Callable[[str], Path]
) -> None:
    backbone = family.loaded(model_folder("wan"))
    calls: list[int] = []
    backbone.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    put(backbone.pipe)
    for name in ("direct", "sliding-window"):
        with pytest.raises(UsageError, match=said):
            family.sampled(backbone, family.made(backbone, name, 97, 2))
    assert calls == []


def test_a_step_cache_enabled_by_hand_is_refused_where_it_would_be_wrong(model_folder: Callable[[str], Path]) -> None:
    backbone = family.loaded(model_folder("wan"))
    plan = family.made(backbone, "direct", 97, 3)
    state = family.stopped_after(backbone, plan, 1)
    backbone.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert family.sampled(backbone, plan).isfinite().all()
    with pytest.raises(UsageError, match=r"a step cache .* lost when a run goes on"):
        family.sampled(backbone, plan, resume=state)


def test_a_parallel_causal_model_is_refused(causal: Any) -> None:
    plan = family.made(causal, "self-forcing", 33, 2)
    try:
        causal.pipe.transformer._parallel_config = PARALLEL
        with pytest.raises(UsageError, match="runs in parallel"), causal.rolling(plan):
            pass
    finally:
        causal.pipe.transformer._parallel_config = None
    layer = causal.layers(causal.pipe.transformer)[0]
    before = layer.processor
    layer.set_processor(OwnProcessor())
    try:
        with pytest.raises(UsageError, match="processor OwnProcessor"), causal.rolling(plan):
            pass
    finally:
        layer.set_processor(before)


def test_a_processor_of_somebody_else_is_not_put_aside(model_folder: Callable[[str], Path]) -> None:
    """It stays where a plan does nothing: without techniques, and in other layers."""
    backbone = family.loaded(model_folder("wan"))
    direct, window = (family.made(backbone, name, 97, 2) for name in ("direct", "sliding-window"))
    above = family.made(backbone, "sliding-window", 97, 2, ("window.layers=[1]",))
    stock = [family.sampled(backbone, plan) for plan in (direct, above)]
    backbone.layers(backbone.pipe.transformer)[0].set_processor(OwnProcessor())
    assert all(torch.equal(family.sampled(backbone, plan), before) for plan, before in zip((direct, above), stock, strict=True))
    with pytest.raises(UsageError, match="processor OwnProcessor, which this plan would replace"):
        family.sampled(backbone, window)


def test_a_mask_on_self_attention_is_refused(model_folder: Callable[[str], Path]) -> None:
    backbone = family.loaded(model_folder("wan"))
    plan = family.made(backbone, "sliding-window", 97, 2)
    layer, mask = backbone.layers(backbone.pipe.transformer)[0], torch.ones(1, 1, 1, 1, dtype=torch.bool)
    with backbone.installed(plan), pytest.raises(UsageError, match="given an attention mask"):
        layer(torch.zeros(1, 8, 48), attention_mask=mask)


def test_a_user_s_compiling_changes_nothing(model_folder: Callable[[str], Path]) -> None:
    backbone = family.loaded(model_folder("wan"))
    plans = [family.made(backbone, name, 97, 1) for name in ("sliding-window", "direct")]
    stock = [family.sampled(backbone, plan) for plan in plans]
    backbone.pipe.transformer.compile_repeated_blocks(backend="eager")
    assert all(torch.equal(family.sampled(backbone, plan), before) for plan, before in zip(plans, stock, strict=True))
