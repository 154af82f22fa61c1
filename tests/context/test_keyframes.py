"""Key frames against a slow reference in loops over numpy histograms, and the table of the window."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen.context.keyframes import Keyframes, MostInformative, scores
from longgen.errors import UsageError
from longgen.frameplan import Geometry, distances, full_attention


def clip(frames_lat: int, native_lat: int = 21) -> Geometry:
    return Geometry(frames_lat, native_lat, (1.0,))


def features(frames_lat: int, tokens: int = 60, channels: int = 16, seed: int = 0) -> Tensor:
    """Frames that differ in how varied they are and in how much they change."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(frames_lat, 1, 1, generator=generator) ** 3
    drift = torch.randn(frames_lat, 1, channels, generator=generator).cumsum(0)
    return drift + spread * torch.randn(frames_lat, tokens, channels, generator=generator)


def criteria_by_loops(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and difference [T] of features [T, n, C], before they are scaled."""
    entropy, difference = np.zeros(len(x)), np.zeros(len(x))
    for reduce in (np.max, np.mean, np.min):
        plane = np.array([[reduce(token) for token in frame] for frame in x], dtype=np.float64)
        if plane.max() == plane.min():
            plane[:] = 0
        else:
            plane = 255 * (plane - plane.min()) / (plane.max() - plane.min())
        for frame in range(len(x)):
            counts, _ = np.histogram(plane[frame], bins=256, range=(0, 255))
            entropy[frame] -= sum(c / counts.sum() * math.log(c / counts.sum()) for c in counts if c) / 3
            if frame:
                difference[frame] += np.abs(plane[frame] - plane[frame - 1]).mean() / 3
    return entropy, difference


def scores_by_loops(x: np.ndarray) -> np.ndarray:
    total = np.zeros(len(x))
    for row in criteria_by_loops(x):
        if row.max() > row.min():
            total += (row - row.min()) / (row.max() - row.min())
    return total


def chosen_by_loops(score: np.ndarray, segments: int) -> list[int]:
    return [int(part[np.argmax(score[part])]) for part in np.array_split(np.arange(len(score)), segments)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("frames_lat", "segments"), [(81, 8), (41, 4), (23, 5), (7, 7), (9, 1)])
def test_scores_and_choice_equal_loops(frames_lat: int, segments: int, seed: int) -> None:
    x = features(frames_lat, seed=seed)
    expected = scores_by_loops(x.numpy())
    error = np.abs(scores(x).numpy() - expected).max()
    print(f"T {frames_lat} seed {seed}: largest difference of scores {error:.1e}")
    assert error < 1e-5
    assert MostInformative(segments).choose(x).tolist() == chosen_by_loops(expected, segments)


def test_both_criteria_decide() -> None:
    x = features(41)
    entropy, difference = criteria_by_loops(x.numpy())
    frames = chosen_by_loops(scores_by_loops(x.numpy()), 4)
    assert frames != chosen_by_loops(entropy, 4)
    assert frames != chosen_by_loops(difference, 4)
    assert MostInformative(4).choose(x).tolist() == frames


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_count_in_single_precision(dtype: torch.dtype) -> None:
    x = features(23).to(dtype)
    assert scores(x).dtype == torch.float32
    error = np.abs(scores(x).numpy() - scores_by_loops(x.double().numpy())).max()
    assert error < 1e-5


def test_the_edges_of_the_histogram() -> None:
    """The largest value falls in the last bin, and each 256th of the range begins a bin of its own."""
    ramp = torch.arange(257).repeat(2, 1).unsqueeze(-1) / 256.0
    expected = -(255 * (1 / 257) * math.log(1 / 257) + 2 / 257 * math.log(2 / 257))
    entropy, _ = criteria_by_loops(ramp.numpy())
    assert entropy == pytest.approx(expected)
    flat = torch.zeros(3, 257, 1)
    flat[1] = ramp[0]
    assert scores(flat).tolist() == pytest.approx([0.0, 2.0, 1.0])  # entropy 0, 1, 0; difference 0, 1, 1


def test_equal_frames_give_the_first_of_each_segment() -> None:
    assert MostInformative(3).choose(torch.ones(10, 5, 4)).tolist() == [0, 4, 7]
    alternating = features(1).repeat(12, 1, 1)
    assert MostInformative(4).choose(alternating).tolist() == [0, 3, 6, 9]


def test_scale_and_offset_of_the_features_do_not_matter() -> None:
    x = features(41)
    assert torch.equal(MostInformative(4).choose(x * 8 + 16), MostInformative(4).choose(x))


@pytest.mark.parametrize(
    ("frames_lat", "native_lat", "window", "segments"), [(81, 21, 10, 8), (41, 21, 10, 4), (61, 16, 8, 8), (3, 2, 1, 3)]
)
def test_defaults(frames_lat: int, native_lat: int, window: int, segments: int) -> None:
    plan = Keyframes().apply(full_attention(frames_lat), clip(frames_lat, native_lat))
    assert np.array_equal(plan.passes[0].visible, np.abs(distances(frames_lat)) <= window)
    assert plan.key_frames == MostInformative(segments)
    assert plan.key_frames.count(frames_lat) == segments == len(plan.key_frames.choose(features(frames_lat)))


def test_options() -> None:
    plan = Keyframes(window=4, segments=6).apply(full_attention(41), clip(41))
    assert np.array_equal(plan.passes[0].visible, np.abs(distances(41)) <= 4)
    assert plan.key_frames == MostInformative(6)
    keys = {Keyframes(window=w, segments=s).apply(full_attention(41), clip(41)).key for w in (4, 5) for s in (6, 7)}
    assert len(keys) == 4  # the digest holds both
    assert repr(plan.key_frames) == "MostInformative(segments=6)"  # and is the same in every process


def test_density_counts_the_key_frames() -> None:
    plan = Keyframes().apply(full_attention(81), clip(81))
    band = float((np.abs(distances(81)) <= 10).mean())
    assert plan.density == pytest.approx(band + 8 / 81 * (1 - band))


@pytest.mark.parametrize(("option", "frames_lat"), [({}, 1), ({}, 21), ({"window": 40}, 41), ({"window": 20, "segments": 3}, 21)])
def test_neutral_where_the_window_is_the_clip(option: dict[str, int], frames_lat: int) -> None:
    plain = full_attention(frames_lat)
    assert Keyframes(**option).apply(plain, clip(frames_lat)) is plain


def test_a_given_window_counts_at_native_length_too() -> None:
    assert not Keyframes(window=3).apply(full_attention(21), clip(21)).is_stock


def test_more_segments_than_frames_are_refused() -> None:
    with pytest.raises(UsageError, match=r"keyframes.segments = 42, but the clip has 41 latent frames(.|\n)*1 to 41"):
        Keyframes(segments=42).apply(full_attention(41), clip(41))
