"""HunyuanVideo-1.5 on small pipelines of random weights: diffusers' own bit for bit, the plans by a dense softmax, from a picture.

Legend: T latent frames, n tokens per latent frame, N = T n tokens, L text tokens, H heads, D head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.conditions import NOTHING, Conditions
from longgen.frameplan import FramePlan, full_attention
from longgen.pipelines.hunyuan15 import RowMask, guided_by
from longgen.pipelines.step_state import StepState
from longgen.plan import Plan
from longgen.program import Program
from tests.backbones import family
from tests.backbones import test_hunyuan as hunyuan_tests

NAMES = ("hunyuan15", "hunyuan15-i2v")
PLANS = family.plans(5, 4)


@pytest.fixture(scope="module")
def backbone(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return functools.cache(lambda name: family.loaded(model_folder(name)))


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Conditions]:
    picture = family.pictured(tmp_path_factory.mktemp("pictures"))
    return lambda name: NOTHING if name == "hunyuan15" else picture


def stock(folder: Path, plan: Plan, dtype: torch.dtype, **arguments: Any) -> Any:
    """diffusers' own pipeline, in the hands of somebody who knows that its guidance is its guider's."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype={"default": dtype, "image_encoder": torch.float32})
    assert type(pipe).__module__.startswith("diffusers.")
    pipe.set_progress_bar_config(disable=True)
    pipe.guider = diffusers.ClassifierFreeGuidance(guidance_scale=plan.sample.guidance_scale)
    size = {"image": family.picture_of(plan)} if plan.conditions.image else dict(width=family.SIZE[0], height=family.SIZE[1])
    return pipe(
        prompt=family.PROMPT, negative_prompt=plan.sample.negative_prompt, num_frames=plan.frames_px,
        num_inference_steps=plan.steps, generator=torch.Generator().manual_seed(family.SEED), **size, **arguments,
    ).frames  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), [(NAMES[0], "fp32"), ("hunyuan15-steps", "fp32"), (NAMES[1], "bf16")])
def test_no_technique_is_the_stock_pipeline_bit_for_bit(
    model_folder: Callable[[str], Path], conditions: Callable[[str], Conditions], name: str, dtype: str
) -> None:
    folder, model = model_folder(name), family.loaded(model_folder(name), dtype)
    window = family.made(model, "sliding-window", 17, 2, ("window.frames=3",), conditions=conditions(name))
    with model.installed(window):  # and taken off again
        pass
    plan = family.made(model, "direct", 17, 2, conditions=conditions(name), negative_prompt="blurry")
    latents, kind = family.sampled(model, plan), torch.float32 if dtype == "fp32" else torch.bfloat16
    assert torch.equal(latents, stock(folder, plan, kind, output_type="latent"))
    decoded = np.concatenate(list(model.decode(latents)))
    assert np.array_equal(decoded, (stock(folder, plan, kind, output_type="np")[0] * 255).round().astype(np.uint8))
    assert (family.sampled(model, window) - family.sampled(model, plan)).abs().max() > 1e-3


def test_guidance_is_the_pipeline_s_guider(backbone: Callable[[str], Any]) -> None:
    model = backbone(NAMES[0])
    published, calls = model.pipe.guider, []
    hook = model.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    for scale, expected in ((6.0, 4), (1.0, 2)):
        calls.clear()
        family.sampled(model, family.made(model, "direct", 5, 2, guidance_scale=scale))
        assert len(calls) == expected
    hook.remove()
    assert model.pipe.guider is published
    assert "step" not in vars(model.pipe.scheduler)
    with pytest.raises(Exception, match="the model's guider is a SkipLayerGuidance"):
        guided_by(diffusers.SkipLayerGuidance(skip_layer_guidance_layers=[0]), 6.0)


def test_its_pipelines_read_as_many_tokens_as_the_spec_says(backbone: Callable[[str], Any]) -> None:
    for name in NAMES:
        model = backbone(name)
        pipe, spec = model.pipe, model.spec
        lengths = (pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens)
        assert sum(lengths) == spec.text_tokens + spec.image_tokens
        text = model.text(f'a "{family.PROMPT}"')
        assert text["encoder_attention_mask_2"].sum() > 10  # quoted words are for byT5
        assert model.text("a")["encoder_attention_mask_2"].sum() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_on_the_same_latents(
    backbone: Callable[[str], Any], conditions: Callable[[str], Conditions], name: str
) -> None:
    model = backbone(name)
    plan = family.made(model, "sliding-window", 17, 3, ("window.frames=3",), conditions=conditions(name))
    whole, state = family.sampled(model, plan), family.stopped_after(model, plan, 2)
    assert torch.equal(family.sampled(model, plan, resume=state), whole)


def test_a_wide_picture_makes_the_size_that_is_asked(backbone: Callable[[str], Any], tmp_path: Path) -> None:
    """The pipeline would choose another by its shape."""
    model = backbone(NAMES[1])
    one, other = (family.made(model, "direct", 9, 2, conditions=family.pictured(tmp_path, seed)) for seed in (0, 1))
    latents = family.sampled(model, one)
    assert latents.shape == model.latent_shape(one)
    assert (latents - family.sampled(model, other)).abs().max() > 1e-2
    assert not {"prepare_cond_latents_and_mask"} & {*vars(model.pipe)}


# One attention module against a dense softmax over [T n + L, T n + L]


@pytest.fixture(scope="module")
def call(backbone: Callable[[str], Any]) -> dict[str, Any]:
    """What the first layer is called with; of the text 9 tokens are left, of which 4 are padding."""
    model = backbone(NAMES[0])
    made = family.made(model, "direct", 17, 2)
    inputs = family.layer_inputs(model, made)[0]
    shown = inputs["attention_mask"].bool()[0]
    picked = torch.cat([shown.nonzero().flatten()[:5], (~shown).nonzero().flatten()[:4]])
    return inputs | {
        "encoder_hidden_states": inputs["encoder_hidden_states"][:, picked], "attention_mask": inputs["attention_mask"][:, picked],
    }  # fmt: skip


def planned(model: Any, plan: FramePlan, layer: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    state = StepState(model.pipe)
    processor = model.processor((Program({"main": plan}),), (5, 2, 4), state, model.rotary(), layer.processor, None)
    with torch.no_grad():
        return processor(layer, **call)


@pytest.mark.parametrize("name", PLANS)
def test_a_planned_layer_equals_dense_softmax(
    backbone: Callable[[str], Any], call: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = backbone(NAMES[0])
    layer = model.layers(model.pipe.transformer)[0]
    for constant, value in (("N_FRAME", 8), ("L", 9), ("LENGTHS", (5,)), ("B", 1)):
        monkeypatch.setattr(hunyuan_tests, constant, value)
    outputs, expected = planned(model, PLANS[name], layer, call), hunyuan_tests.dense(PLANS[name], layer, call)
    differences = [(one - other).abs().max().item() for one, other in zip(outputs, expected, strict=True)]
    assert max(differences) < 1e-5, differences


def test_one_row_of_mask_has_the_sums_of_diffusers_square(backbone: Callable[[str], Any], call: dict[str, Any]) -> None:
    model = backbone(NAMES[0])
    layer = model.layers(model.pipe.transformer)[0]
    assert type(layer.processor) is RowMask
    own = diffusers.models.transformers.transformer_hunyuan_video15.HunyuanVideo15AttnProcessor2_0()
    with torch.no_grad():
        (video, text), (expected, expected_text) = RowMask()(layer, **call), own(layer, **call)
    assert torch.equal(video, expected)
    assert torch.equal(text[:, :5], expected_text[:, :5])
    neutral = planned(model, full_attention(5), layer, call)
    assert (neutral[0] - video).abs().max() < 2e-6
