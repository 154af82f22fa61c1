"""SkyReels-V2 on diffusers' SkyReelsV2Pipeline: Wan's attention and VAE.

Legend: K clips, C channels, T latent frames, L of a clip, m that are given.

The models with diffusion forcing run in the same loop, all frames at one noise level, and those that are given at level 0; so does
SkyReelsV2DiffusionForcingPipeline in its synchronous mode (ar_step = 0), which has a scheduler for each frame, takes no latents and
joins clips by itself. Its schedulers keep a view of the latents, which is overwritten before UniPC's first correction reads it;
`ForcingUniPC` has the same numbers, and the authors' code does so too. The asynchronous mode, in which frames are denoised one
after the other, is FIFO's matter here. The noise that the authors add to given frames (addnoise_condition, 20 of 1000) is left
out, as in diffusers' default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Pipeline, UniPCMultistepScheduler
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor, SkyReelsV2TransformerBlock
from torch import Tensor

from longgen.pipelines.base import Expert, PipelineBackbone, Text, Velocities
from longgen.pipelines.given import Given
from longgen.pipelines.wan import Wan
from longgen.plan import Plan

TransformerBlockRegistry.register(SkyReelsV2TransformerBlock, TransformerBlockMetadata(0, None))  # as Wan's
OTHER_RATE = 1  # what a transformer knows of the rate of frames, once for a batch: whether it is 16 (0) or not; --fps is the file's


class SkyReels(Wan):
    kind = SkyReelsV2Pipeline
    picture_kind = None
    stock = (SkyReelsV2AttnProcessor,)

    def experts(self, plan: Plan) -> list[Expert]:
        return PipelineBackbone.experts(self, plan)

    def velocity(self, transformer: Any, x: Tensor, timesteps: Tensor, text: Text, uncond: Text | None) -> Velocities:
        return PipelineBackbone.velocity(self, transformer, x, timesteps, text, uncond)


class ForcingUniPC(UniPCMultistepScheduler):
    """diffusers' scheduler as SkyReelsV2DiffusionForcingPipeline uses it: its first correction starts from what is corrected."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        first = self.step_index is None
        output = super().step(*args, **kwargs)
        if first:
            self.last_sample = output[0]
        return output


class SkyReelsForcing(SkyReels):
    kind = SkyReelsV2DiffusionForcingPipeline

    def __post_init__(self) -> None:
        if type(self.pipe.scheduler) is UniPCMultistepScheduler:
            self.pipe.scheduler = ForcingUniPC.from_config(self.pipe.scheduler.config)
        super().__post_init__()

    def velocity(self, transformer: Any, x: Tensor, timesteps: Tensor, text: Text, uncond: Text | None) -> Velocities:
        """A call for each text, as SkyReelsV2DiffusionForcingPipeline makes them."""

        def call(branch: Text) -> Tensor:
            words = {name: part.expand(len(x), *part.shape[1:]) for name, part in branch.items()}
            return transformer(hidden_states=x.to(transformer.dtype), timestep=timesteps, enable_diffusion_forcing=True,
                               fps=[OTHER_RATE], return_dict=False, **words)[0]  # fmt: skip

        return call(text), None if uncond is None else call(uncond)

    @contextmanager
    def conditioned(self, plan: Plan, given: Given | None) -> Iterator[dict[str, Any]]:
        """SkyReelsV2Pipeline on the same components; each call of the transformer gets a timestep for each frame, and frames that
        are given stand there clean, at timestep 0."""
        clean = None if given is None else given.latents

        def forcing(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            x, levels = kwargs["hidden_states"], kwargs["timestep"]
            levels = levels[:, None].repeat(1, x.shape[2])
            if clean is not None:
                x = torch.cat([clean.to(x).expand(len(x), *clean.shape[1:]), x[:, :, clean.shape[2] :]], dim=2)
                levels[:, : clean.shape[2]] = 0
            changed = dict(hidden_states=x, timestep=levels, enable_diffusion_forcing=True, fps=[OTHER_RATE])
            return args, kwargs | changed

        hook = self.pipe.transformer.register_forward_pre_hook(forcing, with_kwargs=True, prepend=True)
        self.pipe.__class__, own = SkyReelsV2Pipeline, type(self.pipe)
        try:
            yield {}
        finally:
            self.pipe.__class__ = own
            hook.remove()
