"""Cells as `longgen compare` aggregates them: the fields of a Comparison that follow from its videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longgen.compare import statistics
from longgen.compare.record import Cell
from longgen.compare.verdict import verdict


def aggregated(presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, names: Sequence[str]) -> dict[str, Any]:
    differences = statistics.paired_differences(presets, cells, baseline, names)
    table = statistics.preset_rows(presets, cells, baseline, names, differences)
    return {"table": table, "verdict": verdict(presets, cells, baseline, table, differences)}
