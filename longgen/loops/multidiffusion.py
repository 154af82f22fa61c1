"""MultiDiffusion in time: the pipeline as it is, whose transformer sees clips of native length; their predictions are averaged.

Legend: B batch, C channels, T latent frames, L frames of a clip, K clips, n tokens per latent frame.

A hook on the transformer takes the call for T frames, makes calls for clips of L, up to `clip_batch` at a time, and returns the
weighted mean of their predictions, frame by frame. So the scheduler steps once, and guidance, LoRA, offload, quantization and
both experts of Wan 2.2 are the pipeline's own. Each batch of clips has its own cache context, which is reset when clips
move. (LTX-Video shifts its schedule by the tokens of the whole video, as its pipeline does, not by those of a clip.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longgen.device_tables import on_device
from longgen.errors import UsageError
from longgen.loops import OnStep, State
from longgen.loops.denoiser import Denoiser
from longgen.loops.direct import run_pipeline
from longgen.loops.prompt_schedule import with_text
from longgen.loops.shared_clips import shared_out
from longgen.pipelines.step_state import ClipBatch
from longgen.sampling.multidiffusion import MultiDiffusion
from longgen.split import split_of


def multidiffusion(
    denoiser: Denoiser, noise: Tensor, generator: torch.Generator, on_step: OnStep, resume: State | None
) -> Iterator[Tensor]:
    """Yields the latents of all frames, [1, C, T, h, w], at the end."""
    backbone, plan = denoiser.backbone, denoiser.plan
    assert isinstance(plan.sampling, MultiDiffusion)
    cache = backbone.model_settings.cache
    if cache is not None and any(frame_plan.anchor for frame_plan, _, _ in plan.branches().values()):
        raise UsageError(f"--cache {cache} skips layers whose keys and values the anchor lends",
                         expected="one of them", hint="leave --cache out, or --set anchor.weight=0")  # fmt: skip
    shifts = torch.randint(plan.sampling.shifts(plan.call_geometry.frames_lat), (plan.steps,), generator=generator).tolist()
    try:
        latents = run_pipeline(denoiser, noise, generator, on_step, resume, _ClipwiseCall(denoiser, plan.sampling, shifts))
    finally:
        backbone.step_state.clips = None
    yield latents


class _ClipwiseCall:
    """A model call for all frames, made clip by clip. shifts: of each step, what `layout.clips` takes."""

    def __init__(self, denoiser: Denoiser, layout: MultiDiffusion, shifts: list[int]) -> None:
        self.denoiser, self.layout, self.shifts = denoiser, layout, shifts
        if denoiser.plan.shares is not None:
            _ = denoiser.texts  # encoded now: the text encoder must not run inside a call of the transformer
        self.previous_frames = np.empty(0)  # of the clips of the call before
        self.anchored = any(frame_plan.anchor for frame_plan, _, _ in denoiser.plan.branches().values())
        self.ranks = split_of(denoiser.plan, denoiser.backbone.model_settings).ranks

    def __call__(self, transformer: Any, call: Callable[..., Any], arguments: dict[str, Any], branch: int) -> Any:
        denoiser, backbone, plan = self.denoiser, self.denoiser.backbone, self.denoiser.plan
        length, batch, step = plan.call_geometry.frames_lat, backbone.model_settings.clip_batch, backbone.step_state.step
        clips = self.layout.clips(plan.frames_lat, length, step.timesteps[step.index], self.shifts[step.index])
        if not np.array_equal(clips.frames, self.previous_frames):
            transformer._reset_stateful_cache()  # what a step cache holds is of other frames
            self.previous_frames = clips.frames
        x = backbone.by_frame(arguments["hidden_states"], plan.frames_lat)
        total: Tensor | None = None  # the sum [B, T, ...]; a prediction may have fewer channels than the input
        anchor_cache: dict[Any, Any] = {}

        def predict(first: int) -> Tensor:
            """[k B, L, ...] of the clips from `first` on, which are one batch."""
            frames = on_device(clips.frames[first : first + batch], x.device)
            indices = range(first, first + len(frames))
            rows = [(clip, clips.anchors[clip], sample) for clip in indices for sample in range(len(x))]
            backbone.step_state.clips = ClipBatch(rows, anchor_cache)
            batched = backbone.clip_arguments(arguments, torch.cat([x[:, clip] for clip in frames]), frames)  # [k B, L, ..]
            if plan.shares is not None:
                texts = [denoiser.text(clips.share(clip, denoiser.shares)) for clip in indices]  # the mean of a clip's frames
                by_clip = [with_text(arguments, text, branch) for text in texts]
                batched |= {name: torch.cat([text[name] for text in by_clip]) for name in by_clip[0]}
            with transformer.cache_context(f"clips-{branch}-{first}"):
                (output,) = call(**batched)
            return backbone.by_frame(output, length)

        def leaders(first: int) -> set[int]:
            """The first clips of the batches that hold the anchors of those from `first` on."""
            return {anchor // batch * batch for anchor in clips.anchors[first : first + batch]} if self.anchored else set()

        def empty(first: int) -> Tensor:
            whole = backbone.by_frame(backbone.zeros(arguments), plan.frames_lat)
            return whole.new_empty(len(clips.frames[first : first + batch]) * len(x), length, *whole.shape[2:])

        for first, output in shared_out(range(0, len(clips.frames), batch), self.ranks, predict, leaders, empty):
            frames = on_device(clips.frames[first : first + batch], x.device)
            weights = on_device(clips.weight[first : first + batch], x.device, torch.float32)
            for clip, weight, predicted in zip(frames, weights, output.split(len(x)), strict=True):
                if total is None:
                    total = predicted.new_zeros(len(x), plan.frames_lat, *predicted.shape[2:], dtype=torch.float32)
                total.index_add_(1, clip, predicted.float() * weight.view(-1, *[1] * (predicted.ndim - 2)))
        assert total is not None
        return (backbone.from_frames(total.to(output.dtype)),)
