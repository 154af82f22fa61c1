"""Wan 2.2 on small pipelines of random weights: two experts, and a timestep for every token with the 16x16 VAE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor

from longgen.plan import Plan
from tests.backbones import family

NAMES = ["wan", "wan-experts", "wan-ti2v"]


@pytest.fixture(scope="module")
def loaded(model_folder: Callable[[str], Path]) -> dict[str, Any]:
    return {name: family.loaded(model_folder(name)) for name in NAMES}


def plain(backbone: Any, frames: int = 25, steps: int = 4) -> Plan:
    return family.made(backbone, "direct", frames, steps)


def window(backbone: Any, *sets: str) -> Plan:
    return family.made(backbone, "sliding-window", 25, 4, ("window.frames=3", *sets))


def stock(backbone: Any, plan: Plan, output_type: str) -> Any:
    second = {"guidance_scale_2": 3.0} if backbone.spec.experts == 2 else {}
    return family.stock_call(backbone.pipe, plan, output_type=output_type, **second)


@pytest.mark.parametrize("name", NAMES)
def test_no_technique_is_the_stock_pipeline_bit_for_bit(loaded: dict[str, Any], name: str) -> None:
    backbone = loaded[name]
    with backbone.installed(window(backbone)):  # and taken off again
        pass
    plan = plain(backbone)
    latents = family.sampled(backbone, plan)
    assert latents.shape == backbone.latent_shape(plan)
    assert torch.equal(latents, stock(backbone, plan, "latent"))


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("name", NAMES)
def test_decoding_a_latent_frame_at_a_time_is_the_stock_decoding(loaded: dict[str, Any], name: str, frames: int) -> None:
    backbone = loaded[name]
    plan = plain(backbone, frames, steps=1)
    parts = list(backbone.decode(family.sampled(backbone, plan)))
    assert [len(part) for part in parts] == [1] + [4] * ((frames - 1) // 4)
    assert np.array_equal(np.concatenate(parts), (stock(backbone, plan, "np")[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_a_window_changes_the_clip_and_leaves_no_trace(loaded: dict[str, Any], name: str) -> None:
    backbone = loaded[name]
    layers = [layer for transformer in backbone.transformers for layer in backbone.layers(transformer)]
    assert len(layers) == backbone.spec.layers * backbone.spec.experts
    processors, before = [layer.processor for layer in layers], family.sampled(backbone, plain(backbone))
    difference = (family.sampled(backbone, window(backbone)) - before).abs().max().item()
    print(f"{name}: latents change by up to {difference:.3f}")
    assert difference > 1e-2
    family.stopped_after(backbone, window(backbone), 1)  # by an error
    assert all(layer.processor is processor for layer, processor in zip(layers, processors, strict=True))
    assert torch.equal(family.sampled(backbone, plain(backbone)), before)


def test_a_plan_acts_in_both_experts(loaded: dict[str, Any]) -> None:
    """Each has two steps of two guidance branches, and answers the same input otherwise with the window."""
    backbone = loaded["wan-experts"]
    calls: Counter[int] = Counter()
    inputs: dict[int, dict[str, Any]] = {}

    def note(index: int, arguments: dict[str, Any]) -> None:
        calls[index] += 1
        inputs.setdefault(index, arguments)

    hooks = [
        transformer.register_forward_pre_hook(lambda _, args, kwargs, index=index: note(index, kwargs), with_kwargs=True)
        for index, transformer in enumerate(backbone.transformers)
    ]
    family.sampled(backbone, window(backbone))
    for hook in hooks:
        hook.remove()
    assert calls == {0: 4, 1: 4}
    backbone.step_state.index = 0
    for index, transformer in enumerate(backbone.transformers):
        with torch.no_grad():
            (free,) = transformer(**inputs[index])
            with backbone.installed(window(backbone)):
                (held,) = transformer(**inputs[index])
        difference = (held - free).abs().max().item()
        print(f"expert {index}: its answer changes by up to {difference:.3f}")
        assert difference > 1e-2


@pytest.mark.parametrize("layer", [0, 1])
def test_layers_are_counted_in_each_expert(loaded: dict[str, Any], layer: int) -> None:
    backbone = loaded["wan-experts"]
    with backbone.installed(window(backbone, f"window.layers=[{layer}]")):
        for transformer in backbone.transformers:
            planned = [isinstance(one.processor, backbone.processor) for one in backbone.layers(transformer)]
            assert planned == [layer == 0, layer == 1]


def test_steps_of_a_technique_count_through_both_experts(loaded: dict[str, Any]) -> None:
    backbone = loaded["wan-experts"]
    traces: list[list[Tensor]] = [[], []]
    for plan, trace in zip((plain(backbone), window(backbone, "window.steps=[0.75, 1.0]")), traces, strict=True):
        family.sampled(backbone, plan, lambda state, trace=trace: trace.append(state.latents.clone()))
    assert [torch.equal(one, other) for one, other in zip(*traces, strict=True)] == [True, True, True, False]


def test_each_expert_has_its_guidance(loaded: dict[str, Any]) -> None:
    two, one = (loaded[name].call_arguments(plain(loaded[name]), family.PROMPT) for name in ("wan-experts", "wan-ti2v"))
    assert (two["guidance_scale"], two["guidance_scale_2"]) == (4.0, 3.0)  # as its authors run Wan 2.2 A14B
    assert one["guidance_scale"] == 5.0
    assert "guidance_scale_2" not in one


@pytest.mark.parametrize(
    ("name", "done"), [("wan-experts", 1), ("wan-experts", 2), ("wan-experts", 3), ("wan-ti2v", 2), ("wan", 4)]
)
def test_a_resumed_run_ends_on_the_same_latents(loaded: dict[str, Any], name: str, done: int) -> None:
    """Also before, at and after the boundary between the experts."""
    backbone = loaded[name]
    whole = family.sampled(backbone, window(backbone))
    state, seen = family.stopped_after(backbone, window(backbone), done), []
    assert torch.equal(family.sampled(backbone, window(backbone), lambda state: seen.append(state.done), state), whole)
    assert seen == list(range(done + 1, 5))


def test_a_window_of_one_frame_cuts_frames_apart(loaded: dict[str, Any]) -> None:
    """With a timestep for every token too: no frame's answer then depends on another frame."""
    backbone = loaded["wan-ti2v"]
    alone = family.made(backbone, "sliding-window", 25, 4, ("window.frames=1",))
    latents = backbone.noise(alone, torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, :, 4] += 1
    text, times = torch.zeros(1, 4, 32), torch.full((1, alone.tokens), 500.0)

    def answers() -> list[Tensor]:
        with torch.no_grad():
            return [backbone.pipe.transformer(x, times, text, return_dict=False)[0] for x in (latents, changed)]

    backbone.step_state.index = 0
    free = answers()
    with backbone.installed(alone):
        held = answers()
    others = [frame for frame in range(alone.frames_lat) if frame != 4]
    assert (free[0] - free[1])[:, :, others].abs().max() > 1e-3
    assert (held[0] - held[1])[:, :, others].abs().max() < 1e-6
    assert (held[0] - held[1])[:, :, 4].abs().max() > 1e-1


@pytest.mark.parametrize(("asked", "second"), [({}, 3.0), ({"guidance_scale": 7.0}, None)])
def test_guidance_that_is_asked_for_holds_for_both_experts(
    loaded: dict[str, Any], asked: dict[str, float], second: float | None
) -> None:
    backbone = loaded["wan-experts"]
    arguments = backbone.call_arguments(family.made(backbone, "direct", 25, 4, **asked), "a ball")
    assert (arguments["guidance_scale"], arguments.get("guidance_scale_2")) == (asked.get("guidance_scale", 4.0), second)


def test_an_interrupted_run_leaves_no_cache_behind(model_folder: Callable[[str], Path]) -> None:
    """With a step cache, a run after one that was stopped is equal to a run on a fresh model."""
    backbones = []
    for _ in range(2):
        backbone = family.loaded(model_folder("wan"))
        backbone.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.9))
        backbones.append(backbone)
    family.stopped_after(backbones[0], plain(backbones[0]), 2)
    one, other = (family.sampled(backbone, plain(backbone)) for backbone in backbones)
    assert torch.equal(one, other)
