"""Wan 2.2 on small pipelines of random weights: two experts, and a timestep for every token with the 16x16 VAE.

Legend: B batch, T latent frames, n tokens per latent frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import plan, preset
from longgen.backbones import Setup, load
from longgen.backbones.find import find
from longgen.plan import Plan
from longgen.sampling import direct

PROMPT = "a red square moving left over sand"
WINDOW = ("sliding-window", ("window.frames=3",))
NAMES = ["wan", "wan-experts", "wan-ti2v"]


@pytest.fixture(scope="module")
def loaded(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    kept: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in kept:
            kept[name] = load(find(str(model_folder(name))), Setup("cpu", "fp32"))
        return kept[name]

    return get


def plan_for(backbone: Any, name: str = "direct", sets: tuple[str, ...] = (), frames: int = 25, steps: int = 4) -> Plan:
    return plan.build(preset.load(name, sets, preset.Sample(frames=frames, steps=steps, size=(96, 64))), backbone.spec)


def run(backbone: Any, plan: Plan, on_step: Any = lambda state: None, resume: Any = None) -> Tensor:
    return direct.sample(backbone, plan, PROMPT, backbone.noise(plan, torch.Generator().manual_seed(3)), on_step, resume)


def stock(backbone: Any, plan: Plan, output_type: str) -> Any:
    """The pipeline as any diffusers user would call it."""
    second = {"guidance_scale_2": 3.0} if backbone.spec.experts == 2 else {}
    return backbone.pipe(
        prompt=PROMPT, negative_prompt=plan.sample.negative_prompt, height=64, width=96, num_frames=plan.frames_px,
        num_inference_steps=plan.steps, guidance_scale=plan.sample.guidance_scale,
        generator=torch.Generator().manual_seed(3), output_type=output_type, **second,
    ).frames  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_technique_is_the_stock_pipeline_bit_for_bit(loaded: Callable[[str], Any], name: str) -> None:
    backbone = loaded(name)
    with backbone.installed(plan_for(backbone, *WINDOW)):  # and taken off again
        pass
    plain = plan_for(backbone)
    latents = run(backbone, plain)
    assert latents.shape == backbone.latent_shape(plain)
    assert torch.equal(latents, stock(backbone, plain, "latent"))


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("name", NAMES)
def test_decoding_latent_frame_by_latent_frame_is_the_stock_decoding(loaded: Callable[[str], Any], name: str, frames: int) -> None:
    backbone = loaded(name)
    plain = plan_for(backbone, frames=frames, steps=1)
    parts = list(backbone.decode(run(backbone, plain)))
    assert [len(part) for part in parts] == [1] + [4] * ((frames - 1) // 4)
    assert np.array_equal(np.concatenate(parts), (stock(backbone, plain, "np")[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_a_window_changes_the_clip_and_leaves_no_trace(loaded: Callable[[str], Any], name: str) -> None:
    backbone = loaded(name)
    plain, window = plan_for(backbone), plan_for(backbone, *WINDOW)
    layers = [layer for transformer in backbone.transformers for layer in backbone.layers(transformer)]
    assert len(layers) == backbone.spec.layers * backbone.spec.experts
    processors, before = [layer.processor for layer in layers], run(backbone, plain)
    difference = (run(backbone, window) - before).abs().max().item()
    print(f"{name}: latents change by up to {difference:.3f}")
    assert difference > 1e-2

    def stop(state: direct.State) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(backbone, window, stop)
    assert all(layer.processor is processor for layer, processor in zip(layers, processors, strict=True))
    assert torch.equal(run(backbone, plain), before)


def test_a_plan_acts_in_both_experts(loaded: Callable[[str], Any]) -> None:
    """Two steps each with two guidance branches; the window changes what each expert answers to the same input."""
    backbone = loaded("wan-experts")
    calls: Counter[int] = Counter()
    inputs: dict[int, dict[str, Any]] = {}

    def count(index: int, kwargs: dict[str, Any]) -> None:
        calls[index] += 1
        inputs.setdefault(index, kwargs)

    hooks = [
        transformer.register_forward_pre_hook(lambda _, args, kwargs, index=index: count(index, kwargs), with_kwargs=True)
        for index, transformer in enumerate(backbone.transformers)
    ]
    window = plan_for(backbone, *WINDOW)
    run(backbone, window)
    for hook in hooks:
        hook.remove()
    assert calls == {0: 4, 1: 4}
    backbone.clock.index = 0
    for index, transformer in enumerate(backbone.transformers):
        with torch.no_grad(), transformer.cache_context("cond"):
            (plain,) = transformer(**inputs[index])
            with backbone.installed(window):
                (changed,) = transformer(**inputs[index])
        difference = (changed - plain).abs().max().item()
        print(f"expert {index}: output changes by up to {difference:.3f}")
        assert difference > 1e-2


def test_steps_of_a_technique_count_through_both_experts(loaded: Callable[[str], Any]) -> None:
    backbone = loaded("wan-experts")
    late = plan_for(backbone, WINDOW[0], (*WINDOW[1], "window.steps=[0.75, 1.0]"))
    traces: list[list[Tensor]] = [[], []]
    for plan_, trace in zip((plan_for(backbone), late), traces, strict=True):
        run(backbone, plan_, lambda state, trace=trace: trace.append(state.latents.clone()))
    assert [torch.equal(one, other) for one, other in zip(*traces, strict=True)] == [True, True, True, False]


def test_each_expert_has_its_guidance(loaded: Callable[[str], Any]) -> None:
    backbone = loaded("wan-experts")
    arguments = backbone.call_arguments(plan_for(backbone), PROMPT)
    assert (arguments["guidance_scale"], arguments["guidance_scale_2"]) == (4.0, 3.0)  # as its authors run Wan 2.2 A14B
    assert "guidance_scale_2" not in loaded("wan-ti2v").call_arguments(plan_for(loaded("wan-ti2v")), PROMPT)


@pytest.mark.parametrize(("name", "done"), [("wan-experts", 1), ("wan-experts", 2), ("wan-experts", 3), ("wan-ti2v", 2), ("wan", 2)])
def test_a_resumed_run_ends_on_the_same_latents(loaded: Callable[[str], Any], name: str, done: int) -> None:
    """Also before, at and after the boundary between the experts."""
    backbone = loaded(name)
    window = plan_for(backbone, *WINDOW)
    kept: list[direct.State] = []

    def stop(state: direct.State) -> None:
        if state.done == done:
            scheduler = {key: list(v) if isinstance(v, list) else v for key, v in state.scheduler.items()}
            kept.append(direct.State(done, state.latents.clone(), scheduler, state.generator.clone()))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(backbone, window, stop)
    seen: list[int] = []
    resumed = run(backbone, window, lambda state: seen.append(state.done), kept[0])
    assert seen == list(range(done + 1, 5))
    assert torch.equal(resumed, run(backbone, window))


def test_a_window_hides_frames_from_ti2v_s_tokens(loaded: Callable[[str], Any]) -> None:
    """With a window of one frame in every layer, no frame's answer depends on another frame."""
    backbone = loaded("wan-ti2v")
    alone = plan_for(backbone, "sliding-window", ("window.frames=1",))
    latents = backbone.noise(alone, torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, :, 4] += 1
    width, height = alone.grid[2], alone.grid[1]
    arguments = dict(
        timestep=torch.full((1, alone.tokens), 500.0), encoder_hidden_states=torch.zeros(1, 4, 32), return_dict=False
    )
    assert alone.tokens == alone.frames_lat * height * width
    transformer = backbone.pipe.transformer
    backbone.clock.index = 0
    with torch.no_grad(), transformer.cache_context("cond"):
        free = [transformer(hidden_states=x, **arguments)[0] for x in (latents, changed)]
        with backbone.installed(alone):
            held = [transformer(hidden_states=x, **arguments)[0] for x in (latents, changed)]
    others = [frame for frame in range(alone.frames_lat) if frame != 4]
    assert (free[0] - free[1])[:, :, others].abs().max() > 1e-3
    assert torch.allclose(held[0][:, :, others], held[1][:, :, others], atol=1e-6)
    assert (held[0] - held[1])[:, :, 4].abs().max() > 1e-1
