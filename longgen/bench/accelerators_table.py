"""Accelerator results for the terminal: a row per preset and accelerator, then why some are unsupported."""

from __future__ import annotations

import textwrap

from longgen.bench.accelerators import AcceleratedPreset, AcceleratedRun, AcceleratorReport
from longgen.bench.table import failures, title
from longgen.progress import clock_text
from longgen.terminal import MISSING, WIDTH, tables

HEADS = ("preset", "accelerator", "latent", "differs by", "PSNR", "computed", "a run", "x plain")
LEGEND = (
    "latent: bit-identical to the plain run or not. differs by: |x' - x| / |x|. PSNR: of the frames. computed: fraction of the "
    "last layer's calls. a run: sampling alone, in process time on a CPU; with compile, of a second run."
)


def text(report: AcceleratorReport, width: int = WIDTH) -> str:
    """The title, the table, the numbered reasons, what could not be measured, and a legend."""
    measured = [row for row in report.rows if row.seconds]
    reasons = [*dict.fromkeys(run.error for row in measured for run in row.runs if run.error is not None)]
    cells: list[tuple[str, ...]] = [HEADS]
    for row in measured:
        cells.append((row.preset, "none", *[""] * 4, clock_text(row.seconds), ""))
        cells += [("", run.accelerator, *_cells(row, run, reasons)) for run in row.runs]
    heading = (
        f"{title(report.model, report.device, report.settings)}; seed {report.settings['seed']}, {report.settings['prompt']!r}"
    )
    lines = [*textwrap.wrap(heading, width), "", *tables(cells, width, left=3)]
    lines += [""] * bool(reasons)
    for number, reason in enumerate(reasons, start=1):
        lines += textwrap.wrap(f"{number}. {reason}", width, subsequent_indent="   ")
    lines += failures({row.preset: row.error for row in report.rows if not row.seconds}, width)
    return "\n".join([*lines, "", *textwrap.wrap(LEGEND, width)])


def _cells(row: AcceleratedPreset, run: AcceleratedRun, reasons: list[str]) -> tuple[str, ...]:
    if run.error is not None:
        return (f"{run.verdict} ({reasons.index(run.error) + 1})", *[""] * 5)
    if run.difference is None:
        return (run.verdict, *[""] * 5)
    return (
        run.verdict,
        f"{run.difference:.1e}" if run.difference else MISSING,
        MISSING if run.psnr is None else f"{run.psnr:.0f} dB",
        MISSING if run.computed is None else f"{run.computed:.0%}",
        clock_text(run.seconds),
        f"{run.seconds / row.seconds:.2f}",
    )
