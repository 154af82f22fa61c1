"""Rotation as an accelerator does it against a CPU's, at times known on the host or on the device, and the tables that are kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longgen.attention import rotary as module
from longgen.attention.rotary import Rotary, Tables
from longgen.device_costs import ACCELERATOR

T, TOKENS, HEADS, DIM = 5, 6, 3, 12
FREQUENCIES = 10000.0 ** (-np.arange(3) / 3)
ROTARIES = {
    "first in every head": (Rotary(FREQUENCIES, np.arange(3)), DIM // 2),
    "every third of all heads": (Rotary(FREQUENCIES, 1 + 3 * np.arange(3)), HEADS * DIM // 2),
}
POSITIONS = np.array([0, 2.5, 2.5, 7, 3])
VIEWS = {"view", "alias", "_unsafe_view", "slice", "select", "unbind", "unsqueeze", "empty_like", "expand"}


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func._schema.name.removeprefix("aten::")) not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "costs_on", lambda _: ACCELERATOR)


def made(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Rotary, Tensor, Tables]:
    rotary, pairs = ROTARIES[name]
    rotary._cache.clear()
    torch.manual_seed(0)
    space = torch.randn(TOKENS, pairs).expand(T, -1, -1).clone()
    space[:, :, rotary.places] = torch.from_numpy(np.outer(np.arange(T), FREQUENCIES)).float()[:, None]
    angles = space.flatten(0, 1)
    return rotary, torch.randn(2, T * TOKENS, HEADS, DIM).to(dtype), (angles.cos(), angles.sin())


def by_hand(x: Tensor, tables: Tables) -> Tensor:
    """As diffusers writes it: both products in single precision, their sum rounded once."""
    cos, sin = (table.view(len(table), -1, DIM // 2) for table in tables)
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def assert_rounded_once(x: Tensor, expected: Tensor) -> None:
    """Equal but for how the CPU fuses a product with a sum, which may turn the last bit."""
    assert ((x - expected).abs() <= torch.finfo(x.dtype).eps * (expected.abs() + 1)).all()
    assert (x == expected).float().mean() > (0.99 if x.dtype != torch.float32 else 0.5)


def by_frame(x: Tensor) -> Tensor:
    return x.unflatten(1, (T, TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ROTARIES)
def test_rotation_rounds_as_diffusers_does(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rotary, x, stock = made(name, dtype)
    expected = by_hand(x, stock)
    for block in (100, 2**22):
        monkeypatch.setattr(module, "BLOCK", block)
        assert torch.equal(rotary.rotate(x, stock), expected)
    monkeypatch.setattr(module, "costs_on", lambda _: ACCELERATOR)
    with Launches() as counted:
        rotated = rotary.rotate(x, stock)
    assert_rounded_once(rotated, expected)
    assert sum(counted.counts.values()) == 4, counted.counts


@pytest.mark.parametrize("scale", [None, np.array([1.0, 0.5, 0.25])])
@pytest.mark.parametrize("name", ROTARIES)
def test_an_accelerator_keeps_no_tables_and_rounds_once(
    name: str, scale: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotary, x, stock = made(name)
    expected = rotary.rotate_to(x, stock, POSITIONS, scale)
    assert torch.equal(expected, by_hand(x, rotary.tables_at(stock, POSITIONS, scale)))
    rotary._cache.clear()
    monkeypatch.setattr(module, "costs_on", lambda _: ACCELERATOR)
    assert_rounded_once(rotary.rotate_to(x, stock, POSITIONS, scale), expected)
    assert [len(cos) for cos, _ in rotary._cache.values()] == [T]  # angles by frame
    with Launches() as counted:
        rotary.rotate_to(x, stock, POSITIONS, scale)
    assert sum(counted.counts.values()) == 9, counted.counts


@pytest.mark.parametrize("scale", [None, np.array([1.0, 0.5, 0.25])])
@pytest.mark.parametrize("name", ROTARIES)
def test_times_may_be_known_on_the_device_alone(name: str, scale: np.ndarray | None, accelerator: None) -> None:
    rotary, x, stock = made(name)
    times = torch.from_numpy(POSITIONS)
    assert torch.equal(rotary.rotate_to(x, stock, times, scale), rotary.rotate_to(x, stock, POSITIONS, scale))
    frames = np.array([0, 3, 4])
    expected, rotated = by_frame(x).clone(), by_frame(x).clone()
    rotary.rotate_time(expected, by_frame(x), frames, POSITIONS[frames], scale)
    rotary.rotate_time(rotated, by_frame(x), torch.from_numpy(frames), times[frames], scale)
    assert torch.equal(rotated, expected)
    frame = stock[0][:TOKENS], stock[1][:TOKENS]
    for one, other in zip(
        rotary.frame_tables_at(frame, times, scale), rotary.frame_tables_at(frame, POSITIONS, scale), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frames", [np.arange(1, 4), np.array([2, 0, 4])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ROTARIES)
@pytest.mark.parametrize("batched", [False, True])
def test_time_alone_may_be_rotated_in_place(
    name: str, dtype: torch.dtype, frames: np.ndarray, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some frames, also where x itself is what was not rotated before; the other channels and frames stay as they are."""
    rotary, x, _ = made(name, dtype)
    if batched:
        monkeypatch.setattr(module, "costs_on", lambda _: ACCELERATOR)
    pairs = ROTARIES[name][1]
    cos, sin = torch.ones(T, TOKENS, pairs), torch.zeros(T, TOKENS, pairs)
    angles = torch.from_numpy(np.outer(POSITIONS[:3], FREQUENCIES)).float()[:, None]
    cos[frames, :, rotary.places], sin[frames, :, rotary.places] = angles.cos(), angles.sin()
    expected = by_frame(by_hand(x, (cos.flatten(0, 1), sin.flatten(0, 1))))
    apart, itself = by_frame(x.clone()), by_frame(x.clone())
    rotary.rotate_time(apart, by_frame(x), frames, POSITIONS[:3], None)
    rotary.rotate_time(itself, itself, frames, POSITIONS[:3], None)
    assert torch.equal(apart, itself)
    assert (apart - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.02)


def test_tables_not_used_for_longest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary, _, stock = made("first in every head")
    size = 2 * stock[0].nbytes
    monkeypatch.setattr(module, "MOST_BYTES", 3 * size)
    first = rotary.tables_at(stock, POSITIONS, None)
    for shift in range(1, 8):
        rotary.tables_at(stock, POSITIONS + shift, None)
        assert rotary.tables_at(stock, POSITIONS, None) is first
        assert sum(cos.nbytes + sin.nbytes for cos, sin in rotary._cache.values()) <= 3 * size
    for shift in range(8, 12):
        rotary.tables_at(stock, POSITIONS + shift, None)
    again = rotary.tables_at(stock, POSITIONS, None)
    assert again is not first
    assert all(torch.equal(*both) for both in zip(again, first, strict=True))
