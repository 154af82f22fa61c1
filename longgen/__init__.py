"""longgen: long videos from video diffusion models trained on short clips, without training.

The Python API. Names are imported when they are first used, so that `import longgen` is cheap.

    longgen.generate("a red circle", "circle.mp4", preset="freespec", frames=321, seed=0) -> Result
    longgen.load("tiny") -> Model, which stays loaded: model.generate(...)
    longgen.plan(preset="freespec", frames=321), longgen.compare(...), longgen.probe(...)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longgen.api.compare import CompareResult as CompareResult
    from longgen.api.compare import compare as compare
    from longgen.api.model import Model as Model
    from longgen.api.model import generate as generate
    from longgen.api.model import load as load
    from longgen.api.plan import PlanResult as PlanResult
    from longgen.api.plan import plan as plan
    from longgen.api.probe import ProbeResult as ProbeResult
    from longgen.api.probe import probe as probe
    from longgen.backbones.find import find as find_backbone  # noqa: F401
    from longgen.errors import LonggenError as LonggenError
    from longgen.plan import Plan as Plan
    from longgen.planner import build as build_plan  # noqa: F401
    from longgen.preset import Preset as Preset
    from longgen.preset import Sample as Sample
    from longgen.preset import load as load_preset  # noqa: F401
    from longgen.progress import Progress as Progress
    from longgen.run import Result as Result

__version__ = "0.14.0"

_NAMES = {
    "generate": "longgen.api.model:generate",
    "load": "longgen.api.model:load",
    "plan": "longgen.api.plan:plan",
    "compare": "longgen.api.compare:compare",
    "probe": "longgen.api.probe:probe",
    "Model": "longgen.api.model:Model",
    "Result": "longgen.run:Result",
    "PlanResult": "longgen.api.plan:PlanResult",
    "CompareResult": "longgen.api.compare:CompareResult",
    "ProbeResult": "longgen.api.probe:ProbeResult",
    "Progress": "longgen.progress:Progress",
    "LonggenError": "longgen.errors:LonggenError",
    "build_plan": "longgen.planner:build",
    "load_preset": "longgen.preset:load",
    "find_backbone": "longgen.backbones.find:find",
    "Sample": "longgen.preset:Sample",
    "Preset": "longgen.preset:Preset",
    "Plan": "longgen.plan:Plan",
}
__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'longgen' has no attribute '{name}'")
    module, attribute = _NAMES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """`longgen.plan`, `.probe` and `.compare` are functions, and there are modules of these names, which import as ever
    (`from longgen.plan import Plan`) but do not take the functions' place when they are loaded.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
