"""Every technique by name: one literal row each, by slot. A technique's file is imported when it is asked for."""

from __future__ import annotations

import importlib

from longgen.errors import unknown_name
from longgen.technique import Technique

NOISE = {
    "ans": "longgen.noise.ans:Ans",
    "glc-noise": "longgen.noise.glc:GlcNoise",
}
POSITIONS = {
    "vrpr": "longgen.positions.vrpr:Vrpr",
    "longdiff": "longgen.positions.longdiff:LongDiff",
    "riflex": "longgen.positions.riflex:Riflex",
    "flex": "longgen.positions.flex:Flex",
    "ntk": "longgen.positions.ntk:Ntk",
    "yarn": "longgen.positions.yarn:Yarn",
    "rebase": "longgen.positions.rebase:Rebase",
}
CONTEXT = {  # in the order in which they apply
    "window": "longgen.context.window:Window",
    "tsa": "longgen.context.tsa:Tsa",
    "keyframes": "longgen.context.keyframes:Keyframes",
    "freenoise": "longgen.context.freenoise:FreeNoise",
    "sink": "longgen.context.sink:Sink",
    "anchor": "longgen.context.anchor:Anchor",
}
FUSION = {
    "freelong": "longgen.fusion.freelong:FreeLong",
    "freelongpp": "longgen.fusion.freelongpp:FreeLongPlusPlus",
    "freepca": "longgen.fusion.freepca:FreePca",
    "freespec": "longgen.fusion.freespec:FreeSpec",
}
SAMPLING = {
    "gen-l-video": "longgen.sampling.gen_l_video:GenLVideo",
    "glcd": "longgen.sampling.glcd:Glcd",
    "fifo": "longgen.sampling.fifo:Fifo",
    "rollout": "longgen.sampling.rollout:Rollout",
}
REFINE = {
    "vmcr": "longgen.refine.vmcr:Vmcr",
}
SLOTS = {"noise": NOISE, "positions": POSITIONS, "context": CONTEXT, "fusion": FUSION, "sampling": SAMPLING, "refine": REFINE}
TECHNIQUES = {name: place for slot in SLOTS.values() for name, place in slot.items()}


def technique(name: str) -> type[Technique]:
    """The class of the technique called `name`. Raises UsageError with the nearest names."""
    if name not in TECHNIQUES:
        raise unknown_name("technique", name, TECHNIQUES, "correct the name in the preset or in --set")
    module, attribute = TECHNIQUES[name].split(":")
    return getattr(importlib.import_module(module), attribute)
