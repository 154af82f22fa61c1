"""The preset to take where none is named: direct sampling up to the native length, beyond it what was measured to keep most.

    kind of backbone    preset           why, measured on the built-in models
    whole clips         sliding-window   of the presets of docs/experiments/rivals.md and pictures.md it keeps the kind of motion
                                         most often, and costs least
    causal              deep-forcing     of those of rivals.md that hold colour and picture at 12 times the horizon, the one that
                                         neither slows the motion nor loses its kind; the same from a picture
    LongLive's          longlive, -2     its weights were trained with that window and sink, by its publisher's configuration

The others stand in for what these cannot do: the first that a plan can be made with, and split between the GPUs, is taken. None
needs a probe, and none has weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longgen import preset as presets
from longgen.backbones.registry import published_name
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.conditions import NOTHING, Conditions
from longgen.errors import LonggenError
from longgen.plan import Plan
from longgen.planner import build
from longgen.preset import Sample
from longgen.schedule import PromptSchedule
from longgen.split import split_of

DIRECT = "direct"
WHOLE = {
    "sliding-window": "a frame sees its neighbours as in training, which kept motion and colour on tiny at a third of the work",
    "gen-l-video": "clips of the native length that overlap, denoised together",
    "chain": "clips of the native length, each beginning with the end of the one before",
}
CAUSAL = {
    "deep-forcing": "the first frames stay in view, which kept colour and motion on small causal models at 12 times their horizon",
    "rolling-sink": "the first frames come back into view, which kept colour and motion on a small causal model",
    "self-forcing": "a window of the native length over the last frames",
}
TRY_FIRST = ("sliding-window", "freespec", "gen-l-video", "deep-forcing", "rolling-sink", DIRECT)  # of both kinds
TRY_FIRST_OF_KIND = {  # by whether a backbone is causal
    False: ("sliding-window", "freespec", "riflex", "freenoise", "gen-l-video", DIRECT),
    True: ("deep-forcing", "rolling-sink", "memrope", "longlive", "self-forcing", DIRECT),
}
TRAINED_WITH = {"longlive": "longlive", "longlive-2": "longlive-2"}  # backbone -> the preset that is its publisher's configuration


@dataclass(frozen=True)
class Recommendation:
    """A preset's name, and a note that says why it was taken and how to refuse it; empty where there is nothing to say."""

    preset: str
    note: str = ""


def to_try_first(spec: BackboneSpec | None = None) -> list[str]:
    """Six presets to begin with, on `spec` or in general; the recommended one first."""
    if spec is None:
        return [*TRY_FIRST]
    own = TRAINED_WITH.get(published_name(spec))
    return [*dict.fromkeys([*([own] if own else []), *TRY_FIRST_OF_KIND[spec.causal]])][:6]


def recommended(
    spec: BackboneSpec,
    frames: int | None = None,
    sample: Sample | None = None,
    schedule: PromptSchedule | None = None,
    conditions: Conditions = NOTHING,
    gpus: int = 1,
    guidance_parallel: bool = False,
    overrides: Sequence[str] = (),
) -> Recommendation:
    """The preset for a video of `frames` pixel frames (None: those of `sample`, or the native length) on `spec`.

    With --continue these are the new ones. It takes all that is given here, and `overrides` of its techniques. Where none does it
    is `direct`; so it is up to the native length. Never raises for what no plan can be made of: resolving it then does.
    """
    wanted = sample or Sample()
    wanted = wanted if frames is None else wanted.model_copy(update={"frames": frames})

    def planned(name: str) -> Plan | None:
        try:
            plan = build(presets.load(name, overrides, wanted), spec, schedule, conditions=conditions)
            if gpus > 1:
                split_of(plan, ModelSettings("cuda", spec.dtype, gpus=gpus, guidance_parallel=guidance_parallel))
        except LonggenError:
            return None
        return plan

    if (wanted.frames or spec.native_px) <= spec.native_px and not conditions.past:
        return Recommendation(DIRECT)
    if (direct := planned(DIRECT)) is not None and direct.frames_lat <= spec.native_lat:
        return Recommendation(DIRECT)
    own = TRAINED_WITH.get(published_name(spec))
    candidates = ({own: "its publisher's configuration, with which its weights were trained"} if own else {}) | (
        CAUSAL if spec.causal else WHOLE
    )
    without = f"--preset {DIRECT} goes without" if direct is not None else "longgen presets list has others"
    for name, why in candidates.items():
        if (plan := planned(name)) is not None:
            length = f"{plan.frames_px:,} frames are more than the {spec.native_px} that {spec.name} was trained on"
            return Recommendation(name, f"{length}: preset {name} is taken ({why}); {without}")
    return Recommendation(DIRECT, f"no preset is recommended for this at more than {spec.native_px} frames: direct sampling is "
                                  "taken; longgen presets list has others")  # fmt: skip
