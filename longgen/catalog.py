"""Every technique by name: one literal row each, by slot. A technique's file is imported when it is asked for."""

from __future__ import annotations

import importlib

from longgen.errors import unknown_name
from longgen.technique import Technique

POSITIONS = {
    "riflex": "longgen.positions.riflex:Riflex",
}
CONTEXT = {
    "window": "longgen.context.window:Window",
}
FUSION = {
    "freespec": "longgen.fusion.freespec:FreeSpec",
}
SLOTS = {"positions": POSITIONS, "context": CONTEXT, "fusion": FUSION}  # in the order in which they apply
TECHNIQUES = {name: place for slot in SLOTS.values() for name, place in slot.items()}


def technique(name: str) -> type[Technique]:
    """The class of the technique called `name`. Raises UsageError with the nearest names."""
    if name not in TECHNIQUES:
        raise unknown_name("technique", name, TECHNIQUES, "correct the name in the preset or in --set")
    module, attribute = TECHNIQUES[name].split(":")
    return getattr(importlib.import_module(module), attribute)
