"""How a video is split between ranks, decided with its plan; what each rank has is counted in tests/bench/test_ranks.py."""

from __future__ import annotations

import math
from typing import Any

import pytest

from longgen import cost, planner, preset, split
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.errors import UsageError
from longgen.plan import Plan


def plan_of(name: str, backbone: str = "wan2.1-1.3b", **sample: Any) -> Plan:
    spec = planner.as_if_probed(SPECS[backbone])
    return planner.build(preset.load(name, (), preset.Sample(**sample)), spec, conditions=planner.stand_in(spec))


@pytest.mark.parametrize(
    ("name", "backbone", "settings", "expected"),
    [
        ("freespec", "wan2.1-1.3b", {"gpus": 1}, split.Split()),
        ("freespec", "wan2.1-1.3b", {"gpus": 4}, split.Split(4, "heads")),
        ("gen-l-video", "wan2.1-1.3b", {"gpus": 3}, split.Split(3, "clips")),
        ("gen-l-video", "hunyuanvideo", {"gpus": 2}, split.Split(2, "clips")),
        ("glc-diffusion", "cogvideox-5b", {"gpus": 5}, split.Split(5, "clips")),
        ("direct", "cogvideox-5b", {"gpus": 2, "guidance_parallel": True}, split.Split(2, "whole", True)),
        ("direct", "wan2.1-1.3b", {"gpus": 4, "guidance_parallel": True}, split.Split(4, "heads", True)),
        ("rolling-sink", "self-forcing", {"gpus": 6}, split.Split(6, "heads")),
        ("direct", "ltx-2b", {"gpus": 4}, split.Split(4, "heads")),
        ("sliding-window", "ltx-2", {"gpus": 2}, split.Split(2, "heads")),
    ],
)
def test_each_plan_is_split_its_own_way(name: str, backbone: str, settings: dict[str, Any], expected: split.Split) -> None:
    made = plan_of(name, backbone, frames=4 * SPECS[backbone].native_px)
    assert split.split_of(made, ModelSettings("cuda", "bf16", **settings)) == expected


@pytest.mark.parametrize(
    ("name", "backbone", "settings", "message"),
    [
        ("direct", "wan2.1-1.3b", {"gpus": 5}, "has 12 heads, which 5 ranks cannot share evenly"),
        ("direct", "hunyuanvideo", {"gpus": 2}, "diffusers has no context-parallel plan for it"),
        ("direct", "hunyuanvideo", {"gpus": 2, "guidance_parallel": True}, "runs without guidance"),
        ("direct", "wan2.1-1.3b", {"gpus": 3, "guidance_parallel": True}, "two halves of the ranks"),
        ("direct", "wan2.1-1.3b", {"guidance_parallel": True}, "two halves of the ranks"),
        ("gen-l-video", "wan2.1-1.3b", {"gpus": 2, "guidance_parallel": True}, "gen-l-video has clips"),
        ("direct", "wan2.1-1.3b", {"gpus": 2, "cache": "first-block:0.05"}, "--cache cannot be combined with --gpus 2"),
        ("direct", "wan2.1-1.3b", {"gpus": 2, "compile": True}, "--compile cannot be combined"),
        ("direct", "wan2.1-1.3b", {"gpus": 2, "offload": "model"}, "--offload cannot be combined"),
    ],
)
def test_what_cannot_be_split_is_refused(name: str, backbone: str, settings: dict[str, Any], message: str) -> None:
    made = plan_of(name, backbone, frames=4 * SPECS[backbone].native_px)
    with pytest.raises(UsageError, match=message):
        split.split_of(made, ModelSettings("cuda", "bf16", **settings))


def test_tokens_that_ranks_cannot_share_are_named() -> None:
    made = plan_of("direct", frames=81, size=(400, 400))  # 21 frames of 625 tokens
    assert math.prod(made.call_grid) % 2 == 1
    with pytest.raises(UsageError, match="21 latent frames of 400x400 are 13125 tokens, which 2 ranks cannot share evenly"):
        split.split_of(made, ModelSettings("cuda", "bf16", gpus=2))


def test_a_rank_has_its_share_of_operations_and_memory() -> None:
    made = plan_of("sliding-window", frames=321)
    whole = cost.memory_bytes(made, "bf16")
    for count in (2, 4):
        rank = split.numbers(made, ModelSettings("cuda", "bf16", gpus=count))
        assert rank["arithmetic"] == pytest.approx(1 / count)
        assert rank["peak_bytes"] == whole["peak"] - whole["activations"] + round(whole["activations"] / count)
    fused = split.numbers(plan_of("freespec", frames=321), ModelSettings("cuda", "bf16", gpus=2))
    assert 0.5 < fused["arithmetic"] < 0.6, "a fusion is computed by every rank"
    alone = split.numbers(made, ModelSettings("cuda", "bf16"))
    assert (alone["arithmetic"], alone["peak_bytes"], alone["sent_bytes"]) == (1.0, whole["peak"], 0)
