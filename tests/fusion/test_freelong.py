"""FreeLong against the three-dimensional FFT of the definition, its kernels, its step split and its neutral settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longgen import preset
from longgen.device_costs import ACCELERATOR
from longgen.frameplan import Geometry, full_attention
from longgen.frames import local_windows
from longgen.fusion import freelong
from longgen.fusion.freelong import FreeLong, add_low_pass, kernel, low_pass
from longgen.plan import Plan
from longgen.technique import Step

STEP = Step(1, (1000.0, 900.0, 700.0, 400.0))
CLIP = Geometry(81, 21, (1.0,))
GRIDS = [(21, 6, 9), (8, 5, 4), (5, 1, 2), (1, 3, 7)]


def features(grid: tuple[int, int, int], channels: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, math.prod(grid), channels, generator=generator, dtype=torch.float64)


def response(length: int, cutoff: float) -> Tensor:
    return torch.exp(-0.5 * (2 * torch.fft.fftfreq(length, dtype=torch.float64) / cutoff) ** 2)


def by_fft(global_: Tensor, local: Tensor, cutoffs: tuple[float, float, float]) -> Tensor:
    """The definition on [B, T, rows, columns, C]: IFFT3(P FFT3(G) + (1 - P) FFT3(L))."""
    t, h, w = (response(length, cutoff) for length, cutoff in zip(global_.shape[1:4], cutoffs, strict=True))
    p = (t[:, None, None] * h[:, None] * w)[..., None]
    spectrum = p * torch.fft.fftn(global_, dim=(1, 2, 3)) + (1 - p) * torch.fft.fftn(local, dim=(1, 2, 3))
    mixed = torch.fft.ifftn(spectrum, dim=(1, 2, 3))
    assert mixed.imag.abs().max() < 1e-14
    return mixed.real


def reference(global_: Tensor, local: Tensor, grid: tuple[int, int, int], time: float, space: float, boundary: str) -> Tensor:
    one, other = (x.unflatten(1, grid) for x in (global_, local))
    if boundary == "reflect":  # mirrored at the end of every axis, filtered as a whole, and cropped
        for axis in (1, 2, 3):
            one, other = (torch.cat([x, x.flip(axis)], dim=axis) for x in (one, other))
    t, rows, columns = grid
    return by_fft(one, other, (time, space, space))[:, :t, :rows, :columns].flatten(1, 3)


def attending(**branches: Tensor) -> Callable[[str], Tensor]:
    return branches.__getitem__


@pytest.mark.parametrize("boundary", ["circular", "reflect"])
@pytest.mark.parametrize(("time", "space"), [(0.25, 0.25), (0.5, 0.1), (0.07, 0.9)])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_fft(grid: tuple[int, int, int], time: float, space: float, boundary: str) -> None:
    global_, local = features(grid, seed=1), features(grid, seed=2)
    before = global_.clone(), local.clone()
    technique = FreeLong(cutoff_time=time, cutoff_space=space, boundary=boundary)  # type: ignore[arg-type]
    fused = technique.fuse(attending(**{"global": global_, "local": local}), STEP, grid)
    error = (fused - reference(global_, local, grid, time, space, boundary)).abs().max()
    print(f"{grid} {boundary} d_t {time} d_s {space}: {error:.1e}")
    assert error < 2e-14
    assert torch.equal(global_, before[0])
    assert torch.equal(local, before[1])


def test_taps_are_the_blur_that_a_cutoff_of_a_quarter_is() -> None:
    taps = kernel(81, 0.25, "circular")[40, 40:45]
    assert taps == pytest.approx([0.313, 0.230, 0.091, 0.020, 0.002], abs=6e-4)
    offsets = np.arange(81) - 40
    assert math.sqrt((kernel(81, 0.25, "circular")[40] * offsets**2).sum()) == pytest.approx(1 / (math.pi * 0.25), rel=2e-3)
    assert np.abs(kernel(81, 0.25, "reflect")[40] - kernel(81, 0.25, "circular")[40]).max() < 1e-4  # alike far from the ends


@pytest.mark.parametrize("boundary", ["circular", "reflect"])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 81])
def test_kernels_keep_a_constant_and_are_symmetric(length: int, boundary: str) -> None:
    matrix = kernel(length, 0.25, boundary)  # type: ignore[arg-type]
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-14
    assert np.abs(matrix - matrix.T).max() < 1e-14


def test_only_the_circular_boundary_blends_the_ends() -> None:
    assert kernel(81, 0.25, "circular")[0, 80] == pytest.approx(0.230, abs=6e-4)
    assert abs(kernel(81, 0.25, "reflect")[0, 80]) < 1e-4


def test_no_cutoff_in_space_filters_in_time_alone() -> None:
    grid, x = (9, 3, 4), features((9, 3, 4))
    expected = torch.einsum("ts,bsnc->btnc", torch.from_numpy(kernel(9, 0.3, "reflect")), x.unflatten(1, (9, 12))).flatten(1, 2)
    assert (low_pass(x, grid, 0.3, None, "reflect") - expected).abs().max() < 1e-14


def test_channels_in_blocks_equal_channels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, one, other = (8, 5, 4), features((8, 5, 4), 7, seed=1), features((8, 5, 4), 7, seed=2)
    whole, blocks = other.clone(), other.clone()
    add_low_pass(whole, one, other, grid, 0.25, 0.25, "reflect")
    monkeypatch.setattr(freelong, "CHANNELS", 3)
    add_low_pass(blocks, one, other, grid, 0.25, 0.25, "reflect")
    assert torch.allclose(whole, blocks, rtol=0, atol=1e-14)


def test_an_accelerator_filters_few_blocks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, filtered = (4, 3, 2), list[int]()

    def counted(difference: Tensor, *rest: Any) -> Tensor:
        filtered.append(difference.shape[2])
        return low_pass(difference, *rest)

    one, other = features(grid, 1000), features(grid, 1000, seed=1)
    on_cpu, on_accelerator = other.clone(), other.clone()
    monkeypatch.setattr(freelong, "low_pass", counted)
    add_low_pass(on_cpu, one, other, grid, 0.25, 0.25, "reflect")
    monkeypatch.setattr(freelong, "costs_on", lambda _: ACCELERATOR)
    add_low_pass(on_accelerator, one, other, grid, 0.25, 0.25, "reflect")
    assert filtered == [256, 256, 256, 232] + [167] * 5 + [165]
    assert torch.allclose(on_cpu, on_accelerator, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_round_the_result_only(dtype: torch.dtype) -> None:
    grid = (21, 6, 9)
    global_, local = features(grid, seed=1).to(dtype), features(grid, seed=2).to(dtype)
    fused = FreeLong().fuse(attending(**{"global": global_, "local": local}), STEP, grid)
    exact = reference(global_.double(), local.double(), grid, 0.25, 0.25, "reflect")
    assert fused.dtype == dtype
    assert ((fused.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * (1 + exact.abs())).all()


def test_equal_branches_are_the_local_one_bit_for_bit() -> None:
    grid, x = (8, 5, 4), features((8, 5, 4))
    assert torch.equal(FreeLong().fuse(attending(**{"global": x, "local": x.clone()}), STEP, grid), x)


@pytest.mark.parametrize(("split", "fused"), [(0.0, 0), (0.5, 25), (1.0, 50)])
def test_both_branches_before_the_split_and_the_local_one_after(split: float, fused: int) -> None:
    names = [list(FreeLong(split=split).branches(full_attention(81), CLIP, step, 50)) for step in range(50)]
    assert names == [["global", "local"]] * fused + [["local"]] * (50 - fused)


@pytest.mark.parametrize(("window", "edge", "seen"), [(None, "shift", (21, 21)), (9, "shift", (9, 9)), (9, "clip", (5, 9))])
def test_the_local_branch_sees_a_window(window: int | None, edge: str, seen: tuple[int, int]) -> None:
    branches = FreeLong(window=window, edge=edge).branches(full_attention(81), CLIP, 0, 50)  # type: ignore[arg-type]
    assert branches["global"].is_stock
    visible = branches["local"].passes[0].visible
    assert (visible.sum(axis=1)[0], visible.sum(axis=1)[40]) == seen
    for frame, (start, stop) in enumerate(local_windows(81, window or 21, edge)):
        assert np.flatnonzero(visible[frame]).tolist() == list(range(start, stop))


@pytest.mark.parametrize("frames_lat", [1, 20, 21])
def test_native_length_is_the_backbone_s_own_attention(frames_lat: int) -> None:
    branches = FreeLong().branches(full_attention(frames_lat), Geometry(frames_lat, 21, (1.0,)), 0, 50)
    assert all(one.is_stock for one in branches.values())


def test_operations() -> None:
    assert FreeLong().flops((4, 3, 2), 5) == 24 * 5 * (1 + 2 * (4 + 3 + 2) + 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [("cutoff_time", 0), ("cutoff_space", 1.5), ("split", -0.1), ("boundary", "mirror"), ("window", 0), ("edge", "wrap")],
)
def test_wrong_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        FreeLong(**{key: value})  # type: ignore[arg-type]


def test_the_preset_takes_freenoise_s_noise_and_not_its_windows(tiny_plan: Callable[..., Plan]) -> None:
    made = tiny_plan("freelong", frames=321, steps=4)
    assert made.noise is not None
    assert type(made.noise).__name__ == "FreeNoise"
    assert [type(one).__name__ for one in preset.load("freelong").techniques] == ["FreeLong", "FreeNoise"]
    assert [act.name for act in made.techniques if act.layers] == ["freelong"]
    names = [list(program.branches) for program in made.programs if program]
    assert names == [["global", "local"], ["local"]]
    assert not tiny_plan("freelong", frames=81, steps=4).table.any()
