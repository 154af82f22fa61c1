"""GLC noise against the complex FFT of the equation, its variance and what it takes of the shuffled unit, and wrong values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longgen import planner, preset
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.frameplan import Geometry
from longgen.noise.glc import GlcNoise
from longgen.noise.shuffle import window_shuffle


def clip(frames_lat: int, native_lat: int = 8) -> Geometry:
    return Geometry(frames_lat, native_lat, (1.0,))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixed(technique: GlcNoise, noise: Tensor, native_lat: int = 8, seed: int = 1) -> Tensor:
    return technique.mix(noise, clip(noise.shape[2], native_lat), torch.Generator().manual_seed(seed))


def frequency(bin_: int, length: int) -> float:
    """In fractions of Nyquist, -1 .. 1."""
    return 2 * (bin_ if bin_ < (length + 1) // 2 else bin_ - length) / length


def filters(shape: tuple[int, ...], cutoff: float, high: str) -> tuple[Tensor, Tensor]:
    """H and Hc bin by bin."""
    low = torch.empty(shape, dtype=torch.float64)
    for place in np.ndindex(*shape):
        total = sum((frequency(bin_, length) / cutoff) ** 2 for bin_, length in zip(place, shape, strict=True))
        low[place] = math.exp(-total / 2)
    return low, (1 - low * low).sqrt() if high == "sqrt" else 1 - low


def by_fft(noise: Tensor, window: int, region: int, cutoff: float, high: str, seed: int = 1) -> Tensor:
    """The definition, by complex FFTs."""
    generator = torch.Generator().manual_seed(seed)
    unit = window_shuffle(noise, window, region, generator)
    fresh = torch.randn(noise.shape, generator=generator, dtype=noise.dtype)
    keep, rest = filters(tuple(noise.shape[2:]), cutoff, high)
    axes = (2, 3, 4)
    result = torch.fft.ifftn(
        keep * torch.fft.fftn(unit.double(), dim=axes) + rest * torch.fft.fftn(fresh.double(), dim=axes), dim=axes
    )
    assert result.imag.abs().max() < 1e-13
    return result.real


@pytest.mark.parametrize("cells", [(4, 6), (3, 5), (1, 1), (5, 1)], ids=str)
@pytest.mark.parametrize("frames_lat", [16, 21])
@pytest.mark.parametrize(("cutoff", "high"), [(0.25, "sqrt"), (0.25, "plain"), (0.7, "sqrt")])
def test_equals_the_complex_fft(frames_lat: int, cells: tuple[int, int], cutoff: float, high: str) -> None:
    technique = GlcNoise(cutoff=cutoff, high=high)  # type: ignore[arg-type]
    for dtype, most in ((torch.float64, 1e-14), (torch.float32, 3e-6)):
        noise = normal(2, 3, frames_lat, *cells, dtype=dtype)
        result = mixed(technique, noise)
        error = (result - by_fft(noise, 8, 2, cutoff, high)).abs().max()
        print(f"{frames_lat} x {cells} cutoff {cutoff} {high} {dtype}: {error:.1e}")
        assert error < most
        assert result.dtype == dtype


def test_half_precision_is_filtered_in_single() -> None:
    noise = normal(1, 2, 16, 3, 4).bfloat16()
    result = mixed(GlcNoise(), noise)
    assert result.dtype == torch.bfloat16
    assert (result.double() - by_fft(noise, 8, 2, 0.25, "sqrt")).abs().max() < 2e-2  # the rounding of the result alone


@pytest.mark.parametrize(("sets", "window", "region"), [({}, 8, 2), ({"window": 5}, 5, 1), ({"region": 7}, 8, 7)])
def test_window_and_region_set_the_shuffle(sets: dict[str, int], window: int, region: int) -> None:
    noise = normal(1, 2, 20, 3, 4)
    assert (mixed(GlcNoise(**sets), noise) - by_fft(noise, window, region, 0.25, "sqrt")).abs().max() < 3e-6  # type: ignore[arg-type]
    if sets:
        assert not torch.allclose(mixed(GlcNoise(**sets), noise), mixed(GlcNoise(), noise))  # type: ignore[arg-type]


def variance(frames_lat: int, window: int, region: int, cutoff: float, seed: int, cells: tuple[int, int]) -> np.ndarray:
    """The exact variance of every frame with "sqrt": (K R K^T)_ii of the unit's repeats R, by the temporal filter K."""
    numbers = torch.arange(frames_lat).view(1, 1, -1, 1, 1)
    source = window_shuffle(numbers, window, region, torch.Generator().manual_seed(seed)).flatten().numpy()
    time, down, across = (np.exp(-0.5 * (2 * np.fft.fftfreq(n) / cutoff) ** 2) for n in (frames_lat, *cells))
    index = np.arange(frames_lat)
    filtered = np.fft.ifft(time).real[(index[:, None] - index) % frames_lat]
    repeats = (source[:, None] == source).astype(float)
    extra = filtered @ (repeats - np.eye(frames_lat)) @ filtered.T
    return 1 + np.mean(down**2) * np.mean(across**2) * extra.diagonal()


def measured(result: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every frame, over channels and space."""
    frames = result[0].transpose(0, 1).flatten(1).double()
    return frames.mean(1).numpy(), frames.var(1).numpy()


@pytest.mark.parametrize("frames_lat", [9, 29])
def test_frames_stay_standard_normal(frames_lat: int) -> None:
    noise = normal(1, 4000, frames_lat, 6, 8)
    mean, var = measured(mixed(GlcNoise(), noise))
    exact = variance(frames_lat, 8, 2, 0.25, 1, (6, 8))
    print(f"worst frame of {frames_lat}: mean {abs(mean).max():.4f}, variance {var.min():.4f} .. {var.max():.4f}, "
          f"exact {exact.min():.4f} .. {exact.max():.4f}")  # fmt: skip
    assert abs(mean).max() < 0.01
    assert abs(var - exact).max() < 0.02  # 5 sigma of 192000 draws is 0.016
    assert abs(exact - 1).max() < 0.015


@pytest.mark.parametrize(("region", "cutoff", "cells", "most"),
                         [(None, 0.25, (60, 104), 0.0095), (None, 0.25, (4, 4), 0.013), ("all", 0.25, (60, 104), 0.0125),
                          ("all", 0.4, (60, 104), 0.033), ("all", 1.0, (60, 104), 0.09)])  # fmt: skip
def test_the_variance_that_the_header_states(region: str | None, cutoff: float, cells: tuple[int, int], most: float) -> None:
    for window in (5, 13, 21):
        for frames_lat in (window + 1, 2 * window, 4 * window - 3, 8 * window):
            for seed in range(5):
                step = window if region else max(1, round(window / 4))
                exact = variance(frames_lat, window, step, cutoff, seed, cells)
                assert abs(exact - 1).max() < most
                if region is None and window > 5 and frames_lat > 2 * window:
                    assert abs(exact[5:-5] - 1).max() < 0.001


def test_plain_loses_variance() -> None:
    noise = normal(1, 4000, 29, 6, 8)
    _, var = measured(mixed(GlcNoise(high="plain"), noise))
    low, high = filters((29, 6, 8), 0.25, "plain")
    expected = float((low**2 + high**2).mean())
    print(f"plain: {var.min():.3f} .. {var.max():.3f}, expected {expected:.3f}")
    assert expected < 0.965
    assert (var < 0.99).all()
    assert abs(var.mean() - expected) < 0.005
    for cutoff, loss in ((0.25, 0.04), (0.5, 0.26)):
        low, high = filters((21, 20, 30), cutoff, "plain")
        assert 1 - float((low**2 + high**2).mean()) == pytest.approx(loss, abs=0.005)


def test_low_frequencies_are_the_unit_and_high_ones_fresh() -> None:
    noise = normal(1, 3, 32, 8, 8)
    generator = torch.Generator().manual_seed(1)
    unit = window_shuffle(noise, 8, 2, generator)
    fresh = torch.randn(noise.shape, generator=generator)
    result, unit, fresh = (torch.fft.fftn(x.double(), dim=(2, 3, 4)) for x in (mixed(GlcNoise(), noise), unit, fresh))
    assert (result - unit)[..., 0, 0, 0].abs().max() < 1e-3  # the mean over everything, of sums of 2048 elements
    assert (result - fresh)[..., 16, 4, 4].abs().max() < 1e-3  # Nyquist on all axes
    share = float((filters((21, 60, 104), 0.25, "sqrt")[0] ** 2).mean())
    print(f"share of the variance that is the unit's: {share:.4f}")
    assert share == pytest.approx(0.011, abs=0.0005)


def test_the_same_seed_gives_the_same_noise() -> None:
    noise = normal(1, 3, 20, 4, 4)
    before = noise.clone()
    assert torch.equal(mixed(GlcNoise(), noise), mixed(GlcNoise(), noise))
    assert torch.equal(noise, before)
    assert not torch.allclose(mixed(GlcNoise(), noise), mixed(GlcNoise(), noise, seed=2))


@pytest.mark.parametrize(("frames_lat", "window"), [(1, None), (8, None), (8, 3), (12, 12)])
def test_noise_of_native_length_or_one_unit_is_left_as_it_is(frames_lat: int, window: int | None) -> None:
    noise = normal(1, 2, frames_lat, 2, 2)
    assert mixed(GlcNoise(window=window), noise) is noise


def test_noise_can_be_switched_off() -> None:
    stack = preset.load("direct").model_copy(update={"techniques": (GlcNoise(noise=False),), "sample": preset.Sample(frames=161)})
    assert planner.build(stack, TINY).noise is None
    stack = stack.model_copy(update={"techniques": (GlcNoise(),)})
    assert planner.build(stack, TINY).noise == GlcNoise()
    assert not planner.build(stack, TINY).table.any()


def test_a_region_longer_than_the_unit_is_refused() -> None:
    assert GlcNoise(region=8).sizes(clip(20)) == (8, 8)
    for technique in (GlcNoise(region=9), GlcNoise(window=4, region=9)):
        with pytest.raises(UsageError, match=r"glc-noise\.region = 9 is more than the unit of [84] latent frames") as caught:
            mixed(technique, normal(1, 1, 20, 2, 2))
        assert caught.value.expected in {"1 to 8", "1 to 4"}
        assert "--set glc-noise.region=" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("window", 0, "greater than or equal to 1"),
        ("region", 0, "greater than or equal to 1"),
        ("region", 2.5, "region"),
        ("cutoff", 0.0, "greater than 0"),
        ("cutoff", 1.1, "less than or equal to 1"),
        ("high", "none", "'sqrt' or 'plain'"),
        ("stride", 4, "Extra inputs"),
    ],
)
def test_wrong_values_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GlcNoise(**{key: value})  # type: ignore[arg-type]
