"""LTX-Video, LTX-2, CogVideoX and HunyuanVideo from a picture: the stock pipelines bit for bit, every preset, stops.

Legend: B batch, T latent frames, n tokens per latent frame, K clips, L latent frames of a clip.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LTX2ConditionPipeline, LTXImageToVideoPipeline
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from longgen import frames, planner, preset
from longgen.backbones import formats
from longgen.backbones.find import find
from longgen.conditions import Conditions
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import loading
from longgen.pipelines.given import Given
from longgen.plan import Plan
from tests.backbones import family
from tests.stacks import STACKS

NAMES = ("ltx", "ltx-condition", "cogvideox-i2v", "hunyuan-i2v")
ALL = (*NAMES, "ltx2")  # what a preset does to the last one: test_ltx2.py
KEPT = ("ltx", "hunyuan-i2v", "ltx2")  # whose pipelines keep the picture's latent frame as it is
WINDOW = ("window.frames=3",)


@pytest.fixture(scope="module")
def backbone(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return functools.cache(lambda name: family.loaded(model_folder(name)))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    return family.pictured(tmp_path_factory.mktemp("pictures"))


def stock_pipe(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline in the hands of a user who has never heard of longgen."""
    kind = {"ltx": LTXImageToVideoPipeline, "ltx2": LTX2ConditionPipeline}.get(name, DiffusionPipeline)
    pipe = kind.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_call(model: Any, pipe: Any, plan: Plan, **arguments: Any) -> Any:
    """The stock latents as [1, C, T, h, w], or what else `arguments` ask for."""
    if isinstance(pipe, LTX2ConditionPipeline):
        arguments["conditions"] = LTX2VideoCondition(arguments.pop("image"))
    made = family.stock_call(pipe, plan, max_sequence_length=model.spec.text_tokens, **arguments)
    return model.unpacked(made, plan) if arguments["output_type"] == "latent" else made


def length(model: Any, native: float) -> int:
    """Pixel frames of about `native` times the native length."""
    return frames.pixel_frames(math.ceil(native * (model.spec.native_lat - 1)) + 1, model.spec.stride_t)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ALL)
def test_no_technique_is_the_stock_pipeline_bit_for_bit(
    model_folder: Callable[[str], Path], picture: Conditions, name: str, dtype: str
) -> None:
    model = family.loaded(model_folder(name), dtype)
    pipe = stock_pipe(name, model_folder(name), torch.float32 if dtype == "fp32" else torch.bfloat16)
    for frames_px in (33, 41):
        plan = family.made(model, "direct", frames_px, 3, conditions=picture)
        latents = family.sampled(model, plan)
        assert torch.equal(latents, stock_call(model, pipe, plan, **family.pictures_of(plan), output_type="latent"))
    decoded = np.concatenate(list(model.decode(latents)))
    shown = stock_call(model, pipe, plan, **family.pictures_of(plan), output_type="np")[0]
    assert np.array_equal(decoded, (shown * 255).round().astype(np.uint8))
    assert decoded.std() > 2


@pytest.mark.parametrize("name", ALL)
def test_the_picture_matters_and_leaves_no_trace(backbone: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    model = backbone(name)
    pipe, kept = model.pipe, dict(vars(model.pipe))
    one, other = (family.made(model, "direct", 33, 2, conditions=family.pictured(tmp_path, seed)) for seed in (0, 1))
    latents = family.sampled(model, one)
    assert (latents - family.sampled(model, other)).abs().max() > 1e-2
    assert model.pipe is pipe
    assert model.step_state.pipe is pipe
    assert {key for key in vars(pipe) if key not in kept} <= {"_guidance_scale", "_guidance_rescale", "_attention_kwargs",
                                                             "_current_timestep", "_interrupt", "_num_timesteps"}  # fmt: skip
    family.stopped_after(model, one, 1)  # by an error
    assert model.pipe is pipe
    assert "prepare_latents" not in vars(pipe)
    assert torch.equal(family.sampled(model, one), latents)


def plan_or_refusal(spec: Any, name: str, frames_px: int, conditions: Conditions) -> Plan | UsageError:
    try:
        return planner.build(preset.load(name, (), preset.Sample(frames=frames_px, steps=2, size=family.SIZE)), spec,
                             conditions=conditions)  # fmt: skip
    except UsageError as refusal:
        return refusal


@pytest.mark.parametrize("preset_name", [name for name in STACKS if name != "fifo"])
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_that_a_text_model_runs_starts_from_the_picture(
    backbone: Callable[[str], Any], picture: Conditions, name: str, preset_name: str
) -> None:
    """Of a small clip, longer than the native length; attention against the dense form: tests/attention/test_presets.py."""
    model = backbone(name)
    spec = planner.as_if_probed(model.spec)
    plan = plan_or_refusal(spec, preset_name, length(model, 1.5), picture)
    without = plan_or_refusal(replace(spec, picture_needed=False), preset_name, length(model, 1.5), Conditions())
    if isinstance(plan, UsageError):
        assert isinstance(without, UsageError)
        assert plan.given == without.given
        return
    latents = family.sampled(model, plan)
    assert torch.isfinite(latents).all()
    if name in KEPT:
        given = model.given(plan, torch.Generator().manual_seed(family.SEED))
        assert torch.equal(latents[:, :, :1], given.latents)
    if preset_name != "direct" and (plan.table.any() or plan.in_clips):
        assert not torch.equal(latents, family.sampled(model, family.made(model, "direct", plan.frames_px, 2, conditions=picture)))


@pytest.mark.parametrize("name", ["ltx", "ltx-condition"])
def test_a_queue_is_refused(backbone: Callable[[str], Any], picture: Conditions, name: str) -> None:
    with pytest.raises(UsageError, match="the first ones are given"):
        family.made(backbone(name), "fifo", length(backbone(name), 2), None, conditions=picture)


@pytest.mark.parametrize(
    ("preset_name", "done"), [("direct", 1), ("sliding-window", 2), ("glc-diffusion", 2), ("glc-diffusion", 3)]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_on_the_same_latents(
    backbone: Callable[[str], Any], model_folder: Callable[[str], Path], picture: Conditions, name: str, preset_name: str, done: int
) -> None:
    """Clips, an anchor and edits of the latent among them."""
    model = backbone(name)
    frames_px = length(model, 1.5) if preset_name == "glc-diffusion" else 41
    plan = family.made(model, preset_name, frames_px, 3, WINDOW if preset_name == "sliding-window" else (), conditions=picture)
    whole, state = family.sampled(model, plan), family.stopped_after(model, plan, done)
    assert torch.equal(family.sampled(family.loaded(model_folder(name)), plan, resume=state), whole)


@pytest.mark.parametrize("name", ["ltx", "ltx-condition"])
def test_edits_of_the_latent_see_the_picture_as_it_is(backbone: Callable[[str], Any], picture: Conditions, name: str) -> None:
    """The clean latents that a step predicts hold the picture's, also where the pipeline moves these from step to step."""
    model = backbone(name)
    plan = family.made(model, "glc-diffusion", length(model, 1.5), 3, conditions=picture)
    generator = torch.Generator().manual_seed(0)
    denoiser, seen = Denoiser(model, plan, family.PROMPT, model.given(plan, generator)), list[Tensor]()
    predict = denoiser.predict_x0

    def watched(*arguments: Any) -> tuple[Tensor, float]:
        found = predict(*arguments)
        seen.append(found[0])
        return found

    denoiser.predict_x0 = watched  # type: ignore[method-assign]
    sample(denoiser, denoiser.initial_noise(generator), generator, lambda state: None)
    assert seen
    assert all(torch.allclose(x0[:, :, :1], denoiser.given.latents.to(x0), atol=1e-4) for x0 in seen)


@pytest.mark.parametrize("name", ALL)
def test_an_earlier_video_s_last_latents_are_taken_as_they_are(backbone: Callable[[str], Any], name: str) -> None:
    """No picture stands beside them; where a text encoder wants one, they are decoded."""
    model = backbone(name)
    plan = family.made(model, "direct", 41, 2, conditions=Conditions() if name.startswith("ltx") else None)
    clean = torch.randn(1, model.spec.latent_channels, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    ends = []
    for latents in (clean, clean + 1):
        generator = torch.Generator().manual_seed(family.SEED)
        denoiser = Denoiser(model, plan, family.PROMPT, Given(latents))
        ends.append(sample(denoiser, model.noise(plan, generator), generator, lambda state: None))
    assert (ends[0][:, :, 1:] - ends[1][:, :, 1:]).abs().max() > 1e-2
    if name in KEPT:
        assert torch.equal(ends[0][:, :, :1], clean)


def clips_of(model: Any, arguments: dict[str, Any], latents: Tensor, clips: Tensor) -> dict[str, Any]:
    """The arguments of a call for `clips` [K, L] of one for `latents`, the pipeline's or the transformer's."""
    by_frame = model.by_frame(latents, 6)
    return model.clip_arguments(arguments, torch.cat([by_frame[:, clip] for clip in clips]), clips)


@pytest.mark.parametrize("name", ["ltx", "ltx-condition"])
def test_a_clip_has_the_timesteps_of_its_own_frames(backbone: Callable[[str], Any], name: str) -> None:
    model, n, clips = backbone(name), 32, torch.tensor([[0, 1, 2], [3, 4, 5]])
    timestep = torch.full((2, 6 * n), 700.0)
    timestep[:, :n] = 0
    arguments = {"timestep": timestep, "hidden_states": torch.randn(2, 6 * n, 8)} | model.positions((6, 4, 8), torch.device("cpu"))
    arguments = {key: value.expand(2, -1, -1) if key == "video_coords" else value for key, value in arguments.items()}
    batch = clips_of(model, arguments, arguments["hidden_states"], clips)
    assert batch["timestep"].shape == (4, 3 * n)
    assert [bool((row[:n] == 0).all()) for row in batch["timestep"]] == [True, True, False, False]
    assert (batch["timestep"][:, n:] == 700).all()
    if name == "ltx-condition":
        assert batch["video_coords"].shape == (4, 3, 3 * n)
        assert torch.equal(batch["video_coords"][2], model.positions((3, 4, 8), torch.device("cpu"))["video_coords"][0])


def test_a_clip_that_begins_later_has_no_clean_first_frame(backbone: Callable[[str], Any], picture: Conditions) -> None:
    """HunyuanVideo-I2V modulates the first frame of whatever it gets as a clean one: there it gets the others' modulation."""
    model = backbone("hunyuan-i2v")
    plan = family.made(model, "gen-l-video", length(model, 1.5), 2, conditions=picture)
    embed, seen = model.pipe.transformer.time_text_embed, set()

    def watch(module: Any, arguments: Any, embeddings: tuple[Tensor, Tensor]) -> None:
        seen.add((*watching._begins_clean.tolist(), torch.equal(*embeddings)))

    class Watching(type(model)):
        def installed(self, plan: Plan) -> Any:  # after `conditioned`, whose hook comes first
            hooks.append(embed.register_forward_hook(watch))
            return super().installed(plan)

    hooks: list[Any] = []
    watching = Watching(model.spec, model.pipe, model.model_settings)
    family.sampled(watching, plan)
    hooks.pop().remove()
    assert not hooks
    assert dict(seen) == {True: False, False: True}


def test_the_text_encoder_looks_at_the_picture(backbone: Callable[[str], Any], tmp_path: Path) -> None:
    model = backbone("hunyuan-i2v")
    plans = [family.made(model, "direct", 17, 2, conditions=family.pictured(tmp_path, seed)) for seed in (0, 1)]
    texts = [model.text(family.PROMPT, model.given(plan, torch.Generator())) for plan in plans]
    assert texts[0]["encoder_hidden_states"].shape[1] == model.spec.text_tokens + model.spec.image_tokens
    assert texts[0]["encoder_attention_mask"][0, :144].all()
    assert not torch.equal(*(text["encoder_hidden_states"] for text in texts))
    assert torch.equal(*(text["pooled_projections"] for text in texts))


def test_a_model_of_one_size_refuses_others(backbone: Callable[[str], Any]) -> None:
    model = backbone("cogvideox-i2v")
    assert model.spec.fixed_size
    with pytest.raises(UsageError, match=r"64x64 does not fit .*, which learned the places of 64x32 alone"):
        planner.build(preset.load("direct", (), preset.Sample(size=(64, 64))), model.spec,
                             conditions=planner.stand_in(model.spec))  # fmt: skip


@pytest.mark.parametrize("name", ["cogvideox-i2v", "hunyuan-i2v"])
def test_text_alone_is_refused(backbone: Callable[[str], Any], name: str) -> None:
    with pytest.raises(UsageError, match="starts from a picture, and none is given"):
        planner.build(preset.load("direct"), backbone(name).spec)


def changed(folder: Path, copy: Path, file: str, **values: Any) -> Path:
    """A copy of the configs in `folder`, without weights, with `values` in `file`."""
    for path in ("model_index.json", "transformer/config.json", "vae/config.json"):
        (copy / path).parent.mkdir(exist_ok=True)
        content = json.loads((folder / path).read_text()) | (values if path == file else {})
        (copy / path).write_text(json.dumps(content))
    return copy


def test_an_index_of_the_image_pipeline_is_the_same_model(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """LTX-Video has one checkpoint for both."""
    folder = changed(model_folder("ltx"), tmp_path, "model_index.json", _class_name="LTXImageToVideoPipeline")
    text, image = find(str(model_folder("ltx"))), find(str(folder))
    assert image.about.startswith("LTXImageToVideoPipeline, read from its configs")
    assert (image.family, image.capabilities, image.picture_needed) == (text.family, text.capabilities, False)


@pytest.mark.parametrize(
    ("name", "file", "values", "said"),
    [
        ("hunyuan-i2v", "transformer/config.json", {"image_condition_type": "latent_concat", "in_channels": 33},
         r"the first HunyuanVideo-I2V, to which a picture is further channels \(latent_concat\)"),
        ("hunyuan-i2v", "transformer/config.json", {"image_condition_type": None}, "image_condition_type = None"),
        ("hunyuan", "transformer/config.json", {"image_condition_type": "token_replace"}, "image_condition_type = 'token_replace'"),
        ("cogvideox-i2v", "transformer/config.json", {"patch_size_t": 3}, "says patch_size_t = 3"),
        ("cogvideox-i2v", "transformer/config.json", {"in_channels": 9}, "in_channels = 9"),
        ("cogvideox-i2v", "model_index.json", {"_class_name": "CogVideoXPipeline"}, "out_channels = 4"),
        ("ltx-condition", "vae/config.json", {"spatial_compression_ratio": 0}, "spatial_compression_ratio = 0"),
    ],
)  # fmt: skip
def test_a_model_that_is_none_of_these_is_refused(
    model_folder: Callable[[str], Path], tmp_path: Path, name: str, file: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        find(str(changed(model_folder(name), tmp_path, file, **values)))
    assert refused.value.expected
    assert refused.value.hint


def test_a_llava_is_read_by_the_names_that_it_was_published_with(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Those of transformers before version 5, with a table that later ones derive."""
    folder = model_folder("hunyuan-i2v")
    shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder")
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = {key.replace("vision_tower.", "vision_tower.vision_model."): value for key, value in load_file(file).items()}
    weights["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(577)[None]
    save_file(weights, file, {"format": "pt"})
    one, other = (loading.component(LlavaForConditionalGeneration, str(place), "text_encoder", torch.float32).state_dict()
                  for place in (folder, tmp_path))  # fmt: skip
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_float64_is_no_quantization() -> None:
    """CogVideoX's learned positions are saved so from float32."""
    assert formats.quantized(["patch_embed.pos_embedding"], ["F32", "F64"]) is None
    assert formats.quantized(["a.weight"], ["F6_E2M3"]) is not None
