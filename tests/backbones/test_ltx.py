"""LTX-Video against the stock pipeline and against one dense softmax, on a small model of the real classes.

Legend: B batch, T latent frames, n tokens per latent frame, N = T n tokens, H heads, D head dim, C temporal components.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXPipeline
from torch import Tensor

from longgen.attention.rotary import Rotary
from longgen.frameplan import FramePlan, distances, full_attention
from longgen.pipelines import ltx
from tests.attention.dense import dense
from tests.backbones import family
from tests.models.ltx import vae

FRAMES_PX, T = 41, 6
PLANS = family.plans(T, 10)


@pytest.fixture(scope="module")
def backbone(model_folder: Callable[[str], Path]) -> Any:
    return family.loaded(model_folder("ltx"))


@pytest.fixture(scope="module")
def stock(model_folder: Callable[[str], Path]) -> Any:
    """The pipeline in the hands of a user who has never heard of longgen."""
    pipe = LTXPipeline.from_pretrained(model_folder("ltx"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def inputs(backbone: Any) -> list[dict[str, Any]]:
    return family.layer_inputs(backbone, family.made(backbone, "direct", FRAMES_PX, 2))


def frames_of(backbone: Any, latents: Tensor) -> np.ndarray:
    return np.concatenate(list(backbone.decode(latents)))


def unpacked(latents: Tensor, frames_lat: int) -> Tensor:
    return LTXPipeline._unpack_latents(latents, frames_lat, 4, 8)


@pytest.mark.parametrize("frames_px", [33, 41])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(backbone: Any, stock: Any, frames_px: int) -> None:
    plan = family.made(backbone, "direct", frames_px, 3)
    latents = family.sampled(backbone, plan)
    assert latents.std() > 0.1
    assert torch.equal(latents, unpacked(family.stock_call(stock, plan, output_type="latent"), plan.frames_lat))
    frames = frames_of(backbone, latents)
    assert frames.std() > 5
    assert np.array_equal(frames, (family.stock_call(stock, plan, output_type="np")[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("sliding-window", ("window.frames=3",)),
        ("sink-window", ("window.frames=3", "sink.frames=1")),
        ("yarn", ()),
        ("vrpr", ()),
        ("freespec", ("freespec.window=3",)),
    ],
)
def test_techniques_change_a_clip_and_leave_no_trace(backbone: Any, stock: Any, name: str, sets: tuple[str, ...]) -> None:
    frames_px = 41 if sets else 137
    plan, plain = family.made(backbone, name, frames_px, 2, sets), family.made(backbone, "direct", frames_px, 2)
    assert plan.table.any()
    layers = backbone.layers(backbone.pipe.transformer)
    before = [layer.processor for layer in layers]
    changed = family.sampled(backbone, plan)
    assert [layer.processor for layer in layers] == before
    after = family.sampled(backbone, plain)
    print(f"{name}: largest change {(changed - after).abs().max():.2e}")
    assert (changed - after).abs().max() > 1e-3
    assert torch.equal(after, unpacked(family.stock_call(stock, plain, output_type="latent"), plain.frames_lat))


def test_an_error_leaves_no_trace(backbone: Any, stock: Any) -> None:
    plan = family.made(backbone, "sliding-window", FRAMES_PX, 2, ("window.frames=3",))
    before = [layer.processor for layer in backbone.layers(backbone.pipe.transformer)]
    family.stopped_after(backbone, plan, 1)
    assert [layer.processor for layer in backbone.layers(backbone.pipe.transformer)] == before
    plain = family.made(backbone, "direct", FRAMES_PX, 2)
    assert torch.equal(
        family.sampled(backbone, plain), unpacked(family.stock_call(stock, plain, output_type="latent"), plain.frames_lat)
    )


def test_layers_are_the_self_attention_of_the_blocks_in_order(backbone: Any) -> None:
    layers = backbone.layers(backbone.pipe.transformer)
    assert len(layers) == backbone.spec.layers == 2
    assert [name for name, module in backbone.pipe.transformer.named_modules() if any(module is layer for layer in layers)] == [
        "transformer_blocks.0.attn1", "transformer_blocks.1.attn1",
    ]  # fmt: skip
    plan = family.made(backbone, "sliding-window", FRAMES_PX, 2, ("window.frames=3", "window.layers=[1]"))
    with backbone.installed(plan):
        assert [isinstance(layer.processor, ltx.LtxAttentionPlan) for layer in layers] == [False, True]


@pytest.mark.parametrize("done", [1, 2, 3])
@pytest.mark.parametrize("name", ["direct", "sliding-window"])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(
    backbone: Any, model_folder: Callable[[str], Path], name: str, done: int
) -> None:
    sets = () if name == "direct" else ("window.frames=3", "window.steps=[0.0, 0.7]")
    plan = family.made(backbone, name, FRAMES_PX, 3, sets)
    whole, state = family.sampled(backbone, plan), family.stopped_after(backbone, plan, done)
    steps: list[int] = []
    resumed = family.sampled(family.loaded(model_folder("ltx")), plan, on_step=lambda state: steps.append(state.done), resume=state)
    assert steps == list(range(done + 1, 4))
    assert torch.equal(resumed, whole)


def expected(backbone: Any, attn: Any, plan: FramePlan, inputs: dict[str, Any]) -> Tensor:
    """The layer's answer by the dense form; passes at native positions keep the stock tables, float32 angles and all."""
    hidden, (cos, sin) = inputs["hidden_states"], inputs["image_rotary_emb"]
    with torch.no_grad():
        q, k, v = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        total = torch.zeros(q.shape, dtype=torch.float64)
        for one in plan.passes:
            native = plan.frequency_scale is None and np.array_equal(one.rel, distances(T))
            rotary = Rotary(np.zeros(0), np.zeros(0, dtype=int)) if native else backbone.rotary()
            total += dense(
                FramePlan((one,), plan.frequency_scale, plan.logit_scale), q, k, v, rotary, (cos[0, :, 0::2], sin[0, :, 0::2])
            )
        return attn.to_out[0](total.flatten(2).float())


@pytest.mark.parametrize("name", PLANS)
def test_a_planned_layer_equals_one_dense_softmax(backbone: Any, inputs: list[dict[str, Any]], name: str) -> None:
    plan = family.programmed(family.made(backbone, "direct", FRAMES_PX, 2), PLANS[name])
    for index, given in enumerate(inputs):
        attn = backbone.layers(backbone.pipe.transformer)[index]
        output = family.through(backbone, plan, index, given)
        difference = (output - expected(backbone, attn, PLANS[name], given)).abs().max().item()
        with torch.no_grad():
            change = (output - attn(**given)).abs().max().item()
        print(f"{name}, layer {index}: max difference {difference:.1e}, from stock {change:.1e}")
        assert difference < 1e-5
        assert change > 1e-3


def test_the_neutral_program_is_the_stock_layer(backbone: Any, inputs: list[dict[str, Any]]) -> None:
    plan = family.programmed(family.made(backbone, "direct", FRAMES_PX, 2), full_attention(T))
    for index, given in enumerate(inputs):
        attn = backbone.layers(backbone.pipe.transformer)[index]
        output = family.through(backbone, plan, index, given)
        with torch.no_grad():
            assert torch.equal(output, attn(**given))
        assert (output - expected(backbone, attn, full_attention(T), given)).abs().max() < 1e-5


def test_temporal_pairs_are_those_of_the_stock_tables(backbone: Any, inputs: list[dict[str, Any]]) -> None:
    """Pair by pair: the pairs of time turn by theta_c a frame, and no other pair changes from frame to frame."""
    cos, sin = (table[0, :, 0::2].double() for table in inputs[0]["image_rotary_emb"])
    turn = torch.complex(cos, sin).unflatten(0, (T, -1))
    turned = turn * turn[:1].conj()
    rotary = backbone.rotary()
    rest = np.setdiff1d(np.arange(cos.shape[1]), rotary.pairs)
    assert (turned[:, :, rest] - 1).abs().max() < 1e-6
    errors = []
    for place, theta in zip(rotary.pairs, rotary.frequencies, strict=True):
        wanted = torch.exp(1j * theta * torch.arange(T, dtype=torch.float64))[:, None]
        errors.append((turned[:, :, place] - wanted).abs().max().item())
    print("error of the stock float32 angles, by component:", " ".join(f"{error:.1e}" for error in errors))
    rounding = np.pi / 2 * np.geomspace(1, 10000, len(errors)) * 2.0**-23  # of the largest stock angle
    assert (np.array(errors) < 8 * rounding).all()
    assert (turned[:, :, rotary.pairs[:-1]].angle().abs().amax(dim=(0, 1)) > 0.01).all()  # the last makes 80 whole turns a frame


def test_the_published_fps_is_the_pipeline_s(backbone: Any) -> None:
    """Positions count seconds, so that another frame rate is another model input."""
    plan = family.made(backbone, "direct", FRAMES_PX, 2, fps=12)
    assert backbone.call_arguments(plan, "")["frame_rate"] == 25


def test_packing_is_the_pipeline_s(backbone: Any) -> None:
    plan = family.made(backbone, "direct", FRAMES_PX, 2)
    latents = torch.randn(backbone.latent_shape(plan))
    assert torch.equal(backbone.packed(latents), LTXPipeline._pack_latents(latents))
    assert torch.equal(backbone.unpacked(backbone.packed(latents), plan), latents)


@pytest.mark.parametrize("conditioned", [False, True])
def test_decoding_is_the_pipeline_s(conditioned: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, latents = vae(conditioned), torch.randn(1, 8, 3, 4, 4)
        model.latents_mean.uniform_(-0.5, 0.5)
    time = torch.zeros(1) if conditioned else None
    with torch.no_grad():
        raw = latents * model.latents_std.view(1, -1, 1, 1, 1) + model.latents_mean.view(1, -1, 1, 1, 1)
        video = model.decode(raw, time).sample
    frames = np.concatenate(list(ltx.Ltx.decoded(model, latents, torch.device("cpu"))))
    assert frames.shape == (17, 32, 32, 3)
    assert np.array_equal(frames, ((video[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).numpy() * 255).round().astype(np.uint8))


def test_bf16_is_the_stock_pipeline_too(model_folder: Callable[[str], Path]) -> None:
    half, pipe = family.loaded(model_folder("ltx"), "bf16"), LTXPipeline.from_pretrained(model_folder("ltx"), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    plan = family.made(half, "direct", FRAMES_PX, 2)
    latents = family.sampled(half, plan)
    assert torch.equal(latents, unpacked(family.stock_call(pipe, plan, output_type="latent"), T))
    frames = family.stock_call(pipe, plan, output_type="np")[0]
    assert np.array_equal(frames_of(half, latents), (frames * 255).round().astype(np.uint8))
    window = family.made(half, "sliding-window", FRAMES_PX, 2, ("window.frames=3",))
    assert torch.isfinite(family.sampled(half, window)).all()
