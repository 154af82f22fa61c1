"""Base of all backbones: an unmodified diffusers pipeline with attention processors on the self-attention of chosen layers.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.

A family is one file: which modules are its layers, how its attention makes q, k and v, its rotary tables, how its
pipeline lays out latents, and how its VAE decodes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL.Image import Image
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from longgen import cost, pictures
from longgen.attention.kvcache import KVCache
from longgen.attention.rotary import Rotary
from longgen.attention.ulysses import Ulysses
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError
from longgen.pipelines import earlier, finite, foreign_hooks
from longgen.pipelines.given import Given
from longgen.pipelines.processors import PlannedAttention, ScheduledCrossAttention
from longgen.pipelines.step_state import StepState
from longgen.plan import Plan
from longgen.video import Sound

Text = dict[str, Tensor]  # the transformer's text arguments, of one prompt, [1, ...] each
Velocities = tuple[Tensor, Tensor | None]  # conditional and, with guidance, unconditional


class Expert(NamedTuple):
    """A transformer, and the timesteps [from, below) of the frames that it predicts."""

    transformer: Any
    guidance_scale: float
    from_timestep: float = 0.0
    below_timestep: float = float("inf")


@dataclass
class PipelineBackbone:
    """A loaded diffusers pipeline and what longgen adds to it. Every family is a subclass."""

    spec: BackboneSpec
    pipe: Any
    model_settings: ModelSettings
    step_state: StepState = field(init=False)
    notes: tuple[str, ...] = field(init=False, default=())

    kind: ClassVar[type[DiffusionPipeline]]
    picture_kind: ClassVar[type[DiffusionPipeline] | None] = None  # of models that need a picture, where it is another one
    vae_kind: ClassVar[Any]
    processor: ClassVar[type[PlannedAttention]]
    stock: ClassVar[tuple[type, ...]]  # diffusers' processors, which `processor` stands in for
    streams: ClassVar[tuple[str, ...]] = ()  # further latents that the pipeline samples, by its names: of a model with sound
    sound_parts: ClassVar[tuple[str, ...]] = ()  # the pipeline's components that decode them
    unused_parts: ClassVar[tuple[str, ...]] = ()  # components that an index may name, and that are not loaded

    def __post_init__(self) -> None:
        self.step_state = StepState(self.pipe)

    @classmethod
    def kind_of(cls, spec: BackboneSpec) -> type[DiffusionPipeline]:
        """diffusers' pipeline that loads and runs `spec`."""
        return cls.picture_kind if spec.picture_needed and cls.picture_kind is not None else cls.kind

    @property
    def device(self) -> torch.device:
        return torch.device(self.model_settings.device)

    @property
    def transformers(self) -> list[torch.nn.Module]:
        """The transformer, or the two experts."""
        parts = (self.pipe.transformer, getattr(self.pipe, "transformer_2", None))
        return [part for part in parts if part is not None]

    @staticmethod
    @abstractmethod
    def layers(transformer: Any) -> list[Any]:
        """The self-attention modules of `transformer`, in the order in which layers are counted."""

    @staticmethod
    def text_layers(transformer: Any) -> list[Any]:
        """The cross-attention modules of `transformer`, which read the text; none where self-attention does."""
        return []

    def whole_key_layers(self, transformer: Any) -> list[Any]:
        """The attention modules of `transformer` that need no other rank's tokens where ranks share those of the video."""
        return self.text_layers(transformer)

    @staticmethod
    def token_plan(transformer: Any) -> dict[str, Any]:
        """diffusers' plan of what ranks split of `transformer`'s arguments and modules."""
        return transformer._cp_plan

    def share_streams(self, transformer: Any, split: Ulysses) -> list[RemovableHandle]:
        """Hooks on `transformer` by which what is not the video's meets all of its tokens, shared by the ranks of `split`."""
        return []

    def text(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        """The transformer's text arguments for `prompt`, [1, ...] each, as the pipeline makes them. Raises LonggenError.

        given: what the video starts from, for text encoders that look at it too.
        """
        text = self.encoded(prompt, given)
        finite.check_text(text, self.model_settings, repr(prompt))
        return text

    @abstractmethod
    def encoded(self, prompt: str, given: Given | None = None) -> dict[str, Tensor]:
        """`text`, unchecked."""

    def encode_prompt(self, prompt: str, **options: Any) -> Any:
        """What the pipeline's own `encode_prompt` returns."""
        length, device = self.spec.text_tokens, self.pipe._execution_device
        return self.pipe.encode_prompt(prompt, max_sequence_length=length, device=device, **options)

    def rotary(self) -> Rotary | None:
        """The temporal rotary positions, or None where the model has none."""
        frequencies = np.array(self.spec.frequencies)
        return Rotary(frequencies, np.arange(len(frequencies))) if len(frequencies) else None

    def latent_shape(self, plan: Plan) -> tuple[int, int, int, int, int]:
        """[1, C, T, height, width] of the latents of `plan`."""
        width, height = plan.size
        return (1, self.spec.latent_channels, plan.frames_lat, height // self.spec.stride_hw, width // self.spec.stride_hw)

    def noise(self, plan: Plan, generator: torch.Generator) -> Tensor:
        """Independent noise [1, C, T, h, w], as the pipeline itself would draw it."""
        return torch.randn(self.latent_shape(plan), generator=generator)

    def given(self, plan: Plan, generator: torch.Generator) -> Given | None:
        """What `plan` starts from; None where that is noise alone. generator: for VAEs whose pipelines sample.

        Called before `noise`, in whose order pipelines draw. The first picture is encoded here, once; where a pipeline encodes it
        together with what follows, that is left to it, and the `Given` has no latents.
        """
        if plan.conditions.past is not None:
            return earlier.given(plan, plan.conditions.past, generator, self.encoded_frames)
        image, last_image = self.fitted_pictures(plan)
        return None if image is None else Given(self.encoded_frames(np.asarray(image)[None], generator), image, last_image)

    def fitted_pictures(self, plan: Plan) -> tuple[Image | None, Image | None]:
        """The first and the last picture at the size of `plan`; None where it has none."""
        conditions = plan.conditions
        given = (conditions.image, conditions.last_image)
        image, last_image = (None if one is None else pictures.fitted(one, plan.size, conditions.fit) for one in given)
        return image, last_image

    def encoded_frames(self, frames: np.ndarray, generator: torch.Generator) -> Tensor:
        """The clean latents [1, C, f, h, w], normalised for the transformer, of `frames` [F, height, width, 3] uint8."""
        raise NotImplementedError(f"{self.spec.name} starts from no picture")  # a plan refuses it before

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """Within the context, `pipe` is the pipeline that starts from `given`. Yields further arguments of its call."""
        assert given is None, "a plan refuses it before"
        yield {}

    @contextmanager
    def run_by(self, kind: type[DiffusionPipeline]) -> Iterator[Any]:
        """Within the context, `pipe` is a pipeline of the class `kind` on the same components, with the same hooks of offload."""
        own = self.pipe
        pipe = kind(**own.components)
        vars(pipe).update({name: value for name, value in vars(own).items() if name != "_internal_dict"})  # which is its config
        self.pipe = self.step_state.pipe = pipe
        try:
            yield pipe
        finally:
            self.pipe = self.step_state.pipe = own

    def started(self, noise: Tensor, given: Given | None) -> Tensor:
        """The latents that the pipeline's loop begins with, laid out as it does."""
        return self.packed(noise)

    def last(self, output: Any, latents: Tensor) -> Tensor:
        """The final latents, laid out as the pipeline does, of what it returned; `latents` are those after its last step."""
        return output.frames

    def finished(self, latents: Tensor, given: Given | None) -> Tensor:
        """The final latents [1, C, T, h, w] of the pipeline's loop, with those that were given put back where it does so."""
        return latents

    def predicted(self, x0: Tensor, given: Given | None) -> Tensor:
        """The clean latents [1, C, T, h, w] that a step predicts, `x0` by arithmetic: those that are given are known."""
        return self.finished(x0, given)

    def packed(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] as the pipeline lays them out."""
        return latents

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        """The pipeline's latents as [1, C, T, h, w]."""
        return latents

    def shifted(self, plan: Plan) -> Any:
        """The pipeline's scheduler; where `plan` has a flow shift, one like it with that shift. Raises UsageError.

        It replaces a shift by the number of tokens, whose logarithm pipelines call mu and then hand over in vain.
        """
        scheduler, shift = self.pipe.scheduler, plan.sample.flow_shift
        if shift is None:
            return scheduler
        config, kind = scheduler.config, type(scheduler)
        static = {"use_dynamic_shifting": False} if config.get("use_dynamic_shifting") else {}
        if config.get("use_flow_sigmas") and "flow_shift" in config:
            return kind.from_config(config, flow_shift=shift, **static)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return kind.from_config(config, shift=shift, **static)
        raise UsageError(f"a flow shift of {shift:g} is asked, and {plan.spec.name} takes none: its {kind.__name__} has none",
                         expected="no --flow-shift, and none in the preset", hint="leave it out")  # fmt: skip

    def first_order(self, plan: Plan) -> Any:
        """A first-order scheduler, which keeps edits of the latent; the pipeline's own where it is first-order."""
        scheduler = self.shifted(plan)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return scheduler
        return FlowMatchEulerDiscreteScheduler(shift=scheduler.config.get("flow_shift") or 1.0)

    def frame_schedule(self, plan: Plan) -> Any:
        """A first-order scheduler with `plan`'s timesteps set, for loops in which frames have noise levels of their own."""
        scheduler = self.first_order(plan)
        scheduler.set_timesteps(plan.steps, device=self.pipe._execution_device)
        return scheduler

    def experts(self, plan: Plan) -> list[Expert]:
        """The transformers that predict, each with its guidance scale and its timesteps."""
        return [Expert(self.pipe.transformer, plan.sample.guidance_scale or 0.0)]

    def velocity(self, transformer: Any, x: Tensor, timesteps: Tensor, text: Text, uncond: Text | None) -> Velocities:
        """What `transformer` predicts for clips `x` [K, C, L, h, w] whose frames are at `timesteps` [K, L], of that shape.

        For `text` and, with guidance, for `uncond`: what `self.text` made of the prompt and of the negative prompt.
        """
        raise NotImplementedError(f"{self.spec.name} takes one timestep for all frames")  # a plan refuses it before

    def rolling(self, plan: Plan) -> AbstractContextManager[KVCache]:
        """Within the context, the transformer attends over the KV cache that it yields."""
        raise NotImplementedError(f"{self.spec.name} is not causal")  # a plan refuses it before

    def chunk_schedule(self, plan: Plan, steps: int) -> Any:
        """A new scheduler with the timesteps of `steps`, for one chunk of a rollout."""
        raise NotImplementedError(f"{self.spec.name} is not causal")  # a plan refuses it before

    def levels(self, step: int) -> tuple[tuple[float, float], tuple[float, float], float]:
        """(alpha, sigma) of x = alpha x0 + sigma noise before and after `step`, and d x0 / d x for a constant model output."""
        before, after = self.step_state.scheduled("sigmas")[step : step + 2]
        return (1 - before, before), (1 - after, after), 1.0

    def by_frame(self, x: Tensor, frames_lat: int) -> Tensor:
        """The transformer's input or output as a view [B, T, ...], with `frames_lat` frames on the second axis."""
        return x.transpose(1, 2)

    def from_frames(self, x: Tensor) -> Tensor:
        """The inverse of `by_frame`."""
        return x.transpose(1, 2)

    def zeros(self, arguments: dict[str, Any]) -> Tensor:
        """What a call of the transformer with `arguments` predicts of the video, in shape."""
        return torch.zeros_like(arguments["hidden_states"])

    def unanswered(self, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        """What a call of the transformer with `arguments` returns, in shapes; for steps that are done."""
        return (self.zeros(arguments),)

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, frames: Tensor) -> dict[str, Any]:
        """The arguments of a call for T frames as those of a call for K clips, whose latent frames are `frames` [K, L].

        part: [K B, L, ...], their part of the call's input by frame. Arguments with an entry for each of the B samples are repeated
        clip by clip; those that have entries for frames or tokens too are the family's to gather by `frames` (`of_clips`).
        """
        batch = len(part) // len(frames)
        tensors = {
            name: value.repeat(len(frames), *[1] * (value.ndim - 1))
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.ndim and len(value) == batch and name != "hidden_states"
        }
        return arguments | tensors | {"hidden_states": self.from_frames(part)}

    def call_arguments(self, plan: Plan, prompt: str) -> dict[str, Any]:
        """The arguments of the pipeline's call that `plan` and `prompt` decide."""
        width, height = plan.size
        return dict(
            prompt=prompt, negative_prompt=plan.sample.negative_prompt, height=height, width=width, num_frames=plan.frames_px,
            num_inference_steps=plan.steps, guidance_scale=plan.sample.guidance_scale,
            max_sequence_length=self.spec.text_tokens,
        )  # fmt: skip

    def decode(self, latents: Tensor | Iterator[Tensor]) -> Iterator[np.ndarray]:
        """Frames [few, height, width, 3] uint8 of latents [1, C, T, h, w], or of their frames [1, C, 1, h, w] as they come."""
        return self.decoded(self.pipe.vae, latents, self.device)

    @staticmethod
    @abstractmethod
    def decoded(vae: Any, latents: Tensor | Iterator[Tensor], device: torch.device) -> Iterator[np.ndarray]:
        """`decode` with nothing but the VAE."""

    def sound(self, streams: dict[str, Tensor]) -> Sound | None:
        """The sound of the latents `streams`; None of a silent model."""
        parts = {name: getattr(self.pipe, name) for name in self.sound_parts}
        for part in parts.values():
            to_device(part)
        return self.sounded(parts, streams, self.device) if parts else None

    @staticmethod
    def sounded(parts: dict[str, Any], streams: dict[str, Tensor], device: torch.device) -> Sound:
        """`sound` with nothing but the `parts` named in `sound_parts`."""
        raise NotImplementedError("the model is silent")  # it has no such parts

    @contextmanager
    def installed(self, plan: Plan) -> Iterator[None]:
        """Within the context, the transformers' self-attention follows `plan`; afterwards the stock processors are back.

        With a technique that edits the latent, the pipeline then steps by a scheduler of first order. Raises UsageError.
        """
        foreign_hooks.check_model(self.pipe, self.transformers)
        scheduler = self.pipe.scheduler
        chosen = self.first_order(plan) if plan.refinements else self.shifted(plan)
        rotary, room = self.rotary(), cost.room(self.spec)
        stocks = [(layer, layer.processor) for transformer in self.transformers for layer in self.layers(transformer)]
        texts = [(layer, layer.processor) for transformer in self.transformers for layer in self.text_layers(transformer)]
        replaced = [stock for index, (_, stock) in enumerate(stocks) if plan.table[index % self.spec.layers].any()]
        foreign_hooks.check_processors((*replaced, *(stock for _, stock in texts if plan.shares is not None)), self.stock)
        processors: dict[tuple[bytes, type], PlannedAttention] = {}
        try:
            self.pipe.scheduler = chosen
            for index, (layer, stock) in enumerate(stocks):
                row = plan.table[index % self.spec.layers]
                if not row.any():
                    continue  # the backbone's own attention in every step
                key = (row.tobytes(), type(stock))
                if key not in processors:
                    programs, backend = tuple(plan.programs[program] for program in row), self.model_settings.attention
                    processors[key] = self.processor(programs, plan.call_grid, self.step_state, rotary, stock, backend, room)
                layer.set_processor(processors[key])
            if plan.shares is not None:
                split = Ulysses.of(self.transformers[0]._parallel_config)
                for layer, stock in texts:
                    layer.set_processor(ScheduledCrossAttention(self.step_state, stock, self.spec.text_tokens, split))
            yield
        finally:
            self.pipe.scheduler = scheduler
            for layer, processor in (*stocks, *texts):
                layer.set_processor(processor)


def of_clips(by_token: Tensor, frames_lat: int, frames: Tensor) -> Tensor:
    """Values [B, T n] of the tokens of `frames_lat` frames T, as those of clips [K B, L n] whose frames are `frames` [K, L]."""
    by_frame = by_token.unflatten(1, (frames_lat, -1))
    return torch.cat([by_frame[:, clip].flatten(1) for clip in frames])


def split_guidance(predicted: Tensor, uncond: Text | None) -> Velocities:
    """The prediction of one batch as its two branches; with guidance the unconditional half comes first."""
    if uncond is None:
        return predicted, None
    unconditional, cond = predicted.chunk(2)
    return cond, unconditional


def whole(latents: Tensor | Iterator[Tensor]) -> Tensor:
    """Latents [1, C, T, h, w], for VAEs that need them all at once."""
    return latents if isinstance(latents, Tensor) else torch.cat([*latents], dim=2)


def to_video(frames: np.ndarray) -> Tensor:
    """Frames [F, H, W, 3] uint8 as a VAE's input [1, 3, F, H, W] in -1..1, as diffusers makes it."""
    return 2.0 * (torch.tensor(frames).permute(3, 0, 1, 2)[None].float() / 255.0) - 1.0


def to_frames(video: Tensor) -> np.ndarray:
    """A VAE's output [1, 3, F, H, W] in -1..1 as frames [F, H, W, 3] uint8, as diffusers makes them. Raises LonggenError."""
    finite.check_picture(video)
    video = (video[0].clamp(-1, 1) * 0.5 + 0.5).clamp(0, 1)
    return (video.permute(1, 2, 3, 0).float().cpu().numpy() * 255).round().astype(np.uint8)


def to_device(vae: Any) -> None:
    """Moves an offloaded model to its device: model offload does so in a VAE's decode() only, not where its parts are called."""
    if (offload := getattr(vae, "_hf_hook", None)) is not None:
        offload.pre_forward(vae)
