"""Refuses models with hooks or attention processors that longgen does not know and would silently bypass.

Known and supported: offload, 8-bit weights, fused projections, LoRA, attention backends, compiling, and two step caches. Any
other hook is refused, since its effect on clips, queues and KV caches is unknown; so are attention processors other than
diffusers' own where a plan replaces them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from longgen.attention.ulysses import is_own
from longgen.errors import UsageError

HOOKS = {"group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker", "lazy_leafs", "layerwise_casting",
         "peft_autocast_disable", "longgen_around", "longgen_guidance", "longgen_timesteps"}  # fmt: skip
CACHES = {"fbc_leader_block_hook", "fbc_block_hook", "mag_cache_leader_block_hook", "mag_cache_block_hook"}
PARALLEL = ("cp_", "tp_", "tensor_parallel", "context_parallel")  # prefixes of the hooks of diffusers' parallel modes


def check_model(pipe: Any, transformers: Iterable[Any]) -> None:
    """Raises UsageError where a model of `pipe` runs in parallel, or a transformer has an unknown hook."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and (mode := next(_parallel_modes(part), None)) is not None:
            raise UsageError(f"the {name} runs in parallel ({mode}), which longgen cannot drive: its latents would be wrong",
                             expected="a model on one device, with offload if need be",
                             hint="load it without enable_parallelism, tensor parallelism and sharding")  # fmt: skip
    hooks = (hook for transformer in transformers for hook in _hooks(transformer))
    for hook in (hook for hook in hooks if hook not in HOOKS | CACHES and not hook.startswith(PARALLEL)):
        raise UsageError(f"the transformer has the hook {hook} of diffusers, which longgen does not know",
                         expected="a model without it; step caches by cache=, as first-block:0.05",
                         hint="disable it (transformer.disable_cache() for caches), or load the model again")  # fmt: skip


def check_uncached(transformers: Iterable[Any], doing: str) -> None:
    """Raises UsageError where a step cache was enabled by hand. doing: what does not work with one, in words."""
    for transformer in transformers:
        for hook in CACHES & {*_hooks(transformer)}:
            raise UsageError(f"the transformer has a step cache ({hook}), and {doing}", expected="a model without it",
                             hint="transformer.disable_cache(), or load the model again")  # fmt: skip


def check_processors(processors: Iterable[Any], stock: tuple[type, ...]) -> None:
    """Raises UsageError where one of `processors`, which a plan would replace, is none of diffusers' own, `stock`."""
    for processor in processors:
        if type(processor) not in stock:
            raise UsageError(f"an attention layer has the processor {type(processor).__name__}, which this plan would replace",
                             expected=f"diffusers' own: {', '.join(kind.__name__ for kind in stock)}; or a plan without techniques",
                             hint="load the model again, without it")  # fmt: skip


def check_mask(mask: Any) -> None:
    """Raises UsageError for a mask on self-attention: no text-to-video pipeline passes one, and no frame plan reads it."""
    if mask is not None:
        raise UsageError("self-attention is given an attention mask, which a plan would ignore", expected="no mask",
                         hint="leave it out")  # fmt: skip


def _parallel_modes(model: torch.nn.Module) -> Iterator[str]:
    """The names of whatever runs `model` on several devices."""
    for module in model.modules():
        for holder in (module, getattr(module, "processor", None)):
            config = getattr(holder, "_parallel_config", None)
            if config is not None and not is_own(config):
                yield type(holder._parallel_config).__name__  # type: ignore[union-attr]
        if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
            yield type(module).__name__
        yield from ("DTensor" for weight in module._parameters.values() if type(weight).__name__ == "DTensor")
    own = is_own(getattr(model, "_parallel_config", None))
    yield from (name for name in _hooks(model) if name.startswith(PARALLEL) and not (own and name.startswith("cp_")))


def _hooks(model: torch.nn.Module) -> Iterator[str]:
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        yield from registry.hooks if registry is not None else ()
