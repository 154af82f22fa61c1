"""A flow shift reaches the noise levels of every loop, is the stock pipeline's with that shift, and leaves no trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

from longgen import planner, preset, resolve, run_settings
from longgen.backbones.cogvideox import COGVIDEOX_2B, COGVIDEOX_5B
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.describe import plan_dict
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan
from tests.backbones import family
from tests.models import small

PROMPT = "a large red circle bouncing on a navy background"
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
SCHEDULERS: dict[str, tuple[Any, str]] = {  # the pipeline's, and what its class calls the shift
    "unipc": (UniPCMultistepScheduler(**FLOW, flow_shift=3.0), "flow_shift"),
    "dpm": (DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0), "flow_shift"),
    "euler": (FlowMatchEulerDiscreteScheduler(shift=3.0), "shift"),
}


def sampled(backbone: Any, plan: Plan) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, PROMPT)
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
    plan = planner.build(preset.load("self-forcing", (), preset.Sample(frames=33, steps=4, flow_shift=8.0)), causal.spec)
    u = np.array([1, 0.75, 0.5, 0.25, 0])
    assert causal.chunk_schedule(plan, plan.steps).sigmas.numpy() == pytest.approx(8 * u / (1 + 7 * u), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in small.PLAIN if name not in ("cogvideox", "ltx-condition")])
def test_it_reaches_every_family_that_has_one(name: str, model_folder: Callable[[str], Path]) -> None:
    """It is the stock pipeline with that shift, bit for bit, and without it the stock pipeline."""
    backbone = family.loaded(model_folder(name))
    own, plain = backbone.pipe.scheduler, family.made(backbone, "direct", 33, 4)
    plan = family.made(backbone, "direct", 33, 4, flow_shift=2.5)
    latents, stock = family.sampled(backbone, plan), copy.copy(backbone.pipe)
    stock.scheduler = type(own).from_config(own.config, **shifted(own, 2.5))
    assert torch.equal(latents, latents_of(backbone, family.stock_call(stock, plan, output_type="latent"), plan))
    first = family.sampled(backbone, plain)
    assert torch.equal(first, latents_of(backbone, family.stock_call(backbone.pipe, plain, output_type="latent"), plan))
    assert not torch.equal(first, latents)
    assert backbone.pipe.scheduler is own


def latents_of(backbone: Any, output: torch.Tensor, plan: Plan) -> torch.Tensor:
    """What a pipeline returns as latents, as [1, C, T, h, w]."""
    return output if output.ndim == 5 else backbone.unpacked(output, plan)


def test_a_chosen_shift_replaces_that_by_the_number_of_tokens_in_every_loop(model_folder: Callable[[str], Path]) -> None:
    """LTX's pipeline and queue hand over the logarithm of theirs all the same. The last level stays where the checkpoint has it."""
    backbone = family.loaded(model_folder("ltx"))
    queue = ("fifo.frames=4", "fifo.partitions=1")
    plans = {name: family.made(backbone, name, 161, 4, queue * (name == "fifo"), flow_shift=2.5) for name in ("direct", "fifo")}
    even = np.linspace(1.0, 0.25, 4)
    levels = 2.5 * even / (1 + 1.5 * even)
    levels = np.append(1 - (1 - levels) * 0.9 / (1 - levels[-1]), 0)
    scheduler = backbone.first_order(plans["direct"])
    scheduler.set_timesteps(sigmas=even, mu=3.0)
    assert scheduler.sigmas.numpy() == pytest.approx(levels, rel=1e-5)
    assert backbone.frame_schedule(plans["fifo"]).sigmas.numpy() == pytest.approx(levels, rel=1e-5)
    own = family.made(backbone, "fifo", 161, 4, queue)
    assert backbone.frame_schedule(own).sigmas.numpy() != pytest.approx(levels, rel=1e-2)


def shifted(scheduler: Any, shift: float) -> dict[str, Any]:
    """What diffusers' user gives `from_config` for that shift."""
    if "flow_shift" in scheduler.config:
        return {"flow_shift": shift}
    return {"shift": shift, "use_dynamic_shifting": False}


@pytest.mark.parametrize("spec", [COGVIDEOX_2B, COGVIDEOX_5B], ids=lambda spec: spec.name)
def test_a_family_without_one_refuses_it_at_plan_time(spec: Any) -> None:
    with pytest.raises(UsageError, match=rf"{spec.name} does not accept a flow shift \(3 was requested\)") as caught:
        planner.build(preset.load("direct", (), preset.Sample(flow_shift=3.0)), spec)
    assert "snr_shift_scale" in str(caught.value)
    assert all(name in caught.value.expected for name in ("hunyuanvideo", "ltx-2b", "longlive"))
    assert planner.build(preset.load("direct"), spec).sample.flow_shift is None


@pytest.mark.parametrize("tokens", [100, 5280, 20460])
def test_the_shift_by_tokens_is_the_pipelines(tokens: int) -> None:
    shift = LTX_2B.token_shift
    assert shift is not None
    mu = calculate_shift(tokens, shift.base_tokens, shift.most_tokens, shift.base_log, shift.most_log)
    assert shift.at(tokens) == pytest.approx(math.exp(mu))
    assert shift.at(10**9) == math.exp(700)  # and no error


def test_a_shift_by_tokens_is_said_and_refused_where_its_levels_are_no_numbers() -> None:
    """A longer video has more tokens. Then the scheduler would divide 0 by 0; a chosen shift replaces it."""

    def ltx(frames: int, name: str = "direct", **sample: Any) -> Plan:
        return planner.build(preset.load(name, (), preset.Sample(frames=frames, **sample)), LTX_2B)

    assert not any("number of tokens" in note for note in ltx(121).notes)
    assert any(
        "number of tokens: 2,723 here, 11.9 at its native" in note and "--flow-shift 11.9" in note for note in ltx(489).notes
    )
    assert any("flow shift 8 replaces" in note for note in ltx(489, flow_shift=8.0).notes)
    with pytest.raises(UsageError, match="82,830 tokens are too many for ltx-2b's own noise levels") as caught:
        ltx(2001)
    assert "--flow-shift 11.9" in caught.value.hint
    assert ltx(2001, flow_shift=11.9).sample.flow_shift == 11.9
    assert ltx(2001, "fifo").token_shift == pytest.approx(ltx(121).token_shift)  # a queue counts the tokens of a call
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    assert LTX_2B.token_shift is not None
    sigmas, mu = np.linspace(1, 1 / 40, 40), math.log(LTX_2B.token_shift.at(82_830))
    with np.errstate(invalid="ignore"):
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    assert scheduler.sigmas.isnan().any()
    scheduler.set_timesteps(sigmas=sigmas, mu=math.log(planner.MOST_SHIFT))
    assert not scheduler.sigmas.isnan().any()


def test_a_scheduler_that_has_none_refuses_it_before_sampling(tiny: Any, tiny_plan: Callable[..., Plan]) -> None:
    scheduler = UniPCMultistepScheduler()
    before, tiny.pipe.scheduler = tiny.pipe.scheduler, scheduler
    try:
        with pytest.raises(UsageError, match="its UniPCMultistepScheduler has none"):
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


def test_what_the_publisher_takes_is_said_until_it_is_chosen() -> None:
    def notes(name: str, **sample: Any) -> list[str]:
        plan = planner.build(preset.load("direct", (), preset.Sample(**sample)), SPECS[name])
        return [note for note in plan.notes if "the publisher takes" in note]

    for name, shift in (("wan2.1-14b", 5), ("wan2.2-t2v-a14b", 12)):
        (note,) = notes(name)
        assert f"the publisher takes flow shift {shift} in its script" in note
        assert f": --flow-shift {shift}; the default is flow shift 3" in note
        assert not notes(name, flow_shift=3.0)
    (note,) = notes("wan2.1-1.3b")
    assert ": --guidance-scale 6 --flow-shift 8; the default is guidance 5 and flow shift 3" in note
    assert notes("wan2.1-1.3b", flow_shift=8.0)[0].endswith(": --guidance-scale 6; the default is guidance 5")
    assert not notes("wan2.1-1.3b", flow_shift=8.0, guidance_scale=5.0)
    for name in ("tiny", "wan2.2-ti2v-5b", "ltx-2b", "cogvideox-2b", "hunyuanvideo"):  # the default is the publisher's
        assert not notes(name)


def test_the_publishers_negative_prompt_is_whole() -> None:
    whole = SPECS["wan2.1-1.3b"].negative_prompt
    parts = whole.split("，")
    assert (len(parts), parts[0], parts[-1], len(whole)) == (28, "色调艳丽", "倒着走", 137)
    assert SPECS["wan2.2-t2v-a14b"].negative_prompt == SPECS["wan2.2-ti2v-5b"].negative_prompt == whole
    assert SPECS["ltx-2b"].steps == 40
