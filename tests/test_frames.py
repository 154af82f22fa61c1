"""Frames, durations and windows: integers only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgen import frames, units
from longgen.errors import UsageError

COUNTS = st.integers(1, 10_000)
STRIDES = st.integers(1, 16)
LENGTHS = st.integers(1, 120)
WINDOWS = st.integers(1, 150)
UNHURRIED = settings(deadline=None)  # a busy machine is no failure
EDGES = st.sampled_from(["shift", "clip"])


@UNHURRIED
@given(COUNTS, STRIDES)
def test_round_up_gives_the_next_count_that_the_model_makes(frames_px: int, stride: int) -> None:
    rounded = frames.round_up(frames_px, stride)
    assert frames_px <= rounded < frames_px + stride
    assert rounded % stride == 1 % stride
    assert frames.round_up(rounded, stride) == rounded


@UNHURRIED
@given(COUNTS, STRIDES)
def test_latent_and_pixel_frames_are_inverse(frames_lat: int, stride: int) -> None:
    frames_px = frames.pixel_frames(frames_lat, stride)
    assert frames.latent_frames(frames_px, stride) == frames_lat
    assert frames.latent_frames(frames_px + 1, stride) == frames_lat + 1


@pytest.mark.parametrize(
    ("frames_px", "stride", "frames_lat", "rounded"),
    [(1, 4, 1, 1), (2, 4, 2, 5), (81, 4, 21, 81), (320, 4, 81, 321), (321, 4, 81, 321), (322, 4, 82, 325), (49, 8, 7, 49)],
)
def test_counts_of_known_models(frames_px: int, stride: int, frames_lat: int, rounded: int) -> None:
    assert frames.latent_frames(frames_px, stride) == frames_lat
    assert frames.round_up(frames_px, stride) == rounded


@pytest.mark.parametrize(
    ("duration", "fps", "frames_px"),
    [
        ("20s", 16, 320),
        ("20", 16, 320),
        ("7.5", 16, 120),
        ("7.5s", 24, 180),
        ("2m", 16, 1920),
        ("1m30s", 16, 1440),
        ("1m30", 16, 1440),
        ("0.5m", 10, 300),
        (" 1M30S ", 10, 900),
        ("0.575s", 100, 58),  # 57.49999999999999 in floating point
        ("0.01s", 16, 1),
    ],
)
def test_durations(duration: str, fps: int, frames_px: int) -> None:
    assert units.duration_frames(duration, fps) == frames_px


@pytest.mark.parametrize(
    "duration",
    ["", " ", "s", "m", "soon", "1h", "-5s", "+5s", "1e3", "nan", ".5", "5.", "30s1m", "1m-3s", "5ss", "٣s"],
)
def test_what_is_no_duration_is_refused(duration: str) -> None:
    with pytest.raises(UsageError) as refusal:
        units.duration_frames(duration, 16)
    assert repr(duration) in str(refusal.value)
    assert "1m30s" in refusal.value.expected


@pytest.mark.parametrize(
    ("duration", "said"), [("0s", "is too short"), ("0", "is too short"), ("0m0.0s", "is too short"), ("9" * 5000, "not a time")]
)
def test_no_time_and_a_time_of_thousands_of_digits_are_refused(duration: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refusal:
        units.duration_frames(duration, 16)
    assert len(str(refusal.value)) < 400


@UNHURRIED
@given(LENGTHS, WINDOWS, EDGES)
def test_every_frame_has_a_window_and_sees_itself(frames_lat: int, window: int, edge: str) -> None:
    windows = frames.local_windows(frames_lat, window, edge)
    assert len(windows) == frames_lat
    assert all(0 <= start <= frame < stop <= frames_lat for frame, (start, stop) in enumerate(windows))


@UNHURRIED
@given(LENGTHS, WINDOWS)
def test_shifted_windows_keep_their_length(frames_lat: int, window: int) -> None:
    lengths = {stop - start for start, stop in frames.local_windows(frames_lat, window, "shift")}
    assert lengths == {min(window, frames_lat)}


@UNHURRIED
@given(LENGTHS, st.data())
def test_shifted_windows_that_hold_the_clip_are_the_clip(frames_lat: int, data: st.DataObject) -> None:
    window = data.draw(st.integers(frames_lat, 2 * frames_lat + 3))
    assert set(frames.local_windows(frames_lat, window, "shift")) == {(0, frames_lat)}


@UNHURRIED
@given(LENGTHS, WINDOWS)
def test_clipped_windows_are_centred_and_cut_at_the_ends(frames_lat: int, window: int) -> None:
    before, after = window // 2, (window - 1) // 2
    expected = [(max(0, i - before), min(frames_lat, i + after + 1)) for i in range(frames_lat)]
    assert list(frames.local_windows(frames_lat, window, "clip")) == expected


@UNHURRIED
@given(LENGTHS, WINDOWS)
def test_edges_differ_at_the_ends_only(frames_lat: int, window: int) -> None:
    shifted, clipped = (frames.local_windows(frames_lat, window, edge) for edge in ("shift", "clip"))
    for one, other in zip(shifted, clipped, strict=True):
        assert one == other or other[1] - other[0] < window


@pytest.mark.parametrize(
    ("window", "edge", "expected"),
    [
        (3, "shift", [(0, 3), (0, 3), (1, 4), (2, 5), (2, 5)]),
        (3, "clip", [(0, 2), (0, 3), (1, 4), (2, 5), (3, 5)]),
        (2, "shift", [(0, 2), (0, 2), (1, 3), (2, 4), (3, 5)]),
        (2, "clip", [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5)]),
        (1, "shift", [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
    ],
)
def test_windows_of_five_frames(window: int, edge: str, expected: list[tuple[int, int]]) -> None:
    assert list(frames.local_windows(5, window, edge)) == expected
