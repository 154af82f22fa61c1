"""SkyReels-V2 on a small pipeline of random weights: diffusers' own bit for bit, and no noise levels of frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from longgen.plan import Plan
from tests.backbones import family


def stock(folder: Path, plan: Plan, output_type: str, kind: Any = diffusers.DiffusionPipeline, **arguments: Any) -> Any:
    """diffusers' own pipeline."""
    pipe = kind.from_pretrained(folder)
    assert type(pipe).__module__.startswith("diffusers.")
    pipe.set_progress_bar_config(disable=True)
    return family.stock_call(pipe, plan, output_type=output_type, **arguments)


def check_identity(model: Any, folder: Path) -> None:
    """Of latents and frames, after a window that changes them, whose run can stop and go on."""
    window = family.made(model, "sliding-window", 25, 3, ("window.frames=3",))
    changed = family.sampled(model, window)
    plan = family.made(model, "direct", 25, 3)
    latents = family.sampled(model, plan)
    assert torch.equal(latents, stock(folder, plan, "latent"))
    decoded = np.concatenate(list(model.decode(latents)))
    assert np.array_equal(decoded, (stock(folder, plan, "np")[0] * 255).round().astype(np.uint8))
    assert (changed - latents).abs().max() > 1e-2
    assert torch.equal(family.sampled(model, window, resume=family.stopped_after(model, window, 2)), changed)


def test_no_technique_is_the_stock_pipeline_bit_for_bit(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("skyreels")
    model = family.loaded(folder)
    check_identity(model, folder)
    with pytest.raises(NotImplementedError, match="takes one timestep for all frames"):
        model.velocity(None, torch.zeros(1, 16, 7, 4, 8), torch.full((1, 7), 500), {}, None)
