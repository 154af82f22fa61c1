"""Tables and figures for papers: CSV, LaTeX, Markdown, and vector figures in SVG and PDF. Equal inputs give equal files.

LaTeX needs no package. What is text of users stays text: each format escapes it. Numbers in CSV have all their digits.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longgen import disk
from longgen.errors import UsageError, unknown_name
from longgen.textfile import on_one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES, FIGURES = ("csv", "latex", "markdown"), ("svg", "pdf")
FORMATS = (*TABLES, *FIGURES)
SUFFIXES = {"csv": "csv", "latex": "tex", "markdown": "md", "svg": "svg", "pdf": "pdf"}
FOLDER = "export"  # in the folder of a comparison or a probe
COLORS = ("#1a1c1e", "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#b5a300")  # after Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # which tell the same apart where there is no colour
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (8, 2)), (0, (6, 2, 1, 2, 1, 2)))
LABEL = 40  # characters of a name in a figure
FONT = "DejaVu Sans"  # which comes with matplotlib
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "longgen",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "font.family": [FONT],
}
BEYOND_PDFLATEX = re.compile("[^\0-\u017f\u2010-\u2030]")  # which knows Latin letters and punctuation
MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&#$])")
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"{''}", "-": "{-}", "[": "{[}", "]": "{]}", "*": "{*}", "`": "{`}", "'": "{'}", "!": "{!}", "?": "{?}",
    "\N{MULTIPLICATION SIGN}": r"$\times$", "\N{UPWARDS ARROW}": r"$\uparrow$", "\N{DOWNWARDS ARROW}": r"$\downarrow$",
    "\N{EN DASH}": "--", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}", "\N{MINUS SIGN}": "$-$", "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Numbers as they were computed, for a CSV file. rows: text, numbers, truth values, and None for an empty cell."""

    name: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Table:
    """A table to be read, for LaTeX and Markdown. bold: the (row, column) that are set so. notes: sentences below it."""

    name: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bold: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exports:
    """All that can be exported of something. figures: by name, made only where they are asked for."""

    data: list[Data]
    tables: list[Table]
    figures: Mapping[str, Callable[[], Figure]]

    def files(self, formats: Iterable[str]) -> list[str]:
        """The names of the files of `formats`."""
        return [f"{name}.{SUFFIXES[kind]}" for kind in formats for name in self._names(kind)]

    def write(self, formats: Iterable[str], folder: Path, prefix: str = "") -> list[Path]:
        """Writes the files of `formats` to `folder`, each atomically; returns their paths. Raises LonggenError."""
        disk.make_folder(folder)
        paths = []
        for kind in formats:
            for name in self._names(kind):
                paths.append(folder / f"{prefix}{name}.{SUFFIXES[kind]}")
                if kind in FIGURES:
                    disk.replace_file(paths[-1], partial(save_figure, self.figures[name], kind))
                else:
                    disk.save_text(paths[-1], self._text(kind, name))
        return paths

    def _names(self, kind: str) -> list[str]:
        return [*self.figures] if kind in FIGURES else [table.name for table in (self.data if kind == "csv" else self.tables)]

    def _text(self, kind: str, name: str) -> str:
        if kind == "csv":
            return csv_text(next(table for table in self.data if table.name == name))
        table = next(table for table in self.tables if table.name == name)
        return latex_text(table) if kind == "latex" else markdown_text(table)


def parse(values: Sequence[str] | None) -> tuple[str, ...]:
    """The formats of `--export`, given again and again or separated by commas. Raises UsageError."""
    formats = [name.strip() for value in values or () for name in value.split(",")]
    for name in formats:
        if not name:
            raise UsageError("--export names an empty format", expected=", ".join(FORMATS), hint="separate formats by commas")
        if name not in FORMATS:
            raise unknown_name("export format", name, FORMATS, "csv, latex and markdown are tables, svg and pdf figures")
    return tuple(dict.fromkeys(formats))


def csv_text(table: Data) -> str:
    """RFC 4180 with lines that end in LF: a head, then a line for each row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([table.heads, *(["" if cell is None else cell for cell in row] for row in table.rows)])
    return file.getvalue()


def latex(text: str) -> str:
    """`text` on one line, as LaTeX sets it letter by letter; letters beyond Latin need XeLaTeX or LuaLaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in on_one_line(text))


def latex_text(table: Table) -> str:
    """A tabular without packages; `\\input` it into a table environment, or a resizebox where it is too wide."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}", r"\hline"]
    lines += [" & ".join(map(latex, table.heads)) + r" \\", r"\hline"]
    for number, row in enumerate(table.rows):
        cells = (rf"\textbf{{{latex(cell)}}}" if (number, column) in table.bold else latex(cell) for column, cell in enumerate(row))
        lines.append(" & ".join(cells) + r" \\")
    foreign = any(BEYOND_PDFLATEX.search(line) for line in lines)
    needs = "has letters that need XeLaTeX or LuaLaTeX, with a font for them" if foreign else "needs no package"
    lines += [r"\hline", r"\end{tabular}", *(f"% {on_one_line(note)}" for note in table.notes)]
    return "\n".join([f"% written by longgen; {needs}", *lines, ""])


def markdown(text: str) -> str:
    """`text` on one line, as Markdown shows it letter by letter."""
    return MARKDOWN.sub(r"\\\1", on_one_line(text))


def markdown_text(table: Table) -> str:
    """A table of GitHub's Markdown, then its notes."""
    rows = [[f"**{markdown(cell)}**" if (number, column) in table.bold else markdown(cell) for column, cell in enumerate(row)]
            for number, row in enumerate(table.rows)]  # fmt: skip
    lines = [[*map(markdown, table.heads)], ["---", *["---:"] * (len(table.heads) - 1)], *rows]
    notes = [part for note in table.notes for part in ("", markdown(note))]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *notes]) + "\n"


def label(text: str) -> str:
    """`text` as a figure shows it: on one line, cut, without mathematics, `?` for letters that the font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    line = "".join(letter if ord(letter) in known else "?" for letter in on_one_line(text, LABEL)).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # matplotlib leaves such out of a legend


def figure_size(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Any) -> None:
    """Small ticks, a faint grid, and no frame above and to the right."""
    axes.tick_params(labelsize=7)
    axes.grid(linewidth=0.4, color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(make: Callable[[], Figure], kind: str, path: Path) -> None:
    """Makes the figure and writes it without a date: SVG with letters as outlines, PDF with its fonts as TrueType."""
    import matplotlib

    metadata = {"Date": None} if kind == "svg" else {"CreationDate": None, "Producer": None, "Creator": None}
    with matplotlib.rc_context(STYLE):  # of this call alone
        make().savefig(path, format=kind, metadata=metadata)
