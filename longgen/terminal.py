"""Text tables for the terminal: aligned columns, and lines cut to a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

WIDTH = 100  # columns of a terminal
MISSING = "–"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines with two spaces between columns; the first `left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"{'<' if column < left else '>'}{width}" for column, width in enumerate(widths)]
    return ["  ".join(map(format, row, formats)) for row in rows]


def cut_to_width(line: str, width: int) -> str:
    """As much of `line` as fits `width` columns, of which East Asian letters and emoji take two."""
    end = 0
    for index, letter in enumerate(line):
        end += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if end > width:
            return line[: index - 1] + "…"
    return line
