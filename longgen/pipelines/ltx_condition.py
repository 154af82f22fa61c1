"""LTX-Video from 0.9.5 on: diffusers' LTXConditionPipeline, with and without frames to begin with.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, K clips, L latent frames of a clip, m clean frames.

Any number of first latent frames can be given. Their tokens are at timestep 0, and at every step noise that shrinks with it is
laid over them anew (`image_cond_noise_scale`), as in training. Positions are those of the first pixel frame of each latent one: the
first two are 1 / fps seconds apart, the others 8 / fps. A layer and step in which a technique moves frames in time has all of them
8 / fps apart, as frame plans count; with any other technique positions stay the model's own.

A last frame would be tokens beside those of the video, in front of them: frame plans have no place for such.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import LTXConditionPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule
from PIL import Image
from torch import Tensor

from longgen.attention.rotary import Rotary, Tables
from longgen.frameplan import distances
from longgen.pipelines.given import Given, put_back
from longgen.pipelines.ltx import Ltx, LtxAttentionPlan
from longgen.plan import Plan
from longgen.program import Program
from longgen.technique import Grid


class LtxConditionAttentionPlan(LtxAttentionPlan):
    def tables_of(self, program: Program, stock: Tables) -> Tables:
        assert self.rotary is not None
        return tables_for(program, stock, self.rotary)


def tables_for(program: Program, stock: Tables, rotary: Rotary) -> Tables:
    """The `stock` tables [N, P]; with all frames as far apart where `program` moves any in time."""
    plans = program.branches.values()
    frames_lat = next(iter(plans)).frames_lat
    native = distances(frames_lat)
    moved = any(
        plan.frequency_scale is not None or any(not np.array_equal(one.rel, native) for one in plan.passes) for plan in plans
    )
    return rotary.tables_at(stock, np.arange(frames_lat, dtype=np.float64), None) if moved else stock


class LtxCondition(Ltx):
    kind = LTXConditionPipeline
    processor = LtxConditionAttentionPlan
    normalized_in = None

    def given(self, plan: Plan, generator: torch.Generator) -> Given | None:
        """The pipeline draws the noise first, and then from the VAE's distribution: a copy of `generator` is that far ahead.

        `conditioned` passes over what it drew.
        """
        ahead = torch.Generator()
        ahead.set_state(generator.get_state())
        self.noise(plan.first, ahead)
        return super().given(plan, ahead)

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """The pipeline's `prepare_latents` takes no latents to start from: what it makes is made here of the loop's own."""
        pipe = self.pipe
        clean = None if given is None else given.latents

        def prepare_latents(*_: Any, latents: Tensor, generator: torch.Generator, device: Any, dtype: Any, **__: Any) -> Any:
            coordinates, mask = self.coordinates(plan.grid, device), None
            if clean is not None:
                torch.randn(clean.shape, generator=generator, dtype=pipe.vae.dtype)
                mask = torch.zeros(latents.shape[:2], device=device)
                mask[:, : clean.shape[2] * latents.shape[1] // plan.frames_lat] = 1
            return latents.to(device, dtype), mask, coordinates, 0

        pipe.prepare_latents = prepare_latents
        try:
            yield {} if given is None else {"image": given.image or Image.new("RGB", plan.size)}
        finally:
            del pipe.prepare_latents

    def predicted(self, x0: Tensor, given: Given | None) -> Tensor:
        return put_back(given, x0)

    def unpacked(self, latents: Tensor, plan: Plan) -> Tensor:
        return latents if latents.ndim == 5 else super().unpacked(latents, plan)  # this pipeline gives its last ones unpacked

    def coordinates(self, grid: Grid, device: Any) -> Tensor:
        """[1, 3, N]: the first pixel frame of each token of `grid`, its row and its column, in pixels."""
        time, rows, columns = grid
        cells = LTXConditionPipeline._prepare_video_ids(1, time, rows, columns, device=device)
        return LTXConditionPipeline._scale_video_ids(cells, self.spec.stride_hw, self.spec.stride_t, 0, device)

    def positions(self, grid: Grid, device: torch.device) -> dict[str, Any]:
        seconds = self.coordinates(grid, device).float()
        seconds[:, 0] = seconds[:, 0] * (1.0 / self.spec.fps)
        return dict(video_coords=seconds)

    def clip_arguments(self, arguments: dict[str, Any], part: Tensor, frames: Tensor) -> dict[str, Any]:
        """Positions in every clip begin as in a video of its own."""
        changed = super().clip_arguments(arguments, part, frames)
        del changed["num_frames"]
        changed["video_coords"] = changed["video_coords"][:, :, : part.shape[1] * part.shape[2]]
        return changed

    def frame_schedule(self, plan: Plan) -> Any:
        """As LTXConditionPipeline sets it: linear at first, then quadratic."""
        scheduler = self.first_order(plan)
        scheduler.set_timesteps(timesteps=linear_quadratic_schedule(plan.steps) * 1000, device=self.pipe._execution_device)
        return scheduler
