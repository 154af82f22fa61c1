"""Techniques and backbones that installed packages register by entry points.

Registrations are read when a name is none of longgen's own, and a module is imported when its object is used, so that a broken
plug-in disturbs nobody who does not use it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from longgen.errors import UsageError


def registered(group: str, kind: str, built_in: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points of `group` by name. kind: what they register, in words. Raises UsageError where a name is taken."""
    plugins: dict[str, EntryPoint] = {}
    for plugin in sorted(entry_points(group=group), key=lambda plugin: (plugin.name, package(plugin))):
        owner = "longgen" if plugin.name in built_in else package(plugins[plugin.name]) if plugin.name in plugins else None
        if owner is not None:
            raise UsageError(f"{package(plugin)} registers a {kind} '{plugin.name}', a name that {owner} already uses",
                             expected=f"a different name for each {kind}",
                             hint=f"uninstall {package(plugin)}, or rename its entry point")  # fmt: skip
        plugins[plugin.name] = plugin
    return plugins


def package(plugin: EntryPoint) -> str:
    """The package that registers `plugin`, with its version."""
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else "an unnamed package"


def versions(plugin: EntryPoint | None) -> dict[str, str]:
    """The version of the package that registers `plugin`, by its name; nothing where there is none."""
    return {plugin.dist.name: plugin.dist.version} if plugin is not None and plugin.dist else {}


def load(place: str, origin: str, kind: str, fault: Callable[[Any], str | None]) -> Any:
    """Imports the object at `place` = "package.module:name", which `origin` provides as a `kind`. Raises UsageError.

    fault: says what is wrong with the object; None where nothing is.
    """
    module, _, attribute = place.partition(":")
    try:
        loaded = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # the code of others may raise anything
        reason: str | None = f"{type(error).__name__}: {error}"
    else:
        reason = fault(loaded)
    if reason is not None:
        raise UsageError(f"{kind} {place} of {origin} cannot be used: {reason}", expected=f"a {kind} at {place}",
                         hint=f"update, mend or uninstall {origin}")  # fmt: skip
    return loaded
