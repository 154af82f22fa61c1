"""What Python callers give: wrong kinds and values are refused where they come in, before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longgen
from longgen import arguments, resolve
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.compare.run import compare_presets
from longgen.errors import UsageError
from longgen.probe.measure import make_settings

WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"quantize": "int4"}, "None, fp8, int8"),
    ({"quantise": "int8"}, "did you mean quantize"),
    ({"offload": "disk"}, "none, model, group, sequential"),
    ({"dtype": "float16"}, "fp32, bf16, fp16"),
    ({"dtype": 16}, "fp32, bf16, fp16"),
    ({"device": "gpu 0"}, "cpu, cuda or cuda:1"),
    ({"device": 0}, "cpu, cuda or cuda:1"),
    ({"lora": "style.safetensors"}, "texts in a list"),
    ({"lora": [3]}, "texts in a list"),
    ({"lora": ["style:nan"]}, "'nan' is no scale"),
    ({"lora": [":0.5"]}, "there is no path"),
    ({"attention": "wonder"}, "no such attention backend"),
    ({"attention": 3}, "an attention backend of diffusers"),
    ({"cache": "mag:2"}, "a number between 0 and 1"),
    ({"cache": "teacache"}, "longgen has not tried it"),
    ({"cache": 0.05}, "first-block or mag"),
    ({"compile": "no"}, "False, True"),
    ({"vae_tiling": 1}, "False, True"),
    ({"clip_batch": 0}, "1 or more"),
    ({"clip_batch": 2.0}, "1 or more"),
    ({"clip_batch": True}, "1 or more"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG_SETTINGS)
def test_a_model_setting_is_checked_where_it_is_made(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ModelSettings(**{"device": "cpu", "dtype": "fp32"} | wrong)
    assert said in str(caught.value)


def test_a_model_setting_that_fits_is_taken_as_it_is() -> None:
    made = ModelSettings("cpu", "fp32", lora=["a:0.5"], cache="mag")  # type: ignore[arg-type]
    assert made.lora == ("a:0.5",)
    assert made.replace(clip_batch=3).stored() == {"dtype": "fp32", "lora": ["a:0.5"], "cache": "mag", "clip_batch": 3}
    with pytest.raises(UsageError, match="clip_batch = 0"):
        made.replace(clip_batch=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"seed": True}, "seed = True"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"seed": "1"}, "seed = '1'"),
        ({"prompt": 3}, "prompt = 3 is of type int"),
        ({"prompt": None}, "no prompt is given"),
        ({"output": 1}, "expected: a string or a path or None"),
        ({"sample": {"frames": 33}}, "expected: frames=, size=, steps="),
        ({"preset_name": "direct"}, "expected: preset="),
        ({"schedule": "shots.toml"}, "schedule cannot be combined with prompt"),
        ({"frames": "33"}, "frames = '33' is of type str"),
        ({"frames": 0}, "frames"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"size": "64 by 64"}, "size '64 by 64' is not a frame size"),
        ({"size": (64,)}, "expected: a pair of whole numbers"),
        ({"quantize": "int4"}, "expected: fp8 or int8 or None"),
        ({"offload": "disk"}, "expected: none or model or group or sequential"),
        ({"lora": "style.safetensors"}, "expected: a list of strings"),
        ({"clip_batch": 0}, "clip_batch = 0"),
        ({"attention": "wonder"}, "no such attention backend"),
        ({"compile": 1}, "expected: True or False"),
        ({"progress": 1}, "expected: a function or True or False"),
        ({"resume": True, "overwrite": True}, "resume cannot be combined with overwrite"),
        ({"frames": 33, "duration": "2s"}, "frames cannot be combined with duration"),
        ({"fit": "pad"}, "expected: image=FILE or continue_from=VIDEO with it"),
        ({"guidance_parallel": True}, "hint: add it, or leave guidance_parallel out"),
        ({"duration": 20}, "duration = 20"),
        ({"overrides": "window.frames=3"}, "overrides = 'window.frames=3' is of type str"),
        ({"overrides": ["window.size=3"]}, "overrides"),
        ({"model": {"dtype": "fp32"}}, "expected: its keys as parameters"),
        ({"resume": 1}, "resume = 1"),
        ({"overwrite": "no"}, "overwrite = 'no'"),
        ({"device": 0}, "device = 0"),
    ],
)
def test_generate_refuses_wrong_kinds(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        longgen.generate(**{"prompt": "a", "output": tmp_path / "a.mp4", "backbone": "tiny"} | wrong)
    assert said in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values", [{"flow_shift": 0.0}, {"flow_shift": float("nan")}, {"steps": True}, {"frames": -1}, {"shift": 1}]
)
def test_a_sample_says_what_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        longgen.Sample(**values)


def test_numbers_of_numpy_are_whole_numbers() -> None:
    assert arguments.seeds(np.arange(3)) == (0, 1, 2)
    assert all(type(seed) is int for seed in arguments.seeds(np.arange(3)))
    assert type(ModelSettings("cpu", "fp32", clip_batch=np.int64(2)).clip_batch) is int


def test_lists_of_prompts_and_seeds_are_no_single_ones(tmp_path: Path) -> None:
    plans, model_settings = [resolve.resolve(resolve.PlanRequest("direct", TINY))], ModelSettings("cpu", "fp32")
    for prompts, seeds, said in (("a red circle", (0,), "prompts"), (["a"], (0, 0), "two are equal"), (["a"], 3, "seeds = 3")):
        with pytest.raises(UsageError, match=said):
            compare_presets(plans, prompts, seeds, model_settings, tmp_path / "out")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=said):
            make_settings(TINY, "quick", None, None, prompts, seeds, None, "fp32", ())  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
