"""One video on several ranks: diffusers' context parallelism on the transformers of a pipeline.

diffusers splits the tokens between ranks before the first block and gathers them after the last. Its own attention processors
exchange heads, and so do longgen's (`longgen.attention.ulysses`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelInput

from longgen import ranks
from longgen.attention import ulysses
from longgen.errors import UsageError


def enable(transformers: Sequence[Any], text_layers: Callable[[Any], list[Any]], size: int) -> None:
    """Splits the tokens of `transformers` between `size` ranks, all those of the group. Raises UsageError.

    text_layers: the cross-attention modules of a transformer, which need no other rank's tokens.
    """
    present = ranks.current().size
    if present != size:
        raise UsageError(f"gpus = {size}, and there are {present} ranks", expected=f"{size} ranks of torch.distributed",
                         hint=f"longgen generate --gpus {size} starts them; scripts: torchrun --nproc-per-node {size}")  # fmt: skip
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.hooks\.context_parallel")  # of torch's own names
    for transformer in transformers:
        if transformer._cp_plan is None:
            kind = type(transformer).__name__
            raise UsageError(f"{kind} cannot be split between {size} ranks: diffusers has no context-parallel plan for it",
                             expected="Wan, LTX-Video, or a rollout", hint="leave --gpus out")  # fmt: skip
        with _countable_devices():
            transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=size), cp_plan=_plan(transformer))
        ulysses.adopt(transformer._parallel_config)
        for layer in text_layers(transformer):
            layer.processor._parallel_config = None


def _plan(transformer: Any) -> dict[str, Any]:
    """diffusers' plan of what is split, but for the text of LTX-Video, on whose mask it fails; and with timesteps of tokens."""
    plan = {module: {name: how for name, how in parts.items() if not str(name).startswith("encoder_")}
            if isinstance(parts, dict) else parts for module, parts in transformer._cp_plan.items()}  # fmt: skip
    return plan | {"": plan.get("", {}) | {"timestep": ContextParallelInput(split_dim=1, expected_dims=2, split_output=False)}}


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
