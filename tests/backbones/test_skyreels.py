"""SkyReels-V2 on a small pipeline of random weights: diffusers' own bit for bit, and no noise levels of frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from longgen.attention.rotary import Rotary
from longgen.frameplan import FramePlan, distances
from longgen.pipelines.wan import qkv
from longgen.plan import Plan
from tests.attention.dense import dense
from tests.backbones import family

PLANS = family.plans(7, 4)


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


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Any:
    return family.loaded(model_folder("skyreels"))


@pytest.fixture(scope="module")
def inputs(model: Any) -> dict[str, Any]:
    return family.layer_inputs(model, family.made(model, "direct", 25, 1))[0]


def test_no_technique_is_the_stock_pipeline_bit_for_bit(model_folder: Callable[[str], Path], model: Any) -> None:
    check_identity(model, model_folder("skyreels"))
    with pytest.raises(NotImplementedError, match="takes one timestep for all frames"):
        model.velocity(None, torch.zeros(1, 16, 7, 4, 8), torch.full((1, 7), 500), {}, None)


@pytest.mark.parametrize("name", PLANS)
def test_a_planned_layer_equals_dense_softmax(model: Any, inputs: dict[str, Any], name: str) -> None:
    attn, none = model.layers(model.pipe.transformer)[0], Rotary(np.zeros(0), np.zeros(0, dtype=int))
    answer = family.through(model, family.programmed(family.made(model, "direct", 25, 1), PLANS[name]), 0, inputs)
    with torch.no_grad():
        tables, *own = qkv(attn, inputs["hidden_states"], inputs["rotary_emb"])
        total = torch.zeros(own[0].shape, dtype=torch.float64)
        for one in PLANS[name].passes:
            native = PLANS[name].frequency_scale is None and np.array_equal(one.rel, distances(7))
            part = FramePlan((one,), PLANS[name].frequency_scale, PLANS[name].logit_scale)
            total += dense(part, *own, none if native else model.rotary(), tables)
        expected = attn.to_out[0](total.flatten(2).float())
        stock = attn(**inputs)
    assert (answer - expected).abs().max() < 1e-5
    assert (answer - stock).abs().max() > 1e-3
