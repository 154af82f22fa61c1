"""What installed packages add to longgen by entry points (importlib.metadata): listed at once, imported when used."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from longgen.errors import UsageError


def registered(group: str, built_in: Collection[str]) -> list[EntryPoint]:
    """The entry points of `group`, by name. Raises UsageError where a name is taken, by another package or by longgen itself."""
    plugins: dict[str, EntryPoint] = {}
    for plugin in sorted(entry_points(group=group), key=lambda plugin: (plugin.name, package(plugin))):
        if plugin.name in built_in or plugin.name in plugins:
            owner = "longgen" if plugin.name in built_in else package(plugins[plugin.name])
            raise unusable(plugin, f"{owner} has one of that name")
        plugins[plugin.name] = plugin
    return [*plugins.values()]


def package(plugin: EntryPoint) -> str:
    """The package that registers `plugin`, with its version."""
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else "an unnamed package"


def load(plugin: EntryPoint, kind: str, valid: Callable[[Any], bool]) -> Any:
    """Imports `plugin`. kind: in words, what it must be. Raises UsageError that names its package."""
    try:
        value = plugin.load()
    except Exception as error:  # the code of others may raise anything
        raise unusable(plugin, f"{type(error).__name__}: {error}") from error
    if not valid(value):
        raise unusable(plugin, f"{plugin.value} is not {kind}")
    return value


def unusable(plugin: EntryPoint, reason: str) -> UsageError:
    return UsageError(f"the plug-in '{plugin.name}' ({plugin.group}) of {package(plugin)} cannot be used: {reason}",
                      expected="a package that fits this version of longgen",
                      hint=f"update, mend or uninstall {package(plugin)}")  # fmt: skip
