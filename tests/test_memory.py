"""Memory estimates of plans against the tensors alive in the transformers at their published sizes, on shapes without memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from longgen import cost, planner, preset
from longgen.attention import rotary, score_blocks
from longgen.backbones.registry import SPECS, family_of
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import FRAME_TIMESTEPS
from longgen.bench.memory import AllocationTracker
from longgen.device_costs import ACCELERATOR
from longgen.fusion import freelong, freespec
from longgen.pipelines import processors, random_weights
from longgen.pipelines.hunyuan15 import Hunyuan15, RowMask
from longgen.pipelines.wan import Wan
from longgen.plan import Plan
from longgen.technique import Step

LAYERS = 2  # a block's tensors are gone when the next one begins


def arguments(made: Plan) -> dict[str, Any]:
    """A call of the model as its pipeline makes it, in bfloat16."""
    spec, tokens = made.spec, made.tokens
    frames, height, width = made.frames_lat, *(side // spec.stride_hw for side in reversed(made.size))
    batch, kind = (2 if family_of(spec).batches_guidance else 1), torch.bfloat16
    channels, pairs = (spec.latent_channels + spec.condition_channels) // spec.token_lat, frames * spec.token_lat
    packed = dict.fromkeys(("ltx", "ltx-condition", "ltx2"), (tokens, channels))
    video: dict[str, tuple[int, ...]] = packed | {"cogvideox": (pairs, channels, height, width)}
    shape = video.get(spec.family, (channels, frames, height, width))
    call: dict[str, Any] = dict(
        hidden_states=torch.zeros(batch, *shape, dtype=kind), timestep=torch.full((batch,), 900),
        encoder_hidden_states=torch.zeros(batch, spec.text_tokens + spec.joint_text * spec.image_tokens, 4096, dtype=kind),
        return_dict=False,
    )  # fmt: skip
    if spec.image_tokens and not spec.joint_text:
        call |= dict(encoder_hidden_states_image=torch.zeros(spec.image_tokens // 257, 257, 1280, dtype=kind))
    mask = torch.ones(batch, spec.text_tokens + spec.image_tokens, dtype=torch.bool)
    if spec.family == "ltx":
        call |= dict(
            encoder_attention_mask=mask, num_frames=frames, height=height, width=width, rope_interpolation_scale=(1.0, 32, 32)
        )
    if spec.family == "ltx-condition":
        call |= dict(encoder_attention_mask=mask, video_coords=torch.zeros(batch, 3, tokens))
    if spec.family == "ltx2":
        words = torch.zeros(batch, spec.text_tokens, 3840, dtype=kind)
        call |= dict(
            encoder_hidden_states=words,
            audio_encoder_hidden_states=words,
            encoder_attention_mask=mask.long(),
            audio_encoder_attention_mask=mask.long(),
            audio_num_frames=spec.sound_lat(frames),
            sigma=call["timestep"],
            audio_timestep=call["timestep"],
            audio_hidden_states=torch.zeros(batch, spec.sound_lat(frames), channels, dtype=kind),
            use_cross_timestep=True,
            num_frames=frames,
            height=height,
            width=width,
            fps=24.0,
        )
    if made.conditions and (FRAME_TIMESTEPS in spec.capabilities or spec.sound):  # the first frame's tokens are at timestep 0
        call["timestep"] = torch.full((batch, tokens), 900)
    if spec.family == "skyreels-df":  # always a timestep a frame
        call |= dict(timestep=torch.full((batch, frames), 900), enable_diffusion_forcing=True, fps=[1])
    if spec.family == "cogvideox" and spec.rotary_dims:
        call |= dict(image_rotary_emb=(torch.zeros(tokens, spec.head_dim), torch.zeros(tokens, spec.head_dim)))
    if spec.token_lat > 1 and spec.picture_needed:
        call |= dict(ofs=torch.full((1,), 2.0))
    if spec.family == "hunyuan":
        call |= dict(
            encoder_attention_mask=mask, pooled_projections=torch.zeros(1, 768, dtype=kind), guidance=torch.tensor([6000.0])
        )
    if spec.family == "hunyuan15":
        text = torch.zeros(batch, spec.text_tokens + spec.image_tokens, spec.width, dtype=kind)
        call = dict(hidden_states=call["hidden_states"], timestep=call["timestep"], text=text, mask=mask)
    return call


def hunyuan15(model: Any, hidden_states: Any, timestep: Any, text: Any, mask: Any) -> Any:
    """Its forward after the texts are in order, which shapes alone cannot tell."""
    for layer in Hunyuan15.layers(model):
        layer.set_processor(RowMask())
    rotary, embedding, x = model.rope(hidden_states), model.time_embed(timestep), model.x_embedder(hidden_states)
    for block in model.transformer_blocks:
        x, text = block(x, text, embedding, mask, rotary)
    return model.proj_out(model.norm_out(x, embedding))


def alive(made: Plan) -> int:
    """Bytes of the tensors at the peak of one call in the first step, weights apart."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = random_weights.untrained(made.spec).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    following = nullcontext()
    if made.table.any():
        backbone = Wan(
            made.spec,
            SimpleNamespace(transformer=model, scheduler=None, components={"transformer": model}),
            ModelSettings("cpu", "bf16"),
        )
        backbone.step_state = Clock(Step(0, tuple(range(1000, 0, -20))))
        following = backbone.installed(made)
    call = arguments(made)
    with following, AllocationTracker() as account:
        (functools.partial(hunyuan15, model) if made.spec.family == "hunyuan15" else model)(**call)
    return account.peak


@dataclass
class Clock:
    step: Step
    index: int = 0
    clips: None = None
    observer: None = None


@pytest.fixture(autouse=True)
def only_shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tensor has memory; the operator that tells its sums then cannot be tried before it is used."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def summing(q: Any, k: Any, v: Any) -> Any:
        output, sums = operator(*(x.transpose(1, 2) for x in (q, k, v)))
        return output.transpose(1, 2), sums

    monkeypatch.setattr(processors, "attention_with_lse", lambda *_: summing)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield


def made_for(name: str, backbone: str, frames: int | None = None, size: tuple[int, int] | None = None) -> Plan:
    spec = replace(SPECS[backbone], layers=LAYERS)
    chosen = preset.load(name, (), preset.Sample(frames=frames or spec.native_px, size=size))
    return planner.build(chosen, spec, conditions=planner.stand_in(spec))


@pytest.mark.parametrize(
    "name", [name for name, spec in SPECS.items() if not spec.built_in and not spec.causal and spec.experts == 1]
)
def test_estimates_of_direct_sampling_are_what_is_alive(name: str) -> None:
    made = made_for("direct", name)
    assert cost.memory_bytes(made, "bf16")["activations"] == pytest.approx(alive(made), rel=0.05)


@pytest.mark.parametrize("name", ["ltx-2b", "ltx-2b-0.9.5", "ltx-2"])
def test_a_clean_first_frame_takes_what_its_tokens_timesteps_do(name: str) -> None:
    spec = replace(SPECS[name], layers=LAYERS)
    conditions = planner.stand_in(replace(spec, picture_needed=True))
    made = planner.build(preset.load("direct", (), preset.Sample(frames=spec.native_px)), spec, conditions=conditions)
    assert cost.memory_bytes(made, "bf16")["activations"] == pytest.approx(alive(made), rel=0.05)


@functools.cache
def alive_directly() -> int:
    return alive(made_for("direct", "wan2.1-1.3b", 321))


@pytest.mark.parametrize("name", ["sliding-window", "freenoise", "freespec", "vrpr", "ntk"])
def test_presets_take_what_direct_sampling_takes(name: str) -> None:
    """At 321 frames of 480x832 of Wan 2.1 1.3B the feed-forward decides, whatever attention does."""
    peak = alive(made := made_for(name, "wan2.1-1.3b", 321))
    assert peak == pytest.approx(alive_directly(), rel=0.03)
    assert cost.memory_bytes(made, "bf16")["activations"] == pytest.approx(peak, rel=0.05)


def test_attention_that_follows_a_plan_takes_two_more_where_attention_decides() -> None:
    """The feed-forward of the 14B model is narrow, so that its peak is in attention. Most is alive in FreePCA's at 161 frames: the
    global branch, the windows done, and one of them; in numbers of a token's channels, on a quarter of the published size.
    """
    direct, made = (made_for(name, "wan2.1-14b", 161, (416, 240)) for name in ("direct", "freepca"))
    unit = 2 * made.tokens * made.spec.width
    estimates = [cost.memory_bytes(one, "bf16")["activations"] for one in (direct, made)]
    assert (estimates[1] - estimates[0]) / unit == pytest.approx(2, abs=1e-3)
    assert estimates[1] == pytest.approx(alive(made), rel=0.04)
    assert estimates[0] == pytest.approx(alive(direct), rel=0.04)


@pytest.mark.parametrize("name", ["ntk", "freelong", "freelongpp", "freespec"])
def test_an_accelerator_that_works_on_all_at_once_stays_inside_the_estimate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation in one block, few blocks of channels, sums of rows side by side: where attention decides the peak."""
    for module in (rotary, freelong, freespec):
        monkeypatch.setattr(module, "costs_on", lambda _: ACCELERATOR)
    made = made_for(name, "wan2.1-14b", 321)
    assert alive(made) < cost.memory_bytes(made, "bf16")["activations"]


@pytest.mark.parametrize(("most", "size"), [(2**23, (208, 112)), (2**26, (416, 112))])
def test_logits_that_are_written_down_are_counted(most: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU where FlexAttention does not compile: of a frame's logits what fits a block, which is first little beside copies
    of q, k and v, then more than they are."""
    monkeypatch.setattr(score_blocks, "CPU_BYTES", most)
    monkeypatch.setattr(cost, "DEVICE_BYTES", most)
    made = made_for("ultravico", "wan2.1-14b", 85, size)
    assert cost.memory_bytes(made, "bf16")["activations"] == pytest.approx(alive(made), rel=0.03)
