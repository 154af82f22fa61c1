"""The HunyuanVideo backbone on a small pipeline of random weights: the stock one bit for bit, the plans by a dense softmax.

Legend: B batch, T latent frames, n tokens per latent frame, L text tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from longgen import plan, preset
from longgen.attention import executor
from longgen.backbones import Clock, Setup, load
from longgen.backbones.find import find
from longgen.frameplan import FramePlan, Pass, neutral, visible_from_ranges
from longgen.frames import local_windows
from longgen.plan import Plan, Program
from longgen.sampling import direct

PROMPT = "a red square moving left over sand"
B, T, ROWS, COLUMNS, L = 2, 5, 2, 3, 9
N_FRAME = ROWS * COLUMNS
LENGTHS = (9, 4)  # text tokens that are no padding
THETA = 256.0 ** (-torch.arange(4).double() / 4)  # temporal, radians a latent frame


@pytest.fixture(scope="module")
def hunyuan(model_folder: Callable[[str], Path]) -> Any:
    return load(find(str(model_folder("hunyuan"))), Setup("cpu", "fp32"))


def plan_for(hunyuan: Any, name: str = "direct", sets: tuple[str, ...] = (), frames: int = 17, steps: int = 3) -> Plan:
    return plan.build(preset.load(name, sets, preset.Sample(frames=frames, steps=steps, size=(48, 32))), hunyuan.spec)


def noise(hunyuan: Any, plan: Plan) -> Tensor:
    return hunyuan.noise(plan, torch.Generator().manual_seed(3))


def run(hunyuan: Any, plan: Plan, on_step: Any = lambda state: None, resume: Any = None) -> Tensor:
    return direct.sample(hunyuan, plan, PROMPT, noise(hunyuan, plan), on_step, resume)


def stock(hunyuan: Any, plan: Plan, output_type: str) -> Any:
    """The pipeline as any diffusers user would call it."""
    return hunyuan.pipe(
        prompt=PROMPT, height=32, width=48, num_frames=plan.frames_px, num_inference_steps=plan.steps,
        guidance_scale=6.0, generator=torch.Generator().manual_seed(3), output_type=output_type,
    ).frames  # fmt: skip


def test_layers_are_the_dual_stream_blocks_then_the_single_stream_ones(hunyuan: Any) -> None:
    transformer = hunyuan.pipe.transformer
    layers = hunyuan.layers(transformer)
    assert len(layers) == hunyuan.spec.layers == 3
    assert layers == [
        *(block.attn for block in transformer.transformer_blocks),
        *(block.attn for block in transformer.single_transformer_blocks),
    ]
    assert [layer.add_q_proj is None for layer in layers] == [False, False, True]


@pytest.mark.parametrize("frames", [1, 17, 33])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(hunyuan: Any, frames: int) -> None:
    window = plan_for(hunyuan, "sliding-window", ("window.frames=3",))
    with hunyuan.installed(window):  # and taken off again
        pass
    plain = plan_for(hunyuan, frames=frames)
    latents = run(hunyuan, plain)
    assert latents.shape == hunyuan.latent_shape(plain)
    assert torch.equal(latents, stock(hunyuan, plain, "latent"))
    decoded = np.concatenate(list(hunyuan.decode(latents)))
    assert decoded.shape == (frames, 32, 48, 3)
    assert np.array_equal(decoded, (stock(hunyuan, plain, "np")[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "sets", "frames"),
    [("sliding-window", ("window.frames=3",), 17), ("riflex", ("riflex.component=2",), 113)],  # longer than its period
)
def test_techniques_change_the_clip_and_leave_no_trace(hunyuan: Any, name: str, sets: tuple[str, ...], frames: int) -> None:
    plain, changed = plan_for(hunyuan, frames=frames, steps=2), plan_for(hunyuan, name, sets, frames, steps=2)
    processors = dict(hunyuan.pipe.transformer.attn_processors)
    before = run(hunyuan, plain)
    difference = (run(hunyuan, changed) - before).abs().max().item()
    print(f"{name}: latents change by up to {difference:.3f}")
    assert difference > 1e-3
    after = hunyuan.pipe.transformer.attn_processors
    assert all(after[key] is processor for key, processor in processors.items())
    assert torch.equal(run(hunyuan, plain), before)


def test_an_error_leaves_no_trace(hunyuan: Any) -> None:
    window, plain = plan_for(hunyuan, "sliding-window", ("window.frames=3",)), plan_for(hunyuan)
    before, processors = run(hunyuan, plain), dict(hunyuan.pipe.transformer.attn_processors)

    def stop(state: direct.State) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        run(hunyuan, window, stop)
    after = hunyuan.pipe.transformer.attn_processors
    assert all(after[key] is processor for key, processor in processors.items())
    assert torch.equal(run(hunyuan, plain), before)


def test_guidance_is_an_input_and_the_negative_prompt_is_not_read(hunyuan: Any) -> None:
    plain = plan_for(hunyuan)
    assert "negative_prompt" not in hunyuan.call_arguments(plain, PROMPT)
    weaker = replace(plain, sample=plain.sample.model_copy(update={"guidance_scale": 1.0}))
    assert not torch.allclose(run(hunyuan, plain), run(hunyuan, weaker), atol=1e-4)


@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_run_ends_on_the_same_latents(hunyuan: Any, done: int) -> None:
    window = plan_for(hunyuan, "sliding-window", ("window.frames=3",), steps=4)
    kept: list[direct.State] = []

    def stop(state: direct.State) -> None:
        if state.done == done:
            kept.append(direct.State(state.done, state.latents.clone(), dict(state.scheduler), state.generator.clone()))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(hunyuan, window, stop)
    seen: list[int] = []
    resumed = run(hunyuan, window, lambda state: seen.append(state.done), kept[0])
    assert seen == list(range(done + 1, 5))
    assert torch.equal(resumed, run(hunyuan, window))


# One attention module against a dense softmax over [T n + L, T n + L]


def neutral_pass(**changed: Any) -> Pass:
    return replace(neutral(T).passes[0], **changed)


def separable(positions: np.ndarray) -> np.ndarray:
    return positions[:, None] - positions[None, :]


RANDOM = np.random.default_rng(0)
SEEN = RANDOM.random((T, T)) < 0.5
SEEN[np.diag_indices(T)] = True
REL = RANDOM.uniform(-30, 30, (T, T))
REL[np.diag_indices(T)] = 0
HOLES = np.array([0, 0.5, 1, 0.25, 0])  # weights
WINDOW = visible_from_ranges(local_windows(T, 3, "shift"))
SINK = visible_from_ranges(local_windows(T, 3, "clip"))
SINK[:, 0] = True
STRIPE = np.where(RANDOM.random((T, T)) < 0.5, 1.0, RANDOM.choice([0.2, 0.5], (T, T)))
SCALE = np.array([1.0, 0.5, 1.3, 0.7])
HIDDEN_PAIR = np.ones((T, T), dtype=bool)
HIDDEN_PAIR[1, 3] = False
PLANS = {
    "neutral": FramePlan((neutral_pass(),)),
    "window": FramePlan((neutral_pass(visible=WINDOW),)),
    "one pair hidden": FramePlan((neutral_pass(visible=HIDDEN_PAIR),)),
    "random rel and visible": FramePlan((neutral_pass(rel=REL, visible=SEEN),)),
    "interpolated": FramePlan((neutral_pass(rel=separable(np.arange(T) / 3)),)),
    "scaled": FramePlan((neutral_pass(),), SCALE),
    "random rel, scaled": FramePlan((neutral_pass(rel=REL),), SCALE),
    "two passes with holes": FramePlan(
        (
            neutral_pass(rel=REL, visible=SEEN & (HOLES > 0)[:, None], weight=HOLES),
            neutral_pass(visible=SINK & (HOLES < 1)[:, None], weight=1 - HOLES),
        )
    ),
    "stripes": FramePlan((neutral_pass(visible=SEEN, stripe=STRIPE),)),
    "stripes, random rel": FramePlan((neutral_pass(rel=REL, stripe=STRIPE),)),
    "gain": FramePlan((neutral_pass(),), gain=1.7),
    "sink and window": FramePlan((neutral_pass(visible=SINK),)),
}


@pytest.fixture(scope="module")
def calls(hunyuan: Any) -> list[dict[str, Any]]:
    """What each attention module is called with, in a call of the model with prompts of different lengths."""
    kept: list[dict[str, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: kept.append(kwargs), with_kwargs=True)
        for layer in hunyuan.layers(hunyuan.pipe.transformer)
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        hunyuan.pipe.transformer(
            hidden_states=torch.randn(B, 16, T, 2 * ROWS, 2 * COLUMNS, generator=generator),
            timestep=torch.tensor([500.0, 500.0]), encoder_hidden_states=torch.randn(B, L, 32, generator=generator),
            encoder_attention_mask=(torch.arange(L) < torch.tensor(LENGTHS)[:, None]).float(),
            pooled_projections=torch.randn(B, 16, generator=generator), guidance=torch.tensor([6000.0, 6000.0]),
        )  # fmt: skip
    for hook in hooks:
        hook.remove()
    return kept


def planned(hunyuan: Any, plan: FramePlan, layer: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    processor = hunyuan.processor(
        (Program({"main": plan}),), (T, ROWS, COLUMNS), Clock(hunyuan.pipe.scheduler), hunyuan.rotary(), layer.processor, None
    )
    with torch.no_grad():
        return processor(layer, **call)


@torch.no_grad()
def projected(layer: Any, call: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v of the video [B, T n, H, D] and of the text [B, L, H, D], before rotary positions."""
    video, text = call["hidden_states"], call["encoder_hidden_states"]
    single = layer.add_q_proj is None
    text_parts = (layer.to_q, layer.to_k, layer.to_v) if single else (layer.add_q_proj, layer.add_k_proj, layer.add_v_proj)
    text_norms = (layer.norm_q, layer.norm_k) if single else (layer.norm_added_q, layer.norm_added_k)
    both = []
    for x, parts, norms in (
        (video, (layer.to_q, layer.to_k, layer.to_v), (layer.norm_q, layer.norm_k)),
        (text, text_parts, text_norms),
    ):
        q, k, v = (part(x).unflatten(2, (layer.heads, -1)) for part in parts)
        both.append([norms[0](q), norms[1](k), v])
    return both[0], both[1]


@torch.no_grad()
def dense(plan: FramePlan, layer: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The definition, in double precision and complex numbers, a pair of frames at a time."""
    (q, k, v), (text_q, text_k, text_v) = ([x.double().transpose(1, 2) for x in part] for part in projected(layer, call))
    q, k, text_q, text_k = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (q, k, text_q, text_k))
    cos, sin = (table.double() for table in call["image_rotary_emb"])
    turn = torch.complex(cos[:, 0::2], sin[:, 0::2])  # the stock tables [T n, D / 2]
    turn[:, : len(THETA)] = 1  # in space; time follows for each pair of frames
    q, k = q * turn, k * turn
    theta = THETA if plan.scale is None else THETA * torch.from_numpy(plan.scale)
    heads, width = q.shape[1], 2 * q.shape[-1]

    def at(time: float) -> Tensor:
        return torch.cat([torch.exp(1j * time * theta), torch.ones(q.shape[-1] - len(theta), dtype=torch.complex128)])

    def logits(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.conj().transpose(-1, -2)).real / width**0.5

    padding = torch.arange(L) >= torch.tensor(LENGTHS)[:, None, None, None]  # [B, 1, 1, L]
    frame = [slice(i * N_FRAME, (i + 1) * N_FRAME) for i in range(T)]
    token = torch.arange(N_FRAME)
    video = torch.zeros(B, heads, T * N_FRAME, width, dtype=torch.float64)
    for one in plan.passes:
        for i in range(T):
            if one.weight[i] == 0:
                continue
            parts = []
            for j in range(T):
                part = logits(q[:, :, frame[i]] * at(one.rel[i, j]), k[:, :, frame[j]])
                share = 1.0 if one.stripe is None else one.stripe[i, j]
                seen = ((token[:, None] - token).abs() < share * N_FRAME) & bool(one.visible[i, j])
                parts.append(part.masked_fill(~seen, -torch.inf))
            parts.append(logits(q[:, :, frame[i]] * at(one.rel[i, 0]), text_k).masked_fill(padding, -torch.inf))
            weights = (plan.gain * torch.cat(parts, dim=-1)).softmax(-1)
            video[:, :, frame[i]] += one.weight[i] * (weights @ torch.cat([v, text_v], dim=2))
    times = plan.passes[0].rel[:, 0] - plan.passes[0].rel[0, 0]
    moved = torch.cat([k[:, :, frame[j]] * at(times[j]) for j in range(T)], dim=2)
    parts = [logits(text_q, moved), logits(text_q, text_k).masked_fill(padding, -torch.inf)]
    text = torch.cat(parts, dim=-1).softmax(-1) @ torch.cat([v, text_v], dim=2)
    video, text = (x.transpose(1, 2).flatten(2).float() for x in (video, text))
    if layer.add_q_proj is not None:
        return layer.to_out[0](video), layer.to_add_out(text)
    return video, text


@pytest.mark.parametrize("index", [0, 2], ids=["dual-stream", "single-stream"])
@pytest.mark.parametrize("name", PLANS)
def test_a_planned_layer_equals_dense_softmax(hunyuan: Any, calls: list[dict[str, Any]], name: str, index: int) -> None:
    layer = hunyuan.layers(hunyuan.pipe.transformer)[index]
    outputs, expected = planned(hunyuan, PLANS[name], layer, calls[index]), dense(PLANS[name], layer, calls[index])
    differences = [(one - other).abs().max().item() for one, other in zip(outputs, expected, strict=True)]
    print(f"{name}: max difference {differences[0]:.2e} in the video, {differences[1]:.2e} in the text")
    assert max(differences) < 1e-5


@pytest.mark.parametrize("index", [0, 2], ids=["dual-stream", "single-stream"])
def test_the_tables_matter_and_text_is_not_masked_by_them(hunyuan: Any, calls: list[dict[str, Any]], index: int) -> None:
    layer = hunyuan.layers(hunyuan.pipe.transformer)[index]
    with torch.no_grad():
        video, text = layer.processor(layer, **calls[index])
    for name, plan in PLANS.items():
        changed, changed_text = planned(hunyuan, plan, layer, calls[index])
        moved = (changed - video).abs().max().item()
        assert (moved > 1e-3) == (name != "neutral"), f"{name}: {moved}"
        turned = "rel" in name or "holes" in name or name in ("interpolated", "scaled")
        assert ((changed_text - text).abs().max() > 1e-4) == turned, name  # text queries see every frame


@pytest.mark.parametrize("index", [0, 2], ids=["dual-stream", "single-stream"])
def test_the_neutral_program_is_the_stock_layer(hunyuan: Any, calls: list[dict[str, Any]], index: int) -> None:
    """Bit for bit without padding; with it, the stock layer masks what the plan leaves out, and sums differ in the last place."""
    layer = hunyuan.layers(hunyuan.pipe.transformer)[index]
    for mask, bound in ((None, 0.0), (calls[index]["attention_mask"], 2e-6)):
        call = calls[index] | {"attention_mask": mask}
        with torch.no_grad():
            expected = layer.processor(layer, **call)
        for one, other in zip(planned(hunyuan, neutral(T), layer, call), expected, strict=True):
            difference = (one - other).abs().max().item()
            print(f"mask {mask is not None}: max difference {difference:.2e}")
            assert difference <= bound


def test_native_rotation_is_the_stock_rotation(hunyuan: Any, calls: list[dict[str, Any]]) -> None:
    layer, tables = hunyuan.layers(hunyuan.pipe.transformer)[0], calls[0]["image_rotary_emb"]
    (q, k, v), _ = projected(layer, calls[0])
    processor = hunyuan.processor((None,), (T, ROWS, COLUMNS), Clock(hunyuan.pipe.scheduler), hunyuan.rotary(), layer.processor, None)
    family = processor.call(calls[0]["hidden_states"], tuple(table[:, 0::2] for table in tables))
    assert torch.equal(family.rotate(q, None, None), apply_rotary_emb(q, tables, sequence_dim=1))
    assert (family.rotate(q, np.arange(T, dtype=float), None) - family.rotate(q, None, None)).abs().max() < 1e-6
    for frame in range(T):  # the spec's frequencies are those of the stock tables
        angle = torch.complex(tables[0][frame * N_FRAME, 0:8:2], tables[1][frame * N_FRAME, 0:8:2])
        assert (angle - torch.exp(1j * frame * THETA)).abs().max() < 1e-6
    assert np.allclose(hunyuan.spec.frequencies, THETA, atol=1e-15)
    assert executor.run_plan(neutral(T), family, q, k, v).shape == v.shape
