"""What was measured of presets on small models: read from the tables of docs/experiments, the one place of these numbers."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("docs") / "experiments"
TABLES = (  # file, section, model, times its native length, whether it is causal; a later one has the say
    ("tiny.md", "Presets at four times the native length", "tiny", 4, False),
    ("rivals.md", "Whole clips at four times the native length", "tiny", 4, False),
    ("rivals.md", "Rollouts at 12 times the horizon", "tiny-causal-unsaid", 12, True),
)
KEPT = ("colour kept", "motion")  # the columns that say what a video keeps of its prompt: shares of clips


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """By preset: the model, how many times its native length, and the shares (0 to 1) of clips that keep colour and motion."""
    found: dict[str, dict[str, Any]] = {}
    for file, section, model, times, causal in TABLES:
        text = (FOLDER / file).read_text(encoding="utf-8")
        body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        tables = ([*map(_cells, table.splitlines())] for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE))
        header, *rows = next((table for table in tables if {"preset", *KEPT} <= {*table[0]}), [[]])
        for row in rows:
            if (name := re.fullmatch(r"`([a-z0-9-]+)`", row[0])) is not None:
                shares = {key.replace(" ", "_"): _share(row[header.index(key)]) for key in KEPT}
                found[name[1]] = {"model": model, "times": times, "causal": causal, **shares}
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _share(cell: str) -> float:
    return round(float(cell.rstrip("%")) / 100, 4)


def label(measured: dict[str, Any] | None) -> str:
    """A row of `presets` for a table: `motion 94%, colour 100%`; empty where nothing was measured."""
    if measured is None:
        return ""
    return f"motion {measured['motion']:.0%}, colour {measured['colour_kept']:.0%}"
