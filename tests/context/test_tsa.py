"""TSA's tables against its rule in tokens, its densities against the paper's, and the times of its anchors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from longgen import planner, preset
from longgen.backbones.registry import SPECS
from longgen.backbones.wan import TINY
from longgen.context.tsa import Tsa
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, Pass, distances, full_attention
from longgen.plan import Plan


def clip(frames_lat: int, native_lat: int = 21) -> Geometry:
    return Geometry(frames_lat, native_lat, (1.0,))


def only_pass(technique: Tsa, frames_lat: int, native_lat: int = 21) -> Pass:
    (one,) = technique.apply(full_attention(frames_lat), clip(frames_lat, native_lat)).passes
    return one


def tokens_seen(one: Pass, tokens: int) -> np.ndarray:
    """What `one` says of every pair of tokens: [T n, T n]."""
    index = np.arange(tokens)
    within = np.abs(index[:, None] - index)
    stripe = np.ones_like(one.rel) if one.band is None else one.band
    seen = one.visible[:, None, :, None] & (within[None, :, None, :] < stripe[:, None, :, None] * tokens)
    return seen.reshape(len(one.rel) * tokens, -1)


def tokens_by_rule(frames_lat: int, tokens: int, width: int, tail: bool) -> np.ndarray:
    """The rule, pair by pair."""
    seen = np.zeros((frames_lat, tokens, frames_lat, tokens), dtype=bool)
    for i, j, q, k in itertools.product(range(frames_lat), range(frames_lat), range(tokens), range(tokens)):
        distance = i - j
        if abs(distance) <= 8 or j == 0:
            seen[i, q, j, k] = True
        elif abs(distance) <= 24:
            seen[i, q, j, k] = abs(q - k) < width
        elif distance < 0:
            seen[i, q, j, k] = tail and j >= frames_lat - 3
    return seen.reshape(frames_lat * tokens, -1)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("frames_lat", [21, 41, 81])
def test_every_pair_of_tokens_follows_the_rule(frames_lat: int, tail: bool) -> None:
    found = tokens_seen(only_pass(Tsa(tail=tail), frames_lat), tokens=8)
    assert np.array_equal(found, tokens_by_rule(frames_lat, 8, 1, tail))


@pytest.mark.parametrize(
    ("frames_lat", "dense", "stripe", "sink", "tail", "published"),
    [(81, 0.1989, 0.0730, 0.0110, 0.0251, 0.283), (41, 0.3718, 0.1068, 0.0190, 0.0268, 0.498),
     (21, 0.6463, 0.0764, 0.0272, 0.0, 0.750)],
)  # fmt: skip
def test_densities(frames_lat: int, dense: float, stripe: float, sink: float, tail: float, published: float) -> None:
    """Shares of all token pairs, at Wan's 1560 tokens a frame and 195 a stripe; the token count by brute force at 16.

    sink: of frame 0 beyond the dense tier. published: of the authors' masks, their tail apart.
    """
    one = only_pass(Tsa(tail=True), frames_lat)
    distance = distances(frames_lat)
    tiers = {
        "dense": np.abs(distance) <= 8,
        "stripe": (np.abs(distance) > 8) & (np.abs(distance) <= 24) & (np.arange(frames_lat) > 0),
        "sink": (distance > 8) & (np.arange(frames_lat) == 0),
        "tail": distance < -24,
    }
    share = {name: float((one.visible & tier).mean()) for name, tier in tiers.items()}
    for tokens, width in ((1560, 195), (16, 2)):
        stripe_of_pair = (tokens * (2 * width - 1) - width * (width - 1)) / tokens**2
        total = share["dense"] + share["stripe"] * stripe_of_pair + share["sink"] + share["tail"]
        if tokens == 16:
            assert tokens_seen(one, tokens).mean() == pytest.approx(total, abs=1e-12)
        else:
            assert stripe_of_pair == pytest.approx(0.2338, abs=5e-5)
            found = (share["dense"], share["stripe"] * stripe_of_pair, share["sink"], share["tail"])
            print(f"T {frames_lat}: dense, stripe, sink, tail {np.round(found, 4)}, total {total:.4f}, density {one.density:.4f}")
            assert found == pytest.approx((dense, stripe, sink, tail), abs=6e-5)
            assert one.density == pytest.approx(total, abs=5e-4)
            assert only_pass(Tsa(), frames_lat).density == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("frames_lat", [41, 81])
def test_the_sink_s_times_are_the_code_s(frames_lat: int) -> None:
    one = only_pass(Tsa(), frames_lat)
    for i, j in itertools.product(range(frames_lat), repeat=2):
        anchored = j == 0 and i > 24
        assert one.rel[i, j] == (i // 8 + 10 if anchored else i - j)
    assert set(one.rel[25:, 0]) == set(range(13, (frames_lat - 1) // 8 + 11))


def test_the_tail_s_times_are_the_code_s() -> None:
    """The queries stand at floor(i / 8) and the keys at floor(j / 8) + 10: frames 78 and 79 share a time, 80 has the next."""
    one = only_pass(Tsa(tail=True), 81)
    for i, j in itertools.product(range(54), range(78, 81)):
        if j - i > 24:
            assert one.visible[i, j]
            assert one.rel[i, j] == i // 8 - (j // 8 + 10)
        else:
            assert one.rel[i, j] == i - j
    plain = only_pass(Tsa(), 81)
    assert not plain.visible[:54, 78:].any()
    assert np.array_equal(plain.rel[:, :78], one.rel[:, :78])
    assert one.rel[0, 78:].tolist() == [-19, -19, -20]
    assert one.rel[53, 78:].tolist() == [-13, -13, -14]


@pytest.mark.parametrize("native_lat", [1, 2, 5, 13, 16, 21, 33])
@pytest.mark.parametrize("frames_lat", [26, 49, 161, 400])
def test_anchors_stay_in_the_trained_range_and_in_order(native_lat: int, frames_lat: int) -> None:
    one = only_pass(Tsa(tail=True), frames_lat, native_lat)
    sink = one.rel[25:, 0]
    assert (sink >= native_lat // 2).all()
    assert (sink <= native_lat - 1).all()
    assert (np.diff(sink) >= 0).all()
    tail = one.rel[: frames_lat - 25, -1]
    assert (tail >= 1 - native_lat).all()
    assert (np.diff(tail) >= 0).all()


def test_vrpr_keeps_the_times_that_are_there() -> None:
    rel = distances(81) / 4
    (one,) = Tsa(reencode="vrpr", tail=True).apply(full_attention(81).at(rel), clip(81)).passes
    assert np.array_equal(one.rel, rel)
    assert np.array_equal(one.visible, only_pass(Tsa(tail=True), 81).visible)
    over = Tsa().apply(full_attention(81).at(rel), clip(81)).passes[0].rel
    changed = np.zeros((81, 81), dtype=bool)
    changed[25:, 0] = True
    assert np.array_equal(over[~changed], rel[~changed])
    assert np.array_equal(over[25:, 0], np.arange(25, 81) // 8 + 10)


def test_vrpr_without_a_technique_of_positions_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tsa.reencode = vrpr(.|\n)*vrpr stacked in the same layers(.|\n)*tsa.reencode=sink"):
        Tsa(reencode="vrpr").apply(full_attention(81), clip(81))
    assert Tsa(reencode="vrpr").apply(full_attention(9), clip(9)).is_stock  # nothing is out of range there


@pytest.mark.parametrize(
    "option", [{"dense": 4}, {"stripe": 12}, {"stripe_share": 0.25}, {"stripe_share": 1.0}, {"sink": False}, {"tail": True}]
)
def test_every_option_changes_the_plan(option: dict[str, object]) -> None:
    assert Tsa(**option).apply(full_attention(81), clip(81)).key != Tsa().apply(full_attention(81), clip(81)).key


def test_options_mean_what_they_say() -> None:
    one = only_pass(Tsa(dense=3, stripe=5, stripe_share=0.5, sink=False), 41)
    assert one.band is not None
    for i, j in itertools.product(range(41), repeat=2):
        assert one.visible[i, j] == (abs(i - j) <= 5)
        assert one.band[i, j] == (0.5 if 3 < abs(i - j) <= 5 else 1)
    sunk = only_pass(Tsa(dense=3, stripe=5, stripe_share=0.5), 41)
    assert sunk.visible[:, 0].all()
    assert sunk.band is not None
    assert (sunk.band[:, 0] == 1).all()  # from everywhere, whole
    assert np.array_equal(sunk.band[:, 1:], one.band[:, 1:])
    assert only_pass(Tsa(dense=24), 41).band is None  # no stripes: no table, and no masks


def test_one_frame_more_has_anchors() -> None:
    """Everything is visible then, but the first and the last frame see each other at the anchors' times."""
    one = only_pass(Tsa(stripe_share=1.0, tail=True), 26)
    assert one.visible.all()
    assert (one.rel[25, 0], one.rel[0, 25]) == (13, -13)


@pytest.mark.parametrize(("option", "frames_lat"), [({}, 1), ({}, 9), ({"stripe_share": 1.0}, 25), ({"dense": 20}, 21)])
def test_neutral_where_all_is_near(option: dict[str, object], frames_lat: int) -> None:
    plain = full_attention(frames_lat)
    assert Tsa(**option).apply(plain, clip(frames_lat)) is plain


def test_every_pass_of_a_plan_is_narrowed() -> None:
    one = full_attention(81).passes[0]
    halves = (Pass(one.rel / 2, one.visible, one.weight / 2), Pass(one.rel / 3, np.tri(81, dtype=bool), one.weight / 2))
    first, second = Tsa().apply(FramePlan(halves), clip(81)).passes
    rule = only_pass(Tsa(), 81)
    assert np.array_equal(first.visible, rule.visible)
    assert np.array_equal(second.visible, rule.visible & np.tri(81, dtype=bool))
    assert np.array_equal(second.weight, one.weight / 2)
    assert first.rel[5, 3] == 1
    assert first.rel[80, 0] == 20


def test_stripes_narrower_than_whole_frames_are_refused() -> None:
    with pytest.raises(UsageError, match=r"tsa.stripe = 4 is below tsa.dense = 8(.|\n)*8 or more(.|\n)*--set tsa.stripe=8"):
        Tsa(stripe=4)


def layer_pass(made: Plan, layer: int) -> Pass:
    program = made.programs[made.table[layer, 0]]
    assert program is not None
    (one,) = program.branches["main"].passes
    return one


def test_the_freeloc_preset_gives_a_layer_one_technique_or_both() -> None:
    spec, sample = SPECS["wan2.1-1.3b"], preset.Sample(frames=321)
    code = planner.build(preset.load("freeloc", sample=sample), spec)
    re_encoded, sparse = layer_pass(code, 2), layer_pass(code, 0)
    assert re_encoded.visible.all()
    assert re_encoded.rel[80, 0] == 20
    assert re_encoded.rel[24, 0] < 20
    assert np.array_equal(sparse.visible, only_pass(Tsa(), 81).visible)
    assert np.array_equal(sparse.rel, only_pass(Tsa(), 81).rel)
    paper = planner.build(preset.load("freeloc", ["vrpr.layers=all", "tsa.reencode=vrpr"], sample), spec)
    both = layer_pass(paper, 0)
    assert np.array_equal(both.visible, sparse.visible)
    assert np.array_equal(both.rel, re_encoded.rel)


def test_the_freeloc_preset_names_what_to_do_where_nobody_has_probed() -> None:
    sample = preset.Sample(frames=321)
    with pytest.raises(UsageError, match="has not been probed at this length"):
        planner.build(preset.load("freeloc", sample=sample), TINY)
    everywhere = planner.build(preset.load("freeloc", ["vrpr.layers=all", "tsa.layers=all"], sample), TINY)
    assert np.array_equal(layer_pass(everywhere, 0).rel[25:, 0], np.arange(25, 81) // 8 + 10)  # the anchors have TSA's times
    with pytest.raises(UsageError, match=r"tsa.reencode = vrpr"):
        planner.build(preset.load("tsa", ["tsa.reencode=vrpr"], sample), TINY)
