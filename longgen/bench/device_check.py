"""Whether presets come out on a device as on the CPU: runs of a small model with the same weights, noise and text on both.

The model has the classes, the head size and the length in latent frames of the published one, so that plans are as they are there,
but few layers, heads and tokens. Both run in float32, where a difference is rounding or a fault; the device also in the dtype of
the real model, whose error is shown and not judged: choices of a technique, as of key frames, may then differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.bench.device_report import Check
from longgen.errors import UsageError
from longgen.loops import PROMPTS, State, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import random_weights
from longgen.pipelines.base import PipelineBackbone
from longgen.plan import Plan
from longgen.preset import Sample

HEADS, LAYERS, TOKENS = 2, 3, (4, 3)  # of the small model; tokens across and down a frame
STEPS = 4  # of a run: enough for presets that act in a part of the schedule
ROUNDS = 4  # of a run that takes more, as a queue's
MakePlan = Callable[[str, BackboneSpec, Sample], Plan]


def small(spec: BackboneSpec) -> BackboneSpec:
    """`spec` with few layers, heads and tokens. Its published layers are not those of the small one: a third is of either kind."""
    width = HEADS * spec.head_dim
    across, down = (count * multiple for count, multiple in zip(TOKENS, spec.size_multiple, strict=True))
    rotary_dims = spec.rotary_dims if spec.rotary_span_s is None else 2 * (width // 6)
    sound = None if spec.sound is None else spec.sound._replace(width=width // 2)
    return replace(
        spec, layers=LAYERS, heads=HEADS, ffn_dim=4 * width, size=(across, down), rotary_dims=rotary_dims, parameters=0,
        companions=0, sound=sound, text_tokens=min(spec.text_tokens, 64),
        verdicts={"position-sensitive": (0, 1), "context-sensitive": (2,)},
    )  # fmt: skip


def small_plan(name: str, spec: BackboneSpec, make: MakePlan, frames: int) -> Plan:
    """The plan of the preset `name` for the small `spec`, of STEPS steps where it leaves them free. Raises UsageError."""
    try:
        return make(name, spec, Sample(frames=frames, steps=STEPS))
    except UsageError:
        return make(name, spec, Sample(frames=frames))


class Pair:
    """A small model on the CPU in float32, and the same one on the device, in float32 and in `dtype`."""

    def __init__(self, spec: BackboneSpec, device: str, dtype: str) -> None:
        self.spec, self.dtype = spec, dtype
        self.reference = random_weights.build(spec, ModelSettings("cpu", "fp32"))
        self.others = {name: self._copy(ModelSettings(device, name)) for name in dict.fromkeys(("fp32", dtype))}

    def _copy(self, settings: ModelSettings) -> PipelineBackbone:
        """The model with the reference's weights: random numbers of the same seed are others on another device."""
        copy = random_weights.build(self.spec, settings)
        for ours, theirs in zip(copy.transformers, self.reference.transformers, strict=True):
            ours.load_state_dict(theirs.state_dict())
        return copy

    def check(self, plan: Plan) -> Check:
        """`plan` on both. Raises what running it does."""
        start = time.perf_counter()
        expected = latents_of(self.reference, plan)
        with full_float32():
            errors = {name: relative_error(latents_of(other, plan), expected) for name, other in self.others.items()}
        return Check(self.spec.name, errors["fp32"], errors[self.dtype], self.dtype, time.perf_counter() - start)


class _Enough(Exception):
    """The run has done the rounds that are compared."""


@torch.no_grad()
def latents_of(backbone: PipelineBackbone, plan: Plan) -> Tensor:
    """The latents after a run by `plan`, or after ROUNDS of its rounds, on the CPU in float32."""
    generator, last = torch.Generator().manual_seed(0), list[Tensor]()
    denoiser = Denoiser(backbone, plan, PROMPTS[0], backbone.given(plan, generator))

    def keep(state: State) -> None:
        last[:] = [state.latents.detach().float().cpu().clone()]
        if state.done >= max(ROUNDS, plan.steps if plan.rounds == plan.steps else 0):
            raise _Enough

    try:
        return sample(denoiser, denoiser.initial_noise(generator), generator, keep).float().cpu()
    except _Enough:
        backbone.pipe.maybe_free_model_hooks()
        return last[0]


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Root of the mean square of the difference, relative to that of `expected`; infinite where `ours` is not finite."""
    if ours.shape != expected.shape or not bool(ours.isfinite().all()):
        return float("inf")
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the context, float32 is computed in float32: convolutions of CUDA round their inputs to TF32 otherwise."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
