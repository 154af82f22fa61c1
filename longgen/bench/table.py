"""A benchmark for the terminal: a table no wider than WIDTH, and what its columns say."""

from __future__ import annotations

import textwrap
from typing import Any

from longgen.bench.record import Bench, Row
from longgen.cost import FLOOR
from longgen.progress import clock_text
from longgen.units import human_bytes

WIDTH = 100  # columns of the terminal
MISSING = "–"
SHOWN = ("attention", "offload", "cache", "compile", "clip_batch")  # settings that the title says, unless they are
PLAIN = (None, "none", False)
HEADS = ("preset", "a run", "x direct", "floor", "x floor", "memory", "x direct", "seconds a step, and how many")
NOISY = 1.25  # the slowest of a kind against the fastest
JOINED = "\u00a0"  # where a line may not end


def text(made: Bench) -> str:
    """The title, the table, what could not be measured, and the words of the columns."""
    rows = [HEADS, *(_cells(made, row) for row in made.rows if row.complete)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS) - 1)]
    indent = sum(widths) + 2 * len(widths)
    heading = f"{title(made.model, made.device, made.settings)}; medians of {made.settings['rounds']}"
    lines = [*textwrap.wrap(heading, WIDTH), ""]
    for cells in rows:
        placed = [f"{cells[column]:{'<' if column == 0 else '>'}{width}}  " for column, width in enumerate(widths)]
        wrapped = [part.replace(JOINED, " ") for part in textwrap.wrap(cells[-1], WIDTH - indent)]
        lines += ["".join(placed) + wrapped[0], *(" " * indent + part for part in wrapped[1:])]
    lines += [""] * any(not row.complete for row in made.rows)
    for row in made.rows:
        if not row.complete:
            lines += textwrap.wrap(f"{row.preset}: {row.error or 'not measured'}", WIDTH, subsequent_indent="  ")
    spread = max((max(kind.seconds) / min(kind.seconds) for row in made.rows if row.complete for kind in row.kinds), default=1)
    if spread > NOISY:
        noise = f"note: a kind of step took {spread:.1f} times as long once as another time: other work ran here, ratios are rough."
        lines += ["", *textwrap.wrap(noise, WIDTH)]
    said = (f"a run: sampling alone. floor: {FLOOR}; x floor: the time beside it. memory: the most at a time, "
            f"{human_bytes(made.weights_bytes)} of weights included.")  # fmt: skip
    return "\n".join([*lines, "", *textwrap.wrap(said, WIDTH)])


def title(model: str, device: str, settings: dict[str, Any]) -> str:
    """What was run, and on what."""
    width, height = settings["size"]
    parts = [model, settings["dtype"], *(f"{name} {settings[name]}" for name in SHOWN if settings.get(name) not in PLAIN)]
    return f"{', '.join(parts)}, on {device}: {settings['frames']} frames, {width}x{height}, {settings['tokens']:,} tokens"


def _cells(made: Bench, row: Row) -> tuple[str, ...]:
    return (
        row.preset,
        clock_text(row.run_seconds),
        _ratio(made.time_ratio(row)),
        _ratio(row.floor),
        _ratio(made.floor_ratio(row)),
        MISSING if row.peak_bytes is None else human_bytes(row.peak_bytes),
        _ratio(made.memory_ratio(row)),
        ", ".join(f"{kind.name} {kind.median:.3g} x {kind.count:.4g}".replace(" ", JOINED) for kind in row.kinds),
    )


def _ratio(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}"
