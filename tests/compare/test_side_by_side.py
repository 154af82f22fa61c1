"""The pixels of the side-by-side video and of the contact sheet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from longgen.compare.layout import BAR, GAP, HEIGHT, LABEL, TITLE, WIDTH, fit_frame, fit_text, fitted_size, layout, text_strip
from longgen.compare.side_by_side import NAMES, Tile, write
from longgen.video import Writer, read_frames
from longgen.video_info import facts

SIZE = (64, 48)
HOSTILE = ["", " ", "🎈🎉", "日本語", "ع", "a\nb\tc", "\x00\x07\x1b[31m", "<b>&amp;", "x" * 5000, "\ud800", "e\u0301", "👩‍👩‍👧"]


def film(path: Path, colours: list[tuple[int, int, int]], fps: float = 8, size: tuple[int, int] = SIZE, held: int = 4) -> Tile:
    """A video of plain colours, each for `held` frames, as a tile."""
    with Writer(path, size, fps, {}) as writer:
        for colour in colours:
            writer.add(np.full((held, size[1], size[0], 3), colour, np.uint8))
    return Tile(path.stem, path, size, fps, held * len(colours), path.stem)


def frames_of(path: Path) -> tuple[float, np.ndarray]:
    """Frames a second, and all frames."""
    reader = imageio_ffmpeg.read_frames(str(path))
    head = next(reader)
    reader.close()
    return head["fps"], np.stack([*read_frames(path, head["size"])])


RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 160, 40), (40, 50, 190), (128, 128, 128)


def test_tiles_show_their_videos_frame_by_frame(tmp_path: Path) -> None:
    tiles = [film(tmp_path / "a.mp4", [RED, GREEN]), film(tmp_path / "b.mp4", [GREY, BLUE])]
    seen: list[tuple[int, int]] = []
    write(
        tiles,
        2,
        "a title",
        tmp_path / "side" / "x.mp4",
        tmp_path / "sheets" / "x.png",
        lambda now: seen.append((now.done, now.total)),
    )
    fps, frames = frames_of(tmp_path / "side" / "x.mp4")
    place = layout([SIZE, SIZE], 2)
    assert (fps, len(frames), frames.shape[2:0:-1]) == (8, 8, place.size)
    assert place.box == (384, 288)
    assert seen == [(done, 8) for done in range(9)]
    for number, colours in enumerate(([RED] * 4 + [GREEN] * 4, [GREY] * 4 + [BLUE] * 4)):
        left, top = place.corner(number)
        tile = frames[:, top + LABEL + 8 : top + LABEL + 280, left + 8 : left + 376].astype(int)
        for frame, colour in zip(tile, colours, strict=True):
            assert np.abs(frame - colour).mean() < 4
            assert np.abs(frame - colour).max() < 24  # of two lossy encodings
        assert frames[0, top : top + LABEL, left : left + 40].max() > 200  # the label
    assert frames[0, :TITLE, :60].max() > 180  # the title
    line = frames[:, -BAR // 2, : place.size[0] - 150].mean(axis=-1)  # the bar of time
    lengths = (line > 200).sum(axis=1)
    assert np.abs(lengths - (place.size[0] - 154) * np.arange(1, 9) / 8).max() < 6


def test_the_sheet_has_a_row_for_each_tile_and_moments_across(tmp_path: Path) -> None:
    tiles = [film(tmp_path / "a.mp4", [RED, GREEN]), film(tmp_path / "b.mp4", [GREY], held=4), Tile("c")]
    write(tiles, 3, "t", tmp_path / "x.mp4", tmp_path / "x.png")
    sheet = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    width, height = 192, 144  # 64x48 three times as large: eight columns beside the names in 1920
    assert sheet.shape == (TITLE + LABEL + 3 * (height + GAP), NAMES + 8 * (width + GAP), 3)

    def middle(row: int, column: int) -> np.ndarray:
        return sheet[TITLE + LABEL + row * (height + GAP) + height // 2, NAMES + column * (width + GAP) + width // 2]

    assert np.abs(middle(0, 0) - RED).max() < 16
    assert np.abs(middle(0, 7) - GREEN).max() < 16
    assert np.abs(middle(1, 3) - GREY).max() < 16
    assert middle(1, 4).max() == middle(1, 7).max() == 0  # ended
    assert middle(2, 0).max() == 0  # failed


def test_a_short_video_stops_at_its_last_frame(tmp_path: Path) -> None:
    tiles = [film(tmp_path / "a.mp4", [RED]), film(tmp_path / "b.mp4", [GREY, BLUE, GREEN])]
    write(tiles, 2, "t", tmp_path / "x.mp4", tmp_path / "x.png")
    _, frames = frames_of(tmp_path / "x.mp4")
    left, top = layout([SIZE, SIZE], 2).corner(0)
    assert len(frames) == 12
    assert np.abs(frames[11, top + 150, left + 190].astype(int) - RED).max() < 16
    labels = frames[:, top : top + LABEL, left : left + 120].astype(int)
    assert np.abs(labels[3] - labels[0]).mean() < 2
    assert np.abs(labels[4] - labels[0]).mean() > 4  # it now says that it has ended


def test_videos_of_other_rates_and_sizes_are_matched_by_time(tmp_path: Path) -> None:
    slow = film(tmp_path / "slow.mp4", [RED, GREEN], fps=4, held=2)  # green from 0.5 s on
    fast = film(tmp_path / "fast.mp4", [GREY, BLUE], fps=8, size=(32, 64), held=4)
    write([slow, fast], 2, "t", tmp_path / "x.mp4", tmp_path / "x.png")
    fps, frames = frames_of(tmp_path / "x.mp4")
    place = layout([SIZE, (32, 64)], 2)
    assert (fps, len(frames)) == (8, 8)
    for number, colours in enumerate(((RED, GREEN), (GREY, BLUE))):
        left, top = place.corner(number)
        at = frames[:, top + LABEL + place.box[1] // 2, left + place.box[0] // 2].astype(int)
        assert np.abs(at - np.repeat(colours, 4, axis=0)).max() < 16


def test_frames_of_varying_intervals_are_shown_for_their_own_time(tmp_path: Path) -> None:
    even = film(tmp_path / "even.mp4", [RED, GREEN, BLUE, GREY], held=1)  # at 8 a second
    varying = dataclasses.replace(
        film(tmp_path / "varying.mp4", [RED, GREEN, BLUE], fps=8, held=1), fps=6, times=(0, 0.125, 0.375, 0.5)
    )
    write([even, varying], 2, "t", tmp_path / "x.mp4", tmp_path / "x.png")
    fps, frames = frames_of(tmp_path / "x.mp4")
    place = layout([SIZE, SIZE], 2)
    assert (fps, len(frames)) == (8, 4)
    for number, colours in enumerate(([RED, GREEN, BLUE, GREY], [RED, GREEN, GREEN, BLUE])):
        left, top = place.corner(number)
        at = frames[:, top + LABEL + place.box[1] // 2, left + place.box[0] // 2].astype(int)
        assert np.abs(at - colours).max() < 16
    before = (tmp_path / "x.mp4").stat().st_mtime_ns
    write([even, varying], 2, "t", tmp_path / "x.mp4", tmp_path / "x.png")
    assert (tmp_path / "x.mp4").stat().st_mtime_ns == before


@pytest.mark.parametrize("rate", [2.5, 30000 / 1001])
def test_one_rate_is_kept_whatever_it_is(tmp_path: Path, rate: float) -> None:
    write([film(tmp_path / "a.mp4", [RED, BLUE], fps=rate)], 1, "t", tmp_path / "x.mp4", tmp_path / "x.png")
    assert facts(tmp_path / "x.mp4").fps == pytest.approx(rate, abs=0.001)


def test_nothing_is_written_again_until_something_changes(tmp_path: Path) -> None:
    tile = film(tmp_path / "a.mp4", [RED])
    video, sheet = tmp_path / "x.mp4", tmp_path / "x.png"
    write([tile], 1, "t", video, sheet)
    before = video.stat().st_mtime_ns
    write([tile], 1, "t", video, sheet)
    assert video.stat().st_mtime_ns == before
    write([tile], 1, "another title", video, sheet)
    assert video.stat().st_mtime_ns > before
    sheet.unlink()
    write([tile], 1, "another title", video, sheet)
    assert sheet.is_file()


@pytest.mark.parametrize("size", [(64, 64), (832, 480), (480, 832), (1920, 1080), (3840, 2160), (17, 33)])
@pytest.mark.parametrize(("count", "row"), [(1, 1), (2, 2), (5, 5), (10, 5), (24, 6), (100, 10)])
def test_any_number_of_tiles_fits(size: tuple[int, int], count: int, row: int) -> None:
    place = layout([size] * count, row)
    assert place.size[0] <= WIDTH
    assert place.size[1] <= HEIGHT
    assert not any(side % 2 for side in place.size)
    corners = [place.corner(tile) for tile in range(count)]
    assert len(set(corners)) == count
    assert all(left + place.box[0] <= place.size[0] and top + LABEL + place.box[1] <= place.size[1] - BAR for left, top in corners)
    assert row == count or place.columns % row == 0 or row % place.columns == 0
    assert min(place.box) >= 16 * (size != (3840, 2160))


@pytest.mark.parametrize(
    ("size", "room", "given"),
    [((64, 64), (300, 500), (256, 256)), ((64, 64), (9000, 9000), (384, 384)), ((832, 480), (1000, 1000), (832, 480)),
     ((832, 480), (416, 999), (416, 240)), ((500, 500), (1200, 1200), (500, 500))],
)  # fmt: skip
def test_tiles_grow_by_whole_factors_only(size: tuple[int, int], room: tuple[float, float], given: tuple[int, int]) -> None:
    assert fitted_size(size, room) == given


def test_an_enlarged_tile_has_the_pixels_of_its_video() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    tile = fit_frame(frame, (26, 20))  # three times, in the middle
    assert tile.shape == (20, 26, 3)
    np.testing.assert_array_equal(tile[1:19, 1:25], frame.repeat(3, axis=0).repeat(3, axis=1))
    assert tile[0].max() == tile[19].max() == tile[:, 0].max() == tile[:, 25].max() == 0


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
@pytest.mark.parametrize("width", [8, 100, 700])
def test_any_text_can_be_drawn(text: str, width: int) -> None:
    picture = text_strip(text, (width, 24), 15, 250, 24)
    assert picture.shape == (24, width, 3)
    assert (picture.max() > 100) == bool(fit_text(text, 15, width - 2 * min(4, width // 8)))


def test_what_the_font_lacks_is_replaced_and_what_is_long_is_cut() -> None:
    assert fit_text("a🎈b\n c", 15, 200) == "a?b c"
    assert fit_text("Größe, привет", 15, 200) == "Größe, привет"
    assert fit_text("w" * 100, 15, 60).endswith("w…")
