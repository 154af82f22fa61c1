"""Base of all backbones: an unmodified diffusers pipeline with attention processors on the self-attention of chosen layers.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim, C channels.

A family is one file: which modules are its layers, how its attention makes q, k and v, its rotary tables, how its
pipeline lays out latents, and how its VAE decodes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor

from longgen.attention import executor
from longgen.attention.kvcache import KVCache
from longgen.attention.lse_kernels import AttentionWithLSE, attention_with_lse
from longgen.attention.observer import AttentionInputs, Observer
from longgen.attention.rotary import Rotary, Tables
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.errors import UsageError
from longgen.pipelines import finite, foreign_hooks
from longgen.pipelines.step_state import ClipBatch, StepState
from longgen.plan import Plan
from longgen.program import Program
from longgen.technique import Grid


def dispatch(q: Tensor, k: Tensor, v: Tensor, backend: Any, parallel: Any, mask: Tensor | None = None) -> Tensor:
    """diffusers' attention of q [B, Nq, H, D] over k, v [B, Nk, H, D]. mask [Nq, Nk]: bool, or what is added to the logits."""
    if mask is not None:
        backend, mask = AttentionBackendName.NATIVE, mask[None, None]  # most others refuse masks; [Nq, Nk] would mean [B, Nk]
    return dispatch_attention_fn(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False, backend=backend, parallel_config=parallel)


@dataclass
class LayerCall:
    """One call of one layer: the `AttentionContext` of a diffusers model.

    text: keys and values [B, L, H, D] that every query sees. layer: identifies the layer. clips: the clips of the model's call, of
    which this one's samples begin at `first`.
    """

    grid: Grid
    features: Tensor
    rotary: Rotary | None
    stock: Tables | None
    backend: Any
    parallel: Any
    text: tuple[Tensor, Tensor] | None = None
    layer: int = 0
    clips: ClipBatch | None = None
    first: int = 0
    observer: Observer | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.text is not None:
            k, v = (torch.cat([x, text], dim=1) for x, text in zip((k, v), self.text, strict=True))
            if mask is not None:
                shape = (len(mask), self.text[0].shape[1])
                mask = torch.cat([mask, mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)], dim=1)
        return dispatch(q, k, v, self.backend, self.parallel, mask)

    def rotate(self, x: Tensor, positions: np.ndarray | None, scale: np.ndarray | None) -> Tensor:
        if self.rotary is None or self.stock is None:
            return x
        if positions is None and scale is not None:
            positions = np.arange(self.grid[0], dtype=np.float64)
        tables = self.stock if positions is None else self.rotary.tables_at(self.stock, positions, scale)
        return self.rotary.rotate(x, tables)

    def rotate_time(self, x: Tensor, unrotated: Tensor, frames: np.ndarray, times: np.ndarray, scale: np.ndarray | None) -> None:
        if self.rotary is not None:
            x, unrotated = (tensor.unflatten(1, (-1, self.grid[1] * self.grid[2])) for tensor in (x, unrotated))
            self.rotary.rotate_time(x, unrotated, frames, times, scale)

    def attention_with_lse(self, q: Tensor, masked: bool = False) -> AttentionWithLSE | None:
        if self.parallel is not None:
            return None
        backend = self.backend or _AttentionBackendRegistry.get_active_backend()[0]
        return attention_with_lse(q.device, q.dtype, q.shape[3], masked) if backend == AttentionBackendName.NATIVE else None

    def observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if self.observer is not None:
            shape = (self.grid[0], self.grid[0])
            rotate = lambda x, times: self.rotate(x, times, None)  # noqa: E731
            self.observer(AttentionInputs(self.layer, shape, q, k, v, rotate, self.attend, self.text))

    def anchored(self, k: Tensor, v: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        if self.clips is None:
            return k, v
        mixed_k, mixed_v = [], []
        for sample_k, sample_v, (clip, anchor, sample) in zip(k, v, self.clips.rows[self.first :], strict=False):
            key = (self.layer, anchor, sample)
            if clip == anchor:  # it comes before the clips that borrow from it
                self.clips.anchor_kv[key] = sample_k.clone(), sample_v.clone()  # views would keep the whole batch
                mixed_k.append(sample_k)
                mixed_v.append(sample_v)
            else:
                anchor_k, anchor_v = self.clips.anchor_kv[key]
                mixed_k.append(sample_k.lerp(anchor_k, weight))
                mixed_v.append(sample_v.lerp(anchor_v, weight))
        return torch.stack(mixed_k), torch.stack(mixed_v)

    def sample(self, index: int) -> LayerCall:
        rows = slice(index, index + 1)
        return replace(self, features=self.features[rows], text=self.text and (self.text[0][rows], self.text[1][rows]))


class PlannedAttention:
    """Self-attention processor that runs the program of the current step. One object serves all layers with the same programs.

    What depends on step, layer or program is excluded from `torch.compile`: it would make a graph for each, and soon give up.
    """

    def __init__(
        self,
        programs: tuple[Program | None, ...],
        grid: Grid,
        step_state: StepState,
        rotary: Rotary | None,
        stock: Any,
        backend: Any,
    ):
        self.programs, self.grid, self.step_state, self.rotary, self.stock = programs, grid, step_state, rotary, stock
        self._attention_backend = getattr(stock, "_attention_backend", None) or backend  # diffusers sets these two by name
        self._parallel_config = getattr(stock, "_parallel_config", None)

    @torch.compiler.disable
    def idle(self) -> bool:
        """Whether the layer runs the backbone's own attention in this step."""
        return self.programs[self.step_state.index] is None

    @torch.compiler.disable
    def run(self, layer: Any, features: Tensor, tables: Tables | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output [B, N, H * D] of the module `layer` for q, k, v [B, N, H, D]. tables: the stock cos and sin [N, P] or None."""
        return executor.run(self._program, self.call(layer, features, tables), q, k, v, self.step_state.step)

    @torch.compiler.disable
    def run_joint(
        self,
        layer: Any,
        features: Tensor,
        tables: Tables | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        text: tuple[Tensor, Tensor, Tensor],
        first: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """`run` where `text`, q, k and v [B, L, H, D], takes part in self-attention; its output [B, L, H * D] comes second.

        first: the number of the first sample among those of the model's call.
        """
        text_q, text_k, text_v = text
        call = self.call(layer, features, tables, (text_k, text_v), first)
        video = executor.run(self._program, call, q, k, v, self.step_state.step)
        return video, executor.run_text(self._program, call, text_q, k, v)

    @property
    def _program(self) -> Program:
        program = self.programs[self.step_state.index]
        assert program is not None
        return program

    def call(
        self, layer: Any, features: Tensor, tables: Tables | None, text: tuple[Tensor, Tensor] | None = None, first: int = 0
    ) -> LayerCall:
        """This call of the module `layer` for the executor. tables: the stock cos and sin [N, P] or None."""
        state = self.step_state
        return LayerCall(
            self.grid, features, self.rotary, tables, self._attention_backend, self._parallel_config,
            text, id(layer), state.clips, first, state.observer,
        )  # fmt: skip


class ShotText:
    """Cross-attention processor: each frame attends to the texts of its shots, weighted by its shares of them."""

    def __init__(self, step_state: StepState, stock: Any) -> None:
        self.step_state, self.stock = step_state, stock
        self._attention_backend = getattr(stock, "_attention_backend", None)  # diffusers sets these two by name
        self._parallel_config = getattr(stock, "_parallel_config", None)

    @torch.compiler.disable  # which frames read which text changes with the clip
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary: Any = None,
    ) -> Tensor:
        """hidden_states [B, N, C], encoder_hidden_states [B, S L, C], attention_mask [B, 1, S L] or None."""
        shares = self.step_state.shares
        if shares is None or len(shares) == 1:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        frames = hidden_states.unflatten(1, (shares.shape[1], -1))
        texts = encoder_hidden_states.chunk(len(shares), dim=1)
        masks = [None] * len(shares) if attention_mask is None else attention_mask.chunk(len(shares), dim=-1)
        output = torch.zeros_like(frames)
        for share, text, mask in zip(shares, texts, masks, strict=True):
            seen = share.nonzero().flatten()
            if len(seen):
                part = self.stock(attn, frames[:, seen].flatten(1, 2), text, mask, rotary).unflatten(1, (len(seen), -1))
                output[:, seen] += share[seen].to(part).view(-1, 1, 1) * part
        return output.flatten(1, 2)


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
    """A loaded pipeline and what longgen adds to it. Every family is a subclass."""

    spec: BackboneSpec
    pipe: Any
    model_settings: ModelSettings
    step_state: StepState = field(init=False)
    notes: tuple[str, ...] = field(init=False, default=())

    kind: ClassVar[type[DiffusionPipeline]]
    vae_kind: ClassVar[Any]
    processor: ClassVar[type[PlannedAttention]]
    stock: ClassVar[tuple[type, ...]]  # diffusers' processors, which `processor` stands in for

    def __post_init__(self) -> None:
        self.step_state = StepState(self.pipe)

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

    def text(self, prompt: str) -> dict[str, Tensor]:
        """The transformer's text arguments for `prompt`, [1, ...] each, as the pipeline makes them. Raises LonggenError."""
        text = self.encoded(prompt)
        finite.check_text(text, self.model_settings, repr(prompt))
        return text

    @abstractmethod
    def encoded(self, prompt: str) -> dict[str, Tensor]:
        """`text`, unchecked."""

    @abstractmethod
    def rotary(self) -> Rotary | None:
        """The temporal rotary positions, or None where the model has none."""

    def latent_shape(self, plan: Plan) -> tuple[int, int, int, int, int]:
        """[1, C, T, height, width] of the latents of `plan`."""
        width, height = plan.size
        return (1, self.spec.latent_channels, plan.frames_lat, height // self.spec.stride_hw, width // self.spec.stride_hw)

    def noise(self, plan: Plan, generator: torch.Generator) -> Tensor:
        """Independent noise [1, C, T, h, w], as the pipeline itself would draw it."""
        return torch.randn(self.latent_shape(plan), generator=generator)

    def packed(self, latents: Tensor) -> Tensor:
        """Latents [1, C, T, h, w] as the pipeline lays them out."""
        return latents

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        """The pipeline's latents as [1, C, T, h, w]."""
        return latents

    def shifted(self, plan: Plan) -> Any:
        """The pipeline's scheduler; where `plan` has a flow shift, one like it with that shift. Raises UsageError."""
        scheduler, shift = self.pipe.scheduler, plan.sample.flow_shift
        if shift is None:
            return scheduler
        config, kind = scheduler.config, type(scheduler).__name__
        if config.get("use_dynamic_shifting"):
            raise _no_shift(plan, f"its {kind} shifts the noise levels by the number of tokens")
        if config.get("use_flow_sigmas") and "flow_shift" in config:
            return type(scheduler).from_config(config, flow_shift=shift)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return type(scheduler).from_config(config, shift=shift)
        raise _no_shift(plan, f"its {kind} has no flow shift")

    def first_order(self, plan: Plan) -> Any:
        """A scheduler of first order, which leaves edits of the latent as they are; the pipeline's own where that is one."""
        scheduler = self.shifted(plan)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return scheduler
        return FlowMatchEulerDiscreteScheduler(shift=scheduler.config.get("flow_shift") or 1.0)

    def frame_schedule(self, plan: Plan) -> Any:
        """A scheduler of first order with `plan`'s timesteps set, for the frames that the model sees at a time."""
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
        """See `Backbone`."""
        raise NotImplementedError(f"{self.spec.name} is not causal")  # a plan refuses it before

    def levels(self, step: int) -> tuple[tuple[float, float], tuple[float, float], float]:
        """(alpha, sigma) of x = alpha x0 + sigma noise before and after `step`, and d x0 / d x for a constant model output."""
        before, after = self.pipe.scheduler.sigmas[step : step + 2].tolist()
        return (1 - before, before), (1 - after, after), 1.0

    def by_frame(self, x: Tensor, frames_lat: int) -> Tensor:
        """The transformer's input or output as a view [B, T, ...], with `frames_lat` frames on the second axis."""
        return x.transpose(1, 2)

    def from_frames(self, x: Tensor) -> Tensor:
        """The inverse of `by_frame`."""
        return x.transpose(1, 2)

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, count: int) -> dict[str, Any]:
        """The arguments of a call for T frames as those of a call for `count` clips: `part` [count B, L, ...] of its input."""
        batch = len(part) // count
        tensors = {
            name: value.repeat(count, *[1] * (value.ndim - 1))
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

    @contextmanager
    def installed(self, plan: Plan) -> Iterator[None]:
        """Within the context, the transformers' self-attention follows `plan`; afterwards it is as it was.

        With a technique that edits the latent, the pipeline then steps by a scheduler of first order. Raises UsageError.
        """
        foreign_hooks.check_model(self.pipe, self.transformers)
        scheduler = self.pipe.scheduler
        chosen = self.first_order(plan) if plan.refinements else self.shifted(plan)
        rotary = self.rotary()
        before = [(layer, layer.processor) for transformer in self.transformers for layer in self.layers(transformer)]
        texts = [(layer, layer.processor) for transformer in self.transformers for layer in self.text_layers(transformer)]
        replaced = [stock for index, (_, stock) in enumerate(before) if plan.table[index % self.spec.layers].any()]
        foreign_hooks.check_processors((*replaced, *(stock for _, stock in texts if plan.shares is not None)), self.stock)
        shared: dict[tuple[bytes, type], PlannedAttention] = {}
        try:
            self.pipe.scheduler = chosen
            for index, (layer, stock) in enumerate(before):
                row = plan.table[index % self.spec.layers]
                if not row.any():
                    continue  # the backbone's own attention in every step
                key = (row.tobytes(), type(stock))
                if key not in shared:
                    programs = tuple(plan.programs[program] for program in row)
                    shared[key] = self.processor(
                        programs, plan.call_grid, self.step_state, rotary, stock, self.model_settings.attention
                    )
                layer.set_processor(shared[key])
            if plan.shares is not None:
                for layer, stock in texts:
                    layer.set_processor(ShotText(self.step_state, stock))
            yield
        finally:
            self.pipe.scheduler = scheduler
            for layer, processor in (*before, *texts):
                layer.set_processor(processor)


def _no_shift(plan: Plan, reason: str) -> UsageError:
    return UsageError(f"a flow shift of {plan.sample.flow_shift:g} is asked, and {plan.spec.name} takes none: {reason}",
                      expected="no --flow-shift, and none in the preset", hint="leave it out")  # fmt: skip


def whole(latents: Tensor | Iterator[Tensor]) -> Tensor:
    """Latents [1, C, T, h, w], for VAEs that need them all at once."""
    return latents if isinstance(latents, Tensor) else torch.cat([*latents], dim=2)


def to_frames(video: Tensor) -> np.ndarray:
    """A VAE's output [1, 3, F, H, W] in -1..1 as frames [F, H, W, 3] uint8, as diffusers makes them. Raises LonggenError."""
    finite.check_picture(video)
    video = (video[0].clamp(-1, 1) * 0.5 + 0.5).clamp(0, 1)
    return (video.permute(1, 2, 3, 0).float().cpu().numpy() * 255).round().astype(np.uint8)


@contextmanager
def on_device(vae: Any) -> Iterator[None]:
    """Model offload moves a VAE when its decode() is called; parts of it that are called alone need this."""
    offload = getattr(vae, "_hf_hook", None)
    if offload is not None:
        offload.pre_forward(vae)
    yield
