"""From scores of layers to verdicts, and how far they can be trusted. Plain numbers.

A layer is sensitive where its score is above a threshold:
    largest gap    scores in order, the threshold lies in the middle of the widest gap between neighbours; none is sensitive where
                   all are equal. [derived: the paper gives no rule]
    threshold      as given
    top            the K layers with the highest scores
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from longgen.layers.probe_file import KINDS, Kind, Layer, Run, ScoreName, Stability

LOW = 0.6  # rank correlation below which a probe is called unsteady


def largest_gap(scores: Sequence[float]) -> float:
    """The threshold in the middle of the widest gap; above all where scores are equal."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    gaps = np.diff(ordered)
    if not len(gaps) or gaps.max() <= 0:
        return float(ordered[-1])
    widest = int(gaps.argmax())
    return float((ordered[widest] + ordered[widest + 1]) / 2)


def top(scores: Sequence[float], count: int) -> float:
    """A threshold that the `count` highest scores are above, ties left out."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if count >= len(ordered):
        return float(ordered[-1]) / 2 if ordered[-1] > 0 else -1.0
    return float((ordered[count - 1] + ordered[count]) / 2) if count else float(ordered[0])


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, with ties; 1 where both are constant, 0 where one is."""
    from scipy.stats import ConstantInputWarning, spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float(np.ptp(one) == np.ptp(other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(np.clip(spearmanr(one, other).statistic, -1, 1))


def agreement_of(groups: Sequence[Sequence[float]]) -> float | None:
    """The mean rank correlation of all pairs of `groups` of scores; None for fewer than two."""
    pairs = list(itertools.combinations(groups, 2))
    return float(np.mean([rank_correlation(one, other) for one, other in pairs])) if pairs else None


def judge(
    runs: Sequence[Run], ranks: Mapping[str, Sequence[float]], metric: ScoreName, threshold: float | None, count: int | None
) -> dict[str, Any]:
    """The fields of a Probe that follow from its scores: metric, rule, thresholds, layers, stability, agreement, warnings.

    ranks: effective ranks by window, one for each layer. threshold or count (`top`) in place of the largest gap.
    """
    means = {
        kind: {name: np.mean([run.scores[kind][name] for run in runs], axis=0) for name in runs[0].scores[kind]} for kind in KINDS
    }
    rule = "largest gap" if threshold is None and count is None else f"top {count}" if threshold is None else f"above {threshold:g}"
    thresholds: dict[Kind, float] = {}
    warned: list[str] = []
    stability: dict[Kind, Stability] = {}
    for kind in KINDS:
        deciding = means[kind][metric].tolist()
        thresholds[kind] = threshold if threshold is not None else largest_gap(deciding) if count is None else top(deciding, count)
        stability[kind] = Stability(seeds=_stability(runs, kind, metric, "seed"), prompts=_stability(runs, kind, metric, "prompt"))
        for among, steady in stability[kind]:
            if steady is not None and steady < LOW:
                warned.append(f"different {among} rank the layers by {kind} only weakly alike ({steady:.2f}): "
                              f"take more --{among}, or read the verdict with care")  # fmt: skip
    layers = []
    for index in range(len(next(iter(means["position"].values())))):
        over = [kind for kind in KINDS if means[kind][metric][index] > thresholds[kind]]
        layers.append(
            Layer(
                layer=index,
                position=float(means["position"][metric][index]),
                context=float(means["context"][metric][index]),
                effective_rank={name: float(values[index]) for name, values in ranks.items()},
                verdict="both" if len(over) == 2 else f"{over[0]}-sensitive" if over else "neither",  # type: ignore[arg-type]
                scores={kind: {name: float(mean[index]) for name, mean in means[kind].items()} for kind in KINDS},
            )
        )
    agreement = {
        kind: {name: rank_correlation(of_kind["attention"], mean) for name, mean in of_kind.items() if name != "attention"}
        for kind, of_kind in means.items()
    }
    return dict(metric=metric, rule=rule, thresholds=thresholds, layers=layers, stability=stability, agreement=agreement,
                warnings=warned)  # fmt: skip


def _stability(runs: Sequence[Run], kind: Kind, metric: ScoreName, among: Literal["seed", "prompt"]) -> float | None:
    """The mean rank correlation between the runs of each pair of seeds, or of prompts."""
    groups: dict[int, list[list[float]]] = {}
    for run in runs:
        groups.setdefault(getattr(run, among), []).append(run.scores[kind][metric])
    return agreement_of([np.mean(group, axis=0).tolist() for group in groups.values()])
