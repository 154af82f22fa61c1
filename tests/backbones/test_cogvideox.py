"""CogVideoX against the stock pipeline and against one dense softmax, on small models of the real classes.

"cogvideox" is made like the 5B model (rotary positions, DPM scheduler), "cogvideox-2b" like the 2B one (none, DDIM),
"cogvideox-i2v" like 5B-I2V, which starts from a picture, "cogvideox-1.5" like 1.5, whose tokens hold two latent frames.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler, DiffusionPipeline
from torch import Tensor

from longgen.attention.rotary import Rotary
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, distances, full_attention
from longgen.pipelines import cogvideox
from longgen.pipelines.cogvideox import joined, parted
from longgen.pipelines.given import Given
from longgen.pipelines.loading import decoder
from tests.attention.dense import dense
from tests.backbones import family
from tests.models.cogvideox import TEXT_TOKENS, build

NAMES = ("cogvideox", "cogvideox-2b", "cogvideox-i2v")
FRAMES_PX, T = 21, 6
PLANS = family.plans(T, 4)
CASES = [  # frequencies can be scaled where there are any
    (name, plan_name)
    for name in NAMES
    for plan_name, plan in PLANS.items()
    if name != "cogvideox-2b" or plan.frequency_scale is None
] + [("cogvideox-1.5", plan_name) for plan_name in PLANS]
WINDOW = ("window.frames=3",)


@pytest.fixture(scope="module")
def backbone(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return functools.cache(lambda name: family.loaded(model_folder(name)))


@pytest.fixture(scope="module")
def inputs(backbone: Callable[[str], Any]) -> Callable[[str], list[dict[str, Any]]]:
    kept: dict[str, list[dict[str, Any]]] = {}

    def get(name: str) -> list[dict[str, Any]]:
        if name not in kept:
            kept[name] = family.layer_inputs(backbone(name), made_direct(backbone(name)))
        return kept[name]

    return get


def made_direct(model: Any) -> Any:
    """Of T latent frames, or frames of tokens where these hold more."""
    return family.made(model, "direct", model.spec.stride_t * (T - 1) + 1, 2)


def stock_pipe(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline in the hands of a user who has never heard of longgen."""
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_call(pipe: Any, plan: Any, **arguments: Any) -> Any:
    return family.stock_call(pipe, plan, max_sequence_length=TEXT_TOKENS, **family.pictures_of(plan), **arguments)


@pytest.mark.parametrize(("name", "frames_px"), [*((name, px) for name in NAMES for px in (17, 21)), ("cogvideox-1.5", 33)])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(
    backbone: Callable[[str], Any], model_folder: Callable[[str], Path], name: str, frames_px: int
) -> None:
    model, pipe = backbone(name), stock_pipe(model_folder(name))
    plan = family.made(model, "direct", frames_px, 4)
    latents = family.sampled(model, plan)
    assert latents.shape == model.latent_shape(plan)
    assert latents.std() > 0.1
    assert torch.equal(parted(latents, model.spec.token_lat).transpose(1, 2), stock_call(pipe, plan, output_type="latent"))
    frames = np.concatenate(list(model.decode(latents)))
    assert frames.std() > 5
    assert np.array_equal(frames, (stock_call(pipe, plan, output_type="np")[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "preset", "sets"),
    [
        ("cogvideox", "sliding-window", WINDOW),
        ("cogvideox", "vrpr", ()),
        ("cogvideox", "yarn", ()),
        ("cogvideox", "freespec", ()),
        ("cogvideox-2b", "sliding-window", WINDOW),
        ("cogvideox-2b", "sink-window", ("window.frames=2", "sink.frames=1")),
        ("cogvideox-i2v", "sliding-window", WINDOW),
        ("cogvideox-i2v", "freespec", ()),
        ("cogvideox-1.5", "sliding-window", WINDOW),
    ],
)
def test_techniques_change_a_clip_and_leave_no_trace(
    backbone: Callable[[str], Any], model_folder: Callable[[str], Path], name: str, preset: str, sets: tuple[str, ...]
) -> None:
    model = backbone(name)
    plan, plain = (
        family.made(model, made, 32 * model.spec.token_lat + 1, 2, given) for made, given in ((preset, sets), ("direct", ()))
    )
    assert plan.table.any()
    layers = model.layers(model.pipe.transformer)
    before = [layer.processor for layer in layers]
    changed = family.sampled(model, plan)
    assert [layer.processor for layer in layers] == before
    after = family.sampled(model, plain)
    print(f"{preset} on {name}: largest change {(changed - after).abs().max():.2e}")
    assert (changed - after).abs().max() > 1e-3
    assert torch.equal(
        parted(after, model.spec.token_lat).transpose(1, 2), stock_call(stock_pipe(model_folder(name)), plain, output_type="latent")
    )


def test_an_error_leaves_no_trace(backbone: Callable[[str], Any]) -> None:
    model = backbone("cogvideox")
    plain = family.sampled(model, family.made(model, "direct", FRAMES_PX, 3))
    before = [layer.processor for layer in model.layers(model.pipe.transformer)]
    family.stopped_after(model, family.made(model, "sliding-window", FRAMES_PX, 3, WINDOW), 2)
    assert [layer.processor for layer in model.layers(model.pipe.transformer)] == before
    assert torch.equal(family.sampled(model, family.made(model, "direct", FRAMES_PX, 3)), plain)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_attention_of_the_blocks_in_order(backbone: Callable[[str], Any], name: str) -> None:
    model = backbone(name)
    layers = model.layers(model.pipe.transformer)
    assert len(layers) == model.spec.layers == 2
    found = [path for path, module in model.pipe.transformer.named_modules() if any(module is layer for layer in layers)]
    assert found == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
    with model.installed(family.made(model, "sliding-window", FRAMES_PX, 2, (*WINDOW, "window.layers=[1]"))):
        assert [isinstance(layer.processor, cogvideox.CogVideoXAttentionPlan) for layer in layers] == [False, True]


@pytest.mark.parametrize("done", [1, 2, 3, 4])
@pytest.mark.parametrize("preset", ["direct", "sliding-window"])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    backbone: Callable[[str], Any], model_folder: Callable[[str], Path], name: str, preset: str, done: int
) -> None:
    sets = () if preset == "direct" else (*WINDOW, "window.steps=[0.0, 0.7]")
    plan = family.made(backbone(name), preset, FRAMES_PX, 4, sets)
    whole, state = family.sampled(backbone(name), plan), family.stopped_after(backbone(name), plan, done)
    steps: list[int] = []
    resumed = family.sampled(family.loaded(model_folder(name)), plan, on_step=lambda state: steps.append(state.done), resume=state)
    assert steps == list(range(done + 1, 5))
    assert torch.equal(resumed, whole)


def test_the_dpm_scheduler_needs_what_it_remembers(backbone: Callable[[str], Any]) -> None:
    """Without it the resumed run ends elsewhere: the test above would see its loss."""
    model = backbone("cogvideox")
    assert isinstance(model.pipe.scheduler, CogVideoXDPMScheduler)
    plan = family.made(model, "direct", FRAMES_PX, 4)
    whole, state = family.sampled(model, plan), family.stopped_after(model, plan, 2)
    assert isinstance(state.scheduler.pop("old_pred_original_sample"), Tensor)
    assert not torch.equal(family.sampled(model, plan, resume=state), whole)


def qkv_of(attn: Any, inputs: dict[str, Any]) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """q, k, v [B, L, H, D] of the text and [B, N, H, D] of the video, before rotary positions."""
    joint = torch.cat([inputs["encoder_hidden_states"], inputs["hidden_states"]], dim=1)
    q, k, v = (project(joint).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v))
    q, k = attn.norm_q(q), attn.norm_k(k)
    text, video = ((q[:, part], k[:, part], v[:, part]) for part in (slice(TEXT_TOKENS), slice(TEXT_TOKENS, None)))
    return text, video


def tables_of(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """cos and sin [N, D / 2] as the pipeline made them; no rotation where the model has none."""
    if inputs["image_rotary_emb"] is None:
        return torch.ones(inputs["hidden_states"].shape[1], 16), torch.zeros(inputs["hidden_states"].shape[1], 16)
    return inputs["image_rotary_emb"][0][:, 0::2], inputs["image_rotary_emb"][1][:, 0::2]


def text_dense(plan: FramePlan, text: tuple[Tensor, ...], video: tuple[Tensor, ...], rotary: Rotary, stock: Any) -> Tensor:
    """The text's output [B, L, H, D]: over text and video, whose keys stand at time rel[:, 0] - rel[0, 0] of the first pass."""
    first = plan.passes[0].rel
    times = torch.from_numpy(first[:, 0] - first[0, 0]).repeat_interleave(video[0].shape[1] // T)
    angle = torch.atan2(stock[1].double(), stock[0].double())
    for pair, theta in zip(
        rotary.pairs, rotary.frequencies * (1 if plan.frequency_scale is None else plan.frequency_scale), strict=True
    ):
        angle[:, pair] = times * theta
    keys = torch.view_as_complex(video[1].double().unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angle)[None, :, None]
    k = torch.cat([text[1].double(), torch.view_as_real(keys).flatten(-2)], dim=1)
    v = torch.cat([text[2], video[2]], dim=1).double()
    logits = torch.einsum("blhd,bnhd->bhln", text[0].double(), k) / k.shape[-1] ** 0.5
    return torch.einsum("bhln,bnhd->blhd", logits.softmax(-1), v)


def expected(model: Any, attn: Any, plan: FramePlan, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The layer's answer, video and text, by the dense form; native positions keep the stock tables."""
    none = Rotary(np.zeros(0), np.zeros(0, dtype=int))
    with torch.no_grad():
        text, video = qkv_of(attn, inputs)
        total = torch.zeros(video[0].shape, dtype=torch.float64)
        for one in plan.passes:
            native = plan.frequency_scale is None and np.array_equal(one.rel, distances(T))
            rotary = none if native else model.rotary() or none
            part = FramePlan((one,), plan.frequency_scale if len(rotary.pairs) else None, plan.logit_scale)
            total += dense(part, *video, rotary, tables_of(inputs), text[1:])
        words = text_dense(plan, text, video, model.rotary() or none, tables_of(inputs))
        return attn.to_out[0](total.flatten(2).float()), attn.to_out[0](words.flatten(2).float())


def moves_only_time(plan: FramePlan) -> bool:
    """Whether `plan` means nothing without rotary positions."""
    return plan.logit_scale == 1 and all(one.visible.all() and one.band is None for one in plan.passes)


@pytest.mark.parametrize(("name", "plan_name"), CASES)
def test_a_planned_layer_equals_one_dense_softmax(
    backbone: Callable[[str], Any], inputs: Callable[[str], list[dict[str, Any]]], name: str, plan_name: str
) -> None:
    model, frame_plan = backbone(name), PLANS[plan_name]
    plan = family.programmed(made_direct(model), frame_plan)
    for index, given in enumerate(inputs(name)):
        attn = model.layers(model.pipe.transformer)[index]
        outputs = family.through(model, plan, index, given)
        wanted = expected(model, attn, frame_plan, given)
        with torch.no_grad():
            stock = attn(**given)
        differences = [(output - right).abs().max().item() for output, right in zip(outputs, wanted, strict=True)]
        changes = [(output - plain).abs().max().item() for output, plain in zip(outputs, stock, strict=True)]
        (video, text), (video_change, text_change) = differences, changes
        print(f"{plan_name} on {name}, layer {index}: max difference {video:.1e}, text {text:.1e}; "
              f"from stock {video_change:.1e}, text {text_change:.1e}")  # fmt: skip
        assert max(video, text) < 1e-5
        assert (video_change > 1e-3) != (name == "cogvideox-2b" and moves_only_time(frame_plan))
        moved = not np.array_equal(frame_plan.passes[0].rel[:, 0], np.arange(T)) or frame_plan.frequency_scale is not None
        assert (text_change > 1e-3) == (name != "cogvideox-2b" and moved)


@pytest.mark.parametrize("name", NAMES)
def test_the_neutral_program_is_the_stock_layer(
    backbone: Callable[[str], Any], inputs: Callable[[str], list[dict[str, Any]]], name: str
) -> None:
    """Within rounding: text keys come last here, so that sums have another order. A neutral plan installs nothing at all."""
    model = backbone(name)
    plan = family.programmed(family.made(model, "direct", FRAMES_PX, 2), full_attention(T))
    for index, given in enumerate(inputs(name)):
        attn = model.layers(model.pipe.transformer)[index]
        outputs, wanted = family.through(model, plan, index, given), expected(model, attn, full_attention(T), given)
        with torch.no_grad():
            stock = attn(**given)
        for kind, output, plain, right in zip(("video", "text"), outputs, stock, wanted, strict=True):
            print(f"{name}, layer {index}, {kind}: from stock {(output - plain).abs().max():.1e}")
            assert (output - plain).abs().max() < 1e-6
            assert (output - right).abs().max() < 1e-5


def test_rotation_to_native_positions_is_the_stock_rotation(
    backbone: Callable[[str], Any], inputs: Callable[[str], list[dict[str, Any]]]
) -> None:
    from diffusers.models.embeddings import apply_rotary_emb

    model, given = backbone("cogvideox"), inputs("cogvideox")[0]
    _, (q, _, _) = qkv_of(model.layers(model.pipe.transformer)[0], given)
    plan = family.programmed(family.made(model, "direct", FRAMES_PX, 2), full_attention(T))
    with model.installed(plan):
        layer = model.layers(model.pipe.transformer)[0]
        call = layer.processor.call(layer, given["hidden_states"], tables_of(given))
    stock = apply_rotary_emb(q.transpose(1, 2), given["image_rotary_emb"]).transpose(1, 2)
    assert torch.equal(call.rotate(q, None, None), stock)
    rebuilt = call.rotate(q, np.arange(T, dtype=np.float64), None)
    print(f"rebuilt tables at native positions: max difference {(rebuilt - stock).abs().max():.1e}")
    assert (rebuilt - stock).abs().max() < 1e-5
    assert (call.rotate(q, np.arange(T) / 2, None) - stock).abs().max() > 1e-1


def test_fused_projections_serve_too(backbone: Callable[[str], Any]) -> None:
    model = backbone("cogvideox")
    plan = family.made(model, "sliding-window", FRAMES_PX, 2, WINDOW)
    apart = family.sampled(model, plan)
    model.pipe.fuse_qkv_projections()
    try:
        fused = family.sampled(model, plan)
    finally:
        model.pipe.unfuse_qkv_projections()
    assert torch.allclose(apart, fused, atol=1e-4)


@pytest.mark.parametrize("preset", ["riflex", "vrpr", "ntk", "yarn", "longdiff", "flex-positions", "freeloc"])
def test_positions_are_refused_where_there_are_none(backbone: Callable[[str], Any], preset: str) -> None:
    with pytest.raises(UsageError, match=r"needs relative-positions \(.*\), which .* does not have") as refused:
        family.made(backbone("cogvideox-2b"), preset, 33, 2)
    assert "cogvideox-5b" in refused.value.expected
    assert "cogvideox-2b" not in refused.value.expected
    assert refused.value.hint == "choose one of them, or a preset without it"


@pytest.mark.parametrize("frames_lat", [1, 2, 3, 5, 6, 13])
def test_streaming_decode_is_the_full_decode(backbone: Callable[[str], Any], frames_lat: int) -> None:
    model = backbone("cogvideox")
    latents = torch.randn(1, 4, frames_lat, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model.pipe.video_processor.postprocess_video(model.pipe.decode_latents(latents.transpose(1, 2)), output_type="np")[0]
    chunks = list(model.decode(latents))
    assert len(chunks) == max(frames_lat // 2, 1)
    assert sum(map(len, chunks)) == full.shape[0]
    assert np.array_equal(np.concatenate(chunks), (full * 255).round().astype(np.uint8))


def test_1_5_from_a_picture(tmp_path: Path) -> None:
    """The stock pipeline bit for bit; a clip that goes on begins from the last latent frame, not from its whole pair."""
    build("cogvideox-1.5-i2v", tmp_path / "model")
    model, picture = family.loaded(tmp_path / "model"), family.pictured(tmp_path)
    plan = family.made(model, "direct", 33, 2, conditions=picture)
    latents = family.sampled(model, plan)
    stock = stock_call(stock_pipe(tmp_path / "model"), plan, output_type="latent")
    assert torch.equal(parted(latents, 2).transpose(1, 2), stock)
    other = family.made(model, "direct", 33, 2, conditions=family.pictured(tmp_path, 1))
    assert (family.sampled(model, other) - latents).abs().max() > 1e-3
    noise, seen = torch.zeros(1, 10, 4, 4, 8), []
    for first in (0.0, 1.0):  # what the pair's first frame is changed by
        last = latents[:, :, -1:] + torch.tensor([first] * 4 + [0.0] * 4).view(1, 8, 1, 1, 1)
        with model.conditioned(plan, Given(last)):
            seen.append(model.pipe.prepare_latents(torch.float32, torch.device("cpu"), None, noise)[1])
    assert torch.equal(*seen)
    assert seen[0].shape == noise.shape
    assert seen[0][:, 0].abs().max() > 0
    assert not seen[0][:, 1:].any()


def test_a_token_s_latent_frames_are_joined_and_parted() -> None:
    """And no technique cuts between them: what is moved in time is moved in pairs."""
    latents = torch.arange(2 * 3 * 8).reshape(1, 2, 8, 3, 1)
    pairs = joined(latents, 2)
    assert pairs.shape == (1, 4, 4, 3, 1)
    assert torch.equal(pairs[:, :, 1], torch.cat([latents[:, :, 2], latents[:, :, 3]], dim=1))
    assert torch.equal(parted(pairs, 2), latents)
    assert joined(latents, 1) is latents


def test_decoding_with_the_vae_alone_and_with_tiles(backbone: Callable[[str], Any]) -> None:
    model = backbone("cogvideox-2b")
    latents = torch.randn(1, 4, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    whole = np.concatenate(list(model.decode(latents)))
    assert np.array_equal(np.concatenate(list(decoder(model.spec, "cpu")(latents))), whole)
    tiled = list(decoder(model.spec, "cpu", vae_tiling=True)(latents))
    assert len(tiled) == 1
    assert np.array_equal(tiled[0], whole)  # one tile holds so small a picture


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_the_stock_pipeline_too(model_folder: Callable[[str], Path], name: str) -> None:
    half, pipe = family.loaded(model_folder(name), "bf16"), stock_pipe(model_folder(name), torch.bfloat16)
    plan = family.made(half, "direct", FRAMES_PX, 2)
    latents = family.sampled(half, plan)
    assert latents.dtype == torch.bfloat16
    assert torch.equal(latents.transpose(1, 2), stock_call(pipe, plan, output_type="latent"))
    frames = stock_call(pipe, plan, output_type="np")[0]
    assert np.array_equal(np.concatenate(list(half.decode(latents))), (frames * 255).round().astype(np.uint8))
    windowed = family.sampled(half, family.made(half, "sliding-window", FRAMES_PX, 2, WINDOW))
    assert torch.isfinite(windowed).all()
    assert (windowed - family.sampled(half, plan)).abs().max() > 1e-2
