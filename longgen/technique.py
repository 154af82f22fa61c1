"""What every technique is: closed, frozen parameters, and what it says of itself to the plan.

A technique is one class in one file, with one row in `longgen.catalog`. Its fields are its parameters; a preset or
`--set name.key=value` fills them, and an unknown key or a value out of range is refused. By slot it then has

    positions, context   FrameTechnique: from one frame plan to another, so that they stack
    fusion               Fusion: branches, each with its frame plan, and how their outputs become one
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longgen.frameplan import Clip, FramePlan

if TYPE_CHECKING:
    from torch import Tensor


Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Step:
    """Where the schedule stands: `index` of the step, and the `timesteps` (0..1000, falling) of all steps."""

    index: int
    timesteps: tuple[float, ...]


class Technique(BaseModel):
    """Parameters that every technique has.

    layers: "all", or the indices of the transformer blocks it acts on.
    steps: the part of the schedule it acts in, as [from, to) in fractions of the number of steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    layers: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = "all"
    steps: Annotated[tuple[Share, Share], Field(strict=False)] = (0.0, 1.0)

    slot: ClassVar[str]
    paper: ClassVar[str]
    claims: ClassVar[tuple[str, ...]] = ()  # what only one technique at a time may decide
    needs: ClassVar[tuple[str, ...]] = ()  # capabilities the backbone must have

    @model_validator(mode="after")
    def _steps_in_order(self) -> Technique:
        if self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps {list(self.steps)} is an empty range: from must be below to")
        return self

    def step_range(self, steps: int) -> range:
        """The steps of a schedule of `steps` in which it acts."""
        return range(round(self.steps[0] * steps), round(self.steps[1] * steps))


class FrameTechnique(Technique):
    """A technique of the slots positions and context."""

    @abstractmethod
    def reshape(self, plan: FramePlan, clip: Clip) -> FramePlan:
        """`plan` with this technique applied; `plan` itself where it changes nothing."""


class Fusion(Technique):
    """A technique that runs attention in several branches and makes one output of them."""

    slot: ClassVar[str] = "fusion"

    @abstractmethod
    def branches(self, plan: FramePlan, clip: Clip, step: int, steps: int) -> dict[str, FramePlan]:
        """The branches that step `step` of `steps` needs, made from the stack's `plan`. A single one is not fused."""

    @abstractmethod
    def fuse(self, outputs: Mapping[str, Tensor], step: Step) -> Tensor:
        """One output [B, N, C] of the branches' outputs, each [B, N, C]."""

    @abstractmethod
    def operations(self, tokens: int, channels: int) -> int:
        """Floating-point operations of `fuse` for one sample."""
