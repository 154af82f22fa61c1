"""LTX-2 on small pipelines of random weights: diffusers' own bit for bit, with sound; plans by a dense softmax; files with sound.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, A audio tokens, H heads, D head dim.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from typer.testing import CliRunner

import longgen
from longgen import checkpoint, planner, preset, split
from longgen.attention.rotary import Rotary
from longgen.backbones.ltx2 import LTX_2
from longgen.backbones.settings import ModelSettings
from longgen.cli.app import app
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, distances, full_attention
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan
from longgen.progress import Progress
from longgen.schedule import PromptSchedule, Shot
from longgen.video_info import sound_of
from tests.attention.dense import dense
from tests.backbones import family
from tests.models.ltx2 import GATED, build

NAMES = ("ltx2", GATED)
FRAMES_PX, T = 41, 6
PLANS = {"neutral": full_attention(T)} | family.plans(T, 10)
WINDOW = ("window.frames=3",)


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    gated = tmp_path_factory.mktemp(GATED)
    build(GATED, gated)
    return lambda name: gated if name == GATED else model_folder(name)


@pytest.fixture(scope="module")
def backbone(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return functools.cache(lambda name: family.loaded(folder(name)))


def sampled(model: Any, plan: Plan, on_step: Any = lambda state: None, resume: State | None = None) -> tuple[Tensor, Tensor]:
    """The latents of the video, and of the sound."""
    generator = torch.Generator().manual_seed(family.SEED)
    denoiser = Denoiser(model, plan, family.PROMPT)
    latents = sample(denoiser, model.noise(plan, generator), generator, on_step, resume)
    return latents, denoiser.streams["audio_latents"]


@pytest.mark.parametrize(("name", "dtype", "scale"), [(NAMES[0], "fp32", 3.0), (NAMES[1], "bf16", 3.0), (NAMES[0], "fp32", 1.0)])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(folder: Callable[[str], Path], name: str, dtype: str, scale: float) -> None:
    """Its defaults but for spatiotemporal guidance, which is for layers that can be perturbed."""
    model = family.loaded(folder(name), dtype)
    plan, window = (family.made(model, preset, 17, 2, sets, negative_prompt="blurry", guidance_scale=scale)
                    for preset, sets in (("direct", ()), ("sliding-window", ("window.frames=2",))))  # fmt: skip
    changed, changed_sound = sampled(model, window)
    latents, sound = sampled(model, plan)
    pipe = DiffusionPipeline.from_pretrained(folder(name), dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    unguided = dict.fromkeys(("audio_guidance_scale", "modality_scale", "audio_modality_scale"), 1.0)
    unguided |= dict.fromkeys(("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0)
    published = {} if name == NAMES[1] else {"stg_scale": 0.0, "audio_stg_scale": 0.0}
    output = pipe(
        prompt=family.PROMPT, negative_prompt="blurry", width=family.SIZE[0], height=family.SIZE[1], num_frames=17,
        num_inference_steps=2, guidance_scale=scale, frame_rate=24.0, generator=torch.Generator().manual_seed(family.SEED),
        output_type="np", **(published if scale > 1 else unguided),
    )  # fmt: skip
    frames = np.concatenate(list(model.decode(latents)))
    assert np.array_equal(frames, (output.frames[0] * 255).round().astype(np.uint8))
    waves, rate = model.sound({"audio_latents": sound})
    assert rate == 24000
    assert waves.std() > 1e-4
    assert np.array_equal(waves, output.audio[0].T.float().numpy())
    assert (changed - latents).abs().max() > 1e-3
    assert (changed_sound - sound).abs().max() > 1e-3  # it attends to the video


def test_a_step_takes_as_many_calls_as_the_spec_says(backbone: Callable[[str], Any]) -> None:
    for name, scale, expected in ((NAMES[0], 3.0, 2), (NAMES[1], 3.0, 3), (NAMES[1], 1.0, 1)):
        model, calls = backbone(name), []
        hook = model.pipe.transformer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        sampled(model, family.made(model, "direct", 9, 2, guidance_scale=scale))
        hook.remove()
        assert len(calls) == 2 * expected
        assert scale == 1.0 or model.spec.more_calls == expected - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_on_the_same_video_and_sound(backbone: Callable[[str], Any], name: str) -> None:
    model = backbone(name)
    plan = family.made(model, "sliding-window", FRAMES_PX, 3, WINDOW)
    whole, state = sampled(model, plan), family.stopped_after(model, plan, 2)
    for one, other in zip(whole, sampled(model, plan, resume=state), strict=True):
        assert torch.equal(one, other)


def expected(model: Any, attn: Any, plan: FramePlan, inputs: dict[str, Any]) -> Tensor:
    """The layer's answer by the dense form: at the model's own times, or at evenly spaced ones where `plan` moves any frame."""
    hidden, (cos, sin) = inputs["hidden_states"], inputs["query_rotary_emb"]
    own = plan.frequency_scale is None and all(np.array_equal(one.rel, distances(T)) for one in plan.passes)
    rotary = Rotary(np.zeros(0), np.zeros(0, dtype=int)) if own else model.rotary()
    with torch.no_grad():
        q, k, v = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        if attn.rope_type == "split":  # pairs are i and i + D / 2: side by side, as the dense form has them
            halves = torch.arange(q.shape[3]).view(2, -1).T.flatten()
            q, k = q[..., halves], k[..., halves]
            tables = tuple(table[0].transpose(0, 1).flatten(1) for table in (cos, sin))
        else:
            tables = (cos[0, :, 0::2], sin[0, :, 0::2])
        output = dense(plan, q, k, v, rotary, tables).float()
        if attn.to_gate_logits is not None:
            output = output * 2 * torch.sigmoid(attn.to_gate_logits(hidden))[..., None]
        return attn.to_out[0](output.flatten(2))


@pytest.mark.parametrize("name", NAMES)
def test_a_planned_layer_equals_one_dense_softmax(backbone: Callable[[str], Any], name: str) -> None:
    model = backbone(name)
    direct = family.made(model, "direct", FRAMES_PX, 2)
    _, given = family.layer_inputs(model, direct)
    attn = model.layers(model.pipe.transformer)[1]
    with torch.no_grad():
        stock = attn(**given)
    for label, frame_plan in PLANS.items():
        output = family.through(model, family.programmed(direct, frame_plan), 1, given)
        assert (output - expected(model, attn, frame_plan, given)).abs().max() < 1e-5, label
        change = (output - stock).abs().max()
        assert change < 2e-6 if label == "neutral" else change > 1e-3, label


# Files


def test_a_run_that_was_stopped_ends_in_the_same_file_and_decode_makes_it_again(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = dict(
        preset="sliding-window", overrides=WINDOW, backbone=str(model_folder(NAMES[0])), seed=1, device="cpu", dtype="fp32",
        frames=33, steps=3, size=family.SIZE,
    )  # fmt: skip

    def stop(now: Progress) -> None:
        if now.phase == "sample" and now.done == 2:
            raise KeyboardInterrupt

    longgen.generate("a triangle", tmp_path / "whole.mp4", **arguments)
    with pytest.raises(KeyboardInterrupt):
        longgen.generate("a triangle", tmp_path / "stopped.mp4", progress=stop, **arguments)
    longgen.generate("a triangle", tmp_path / "stopped.mp4", resume=True, **arguments)
    whole = (tmp_path / "whole.mp4").read_bytes()
    assert (tmp_path / "stopped.mp4").read_bytes() == whole
    assert sound_of(tmp_path / "whole.mp4") == "aac (LC), 24000 Hz, stereo"
    shown = CliRunner().invoke(app, ["inspect", "--json", str(tmp_path / "whole.mp4")])
    assert json.loads(shown.stdout)["sound"] == "aac (LC), 24000 Hz, stereo"
    again = tmp_path / "again.mp4"
    done = CliRunner().invoke(app, ["decode", str(tmp_path / "whole.run"), "-o", str(again), "--device", "cpu", "--quiet"])
    assert done.exit_code == 0, done.output
    assert again.read_bytes() == whole
    file = tmp_path / "whole.run" / "latents.safetensors"
    tensors, settings = checkpoint.load_tensors(file)
    checkpoint.save_tensors(file, tensors | {"audio_latents": tensors["audio_latents"][:, 1:]}, settings)
    done = CliRunner().invoke(app, ["decode", str(tmp_path / "whole.run"), "-o", str(tmp_path / "no.mp4"), "--device", "cpu"])
    assert done.exit_code != 0
    assert not (tmp_path / "no.mp4").exists()


# Plans


def made(name: str, schedule: PromptSchedule | None = None, **sample: Any) -> Plan:
    return planner.build(preset.load(name, sample=preset.Sample(frames=481, **sample)), LTX_2, schedule)


def test_what_the_sound_could_not_follow_is_refused() -> None:
    shots = PromptSchedule((Shot(Fraction(0), "a"), Shot(Fraction(10), "b")))
    for name, others, said in (
        ("sliding-window", dict(fps=30), "--fps 30: ltx-2 makes sound for 24 frames a second"),
        ("gen-l-video", {}, "gen-l-video makes the video of ltx-2 clip by clip, and its sound is one piece"),
        ("fifo", {}, "fifo needs frame-timesteps"),
        ("sliding-window", dict(schedule=shots), "the sound of ltx-2 is not made by frames"),
    ):
        with pytest.raises(UsageError, match=said):
            made(name, **others)
    for settings in (dict(gpus=2), dict(gpus=2, guidance_parallel=True)):
        with pytest.raises(UsageError, match="audio and video attend to each other"):
            split.split_of(made("direct"), ModelSettings("cuda", "bf16", **settings))


def test_a_plan_says_what_becomes_of_the_sound() -> None:
    said = "\n".join(made("freespec").notes)
    assert "501 audio latents make 20 s of sound: what a preset changes is the video's noise, its latents" in said
    assert "beyond the 5.04 s of a native clip" in said
    silent = planner.build(preset.load("freespec", sample=preset.Sample(frames=481)), replace(LTX_2, sound=None))
    assert "sound" not in "\n".join(silent.notes)
