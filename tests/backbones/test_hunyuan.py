"""The HunyuanVideo backbone on a small pipeline of random weights: the stock one bit for bit, the plans by a dense softmax.

Legend: B batch, T latent frames, n tokens per latent frame, L text tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from longgen.frameplan import FramePlan, full_attention
from longgen.pipelines.step_state import StepState
from longgen.plan import Plan
from longgen.program import Program
from tests.backbones import family

B, T, ROWS, COLUMNS, L = 2, 5, 2, 3, 9
N_FRAME = ROWS * COLUMNS
LENGTHS = (9, 4)  # text tokens that are no padding
THETA = 256.0 ** (-torch.arange(4).double() / 4)  # temporal, radians a latent frame


@pytest.fixture(scope="module")
def hunyuan(model_folder: Callable[[str], Path]) -> Any:
    return family.loaded(model_folder("hunyuan"))


def plain(hunyuan: Any, frames: int = 17, steps: int = 3, **sample: Any) -> Plan:
    return family.made(hunyuan, "direct", frames, steps, **sample)


def window(hunyuan: Any, steps: int = 3) -> Plan:
    return family.made(hunyuan, "sliding-window", 17, steps, ("window.frames=3",))


def test_layers_are_the_dual_stream_blocks_then_the_single_stream_ones(hunyuan: Any) -> None:
    transformer = hunyuan.pipe.transformer
    layers = hunyuan.layers(transformer)
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    assert len(layers) == hunyuan.spec.layers == 3
    assert all(layer is block.attn for layer, block in zip(layers, blocks, strict=True))
    assert [layer.add_q_proj is None for layer in layers] == [False, False, True]


@pytest.mark.parametrize("frames", [1, 17, 33])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(hunyuan: Any, frames: int) -> None:
    with hunyuan.installed(window(hunyuan)):  # and taken off again
        pass
    plan = plain(hunyuan, frames)
    latents = family.sampled(hunyuan, plan)
    assert latents.shape == hunyuan.latent_shape(plan)
    assert torch.equal(latents, family.stock_call(hunyuan.pipe, plan, output_type="latent"))
    decoded = np.concatenate(list(hunyuan.decode(latents)))
    assert len(decoded) == frames
    stock = family.stock_call(hunyuan.pipe, plan, output_type="np")[0]
    assert np.array_equal(decoded, (stock * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "sets", "frames"),
    [("sliding-window", ("window.frames=3",), 17), ("riflex", ("riflex.component=2",), 113)],  # longer than its period
)
def test_techniques_change_the_clip_and_leave_no_trace(hunyuan: Any, name: str, sets: tuple[str, ...], frames: int) -> None:
    changed = family.made(hunyuan, name, frames, 2, sets)
    before, processors = family.sampled(hunyuan, plain(hunyuan, frames, 2)), hunyuan.pipe.transformer.attn_processors
    difference = (family.sampled(hunyuan, changed) - before).abs().max().item()
    print(f"{name}: latents change by up to {difference:.3f}")
    assert difference > 1e-3
    family.stopped_after(hunyuan, changed, 1)  # by an error
    after = hunyuan.pipe.transformer.attn_processors
    assert all(after[key] is processor for key, processor in processors.items())
    assert torch.equal(family.sampled(hunyuan, plain(hunyuan, frames, 2)), before)


def test_guidance_is_an_input_and_the_negative_prompt_is_not_read(hunyuan: Any) -> None:
    plans = [plain(hunyuan, guidance_scale=scale) for scale in (6.0, 1.0)]
    assert "negative_prompt" not in hunyuan.call_arguments(plans[0], family.PROMPT)
    assert not torch.allclose(*(family.sampled(hunyuan, plan) for plan in plans), atol=1e-4)


@pytest.mark.parametrize("done", [1, 3, 4])
def test_a_resumed_run_ends_on_the_same_latents(hunyuan: Any, done: int) -> None:
    plan = window(hunyuan, steps=4)
    whole, state, seen = family.sampled(hunyuan, plan), family.stopped_after(hunyuan, plan, done), []
    assert torch.equal(family.sampled(hunyuan, plan, lambda state: seen.append(state.done), state), whole)
    assert seen == list(range(done + 1, 5))


# One attention module against a dense softmax over [T n + L, T n + L]


PLANS = {"neutral": full_attention(T)} | family.plans(T, len(THETA))


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
        (Program({"main": plan}),), (T, ROWS, COLUMNS), StepState(hunyuan.pipe), hunyuan.rotary(), layer.processor, None
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
    theta = THETA if plan.frequency_scale is None else THETA * torch.from_numpy(plan.frequency_scale)
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
                share = 1.0 if one.band is None else one.band[i, j]
                seen = ((token[:, None] - token).abs() < share * N_FRAME) & bool(one.visible[i, j])
                parts.append(part.masked_fill(~seen, -torch.inf))
            parts.append(logits(q[:, :, frame[i]] * at(one.rel[i, 0] - one.rel[0, 0]), text_k).masked_fill(padding, -torch.inf))
            weights = (plan.logit_scale * torch.cat(parts, dim=-1)).softmax(-1)
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
        rel = plan.passes[0].rel
        turned = plan.frequency_scale is not None or not np.array_equal(rel[:, 0] - rel[0, 0], np.arange(T))
        assert ((changed_text - text).abs().max() > 1e-4) == turned, name  # text queries see every frame


@pytest.mark.parametrize("index", [0, 2], ids=["dual-stream", "single-stream"])
def test_the_neutral_program_is_the_stock_layer(hunyuan: Any, calls: list[dict[str, Any]], index: int) -> None:
    """Bit for bit without padding; with it, the stock layer masks what the plan leaves out, and sums differ in the last place."""
    layer = hunyuan.layers(hunyuan.pipe.transformer)[index]
    for mask, bound in ((None, 0.0), (calls[index]["attention_mask"], 2e-6)):
        call = calls[index] | {"attention_mask": mask}
        with torch.no_grad():
            expected = layer.processor(layer, **call)
        for one, other in zip(planned(hunyuan, full_attention(T), layer, call), expected, strict=True):
            difference = (one - other).abs().max().item()
            print(f"mask {mask is not None}: max difference {difference:.2e}")
            assert difference <= bound


def test_native_rotation_is_the_stock_rotation(hunyuan: Any, calls: list[dict[str, Any]]) -> None:
    layer, tables = hunyuan.layers(hunyuan.pipe.transformer)[0], calls[0]["image_rotary_emb"]
    (q, _, _), _ = projected(layer, calls[0])
    processor = hunyuan.processor((None,), (T, ROWS, COLUMNS), StepState(hunyuan.pipe), hunyuan.rotary(), layer.processor, None)
    call = processor.call(layer, calls[0]["hidden_states"], (tables[0][:, 0::2], tables[1][:, 0::2]))
    assert torch.equal(call.rotate(q, None, None), apply_rotary_emb(q, tables, sequence_dim=1))
    assert (call.rotate(q, np.arange(T, dtype=float), None) - call.rotate(q, None, None)).abs().max() < 1e-6
    for frame in range(T):  # the spec's frequencies are those of the stock tables
        angle = torch.complex(tables[0][frame * N_FRAME, 0:8:2], tables[1][frame * N_FRAME, 0:8:2])
        assert (angle - torch.exp(1j * frame * THETA)).abs().max() < 1e-6
    assert np.allclose(hunyuan.spec.frequencies, THETA, atol=1e-15)
