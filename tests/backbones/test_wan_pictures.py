"""Wan from pictures, on small pipelines of random weights: 2.1 with CLIP, first and last, 2.2 with two experts, and 2.2 TI2V.

Legend: B batch, C channels, T latent frames, m of them given, n tokens per latent frame, H heads, D head dim.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline
from torch import Tensor

from longgen import frames, pictures, planner, preset, run
from longgen.attention import executor
from longgen.attention.context import LayerInputs
from longgen.backbones.find import find
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import FAMILY, TINY
from longgen.conditions import NOTHING, Conditions
from longgen.errors import UsageError
from longgen.frameplan import FramePlan
from longgen.loops import State, sample
from longgen.loops.denoiser import Denoiser
from longgen.pipelines import random_weights
from longgen.pipelines.given import Given
from longgen.plan import Plan
from longgen.rundir import Job
from longgen.schedule import PromptSchedule, Shot
from tests.attention.dense import dense
from tests.backbones import family
from tests.models.wan import PICTURED
from tests.stacks import STACKS

NAMES = (*PICTURED, "wan-ti2v")
LAST = ("wan-flf2v", "wan-i2v-experts")  # that take a last picture; the first of them needs one


@pytest.fixture(scope="module")
def loaded(model_folder: Callable[[str], Path]) -> dict[str, Any]:
    return {name: family.loaded(model_folder(name)) for name in NAMES}


@pytest.fixture(scope="module")
def stock(model_folder: Callable[[str], Path]) -> dict[str, Any]:
    """The pipelines as a user of diffusers loads them for pictures."""
    pipes = {name: WanImageToVideoPipeline.from_pretrained(model_folder(name)) for name in NAMES}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    return pipes


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Conditions]:
    """started(name) from a picture, of colours that are not grey; with a last one where the model needs it, or last=True."""
    folder = tmp_path_factory.mktemp("pictures")
    first, last = (family.pictured(folder, seed).image for seed in (0, 1))

    def conditions(name: str, last_too: bool = False) -> Conditions:
        return Conditions(first, last if last_too or name == "wan-flf2v" else None)

    return conditions


def made(backbone: Any, conditions: Conditions, name: str = "direct", *sets: str, frames_px: int = 17, **more: Any) -> Plan:
    return family.made(backbone, name, frames_px, 4, sets, conditions=conditions, **more)


def second(backbone: Any, plan: Plan) -> dict[str, Any]:
    spec = backbone.spec
    own = spec.experts == 2 and plan.sample.guidance_scale == spec.guidance_scale
    return {"guidance_scale_2": spec.guidance_scale_2} if own else {}


# Without a technique


@pytest.mark.parametrize(
    ("name", "last", "guidance"),
    [*((name, False, None) for name in NAMES), ("wan-i2v-experts", True, None), ("wan-i2v", False, 1.0)],
)
def test_no_technique_is_the_stock_pipeline_bit_for_bit(
    loaded: dict[str, Any], stock: dict[str, Any], started: Callable[..., Conditions], name: str, last: bool, guidance: float | None
) -> None:
    backbone = loaded[name]
    plan = made(backbone, started(name, last), **({} if guidance is None else {"guidance_scale": guidance}))
    latents = family.sampled(backbone, plan)
    arguments = family.pictures_of(plan) | second(backbone, plan)
    assert torch.equal(latents, family.stock_call(stock[name], plan, output_type="latent", **arguments))
    video = family.stock_call(stock[name], plan, output_type="np", **arguments)[0]
    assert np.array_equal(np.concatenate([*backbone.decode(latents)]), (video * 255).round().astype(np.uint8))
    other = made(backbone, planner.stand_in(backbone.spec) or Conditions(pictures.read(planner.GREY)))
    assert (family.sampled(backbone, other) - latents).abs().max() > 1e-2  # the picture matters


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_the_pipeline_as_it_was(loaded: dict[str, Any], started: Callable[..., Conditions], name: str) -> None:
    """Also one that is stopped; and on a model that needs no picture, text alone gives what it did before."""
    backbone = loaded[name]
    pipe = backbone.pipe
    text = None if backbone.spec.picture_needed else family.sampled(backbone, family.made(backbone, "direct", 17, 4))
    plan = made(backbone, started(name), "sliding-window", "window.frames=3")
    plain = family.sampled(backbone, made(backbone, started(name)))
    assert (family.sampled(backbone, plan) - plain).abs().max() > 1e-2
    family.stopped_after(backbone, plan, 2)
    assert backbone.pipe is backbone.step_state.pipe is pipe
    assert "prepare_latents" not in vars(pipe)
    assert not backbone.pipe.transformer._forward_pre_hooks
    assert torch.equal(family.sampled(backbone, made(backbone, started(name))), plain)
    if text is not None:
        assert torch.equal(family.sampled(backbone, family.made(backbone, "direct", 17, 4)), text)


@pytest.mark.parametrize("stack", ["direct", "sliding-window"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_on_the_same_latents(
    loaded: dict[str, Any], started: Callable[..., Conditions], name: str, stack: str
) -> None:
    """Before, at and after the boundary between experts; and a finished one."""
    backbone = loaded[name]
    plan = made(backbone, started(name), stack, *(("window.frames=3",) if stack != "direct" else ()))
    states: list[State] = []
    whole = family.sampled(backbone, plan, lambda state: states.append(copy.deepcopy(state)))
    for state in states:
        seen: list[int] = []
        assert torch.equal(family.sampled(backbone, plan, lambda now, seen=seen: seen.append(now.done), state), whole)
        assert seen == list(range(state.done + 1, 5))


@pytest.mark.parametrize("name", NAMES)
def test_with_model_offload_it_is_the_stock_pipeline_with_it(
    model_folder: Callable[[str], Path], started: Callable[..., Conditions], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From host to host: the hooks are diffusers' own. After a run no model is left where it ran, and another run is equal."""
    backbone, pipe = family.loaded(model_folder(name)), WanImageToVideoPipeline.from_pretrained(model_folder(name))
    pipe.set_progress_bar_config(disable=True)
    for one in (backbone.pipe, pipe):
        one.enable_model_cpu_offload(device="cpu")
    plan = made(backbone, started(name))
    arguments = family.pictures_of(plan) | second(backbone, plan)
    freed: list[Any] = []
    remove = DiffusionPipeline.remove_all_hooks
    monkeypatch.setattr(DiffusionPipeline, "remove_all_hooks", lambda pipe: freed.append(remove(pipe)))
    runs = [family.sampled(backbone, plan) for _ in range(2)]
    assert len(freed) == 2
    assert all(torch.equal(run, family.stock_call(pipe, plan, output_type="latent", **arguments)) for run in runs)


def test_the_first_latent_is_the_picture(loaded: dict[str, Any], started: Callable[..., Conditions]) -> None:
    backbone = loaded["wan-ti2v"]
    plan = made(backbone, started("wan-ti2v"))
    given = backbone.given(plan, torch.Generator())
    assert torch.equal(family.sampled(backbone, plan)[:, :, :1], given.latents)
    image = np.asarray(given.image)
    assert torch.equal(given.latents, backbone.encoded_frames(image[None], torch.Generator()))


def test_clean_latents_of_several_frames_stay(tiny: Any) -> None:
    """tiny begins with up to 6 of them, of a video and without a picture; its patch is one cell."""
    plan = planner.build(preset.load("direct", (), preset.Sample(frames=41, steps=2)), TINY)
    clean = torch.randn(1, TINY.latent_channels, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    times: list[Tensor] = []
    hook = tiny.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: times.append(kwargs["timestep"]), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(tiny, plan, family.PROMPT, Given(clean))
    latents = sample(denoiser, denoiser.initial_noise(generator), generator)
    hook.remove()
    assert torch.equal(latents[:, :, :3], clean)
    assert [bool(time.unflatten(1, (11, 16))[:, :3].any()) for time in times] == [False] * len(times)
    assert all((time.unflatten(1, (11, 16))[:, 3:] == time[0, -1]).all() for time in times)


# Latents that are handed over to a model with a condition


def inputs_of(backbone: Any, plan: Plan, given: Given | None) -> dict[str, Any]:
    """The arguments of the first call of the transformer."""
    taken: list[dict[str, Any]] = []
    hook = backbone.pipe.transformer.register_forward_pre_hook(lambda _, args, kwargs: taken.append(kwargs), with_kwargs=True)
    generator = torch.Generator().manual_seed(0)
    sample(Denoiser(backbone, plan, family.PROMPT, given), backbone.noise(plan, generator), generator)
    hook.remove()
    return taken[0]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["wan-i2v", "wan-i2v-experts"])
def test_latents_take_the_place_of_a_picture_s(
    loaded: dict[str, Any], started: Callable[..., Conditions], name: str, padded: bool
) -> None:
    """The rest is the stock condition of their first frame, decoded; with zero padding zeros, and one frame marked as known."""
    backbone = loaded[name]
    plan = made(backbone, started(name))
    clean = torch.randn(backbone.latent_shape(plan), generator=torch.Generator().manual_seed(1))[:, :, :2]
    picture = backbone._decoded_picture(Given(clean))
    own = inputs_of(backbone, plan, Given(None, picture))
    inputs = inputs_of(backbone, plan, Given(clean, zero_padded=padded))
    (mask, encoded), (own_mask, own_encoded) = ((x["hidden_states"][:, 16:20], x["hidden_states"][:, 20:]) for x in (inputs, own))
    assert torch.equal(encoded[:, :, :2], clean)
    assert [bool(frame.all()) for frame in mask.unbind(2)] == [True, not padded, False, False, False]
    assert torch.equal(own_mask[:, :, 2:], mask[:, :, 2:])
    assert torch.equal(encoded[:, :, 2:], torch.zeros_like(encoded[:, :, 2:]) if padded else own_encoded[:, :, 2:])
    if name == "wan-i2v":
        assert torch.equal(inputs["encoder_hidden_states_image"], own["encoder_hidden_states_image"])


# With techniques


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The difference of every attention by a frame plan from one dense softmax."""
    differences: list[float] = []
    run_plan = executor.run_plan

    def watched(plan: FramePlan, inputs: LayerInputs) -> Tensor:
        output, call = run_plan(plan, inputs), inputs.ctx
        for index in range(len(output)):
            rows, chosen = slice(index, index + 1), plan
            if plan.key_frames is not None:
                seen = np.zeros(plan.frames_lat, dtype=bool)
                seen[plan.key_frames.choose(call.features[index].unflatten(0, (plan.frames_lat, -1))).tolist()] = True
                chosen = replace(plan, key_frames=None).see_also(np.broadcast_to(seen, (len(seen), len(seen))))
            expected = dense(chosen, inputs.q[rows], inputs.k[rows], inputs.v[rows], call.rotary, call.stock)
            differences.append((output[rows].double() - expected).abs().max().item())
        return output

    monkeypatch.setattr(executor, "run_plan", watched)
    return differences


@pytest.mark.parametrize("preset_name", STACKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_equals_the_dense_form_on_every_image_backbone(
    loaded: dict[str, Any], started: Callable[..., Conditions], compared: list[float], name: str, preset_name: str
) -> None:
    """A video of nine latent frames, of a model that was trained on four."""
    loaded_spec = loaded[name].spec
    spec = replace(loaded_spec, native_px=13, verdicts={"position-sensitive": (0,), "context-sensitive": (1,)})
    backbone = type(loaded[name])(spec, loaded[name].pipe, ModelSettings("cpu", "fp32"))
    chosen = preset.load(preset_name, (), preset.Sample(frames=33, size=family.SIZE))
    chosen = chosen.model_copy(update={"sample": chosen.sample.model_copy(update={"steps": None if preset_name == "fifo" else 2})})
    conditions = started(name)
    if any(need not in spec.capabilities for technique in chosen.techniques for need in technique.requires):
        with pytest.raises(UsageError, match="needs "):
            planner.build(chosen, spec, conditions=conditions)
        return
    if preset_name in ("chain", "svi") and not spec.clean_lat:  # which needs a last picture, too
        with pytest.raises(UsageError, match="cannot begin with any"):
            planner.build(chosen, spec, conditions=conditions)
        return
    if preset_name == "fifo":
        with pytest.raises(UsageError, match="fifo moves every frame from noise through its queue, and the first ones are given"):
            planner.build(chosen, spec, conditions=conditions)
        return
    plan = planner.build(chosen, spec, conditions=conditions)
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, family.PROMPT, backbone.given(plan, generator))
    latents = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert latents.isfinite().all()
    assert latents.shape == backbone.latent_shape(plan)
    if name == "wan-ti2v":
        assert torch.equal(latents[:, :, :1], denoiser.given.latents)
    assert bool(compared) == bool(plan.table.any()) or preset_name in ("freepca", "freespec")  # whose branches are computed apart
    print(f"{preset_name} on {name}: max difference {max(compared, default=0):.1e} in {len(compared)} calls")
    assert max(compared, default=0) < 1e-4


@pytest.mark.parametrize("name", ["wan-ti2v", "wan-i2v", "wan-flf2v"])
def test_a_clip_has_the_timesteps_and_the_condition_of_its_frames(
    loaded: dict[str, Any], started: Callable[..., Conditions], name: str
) -> None:
    """As a plain loop shows them: the clip at the beginning has a clean frame, and no other."""
    spec = replace(loaded[name].spec, native_px=9)
    backbone = type(loaded[name])(spec, loaded[name].pipe, ModelSettings("cpu", "fp32"))
    plan = made(backbone, started(name), "gen-l-video", frames_px=25)
    shown: list[dict[str, Any]] = []
    transformer, forward = backbone.pipe.transformer, backbone.pipe.transformer.forward

    def watch(**arguments: Any) -> Any:
        shown.append(arguments)
        return forward(**arguments)

    transformer.forward = watch
    try:
        generator = torch.Generator().manual_seed(0)
        denoiser = Denoiser(backbone, plan, family.PROMPT, backbone.given(plan, generator))
        latents = sample(denoiser, denoiser.initial_noise(generator), generator)
    finally:
        del transformer.forward
    clips = plan.sampling.clips(plan.frames_lat, 3, 500.0, 0).frames
    of_a_branch = shown[: len(clips)]
    assert [len(arguments["hidden_states"]) for arguments in of_a_branch] == [1] * len(clips)
    for clip, arguments in zip(clips, of_a_branch, strict=True):
        if name == "wan-ti2v":
            times = arguments["timestep"].unflatten(1, (3, -1))
            assert [bool(time.any()) for time in times[0]] == [frame != 0 for frame in clip]
            assert torch.equal(arguments["hidden_states"][:, :, clip == 0], denoiser.given.latents[:, :, : (clip == 0).sum()])
        else:
            mask = arguments["hidden_states"][:, 16:20]
            assert [bool(frame.all()) for frame in mask.unbind(2)] == [frame == 0 for frame in clip]
        if name == "wan-flf2v":  # every clip reads both pictures
            tokens = backbone.pipe.encode_image([*family.pictures_of(plan).values()])
            assert torch.equal(arguments["encoder_hidden_states_image"], tokens)
    assert any("is seen by those that hold its frames" in note for note in plan.notes)
    batched = type(loaded[name])(spec, loaded[name].pipe, ModelSettings("cpu", "fp32", clip_batch=3))
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(batched, plan, family.PROMPT, batched.given(plan, generator))
    assert torch.allclose(sample(denoiser, denoiser.initial_noise(generator), generator), latents, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_of_equal_prompts_is_no_schedule(loaded: dict[str, Any], started: Callable[..., Conditions], name: str) -> None:
    """The tokens of pictures stand before the texts of the shots, and are seen with each of them."""
    backbone = loaded[name]
    results = []
    for shots in (1, 2, 3):
        schedule = PromptSchedule(tuple(Shot(Fraction(3 * index, 10), family.PROMPT) for index in range(shots)))
        plan = planner.build(preset.load("direct", (), preset.Sample(frames=17, steps=2, size=family.SIZE)), backbone.spec,
                             schedule if shots > 1 else None, conditions=started(name))  # fmt: skip
        results.append(family.sampled(backbone, plan))
    assert all((other - results[0]).abs().max() < 1e-4 for other in results[1:])


def test_edits_of_the_latent_leave_given_frames_alone(tiny: Any, started: Callable[..., Conditions]) -> None:
    plan = planner.build(preset.load("glc-diffusion", (), preset.Sample(frames=161, steps=2)), TINY, conditions=started("tiny"))
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(tiny, plan, family.PROMPT, tiny.given(plan, generator))
    seen: list[Tensor] = []
    predict = denoiser.predict_x0
    denoiser.predict_x0 = lambda *arguments: seen.append(found[0]) or found if (found := predict(*arguments)) else None  # type: ignore[method-assign]
    latents = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert seen
    assert all(torch.equal(x0[:, :, :1], denoiser.given.latents) for x0 in [*seen, latents])


def test_videos_with_and_without_a_picture_are_made_on_one_model(
    started: Callable[..., Conditions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the video that it is alone; `tiny` is loaded once."""
    plans = [
        planner.build(preset.load("direct", (), preset.Sample(frames=9, steps=2)), TINY, conditions=conditions)
        for conditions in (NOTHING, started("tiny"), NOTHING)
    ]
    loads: list[Any] = []
    load = run.load
    monkeypatch.setattr(run, "load", lambda *arguments: loads.append(load(*arguments)) or loads[-1])
    jobs = [Job(plan, family.PROMPT, 3, tmp_path / f"{number}.mp4") for number, plan in enumerate(plans)]
    run.generate_jobs(jobs, ModelSettings("cpu", "fp32"))
    assert len(loads) == 1
    alone = [job._replace(output=tmp_path / f"alone-{number}.mp4") for number, job in enumerate(jobs[:2])]
    for job in alone:
        run.generate_jobs([job], ModelSettings("cpu", "fp32"))
    first, pictured, last = (job.output.read_bytes() for job in jobs)
    assert [first, pictured] == [job.output.read_bytes() for job in alone]
    assert first == last != pictured


# Before anything is loaded


def test_models_that_need_pictures_say_so() -> None:
    direct = preset.load("direct")
    with pytest.raises(UsageError, match=r"wan2\.1-i2v-14b-480p starts from a picture, and none is given"):
        planner.build(direct, SPECS["wan2.1-i2v-14b-480p"])
    only_first = Conditions(pictures.read(planner.GREY))
    with pytest.raises(UsageError, match=r"wan2\.1-flf2v-14b starts from a first and a last picture, and no last one is given"):
        planner.build(direct, SPECS["wan2.1-flf2v-14b"], conditions=only_first)
    with pytest.raises(UsageError, match=r"--image: wan2\.1-1\.3b cannot take") as caught:
        planner.build(direct, SPECS["wan2.1-1.3b"], conditions=only_first)
    for name in ("tiny", "wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b"):
        assert name in caught.value.expected
    both = replace(only_first, last_image=only_first.image)
    with pytest.raises(UsageError, match=r"--last-image: wan2\.1-i2v-14b-720p cannot take"):
        planner.build(direct, SPECS["wan2.1-i2v-14b-720p"], conditions=both)
    for name in ("wan2.1-flf2v-14b", "wan2.2-i2v-a14b"):
        assert planner.build(direct, SPECS[name], conditions=both).given_lat == 1


CHANGES: dict[str, tuple[str, str, dict[str, Any], str]] = {  # case -> model, file, its new values, message
    "control": ("wan", "transformer/config.json", {"in_channels": 48}, "in_channels = 48 and out_channels = 16, as control models"),
    "text of 36": ("wan-i2v", "model_index.json", {"_class_name": "WanPipeline"}, "in_channels = 36 and out_channels = 16"),
    "VACE": ("wan-i2v", "model_index.json", {"_class_name": "WanVACEPipeline"}, "is a WanVACEPipeline"),
    "no condition": ("wan", "model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "in_channels = 16, and model_index"),
    "another condition": ("wan-i2v", "transformer/config.json", {"in_channels": 33}, "in_channels = 33 and out_channels = 16"),
    "three pictures": ("wan-flf2v", "transformer/config.json", {"pos_embed_seq_len": 771}, "pos_embed_seq_len = 771"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_other_inputs_are_refused(model_folder: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    model, file, change, message = CHANGES[case]
    folder = shutil.copytree(model_folder(model), tmp_path / "model")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UsageError, match=message):
        find(str(folder))


def test_a_pipeline_for_pictures_with_a_timestep_a_token_is_also_one_for_text(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder("wan-ti2v"), tmp_path / "model")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "WanImageToVideoPipeline"}))
    found, plain = find(str(folder)), find(str(model_folder("wan-ti2v")))
    assert (found.picture_needed, found.capabilities) == (False, plain.capabilities)
    backbone, other = family.loaded(folder), family.loaded(model_folder("wan-ti2v"))
    plans = [family.made(one, "direct", 9, 2) for one in (backbone, other)]
    assert torch.equal(family.sampled(backbone, plans[0]), family.sampled(other, plans[1]))


def test_lora_files_name_the_layers_of_pictures_as_their_authors_do() -> None:
    """diffusers 58eb52c, scripts/convert_wan_to_diffusers.py."""
    layers = {
        "blocks.0.attn2.add_k_proj": "blocks.0.cross_attn.k_img", "blocks.0.attn2.add_v_proj": "blocks.0.cross_attn.v_img",
        "blocks.0.attn2.norm_added_k": "blocks.0.cross_attn.norm_k_img", "blocks.0.norm2": "blocks.0.norm3",
        "condition_embedder.image_embedder.norm1": "img_emb.proj.0", "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    }  # fmt: skip
    assert FAMILY.author_layers(layers) == {theirs: (ours,) for ours, theirs in layers.items()}


def test_loading_prints_nothing(model_folder: Callable[[str], Path]) -> None:
    """transformers has a word on its image processor, which does without torchvision."""
    script = "import sys; from longgen.backbones.find import find; from longgen.backbones.settings import ModelSettings; "
    script += "from longgen.pipelines.loading import load; load(find(sys.argv[1]), ModelSettings('cpu', 'fp32'))"
    done = subprocess.run([sys.executable, "-c", script, str(model_folder("wan-i2v"))], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b", "wan2.2-i2v-a14b", "wan2.2-ti2v-5b"])
def test_random_weights_take_pictures(name: str) -> None:
    """Grey ones where a model needs them; text has 512 tokens where those of pictures stand before it."""
    spec = replace(SPECS[name], layers=2, heads=2, head_dim=24, ffn_dim=32, rotary_dims=8, intrinsic_component=1, size=(64, 64),
                   parameters=0)  # fmt: skip
    conditions = planner.stand_in(spec) or Conditions(pictures.read(planner.GREY))
    plan = planner.build(preset.load("direct", (), preset.Sample(frames=33, steps=2)), spec, conditions=conditions)
    backbone = random_weights.build(spec, ModelSettings("cpu", "fp32", vae_tiling=True))
    generator = torch.Generator().manual_seed(0)
    denoiser = Denoiser(backbone, plan, "a", backbone.given(plan, generator))
    latents = sample(denoiser, denoiser.initial_noise(generator), generator)
    assert latents.shape == backbone.latent_shape(plan)
    assert 0.2 < latents.std() < 5
    assert plan.frames_lat == frames.latent_frames(33, spec.stride_t)
