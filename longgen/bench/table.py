"""Benchmark results for the terminal: tables no wider than asked, and a legend."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from longgen.bench.record import BenchResult, LengthsResult, PresetTiming
from longgen.cards import CARDS
from longgen.cost import FLOOR
from longgen.progress import clock_text
from longgen.terminal import MISSING, WIDTH, aligned, tables
from longgen.units import human_bytes

TITLE = ("attention", "offload", "cache", "compile", "clip_batch")  # settings that the title names, unless they are defaults
DEFAULTS = (None, "none", False)
HEADS = ("preset", "a run", "x direct", "floor", "x floor", "memory", "x direct", "seconds a step, and how many")
NOISY = 1.25  # slowest step of a type over the fastest
NO_BREAK = "\u00a0"


def text(result: BenchResult, width: int = WIDTH) -> str:
    """The title, the table, what could not be measured, and a legend."""
    complete = [row for row in result.rows if row.complete]
    heading = f"{title(result.model, result.device, result.settings)}; medians of {result.settings['rounds']}"
    lines = [*textwrap.wrap(heading, width), "", *_table([HEADS, *(_cells(result, row) for row in complete)], width)]
    off = [f"{row.preset} {row.estimate_error:+.0%}" for row in complete if row.estimate_error is not None]
    if off:
        note = f"estimates, from the rates of {CARDS[str(result.card)].title}, were off by: {', '.join(off)} of what was measured"
        lines += ["", *textwrap.wrap(note, width)]
    if result.no_estimate:
        lines += ["", *textwrap.wrap(f"no estimate: {result.no_estimate}", width)]
    lines += failures({row.preset: row.error for row in result.rows if not row.complete}, width)
    if (spread := _spread(result)) > NOISY:
        lines += ["", *textwrap.wrap(_busy(spread), width)]
    legend = (f"a run: sampling alone. floor: {FLOOR}; x floor: time relative to it. memory: peak, including "
              f"{human_bytes(result.weights_bytes or 0)} of weights.")  # fmt: skip
    return "\n".join([*lines, "", *textwrap.wrap(legend, width)])


def _table(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """`rows`, whose last cells are lists of steps: beside the others where these fit, else in a table of their own."""
    lines, names = tables([row[:-1] for row in rows], width), aligned([row[:1] for row in rows])
    longest = max(len(part) for row in rows for part in row[-1].split(" "))
    apart = len(lines) > len(rows) or len(lines[0]) + 2 + longest > width
    lefts, table = (names, [*lines, ""]) if apart else (lines, [])
    indent = max(map(len, lefts)) + 2
    for left, row in zip(lefts, rows, strict=True):
        steps = [part.replace(NO_BREAK, " ") for part in textwrap.wrap(row[-1], max(width - indent, longest))]
        table += [f"{left:<{indent}}{steps[0]}", *(" " * indent + part for part in steps[1:])]
    return table


def lengths_text(found: LengthsResult, width: int = WIDTH) -> str:
    """A row for each preset; for each length the time of a run, and that time and the memory relative to direct sampling."""
    first = next(iter(found.results.values()))
    heads, rows = ["preset"], {row.preset: [row.preset] for row in found.rows}
    for times, result in found.results.items():
        heads += [f"{times}x: a run", "x direct", "memory"]
        complete = {row.preset: row for row in result.rows if row.complete}
        for name, cells in rows.items():
            row = complete.get(name)
            cells += [MISSING] * 3 if row is None else [clock_text(row.run_seconds), _ratio(result.time_ratio(row)),
                                                        _ratio(result.memory_ratio(row))]  # fmt: skip
    lengths = ", ".join(f"{times}x is {result.settings['frames']} frames" for times, result in found.results.items())
    heading = f"{title(first.model, first.device, first.settings, length=False)}; {lengths}; medians of {first.settings['rounds']}"
    lines = [*textwrap.wrap(heading, width), "", *tables([heads, *rows.values()], width)]
    for times, result in found.results.items():
        lines += failures({f"{row.preset} at {times}x": row.error for row in result.rows if not row.complete}, width)
    spread = max(map(_spread, found.results.values()))
    lines += ["", *textwrap.wrap(_busy(spread), width)] if spread > NOISY else []
    legend = "Nx: N times the native length. a run: sampling alone. x direct: its time, memory: its peak with the weights, both "
    return "\n".join([*lines, "", *textwrap.wrap(f"{legend}relative to direct sampling.", width)])


def _spread(result: BenchResult) -> float:
    """The slowest step of a type over the fastest, at most."""
    timings = (timing for row in result.rows if row.complete for timing in row.timings)
    return max((max(timing.seconds) / min(timing.seconds) for timing in timings), default=1)


def _busy(spread: float) -> str:
    return f"note: steps of one type took up to {spread:.1f} times as long as others: the machine was busy, so ratios are rough."


def title(model: str, device: str, settings: dict[str, Any], length: bool = True) -> str:
    """What was run, and on what; with its `length`."""
    width, height = settings["size"]
    parts = [model, settings["dtype"], *(f"{name} {settings[name]}" for name in TITLE if settings.get(name) not in DEFAULTS)]
    frames, tokens = (f"{settings['frames']} frames, ", f", {settings['tokens']:,} tokens") if length else ("", "")
    return f"{', '.join(parts)}, on {device}: {frames}{width}x{height}{tokens}"


def failures(errors: Mapping[str, str | None], width: int) -> list[str]:
    """Lines, after an empty one, that say why presets were not measured."""
    lines = [""] * bool(errors)
    for preset, error in errors.items():
        lines += textwrap.wrap(f"{preset}: {error or 'not measured'}", width, subsequent_indent="  ")
    return lines


def _cells(result: BenchResult, row: PresetTiming) -> tuple[str, ...]:
    return (
        row.preset,
        clock_text(row.run_seconds),
        _ratio(result.time_ratio(row)),
        _ratio(row.floor),
        _ratio(result.floor_ratio(row)),
        MISSING if row.peak_bytes is None else human_bytes(row.peak_bytes),
        _ratio(result.memory_ratio(row)),
        ", ".join(f"{timing.name} {timing.median:.3g} x {timing.count:.4g}".replace(" ", NO_BREAK) for timing in row.timings),
    )


def _ratio(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}"
