"""What plans say they cost, against what torch counts in real transformers as they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, sdpa_flop_count

from longgen import cost, planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.cogvideox import COGVIDEOX_1_5, COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V
from longgen.backbones.hunyuan import HUNYUANVIDEO, HUNYUANVIDEO_I2V
from longgen.backbones.hunyuan15 import HUNYUANVIDEO_1_5, HUNYUANVIDEO_1_5_I2V
from longgen.backbones.ltx import LTX_2B
from longgen.backbones.ltx2 import LTX_2
from longgen.backbones.ltx_condition import LTX_2B_0_9_5
from longgen.backbones.registry import FAMILIES, family_of
from longgen.backbones.settings import ModelSettings
from longgen.backbones.skyreels import SKYREELS_V2
from longgen.backbones.skyreels_df import SKYREELS_V2_DF_1_3B
from longgen.backbones.spec import BackboneSpec, Sound
from longgen.backbones.wan import WAN_1_3B
from longgen.errors import UsageError
from longgen.loops import sample
from longgen.loops.denoiser import Denoiser
from longgen.plan import Plan
from tests.stacks import STACKS

WITHIN = 0.02
SMALL = dict(layers=2, heads=2, head_dim=64, ffn_dim=256, text_tokens=32, size=(128, 128), parameters=0)
WAN = replace(WAN_1_3B, native_px=33, rotary_dims=24, intrinsic_component=3, **SMALL,
              verdicts={"position-sensitive": (0,), "context-sensitive": (1,)})  # fmt: skip
CAUSAL = replace(SELF_FORCING, native_px=33, rotary_dims=24, intrinsic_component=3, **SMALL)
OTHERS = {
    "ltx": replace(LTX_2B, **SMALL | dict(size=(256, 256), ffn_dim=512), native_px=65),
    "cogvideox": replace(COGVIDEOX_5B, **SMALL | dict(ffn_dim=512), native_px=33),
    "cogvideox-2b": replace(COGVIDEOX_2B, **SMALL | dict(ffn_dim=512), native_px=33),
    "cogvideox-1.5": replace(COGVIDEOX_1_5, **SMALL | dict(ffn_dim=512), native_px=33),
    "hunyuan": replace(HUNYUANVIDEO, **SMALL | dict(layers=3), native_px=33),
    "ltx-condition": replace(LTX_2B_0_9_5, **SMALL | dict(size=(256, 256), ffn_dim=512), native_px=65),
    "cogvideox-i2v": replace(COGVIDEOX_5B_I2V, **SMALL | dict(ffn_dim=512), native_px=33),
    "hunyuan-i2v": replace(HUNYUANVIDEO_I2V, **SMALL | dict(layers=3), native_px=33),
    "ltx2": replace(LTX_2, **SMALL | dict(size=(256, 256), ffn_dim=512, sound=Sound(64, 25.0), text_tokens=24), native_px=65),
    "hunyuan15": replace(HUNYUANVIDEO_1_5, **SMALL | dict(text_tokens=24, image_tokens=2), native_px=33),
    "hunyuan15-i2v": replace(HUNYUANVIDEO_1_5_I2V, **SMALL | dict(text_tokens=24, image_tokens=2), native_px=33),
    "skyreels": replace(SKYREELS_V2, native_px=33, rotary_dims=24, intrinsic_component=3, **SMALL),
    "skyreels-df": replace(SKYREELS_V2_DF_1_3B, native_px=33, rotary_dims=24, intrinsic_component=3, **SMALL),
}


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts operations, those included that torch's own counter does not know."""

    def attention(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def product(_: Any, a: Any, b: Any, *__: Any, out_shape: Any = None, **___: Any) -> int:
        return bmm_flop(a, b)

    def eigen(a: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 10 * a[0] * a[-1] ** 3  # no exact number: as FreeSpec prices it

    aten = torch.ops.aten
    known = {aten._scaled_dot_product_flash_attention_for_cpu: attention, aten.baddbmm_: product, aten._linalg_eigh: eigen}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        yield counter


def built(spec: BackboneSpec) -> Any:
    from longgen.pipelines import random_weights

    return random_weights.build(spec, ModelSettings("cpu", "fp32"))


def counted(model: Any, counter: FlopCounterMode) -> list[int]:
    """Operations of each block, in their order."""
    counts, transformer = counter.get_flop_counts(), model.pipe.transformer
    names = {id(module): f"{type(transformer).__name__}.{name}" for name, module in transformer.named_modules()}
    lists = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [sum(counts[names[id(block)]].values()) for name in lists for block in getattr(transformer, name, ())]


def made(name: str, spec: BackboneSpec, frames: int) -> Plan | None:
    try:
        return planner.build(preset.load(name, (), preset.Sample(frames=frames)), spec, conditions=planner.stand_in(spec))
    except UsageError:
        return None


@pytest.fixture(scope="module")
def wan() -> Any:
    return built(WAN)


@pytest.fixture(scope="module")
def causal() -> Any:
    return built(CAUSAL)


TAKEN = [name for name in STACKS if made(name, WAN, 129) is not None]
ROLLED = [name for name in STACKS if name not in TAKEN and made(name, CAUSAL, 93) is not None]


@pytest.mark.parametrize("name", TAKEN)
def test_a_plan_s_operations_are_those_that_torch_counts(name: str, wan: Any) -> None:
    """Of every kind of step and every layer, for one call of the model on what it sees at a time."""
    long = made(name, WAN, 129)
    assert long is not None
    noise = Denoiser(wan, long, "").initial_noise(torch.Generator().manual_seed(0))[:, :, : long.call_geometry.frames_lat]
    for step in np.unique(long.table, axis=1, return_index=True)[1].tolist():
        wan.pipe.scheduler.set_timesteps(long.steps)
        wan.step_state.index = step
        with wan.installed(long), counting() as counter:
            wan.pipe.transformer(hidden_states=noise, timestep=torch.tensor([500]), **wan.text(""), return_dict=False)
        for layer, operations in enumerate(counted(wan, counter)):
            program = long.programs[long.table[layer, step]]
            assert cost.flops(long, program) == pytest.approx(operations, rel=WITHIN), (step, layer)


@pytest.mark.parametrize("name", ROLLED)
def test_a_rollout_s_cost_is_what_torch_counts_over_all_chunks(name: str, causal: Any) -> None:
    long = made(name, CAUSAL, 93)
    assert long is not None
    generator = torch.Generator().manual_seed(0)
    with counting() as counter:
        denoiser = Denoiser(causal, long, "")
        sample(denoiser, denoiser.initial_noise(generator), generator)
    whole = cost.flops(long, None, long.grid) * (long.preset.sample.steps or CAUSAL.steps) * CAUSAL.layers
    estimate, operations = cost.ratio(long) * whole, sum(counted(causal, counter))
    if long.head_groups is None:
        assert estimate == pytest.approx(operations, rel=WITHIN)
    else:  # who sees what is known at run time only: an upper bound, and here a close one
        assert operations * (1 - WITHIN) <= estimate <= 1.05 * operations


@pytest.mark.parametrize("family", OTHERS)
def test_the_other_families_direct_sampling_is_what_torch_counts(family: str) -> None:
    spec, model = OTHERS[family], built(OTHERS[family])
    direct = made("direct", spec, spec.native_px)
    assert direct is not None

    class Enough(Exception): ...

    def stop(*_: Any) -> None:
        raise Enough

    hook = model.pipe.transformer.register_forward_hook(stop)
    generator = torch.Generator()
    given = model.given(direct, generator)
    noise = Denoiser(model, direct, "").initial_noise(generator)
    with model.conditioned(direct, given) as conditioning, counting() as counter, pytest.raises(Enough):
        model.pipe(**model.call_arguments(direct, "a"), **conditioning, latents=model.started(noise, given), generator=generator,
                   output_type="latent")  # fmt: skip
    hook.remove()
    batch = 2 if family_of(spec).batches_guidance else 1  # both branches in one call
    for operations in counted(model, counter):
        assert batch * cost.flops(direct, None) == pytest.approx(operations, rel=WITHIN)


def test_every_family_is_counted() -> None:
    assert {spec.family for spec in (WAN, CAUSAL, *OTHERS.values())} == {*FAMILIES}
