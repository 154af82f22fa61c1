"""One video to watch and one sheet to print, of all tiles that belong together; made in one pass over all files."""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from longgen import __version__, disk
from longgen.compare.labels import strip
from longgen.compare.layout import BAR, GAP, LABEL, TITLE, WIDTH, Layout, fitted, layout, shown
from longgen.errors import LonggenError
from longgen.progress import Phase, Progress, clock_text, no_report
from longgen.video import Writer, read_frames, read_settings

MOMENTS = 8  # columns of the sheet
VERSION = 2  # of how the two files look: another one makes them anew
FASTEST = 60.0  # frames a second, for frames that come at varying intervals
SMALL, PLAIN = 13, 15  # pixels of letters
PAPER, FAINT, INK, BRIGHT = 24, 110, 220, 250  # greys
NAMES = 240  # pixels of the names of rows of the sheet: a preset and its seed
SHEET = 8_000  # pixels of its height, beyond which rows are made lower


@dataclass(frozen=True)
class Tile:
    """A video with its label. hash: of its content. video: None for one that could not be made; its other fields mean nothing.

    times: as in `record.Cell`; empty where frames come evenly.
    """

    label: str
    video: Path | None = None
    size: tuple[int, int] = (0, 0)
    fps: float = 1.0
    frames: int = 0
    hash: str = ""
    times: tuple[float, ...] = ()

    def index(self, seconds: float) -> int:
        """The frame that is on at that time; behind the last one where it is over."""
        if not self.times:
            return int(seconds * self.fps + 1e-6)
        return bisect.bisect_right(self.times, seconds + 1e-6) - 1

    @property
    def fastest(self) -> float:
        """Frames a second at which none of its frames is missed, up to FASTEST."""
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return max(self.fps, min(1 / min(gaps), FASTEST)) if gaps else self.fps


class _Film:
    """The frames of a tile, one after the other; the last one stays."""

    def __init__(self, tile: Tile) -> None:
        self._frames: Iterator[np.ndarray] = iter(()) if tile.video is None else read_frames(tile.video, tile.size)
        self._at = -1
        self.frame: np.ndarray | None = None

    def go_to(self, index: int) -> bool:
        """Goes on to frame `index`; whether that is another frame."""
        frame = None
        while self._at < index:
            frame, self._at = next(self._frames, frame), self._at + 1
        self.frame = self.frame if frame is None else frame
        return frame is not None

    def close(self) -> None:
        if isinstance(self._frames, Generator):
            self._frames.close()


def write(
    tiles: Sequence[Tile],
    row: int,
    title: str,
    video: Path,
    sheet: Path,
    report: Callable[[Progress], None] = no_report,
) -> None:
    """Writes the MP4 `video` and the PNG `sheet` of `tiles`, of which `row` belong beside each other. Nothing where both are there.

    Frame by frame; where frame rates differ or vary, by time, at the highest of them.
    """
    left_out = {"video", "times"}  # the hash says what is in the video
    tables = [{key: value for key, value in asdict(tile).items() if key not in left_out} | {"video": tile.video is not None,
              "size": [*tile.size]} for tile in tiles]  # fmt: skip
    made_of = {"version": VERSION, "row": row, "title": title, "tiles": tables}
    if sheet.is_file() and _made_of(video) == made_of:
        return
    there = [tile for tile in tiles if tile.video is not None]
    place = layout([tile.size for tile in there] + [there[0].size] * (len(tiles) - len(there)), row)
    rates = {tile.fastest for tile in there}
    fps = max(rates) if len(rates) == 1 else max(1, round(max(rates)))
    total = max(math.ceil(tile.frames / tile.fps * fps - 1e-6) for tile in there)
    moments = sorted({round(moment) for moment in np.linspace(0, total - 1, MOMENTS)})
    thumbs: list[list[np.ndarray | None]] = [[] for _ in tiles]
    canvas = _stage(tiles, place, title)
    largest = max(tile.size[0] for tile in there), max(tile.size[1] for tile in there)
    small = fitted(largest, ((WIDTH - NAMES) / len(moments) - GAP, max(SHEET / len(tiles) - GAP, LABEL)))
    for folder in (video.parent, sheet.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        films = [stack.enter_context(contextlib.closing(_Film(tile))) for tile in tiles]
        writer = stack.enter_context(Writer(video, place.size, fps, {"longgen": __version__, "shows": made_of}))
        phase = Phase("side by side", total, "cpu", report)
        for now in range(total):
            for number, (tile, film) in enumerate(zip(tiles, films, strict=True)):
                index = tile.index(now / fps)
                over, (left, top) = index >= tile.frames, place.corner(number)
                if film.go_to(index) and film.frame is not None:
                    canvas[top + LABEL : top + LABEL + place.box[1], left : left + place.box[0]] = shown(film.frame, place.box)
                if tile.video is not None and over:
                    canvas[top : top + LABEL, left : left + place.box[0]] = _label(f"{tile.label} (ended)", place.box[0], FAINT)
                if now in moments:
                    thumbs[number].append(None if over or film.frame is None else shown(film.frame, small))
            canvas[-BAR:] = _bar(now, total, fps, place.size[0])
            writer.add(canvas[None])
            phase.at(now + 1)
    times = [clock_text(moment / fps) for moment in moments]
    picture = _sheet([tile.label for tile in tiles], times, thumbs, small, title)
    disk.replace_file(sheet, lambda partial: Image.fromarray(picture).save(partial, format="PNG"))


def _made_of(video: Path) -> object:
    """What an earlier `write` made `video` of; None where it is not there."""
    try:
        return read_settings(video).get("shows")
    except LonggenError:
        return None


def _stage(tiles: Sequence[Tile], place: Layout, title: str) -> np.ndarray:
    """The picture [H, W, 3] with all that does not move."""
    width, height = place.size
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    canvas[:TITLE] = strip(title, (width, TITLE), PLAIN, INK, PAPER)
    for number, tile in enumerate(tiles):
        left, top = place.corner(number)
        label = tile.label if tile.video is not None else f"{tile.label} (failed)"
        canvas[top : top + LABEL, left : left + place.box[0]] = _label(label, place.box[0], BRIGHT)
        canvas[top + LABEL : top + LABEL + place.box[1], left : left + place.box[0]] = 0
    return canvas


@cache
def _label(text: str, width: int, ink: int) -> np.ndarray:
    return strip(text, (width, LABEL), PLAIN if width >= 160 else SMALL, ink, PAPER)


def _bar(now: int, total: int, fps: float, width: int) -> np.ndarray:
    """The bar of time [BAR, width, 3] at frame `now` of `total`."""
    time = strip(f"{clock_text(now / fps)} of {clock_text(total / fps)}", (150, BAR), SMALL, INK, PAPER, right=True)
    bar = np.full((BAR, width, 3), PAPER, np.uint8)
    bar[:, -150:] = time
    first, last = GAP, width - 150
    bar[BAR // 2 - 2 : BAR // 2 + 2, first:last] = FAINT
    bar[BAR // 2 - 2 : BAR // 2 + 2, first : first + round((last - first) * (now + 1) / total)] = BRIGHT
    return bar


def _sheet(
    labels: Sequence[str], times: Sequence[str], thumbs: Sequence[Sequence[np.ndarray | None]], size: tuple[int, int], title: str
) -> np.ndarray:
    """The sheet [H, W, 3]: a row for each label, a column for each time; what is None stays empty."""
    width, height = NAMES + len(times) * (size[0] + GAP), TITLE + LABEL + len(labels) * (size[1] + GAP)
    sheet = np.full((height, width, 3), PAPER, np.uint8)
    sheet[:TITLE] = strip(title, (width, TITLE), PLAIN, INK, PAPER)
    for column, time in enumerate(times):
        left = NAMES + column * (size[0] + GAP)
        sheet[TITLE : TITLE + LABEL, left : left + size[0]] = strip(time, (size[0], LABEL), SMALL, INK, PAPER)
    for row, (label, pictures) in enumerate(zip(labels, thumbs, strict=True)):
        top = TITLE + LABEL + row * (size[1] + GAP)
        sheet[top : top + min(LABEL, size[1]), :NAMES] = strip(label, (NAMES, min(LABEL, size[1])), SMALL, BRIGHT, PAPER)
        for column, picture in enumerate(pictures):
            left = NAMES + column * (size[0] + GAP)
            sheet[top : top + size[1], left : left + size[0]] = 0 if picture is None else picture
    return sheet
