"""A flow shift reaches the noise levels of every loop, is the stock pipeline's with that shift, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from longgen import planner, preset, resolve, run_settings
from longgen.backbones.cogvideox import COGVIDEOX_5B
from longgen.backbones.find import find
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.describe import plan_dict
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan

PROMPT = "a large red circle bouncing on a navy background"
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
SCHEDULERS: dict[str, tuple[Any, str]] = {  # the pipeline's, and what its class calls the shift
    "unipc": (UniPCMultistepScheduler(**FLOW, flow_shift=3.0), "flow_shift"),
    "dpm": (DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0), "flow_shift"),
    "euler": (FlowMatchEulerDiscreteScheduler(shift=3.0), "shift"),
}


def sampled(backbone: Any, made: Plan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, made, PROMPT)
    return sample(denoiser, denoiser.initial_noise(generator), generator)


def levels(count: int, shift: float) -> np.ndarray:
    """Sigmas of a flow-matching Euler scheduler: even steps between the ends of a thousand levels, which are shifted once more."""
    most, least = (shift * one / (1 + (shift - 1) * one) for one in (1.0, 0.001))
    even = np.linspace(most, least, count)
    return np.append(shift * even / (1 + (shift - 1) * even), 0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_the_stock_pipeline_with_that_shift(tiny: Any, tiny_plan: Callable[..., Plan], name: str) -> None:
    before, (own, key) = tiny.pipe.scheduler, SCHEDULERS[name]
    plain, shifted = tiny_plan("direct", frames=17, steps=3), tiny_plan("direct", frames=17, steps=3, flow_shift=8.0)
    try:
        tiny.pipe.scheduler = own
        config = dict(own.config)
        first, then, again = (sampled(tiny, one) for one in (plain, shifted, plain))
        assert tiny.pipe.scheduler is own
        assert dict(own.config) == config
        assert torch.equal(first, again)
        tiny.pipe.scheduler = type(own).from_config(own.config, **{key: 8.0})
        assert torch.equal(sampled(tiny, plain), then)
        assert not torch.equal(first, then)
    finally:
        tiny.pipe.scheduler = before


def test_a_refinement_and_a_queue_step_on_shifted_levels(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    own = tiny.pipe.scheduler
    refined = tiny_plan("glc-diffusion", frames=97, steps=3, flow_shift=8.0)
    with tiny.installed(refined):
        tiny.pipe.scheduler.set_timesteps(3)
        assert tiny.pipe.scheduler.sigmas.numpy() == pytest.approx(levels(3, 8.0), rel=1e-5)
    queue = tiny_plan("fifo", ("fifo.frames=4", "fifo.partitions=1"), frames=33, flow_shift=8.0)
    assert tiny.frame_schedule(queue).sigmas.numpy() == pytest.approx(levels(4, 8.0), rel=1e-5)
    assert tiny.frame_schedule(tiny_plan("fifo", frames=97)).sigmas.numpy() == pytest.approx(levels(84, 3.0), rel=1e-5)
    assert tiny.pipe.scheduler is own


def test_a_rollout_steps_on_shifted_levels(causal: Any) -> None:
    made = planner.build(preset.load("self-forcing", (), preset.Sample(frames=33, steps=4, flow_shift=8.0)), causal.spec)
    u = np.array([1, 0.75, 0.5, 0.25, 0])
    assert causal.frame_schedule(made).sigmas.numpy() == pytest.approx(8 * u / (1 + 7 * u), rel=1e-6)


@pytest.mark.parametrize("spec", [COGVIDEOX_5B, LTX_2B], ids=lambda spec: spec.name)
def test_a_family_without_one_refuses_it_at_plan_time(spec: Any) -> None:
    with pytest.raises(UsageError, match=rf"{spec.name} does not accept a flow shift \(3 was requested\)") as caught:
        planner.build(preset.load("direct", (), preset.Sample(flow_shift=3.0)), spec)
    assert "hunyuanvideo" in caught.value.expected
    assert planner.build(preset.load("direct"), spec).sample.flow_shift is None


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "shifts the noise levels by the number of tokens"),
        (UniPCMultistepScheduler(), "UniPCMultistepScheduler has no flow shift"),
    ],
)
def test_a_scheduler_that_has_none_refuses_it_before_sampling(
    tiny: Any, tiny_plan: Callable[..., Plan], scheduler: Any, said: str
) -> None:
    before, tiny.pipe.scheduler = tiny.pipe.scheduler, scheduler
    try:
        with pytest.raises(UsageError, match=said):
            sampled(tiny, tiny_plan("direct", frames=17, steps=2, flow_shift=8.0))
        assert tiny.pipe.scheduler is scheduler
    finally:
        tiny.pipe.scheduler = before


def test_it_is_a_setting_that_decides_the_latents(tiny_plan: Callable[..., Plan]) -> None:
    """And a run of a version before it goes on: settings without one are those of the checkpoint's own."""
    own, shifted = tiny_plan("direct"), tiny_plan("direct", flow_shift=8.0)
    kept, asked = (run_settings.stored_settings(one, PROMPT, 0, ModelSettings("cpu", "fp32")) for one in (own, shifted))
    assert asked["sample"]["flow_shift"] == plan_dict(shifted)["sample"]["flow_shift"] == 8.0
    assert "flow_shift" not in kept["sample"]
    assert resolve.from_settings(asked, Path("run.json")).sample == shifted.sample
    assert resolve.from_settings(kept, Path("run.json")).sample == own.sample
    assert "sample" in run_settings.IDENTITY


def test_what_the_authors_script_takes_is_said() -> None:
    for name, shift in (("wan2.1-1.3b", 5), ("wan2.1-14b", 5), ("wan2.2-t2v-a14b", 12), ("wan2.2-ti2v-5b", 5)):
        notes = planner.build(preset.load("direct"), SPECS[name]).notes
        assert any(f"the authors' script uses {shift}: --flow-shift {shift}" in note for note in notes)
        told = planner.build(preset.load("direct", (), preset.Sample(flow_shift=3.0)), SPECS[name]).notes
        assert not any("script" in note for note in told)
    assert not any("script" in note for note in planner.build(preset.load("direct"), TINY).notes)
    assert find("hunyuanvideo").script_shift is None  # the checkpoint's own is the script's


def test_the_publishers_negative_prompt_is_whole() -> None:
    whole = SPECS["wan2.1-1.3b"].negative_prompt
    parts = whole.split("，")
    assert (len(parts), parts[0], parts[-1], len(whole)) == (28, "色调艳丽", "倒着走", 137)
    assert SPECS["wan2.2-t2v-a14b"].negative_prompt == SPECS["wan2.2-ti2v-5b"].negative_prompt == whole
    assert SPECS["ltx-2b"].steps == 40
