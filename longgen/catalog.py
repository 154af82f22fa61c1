"""Registry of techniques: a row for each of longgen's own, by slot, then those from outside. Imports one when it is used.

A package registers a technique in its pyproject.toml, and has then said that it may run:

    [project.entry-points."longgen.techniques"]
    logit-decay = "my_package.decay:LogitDecay"

A preset may also name a class by its module, which runs with --allow-code only.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.metadata import EntryPoint

from longgen import plugins
from longgen.errors import UsageError, shown, unknown_name
from longgen.technique import Technique

GROUP = "longgen.techniques"  # of entry points
SLOTS = {  # slot, a package of longgen -> technique -> module and class; those of `context` in the order in which they apply
    "noise": {"ans": "ans:Ans", "glc-noise": "glc:GlcNoise"},
    "positions": {
        "vrpr": "vrpr:Vrpr", "longdiff": "longdiff:LongDiff", "riflex": "riflex:Riflex", "flex": "flex:Flex", "ntk": "ntk:Ntk",
        "yarn": "yarn:Yarn", "rebase": "rebase:Rebase",
    },
    "context": {
        "window": "window:Window", "dummy-forcing": "dummy_forcing:DummyForcing", "tsa": "tsa:Tsa",
        "keyframes": "keyframes:Keyframes", "lvsa": "lvsa:Lvsa", "freenoise": "freenoise:FreeNoise",
        "ultravico": "ultravico:UltraViCo", "sink": "sink:Sink", "anchor": "anchor:Anchor",
        "rolling-sink": "rolling_sink:RollingSink", "memrope": "memrope:MemRope",
        "participative-compression": "participative_compression:ParticipativeCompression", "bias": "bias:Bias",
    },
    "fusion": {
        "freelong": "freelong:FreeLong", "freelongpp": "freelongpp:FreeLongPlusPlus", "freepca": "freepca:FreePca",
        "freespec": "freespec:FreeSpec",
    },
    "sampling": {
        "gen-l-video": "gen_l_video:GenLVideo", "glcd": "glcd:Glcd", "fifo": "fifo:Fifo", "rollout": "rollout:Rollout",
        "chain": "chain:Chain", "svi": "svi:Svi",
    },
    "refine": {"vmcr": "vmcr:Vmcr"},
}  # fmt: skip
TECHNIQUES = {name: f"longgen.{slot}.{place}" for slot, table in SLOTS.items() for name, place in table.items()}


@functools.cache  # packages are installed before longgen starts
def _registered() -> dict[str, EntryPoint]:
    return plugins.registered(GROUP, "technique", TECHNIQUES)


def names() -> list[str]:
    """Every technique that a preset may name: longgen's own, then those of installed packages."""
    return [*TECHNIQUES, *_registered()]


def technique(name: str, allow_code: bool = False) -> type[Technique]:
    """The class of the technique `name`; with `allow_code` also of a name "package.module:Class", whose module is imported.

    Raises UsageError: for an unknown name with the nearest ones, for such a module before it is imported.
    """
    if name in TECHNIQUES:
        module, attribute = TECHNIQUES[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" in name:
        check_code(name, allow_code)
        return plugins.load(name, name.partition(":")[0], "technique", _fault)
    if name not in _registered():
        raise unknown_name("technique", name, names(), "correct the name in the preset or in --set")
    return plugins.load(_registered()[name].value, plugins.package(_registered()[name]), "technique", _fault)


def _fault(value: object) -> str | None:
    """What keeps an object from outside from being used as a technique class."""
    if not (isinstance(value, type) and issubclass(value, Technique)):
        return "not a subclass of longgen.technique.Technique"
    absent = [*sorted(value.__abstractmethods__), *(key for key in ("slot", "paper") if not hasattr(value, key))]
    return f"it does not define {', '.join(absent)}" if absent else None


def check_code(name: str, allow_code: bool) -> None:
    """Raises UsageError where `name` is "package.module:Class" and may not be imported."""
    if ":" in name and not allow_code:
        raise UsageError(f"technique {shown(name)} is Python code, which runs with --allow-code only",
                         expected="a technique of `longgen techniques list`, or --allow-code",
                         hint="add --allow-code (in Python allow_code=True) if you trust this code")  # fmt: skip


def versions(name: str) -> dict[str, str]:
    """The version of the installed package that the technique `name` comes from, by the package's name."""
    return {} if name in TECHNIQUES else plugins.versions(_registered().get(name))


def origin(name: str) -> str:
    """Where the technique `name` comes from: longgen, an installed package or a module."""
    if name in TECHNIQUES:
        return "built in"
    if ":" in name:
        return f"module {name.partition(':')[0]}"
    return f"package {plugins.package(_registered()[name])}"


def name_of(technique: Technique) -> str:
    """The name under which a preset has `technique`: that of its row or entry point, else "package.module:Class"."""
    place = f"{type(technique).__module__}:{type(technique).__qualname__}"
    for name, row in TECHNIQUES.items():
        if row == place:
            return name
    for name, plugin in _registered().items():  # its module is imported, if it is of this class
        if getattr(sys.modules.get(plugin.module), plugin.attr, None) is type(technique):
            return name
    return place


def rank(name: str) -> tuple[int, str]:
    """Sorts techniques that apply at the same time: by the tables above, then those from outside by name."""
    return list(TECHNIQUES).index(name) if name in TECHNIQUES else len(TECHNIQUES), name
