"""Techniques from outside longgen: those that installed packages register, and classes that a preset names by module.

A package registers a technique in its pyproject.toml, and has then said that it may run:

    [project.entry-points."longgen.techniques"]
    logit-decay = "my_package.decay:LogitDecay"

Registrations are read when a name is not one of longgen's own, and a module is imported when its technique is used, so
that a broken plug-in disturbs nobody who does not use it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from longgen.errors import UsageError
from longgen.technique import Technique

GROUP = "longgen.techniques"


def registered(built_in: Collection[str]) -> dict[str, EntryPoint]:
    """By name, the techniques of installed packages. Raises UsageError where a name is taken, by another or by longgen."""
    plugins: dict[str, EntryPoint] = {}
    for plugin in sorted(entry_points(group=GROUP), key=lambda plugin: (plugin.name, package(plugin))):
        owner = "longgen" if plugin.name in built_in else package(plugins[plugin.name]) if plugin.name in plugins else None
        if owner is not None:
            raise UsageError(f"{package(plugin)} registers a technique '{plugin.name}', a name that {owner} already uses",
                             expected="a different name for each technique",
                             hint=f"uninstall {package(plugin)}, or rename its entry point")  # fmt: skip
        plugins[plugin.name] = plugin
    return plugins


def package(plugin: EntryPoint) -> str:
    """The package that registers `plugin`, with its version."""
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else "an unnamed package"


def load(place: str, origin: str) -> type[Technique]:
    """Imports the technique class at `place` = "package.module:Class", for which `origin` answers. Raises UsageError."""
    module, _, attribute = place.partition(":")
    try:
        loaded = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # the code of others may raise anything
        reason = f"{type(error).__name__}: {error}"
    else:
        if not (isinstance(loaded, type) and issubclass(loaded, Technique)):
            reason = "not a subclass of longgen.technique.Technique"
        elif absent := [*sorted(loaded.__abstractmethods__), *(key for key in ("slot", "paper") if not hasattr(loaded, key))]:
            reason = f"it does not define {', '.join(absent)}"
        else:
            return loaded
    raise UsageError(f"technique {place} of {origin} cannot be used: {reason}", expected=f"a technique class at {place}",
                     hint=f"update, mend or uninstall {origin}")  # fmt: skip


def header(technique: type[Technique]) -> str:
    """The docstring of the technique's module: paper, equations, constants and their sources."""
    return inspect.cleandoc(inspect.getmodule(technique).__doc__ or technique.__doc__ or "")
