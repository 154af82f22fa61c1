"""What the tests of the families share: loaded small pipelines, plans of every structure, and runs that stop and go on.

Legend: T latent frames, C temporal rotary components.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longgen import pictures, planner, preset
from longgen.backbones.find import find
from longgen.backbones.settings import ModelSettings
from longgen.conditions import NOTHING, Conditions
from longgen.frameplan import FramePlan, Pass, full_attention, visible_from_ranges
from longgen.frames import local_windows
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines.loading import load
from longgen.plan import Plan
from longgen.program import Program

PROMPT = "a small cyan triangle orbiting on a sand background"
SIZE = (64, 32)  # not square, so that rows and columns cannot be confused
SEED = 3


def loaded(folder: Path, dtype: str = "fp32") -> Any:
    return load(find(str(folder)), ModelSettings("cpu", dtype))


def made(
    backbone: Any, name: str, frames: int, steps: int, sets: tuple[str, ...] = (), conditions: Conditions = NOTHING, **sample: Any
) -> Plan:
    chosen = preset.load(name, sets, preset.Sample(frames=frames, steps=steps, size=SIZE, **sample))
    return planner.build(chosen, backbone.spec, conditions=conditions or planner.stand_in(backbone.spec))


def pictured(folder: Path, seed: int = 0) -> Conditions:
    """Conditions with a picture of SIZE, of smooth random colours, as a file in `folder`."""
    path = folder / f"picture-{seed}.png"
    if not path.exists():
        colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(SIZE, Image.Resampling.BICUBIC).save(path)
    return Conditions(image=pictures.read(path))


def picture_of(plan: Plan) -> Image.Image:
    """The first picture of `plan`, as a user of diffusers loads it."""
    return Image.open(plan.conditions.image.path).convert("RGB")


def pictures_of(plan: Plan) -> dict[str, Image.Image]:
    """The arguments of the stock call that are pictures."""
    given = {"image": plan.conditions.image, "last_image": plan.conditions.last_image}
    return {name: pictures.fitted(one, plan.size, "crop") for name, one in given.items() if one is not None}


def stock_call(pipe: Any, plan: Plan, **arguments: Any) -> Any:
    """The pipeline as any diffusers user would call it."""
    if "frame_rate" in inspect.signature(type(pipe).__call__).parameters:  # positions count seconds
        arguments["frame_rate"] = plan.spec.fps
    kept: list[Tensor] = []
    if plan.spec.sound is not None:  # without guidance by layers that cannot be perturbed; latents as they are sampled
        arguments |= dict.fromkeys(("stg_scale", "audio_stg_scale"), float(plan.spec.more_calls > 1))
        if arguments.get("output_type") == "latent":
            arguments["callback_on_step_end"] = lambda _, index, time, tensors: kept.append(tensors["latents"]) or tensors
    frames = pipe(
        prompt=PROMPT, negative_prompt=plan.sample.negative_prompt, width=SIZE[0], height=SIZE[1], num_frames=plan.frames_px,
        num_inference_steps=plan.steps, guidance_scale=plan.sample.guidance_scale,
        generator=torch.Generator().manual_seed(SEED), **arguments,
    ).frames  # fmt: skip
    return kept[-1] if kept else frames


def sampled(backbone: Any, plan: Plan, on_step: Any = None, resume: State | None = None) -> Tensor:
    """The latents of `plan`: noise and every later draw come from one generator, as in the pipeline."""
    generator = torch.Generator().manual_seed(SEED)
    given = backbone.given(plan, generator)
    noise = backbone.noise(plan, generator)
    return sample(Denoiser(backbone, plan, PROMPT, given), noise, generator, on_step or (lambda state: None), resume)


class StoppedError(Exception):
    pass


def stopped_after(backbone: Any, plan: Plan, step: int) -> State:
    """The state of a run that is stopped after `step` steps."""
    kept: list[State] = []

    def stop(state: State) -> None:
        if state.done == step:
            kept.append(copy.deepcopy(state))
            raise StoppedError

    try:
        sampled(backbone, plan, stop)
    except StoppedError:
        return kept[0]
    raise AssertionError(f"no step {step}")


def programmed(plain: Plan, frame_plan: FramePlan) -> Plan:
    """`plain` with `frame_plan` in every layer and step."""
    return dataclasses.replace(
        plain, programs=(None, Program({"main": frame_plan})), table=np.ones((plain.spec.layers, plain.steps), dtype=np.int64)
    )


def layer_inputs(backbone: Any, plan: Plan) -> list[dict[str, Any]]:
    """What each layer is called with in the first step of `plan`, by name, in the order of the calls."""
    taken: list[dict[str, Any]] = []

    def keep(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
        named = {name: value for name, value in bound.arguments.items() if name not in ("kwargs", "cross_attention_kwargs")}
        taken.append(copy.deepcopy(named | kwargs))

    layers = [layer for transformer in backbone.transformers for layer in backbone.layers(transformer)]
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        sampled(backbone, plan)
    finally:
        for hook in hooks:
            hook.remove()
    return taken[: len(layers)]


def through(backbone: Any, plan: Plan, layer: int, inputs: dict[str, Any]) -> Any:
    """What `layer` answers to `inputs` with `plan` installed."""
    backbone.step_state.index = 0
    with torch.no_grad(), backbone.installed(plan):
        return backbone.layers(backbone.transformers[0])[layer](**inputs)


def plans(frames_lat: int, components: int) -> dict[str, FramePlan]:
    """One plan of every structure that the executor knows, by name."""
    random = np.random.default_rng(0)
    plain = full_attention(frames_lat).passes[0]
    window = visible_from_ranges(local_windows(frames_lat, 3, "shift"))
    sink = visible_from_ranges(local_windows(frames_lat, 3, "clip"))
    sink[:, 0] = True
    seen = random.random((frames_lat, frames_lat)) < 0.5
    seen[np.diag_indices(frames_lat)] = True
    rel = random.uniform(-30, 30, (frames_lat, frames_lat))
    near = np.clip(plain.rel, 2 - frames_lat, frames_lat - 2)  # q stays at native positions, and k has to move
    stripe = np.where(random.random((frames_lat, frames_lat)) < 0.5, 1.0, random.choice([0.2, 0.4], (frames_lat, frames_lat)))
    scale = random.uniform(0.3, 1.5, components)
    half = random.random(frames_lat)
    half[[1, -1]] = 0, 1
    one_pair = np.ones_like(seen)
    one_pair[1, 3] = False
    positions = random.uniform(-9, 9, frames_lat)
    ones = np.ones(frames_lat)

    def of(rel: np.ndarray = plain.rel, visible: np.ndarray = plain.visible, **rest: Any) -> FramePlan:
        return FramePlan((Pass(rel, visible, ones),), **rest)

    return {
        "one pair hidden": of(visible=one_pair),
        "window": of(visible=window),
        "sink and window": of(visible=sink),
        "random visible": of(visible=seen),
        "interpolated": of(plain.rel / 3),
        "any positions": of(positions[:, None] - positions),
        "random rel and visible": of(rel, seen),
        "all but the farthest native": of(near),
        "scaled": of(frequency_scale=scale),
        "interpolated, scaled window": of(plain.rel / 3, window, frequency_scale=scale),
        "random rel, scaled": of(rel, frequency_scale=scale),
        "gain": of(logit_scale=1.7),
        "gain, window": of(visible=window, logit_scale=0.6),
        "stripes": FramePlan((Pass(plain.rel, seen, ones, {"band": stripe}),)),
        "stripes, random rel, scaled": FramePlan((Pass(rel, seen, ones, {"band": stripe}),), scale),
        "two weighted passes": FramePlan(
            (Pass(rel, seen & (half > 0)[:, None], half), Pass(plain.rel, sink & (half < 1)[:, None], 1 - half))
        ),
    }  # fmt: skip
