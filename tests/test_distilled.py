"""What is said where weights are distilled, judging by their names, and sampled as others are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longgen import planner, preset
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.pipelines.checks import check_plan

WAN, LORA = "wan2.1-14b", "loras/Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank64.safetensors"
LTX, FILE = "ltx-2b", "models/ltxv-2b-0.9.8-distilled.safetensors"


def said(name: str, sample: dict[str, Any], change: dict[str, Any] | None = None, lora: str | None = None) -> list[str]:
    spec = replace(SPECS[name], **(change or {}))
    plan = planner.build(preset.load("direct", (), preset.Sample(**sample)), spec)
    notes = [*plan.notes, *check_plan(plan, ModelSettings("cpu", "fp32", lora=(lora,) if lora else ()))]
    return [note for note in notes if "distilled, judging by its name" in note]


@pytest.mark.parametrize(
    ("name", "change", "lora", "of"),
    [
        (LTX, {"name": FILE, "files": (FILE,)}, None, "ltxv-2b-0.9.8-distilled.safetensors"),
        (
            LTX,
            {"name": "a/LTX-Video-0.9.8-13B-distilled", "source": "a/LTX-Video-0.9.8-13B-distilled"},
            None,
            "LTX-Video-0.9.8-13B-",
        ),
        (WAN, None, f"{LORA}:0.8", "Wan21_T2V_14B_lightx2v"),
        (WAN, None, "Wan2.2-Lightning_4steps.safetensors", "Wan2.2-Lightning"),
        (WAN, None, "style_64steps.safetensors", None),
        (WAN, {"name": "folder/wan", "source": "distillery/models/wan"}, None, None),
        ("hunyuanvideo-1.5", {"name": "x/480p_t2v_distilled", "source": "x/480p_t2v_distilled", "guidance_scale": 1.0}, None, None),
        ("self-forcing", None, "causvid.safetensors", None),
    ],
)
def test_a_distilled_model_that_is_sampled_as_another_is_named(
    name: str, change: dict[str, Any] | None, lora: str | None, of: str | None
) -> None:
    notes = said(name, {}, change, lora)
    assert len(notes) == (of is not None)
    assert all(note.startswith(of or "") and "--guidance-scale 1" in note for note in notes)


def test_nothing_is_said_of_few_steps_without_guidance() -> None:
    assert said(WAN, {"steps": 4, "guidance_scale": 1.0}, None, LORA) == []
    assert "this run has 4 steps and guidance 5" in said(WAN, {"steps": 4}, None, LORA)[0]
    assert "this run has 20 steps and guidance 1" in said(WAN, {"steps": 20, "guidance_scale": 1.0}, None, LORA)[0]
    fast = {"name": "x/FastHunyuan", "source": "x/FastHunyuan"}
    assert "at most 12 steps (--steps); this" in said("hunyuanvideo", {}, fast)[0]  # whose guidance is an input
