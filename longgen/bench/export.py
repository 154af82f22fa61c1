"""A benchmark for papers: its table, its numbers, and a figure of times beside their arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from longgen.bench.accelerators import AcceleratorReport
from longgen.bench.record import BenchResult, LengthsResult, PresetTiming
from longgen.bench.table import title
from longgen.export import COLORS, DASHES, MARKERS, Data, Exports, Table, figure_size, label, plain_axes
from longgen.progress import clock_text
from longgen.terminal import MISSING
from longgen.units import human_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("presets", "steps", "table", "times")  # of all files, without suffix
TIMES = "\N{MULTIPLICATION SIGN}"


def exports(result: BenchResult | LengthsResult | AcceleratorReport) -> Exports:
    """Data `presets`, and `steps` where steps were measured; a table `table`; a figure `times`."""
    if isinstance(result, AcceleratorReport):
        return _accelerated(result)
    by_length = result.results if isinstance(result, LengthsResult) else {0: result}
    first = next(iter(by_length.values()))
    heads = ("preset", "frames", "run_seconds", "ratio_to_direct", "floor", "ratio_to_floor", "peak_memory_bytes",
             "memory_ratio_to_direct", "error")  # fmt: skip
    data, steps, shown = [], [], []
    for found in by_length.values():
        frames = found.settings["frames"]
        for row in found.rows:
            if not row.complete:
                data.append((row.preset, frames, *[None] * 6, row.error or "not measured"))
                continue
            numbers = (
                row.run_seconds,
                found.time_ratio(row),
                row.floor,
                found.floor_ratio(row),
                row.peak_bytes,
                found.memory_ratio(row),
            )
            data.append((row.preset, frames, *numbers, None))
            for timing in row.timings:
                ends = min(timing.seconds), max(timing.seconds)
                measured = (timing.name, timing.count, timing.median, *ends, len(timing.seconds), timing.peak_bytes)
                steps.append((row.preset, frames, *measured))
            memory = MISSING if row.peak_bytes is None else human_bytes(row.peak_bytes)
            ratios = map(_ratio, (found.time_ratio(row), row.floor, found.floor_ratio(row)))
            shown.append((row.preset, str(frames), clock_text(row.run_seconds), *ratios, memory, _ratio(found.memory_ratio(row))))
    step_heads = ("preset", "frames", "step", "in_a_run", "median_seconds", "least_seconds", "most_seconds", "measured",
                  "peak_memory_bytes")  # fmt: skip
    note = f"{title(first.model, first.device, first.settings, length=False)}; medians of {first.settings['rounds']}."
    table = Table("table", ("preset", "frames", "a run", f"{TIMES} direct", "floor", f"{TIMES} floor", "memory", f"{TIMES} direct"),
                  shown, notes=(note,))  # fmt: skip
    figure = partial(lengths_figure if len(by_length) > 1 else times_figure, by_length)
    return Exports([Data("presets", heads, data), Data("steps", step_heads, steps)], [table], {"times": figure})


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _accelerated(report: AcceleratorReport) -> Exports:
    heads = ("preset", "accelerator", "verdict", "relative_difference", "psnr_db", "computed", "seconds", "time_ratio", "reason")
    data: list[tuple[Any, ...]] = []
    shown = []
    for row in report.rows:
        data.append((row.preset, None, None, None, None, None, row.seconds or None, None, row.error))
        for run in row.runs if row.seconds else ():
            ratio = None if run.difference is None else run.seconds / row.seconds
            numbers = (run.difference, run.psnr, run.computed, run.seconds or None, ratio)
            data.append((row.preset, run.accelerator, run.verdict, *numbers, run.error))
            difference = MISSING if not run.difference else f"{run.difference:.1e}"
            psnr = MISSING if run.psnr is None else f"{run.psnr:.0f} dB"
            computed = MISSING if run.computed is None else f"{run.computed:.0%}"
            shown.append((row.preset, run.accelerator, run.verdict, difference, psnr, computed, _ratio(ratio)))
    note = f"{title(report.model, report.device, report.settings)}; seed {report.settings['seed']}."
    table = Table(
        "table", ("preset", "accelerator", "latent", "differs by", "PSNR", "computed", f"{TIMES} plain"), shown, notes=(note,)
    )
    return Exports([Data("presets", heads, data)], [table], {"times": partial(accelerators_figure, report)})


def _bars(rows: Sequence[tuple[str, float | None, float | None]], words: str) -> Figure:
    """A line for each row: a dot at its first number, and a bar across it at the second."""
    figure = figure_size(4.6, 0.8 + 0.22 * max(len(rows), 1))
    axes = figure.subplots()
    for line, (_, value, floor) in enumerate(rows):
        color = COLORS[line % len(COLORS)]
        if value is not None:
            axes.plot([value], [line], marker="o", markersize=5, linestyle="", color=color)
        if floor is not None:
            axes.plot([floor], [line], marker="|", markersize=10, linestyle="", color="0.35")
    plain_axes(axes)
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(rows)), [label(name) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(words, fontsize=8)
    return figure


def times_figure(by_length: dict[int, BenchResult]) -> Figure:
    """A dot for each preset at its time relative to direct sampling, and a bar at the floor of its arithmetic."""
    (found,) = by_length.values()
    rows = [(row.preset, found.time_ratio(row), row.floor) for row in found.rows if row.complete]
    return _bars(rows, f"time of a run, {TIMES} direct; bar: floor of the arithmetic")


def lengths_figure(by_length: dict[int, BenchResult]) -> Figure:
    """A line for each preset: the time of a run by the number of frames, on logarithmic axes."""
    figure = figure_size(4.6, 3.4)
    axes = figure.subplots()
    names = [*dict.fromkeys(row.preset for found in by_length.values() for row in found.rows)]
    for place, name in enumerate(names):
        points = [(found.settings["frames"], row.run_seconds) for found in by_length.values() for row in found.rows
                  if row.preset == name and _measured(row)]  # fmt: skip
        axes.plot([frames for frames, _ in points], [seconds for _, seconds in points], color=COLORS[place % len(COLORS)],
                  marker=MARKERS[place % len(MARKERS)], linestyle=DASHES[place // len(COLORS) % len(DASHES)], markersize=4,
                  linewidth=1.1, label=label(name))  # fmt: skip
    plain_axes(axes)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    frames = sorted({found.settings["frames"] for found in by_length.values()})
    axes.set_xticks(frames, [str(count) for count in frames])
    axes.set_xlabel("frames", fontsize=8)
    axes.set_ylabel("seconds of a run", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _measured(row: PresetTiming) -> bool:
    return row.complete and row.run_seconds > 0


def accelerators_figure(report: AcceleratorReport) -> Figure:
    """A dot for each preset and accelerator at its time relative to the plain run."""
    rows = [(f"{row.preset}, {run.accelerator}", run.seconds / row.seconds, None)
            for row in report.rows if row.seconds for run in row.runs if run.difference is not None]  # fmt: skip
    return _bars(rows, f"time of a run, {TIMES} plain")
