"""Means of the metrics by preset, the differences between presets, and which of these cannot be chance.

Differences are paired: between two videos of the same prompt and seed. A difference is distinguishable if both hold:

- Wilcoxon's signed-rank test rejects it at 5%, corrected by Holm's method for all comparisons: every two presets in every metric.
  The test is exact, with ties and without the pairs that are equal. With n pairs that differ its p is 2 / 2 ** n at least, so that
  five pairs never reach 5% and ten comparisons need nine pairs. A comparison that cannot reach 5% even alone is not counted among
  those that are corrected for (Tarone 1990): it can be no false discovery.
- The 95% interval excludes 0. It is of this difference alone, a percentile bootstrap of the mean: BCa covers no better here
  (measured for the mean of 2 to 24 differences, normal and exponential: within 3 of 100 everywhere) and is undefined where all
  differences are equal. With few pairs it is too narrow: it covered the true mean in 51 of 100 cases with 2 pairs, in 71 with 3, in
  85 with 6.

Pairs count alike whether prompts or seeds tell them apart: what is found holds for the prompts that were compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from longgen.compare.record import Cell, Difference, MetricValue, PresetRow
from longgen.metrics import describe, in_order

LEVEL = 0.05  # the chance, at most, that any difference is called distinguishable where there is none
RESAMPLES = 9_999
EXACT = 60  # differences up to which the exact distribution is counted; beyond, the normal one is as good
STILL = 1.0  # %/s of motion below which a video counts as still
STILL_SHARE = 0.25  # of the motion of the preset that moves most, below which a video counts as still too
FLATTERED = (  # metrics that a still scores well in, whatever it shows
    "seam", "drift", "flicker", "smoothness", "motion_smoothness_raft", "feature_consistency",
    "vbench.subject_consistency", "vbench.background_consistency", "vbench.motion_smoothness", "vbench.temporal_flickering",
)  # fmt: skip


def paired_differences(
    presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, names: Sequence[str]
) -> list[Difference]:
    """Every two `presets` in every metric of `names` in which they have a pair of videos: against the baseline first."""
    others = [preset for preset in presets if preset != baseline]
    pairs = [(preset, baseline) for preset in others if baseline in presets and baseline is not None]
    pairs += [(preset, other) for index, preset in enumerate(others) for other in others[:index]]
    values = {preset: {(cell.prompt, cell.seed): cell.metrics for cell in cells if cell.preset == preset and cell.status == "done"}
              for preset in presets}  # fmt: skip
    found: list[tuple[str, str, str, list[float]]] = []
    for preset, other in pairs:
        both = [(own, values[other][key]) for key, own in values[preset].items() if key in values[other]]
        for name in names:
            numbers = [(own.get(name), base.get(name)) for own, base in both]
            differences = [one - two for one, two in numbers if one is not None and two is not None]
            if differences:
                found.append((preset, other, name, differences))
    p_values = [signed_rank_p(differences) for *_, differences in found]
    differing = [int(np.count_nonzero(differences)) for *_, differences in found]
    rows = []
    for (preset, other, name, differences), unequal, p, p_holm in zip(
        found, differing, p_values, holm(p_values, differing), strict=True
    ):
        low, high = bootstrap_interval(differences) if len(differences) > 1 else (None, None)
        excludes = low is not None and high is not None and not low <= 0 <= high
        rows.append(Difference(
            preset=preset, other=other, metric=name, pairs=len(differences), differing=unequal,
            difference=statistics.fmean(differences), low=low, high=high, p=p, p_holm=p_holm,
            distinguishable=excludes and p_holm <= LEVEL,
        ))  # fmt: skip
    return rows


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that `differences` are symmetric about 0. Those of 0 are dropped; 1 if all are."""
    from scipy.stats import rankdata, wilcoxon

    nonzero = np.array([difference for difference in differences if difference != 0])
    if len(nonzero) > EXACT:
        return float(wilcoxon(nonzero).pvalue)
    ranks = np.rint(2 * rankdata(np.abs(nonzero))).astype(int)  # doubled: ties share a rank that may end in a half
    chance = np.ones(1)  # of each sum of the ranks with a positive sign, where every sign is as likely
    for rank in ranks:
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    positive = int(ranks[nonzero > 0].sum())
    return min(1.0, 2 * float(chance[: min(positive, int(ranks.sum()) - positive) + 1].sum()))


def least_p(pairs: int) -> float:
    """The smallest p that the signed-rank test can give for so many pairs that differ."""
    return 2 / 2**pairs if pairs else 1.0


def _counted(differing: Sequence[int]) -> list[bool]:
    """Which comparisons are corrected for, by how many of their pairs differ: those that could reach LEVEL alone. Where none could,
    all with a pair that differs, which says how many pairs would be needed.
    """
    could = [least_p(pairs) <= LEVEL for pairs in differing]
    return could if any(could) else [pairs > 0 for pairs in differing]


def holm(p_values: Sequence[float], differing: Sequence[int]) -> list[float]:
    """`p_values` corrected by Holm's method for those that are counted, by how many of their pairs differ; 1 for the others."""
    corrected, largest = [1.0] * len(p_values), 0.0
    order = sorted((p, index) for index, (p, counts) in enumerate(zip(p_values, _counted(differing), strict=True)) if counts)
    for done, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - done)))
        corrected[index] = largest
    return corrected


def tested_comparisons(rows: Sequence[Difference]) -> int:
    """How many of `rows` are corrected for."""
    return sum(_counted([row.differing for row in rows]))


def needed_pairs(tested: int) -> int:
    """The fewest pairs with which one of `tested` comparisons can be told from chance."""
    return next(pairs for pairs in range(1, 1000) if least_p(pairs) * max(tested, 1) <= LEVEL)


def preset_rows(
    presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, names: Sequence[str], differences: Iterable[Difference]
) -> list[PresetRow]:
    """A row per preset, with those metrics of `names` that any of its cells has. seconds: of cells made without interruption.

    differences: from `paired_differences`.
    """
    to_baseline = {(row.preset, row.metric): row for row in differences if row.other == baseline and row.pairs > 1}
    rows = []
    for preset in presets:
        of_preset = [cell for cell in cells if cell.preset == preset]
        done = [cell for cell in of_preset if cell.status == "done"]
        values = {name: metric_value(name, done, to_baseline.get((preset, name))) for name in names}
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


def metric_value(name: str, cells: Sequence[Cell], difference: Difference | None) -> MetricValue | None:
    """The metric `name` over `cells`, with its `difference` to the baseline; None if no cell has it."""
    numbers = [number for cell in cells if (number := cell.metrics.get(name)) is not None]
    if not numbers:
        return None
    fields = {} if difference is None else difference.model_dump(include={"difference", "low", "high", "distinguishable"})
    return MetricValue(mean=statistics.fmean(numbers), cells=len(numbers), **fields)


def bootstrap_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of the mean of two or more `differences`."""
    if min(differences) == max(differences):
        return differences[0], differences[0]
    means = np.array(differences)[_resamples(len(differences))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(count: int) -> np.ndarray:
    """[RESAMPLES, count] indices of differences, drawn with a fixed seed."""
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def still_presets(table: Sequence[PresetRow]) -> dict[str, float]:
    """Presets whose videos hardly move, with their motion in %/s."""
    motion = {row.preset: row.metrics["motion"].mean for row in table if "motion" in row.metrics}
    least = max(STILL, STILL_SHARE * max(motion.values(), default=0.0))
    return {preset: mean for preset, mean in motion.items() if mean < least}


def best_presets(table: Sequence[PresetRow], differences: Iterable[Difference]) -> dict[str, str]:
    """For each metric with a better direction, the preset that is distinguishably better than every other, where there is one.

    A still preset neither is the best in a metric that flatters stills nor keeps another from it.
    """
    still, told = still_presets(table), set()
    for row in differences:
        if row.distinguishable:
            higher, lower = (row.preset, row.other) if row.difference > 0 else (row.other, row.preset)
            better, worse = (higher, lower) if describe(row.metric).better == "higher" else (lower, higher)
            told.add((better, worse, row.metric))
    best: dict[str, str] = {}
    for name in in_order(name for row in table for name in row.metrics):
        candidates = [row.preset for row in table if name in row.metrics and not (name in FLATTERED and row.preset in still)]
        for preset in candidates if len(candidates) > 1 and describe(name).better != "neither" else ():
            if all((preset, other, name) in told for other in candidates if other != preset):
                best[name] = preset
    return best
