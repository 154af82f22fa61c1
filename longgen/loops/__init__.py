"""The loops that denoise by a plan, one module each; here is which one a plan has, and the noise that it starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from longgen.pipelines.base import PipelineBackbone
    from longgen.plan import Plan


# What is sampled to measure a model, where nobody said what; `tiny` has sentences of its own.
PROMPTS = ("A cat walks through tall grass, realistic style.", "Waves break on a rocky shore at sunset, aerial view.")


def sampler(plan: Plan) -> Callable[..., Tensor]:
    """What denoises by `plan`: the loop of its technique, or `direct.sample`, whose arguments both take."""
    from longgen.loops import direct  # here: diffusers comes with it

    return direct.sample if plan.sampling is None else plan.sampling.sample


def start(backbone: PipelineBackbone, plan: Plan, generator: Generator) -> Tensor:
    """The noise [1, C, T, h, w] that `plan` starts from; of no frame where each chunk draws its own."""
    if plan.chunk_lat is not None:
        import torch

        batch, channels, _, rows, columns = backbone.latent_shape(plan)
        return torch.empty(batch, channels, 0, rows, columns)
    noise = backbone.noise(plan, generator)
    return noise if plan.noise is None else plan.noise.mix(noise, plan.geometry, generator)
