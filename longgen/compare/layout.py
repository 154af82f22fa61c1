"""Layout of several videos as tiles of one picture, and text drawn into it. Pure numbers and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1920, 1080  # pixels of the whole picture, at most
ENLARGED = 384  # pixels of the longer side, up to which a small video is enlarged
GAP, LABEL, TITLE, BAR = 4, 24, 28, 26  # pixels between tiles; heights of a label, the title and the time bar
LEAST_WIDTH = 240  # of the whole picture: room for the time
NO_GLYPH = "\uffff"  # a character of no font
REPLACEMENT = "?"  # for what the font lacks
ELLIPSIS = "…"


@dataclass(frozen=True)
class Layout:
    """Tiles of size `box` (width, height) in so many columns, in a picture of `size` (width, height), both even."""

    columns: int
    box: tuple[int, int]
    size: tuple[int, int]

    def corner(self, tile: int) -> tuple[int, int]:
        """The left and upper edge of a tile's label; the tile itself is LABEL below."""
        row, column = divmod(tile, self.columns)
        return GAP + column * (self.box[0] + GAP), TITLE + row * (LABEL + self.box[1] + GAP)


def fitted_size(size: tuple[int, int], room: tuple[float, float]) -> tuple[int, int]:
    """The size at which a video of `size` is shown in `room`: an integer multiple, or reduced."""
    factor = min(room[0] / size[0], room[1] / size[1])
    if factor >= 1:
        multiple = int(min(factor, max(1, ENLARGED / max(size))))
        return size[0] * multiple, size[1] * multiple
    return max(int(size[0] * factor), 1), max(int(size[1] * factor), 1)


def layout(sizes: Sequence[tuple[int, int]], row: int) -> Layout:
    """The layout with the largest tiles for videos of `sizes`; of equals the one with the fewest empty places.

    row: tiles that belong beside each other. A line of tiles holds several such rows, or an integer fraction of one.
    """
    largest = max(width for width, _ in sizes), max(height for _, height in sizes)
    count, candidates = len(sizes), []
    for columns in range(1, count + 1):
        if row < count and row % columns and columns % row:
            continue
        lines = -(-count // columns)
        room = (WIDTH - GAP) / columns - GAP, (HEIGHT - TITLE - BAR) / lines - LABEL - GAP
        if min(room) < 1:
            continue
        box = fitted_size(largest, room)
        width = max(GAP + columns * (box[0] + GAP), LEAST_WIDTH)
        height = TITLE + lines * (LABEL + box[1] + GAP) + BAR
        size = width + width % 2, height + height % 2
        rank = -box[0] * box[1], columns * lines - count, abs(width / height - WIDTH / HEIGHT)
        candidates.append((rank, Layout(columns, box, size)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def fit_frame(frame: np.ndarray, box: tuple[int, int]) -> np.ndarray:
    """`frame` [H, W, 3] uint8 as a tile shows it: enlarged pixel by pixel or reduced, centred in a black `box`."""
    height, width = frame.shape[:2]
    size = fitted_size((width, height), box)
    if size[0] >= width:
        picture = frame.repeat(size[1] // height, axis=0).repeat(size[0] // width, axis=1)
    else:
        picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if size == box:
        return picture
    left, upper = (box[0] - size[0]) // 2, (box[1] - size[1]) // 2
    tile = np.zeros((box[1], box[0], 3), np.uint8)
    tile[upper : upper + size[1], left : left + size[0]] = picture
    return tile


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more, but no emoji."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), pixels)


@cache
def _has_glyph(pixels: int, character: str) -> bool:
    return character == " " or bytes(font(pixels).getmask(character)) != bytes(font(pixels).getmask(NO_GLYPH))


def fit_text(text: str, pixels: int, width: int) -> str:
    """`text` on one line of `width` pixels: missing glyphs are replaced, and what is too long is cut."""
    face = font(pixels)
    line = " ".join(text[:width].split())  # no glyph is so narrow that more would fit
    line = "".join(character if _has_glyph(pixels, character) else REPLACEMENT for character in line)
    if face.getlength(line) <= width:
        return line
    while line and face.getlength(line + ELLIPSIS) > width:
        line = line[:-1]
    return line.rstrip() + ELLIPSIS if line else ""


def text_strip(text: str, size: tuple[int, int], pixels: int, ink: int, paper: int, right: bool = False) -> np.ndarray:
    """`text` in grey `ink` on grey `paper`, vertically centred: [height, width, 3] uint8 for a `size` of (width, height)."""
    width, height = size
    image, gap = Image.new("L", size, paper), min(4, width // 8)
    line = fit_text(text, pixels, width - 2 * gap)
    position, anchor = ((width - gap, height // 2), "rm") if right else ((gap, height // 2), "lm")
    ImageDraw.Draw(image).text(position, line, fill=ink, font=font(pixels), anchor=anchor)
    return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)
