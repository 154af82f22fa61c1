"""Scores to verdicts: hand-computed thresholds, correlations and stability."""

from __future__ import annotations

import pytest

from longgen.layers.probe_file import ProbeRun
from longgen.probe import classify

RANKS = {"1x": [4.0, 5.0, 6.0], "2x": [3.0, 4.0, 5.0]}


def run(prompt: int, seed: int, position: list[float], context: list[float], latent: list[float] | None = None) -> ProbeRun:
    own, other = ({"attention": scores} | ({"latent": latent} if latent else {}) for scores in (position, context))
    return ProbeRun(prompt=prompt, seed=seed, scores={"position": own, "context": other})


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([0.1, 0.2, 0.8, 0.9], 0.5), ([0.9, 0.1, 0.8, 0.2], 0.5), ([0.0, 1.0], 0.5), ([0.3, 0.3, 0.3], 0.3), ([0.7], 0.7)],
)
def test_the_largest_gap(scores: list[float], threshold: float) -> None:
    assert classify.largest_gap(scores) == pytest.approx(threshold)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (2, 2), (4, 4)])
def test_top_takes_so_many(count: int, expected: int) -> None:
    scores = [0.4, 0.1, 0.3, 0.2]
    assert sum(score > classify.top_threshold(scores, count) for score in scores) == expected


def test_top_takes_layers_that_score_nothing_only_where_all_are_asked_for() -> None:
    assert sum(score > classify.top_threshold([0.0, 0.0], 2) for score in [0.0, 0.0]) == 2
    assert sum(score > classify.top_threshold([0.0, 0.0], 1) for score in [0.0, 0.0]) == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 2, 3], [10, 20, 90], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 2, 3], [1, 3, 2], 0.5), ([1, 1, 1], [1, 2, 3], 0.0),
     ([1, 1], [2, 2], 1.0)],
)  # fmt: skip
def test_rank_correlations(one: list[float], other: list[float], expected: float) -> None:
    assert classify.rank_correlation(one, other) == pytest.approx(expected)


def test_verdicts_of_means_over_runs() -> None:
    runs = [run(0, 0, [0.0, 0.8, 0.9], [0.0, 0.1, 0.9]), run(0, 1, [0.2, 1.0, 0.7], [0.0, 0.1, 0.7])]
    made = classify.classify(runs, RANKS, "attention", None, None)
    assert made["thresholds"] == {"position": pytest.approx(0.45), "context": pytest.approx(0.45)}
    assert [layer.verdict for layer in made["layers"]] == ["neither", "position-sensitive", "both"]
    assert [layer.position for layer in made["layers"]] == pytest.approx([0.1, 0.9, 0.8])
    assert [layer.effective_rank for layer in made["layers"]] == [{"1x": 4, "2x": 3}, {"1x": 5, "2x": 4}, {"1x": 6, "2x": 5}]
    assert made["stability"]["position"].seeds == pytest.approx(0.5)
    assert made["stability"]["position"].prompts is None
    assert [warning.split(" only")[0] for warning in made["warnings"]] == ["different seeds rank the layers by position"]


def test_a_layer_that_scores_nothing_is_sensitive_to_nothing() -> None:
    made = classify.classify([run(0, 0, [0.0, 0.0, 0.0], [0.0, 0.5, 0.0])], RANKS, "attention", None, None)
    assert [layer.verdict for layer in made["layers"]] == ["neither", "context-sensitive", "neither"]


def test_threshold_and_top_and_another_metric() -> None:
    runs = [run(0, 0, [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], latent=[0.9, 0.5, 0.1])]
    above = classify.classify(runs, RANKS, "attention", 0.15, None)
    assert above["rule"] == "above 0.15"
    assert [layer.verdict for layer in above["layers"]] == ["context-sensitive", "both", "position-sensitive"]
    best = classify.classify(runs, RANKS, "latent", None, 1)
    assert best["rule"] == "top 1"
    assert [layer.verdict for layer in best["layers"]] == ["both", "neither", "neither"]
    assert best["agreement"] == {"position": {"latent": pytest.approx(-1)}, "context": {"latent": pytest.approx(1)}}


def test_stability_is_between_means_of_the_other_axis() -> None:
    runs = [run(p, s, scores, scores) for (p, s), scores in {
        (0, 0): [1.0, 2.0, 3.0], (0, 1): [1.0, 3.0, 2.0], (1, 0): [3.0, 2.0, 1.0], (1, 1): [3.0, 1.0, 2.0],
    }.items()]  # fmt: skip
    stability = classify.classify(runs, RANKS, "attention", None, None)["stability"]["context"]
    assert stability.seeds == 1.0  # both seeds have the means [2, 2, 2] over prompts: alike
    assert stability.prompts == pytest.approx(-1.0)
