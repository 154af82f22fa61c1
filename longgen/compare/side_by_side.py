"""Side-by-side video and contact sheet of several videos, made in one pass over all files."""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from longgen import __version__, disk, progress, rundir
from longgen.compare.layout import BAR, GAP, LABEL, TITLE, WIDTH, Layout, fit_frame, fitted_size, layout, text_strip
from longgen.progress import OnProgress, Phase, clock_text
from longgen.video import Writer, read_frames

MOMENTS = 8  # columns of the sheet
VERSION = 2  # of the look of both files: another version writes them again
MOST_FPS = 60.0  # for videos of variable frame rate
SMALL, PLAIN = 13, 15  # pixels of the font
PAPER, FAINT, INK, BRIGHT = 24, 110, 220, 250  # greys
NAMES = 240  # pixels of the width of row labels in the sheet: a preset and its seed
SHEET = 8_000  # pixels of its height, beyond which rows become lower


@dataclass(frozen=True)
class Tile:
    """A video with its label. hash: of its content. video: None if it failed, in which case only the label counts.

    times: as in `record.Cell`; empty for a constant frame rate.
    """

    label: str
    video: Path | None = None
    size: tuple[int, int] = (0, 0)
    fps: float = 1.0
    frames: int = 0
    hash: str = ""
    times: tuple[float, ...] = ()

    def index(self, seconds: float) -> int:
        """The frame shown at that time; past the last one if the video has ended."""
        if not self.times:
            return int(seconds * self.fps + 1e-6)
        return bisect.bisect_right(self.times, seconds + 1e-6) - 1

    @property
    def peak_fps(self) -> float:
        """Frame rate at which none of its frames is skipped, up to MOST_FPS."""
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return max(self.fps, min(1 / min(gaps), MOST_FPS)) if gaps else self.fps


class _FrameCursor:
    """Sequential access to the frames of a tile; after the end, the last one stays."""

    def __init__(self, tile: Tile) -> None:
        self._frames: Iterator[np.ndarray] = iter(()) if tile.video is None else read_frames(tile.video, tile.size)
        self._index = -1
        self.frame: np.ndarray | None = None

    def go_to(self, index: int) -> bool:
        """Advances to frame `index`; whether that is a new frame."""
        frame = None
        while self._index < index:
            frame, self._index = next(self._frames, frame), self._index + 1
        self.frame = self.frame if frame is None else frame
        return frame is not None

    def close(self) -> None:
        if isinstance(self._frames, Generator):
            self._frames.close()


def write(tiles: Sequence[Tile], row: int, title: str, video: Path, sheet: Path, report: OnProgress = progress.no_report) -> None:
    """Writes the MP4 `video` and the PNG `sheet` of `tiles`, of which `row` belong beside each other, unless both are up to date.

    Videos are matched frame by frame or, if frame rates differ or vary, by time at the highest of them.
    """
    implied = {"video", "times"}  # by the hash
    tables = [{key: value for key, value in asdict(tile).items() if key not in implied} | {"video": tile.video is not None,
              "size": [*tile.size]} for tile in tiles]  # fmt: skip
    contents = {"version": VERSION, "row": row, "title": title, "tiles": tables}
    if sheet.is_file() and (rundir.settings_inside(video) or {}).get("shows") == contents:
        return
    done = [tile for tile in tiles if tile.video is not None]
    grid = layout([tile.size for tile in done] + [done[0].size] * (len(tiles) - len(done)), row)
    rates = {tile.peak_fps for tile in done}
    fps = max(rates) if len(rates) == 1 else max(1, round(max(rates)))
    total = max(math.ceil(tile.frames / tile.fps * fps - 1e-6) for tile in done)
    moments = sorted({round(moment) for moment in np.linspace(0, total - 1, MOMENTS)})
    thumbs: list[list[np.ndarray | None]] = [[] for _ in tiles]
    canvas = _background(tiles, grid, title)
    largest = max(tile.size[0] for tile in done), max(tile.size[1] for tile in done)
    small = fitted_size(largest, ((WIDTH - NAMES) / len(moments) - GAP, max(SHEET / len(tiles) - GAP, LABEL)))
    for folder in (video.parent, sheet.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        cursors = [stack.enter_context(contextlib.closing(_FrameCursor(tile))) for tile in tiles]
        writer = stack.enter_context(Writer(video, grid.size, fps, {"longgen": __version__, "shows": contents}))
        phase = Phase("side by side", total, "cpu", report)
        for now in range(total):
            for number, (tile, cursor) in enumerate(zip(tiles, cursors, strict=True)):
                index = tile.index(now / fps)
                ended, (left, top) = index >= tile.frames, grid.corner(number)
                if cursor.go_to(index) and cursor.frame is not None:
                    canvas[top + LABEL : top + LABEL + grid.box[1], left : left + grid.box[0]] = fit_frame(cursor.frame, grid.box)
                if tile.video is not None and ended:
                    canvas[top : top + LABEL, left : left + grid.box[0]] = _label(f"{tile.label} (ended)", grid.box[0], FAINT)
                if now in moments:
                    thumbs[number].append(None if ended or cursor.frame is None else fit_frame(cursor.frame, small))
            canvas[-BAR:] = _bar(now, total, fps, grid.size[0])
            writer.add(canvas[None])
            phase.at(now + 1)
    times = [clock_text(moment / fps) for moment in moments]
    picture = _sheet([tile.label for tile in tiles], times, thumbs, small, title)
    disk.replace_file(sheet, lambda partial: Image.fromarray(picture).save(partial, format="PNG"))


def _titled(size: tuple[int, int], title: str) -> np.ndarray:
    """An empty picture [H, W, 3] of `size` (width, height) under its title."""
    canvas = np.full((size[1], size[0], 3), PAPER, np.uint8)
    canvas[:TITLE] = text_strip(title, (size[0], TITLE), PLAIN, INK, PAPER)
    return canvas


def _background(tiles: Sequence[Tile], grid: Layout, title: str) -> np.ndarray:
    """The picture [H, W, 3] with everything static."""
    canvas = _titled(grid.size, title)
    for number, tile in enumerate(tiles):
        left, top = grid.corner(number)
        label = tile.label if tile.video is not None else f"{tile.label} (failed)"
        canvas[top : top + LABEL, left : left + grid.box[0]] = _label(label, grid.box[0], BRIGHT)
        canvas[top + LABEL : top + LABEL + grid.box[1], left : left + grid.box[0]] = 0
    return canvas


@cache
def _label(text: str, width: int, ink: int) -> np.ndarray:
    return text_strip(text, (width, LABEL), PLAIN if width >= 160 else SMALL, ink, PAPER)


def _bar(now: int, total: int, fps: float, width: int) -> np.ndarray:
    """The time bar [BAR, width, 3] at frame `now` of `total`."""
    time = text_strip(f"{clock_text(now / fps)} of {clock_text(total / fps)}", (150, BAR), SMALL, INK, PAPER, right=True)
    bar = np.full((BAR, width, 3), PAPER, np.uint8)
    bar[:, -150:] = time
    first, last = GAP, width - 150
    bar[BAR // 2 - 2 : BAR // 2 + 2, first:last] = FAINT
    bar[BAR // 2 - 2 : BAR // 2 + 2, first : first + round((last - first) * (now + 1) / total)] = BRIGHT
    return bar


def _sheet(
    labels: Sequence[str], times: Sequence[str], thumbs: Sequence[Sequence[np.ndarray | None]], size: tuple[int, int], title: str
) -> np.ndarray:
    """The sheet [H, W, 3]: a row per label, a column per time; None is left black."""
    sheet = _titled((NAMES + len(times) * (size[0] + GAP), TITLE + LABEL + len(labels) * (size[1] + GAP)), title)
    for column, time in enumerate(times):
        left = NAMES + column * (size[0] + GAP)
        sheet[TITLE : TITLE + LABEL, left : left + size[0]] = text_strip(time, (size[0], LABEL), SMALL, INK, PAPER)
    for row, (label, pictures) in enumerate(zip(labels, thumbs, strict=True)):
        top = TITLE + LABEL + row * (size[1] + GAP)
        sheet[top : top + min(LABEL, size[1]), :NAMES] = text_strip(label, (NAMES, min(LABEL, size[1])), SMALL, BRIGHT, PAPER)
        for column, picture in enumerate(pictures):
            left = NAMES + column * (size[0] + GAP)
            sheet[top : top + size[1], left : left + size[0]] = 0 if picture is None else picture
    return sheet
