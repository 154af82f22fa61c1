"""Words in pictures, in a font that is in every installation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MISSING = "\uffff"  # a character of no font
STANDS_IN = "?"  # for what the font lacks
ELLIPSIS = "…"


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more, but no emoji."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), pixels)


@cache
def _has(pixels: int, character: str) -> bool:
    return character == " " or bytes(font(pixels).getmask(character)) != bytes(font(pixels).getmask(MISSING))


def drawable(text: str, pixels: int, width: int) -> str:
    """`text` on one line of `width` pixels: what the font lacks is replaced, what is too long is cut."""
    letters = font(pixels)
    line = " ".join(text[:width].split())  # no letter is so narrow that more would fit
    line = "".join(character if _has(pixels, character) else STANDS_IN for character in line)
    if letters.getlength(line) <= width:
        return line
    while line and letters.getlength(line + ELLIPSIS) > width:
        line = line[:-1]
    return line.rstrip() + ELLIPSIS if line else ""


def strip(text: str, size: tuple[int, int], pixels: int, ink: int, paper: int, right: bool = False) -> np.ndarray:
    """`text` in grey `ink` on grey `paper`, [height, width, 3] uint8 for a `size` of (width, height), in its middle line."""
    width, height = size
    image, gap = Image.new("L", size, paper), min(4, width // 8)
    line = drawable(text, pixels, width - 2 * gap)
    place, anchor = ((width - gap, height // 2), "rm") if right else ((gap, height // 2), "lm")
    ImageDraw.Draw(image).text(place, line, fill=ink, font=font(pixels), anchor=anchor)
    return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)
