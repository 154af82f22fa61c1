"""What a shell completes: presets, backbones, techniques with their parameters, pages of the documentation. Imports no torch.

Each function takes what is typed so far and returns what it may become; a fault gives nothing: a traceback would garble the line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any


def quietly(complete: Callable[[Any, str], Iterable[str]]) -> Callable[[Any, str], list[str]]:
    """`complete` without what does not begin as typed, and without faults."""

    def found(ctx: Any, incomplete: str) -> list[str]:
        with contextlib.suppress(Exception):
            return [word for word in complete(ctx, incomplete) if word.startswith(incomplete)]
        return []

    found.__annotations__ = {}  # typer goes by the names
    return found


def _presets(ctx: Any, incomplete: str) -> Iterable[str]:
    from longgen import preset

    return preset.names()


def _list_of_presets(ctx: Any, incomplete: str) -> Iterable[str]:
    """`direct,fre` goes on after its last comma."""
    from longgen import preset

    before, comma, _ = incomplete.rpartition(",")
    return [before + comma + name for name in preset.names() if name not in before.split(",")]


def _backbones(ctx: Any, incomplete: str) -> Iterable[str]:
    from longgen.backbones.registry import all_specs

    return all_specs()


def _techniques(ctx: Any, incomplete: str) -> Iterable[str]:
    from longgen import catalog

    return catalog.names()


def _overrides(ctx: Any, incomplete: str) -> Iterable[str]:
    """`freespec.` and then its parameters: the techniques of --preset, where it is given, else all."""
    from longgen import catalog, preset

    technique, dot, _ = incomplete.partition(".")
    if dot:
        return [f"{technique}.{key}=" for key in catalog.technique(technique).model_fields]
    named = (ctx.params or {}).get("preset")
    names = [catalog.name_of(one) for one in preset.load(named).techniques] if named else catalog.names()
    return [f"{name}." for name in names]


presets, list_of_presets, backbones = quietly(_presets), quietly(_list_of_presets), quietly(_backbones)
techniques, overrides = quietly(_techniques), quietly(_overrides)
