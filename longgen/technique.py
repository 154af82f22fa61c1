"""What every technique is: closed, frozen parameters, and what it says of itself to the plan.

A technique is one class in one file, with one row in `longgen.catalog`. Its fields are its parameters; a preset or
`--set name.key=value` fills them, and an unknown key or a value out of range is refused. By what it does it is one or
two of these, and a stack applies them in this order, whatever order the preset has:

    NoiseTechnique       the noise that the frames start from
    FrameTechnique       positions: the relative times of a frame plan
    Fusion               several branches, each a frame plan of its own, and how their outputs become one
    FrameTechnique       context: what the frames of every branch see
    FrameTechnique       positions that follow from what is seen (`after_context`)
    FrequencyTechnique   positions: factors on the temporal rotary frequencies, by the relative times that are then in use
    Sampling             in which order, and in which company, frames are denoised
    Refine               what is done to the latent after a step
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longgen.frameplan import FramePlan, Geometry

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from longgen.loops.direct import State
    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan


LONGEST = 10**6  # latent frames: more than any video has, so that a larger number is a slip of the pen
TIMESTEPS = 1000  # that a model was trained with
LayerVerdict = Literal["position-sensitive", "context-sensitive"]  # of a probe on a layer
VERDICTS: tuple[LayerVerdict, ...] = get_args(LayerVerdict)

Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Layers = Literal["all", LayerVerdict] | Indices
Share = Annotated[float, Field(ge=0, le=1)]
Grid = tuple[int, int, int]  # latent frames, and rows and columns of tokens in each


@dataclass(frozen=True)
class Step:
    """Where the schedule stands: `index` of the step, and the `timesteps` (0..1000, falling) of all steps."""

    index: int
    timesteps: tuple[float, ...]


class Technique(BaseModel):
    """Parameters that every technique has.

    layers: "all", the indices of the transformer blocks it acts on, or a probe's verdict on the backbone's layers.
    steps: the part of the schedule it acts in, as [from, to) in fractions of the number of steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    layers: (
        Literal["all", "position-sensitive", "context-sensitive"]
        | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
    ) = "all"
    steps: Annotated[tuple[Share, Share], Field(strict=False)] = (0.0, 1.0)

    slot: ClassVar[str]
    paper: ClassVar[str]
    exclusive: ClassVar[tuple[str, ...]] = ()  # what only one technique at a time may decide
    requires: ClassVar[tuple[str, ...]] = ()  # capabilities the backbone must have

    @model_validator(mode="after")
    def _steps_in_order(self) -> Technique:
        if self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps {list(self.steps)} is an empty range: from must be below to")
        return self

    def step_range(self, steps: int) -> range:
        """The steps of a schedule of `steps` in which it acts."""
        return range(round(self.steps[0] * steps), round(self.steps[1] * steps))


class NoiseTechnique(Technique):
    """A technique that makes the initial noise; `noise = false` leaves it as it is. `layers` and `steps` do not concern it."""

    slot: ClassVar[str] = "noise"

    noise: bool = True

    def check_noise(self, geometry: Geometry) -> None:
        """Raises UsageError where `mix` could not serve `clip`."""

    @abstractmethod
    def mix(self, noise: Tensor, geometry: Geometry, generator: Generator) -> Tensor:
        """The noise to start from, [B, C, T, h, w], of independent N(0, 1) `noise` of that shape; `generator` draws more.

        Every element of the result is N(0, 1) too. At native length or below it is `noise` itself.
        """

    def mixes(self, step: int) -> bool:
        """Whether in a rollout the noise of `step` goes through `mix_chunk`: that of the start, and no noise between steps."""
        return step == 0

    def mix_chunk(self, noise: Tensor, before: Tensor | None) -> Tensor:
        """The noise of a rollout's next chunk, of independent `noise` [B, C, c, h, w] and the frame before it, [B, C, 1, h, w]."""
        raise NotImplementedError  # a plan refuses it before


class FrameTechnique(Technique):
    """A technique of the slots positions and context. after_context: it reads off the plan what is seen."""

    after_context: ClassVar[bool] = False

    @abstractmethod
    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        """`plan` with this technique applied; `plan` itself where it changes nothing."""


class FrequencyTechnique(Technique):
    """A technique that scales the temporal rotary frequencies, the same for q and k."""

    slot: ClassVar[str] = "positions"
    exclusive: ClassVar[tuple[str, ...]] = ("the temporal rotary frequencies",)
    requires: ClassVar[tuple[str, ...]] = ("relative-positions",)

    @abstractmethod
    def factors(self, reach: float, geometry: Geometry) -> np.ndarray:
        """Factors [C] on the frequencies of a plan that sees frames at relative times up to `reach`."""

    def logit_scale(self, geometry: Geometry) -> float:
        """Factor on the attention logits."""
        return 1.0

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        """`plan` with this technique applied; `plan` itself where it changes nothing."""
        factors, logit_scale = self.factors(plan.reach, geometry), self.logit_scale(geometry)
        if (factors == 1).all() and logit_scale == 1:
            return plan
        return replace(
            plan,
            frequency_scale=factors if plan.frequency_scale is None else factors * plan.frequency_scale,
            logit_scale=plan.logit_scale * logit_scale,
        )


class Attend(Protocol):
    """Computes branches of a fusion when they are asked for."""

    def __call__(self, branch: str) -> Tensor:
        """The output of `branch`, [B, N, C]."""
        ...

    def apart(self, branch: str, groups: int) -> Iterator[tuple[int, Tensor]]:
        """The number and the output of each of `groups` equal groups of the branch's passes, in the order in which they are done.

        [B, F n, C]: of the F frames that have a weight in the group. What groups have in common is computed once.
        """
        ...


class Fusion(Technique):
    """A technique that runs attention in several branches and makes one output of them."""

    slot: ClassVar[str] = "fusion"
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    def settled(self, geometry: Geometry) -> Fusion:
        """This technique with what it leaves to the clip filled in: `fuse` and `operations` run on this one."""
        return self

    @abstractmethod
    def branches(self, plan: FramePlan, geometry: Geometry, step: int, steps: int) -> dict[str, FramePlan]:
        """The branches that step `step` of `steps` needs, made from the stack's `plan`. A single one is not fused."""

    @abstractmethod
    def fuse(self, attend: Attend, step: Step, grid: Grid) -> Tensor:
        """One output [B, N, C] of the branches, each computed as often as it is asked for."""

    def share(self, branch: str) -> float:
        """In which share of its steps, at least, `fuse` asks for `branch`: what a cost counts where timesteps decide it."""
        return 1.0

    @abstractmethod
    def flops(self, grid: Grid, channels: int) -> int:
        """Floating-point operations of `fuse` for one sample, attention apart."""


class Sampling(Technique):
    """A technique that decides the order in which frames are denoised. `layers` and `steps` do not concern it.

    frame_levels: frames stand at noise levels of their own, so that no step is all frames' and the pipeline's loop cannot serve.
    in_chunks: frames are made in chunks, each with its own noise and its own checkpoint; `stream` then gets no noise, states
    hold the latents of the newest chunk only, and `resume.latents[i]` are those of chunk i.
    """

    slot: ClassVar[str] = "sampling"
    exclusive: ClassVar[tuple[str, ...]] = ("the order of sampling",)
    streams: ClassVar[bool] = False  # frames are done one after the other, long before the last
    frame_levels: ClassVar[bool] = False
    in_chunks: ClassVar[bool] = False

    @abstractmethod
    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        """How many latent frames the model sees at a time; frame plans are made for these."""

    @abstractmethod
    def calls(self, frames_lat: int, native_lat: int) -> float:
        """How many times a step the model is called on that many frames, guidance apart (the mean over steps)."""

    def schedule_steps(self, frames_lat: int, native_lat: int, asked: int | None) -> int | None:
        """The steps of the schedule where `asked` were asked for; None leaves them to the backbone. Raises UsageError."""
        return asked

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """What progress and checkpoints count; `steps` unless the loop is its own."""
        return steps

    @abstractmethod
    def sample(
        self,
        backbone: PipelineBackbone,
        plan: Plan,
        prompt: str,
        latents: Tensor,
        on_step: Callable[[State], None],
        resume: State | None,
        generator: Generator,
    ) -> Tensor:
        """Denoises `latents` [1, C, T, h, w], as `longgen.loops.direct.sample` does."""

    def stream(
        self,
        backbone: PipelineBackbone,
        plan: Plan,
        prompt: str,
        latents: Tensor,
        on_step: Callable[[State], None],
        resume: State | None,
        generator: Generator,
    ) -> Iterator[Tensor]:
        """The frames of `sample`, [1, C, 1, h, w] each, in their order and as soon as they are done."""
        yield from self.sample(backbone, plan, prompt, latents, on_step, resume, generator).split(1, dim=2)


class Refine(Technique):
    """A technique that changes the latent after a step of the scheduler. `layers` do not concern it."""

    slot: ClassVar[str] = "refine"
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    @abstractmethod
    def change(self, clean: Tensor, slope: float, step: Step) -> Tensor:
        """What is added to the latent after `step`, [1, C, T, h, w].

        clean: the clean latent [1, C, T, h, w] that the step predicted. slope: d clean / d latent, with the model's output
        held constant.
        """
