"""A comparison for papers: its table and its differences, the numbers of every video, and figures of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from longgen import naming
from longgen.compare.record import Cell, Comparison, Difference
from longgen.compare.statistics import best_presets
from longgen.compare.verdict import number as plain_number
from longgen.export import COLORS, DASHES, MARKERS, Data, Exports, Table, figure_size, label, plain_axes
from longgen.metrics import KNOWN, describe, in_order
from longgen.progress import clock_text
from longgen.terminal import MISSING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}", "neither": ""}
ACROSS = 3  # panels beside each other
PANEL = 2.3  # inches of its width
CHANCE = "~"  # after what may be chance


def exports(comparison: Comparison) -> Exports:
    """Data `presets`, `differences` and `videos`; tables `means` and `differences`; figures of metrics, differences, curves."""
    names = in_order(name for row in comparison.table for name in row.metrics)
    differences = comparison.verdict.differences if comparison.verdict else []
    figures = {"metrics": partial(metrics_figure, comparison, names)}
    to_baseline = [row for row in differences if row.other == comparison.baseline and row.low is not None]
    tables = [_means(comparison, names, differences)]
    if to_baseline:
        figures["differences"] = partial(differences_figure, comparison, to_baseline)
        tables.append(_differences(comparison, to_baseline))
    for prompt, name in _curve_files(comparison.prompts).items():
        cells = [cell for cell in comparison.cells if cell.prompt == prompt and cell.status == "done" and cell.curves]
        if cells:
            figures[name] = partial(curves_figure, comparison, cells)
    return Exports([_presets(comparison, names), _all_differences(differences), _videos(comparison, names)], tables, figures)


def files(prompts: Sequence[str | None]) -> list[str]:
    """The names of all figures and tables that a comparison of `prompts` may have, without suffix."""
    return ["metrics", "differences", "means", "presets", "videos", *_curve_files(prompts).values()]


def _curve_files(prompts: Sequence[str | None]) -> dict[str | None, str]:
    """A name for each prompt's figure of curves, each once."""
    names: dict[str | None, str] = {}
    for prompt in prompts:
        stem = f"curves-{naming.slug(prompt or 'videos')}"
        names[prompt] = stem if stem not in names.values() else f"{stem}-{len(names) + 1}"
    return names


def _presets(comparison: Comparison, names: Sequence[str]) -> Data:
    fields = ("mean", "cells", "difference", "low", "high", "distinguishable")
    heads = ("preset", "videos", "failed", "cost_ratio", "seconds", "peak_memory_bytes")
    rows = []
    for row in comparison.table:
        values = [row.metrics.get(name) for name in names]
        numbers = (None if value is None else getattr(value, field) for value in values for field in fields)
        rows.append((row.preset, row.cells, row.failed, row.cost_ratio, row.seconds, row.peak_memory_bytes or None, *numbers))
    return Data("presets", (*heads, *(f"{name}.{field}" for name in names for field in fields)), rows)


def _all_differences(differences: Iterable[Difference]) -> Data:
    heads = tuple(Difference.model_fields)
    return Data("differences", heads, [tuple(getattr(row, head) for head in heads) for row in differences])


def _videos(comparison: Comparison, names: Sequence[str]) -> Data:
    heads = ("name", "preset", "prompt", "seed", "status", "error", "frames", "fps", "width", "height", "cost_ratio",
             "seconds", "peak_memory_bytes")  # fmt: skip
    rows = []
    for cell in comparison.cells:
        seconds = sum(cell.seconds.get(phase, 0) for phase in ("sample", "decode")) or None
        rows.append((cell.name, cell.preset, cell.prompt, cell.seed, cell.status, cell.error, cell.frames, cell.fps, *cell.size,
                     cell.cost_ratio, seconds, cell.peak_memory_bytes or None, *map(cell.metrics.get, names)))  # fmt: skip
    return Data("videos", (*heads, *names), rows)


def _means(comparison: Comparison, names: Sequence[str], differences: Sequence[Difference]) -> Table:
    best = best_presets(comparison.table, differences)
    heads, rows, bold, chance = ["preset", *map(_head, names), "cost \N{MULTIPLICATION SIGN}", "time"], [], set(), False
    for line, row in enumerate(comparison.table):
        cells = [row.preset]
        for name in names:
            value = row.metrics.get(name)
            same = value is not None and value.distinguishable is False
            chance |= same
            cells.append(MISSING if value is None else number(value.mean) + CHANCE * same)
            if best.get(name) == row.preset:
                bold.add((line, len(cells) - 1))
        cost = MISSING if row.cost_ratio is None else f"{row.cost_ratio:.2f}"
        rows.append((*cells, cost, MISSING if row.seconds is None else clock_text(row.seconds)))
    notes = [f"{CHANCE}: against {comparison.baseline} it may be chance."] * chance
    notes += ["Bold: better than every other, beyond chance."] * bool(bold)
    return Table("means", tuple(heads), rows, frozenset(bold), (*notes, *(comparison.verdict.text if comparison.verdict else ())))


def _differences(comparison: Comparison, differences: Sequence[Difference]) -> Table:
    """Differences to the baseline, a row for each preset."""
    names = in_order(row.metric for row in differences)
    of = {(row.preset, row.metric): row for row in differences}
    rows = []
    for preset in dict.fromkeys(row.preset for row in differences):
        cells = [preset]
        for row in (of.get((preset, name)) for name in names):
            if row is None or row.low is None or row.high is None:
                cells.append(MISSING)
            else:
                text = f"{number(row.difference, '+')} [{number(row.low)}, {number(row.high)}]"
                cells.append(text + CHANCE * (not row.distinguishable))
        rows.append(tuple(cells))
    notes = (f"Mean paired difference to {comparison.baseline} with its 95% interval. {CHANCE}: may be chance.",)
    return Table("differences", ("preset", *map(_head, names)), rows, notes=notes)


def number(value: float, sign: str = "") -> str:
    """As in the tables of the terminal, with a proper minus sign."""
    return plain_number(value, sign).replace("-", "\N{MINUS SIGN}")


def _head(name: str) -> str:
    """A metric with its unit and an arrow in the better direction."""
    metric = describe(name)
    unit = "" if metric.unit in ("", "of 1") else f" ({metric.unit})"
    return f"{name.replace('_', ' ')}{unit} {ARROWS[metric.better]}".rstrip()


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels, ACROSS beside each other, each of so many inches in height, and their axes."""
    across = min(ACROSS, count) or 1
    down = -(-count // across) or 1
    figure = figure_size(PANEL * across + 0.8, height * down)
    axes = [*np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()]
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def metrics_figure(comparison: Comparison, names: Sequence[str]) -> Figure:
    """A panel for each metric, a line of it for each preset: a dot for each video, and a bar at their mean."""
    figure, panels = _panels(len(names), 0.7 + 0.2 * len(comparison.presets))
    for place, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for line, preset in enumerate(comparison.presets):
            own = [cell.metrics.get(name) for cell in comparison.cells if cell.preset == preset and cell.status == "done"]
            values = [value for value in own if value is not None]
            color = COLORS[line % len(COLORS)]
            axes.plot(
                values, [line] * len(values), linestyle="", marker="o", markersize=3, color=color, alpha=0.45, markeredgewidth=0
            )
            if values:
                axes.plot([np.mean(values)], [line], linestyle="", marker="|", markersize=9, markeredgewidth=1.8, color=color)
        _preset_lines(axes, comparison.presets, name, labelled=place % ACROSS == 0)
    return figure


def differences_figure(comparison: Comparison, differences: Sequence[Difference]) -> Figure:
    """A panel for each metric, a line of it for each preset: the difference to the baseline with its 95% interval. Filled where it
    is beyond chance.
    """
    names, presets = in_order(row.metric for row in differences), [*dict.fromkeys(row.preset for row in differences)]
    figure, panels = _panels(len(names), 0.7 + 0.2 * len(presets))
    for place, (axes, name) in enumerate(zip(panels, names, strict=True)):
        axes.axvline(0, color="0.5", linewidth=0.8)
        for row in differences:
            if row.metric == name and row.low is not None and row.high is not None:
                line, color = presets.index(row.preset), COLORS[comparison.presets.index(row.preset) % len(COLORS)]
                axes.plot([row.low, row.high], [line, line], color=color, linewidth=1.2)
                axes.plot([row.difference], [line], marker="o", markersize=5, color=color, linestyle="",
                          markerfacecolor=color if row.distinguishable else "white")  # fmt: skip
        _preset_lines(axes, presets, name, labelled=place % ACROSS == 0)
    figure.supxlabel(f"difference to {label(comparison.baseline or '')}, 95% interval; filled: beyond chance", fontsize=8)
    return figure


def _preset_lines(axes: Any, presets: Sequence[str], metric: str, labelled: bool) -> None:
    plain_axes(axes)
    axes.set_yticks(range(len(presets)), [label(preset) for preset in presets] if labelled else [""] * len(presets))
    axes.set_ylim(len(presets) - 0.5, -0.5)
    axes.set_title(label(_head(metric)), fontsize=8)
    axes.locator_params(axis="x", nbins=4)


def curves_figure(comparison: Comparison, cells: Sequence[Cell]) -> Figure:
    """A panel for each curve of a prompt's videos: colours and markers tell presets apart, dashes seeds."""
    from matplotlib.lines import Line2D

    names = sorted(
        {name for cell in cells for name in cell.curves}, key=lambda name: ([*KNOWN].index(name) if name in KNOWN else 99, name)
    )
    presets, seeds = [*dict.fromkeys(cell.preset for cell in cells)], [*dict.fromkeys(cell.seed for cell in cells)]

    def look(preset: str, seed: int | None) -> dict[str, Any]:
        place = comparison.presets.index(preset)
        dash = place // len(COLORS) * len(seeds) + seeds.index(seed)
        return {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 2.5,
                "linestyle": DASHES[dash % len(DASHES)], "linewidth": 0.9}  # fmt: skip

    figure = figure_size(6.8, 1.1 * len(names) + 0.8)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        for cell in cells:
            curve = [np.nan if value is None else value for value in cell.curves.get(name, ())]
            times = cell.times[: len(curve)] if cell.times else [frame / cell.fps for frame in range(len(curve))]
            axes.plot(
                times, curve, markevery=(presets.index(cell.preset) * 3, max(len(curve) // 8, 1)), **look(cell.preset, cell.seed)
            )
        plain_axes(axes)
        axes.set_ylabel(label(name.replace("_", "\n", 1).replace("_", " ").replace("\n", " ")), fontsize=7)
    panels[-1].set_xlabel("s", fontsize=8)
    keys = [
        (preset, seed) for preset in presets for seed in seeds if any((cell.preset, cell.seed) == (preset, seed) for cell in cells)
    ]
    handles = [Line2D([], [], **look(preset, seed)) for preset, seed in keys]
    words = [label(preset if len(seeds) < 2 or seed is None else f"{preset}, seed {seed}") for preset, seed in keys]
    figure.legend(handles, words, fontsize=7, frameon=False, loc="outside lower center", ncols=min(4, len(keys)), handlelength=4)
    return figure
