"""`longgen plan` in Python, and what the command prints and writes: the plan of a video, its cost, its memory and its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from longgen import cards, cost, notebook, start
from longgen.api import choices
from longgen.api.words import EARLIER, Dtype, FileName, Offload, public
from longgen.backbones.settings import ModelSettings
from longgen.cards import Card
from longgen.describe import plan_dict, plan_text
from longgen.errors import LonggenError, UsageError, conflict
from longgen.pictures import FITS
from longgen.plan import Plan
from longgen.resolve import PlanRequest, resolve
from longgen.schedule import PromptSchedule
from longgen.units import count_label, human_bytes

MOST_GPUS = 1024  # of one video


@dataclass(frozen=True)
class PlanResult:
    """What would run: `plan`, and what it is estimated to take. `str()` is the text of `longgen plan`.

    dtype, offload: those that the figures are for. card: the GPU whose time is estimated; None for built-in models. split: of each
    number of GPUs asked for, what one of them has; refused: by number, why a video cannot be split so.
    """

    plan: Plan
    dtype: str
    offload: str
    card: Card | None
    split: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    @cached_property
    def memory_bytes(self) -> dict[str, int]:
        """What memory holds, by part, and the peak; estimated."""
        return cost.memory_bytes(self.plan, self.dtype, self.offload)

    @property
    def cost_ratio(self) -> float:
        """All arithmetic against that of direct sampling at the same length."""
        return cost.ratio(self.plan)

    @property
    def seconds(self) -> float | None:
        """The time of sampling on `card`, estimated from its peak rates; None without one."""
        return None if self.card is None else round(cost.seconds(self.plan, self.card, self.dtype), 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was rounded or replaced, and what to expect."""
        return self.plan.notes

    def as_dict(self) -> dict[str, Any]:
        """What `longgen plan --json` prints."""
        data = plan_dict(self.plan) | {"memory_bytes": self.memory_bytes, "estimate": None}
        if self.split:
            data["gpus"] = self.split
        if self.card is not None:
            data["estimate"] = {"card": self.card.name, "seconds": self.seconds, "measured": False}
        return data

    def __str__(self) -> str:
        text = plan_text(self.plan, self.dtype, self.offload, card=self.card)
        return "\n".join([text, *([""] if self.split else []), *self._split_lines()])

    def _split_lines(self) -> list[str]:
        ways = {"heads": "tokens and heads shared", "clips": "clips shared out", "whole": "guidance's two calls apart"}
        lines = {count: f"on {count} GPUs: refused, {reason}" for count, reason in self.refused.items()}
        for rank in self.split:
            how = ways[rank["how"]] + ", guidance's two calls apart" * (rank["guidance_parallel"] and rank["how"] != "whole")
            lines[rank["ranks"]] = (
                f"on {rank['ranks']} GPUs: {how}; each {rank['arithmetic']:.3f} of the arithmetic, "
                f"{human_bytes(rank['peak_bytes'])} peak, {human_bytes(rank['sent_bytes'])} sent a step"
            )
        return [lines[count] for count in sorted(lines)]

    def save_tables(self, path: FileName, overwrite: bool = False) -> None:
        """Writes the frame-plan tables as a NumPy archive, `longgen plan --npz`. Raises LonggenError, UsageError."""
        _export(self.plan, Path(path), overwrite)

    def _repr_html_(self) -> str:
        plan, (width, height) = self.plan, self.plan.size
        facts = [
            ("length", f"{plan.written_px} frames, {plan.duration_s:.1f} s"),
            ("latent frames", f"{plan.frames_lat} ({plan.spec.native_lat} native)"),
            ("size", f"{width}x{height}"),
            ("steps", str(plan.steps)),
            ("cost", f"{self.cost_ratio:.2f} × direct sampling"),
            ("memory", f"{human_bytes(self.memory_bytes['peak'])} peak, estimated"),
        ]
        if self.card is not None and self.seconds is not None:
            facts.append(("time", f"{self.seconds:,.0f} s on {self.card.name}, estimated"))
        rows = [(placed.name, placed.technique.slot, count_label(placed.layers, plan.spec.layers),
                 count_label(placed.steps, plan.steps)) for placed in plan.techniques]  # fmt: skip
        return notebook.shown(f"{plan.preset.name} on {plan.spec.name}", facts=facts, rows=rows, notes=plan.notes, text=str(self),
                              heads=("technique", "slot", "layers", "steps"))  # fmt: skip


@public(**EARLIER)
def plan(
    *,
    preset: str | None = None,
    overrides: Sequence[str] | None = None,
    layers: str | None = None,
    probe: str | None = None,
    allow_code: bool = False,
    backbone: str | None = None,
    frames: int | None = None,
    duration: str | None = None,
    size: tuple[int, int] | str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    flow_shift: float | None = None,
    fps: int | None = None,
    image: FileName | None = None,
    last_image: FileName | None = None,
    continue_from: FileName | None = None,
    join: bool = False,
    fit: Literal["crop", "pad"] = "crop",
    schedule: PromptSchedule | FileName | None = None,
    dtype: Dtype | None = None,
    offload: Offload = "none",
    card: str | None = None,
    gpus: int | Sequence[int] | None = None,
    guidance_parallel: bool = False,
) -> PlanResult:
    """What would run: `longgen plan`. Loads no weights, and refuses what `longgen.generate` would.

    The parameters are those of `longgen.generate`, with a preset or a backbone in the place of a prompt. dtype, offload: those that
    memory is estimated for (default: the backbone's dtype). card: the GPU that time is estimated for: h100, h200, a100 or 4090
    (default: this machine's, else h100). gpus: also what each of so many GPUs has that split the video; several numbers as (2, 4).

    Raises LonggenError and its kinds.
    """
    given = locals()
    spec = choices.backbone(backbone)
    if spec.built_in and card is not None:
        raise UsageError(f"--card has no effect on {spec.name}: no time on a GPU is estimated for built-in models",
                         expected="--card with a published model", hint="leave it out, or give another --backbone")  # fmt: skip
    conditions = start.read(image, last_image, continue_from, join, fit)
    counts = (gpus,) if isinstance(gpus, int) else () if gpus is None else tuple(gpus)
    request = PlanRequest(preset, spec, (*(overrides or ()),), choices.sample(given), duration, choices.shots(schedule), layers,
                          probe, allow_code=allow_code, conditions=conditions)  # fmt: skip
    made = result_of(request, dtype, offload, card, counts, guidance_parallel)
    start.check_fit(fit != FITS[0], made.plan.fits)
    return made


def result_of(
    request: PlanRequest, dtype: str | None, offload: str, card: str | None, gpus: Sequence[int], guidance_parallel: bool
) -> PlanResult:
    """The plan of `request` with its estimates. card: a name, or the one of this machine. gpus: a recommended preset can be split
    between the first of these. Raises UsageError.
    """
    if request.probe == "run":
        raise conflict("--probe run", "plan", "it runs the model, and plan loads no weights", "a probe's file, or published",
                       "longgen probe first; plan then uses the stored probe")  # fmt: skip
    first = next((count for count in gpus[:1] if 2 <= count <= MOST_GPUS), 1)
    made = resolve(replace(request, gpus=first, guidance_parallel=guidance_parallel and first > 1))
    named = None if card is None else cards.card_named(card)
    if guidance_parallel and not gpus:
        raise UsageError("--guidance-parallel needs --gpus", expected="both, or none", hint="add --gpus 2")
    shown = None if made.spec.built_in else named or cards.card_here() or cards.CARDS[cards.DEFAULT]
    split, refused = _split(made, gpus, guidance_parallel, dtype or made.spec.dtype, offload)
    return PlanResult(made, dtype or made.spec.dtype, offload, shown, split, refused)


def _split(
    made: Plan, gpus: Sequence[int], guidance_parallel: bool, dtype: str, offload: str
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """What one GPU has of the plan, for each of the numbers `gpus`, and where none can be, why. Raises UsageError where none is."""
    from longgen import split

    if gpus and (min(gpus) < 2 or max(gpus) > MOST_GPUS):
        raise UsageError(f"--gpus {','.join(map(str, gpus))} is no number of GPUs",
                         expected="2 or more; several with commas, as 2,4", hint="correct it")  # fmt: skip
    found: list[dict[str, Any]] = []
    errors: dict[int, UsageError] = {}
    for count in dict.fromkeys(gpus):
        settings = ModelSettings("cuda", dtype, offload=offload, gpus=count, guidance_parallel=guidance_parallel)
        try:
            found.append(split.numbers(made, settings))
        except UsageError as error:
            errors[count] = error
    if errors and not found:
        raise next(iter(errors.values()))
    return found, {count: error.given for count, error in errors.items()}


def _export(made: Plan, export: Path, overwrite: bool) -> None:
    import numpy as np

    from longgen import disk

    if export.suffix != ".npz":
        raise UsageError(f"--npz {export}: tables are written as a NumPy archive", expected="a name ending in .npz",
                         hint=f"use {export.with_suffix('.npz')}")  # fmt: skip
    disk.check_new(export, overwrite, "--npz")
    if not export.parent.is_dir():
        raise LonggenError(f"{export} cannot be written: {export.parent} does not exist", expected="an existing folder",
                           hint="create it, or give another --npz")  # fmt: skip

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **made.arrays())

    disk.replace_file(export, write)
