"""Hooks stay where one beneath them is removed, as the tracing of group offload removes itself in its first call.

`HookRegistry.remove_hook` of diffusers 0.42.1 gives the hook above the forward beneath the removed one as its `forward`. But a hook
with a `new_forward`, as step caches and longgen's have, keeps itself there, and what is beneath it in `original_forward`: it was
lost without a word, and videos made clip by clip were made in one piece from the second model call on.
"""

from __future__ import annotations

import torch
from diffusers.hooks import HookRegistry


class KeepingRegistry(HookRegistry):
    """diffusers' registry, with that mended."""

    def remove_hook(self, name: str, recurse: bool = True) -> None:
        """Removes the hook `name`, where there is one; recurse: from the children too."""
        index = self._hook_order.index(name) + 1 if name in self._hook_order else len(self._fn_refs)
        above = self._fn_refs[index] if index < len(self._fn_refs) else None
        own = above.forward if above is not None and above.original_forward is not None else None
        super().remove_hook(name, recurse)
        if above is not None and own is not None:
            above.original_forward, above.forward = above.forward, own


def keep_hooks(model: torch.nn.Module) -> None:
    """From now on no hook of `model` is lost where another is removed."""
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if type(registry) is HookRegistry:
            registry.__class__ = KeepingRegistry
