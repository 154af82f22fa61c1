"""One video on several ranks: what `longgen.split` says, on the transformers of a loaded pipeline.

Tokens: diffusers' context parallelism splits them before the first block and gathers them after the last. Its own attention
processors exchange heads, and so do longgen's (`longgen.attention.ulysses`). Guidance: a hook on each transformer, by which one
half of the ranks predicts with the prompt and the other with the negative prompt.

Legend: B batch, P ranks that share tokens.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.context_parallel import remove_context_parallel
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.hooks import RemovableHandle

from longgen import ranks
from longgen.attention import ulysses
from longgen.attention.ulysses import Ulysses
from longgen.backbones.registry import family_of
from longgen.errors import UsageError
from longgen.pipelines.base import PipelineBackbone
from longgen.pipelines.hook_removal import keep_hooks
from longgen.plan import Plan
from longgen.split import Split, split_of

_HOOK, _TIMES = "longgen_guidance", "longgen_timesteps"


@contextmanager
def split(backbone: PipelineBackbone, plan: Plan) -> Iterator[None]:
    """Within the context the transformers of `backbone` run `plan` on all ranks of the group. Raises UsageError."""
    how = split_of(plan, backbone.model_settings)
    check_ranks(how.ranks)
    if how.ranks == 1 or how.how == "clips":  # clips are shared out by their loop
        yield
        return
    mesh = _mesh(backbone.device.type, 1 + how.guidance, how.shares)
    handles: list[RemovableHandle] = []
    try:
        for transformer in backbone.transformers:
            if how.how == "heads":
                group = _split_tokens(backbone, transformer, how, mesh)
                handles += backbone.share_streams(transformer, group)
            if how.guidance:
                keep_hooks(transformer)
                hook = _GuidanceHook(mesh["guidance"], family_of(backbone.spec).batches_guidance, backbone.zeros)
                HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, _HOOK)
        yield
    finally:
        backbone.step_state.forget_tables()
        for handle in handles:
            handle.remove()
        for transformer in backbone.transformers:
            if how.guidance:
                HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(_HOOK, recurse=False)
            if transformer._parallel_config is not None and ulysses.is_own(transformer._parallel_config):
                _join_tokens(backbone, transformer)


def check_ranks(size: int) -> None:
    """Raises UsageError where the group has not `size` ranks."""
    if size > 1 and (present := ranks.current().size) != size:
        raise UsageError(f"gpus = {size}, and there {'is 1 rank' if present == 1 else f'are {present} ranks'}",
                         expected=f"{size} ranks of torch.distributed",
                         hint=f"longgen generate --gpus {size} starts them; scripts: torchrun --nproc-per-node {size}")  # fmt: skip


@functools.lru_cache(maxsize=8)
def _mesh(device: str, halves: int, shares: int) -> DeviceMesh:
    """The ranks by half of guidance and by share of tokens; its groups are made once."""
    return init_device_mesh(device, (halves, 1, shares), mesh_dim_names=("guidance", "ring", "ulysses"))


def _split_tokens(backbone: PipelineBackbone, transformer: Any, how: Split, mesh: DeviceMesh) -> Ulysses:
    """Each rank of the group that is returned has its part of the video's tokens in `transformer`."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.hooks\.context_parallel")  # of torch's own names
    config = ContextParallelConfig(ulysses_degree=how.shares, mesh=mesh["ring", "ulysses"])
    try:
        with _countable_devices():
            transformer.enable_parallelism(config=config, cp_plan=_plan(backbone, transformer))
    except ValueError as error:  # of an attention backend
        reason = str(error).split(". ")[0]
        raise UsageError(f"diffusers cannot split the tokens: {reason}", expected="--attention native, or one that it names",
                         hint="leave --attention out") from None  # fmt: skip
    ulysses.adopt(transformer._parallel_config)
    group = Ulysses.of(transformer._parallel_config)
    assert group is not None
    for layer in backbone.whole_key_layers(transformer):
        layer.processor._parallel_config = None
    keep_hooks(transformer)
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(_TimestepHook(group), _TIMES)
    return group


def _join_tokens(backbone: PipelineBackbone, transformer: Any) -> None:
    """Undoes `_split_tokens`."""
    HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(_TIMES, recurse=False)
    ulysses.forget(transformer._parallel_config)
    remove_context_parallel(transformer, _plan(backbone, transformer))
    transformer._parallel_config = None
    for module in transformer.modules():
        if getattr(getattr(module, "processor", None), "_parallel_config", None) is not None:
            module.processor._parallel_config = None


def _plan(backbone: PipelineBackbone, transformer: Any) -> dict[str, Any]:
    """diffusers' plan of what is split, but for the text of LTX-Video, on whose mask it fails, and timesteps: `_TimestepHook`."""
    return {module: {name: how for name, how in parts.items() if not str(name).startswith(("encoder_", "timestep"))}
            if isinstance(parts, dict) else parts for module, parts in backbone.token_plan(transformer).items()}  # fmt: skip


@contextmanager
def _countable_devices() -> Iterator[None]:
    """diffusers divides a rank by the number of accelerators, of which a CPU has none."""
    count = torch.accelerator.device_count
    if count() > 0:
        yield
        return
    torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count


class _TimestepHook(ModelHook):
    """Timesteps [B, N] of tokens are those of this rank's; one for all tokens, [B] or [B, 1], stays as it is."""

    def __init__(self, split: Ulysses) -> None:
        super().__init__()
        self.group = split

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        timestep = kwargs["timestep"]
        if timestep.ndim == 2 and timestep.shape[1] > 1:
            kwargs["timestep"] = timestep[:, self.group.own(timestep.shape[1])]
        return args, kwargs


class _GuidanceHook(ModelHook):
    """The two branches of guidance on two halves of the ranks, which hold both predictions after the second call.

    A batch of both, the unconditional half first, is divided. Of two calls, the conditional one first, a rank makes its own: the
    other's prediction is written into the tensor that was returned for it, when both are there.
    """

    def __init__(self, mesh: DeviceMesh, batched: bool, zeros: Callable[[dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self.group, self.half, self.batched, self.zeros = mesh.get_group(), mesh.get_local_rank(), batched, zeros
        self.conditional: Tensor | None = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        assert not args
        call = self.fn_ref.original_forward
        if self.batched or len(kwargs["hidden_states"]) > 1:
            return (self._exchanged(call(**self._half_of(kwargs))[0]),)
        if self.conditional is None:
            self.conditional = call(**kwargs)[0] if self.half == 0 else self.zeros(kwargs)
            return (self.conditional,)
        unconditional = call(**kwargs)[0] if self.half == 1 else self.zeros(kwargs)
        for source, predicted in enumerate((self.conditional, unconditional)):
            whole = predicted.contiguous()
            distributed.broadcast(whole, group=self.group, group_src=source)
            if whole is not predicted:
                predicted.copy_(whole)
        self.conditional = None
        return (unconditional,)

    def _half_of(self, arguments: dict[str, Any]) -> dict[str, Any]:
        batch = len(arguments["hidden_states"])
        return {name: value.chunk(2)[self.half] if isinstance(value, Tensor) and value.ndim and len(value) == batch else value
                for name, value in arguments.items()}  # fmt: skip

    def _exchanged(self, predicted: Tensor) -> Tensor:
        parts = [torch.empty_like(predicted, memory_format=torch.contiguous_format) for _ in range(2)]
        distributed.all_gather(parts, predicted.contiguous(), group=self.group)
        return torch.cat(parts)
