"""FreeNoise's passes against a loop over its windows, and its noise against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longgen import planner, preset
from longgen.backbones.wan import TINY
from longgen.context.freenoise import FreeNoise
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, Pass, distances, full_attention

CLIP = Geometry(81, 21, (1.0,))


def windows(frames_lat: int, window: int, stride: int) -> list[int]:
    starts = list(range(0, frames_lat - window + 1, stride))
    return starts if starts[-1] + window == frames_lat else [*starts, frames_lat - window]


def pyramid(window: int) -> list[int]:
    up = list(range(1, window // 2 + 1))
    return [*up, *([window // 2 + 1] if window % 2 else []), *reversed(up)]


def attention(one: Pass, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Dense masked attention of one token a frame, with a term in the relative time; zero for frames that see nothing."""
    logits = np.where(one.visible, q @ k.T - 0.05 * np.abs(one.rel), -np.inf)
    highest = np.where(one.visible.any(1), logits.max(1), 0)
    share = np.exp(logits - highest[:, None])
    return share / np.maximum(share.sum(1, keepdims=True), 1e-300) @ v


def by_windows(frame_plan: FramePlan, window: int, stride: int, weight: list[int], qkv: np.ndarray) -> np.ndarray:
    """The reference: attention window by window, accumulated and divided by the sum of the weights."""
    frames_lat = frame_plan.frames_lat
    total, weights = np.zeros_like(qkv[0]), np.zeros((frames_lat, 1))
    for start in windows(frames_lat, window, stride):
        inside = slice(start, start + window)
        output = sum(
            one.weight[inside, None]
            * attention(Pass(one.rel[inside, inside], one.visible[inside, inside], one.weight[inside]), *qkv[:, inside])
            for one in frame_plan.passes
        )
        total[inside] += np.array(weight)[:, None] * output
        weights[inside] += np.array(weight)[:, None]
    return total / weights


SIZES = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@settings(deadline=None, max_examples=150)
@given(SIZES, st.data())
def test_every_frame_is_covered_and_weights_sum_to_one(sizes: tuple[int, int], data: st.DataObject) -> None:
    window, stride = sizes
    frames_lat = data.draw(st.integers(window, window + 3 * stride))
    passes = FreeNoise(window=window, stride=stride).apply(full_attention(frames_lat), Geometry(frames_lat, window, (1.0,))).passes
    assert sum(p.weight for p in passes) == pytest.approx(np.ones(frames_lat), abs=1e-12)
    for one in passes:
        assert np.array_equal(one.visible.any(axis=1), one.weight > 0)
        assert np.diag(one.visible)[one.weight > 0].all()
    seen = sum(p.visible.astype(int) for p in passes)
    expected = np.zeros((frames_lat, frames_lat), dtype=int)
    for start in windows(frames_lat, window, stride):
        expected[start : start + window, start : start + window] += 1
    assert np.array_equal(seen, expected)  # every window once
    assert len(passes) == max(np.diag(expected))  # no fewer can hold them


@pytest.mark.parametrize("weights", ["pyramid", "uniform"])
@pytest.mark.parametrize(
    ("frames_lat", "window", "stride"), [(81, 21, 5), (41, 21, 5), (26, 16, 4), (27, 16, 4), (64, 16, 16), (37, 7, 3)]
)
def test_passes_equal_the_loop_over_windows(frames_lat: int, window: int, stride: int, weights: str) -> None:
    rng = np.random.default_rng(frames_lat)
    qkv = rng.standard_normal((3, frames_lat, 8))
    plain = full_attention(frames_lat)
    one = plain.passes[0]
    band = np.abs(distances(frames_lat)) <= 5
    several = FramePlan((Pass(one.rel / 2, one.visible, one.weight * 0.25), Pass(one.rel, band, one.weight * 0.75)))
    for given_plan in (plain, several):
        reshaped = FreeNoise(window=window, stride=stride, weights=weights).apply(given_plan, Geometry(frames_lat, 5, (1.0,)))
        found = sum(p.weight[:, None] * attention(p, *qkv) for p in reshaped.passes)
        expected = by_windows(given_plan, window, stride, pyramid(window) if weights == "pyramid" else [1] * window, qkv)
        error = np.abs(found - expected).max()
        print(f"T {frames_lat} W {window} S {stride} {weights}, {len(given_plan.passes)} passes in: largest difference {error:.1e}")
        assert error < 1e-12


def test_the_pyramid() -> None:
    assert pyramid(16) == [*range(1, 9), *range(8, 0, -1)]
    assert pyramid(21) == [*range(1, 12), *range(10, 0, -1)]
    first, second = FreeNoise(window=4, stride=2).apply(full_attention(6), Geometry(6, 4, (1.0,))).passes
    assert first.weight == pytest.approx([1, 1, 2 / 3, 1 / 3, 0, 0])
    assert second.weight == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize(("native", "stride"), [(21, 5), (16, 4), (13, 3), (33, 8), (2, 1), (1, 1)])
def test_defaults_are_the_native_window_and_a_quarter_of_it(native: int, stride: int) -> None:
    clip = Geometry(81, native, (1.0,))
    assert FreeNoise().sizes(clip) == (native, stride)
    assert (
        FreeNoise().apply(full_attention(81), clip).key
        == FreeNoise(window=native, stride=stride).apply(full_attention(81), clip).key
    )


def test_cost_on_wan() -> None:
    """13 windows of 21 frames at stride 5 and 7 at stride 10, in units of native attention."""
    for stride, windows in ((None, 13), (10, 7)):
        plan = FreeNoise(stride=stride).apply(full_attention(81), CLIP)
        assert sum(one.density for one in plan.passes) * 81**2 / 21**2 == pytest.approx(windows)
        held = sum(one.visible.astype(int) for one in plan.passes) > 0  # shared by the windows that hold a pair
        assert plan.density == pytest.approx(held.mean())


@pytest.mark.parametrize("frames_lat", [1, 20, 21])
def test_neutral_up_to_the_window(frames_lat: int) -> None:
    plain, clip = full_attention(frames_lat), Geometry(frames_lat, 21, (1.0,))
    noise = torch.randn(1, 2, frames_lat, 3, 3)
    assert FreeNoise().apply(plain, clip) is plain
    assert FreeNoise().mix(noise, clip, torch.Generator()) is noise
    assert FreeNoise(window=frames_lat, stride=1).mix(noise, clip, torch.Generator()) is noise


def test_windows_with_gaps_are_refused() -> None:
    with pytest.raises(UsageError, match=r"freenoise.stride = 22 is more than the window of 21(.|\n)*1 to 21(.|\n)*stride=21"):
        FreeNoise(stride=22).apply(full_attention(81), CLIP)
    with pytest.raises(UsageError, match=r"freenoise.stride = 22 is"):
        FreeNoise(stride=22).mix(torch.randn(1, 1, 81, 1, 1), CLIP, torch.Generator())


@pytest.mark.parametrize("option", [{}, {"window": 16, "stride": 4}, {"stride": 7}])
@pytest.mark.parametrize("frames_lat", [41, 64, 81, 82])
def test_noise_blocks_are_permutations_of_the_block_a_window_earlier(frames_lat: int, option: dict[str, int]) -> None:
    technique, clip = FreeNoise(**option), Geometry(frames_lat, 21, (1.0,))
    window, stride = technique.sizes(clip)
    noise = torch.randn(2, 3, frames_lat, 4, 5, generator=torch.Generator().manual_seed(0))
    before = noise.clone()
    mixed = technique.mix(noise, clip, torch.Generator().manual_seed(1))
    assert torch.equal(noise, before)
    assert mixed.shape == noise.shape
    assert mixed.dtype == noise.dtype
    assert torch.equal(mixed[:, :, :window], noise[:, :, :window])
    source = [[int(j) for j in range(window) if torch.equal(mixed[:, :, i], noise[:, :, j])] for i in range(frames_lat)]
    assert all(len(found) == 1 for found in source)  # whole frames of the first window, untouched: N(0, 1) as before
    order = [found[0] for found in source]
    shuffled = False
    for start in range(window, frames_lat, stride):
        block, earlier = order[start : start + stride], order[start - window : start - window + stride]
        assert len(set(block)) == len(block)
        assert set(block) <= set(earlier)
        shuffled |= block != earlier[: len(block)]
    assert shuffled


def test_noise_is_the_generator_s() -> None:
    noise = torch.randn(1, 4, 81, 2, 2, generator=torch.Generator().manual_seed(0))
    first, again, other = (FreeNoise().mix(noise, CLIP, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_and_noise_can_be_had_apart() -> None:
    both, windows_alone, noise_alone = (
        planner.build(preset.load("freenoise", sets, preset.Sample(frames=321)), TINY)
        for sets in ([], ["freenoise.noise=false"], ["freenoise.layers=[]"])
    )
    assert isinstance(both.noise, FreeNoise)
    assert (both.table > 0).all()
    assert windows_alone.noise is None
    assert (windows_alone.table > 0).all()
    assert isinstance(noise_alone.noise, FreeNoise)
    assert (noise_alone.table == 0).all()
