"""What accelerators do to presets, for the terminal: a row for each pair, and below the table why some are refused."""

from __future__ import annotations

import textwrap

from longgen.bench.accelerators import Composition, Pair, Row
from longgen.bench.table import MISSING, WIDTH, title
from longgen.progress import clock_text

HEADS = ("preset", "accelerator", "latent", "differs by", "PSNR", "computed", "a run", "x plain")
SAID = (
    "latent: bit for bit the plain run's, or not. differs by: |x' - x| / |x|. PSNR: of the frames. computed: of the calls of the "
    "last layer. a run: sampling alone, on a CPU the time that the process had it; with compile that of a second run."
)


def text(made: Composition) -> str:
    """The title, the table, the numbered reasons, what could not be measured, and the words of the columns."""
    shown = [row for row in made.rows if row.seconds]
    reasons = [*dict.fromkeys(pair.error for row in shown for pair in row.pairs if pair.error is not None)]
    cells: list[tuple[str, ...]] = [HEADS]
    for row in shown:
        cells.append((row.preset, "none", *[""] * 4, clock_text(row.seconds), ""))
        cells += [("", pair.accelerator, *_cells(row, pair, reasons)) for pair in row.pairs]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADS))]
    placed = [[f"{cell:{'<' if column < 3 else '>'}{widths[column]}}" for column, cell in enumerate(line)] for line in cells]
    heading = f"{title(made.model, made.device, made.settings)}; seed {made.settings['seed']}, {made.settings['prompt']!r}"
    lines = [*textwrap.wrap(heading, WIDTH), "", *("  ".join(line).rstrip() for line in placed)]
    lines += [""] * bool(reasons)
    for number, reason in enumerate(reasons, start=1):
        lines += textwrap.wrap(f"{number}. {reason}", WIDTH, subsequent_indent="   ")
    lines += [""] * (len(shown) < len(made.rows))
    for row in made.rows:
        if not row.seconds:
            lines += textwrap.wrap(f"{row.preset}: {row.error or 'not measured'}", WIDTH, subsequent_indent="  ")
    return "\n".join([*lines, "", *textwrap.wrap(SAID, WIDTH)])


def _cells(row: Row, pair: Pair, reasons: list[str]) -> tuple[str, ...]:
    if pair.error is not None:
        return (f"refused ({reasons.index(pair.error) + 1})", *[""] * 5)
    if pair.difference is None:
        return (pair.verdict, *[""] * 5)
    return (
        pair.verdict,
        f"{pair.difference:.1e}" if pair.difference else MISSING,
        MISSING if pair.psnr is None else f"{pair.psnr:.0f} dB",
        MISSING if pair.computed is None else f"{pair.computed:.0%}",
        clock_text(pair.seconds),
        f"{pair.seconds / row.seconds:.2f}",
    )
