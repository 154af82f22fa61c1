"""FlexAttention by sign against plain steps: its rule uncompiled, its compiled form on a CPU, and when it is not used.

Legend: f query frames, n tokens per frame, H heads, D head dim.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.attention import executor, score_blocks, sign_flex
from longgen.attention.context import LayerInputs
from longgen.device_costs import ACCELERATOR
from longgen.frameplan import full_attention
from longgen.pipelines.processors import LayerCall
from tests.attention.dense import dense
from tests.attention.test_executor import T, ctx, qkv
from tests.attention.test_merge import with_text
from tests.attention.test_score_blocks import signed

__all__ = ["ctx", "qkv"]

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    sign_flex._shapes.clear()
    yield
    sign_flex._shapes.clear()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """FlexAttention as it is, on the CPU, for every call that may have it; how many tokens a key frame has in each."""
    calls = list[int]()
    monkeypatch.setattr(sign_flex, "_compiled", lambda: sign_flex._by_sign)
    monkeypatch.setattr(sign_flex, "is_compiling", lambda: True)

    def call(q: Tensor, k: Tensor, v: Tensor, factors: np.ndarray, key_tokens: int) -> Tensor:
        calls.append(key_tokens)
        return sign_flex._call(q, k, v, factors, key_tokens)

    monkeypatch.setattr(score_blocks, "flex_by_sign", lambda *_: call)
    monkeypatch.setattr(executor, "costs_on", lambda _: ACCELERATOR)
    return calls


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_its_rule_equals_dense_softmax(text: bool, centred: bool, ctx: LayerCall, qkv: Any, uncompiled: list[int]) -> None:
    call, plan = with_text(ctx) if text else ctx, signed(full_attention(T), "random", centred)
    output = executor.run_plan(plan, LayerInputs(call, *qkv))
    assert uncompiled == [9]
    assert (output.double() - dense(plan, *qkv, call.rotary, call.stock, call.text)).abs().max() < 5e-6  # type: ignore[arg-type]


def test_it_never_runs_uncompiled(ctx: LayerCall, qkv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks do it then."""
    monkeypatch.setattr(sign_flex, "_compiled", lambda: sign_flex._by_sign)  # as where compiling is switched off
    with pytest.raises(sign_flex.NotCompiledError):
        sign_flex._call(*qkv, np.full((T, T), 0.9), 9)
    assert not sign_flex._works(CPU, torch.float32, 16)
    monkeypatch.setattr(score_blocks, "flex_by_sign", lambda *_: sign_flex._call)
    plan = signed(full_attention(T), "random")
    output = executor.run_plan(plan, LayerInputs(ctx, *qkv))
    assert (output.double() - dense(plan, *qkv, ctx.rotary, ctx.stock)).abs().max() < 5e-6  # type: ignore[arg-type]


def test_only_so_many_shapes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_flex, "_compiled", lambda: lambda q, k, v, *_: q)
    inputs = [torch.zeros(1, 2 * n, 1, 8) for n in range(1, sign_flex.MOST_SHAPES + 2)]
    for x in [*inputs[:-1], *inputs[:-1]]:
        sign_flex._call(x, x, x, np.ones((2, 2)), x.shape[1] // 2)
    with pytest.raises(sign_flex.NotCompiledError):
        sign_flex._call(inputs[-1], inputs[-1], inputs[-1], np.ones((2, 2)), inputs[-1].shape[1] // 2)


def test_a_cpu_has_blocks_and_a_kernel_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign_flex.flex_by_sign(CPU, torch.float32, 64) is None
    monkeypatch.setattr(sign_flex, "_call", lambda q, *_: torch.zeros_like(q))
    assert not sign_flex._works(CPU, torch.float32, 16)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of what Inductor imports
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_its_compiled_form_is_tried_and_right() -> None:
    assert sign_flex._works(CPU, torch.bfloat16, 64)
