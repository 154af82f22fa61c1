"""Text tables for the terminal: aligned columns, lines cut to a width or wrapped below a label."""

from __future__ import annotations

import itertools
import re
import textwrap
import unicodedata
from collections.abc import Sequence

WIDTH = 100  # columns of a terminal
MISSING = "–"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines with two spaces between columns; the first `left` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"{'<' if column < left else '>'}{width}" for column, width in enumerate(widths)]
    return ["  ".join(map(format, row, formats)) for row in rows]


def side_by_side(left: Sequence[str], columns: Sequence[Sequence[str]], width: int, gap: int = 2) -> list[list[str]]:
    """Tables as their lines: `left`, then as many `columns` as `width` has room for, aligned right, `gap` spaces before each."""
    start = max(map(len, left))
    tables: list[list[list[str]]] = []
    room = 0
    for column in columns:
        taken = gap + max(map(len, column))
        if taken > room:
            tables.append([[f"{cell:<{start}}" for cell in left]])
            room = width - start
        tables[-1].append([f"{cell:>{taken}}" for cell in column])
        room -= taken
    return [["".join(cells).rstrip() for cells in zip(*table, strict=True)] for table in tables]


def tables(rows: Sequence[Sequence[str]], width: int, left: int = 1) -> list[str]:
    """`aligned` rows as tables of at most `width`, with an empty line between two; each begins with the first `left` columns."""
    heads = aligned([row[:left] for row in rows], left)
    parts = side_by_side(heads, [*zip(*(row[left:] for row in rows), strict=True)], width)
    return [line for number, part in enumerate(parts) for line in [""] * (number > 0) + part]


def refilled(text: str, columns: int | None) -> str:
    """`text` with lines wrapped that are longer than `columns`, below their own indentation; words stay whole. None: as it is."""
    if columns is None:
        return text
    columns, lines = max(40, columns), []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines += [line] if len(line) <= columns else textwrap.wrap(line.lstrip(), columns, initial_indent=indent,
                  subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def cut_to_width(line: str, width: int) -> str:
    """As much of `line` as fits `width` columns, of which East Asian letters and emoji take two."""
    end = 0
    for index, letter in enumerate(line):
        end += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if end > width:
            return line[: index - 1] + "…"
    return line


def hanging(label: str, text: str, columns: int | None) -> str:
    """`label` and `text` in lines of `columns`, the later ones below the text; words stay whole. None: on one line."""
    if columns is None:
        return label + text
    columns = max(40, columns)
    indent = " " * (len(label) if 0 < len(label) <= columns // 2 else 2)
    return textwrap.fill(
        text, columns, initial_indent=label, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def fitted(text: str, columns: int | None) -> list[str]:
    """The lines of a technique's header, none longer than `columns`: paragraphs are refilled, equations keep their lines."""
    lines = text.splitlines()
    if columns is None or all(len(line) <= columns for line in lines):
        return lines
    columns, fitted = max(40, columns), []
    for is_prose, run in itertools.groupby(lines, lambda line: re.search(r"^ | {3}|^$", line) is None):
        if is_prose:
            fitted += textwrap.wrap(" ".join(run), columns, break_long_words=False, break_on_hyphens=False)
            continue
        for line in run:
            body, tag = match.groups() if (match := re.fullmatch(r"(.*?\S) {2,}(\[[^\[\]]+\])", line)) else (line, "")
            if tag:
                line = f"{body}{tag:>{max(2 + len(tag), columns - len(body))}}"
            indent = " " * (4 + len(line) - len(line.lstrip()))
            fitted += textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
    return fitted
