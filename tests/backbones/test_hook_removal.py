"""Hooks of diffusers, of which one is removed beneath another in the middle of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook

from longgen.pipelines.hook_removal import keep_hooks


class Once(ModelHook):
    """Removes itself in its first call, as group offload's tracing does."""

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        module._diffusers_hook.remove_hook("once", recurse=False)
        return output


class Twice(ModelHook):
    def new_forward(self, module: torch.nn.Module, x: torch.Tensor) -> Any:
        return self.fn_ref.original_forward(x) + self.fn_ref.original_forward(x)


@pytest.mark.parametrize(("kept", "calls"), [(False, [6, 3, 3]), (True, [6, 6, 6])])
def test_a_hook_above_one_that_removes_itself(kept: bool, calls: list[int]) -> None:
    """False: what diffusers does alone; once that has changed, keep_hooks can go."""
    module = torch.nn.Module()
    module.forward = lambda x: x
    registry = HookRegistry.check_if_exists_or_initialize(module)
    for name, hook in (("first", ModelHook()), ("once", Once()), ("twice", Twice())):
        registry.register_hook(hook, name)
    if kept:
        keep_hooks(module)
    assert [int(module(torch.tensor(3))) for _ in calls] == calls
    registry.remove_hook("twice")
    assert int(module(torch.tensor(3))) == 3
    registry.remove_hook("first")
    assert int(module(torch.tensor(3))) == 3
    assert registry._fn_refs == []
