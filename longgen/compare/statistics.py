"""Means of the metrics by preset, and whether a difference to the baseline is statistically distinguishable.

Differences are paired: between two videos of the same prompt and seed. The 95% interval is a percentile bootstrap: BCa covers no
better here (measured for the mean of 2 to 24 differences, normal and exponential: within 3 of 100 everywhere) and is undefined
where all differences are equal. With few pairs it is too narrow: it covered the true mean in 51 of 100 cases with 2 pairs, in 71
with 3, in 85 with 6. Below LEAST_PAIRS chance alone gives all differences the same sign in more than 5 cases of 100, and then
nothing is called distinguishable.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from longgen.compare.record import Cell, MetricValue, PresetRow
from longgen.metrics import describe, in_order

RESAMPLES = 9_999
LEAST_PAIRS = 6  # chance of a single sign: 2 / 2 ** 6 = 0.03, with five pairs 0.06
STILL = 1.0  # %/s of motion below which a video counts as still
STILL_SHARE = 0.25  # of the motion of the preset that moves most, below which a video counts as still too
FLATTERED = (  # metrics that a still scores well in, whatever it shows
    "seam", "drift", "flicker", "smoothness", "motion_smoothness_raft", "feature_consistency",
    "vbench.subject_consistency", "vbench.background_consistency", "vbench.motion_smoothness", "vbench.temporal_flickering",
)  # fmt: skip


def preset_rows(presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, names: Sequence[str]) -> list[PresetRow]:
    """A row per preset, with those metrics of `names` that any of its cells has. seconds: of cells made without interruption."""
    rows = []
    for preset in presets:
        of_preset = [cell for cell in cells if cell.preset == preset]
        done = [cell for cell in of_preset if cell.status == "done"]
        base = [cell for cell in cells if cell.preset == baseline and cell.status == "done"]
        values = {name: metric_value(name, done, base if preset != baseline else []) for name in names}
        seconds = [spent for cell in done if (spent := generation_seconds(cell)) is not None]
        rows.append(PresetRow(
            preset=preset, cells=len(of_preset), failed=len(of_preset) - len(done),
            seconds=statistics.median(seconds) if seconds else None,
            peak_memory_bytes=max((cell.peak_memory_bytes for cell in done), default=0),
            cost_ratio=next((cell.cost_ratio for cell in done if cell.cost_ratio is not None), None),
            metrics={name: mean for name, mean in values.items() if mean is not None},
        ))  # fmt: skip
    return rows


def generation_seconds(cell: Cell) -> float | None:
    """Seconds of sampling and decoding; None if unknown, or if the video was made with an interruption."""
    return None if not cell.seconds or "resumed" in cell.details else cell.seconds["sample"] + cell.seconds["decode"]


def metric_value(name: str, cells: Sequence[Cell], base: Sequence[Cell]) -> MetricValue | None:
    """The metric `name` over `cells`, and against the baseline's cells `base`; None if no cell has it."""
    numbers = [number for cell in cells if (number := cell.metrics.get(name)) is not None]
    if not numbers:
        return None
    base_of = {(cell.prompt, cell.seed): cell.metrics.get(name) for cell in base}
    pairs = [(cell.metrics.get(name), base_of.get((cell.prompt, cell.seed))) for cell in cells]
    differences = [number - other for number, other in pairs if number is not None and other is not None]
    mean = statistics.fmean(numbers)
    if len(differences) < 2:
        return MetricValue(mean=mean, cells=len(numbers))
    low, high = bootstrap_interval(differences)
    return MetricValue(
        mean=mean, cells=len(numbers), difference=statistics.fmean(differences), low=low, high=high,
        distinguishable=len(differences) >= LEAST_PAIRS and not low <= 0 <= high,
    )  # fmt: skip


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of the mean of two or more `differences`."""
    if min(differences) == max(differences):
        return differences[0], differences[0]
    from scipy.stats import bootstrap

    ends = bootstrap((np.array(differences),), np.mean, n_resamples=RESAMPLES, method="percentile",
                      random_state=np.random.default_rng(0)).confidence_interval  # fmt: skip
    return float(ends.low), float(ends.high)


def count_pairs(row: PresetRow, cells: Sequence[Cell], baseline: str | None) -> int:
    """How many videos of the row's preset have a counterpart of the baseline: the same prompt and seed."""
    done = {(cell.prompt, cell.seed) for cell in cells if cell.preset == baseline and cell.status == "done"}
    return sum(cell.preset == row.preset and cell.status == "done" and (cell.prompt, cell.seed) in done for cell in cells)


def still_presets(table: Sequence[PresetRow]) -> dict[str, float]:
    """Presets whose videos hardly move, with their motion in %/s."""
    motion = {row.preset: row.metrics["motion"].mean for row in table if "motion" in row.metrics}
    least = max(STILL, STILL_SHARE * max(motion.values(), default=0.0))
    return {preset: mean for preset, mean in motion.items() if mean < least}


def best_presets(table: Sequence[PresetRow]) -> dict[str, list[str]]:
    """For each metric with a better direction, the best presets; a still one is excluded from metrics that flatter stills.

    Metrics with fewer than two different values are left out.
    """
    best: dict[str, list[str]] = {}
    still = still_presets(table)
    for name in in_order(name for row in table for name in row.metrics):
        better = describe(name).better
        values = {row.preset: row.metrics[name].mean for row in table if name in row.metrics}
        if better == "neither" or len(set(values.values())) < 2:
            continue
        candidates = {preset: mean for preset, mean in values.items() if name not in FLATTERED or preset not in still}
        if candidates:
            top = (max if better == "higher" else min)(candidates.values())
            best[name] = [preset for preset, mean in candidates.items() if mean == top]
    return best
