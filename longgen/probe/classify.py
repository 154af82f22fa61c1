"""Classifies layers as position- or context-sensitive by thresholds on their scores, and rates how stable the ranking is.

A layer is sensitive if its score is above a threshold:
    largest gap    in the middle of the widest gap between neighbours in the sorted scores; if all are equal, no layer is sensitive.
                   [derived: the paper gives no rule]
    threshold      as given
    top            the K layers with the highest scores
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from longgen.layers.probe_file import SENSITIVITIES, VERDICT_OF, LayerScores, ProbeRun, ScoreName, Sensitivity, Stability

LOW_CORRELATION = 0.6  # of ranks, below which a probe is called unstable


def largest_gap(scores: Sequence[float]) -> float:
    """The threshold in the middle of the widest gap; the highest score if all are equal."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    gaps = np.diff(ordered)
    if not len(gaps) or gaps.max() <= 0:
        return float(ordered[-1])
    widest = int(gaps.argmax())
    return float((ordered[widest] + ordered[widest + 1]) / 2)


def top_threshold(scores: Sequence[float], count: int) -> float:
    """A threshold that the `count` highest scores exceed, ties aside."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if count >= len(ordered):
        return float(ordered[-1]) / 2 if ordered[-1] > 0 else -1.0
    return float((ordered[count - 1] + ordered[count]) / 2) if count else float(ordered[0])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, with ties; 1 if both are constant, 0 if one is."""
    from scipy.stats import ConstantInputWarning, spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float(np.ptp(first) == np.ptp(second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(np.clip(spearmanr(first, second).statistic, -1, 1))


def classify(
    runs: Sequence[ProbeRun],
    effective_ranks: Mapping[str, Sequence[float]],
    metric: ScoreName,
    threshold: float | None,
    count: int | None,
) -> dict[str, Any]:
    """The fields of a Probe that follow from its scores: metric, rule, thresholds, layers, stability, agreement, warnings.

    effective_ranks: by window, one per layer. threshold or count (`top`) replaces the largest gap.
    """
    means = {
        sensitivity: {
            name: np.mean([run.scores[sensitivity][name] for run in runs], axis=0) for name in runs[0].scores[sensitivity]
        }
        for sensitivity in SENSITIVITIES
    }
    rule = "largest gap" if threshold is None and count is None else f"top {count}" if threshold is None else f"above {threshold:g}"
    thresholds: dict[Sensitivity, float] = {}
    notes: list[str] = []
    stability: dict[Sensitivity, Stability] = {}
    for sensitivity in SENSITIVITIES:
        scores = means[sensitivity][metric].tolist()
        thresholds[sensitivity] = (
            threshold if threshold is not None else largest_gap(scores) if count is None else top_threshold(scores, count)
        )
        stability[sensitivity] = Stability(
            seeds=_stability(runs, sensitivity, metric, "seed"), prompts=_stability(runs, sensitivity, metric, "prompt")
        )
        for axis, correlation in stability[sensitivity]:
            if correlation is not None and correlation < LOW_CORRELATION:
                notes.append(f"different {axis} rank the layers by {sensitivity} only weakly alike ({correlation:.2f}): "
                             f"use more --{axis}, or treat the verdict with caution")  # fmt: skip
    layers = []
    for index in range(len(means["position"][metric])):
        exceeded = [sensitivity for sensitivity in SENSITIVITIES if means[sensitivity][metric][index] > thresholds[sensitivity]]
        layers.append(
            LayerScores(
                layer=index,
                position=float(means["position"][metric][index]),
                context=float(means["context"][metric][index]),
                effective_rank={window: float(ranks[index]) for window, ranks in effective_ranks.items()},
                verdict="both" if len(exceeded) == 2 else VERDICT_OF[exceeded[0]] if exceeded else "neither",
                scores={key: {name: float(mean[index]) for name, mean in by_name.items()} for key, by_name in means.items()},
            )
        )
    agreement = {
        sensitivity: {name: rank_correlation(by_name["attention"], mean) for name, mean in by_name.items() if name != "attention"}
        for sensitivity, by_name in means.items()
    }
    return dict(metric=metric, rule=rule, thresholds=thresholds, layers=layers, stability=stability, agreement=agreement,
                warnings=notes)  # fmt: skip


def _stability(
    runs: Sequence[ProbeRun], sensitivity: Sensitivity, metric: ScoreName, axis: Literal["seed", "prompt"]
) -> float | None:
    """Mean rank correlation between the mean scores of each pair of seeds, or of prompts; None for fewer than two."""
    groups: dict[int, list[list[float]]] = {}
    for run in runs:
        groups.setdefault(getattr(run, axis), []).append(run.scores[sensitivity][metric])
    pairs = list(itertools.combinations([np.mean(group, axis=0).tolist() for group in groups.values()], 2))
    return float(np.mean([rank_correlation(*pair) for pair in pairs])) if pairs else None
