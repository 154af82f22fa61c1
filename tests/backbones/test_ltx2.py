"""LTX-2 on small pipelines of random weights: diffusers' own bit for bit, with sound; plans by a dense softmax; files with sound.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, A audio tokens, H heads, D head dim.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LTX2ConditionPipeline
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES, apply_image_conditioning_crf
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import longgen
from longgen import checkpoint, ffmpeg, pictures, planner, preset, shown, split
from longgen.attention.rotary import Rotary
from longgen.backbones.find import find
from longgen.backbones.ltx2 import LTX_2
from longgen.backbones.settings import ModelSettings
from longgen.cli.app import app
from longgen.conditions import Conditions
from longgen.errors import MissingError, UsageError
from longgen.frameplan import FramePlan, distances, full_attention
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.past import Past
from longgen.pipelines.checks import check_plan
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.progress import Progress
from longgen.schedule import PromptSchedule, Shot
from longgen.video import Sound, read_frames
from longgen.video_info import sound_of
from tests.attention.dense import dense
from tests.backbones import family
from tests.models.ltx2 import GATED, build

NAMES = ("ltx2", GATED)
FRAMES_PX, T = 41, 6
PLANS = {"neutral": full_attention(T)} | family.plans(T, 10)
WINDOW = ("window.frames=3",)
UNGUIDED = dict.fromkeys(("audio_guidance_scale", "modality_scale", "audio_modality_scale"), 1.0) | dict.fromkeys(
    ("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0
)


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
    published = {} if name == NAMES[1] else {"stg_scale": 0.0, "audio_stg_scale": 0.0}
    output = pipe(
        prompt=family.PROMPT, negative_prompt="blurry", width=family.SIZE[0], height=family.SIZE[1], num_frames=17,
        num_inference_steps=2, guidance_scale=scale, frame_rate=24.0, generator=torch.Generator().manual_seed(family.SEED),
        output_type="np", **(published if scale > 1 else UNGUIDED),
    )  # fmt: skip
    frames = np.concatenate(list(model.decode(latents)))
    assert np.array_equal(frames, (output.frames[0] * 255).round().astype(np.uint8))
    waves, rate = model.sound({"audio_latents": sound})
    assert rate == 24000
    assert waves.std() > 1e-4
    assert np.array_equal(waves, output.audio[0].T.float().numpy())
    assert (changed - latents).abs().max() > 1e-3
    assert (changed_sound - sound).abs().max() > 1e-3  # it attends to the video


def test_a_distilled_model_takes_its_own_noise_levels_without_guidance(
    folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by its scheduler, as diffusers' script writes it; LTX-2.5 comes so."""
    distilled = shutil.copytree(folder(GATED), tmp_path / "model")
    scheduler, index = distilled / "scheduler" / "scheduler_config.json", distilled / "model_index.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"use_dynamic_shifting": False, "shift_terminal": None}))
    listed, head = index.read_text(), ["ltx2", "LTX2DurationHead"]  # which LTX-2.5 lists, and a download for longgen lacks
    index.write_text(json.dumps(json.loads(listed) | {"duration_head": head}))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub_id, part, local_files_only: distilled / part)
    for spec in (find(str(distilled)), find("somebody/distilled")):
        assert (spec.sigmas, spec.steps, spec.guidance_scale) == (tuple(DISTILLED_SIGMA_VALUES), 8, 1.0)
    assert find(str(folder(GATED))).sigmas == ()
    unshifted = scheduler.read_text()
    scheduler.write_text(json.dumps(json.loads(unshifted) | {"shift": 7.77}))  # at all lengths: a schedule, and no distilled model
    assert (find(str(distilled)).sigmas, find(str(distilled)).checkpoint_shift) == ((), 7.77)
    scheduler.write_text(unshifted)
    model = family.loaded(distilled)
    plan, short = (planner.build(preset.load("direct", (), preset.Sample(frames=17, size=family.SIZE, steps=steps)), model.spec)
                   for steps in (None, 4))  # fmt: skip
    index.write_text(listed)
    pipe = DiffusionPipeline.from_pretrained(distilled, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        prompt=family.PROMPT, width=family.SIZE[0], height=family.SIZE[1], num_frames=17, frame_rate=24.0, output_type="np",
        sigmas=DISTILLED_SIGMA_VALUES, guidance_scale=1.0, generator=torch.Generator().manual_seed(family.SEED), **UNGUIDED,
    )  # fmt: skip
    latents, sound = sampled(model, plan)
    assert np.array_equal(np.concatenate(list(model.decode(latents))), (output.frames[0] * 255).round().astype(np.uint8))
    assert np.array_equal(model.sound({"audio_latents": sound})[0], output.audio[0].T.float().numpy())
    assert not any("noise levels" in note for note in plan.notes)
    assert "distilled for 8 noise levels of its own (--steps 8); with 4 steps" in "\n".join(short.notes)
    assert sampled(model, short)[0].isfinite().all()
    shifted = planner.build(preset.load("direct", (), preset.Sample(frames=17, size=family.SIZE, flow_shift=3.0)), model.spec)
    assert "--flow-shift 3 moves the noise levels that" in "\n".join(shifted.notes)
    assert not torch.equal(sampled(model, shifted)[0], latents)


def test_several_clean_frames_are_the_stock_pipeline_s_video_condition(
    backbone: Callable[[str], Any], folder: Callable[[str], Path]
) -> None:
    model = backbone(NAMES[0])
    earlier = Conditions(past=Past(Path("earlier.mp4"), "0" * 64, 17, 24.0, family.SIZE))
    plan = family.made(model, "direct", 24, 2, conditions=earlier)
    assert (plan.frames_px, plan.given_lat, plan.new_px) == (41, 3, 24)
    assert np.array_equal(shown.heard(plan, Sound(np.arange(1700), 1000)).samples, np.arange(708, 1700))  # 17 frames are 0.708 s
    video = np.random.default_rng(0).integers(0, 256, (17, *reversed(family.SIZE), 3), dtype=np.uint8)
    generator = torch.Generator().manual_seed(family.SEED)
    given = Given(model.encoded_frames(video, generator))
    latents = sample(Denoiser(model, plan, family.PROMPT, given), model.noise(plan, generator), generator, lambda state: None)
    pipe = LTX2ConditionPipeline.from_pretrained(folder(NAMES[0]))
    pipe.set_progress_bar_config(disable=True)
    condition = LTX2VideoCondition([Image.fromarray(frame) for frame in video])
    assert torch.equal(latents, model.unpacked(family.stock_call(pipe, plan, conditions=condition, output_type="latent"), plan))


def test_a_picture_of_another_size_is_compressed_before_it_is_fitted(backbone: Callable[[str], Any], tmp_path: Path) -> None:
    """An odd row is lost, as diffusers loses it."""
    model, path = backbone(NAMES[0]), tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (45, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    plan = family.made(model, "direct", 17, 2, conditions=Conditions(image=pictures.read(path)))
    expected = pictures.fitted_image(Image.fromarray(apply_image_conditioning_crf(pixels, 33)), family.SIZE, "crop")
    image, last = model.fitted_pictures(plan)
    assert last is None
    assert np.array_equal(image, expected)
    assert "--image picture.png is compressed first, as H.264 with a rate factor of 33" in "\n".join(plan.notes)
    Image.fromarray(pixels[:1]).save(path)
    line = family.made(model, "direct", 17, 2, conditions=Conditions(image=pictures.read(path)))
    assert np.array_equal(model.fitted_pictures(line)[0], pictures.fitted_image(Image.fromarray(pixels[:1]), family.SIZE, "crop"))


def test_the_rate_factor_of_pictures_is_that_of_the_text_encoder_s_generation(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert find(str(model_folder(NAMES[0]))).picture_crf == 33
    for file in ("model_index.json", "transformer/config.json", "vae/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        text = (model_folder(NAMES[0]) / file).read_text()
        (tmp_path / file).write_text(text.replace("Gemma3ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration"))
    assert find(str(tmp_path)).picture_crf == 18


def test_what_a_picture_needs_is_missed_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = family.pictured(tmp_path)
    plan = planner.build(preset.load("direct"), LTX_2, conditions=given)
    wide = replace(given, image=replace(given.image, size=(16386, 20)))
    with pytest.raises(UsageError, match=r"is 16386x20, and ltx-2 takes a picture through H\.264"):
        check_plan(planner.build(preset.load("direct"), LTX_2, conditions=wide), ModelSettings("cpu", "bf16"))
    assert check_plan(plan, ModelSettings("cpu", "bf16")) == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="needs the library av"):
        check_plan(plan, ModelSettings("cpu", "bf16"))


@pytest.mark.parametrize("name", ["sliding-window", "freespec", "vrpr"])
def test_presets_start_from_a_picture_and_go_on(backbone: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    model = backbone(NAMES[0])
    model = type(model)(replace(model.spec, native_px=25), model.pipe, model.model_settings)
    plan, direct = (family.made(model, one, FRAMES_PX, 3, conditions=family.pictured(tmp_path)) for one in (name, "direct"))
    latents = family.sampled(model, plan)
    given = model.given(plan, torch.Generator())
    assert torch.equal(latents[:, :, :1], given.latents)
    assert not torch.equal(latents, family.sampled(model, direct))
    assert torch.equal(family.sampled(model, plan, resume=family.stopped_after(model, plan, 2)), latents)


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
    told = CliRunner().invoke(app, ["inspect", "--json", str(tmp_path / "whole.mp4")])
    assert json.loads(told.stdout)["sound"] == "aac (LC), 24000 Hz, stereo"
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


def test_a_video_that_goes_on_has_new_sound_for_its_new_frames_alone(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """From a picture, then from that run, then from its file."""
    family.pictured(tmp_path)
    arguments: dict[str, Any] = dict(backbone=str(model_folder(NAMES[0])), seed=1, device="cpu", dtype="fp32", frames=24, steps=2,
                                     size=family.SIZE, preset="direct")  # fmt: skip
    longgen.generate("a", tmp_path / "first.mp4", image=tmp_path / "picture-0.png", **(arguments | dict(frames=25)))
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "first.mp4").write_bytes((tmp_path / "first.mp4").read_bytes())
    for past, name in ((tmp_path / "first.mp4", "more"), (copy / "first.mp4", "most")):
        longgen.generate("a", tmp_path / f"{name}.mp4", continue_from=past, **arguments)
        assert len([*read_frames(tmp_path / f"{name}.mp4", family.SIZE)]) == 24
        tensors, _ = checkpoint.load_tensors(tmp_path / f"{name}.run" / "latents.safetensors")
        given_px = 8 * (tensors["latents"].shape[2] - 3 - 1) + 1
        waves, rate = family.loaded(model_folder(NAMES[0])).sound({"audio_latents": tensors["audio_latents"]})
        heard = waves[round(given_px / 24 * rate) :]
        assert abs(len(heard) / rate - 1) < 0.05
        decoded = ffmpeg.run(["-v", "error", "-i", str(tmp_path / f"{name}.mp4"), "-f", "f32le", "-"]).stdout
        played = np.frombuffer(decoded, np.float32).reshape(-1, 2)
        assert len(played) == len(heard)
        assert np.corrcoef(played[2048:-2048, 0], heard[2048:-2048, 0])[0, 1] > 0.99  # but for a frame of AAC at the ends


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
    past = Conditions(past=Past(Path("a.mp4"), "0" * 64, 17, 24.0, LTX_2.size), join=True)
    with pytest.raises(UsageError, match="--join: direct makes new sound for the new frames of ltx-2"):
        planner.build(preset.load("direct"), LTX_2, conditions=past)
    with pytest.raises(UsageError, match="a step of ltx-2 has a third call"):
        split.split_of(made("direct"), ModelSettings("cuda", "bf16", gpus=2, guidance_parallel=True))


def test_a_plan_says_what_becomes_of_the_sound() -> None:
    said = "\n".join(made("freespec").notes)
    assert "501 audio latents make 20 s of sound: what a preset changes is the video's noise, its latents" in said
    assert "beyond the 5.04 s of a native clip" in said
    silent = planner.build(preset.load("freespec", sample=preset.Sample(frames=481)), replace(LTX_2, sound=None))
    assert "sound" not in "\n".join(silent.notes)
