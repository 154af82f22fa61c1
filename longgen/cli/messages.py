"""The look of errors on a terminal: their labels in colour, each fact wrapped to the width; elsewhere they are plain."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import TextIO

import typer

from longgen.terminal import WIDTH

LABELS = re.compile(r"(longgen: |failed: )|( {2}(?:expected|hint): )")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal; one that is closed is none."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def stdout_columns() -> int | None:
    """The width of the terminal that stdout is; None for a file or a pipe, whose lines are for programs."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def report_columns() -> int:
    """The width of tables and reports: that of the terminal that stdout is, within 40 and 100; 100 in a file."""
    return max(40, min(stdout_columns() or WIDTH, WIDTH))


def coloured() -> bool:
    """Whether a terminal shows colours: NO_COLOR and TERM=dumb say that it does not, and old ones of Windows do not either."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and os.name != "nt"


def on_terminal(message: str, columns: int | None = None) -> str:
    """`message`, an error as text that is safe to print, for a terminal. Words are never broken, so that paths can be copied."""
    width = max(40, columns or shutil.get_terminal_size().columns) - 1
    lines = []
    for line in message.splitlines():
        label = LABELS.match(line)
        start = label[0] if label else ""
        indent = " " * (4 if label is None or label[2] else 2)
        own = re.match(r" *", line[len(start) :])
        first = start + (own[0] if own else "")
        body = line[len(first) :]
        rest = indent if label else f"{first}  "
        wrapped = textwrap.wrap(body, width, initial_indent=first, subsequent_indent=rest, break_long_words=False,
                                break_on_hyphens=False) or [line]  # fmt: skip
        if label and coloured():
            style = {"fg": "red", "bold": True} if label[1] else {"fg": "cyan"}
            wrapped[0] = typer.style(start, **style) + wrapped[0][len(start) :]  # type: ignore[arg-type]
        lines += wrapped
    return "\n".join(lines)
