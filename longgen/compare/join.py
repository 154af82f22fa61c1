"""Shards of one grid as the whole: the same table as if one process had made all of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longgen.compare.record import Cell, Comparison, read
from longgen.run_settings import TREATMENT

GRID = ("backbone", "presets", "prompts", "seeds", "baseline")  # equal in all shards of a grid


def parts(paths: Sequence[Path]) -> dict[Path, Comparison] | None:
    """The comparisons in the folders `paths`, where these are shards of one grid; None where they are something else.

    A shard lacks cells of the grid that its compare.json describes. Raises as `longgen.compare.record.read` does.
    """
    if len(paths) < 2 or not all((path / "compare.json").is_file() for path in paths):
        return None
    found = {path: read(path / "compare.json") for path in {Path(os.path.realpath(path)): path for path in paths}.values()}
    first = next(iter(found.values()))
    if any(getattr(other, name) != getattr(first, name) for other in found.values() for name in GRID):
        return None
    made: dict[str, Any] = {}  # by preset: of another length, say, they are of two grids
    for cell in (cell for comparison in found.values() for cell in comparison.cells if cell.settings):
        treatment = [cell.settings.get(name) for name in TREATMENT]
        if made.setdefault(cell.preset, treatment) != treatment:
            return None
    whole = len(first.presets) * len(first.prompts) * len(first.seeds)
    return found if all(len(comparison.cells) < whole for comparison in found.values()) else None


def cells(parts: dict[Path, Comparison]) -> tuple[list[Cell], list[str]]:
    """The cells of the whole grid in its order, and a sentence where some are missing, which are failed ones.

    Where two shards have a cell, the one that is done counts. Videos are given by absolute paths.
    """
    known: dict[tuple[str, str | None, int | None], Cell] = {}
    for folder, comparison in parts.items():
        for cell in comparison.cells:
            video = None if cell.video is None else os.path.abspath(folder / cell.video)
            key = cell.preset, cell.prompt, cell.seed
            if key not in known or known[key].status == "failed":
                known[key] = cell.model_copy(update={"video": video})
    first = next(iter(parts.values()))
    ordered: list[Cell] = []
    missing: list[str] = []
    for prompt in first.prompts:
        for seed in first.seeds:
            for preset in first.presets:
                key = preset, prompt, seed
                if key not in known:
                    missing.append(f"{preset}, seed {seed}")
                    name = f"missing-{len(missing)}"
                    known[key] = Cell(name=name, preset=preset, prompt=prompt, seed=seed, status="failed", error="no shard has it")
                ordered.append(known[key])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return ordered, [f"no shard has {'; '.join(missing[:8])}{more}"] if missing else []
