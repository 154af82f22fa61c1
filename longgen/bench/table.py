"""Benchmark results for the terminal: a table no wider than WIDTH, and a legend."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from longgen.bench.record import BenchResult, PresetTiming
from longgen.cards import CARDS
from longgen.cost import FLOOR
from longgen.progress import clock_text
from longgen.terminal import MISSING, WIDTH, aligned
from longgen.units import human_bytes

TITLE = ("attention", "offload", "cache", "compile", "clip_batch")  # settings that the title names, unless they are defaults
DEFAULTS = (None, "none", False)
HEADS = ("preset", "a run", "x direct", "floor", "x floor", "memory", "x direct", "seconds a step, and how many")
NOISY = 1.25  # slowest step of a type over the fastest
NO_BREAK = "\u00a0"


def text(result: BenchResult) -> str:
    """The title, the table, what could not be measured, and a legend."""
    complete = [row for row in result.rows if row.complete]
    rows = [HEADS, *(_cells(result, row) for row in complete)]
    placed = aligned([row[:-1] for row in rows])
    indent = len(placed[0]) + 2
    heading = f"{title(result.model, result.device, result.settings)}; medians of {result.settings['rounds']}"
    lines = [*textwrap.wrap(heading, WIDTH), ""]
    for line, row in zip(placed, rows, strict=True):
        steps = [part.replace(NO_BREAK, " ") for part in textwrap.wrap(row[-1], WIDTH - indent)]
        lines += [f"{line}  {steps[0]}", *(" " * indent + part for part in steps[1:])]
    off = [f"{row.preset} {row.estimate_error:+.0%}" for row in complete if row.estimate_error is not None]
    if off:
        note = f"estimates, from the rates of {CARDS[str(result.card)].title}, were off by: {', '.join(off)} of what was measured"
        lines += ["", *textwrap.wrap(note, WIDTH)]
    lines += failures({row.preset: row.error for row in result.rows if not row.complete})
    spread = max((max(timing.seconds) / min(timing.seconds) for row in complete for timing in row.timings), default=1)
    if spread > NOISY:
        note = (
            f"note: steps of one type took up to {spread:.1f} times as long as others: the machine was busy, so ratios are rough."
        )
        lines += ["", *textwrap.wrap(note, WIDTH)]
    legend = (f"a run: sampling alone. floor: {FLOOR}; x floor: time relative to it. memory: peak, including "
              f"{human_bytes(result.weights_bytes or 0)} of weights.")  # fmt: skip
    return "\n".join([*lines, "", *textwrap.wrap(legend, WIDTH)])


def title(model: str, device: str, settings: dict[str, Any]) -> str:
    """What was run, and on what."""
    width, height = settings["size"]
    parts = [model, settings["dtype"], *(f"{name} {settings[name]}" for name in TITLE if settings.get(name) not in DEFAULTS)]
    return f"{', '.join(parts)}, on {device}: {settings['frames']} frames, {width}x{height}, {settings['tokens']:,} tokens"


def failures(errors: Mapping[str, str | None]) -> list[str]:
    """Lines, after an empty one, that say why presets were not measured."""
    lines = [""] * bool(errors)
    for preset, error in errors.items():
        lines += textwrap.wrap(f"{preset}: {error or 'not measured'}", WIDTH, subsequent_indent="  ")
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
