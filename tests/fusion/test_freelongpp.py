"""FreeLong++ against the banded FFT of the definition, its bands, its branches, and SpecMix against its formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from longgen import cost, preset
from longgen.errors import UsageError
from longgen.frameplan import Geometry, full_attention
from longgen.frames import local_windows
from longgen.fusion.freelong import FreeLong, kernel
from longgen.fusion.freelongpp import FreeLongPlusPlus
from longgen.noise.shuffle import window_shuffle
from longgen.plan import Plan
from longgen.technique import Step

STEP = Step(0, (1000.0, 500.0))
GRID, SMALL = (16, 3, 4), Geometry(16, 4, (1.0,))  # four times the native length, as 81 of 21 is


def features(names: list[str], seed: int = 0, grid: tuple[int, int, int] = GRID) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, math.prod(grid), 5, generator=generator, dtype=torch.float64) for name in names}


def gaussian(length: int, cutoff: float) -> Tensor:
    return torch.exp(-0.5 * (2 * torch.fft.fftfreq(length, dtype=torch.float64) / cutoff) ** 2)


def bands(grid: tuple[int, int, int], scales: list[float], cutoff_space: float | None) -> list[Tensor]:
    """P_1 .. P_L over the three-dimensional spectrum: what lies between a scale's edge and the next one's."""
    lowest = []
    for scale in scales[1:]:
        factor = gaussian(grid[0], 1 / (2 * scale))[:, None, None].expand(grid)
        if cutoff_space is not None:
            factor = factor * gaussian(grid[1], cutoff_space)[:, None] * gaussian(grid[2], cutoff_space)
        lowest.append(factor)
    edges = [torch.ones(grid, dtype=torch.float64), *lowest, torch.zeros(grid, dtype=torch.float64)]
    return [wide - narrow for wide, narrow in itertools.pairwise(edges)]


def by_fft(branches: dict[str, Tensor], scales: list[float], cutoff_space: float | None) -> Tensor:
    """The definition: IFFT3(sum over l of P_l FFT3(Z_l))."""
    spectrum = sum(
        band[..., None] * torch.fft.fftn(z.unflatten(1, GRID), dim=(1, 2, 3))
        for band, z in zip(bands(GRID, scales, cutoff_space), branches.values(), strict=True)
    )
    assert isinstance(spectrum, Tensor)
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real.flatten(1, 3)


@pytest.mark.parametrize("space", [0.25, 0.6, "all"])
@pytest.mark.parametrize("scales", [(1, 2, 4), (1, 4), (0.5, 1, 3, 4)], ids=str)
def test_equals_the_banded_fft(scales: tuple[float, ...], space: object) -> None:
    technique = FreeLongPlusPlus(scales=scales, cutoff_space=space, boundary="circular").settled(SMALL)  # type: ignore[arg-type]
    branches = features([f"{scale:g}x" for scale in scales])
    before = {name: z.clone() for name, z in branches.items()}
    fused = technique.fuse(branches.__getitem__, STEP, GRID)
    exact = by_fft(branches, list(scales), None if space == "all" else space)  # type: ignore[arg-type]
    error = (fused - exact).abs().max()
    print(f"scales {scales} cutoff_space {space}: {error:.1e}")
    assert error < 2e-14
    assert all(torch.equal(z, before[name]) for name, z in branches.items())


def test_the_reflecting_boundary_is_the_sum_of_blurs() -> None:
    branches = features(["1x", "2x", "4x"])

    def blur(x: Tensor, cutoff: float) -> Tensor:
        matrices = [torch.from_numpy(kernel(n, c, "reflect")) for n, c in zip(GRID, (cutoff, 0.25, 0.25), strict=True)]
        return torch.einsum("ts,ij,kl,bsjlc->btikc", *matrices, x.unflatten(1, GRID)).flatten(1, 3)

    expected = branches["1x"] + blur(branches["2x"] - branches["1x"], 1 / 4) + blur(branches["4x"] - branches["2x"], 1 / 8)
    fused = FreeLongPlusPlus().settled(SMALL).fuse(branches.__getitem__, STEP, GRID)
    assert (fused - expected).abs().max() < 1e-14
    other = FreeLongPlusPlus(boundary="circular").settled(SMALL).fuse(branches.__getitem__, STEP, GRID)
    assert not torch.allclose(fused, other)


@pytest.mark.parametrize("space", [0.25, None])
def test_bands_sum_to_one_exactly(space: float | None) -> None:
    """Impulses in one branch at a time: the responses of all branches add up to the impulse, at every frequency."""
    technique = FreeLongPlusPlus(cutoff_space=space or "all", boundary="circular").settled(SMALL)
    total = torch.zeros(1, math.prod(GRID), 1, dtype=torch.float64)
    for active, band in zip(["1x", "2x", "4x"], bands(GRID, [1, 2, 4], space), strict=True):
        impulse = {name: torch.zeros_like(total) for name in ("1x", "2x", "4x")}
        impulse[active][0, 0, 0] = 1
        answer = technique.fuse(impulse.__getitem__, STEP, GRID)
        assert (torch.fft.fftn(answer.view(GRID)) - band).abs().max() < 1e-14
        total += answer
    assert (torch.fft.fftn(total.view(GRID)) - 1).abs().max() < 1e-14


@pytest.mark.parametrize("boundary", ["circular", "reflect"])
def test_two_scales_are_freelong(boundary: str) -> None:
    z = features(["1x", "4x"])
    one = FreeLongPlusPlus(scales=(1, 4), boundary=boundary).settled(SMALL).fuse(z.__getitem__, STEP, GRID)  # type: ignore[arg-type]
    named = {"local": z["1x"], "global": z["4x"]}
    other = FreeLong(cutoff_time=1 / 8, boundary=boundary).fuse(named.__getitem__, STEP, GRID)  # type: ignore[arg-type]
    assert torch.equal(one, other)


def test_equal_branches_are_themselves_bit_for_bit() -> None:
    z = features(["1x"])["1x"]
    assert torch.equal(FreeLongPlusPlus().settled(SMALL).fuse(lambda name: z.clone(), STEP, GRID), z)


@pytest.mark.parametrize(
    ("frames_lat", "names"),
    [(22, ["1x", "2x"]), (42, ["1x", "2x"]), (43, ["1x", "2x", "4x"]), (81, ["1x", "2x", "4x"]), (161, ["1x", "2x", "4x", "8x"])],
)
def test_scales_double_up_to_the_clip(frames_lat: int, names: list[str]) -> None:
    branches = FreeLongPlusPlus().branches(full_attention(frames_lat), Geometry(frames_lat, 21, (1.0,)), 0, 10)
    assert list(branches) == names
    assert branches[names[-1]].is_stock
    for level, name in enumerate(names[:-1]):
        for frame, (start, stop) in enumerate(local_windows(frames_lat, 21 * 2**level, "shift")):
            assert np.flatnonzero(branches[name].passes[0].visible[frame]).tolist() == list(range(start, stop))


@pytest.mark.parametrize("sets", [{}, {"sparse": True}, {"scales": (0.5, 1, 2)}])
@pytest.mark.parametrize("frames_lat", [1, 20, 21])
def test_native_length_is_the_plan_itself(frames_lat: int, sets: dict[str, object]) -> None:
    frame_plan = full_attention(frames_lat)
    branches = FreeLongPlusPlus(**sets).branches(frame_plan, Geometry(frames_lat, 21, (1.0,)), 0, 10)  # type: ignore[arg-type]
    assert list(branches.values()) == [frame_plan]


def test_window_and_scales_set_the_windows() -> None:
    clip = Geometry(81, 21, (1.0,))
    branches = FreeLongPlusPlus(window=9, scales=(0.5, 3)).branches(full_attention(81), clip, 0, 10)
    seen = {name: set(one.passes[0].visible.sum(axis=1)) for name, one in branches.items()}
    assert seen == {"0.5x": {4}, "3x": {27}}
    assert list(FreeLongPlusPlus(scales=(1, 4, 8)).branches(full_attention(81), clip, 0, 10)) == ["1x", "4x"]  # 4 holds the clip


def test_sparse_halves_the_keys_of_the_global_branch_alone() -> None:
    clip = Geometry(81, 21, (1.0,))
    dense, sparse = (FreeLongPlusPlus(sparse=s).branches(full_attention(81), clip, 0, 10) for s in (False, True))
    assert (sparse["4x"].passes[0].visible == (np.arange(81) % 2 == 0)).all()
    assert sparse["4x"].density == pytest.approx(41 / 81)
    assert all(sparse[name].key == dense[name].key for name in ("1x", "2x"))
    with pytest.raises(UsageError, match=r"freelongpp\.sparse = true, but no branch sees all 81") as caught:
        FreeLongPlusPlus(sparse=True, scales=(1, 2)).branches(full_attention(81), clip, 0, 10)
    assert caught.value.expected
    assert "--set freelongpp.sparse=false" in caught.value.hint


@pytest.mark.parametrize(("split", "fused"), [(1.0, 10), (0.3, 3), (0.0, 0)])
def test_the_first_branch_alone_after_the_split(split: float, fused: int) -> None:
    clip = Geometry(81, 21, (1.0,))
    names = [list(FreeLongPlusPlus(split=split).branches(full_attention(81), clip, step, 10)) for step in range(10)]
    assert names == [["1x", "2x", "4x"]] * fused + [["1x"]] * (10 - fused)


def test_operations_count_every_branch_but_one() -> None:
    tokens, channels = math.prod(GRID), 7
    assert FreeLongPlusPlus().settled(SMALL).flops(GRID, channels) == 2 * tokens * channels * (2 + 2 * sum(GRID))
    in_time = FreeLongPlusPlus(cutoff_space="all").settled(SMALL)
    assert in_time.flops(GRID, channels) == 2 * tokens * channels * (2 + 2 * GRID[0])


@pytest.mark.parametrize(("frames_lat", "window"), [(16, None), (17, None), (10, 3)])
def test_noise_equals_the_formula(frames_lat: int, window: int | None) -> None:
    noise = torch.randn(2, 3, frames_lat, 2, 2, generator=torch.Generator().manual_seed(0))
    technique = FreeLongPlusPlus(window=window)
    mixed = technique.mix(noise, Geometry(frames_lat, 8, (1.0,)), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    base = window_shuffle(noise, window or 8, 2 if window is None else 1, generator)
    fresh = torch.randn(noise.shape, generator=generator)
    for t in range(frames_lat):
        theta = abs(t - (frames_lat - 1) / 2) / ((frames_lat - 1) / 2) * math.pi / 2
        assert (mixed[:, :, t] - (math.cos(theta) * base[:, :, t] + math.sin(theta) * fresh[:, :, t])).abs().max() < 1e-6
    assert (mixed[:, :, 0] - fresh[:, :, 0]).abs().max() < 1e-6  # the ends are fresh
    if frames_lat == 17:
        assert torch.equal(mixed[:, :, 8], base[:, :, 8])  # the middle is the base


def test_noise_stays_standard_normal() -> None:
    noise = torch.randn(1, 16, 33, 60, 60, generator=torch.Generator().manual_seed(0))
    mixed = FreeLongPlusPlus().mix(noise, Geometry(33, 8, (1.0,)), torch.Generator().manual_seed(1))
    frames = mixed[0].transpose(0, 1).flatten(1)
    print(f"worst frame: mean {frames.mean(1).abs().max():.4f}, variance off by {(frames.var(1) - 1).abs().max():.4f}")
    assert frames.mean(1).abs().max() < 0.02
    assert (frames.var(1) - 1).abs().max() < 0.03


@pytest.mark.parametrize(("frames_lat", "window"), [(1, None), (8, None), (8, 3), (12, 12)])
def test_noise_of_native_length_or_one_window_is_left_as_it_is(frames_lat: int, window: int | None) -> None:
    noise = torch.randn(1, 2, frames_lat, 2, 2)
    assert FreeLongPlusPlus(window=window).mix(noise, Geometry(frames_lat, 8, (1.0,)), torch.Generator()) is noise


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scales", (1, 2, 2), "must increase"),
        ("scales", (4, 1), "must increase"),
        ("scales", (), "at least 1 item"),
        ("scales", (0, 1), "greater than 0"),
        ("split", 1.1, "less than or equal to 1"),
        ("cutoff_space", 0, "cutoff_space"),
        ("cutoff_space", "none", "cutoff_space"),
        ("boundary", "zero", "boundary"),
        ("window", 0, "window"),
    ],
)
def test_wrong_values_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FreeLongPlusPlus(**{key: value})  # type: ignore[arg-type]


def test_the_preset_and_its_overrides_parse() -> None:
    shipped = preset.load("freelongpp", ["freelongpp.scales=[1, 4]", "freelongpp.cutoff_space=all", "freelongpp.noise=false"])
    assert shipped.techniques == (FreeLongPlusPlus(scales=(1, 4), cutoff_space="all", noise=False),)


def test_a_plan_fills_in_what_fuse_needs(tiny_plan: Callable[..., Plan]) -> None:
    made = tiny_plan("freelongpp", frames=321, steps=4)
    fusions = [program.fusion for program in made.programs if program and program.fusion]
    assert fusions == [FreeLongPlusPlus(window=21)]
    assert cost.ratio(made) > 1
    assert not tiny_plan("freelongpp", frames=81, steps=4).table.any()
