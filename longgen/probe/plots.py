"""Columns of numbers of a probe, and figures of them for papers.

`scores_figure` is a heat map, layers downwards; `rank_figure` has a curve for each window; `heads_figure` has a heat map, layers
times heads, for each part of what heads see. Figures carry no title and no name of a
backbone, which belong into a caption. Made with matplotlib's objects, without pyplot and its global state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from longgen.layers.probe_file import HEAD_PARTS, SCORE_NAMES, SENSITIVITIES, Probe, ScoreName, Sensitivity
from longgen.probe.heads import LETTERS
from longgen.terminal import MISSING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
COLOR_MAPS: dict[Sensitivity, str] = {"position": "Blues", "context": "Oranges"}
ROW_IN, DENSE_ROW_IN, DENSE = 0.18, 0.09, 80  # inches; with more layers than DENSE there is no room for numbers
MOST_HEADS = 16  # in a row of large cells
DARKEST = 0.85  # of a colour map: its last colours are almost black
LUMA = (0.299, 0.587, 0.114)  # perceived brightness of red, green and blue
MOST_MARKERS = 40  # layers up to which a curve has a marker at each
LINE_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


class ScoreCell(NamedTuple):
    """A score of one layer. share: of the column's maximum. over: whether it makes the layer sensitive."""

    layer: int
    value: str
    share: float
    over: bool


class ScoreColumn(NamedTuple):
    """One score of all layers. decides: whether verdicts are based on it."""

    sensitivity: Sensitivity
    score: ScoreName
    decides: bool
    cells: list[ScoreCell]


def score_columns(probe: Probe) -> list[ScoreColumn]:
    """The scores that the probe has, position before context."""
    columns = []
    for key, score in itertools.product(SENSITIVITIES, SCORE_NAMES):
        values = [row.scores.get(key, {}).get(score) for row in probe.layers]
        end, write, over = scale_end(values), number_format(values), probe.sensitive(key) if score == probe.metric else ()
        cells = [ScoreCell(row.layer, write(value), (value or 0) / end, row.layer in over)
                 for row, value in zip(probe.layers, values, strict=True)]  # fmt: skip
        if any(value is not None for value in values):
            columns.append(ScoreColumn(key, score, score == probe.metric, cells))
    return columns


def effective_ranks(probe: Probe) -> dict[str, list[float | None]]:
    """Effective rank of all layers by window, `1x` first; None where a layer lacks it."""
    names = sorted({name for row in probe.layers for name in row.effective_rank}, key=lambda name: (len(name), name))
    return {name: [row.effective_rank.get(name) for row in probe.layers] for name in names}


def scale_end(values: Iterable[float | None]) -> float:
    """The maximum of `values`, as the end of a scale from 0; 1 if none is positive."""
    return max((value for value in values if value and value > 0), default=1.0)


def number_format(values: Iterable[float | None]) -> Callable[[float | None], str]:
    """Formats the numbers of one column with as many decimals as give its maximum three significant digits."""
    decimals = min(max(2 - math.floor(math.log10(scale_end(values))), 0), 9)
    return lambda value: MISSING if value is None else f"{value:.{decimals}f}"


def scores_figure(probe: Probe) -> Figure:
    """Heat map of layers x scores, each column shaded from 0 to its maximum; a dot where the score makes the layer sensitive."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = score_columns(probe)
    row_in = ROW_IN if len(probe.layers) <= DENSE else DENSE_ROW_IN
    figure = Figure(figsize=(1.2 + 0.9 * len(columns), 0.9 + row_in * len(probe.layers)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    colors = np.ones((len(probe.layers), len(columns), 4))
    for x, column in enumerate(columns):
        for y, cell in enumerate(column.cells):
            colors[y, x] = colormaps[COLOR_MAPS[column.sensitivity]](DARKEST * cell.share)
            ink = "white" if colors[y, x, :3] @ LUMA < 0.5 else "black"
            if len(probe.layers) <= DENSE:
                axes.text(x, y, cell.value, ha="center", va="center", fontsize=7, color=ink)
            if cell.over:
                axes.plot(x - 0.4, y, "o", markersize=2, color=ink)
    axes.imshow(colors, aspect="auto", interpolation="nearest")
    for x in range(1, len(columns)):
        axes.axvline(x - 0.5, color="white", linewidth=2 if columns[x].sensitivity == columns[x - 1].sensitivity else 8)
    axes.set_xticks(range(len(columns)), [f"{column.sensitivity}\n{column.score}" for column in columns], fontsize=8)
    every = 1 if len(probe.layers) <= DENSE else 5
    axes.set_yticks(range(0, len(probe.layers), every), [str(row.layer) for row in probe.layers[::every]], fontsize=7)
    axes.xaxis.tick_top()
    axes.set_ylabel("layer", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def rank_figure(probe: Probe) -> Figure:
    """Effective rank against layer, one curve per window."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = effective_ranks(probe)
    figure = Figure(figsize=(min(max(4.5, 0.12 * len(probe.layers)), 10), 3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    layers = [row.layer for row in probe.layers]
    for index, (name, values) in enumerate(curves.items()):
        color = colormaps["Blues"](0.95 - 0.5 * index / max(len(curves) - 1, 1))
        heights = [math.nan if value is None else value for value in values]
        style, marker = LINE_STYLES[index % len(LINE_STYLES)], "o" if len(layers) <= MOST_MARKERS else ""
        axes.plot(layers, heights, linestyle=style, marker=marker, markersize=3, linewidth=1.5, color=color, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel("effective rank", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.4, color="0.85")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="window", fontsize=7, title_fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


class HeadMap(NamedTuple):
    """One part of what heads see. shades: by layer and head, each share in the greatest one, `most`."""

    part: str
    most: float
    shades: list[list[float]]


def head_maps(probe: Probe) -> list[HeadMap]:
    """A map for each of HEAD_PARTS; none where heads were not read."""
    maps = []
    for part in HEAD_PARTS if probe.heads else ():
        shares = [[getattr(head, part) for head in row] for row in probe.heads or ()]
        most = scale_end(itertools.chain(*shares))
        maps.append(HeadMap(part, most, [[share / most for share in row] for row in shares]))
    return maps


def heads_figure(probe: Probe) -> Figure:
    """Heat maps, layers x heads, of what heads see, each shaded from 0 to its maximum; each head with the letter of its group."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    assert probe.heads is not None
    layers, heads = len(probe.heads), len(probe.heads[0])
    dense = layers > DENSE or heads > MOST_HEADS
    side_in = DENSE_ROW_IN if dense else ROW_IN
    groups = np.array([[head.group for head in row] for row in probe.heads])
    size = (0.8 + len(HEAD_PARTS) * max(side_in * heads + 0.25, 0.9), 0.8 + side_in * layers)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    for axes, shown in zip(figure.subplots(1, len(HEAD_PARTS), sharey=True), head_maps(probe), strict=True):
        colors = colormaps["Blues"](DARKEST * np.array(shown.shades))
        axes.imshow(colors, aspect="auto", interpolation="nearest")
        inks = np.where(colors[..., :3] @ LUMA < 0.5, "white", "black")
        for group, letter in LETTERS.items():  # as markers: text takes seconds for thousands of heads
            y, x = np.nonzero(groups == group)
            axes.scatter(
                x, y, marker=f"$\\mathrm{{{letter}}}$", s=8 if dense else 20, c=inks[y, x].tolist(), linewidths=0, snap=False
            )
        axes.set_title(f"{shown.part}\nup to {shown.most:.0%}", fontsize=8)
        axes.set_xticks(range(0, heads, 5 if dense else 1))
        axes.set_yticks(range(0, layers, 5 if dense else 1))
        axes.tick_params(length=0, labelsize=7)
        axes.spines[:].set_visible(False)
    figure.supxlabel("head", fontsize=8)
    figure.supylabel("layer", fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG without the library's version in it: equal figures are equal files."""
    figure.savefig(path, format="png", metadata={"Software": None})
