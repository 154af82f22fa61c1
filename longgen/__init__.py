"""longgen: long videos from video diffusion models trained on short clips, without training.

The Python API. Names are imported when they are first used, so that `import longgen` is cheap.

    longgen.generate(prompt, output, preset_name="freespec", sample=longgen.Sample(frames=321), seed=0) -> Result
    longgen.build_plan(longgen.load_preset("freespec"), longgen.find_backbone("tiny")) -> Plan
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.11.0"

_NAMES = {
    "generate": "longgen.run:generate",
    "build_plan": "longgen.planner:build",
    "load_preset": "longgen.preset:load",
    "find_backbone": "longgen.backbones.find:find",
    "Sample": "longgen.preset:Sample",
    "Preset": "longgen.preset:Preset",
    "Plan": "longgen.plan:Plan",
    "Result": "longgen.run:Result",
    "LonggenError": "longgen.errors:LonggenError",
}
__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'longgen' has no attribute '{name}'")
    module, attribute = _NAMES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
