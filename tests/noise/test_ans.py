"""Antiphase noise against the recursion, its covariance and motion energy, in whole videos and chunk by chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longgen import planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.frameplan import Geometry
from longgen.noise.ans import Ans

RHOS = [-0.9, -0.5, 0.3]


def clip(frames_lat: int, native_lat: int = 8) -> Geometry:
    return Geometry(frames_lat, native_lat, (1.0,))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixed(noise: Tensor, **parameters: float) -> Tensor:
    return Ans(**parameters).mix(noise, clip(noise.shape[2]), torch.Generator())  # type: ignore[arg-type]


def slow(noise: Tensor, rho: float) -> Tensor:
    """The recursion, element by element, in double precision."""
    result = noise.double().clone()
    for place in np.ndindex(*noise.shape):
        batch, channel, frame, *cell = place
        if frame:
            before = float(result[(batch, channel, frame - 1, *cell)])
            result[place] = rho * before + (1 - rho**2) ** 0.5 * float(noise[place])
    return result


@pytest.mark.parametrize("rho", RHOS)
def test_equals_the_recursion(rho: float) -> None:
    for dtype, most in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        noise = normal(2, 3, 12, 2, 2).to(dtype)
        result = mixed(noise, rho=rho)
        difference = (result.double() - slow(noise, rho)).abs().max().item()
        print(f"rho {rho} {dtype}: {difference:.1e}")
        assert result.dtype == dtype
        assert difference < most  # the rounding of the result alone


def test_by_default_neighbours_are_half_opposed() -> None:
    noise = normal(1, 2, 12, 2, 2)
    assert torch.equal(mixed(noise), mixed(noise, rho=-0.5))


@pytest.mark.parametrize("rho", RHOS)
def test_covariance_and_motion_energy(rho: float) -> None:
    """Of 60,000 independent series: estimates stray by about their square root, five times which is allowed."""
    count = 60_000
    series = mixed(normal(1, count, 10, 1, 1), rho=rho)[0, :, :, 0, 0].double()
    frames = np.arange(10)
    covariance = (series.T @ series / count).numpy()
    expected = rho ** np.abs(frames[:, None] - frames)
    energy = (series[:, 1:] - series[:, :-1]).square().mean(dim=0).numpy()
    error = abs(covariance - expected).max()
    print(f"rho {rho}: covariance off by {error:.4f}, motion energy {energy.mean():.3f}, expected {2 * (1 - rho):.3f}")
    assert abs(series.mean(dim=0)).max() < 5 / count**0.5
    assert error < 5 * (2 / count) ** 0.5  # the variance of a variance is 2 / n, of a covariance less
    assert energy == pytest.approx(np.full(9, 2 * (1 - rho)), rel=5 * (2 / count) ** 0.5)


@pytest.mark.parametrize("pieces", [[3, 3, 3, 3], [1] * 12, [4, 4, 4], [12], [5, 7]], ids=str)
def test_chunk_by_chunk_is_the_whole(pieces: list[int]) -> None:
    noise, technique = normal(1, 3, 12, 2, 2), Ans()
    made: list[Tensor] = []
    for piece in noise.split(pieces, dim=2):
        made.append(technique.mix_chunk(piece, made[-1][:, :, -1:] if made else None))
    assert torch.equal(torch.cat(made, dim=2), mixed(noise))


@pytest.mark.parametrize("frames_lat", [1, 5, 8])
def test_neutral_up_to_native_length(frames_lat: int) -> None:
    noise = normal(1, 2, frames_lat, 2, 2)
    assert Ans().mix(noise, clip(frames_lat), torch.Generator()) is noise


def test_neutral_without_correlation() -> None:
    noise = normal(1, 2, 12, 2, 2)
    assert mixed(noise, rho=0.0) is noise
    assert Ans(rho=0.0).mix_chunk(noise, noise[:, :, :1]) is noise


def test_the_noise_it_is_given_stays() -> None:
    noise = normal(1, 2, 12, 2, 2)
    before = noise.clone()
    mixed(noise)
    assert torch.equal(noise, before)


def test_it_makes_the_noise_of_clips_and_of_rollouts() -> None:
    stack = preset.load("direct").model_copy(update={"techniques": (Ans(),), "sample": preset.Sample(frames=161)})
    for spec in (TINY, SELF_FORCING):
        made = planner.build(stack, spec)
        assert made.noise == Ans()
        assert not any("ans" in note for note in made.notes)
        silent = stack.model_copy(update={"techniques": (Ans(noise=False),)})
        assert planner.build(silent, spec).noise is None


@pytest.mark.parametrize("rho", [-1.0, 1.0, 1.5])
def test_wrong_values_are_refused(rho: float) -> None:
    with pytest.raises(ValidationError, match="rho"):
        Ans(rho=rho)
    with pytest.raises(UsageError, match=f"ans.rho = {rho}"):
        preset.load("flex", [f"ans.rho={rho}"])
