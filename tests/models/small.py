"""The small pipelines of random weights, for tests that every family has to pass: those in NAMES of the modules here.

A module is called as its family, with `_` for `-`; the first of its names is the plain model.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from longgen.backbones.registry import FAMILIES
from longgen.backbones.spec import Family

MODULES: dict[str, Any] = {  # family -> the module that builds its small pipelines
    family: importlib.import_module(f"tests.models.{family.replace('-', '_')}")
    for family in FAMILIES
    if Path(__file__).with_name(f"{family.replace('-', '_')}.py").is_file()
}


def family_of(name: str) -> Family:
    return next(FAMILIES[family] for family, module in MODULES.items() if name in module.NAMES)


TWINS = {"skyreels", "hunyuan15-steps"}  # whose adapter and blocks another one shares, so that these tests see them there
PLAIN = [module.NAMES[0] for module in MODULES.values() if module.NAMES[0] not in TWINS]
ALL = [name for module in MODULES.values() for name in module.NAMES if name not in TWINS]
# Those whose videos can be made of clips, and by a schedule: sound is one piece.
SILENT = {name for family, module in MODULES.items() if FAMILIES[family].specs[0].sound is None for name in module.NAMES}
# One of each transformer class, and the one with two: for what does not depend on where a video starts.
KINDS = [*{family_of(name).transformer: name for name in reversed(PLAIN)}.values(), "wan-experts"]


def build(name: str, folder: Path) -> None:
    """Writes the pipeline `name` to `folder`, as diffusers writes one."""
    MODULES[family_of(name).name].build(name, folder)


def calls_per_step(name: str) -> int:
    """Of the transformer: guidance is a call of its own, unless it is in the same batch or an input of the model."""
    family = family_of(name)
    prompts = 1 if family.batches_guidance or any(spec.embedded_guidance for spec in family.specs) else 2
    return prompts + family.specs[0].more_calls


def taking(cache: str) -> list[str]:
    """The plain ones on which the step cache `cache` works."""
    return [name for name in PLAIN if cache not in family_of(name).broken_caches]
