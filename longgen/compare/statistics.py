"""What the presets come to: means, and whether a difference to the baseline is more than chance.

The difference is paired: of two videos of the same prompt and seed. Its 95% interval is a bootstrap's, by percentiles: BCa covers
no better here (measured for the mean of 2 to 24 differences, normal and exponential: within 3 of 100 everywhere) and has no
answer where all differences are equal. Few pairs make it too narrow: it held the truth in 51 of 100 cases with 2 pairs, in 71
with 3, in 85 with 6. Below LEAST_PAIRS chance alone gives all differences the same sign in more than 5 cases of 100, and then
nothing is called distinguishable.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from longgen.compare.record import Cell, Row, Value
from longgen.metrics import describe, in_order

RESAMPLES = 9_999
LEAST_PAIRS = 6  # 2 / 2 ** 6 = 0.03 of chances for one sign, 0.06 with five
STILL = 1.0  # %/s of motion below which a video counts as still
STILL_SHARE = 0.25  # of the motion of the preset that moves most: as still, beside it
FLATTERED = (  # what a still scores well in, whatever it shows
    "seam", "drift", "flicker", "smoothness", "motion_smoothness_raft", "vbench.subject_consistency",
    "vbench.background_consistency", "vbench.motion_smoothness", "vbench.temporal_flickering",
)  # fmt: skip


def rows(presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, names: Sequence[str]) -> list[Row]:
    """A row for each preset, with the metrics `names` that any of its cells has. seconds: of cells made in one go."""
    made = []
    for preset in presets:
        own = [cell for cell in cells if cell.preset == preset]
        done = [cell for cell in own if cell.status == "done"]
        base = [cell for cell in cells if cell.preset == baseline and cell.status == "done"]
        values = {name: value(name, done, base if preset != baseline else []) for name in names}
        seconds = [took for cell in done if (took := took_s(cell)) is not None]
        made.append(Row(
            preset=preset, cells=len(own), failed=len(own) - len(done), seconds=statistics.median(seconds) if seconds else None,
            peak_memory_bytes=max((cell.peak_memory_bytes for cell in done), default=0),
            cost_ratio=next((cell.cost_ratio for cell in done if cell.cost_ratio is not None), None),
            metrics={name: found for name, found in values.items() if found is not None},
        ))  # fmt: skip
    return made


def took_s(cell: Cell) -> float | None:
    """Seconds of sampling and decoding; None where they are not known as a whole."""
    return None if not cell.seconds or "resumed" in cell.details else cell.seconds["sample"] + cell.seconds["decode"]


def value(name: str, cells: Sequence[Cell], base: Sequence[Cell]) -> Value | None:
    """The metric `name` over `cells`, and against `base`; None where no cell has it."""
    numbers = [number for cell in cells if (number := cell.metrics.get(name)) is not None]
    if not numbers:
        return None
    others = {(cell.prompt, cell.seed): cell.metrics.get(name) for cell in base}
    pairs = [(cell.metrics.get(name), others.get((cell.prompt, cell.seed))) for cell in cells]
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    mean = statistics.fmean(numbers)
    if len(differences) < 2:
        return Value(mean=mean, cells=len(numbers))
    low, high = interval(differences)
    return Value(
        mean=mean, cells=len(numbers), difference=statistics.fmean(differences), low=low, high=high,
        distinguishable=len(differences) >= LEAST_PAIRS and not low <= 0 <= high,
    )  # fmt: skip


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The ends of the 95% bootstrap interval of the mean of two or more `differences`."""
    if min(differences) == max(differences):
        return differences[0], differences[0]
    from scipy.stats import bootstrap

    found = bootstrap((np.array(differences),), np.mean, n_resamples=RESAMPLES, method="percentile",
                      random_state=np.random.default_rng(0)).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def pairs(row: Row, cells: Sequence[Cell], baseline: str | None) -> int:
    """How many videos of the row's preset have one of the baseline's with the same prompt and seed."""
    done = {(cell.prompt, cell.seed) for cell in cells if cell.preset == baseline and cell.status == "done"}
    return sum(cell.preset == row.preset and cell.status == "done" and (cell.prompt, cell.seed) in done for cell in cells)


def still(table: Sequence[Row]) -> dict[str, float]:
    """The presets whose videos hardly move, and their motion in %/s."""
    motion = {row.preset: row.metrics["motion"].mean for row in table if "motion" in row.metrics}
    least = max(STILL, STILL_SHARE * max(motion.values(), default=0.0))
    return {preset: moved for preset, moved in motion.items() if moved < least}


def best(table: Sequence[Row]) -> dict[str, list[str]]:
    """For each metric that has a better way the presets that are best in it; one that is still is no best in what flatters stills.

    Empty where there is nothing to choose between.
    """
    found: dict[str, list[str]] = {}
    unmoved = still(table)
    for name in in_order(name for row in table for name in row.metrics):
        better = describe(name).better
        values = {row.preset: row.metrics[name].mean for row in table if name in row.metrics}
        if better == "neither" or len(set(values.values())) < 2:
            continue
        running = {preset: mean for preset, mean in values.items() if name not in FLATTERED or preset not in unmoved}
        if running:
            top = (max if better == "higher" else min)(running.values())
            found[name] = [preset for preset, mean in running.items() if mean == top]
    return found
