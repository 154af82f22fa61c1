"""Co-denoising: the unmodified pipeline, whose transformer is shown clips of native length; their predictions become one.

Legend: B batch, C channels, T latent frames, L frames of a clip, K clips, n tokens per latent frame.

A hook on the transformer takes the call for T frames, makes calls for clips of L, up to `clip_batch` at a time, and gives
back the mean of their predictions, frame by frame. So the scheduler steps once, and guidance, LoRA, offload, quantization and
both experts of Wan 2.2 are the pipeline's own. Each batch of clips has its own cache context, which is forgotten when clips
move. Where one clip is the video itself, this is direct sampling, bit for bit. (LTX-Video shifts its schedule by the tokens of
the whole video, as its pipeline does, not by those of a clip.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from longgen.errors import UsageError
from longgen.sampling.clips import Clips
from longgen.technique import LONGEST, Sampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from longgen.loops.direct import State
    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan


class CoDenoised(Sampling):
    """A layout of clips. frames: latent frames of a clip; the native length T0 by default."""

    requires: ClassVar[tuple[str, ...]] = ("whole-clip",)

    frames: int | None = Field(None, ge=1, le=LONGEST)

    @abstractmethod
    def clips(self, frames_lat: int, length: int, timestep: float, shift: int) -> Clips:
        """The clips of `length` frames, fewer than T, at a step. shift: drawn anew for each step, below `shifts(length)`."""

    def shifts(self, length: int) -> int:
        """How many places the clips have; they move from step to step where there are several."""
        return 1

    def frames_per_call(self, frames_lat: int, native_lat: int) -> int:
        return min(frames_lat, self.frames or native_lat)

    def calls(self, frames_lat: int, native_lat: int) -> float:
        length = self.frames_per_call(frames_lat, native_lat)
        if length == frames_lat:
            return 1.0
        shifts = range(self.shifts(length))
        return sum(len(self.clips(frames_lat, length, 500.0, shift).frames) for shift in shifts) / len(shifts)

    def sample(
        self,
        backbone: PipelineBackbone,
        plan: Plan,
        prompt: str,
        latents: Tensor,
        on_step: Callable[[State], None],
        resume: State | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Denoises `latents` [1, C, T, h, w] by the pipeline, clip by clip."""
        import torch  # here, so that plans and lists of presets need no torch

        from longgen.loops import direct, prompt_schedule
        from longgen.pipelines.step_state import ClipBatch

        length = plan.call_geometry.frames_lat
        if length == plan.frames_lat:
            return direct.sample(backbone, plan, prompt, latents, on_step, resume, generator)
        if backbone.model_settings.cache is not None and any(one.anchor for one, _, _ in plan.branches().values()):
            raise UsageError(f"--cache {backbone.model_settings.cache} skips layers whose keys and values the anchor lends",
                             expected="one of them", hint="leave --cache out, or --set anchor.weight=0")  # fmt: skip
        shifts = torch.randint(self.shifts(length), (plan.steps,), generator=generator).tolist()
        shares = plan.shares
        texts = [] if shares is None else prompt_schedule.texts_of(backbone, plan)
        step_state = backbone.step_state
        last, branch, laid = -1, 0, np.empty(0)  # of the call before: its step, its number in the step, its clips

        def in_clips(module: Any, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
            nonlocal last, branch, laid
            step = step_state.step
            branch, last = branch + 1 if last == step.index else 0, step.index  # guidance makes two calls a step
            clips = self.clips(plan.frames_lat, length, step.timesteps[step.index], shifts[step.index])
            if not np.array_equal(clips.frames, laid):
                module._reset_stateful_cache()  # what a step cache holds is of other frames
                laid = clips.frames
            whole = backbone.by_frame(arguments["hidden_states"], plan.frames_lat)
            total = torch.zeros_like(whole, dtype=torch.float32)
            kept: dict[Any, Any] = {}
            for first in range(0, len(clips.frames), backbone.model_settings.clip_batch):
                frames = torch.from_numpy(clips.frames[first : first + backbone.model_settings.clip_batch]).to(whole.device)
                weight = torch.from_numpy(clips.weight[first : first + backbone.model_settings.clip_batch]).to(total)
                part = torch.cat([whole[:, index] for index in frames])  # [k B, L, ..]
                held = [(clip, clips.anchors[clip]) for clip in range(first, first + len(frames))]
                step_state.clips = ClipBatch([(*clip, sample) for clip in held for sample in range(len(whole))], kept)
                with module.cache_context(f"clips-{branch}-{first}"):
                    changed = backbone.clip_arguments(arguments, part, len(frames))
                    if shares is not None:
                        own = [prompt_schedule.mean_of(texts, clips.share(clip, shares)) for clip, _ in held]
                        each = [prompt_schedule.conditioned(arguments, text, branch) for text in own]
                        changed |= {name: torch.cat([text[name] for text in each]) for name in each[0]}
                    (output,) = call(**changed)
                for index, share, one in zip(frames, weight, backbone.by_frame(output, length).split(len(whole)), strict=True):
                    total.index_add_(1, index, one.float() * share.view(-1, *[1] * (one.ndim - 2)))
            return (backbone.from_frames(total.to(output.dtype)),)

        try:
            return direct.sample(backbone, plan, prompt, latents, on_step, resume, generator, in_clips)
        finally:
            step_state.clips = None
