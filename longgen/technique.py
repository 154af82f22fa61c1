"""Base classes of all techniques: validated, immutable parameters and the hooks that the planner calls.

A technique is one class in one file, with one row in `longgen.catalog`. Its fields are its parameters; a preset or
`--set name.key=value` fills them, and an unknown key or a value out of range is refused. By what it does it is one or
two of these, and a stack applies them in this order, whatever order the preset has:

    NoiseTechnique       the noise that the frames start from
    FrameTechnique       positions: the relative times of a frame plan
    Fusion               several branches, each a frame plan of its own, and how their outputs become one
    FrameTechnique       context: what the frames of every branch see
    HeadTechnique        context: what the frames see by group of heads, each group a branch
    FrameTechnique       positions that follow from what is seen (`after_context`)
    FrequencyTechnique   positions: factors on the temporal rotary frequencies, by the relative times that are then in use
    Sampling             in which order, and with which others, frames are denoised
    Refine               what is done to the latent after a step
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry

if TYPE_CHECKING:
    from torch import Generator, Tensor


LONGEST = 10**6  # latent frames: more than any video has, so that a larger number is a slip of the pen
TIMESTEPS = 1000  # that a model was trained with
LayerVerdict = Literal["position-sensitive", "context-sensitive"]  # of a probe on a layer
VERDICTS: tuple[LayerVerdict, ...] = get_args(LayerVerdict)

Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Grid = tuple[int, int, int]  # latent frames, and rows and columns of tokens in each


@dataclass(frozen=True)
class Step:
    """The current step of a noise schedule: its `index`, and the `timesteps` (0..1000, falling) of all steps."""

    index: int
    timesteps: tuple[float, ...]


class Technique(BaseModel):
    """layers: "all", the indices of the transformer blocks it acts on, or a probe's verdict on the backbone's layers.
    steps: the part of the schedule it acts in, as [from, to) in fractions of the number of steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    layers: Literal["all", LayerVerdict] | Indices = "all"
    steps: Annotated[tuple[Share, Share], Field(strict=False)] = (0.0, 1.0)

    slot: ClassVar[str]
    paper: ClassVar[str]
    exclusive: ClassVar[tuple[str, ...]] = ()  # what only one technique at a time may decide
    requires: ClassVar[tuple[str, ...]] = ()  # capabilities the backbone must have
    everywhere: ClassVar[bool] = False  # whether it can act in all layers and steps only

    @model_validator(mode="after")
    def _steps_in_order(self) -> Technique:
        if self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps {list(self.steps)} is an empty range: from must be below to")
        return self

    def step_range(self, steps: int) -> range:
        """The steps of a schedule of `steps` in which it acts."""
        return range(round(self.steps[0] * steps), round(self.steps[1] * steps))


def check_stride(name: str, stride: int, window: int) -> None:
    """Raises UsageError where windows of `window` latent frames, `stride` apart, would leave gaps."""
    if stride > window:
        raise UsageError(f"{name}.stride = {stride} is more than the window of {window} latent frames: frames between two "
                         "windows would be in none", expected=f"1 to {window}",
                         hint=f"--set {name}.stride={window} for windows side by side, or leave it out")  # fmt: skip


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

    def sink_lat(self, geometry: Geometry) -> int:
        """Latent frames at the beginning that it keeps for the whole video: the attention sink."""
        return 0

    def at_step(self, step: int, geometry: Geometry) -> FrameTechnique:
        """This technique as it is in `step` of the schedule, counted from 0; itself where steps do not matter."""
        return self

    @abstractmethod
    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        """`plan` with this technique applied; `plan` itself where it changes nothing."""


class HeadTechnique(FrameTechnique):
    """A technique by which the heads of a layer see different frames: in groups, to which they are assigned while sampling, once.

    Attention of the heads is measured in the clean pass of a rollout's chunk that reaches `measured_lat` frames; chunks that begin
    then or later have `branches`. Up to there all heads see what `apply` shows.
    """

    slot: ClassVar[str] = "context"
    requires: ClassVar[tuple[str, ...]] = ("kv-cache",)

    @property
    @abstractmethod
    def measured_lat(self) -> int:
        """Latent frames after which heads are in groups."""

    @property
    @abstractmethod
    def first_lat(self) -> int:
        """Latent frames at the beginning whose attention is measured apart; some group keeps them."""

    def sink_lat(self, geometry: Geometry) -> int:
        return self.first_lat

    @abstractmethod
    def branches(self, plan: FramePlan, geometry: Geometry) -> dict[str, FramePlan]:
        """The frame plan of every group of heads, made from the stack's `plan`."""

    @abstractmethod
    def assign(self, attention: np.ndarray) -> np.ndarray:
        """The group [L, H] of every head, by the mean share of its `attention` [L, H, 3] to the first `first_lat` frames, to those
        between, and to the chunk."""

    @abstractmethod
    def most(self, by_group: Mapping[str, float]) -> float:
        """The most that attention can cost, of what it would cost if all heads were of one group."""

    @abstractmethod
    def describe(self, heads: int) -> str:
        """What is known before the run about who of `heads`, those of all layers, is in which group."""


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

    def apart(self, branch: str, groups: int) -> Iterator[tuple[int, Tensor]]:
        """The number and the output of each of `groups` equal groups of the branch's passes, in the order in which they are done.

        [B, F n, C]: of the F frames that have a weight in the group. What groups have in common is computed once.
        """


class Fusion(Technique):
    """A technique that runs attention in several branches and makes one output of them."""

    slot: ClassVar[str] = "fusion"
    exclusive: ClassVar[tuple[str, ...]] = ("the fusion of branches", "the context window")
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    def settled(self, geometry: Geometry) -> Fusion:
        """This technique with what it leaves to the clip filled in: `fuse` and `flops` run on this one."""
        return self

    @abstractmethod
    def branches(self, plan: FramePlan, geometry: Geometry, step: int, steps: int) -> dict[str, FramePlan]:
        """The branches that step `step` of `steps` needs, made from the stack's `plan`. A single one is not fused."""

    @abstractmethod
    def split_step(self, steps: int) -> int:
        """The step at which `branches` change: they are built once for all steps before it, and once for it and all after."""

    @abstractmethod
    def fuse(self, attend: Attend, step: Step, grid: Grid) -> Tensor:
        """One output [B, N, C] of the branches, each computed as often as it is asked for."""

    def share(self, branch: str) -> float:
        """In which share of its steps, at least, `fuse` asks for `branch`: what a cost counts where timesteps decide it."""
        return 1.0

    @abstractmethod
    def flops(self, grid: Grid, channels: int) -> int:
        """Floating-point operations of `fuse` for one sample, attention apart."""

    def double_flops(self, grid: Grid, channels: int) -> int:
        """Those of `flops` that are in double precision on an accelerator too."""
        return 0


class Model(Protocol):
    """What a technique may ask of a backbone: see `longgen.backbones.spec`."""

    @property
    def name(self) -> str: ...
    @property
    def native_lat(self) -> int: ...
    @property
    def clean_lat(self) -> int: ...


class Sampling(Technique):
    """A technique that decides in which order, and with which others, frames are denoised. It has no `layers` or `steps`.

    A subclass is the layout, known at plan time. The loop that carries it out is a function, see `longgen.loops`.

    loop: a row of `longgen.loops.LOOPS`, or "package.module:function". streams: frames are done one after the other, long before
    the last. frame_levels: each frame has a noise level of its own, so that the pipeline's loop cannot serve. in_chunks: frames are
    made in chunks, each with its own noise and its own checkpoint; a state holds the latents of the newest chunk only, and
    `resume.latents[i]` are those of chunk i. shot_pictures: clips begin one after the other with clean frames, so that a later shot
    of a schedule may begin with a picture.
    """

    slot: ClassVar[str] = "sampling"
    exclusive: ClassVar[tuple[str, ...]] = ("the order of sampling",)
    loop: ClassVar[str]
    streams: ClassVar[bool] = False
    frame_levels: ClassVar[bool] = False
    in_chunks: ClassVar[bool] = False
    shot_pictures: ClassVar[bool] = False

    def settled(self, model: Model) -> Sampling:
        """This technique with what it leaves to the backbone filled in: everything else runs on this one. Raises UsageError."""
        return self

    @abstractmethod
    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        """Latent frames of one model call; frame plans are made for these."""

    @abstractmethod
    def calls(self, frames_lat: int, native_lat: int) -> float:
        """Model calls per step, each on `frames_per_call` frames: the mean over steps, guidance not counted."""

    def schedule_steps(self, frames_lat: int, native_lat: int, requested: int | None) -> int | None:
        """The number of steps of the schedule when `requested` are asked for; None: the backbone's default. Raises UsageError."""
        return requested

    def rounds(self, frames_lat: int, native_lat: int, steps: int) -> int:
        """The rounds that progress and checkpoints count: the steps, unless the loop counts something else."""
        return steps


class Refine(Technique):
    """A technique that edits the latent after a scheduler step. It has no `layers`."""

    slot: ClassVar[str] = "refine"
    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    @abstractmethod
    def change(self, x0: Tensor, dx0_dx: float, step: Step) -> Tensor:
        """The edit added to the latent after `step`, [1, C, T, h, w].

        x0: the clean latent [1, C, T, h, w] that the step predicted. dx0_dx: its derivative with respect to the latent, with the
        model's output held constant.
        """
