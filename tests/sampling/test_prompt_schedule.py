"""Prompts that change over time, in the model: what each frame and each clip reads."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import longgen
from longgen import planner, preset
from longgen.backbones.registry import SPECS
from longgen.describe import plan_dict
from longgen.errors import UsageError
from longgen.loops import State, prompt_schedule, sample
from longgen.loops.denoiser import Denoiser
from longgen.metrics import tiny_reading
from longgen.plan import Plan
from longgen.schedule import PromptSchedule, Shot
from tests.backbones import family
from tests.models import small

RED, GREEN = (f"a large {what} bouncing on a navy background" for what in ("red circle", "green square"))
FAMILIES = ["wan-experts", *(name for name in small.PLAIN if name in small.SILENT)]


def schedule(*prompts: str, each_s: float = 1.0, blend: float = 0.0) -> PromptSchedule:
    return PromptSchedule(tuple(Shot(Fraction(each_s) * i, prompt) for i, prompt in enumerate(prompts)), Fraction(blend))


def build(backbone: Any, name: str, shots: PromptSchedule | None, sets: tuple[str, ...] = (), **sample: Any) -> Plan:
    return planner.build(preset.load(name, sets, preset.Sample(**sample)), backbone.spec, shots)


def sampled(backbone: Any, made: Plan, prompt: str, on_step: Any = lambda state: None, resume: Any = None) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = backbone.noise(made, generator)
    return sample(Denoiser(backbone, made, prompt), noise, generator, on_step, resume)


@pytest.fixture(scope="module")
def loaded(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    made: dict[str, Any] = {}
    return lambda name: made.setdefault(name, family.loaded(model_folder(name)))


@pytest.mark.parametrize("name", ["direct", "sliding-window"])
def test_one_shot_is_its_prompt_bit_for_bit(tiny: Any, name: str) -> None:
    plain, one = (build(tiny, name, shots, frames=121, steps=2) for shots in (None, schedule(RED)))
    assert torch.equal(sampled(tiny, plain, RED), sampled(tiny, one, RED))


@pytest.mark.parametrize("name", FAMILIES)
def test_one_shot_in_clips_is_its_prompt_bit_for_bit(loaded: Callable[[str], Any], name: str) -> None:
    backbone = loaded(name)
    sets = ("gen-l-video.frames=3",)
    sample = dict(frames=4 * backbone.spec.stride_t + 1, steps=2, size=family.SIZE)
    plain, one = (build(backbone, "gen-l-video", shots, sets, **sample) for shots in (None, schedule("a red ball")))
    assert torch.equal(sampled(backbone, plain, "a red ball"), sampled(backbone, one, "a red ball"))


@pytest.mark.parametrize("name", ["wan", "wan-experts", "ltx"])
def test_a_layer_s_frames_read_the_text_of_their_shot(loaded: Callable[[str], Any], name: str) -> None:
    """Each cross-attention's output, frame by frame, is that of a run with the frame's own prompt; blends are weighted means."""
    backbone = loaded(name)
    sample = dict(frames=4 * backbone.spec.stride_t + 1, steps=1 + (name == "ltx"), size=family.SIZE, fps=backbone.spec.stride_t)
    seen: dict[str, list[Tensor]] = {}
    layer = backbone.text_layers(backbone.transformers[0])[0]

    def record(key: str, made: Plan, prompt: str) -> None:
        outputs: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, given, output: outputs.append(output.detach()))
        try:
            sampled(backbone, made, prompt)
        finally:
            handle.remove()
        seen[key] = outputs

    for prompt in ("a red ball", "two blue cats"):
        record(prompt, build(backbone, "direct", None, **sample), prompt)
    made = build(backbone, "direct", schedule("a red ball", "two blue cats", each_s=2, blend=1), **sample)
    record("both", made, "a red ball")
    shares = made.shares
    assert shares is not None
    assert ((shares > 0) & (shares < 1)).any()
    one, other, both = (seen[key][0] for key in ("a red ball", "two blue cats", "both"))  # the first layer of the first call
    conditioned = slice(0, 1) if len(both) == 1 else slice(1, 2)
    one, other, both = (x[conditioned].unflatten(1, (5, -1)).double() for x in (one, other, both))
    assert (one - other).abs().max() > 1e-3
    weights = torch.from_numpy(shares).view(2, 1, 5, 1, 1)
    difference = (both - (weights[0] * one + weights[1] * other)).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clip_has_the_text_of_its_shot_and_a_mixture_where_two_meet(
    loaded: Callable[[str], Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the transformer is given, call by call."""
    backbone = loaded(name)
    sample = dict(frames=5 * backbone.spec.stride_t + 1, steps=2, size=family.SIZE, fps=backbone.spec.stride_t)
    shots_of = schedule("a red ball", "two blue cats", each_s=3)
    made = build(backbone, "gen-l-video", shots_of, ("gen-l-video.frames=3", "gen-l-video.stride=1"), **sample)
    texts = Denoiser(backbone, made, "").texts
    given: list[dict[str, Tensor]] = []
    transformer = backbone.transformers[0]
    forward = transformer.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        given.append({key: kwargs[key] for key in texts[0]})
        return forward(*args, **kwargs)

    monkeypatch.setattr(transformer, "forward", recorded)  # below the hook that makes clips of the pipeline's call
    sampled(backbone, made, "a red ball")
    frames = [[clip, clip + 1, clip + 2] for clip in range(4)]
    assert made.shares is not None
    assert made.shares[1].tolist() == [0, 0, 0, 1, 1, 1]
    for clip, held in enumerate(frames):
        expected = prompt_schedule.blend(texts, made.shares[:, held].mean(axis=1))
        for key, value in expected.items():
            assert torch.equal(given[clip][key][-1:].to(value), value), (clip, key)
    mixed = prompt_schedule.blend(texts, np.array([1 / 3, 2 / 3]))["encoder_hidden_states"]
    parts = [text["encoder_hidden_states"] for text in texts]
    assert torch.allclose(mixed, parts[0] / 3 + parts[1] * 2 / 3, atol=1e-6)


def test_a_schedule_in_one_pass_needs_cross_attention() -> None:
    both = schedule(RED, GREEN)
    for name in ("cogvideox-5b", "hunyuanvideo"):
        with pytest.raises(UsageError, match="--schedule requires clips on"):
            planner.build(preset.load("direct", sample=preset.Sample(frames=193)), SPECS[name], both)
        planner.build(preset.load("gen-l-video", sample=preset.Sample(frames=193)), SPECS[name], both)


def test_a_plan_tells_its_shots() -> None:
    both = schedule(RED, GREEN, each_s=2)
    made = planner.build(preset.load("direct", sample=preset.Sample(frames=81)), SPECS["wan2.1-1.3b"], both)
    assert plan_dict(made)["schedule"] == both.as_dict()
    assert PromptSchedule.from_dict(plan_dict(made)["schedule"]) == both


def test_the_python_face_takes_a_schedule(tmp_path: Path) -> None:
    result = longgen.generate(None, tmp_path / "two.mp4", backbone="tiny", preset="gen-l-video", seed=0, device="cpu", frames=97,
                              steps=1, schedule=schedule(RED, GREEN, each_s=2))  # fmt: skip
    assert (result.prompt, result.frames) == (RED, 97)


def test_a_shot_after_the_end_is_refused() -> None:
    with pytest.raises(UsageError, match="shot 2"):
        planner.build(preset.load("direct", sample=preset.Sample(frames=81)), SPECS["wan2.1-1.3b"], schedule(RED, GREEN, each_s=9))


@pytest.mark.parametrize("name", ["sliding-window", "gen-l-video"])
def test_the_object_changes_at_the_asked_second(tiny: Any, name: str) -> None:
    made = build(tiny, name, schedule(RED, GREEN, each_s=5), frames=161, steps=8)
    reading = tiny_reading.read(np.concatenate(list(tiny.decode(sampled(tiny, made, RED)))))
    near = 0 if name == "sliding-window" else 2 * made.spec.fps  # clips that hold the cut have a mixture of both texts
    before, after = reading.colour[: 80 - near - 4], reading.colour[80 + near + 4 :]
    print(name, [sum(colour == asked for colour in part) / len(part) for part, asked in ((before, "red"), (after, "green"))])
    assert sum(colour == "red" for colour in before) > 0.95 * len(before)
    assert sum(colour == "green" for colour in after) > 0.95 * len(after)


def test_a_stopped_run_goes_on_to_the_same_latents(tiny: Any) -> None:
    made = build(tiny, "gen-l-video", schedule(RED, GREEN, each_s=3), frames=97, steps=3)
    kept: list[State] = []

    def keep(state: State) -> None:
        kept.append(state._replace(latents=state.latents.clone(), scheduler={**state.scheduler}))
        if state.done == 2:
            raise KeyboardInterrupt

    whole = sampled(tiny, made, RED)
    with pytest.raises(KeyboardInterrupt):
        sampled(tiny, made, RED, keep)
    assert torch.equal(sampled(tiny, made, RED, resume=kept[-1]), whole)
