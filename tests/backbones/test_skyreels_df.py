"""SkyReels-V2 with diffusion forcing, in small: diffusers' own pipelines bit for bit, also from a picture, and levels of frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from longgen.conditions import Conditions
from tests.backbones import family
from tests.backbones.test_skyreels import check_identity, stock


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Any:
    return family.loaded(model_folder("skyreels-df"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    return family.pictured(tmp_path_factory.mktemp("pictures"))


def test_no_technique_is_the_stock_pipeline_bit_for_bit(model_folder: Callable[[str], Path], model: Any) -> None:
    """Whose loop has a scheduler for every frame."""
    check_identity(model, model_folder("skyreels-df"))
    assert type(model.pipe) is diffusers.SkyReelsV2DiffusionForcingPipeline


def test_a_clip_from_a_picture_is_the_stock_pipeline_s(
    model_folder: Callable[[str], Path], model: Any, picture: Conditions
) -> None:
    folder = model_folder("skyreels-df")
    plan = family.made(model, "direct", 25, 3, conditions=picture)
    latents = family.sampled(model, plan)
    kind = diffusers.SkyReelsV2DiffusionForcingImageToVideoPipeline
    assert torch.equal(latents, stock(folder, plan, "latent", kind, image=family.picture_of(plan)))


def test_noise_levels_of_frames_reach_the_transformer(model: Any) -> None:
    """A clean frame is read at its own level; with equal levels `velocity` is the pipeline's call."""
    plan = family.made(model, "direct", 25, 3)
    x = model.noise(plan, torch.Generator().manual_seed(0))
    text = model.text(family.PROMPT)
    with torch.no_grad():
        equal, _ = model.velocity(model.pipe.transformer, x, torch.full((1, 7), 500), text, None)
        mixed, _ = model.velocity(model.pipe.transformer, x, torch.tensor([[0, *[500] * 6]]), text, None)
        two, _ = model.velocity(model.pipe.transformer, torch.cat([x, x]), torch.full((2, 7), 500), text, None)
    assert (equal - mixed).abs().amax((0, 1, 3, 4)).min() > 1e-4
    assert (two - equal).abs().max() < 1e-5
