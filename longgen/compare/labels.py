"""Text drawn into images, in a font that every installation has."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NO_GLYPH = "\uffff"  # a character of no font
REPLACEMENT = "?"  # for what the font lacks
ELLIPSIS = "…"


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
