"""UltraViCo's table against its authors' rule in raster tokens, its exact output, and what it leaves alone.

Legend: T latent frames, T0 of them in training, n tokens per frame, D = i - j.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from longgen import cost, planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.hunyuan import HUNYUANVIDEO, HUNYUANVIDEO_I2V
from longgen.backbones.registry import SPECS
from longgen.backbones.wan import WAN_1_3B
from longgen.context.ultravico import UltraViCo
from longgen.describe import branch_lines
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, Pass, full_attention

HUNYUAN = Geometry(99, 33, (1.0,), repetition_lat=HUNYUANVIDEO.repetition_lat)


def wan(frames_lat: int) -> Geometry:
    return Geometry(frames_lat, 21, (1.0,))


def only_pass(technique: UltraViCo, geometry: Geometry) -> Pass:
    (one,) = technique.apply(full_attention(geometry.frames_lat), geometry).passes
    return one


def share_at_least(apart: int, tokens: int, distance: float) -> Fraction:
    """Of the token pairs of two frames `apart` frames apart, the share whose raster distance is `distance` tokens or more."""
    offsets = np.arange(1 - tokens, tokens)
    pairs = tokens - np.abs(offsets)
    return Fraction(int(pairs[np.abs(apart * tokens + offsets) >= distance].sum()), tokens**2)


@pytest.mark.parametrize(("frames_lat", "far", "far_in_tokens"), [(41, 0.553242, 0.553379), (81, 0.757506, 0.757538)])
def test_wan_s_table_is_the_code_s_but_at_half_the_window(frames_lat: int, far: float, far_in_tokens: float) -> None:
    """The code: |m - n| > 1560 * 21 / 2 of tokens m and n. far: shares of all pairs of frames, and of tokens by the code."""
    table = only_pass(UltraViCo(), wan(frames_lat)).columns["positive_logit_scale"]
    shares = {apart: share_at_least(apart, 1560, 16380 + 1) for apart in range(frames_lat)}
    for i, j in itertools.product(range(frames_lat), repeat=2):
        assert table[i, j] == (0.9 if abs(i - j) >= 11 else 1.0)
        if abs(i - j) not in (10, 11):
            assert shares[abs(i - j)] == (table[i, j] != 1)
    assert (shares[10], shares[11]) == (Fraction(779, 6240), 1 - Fraction(781, 6240))  # an eighth on the other side
    assert float((table != 1).mean()) == pytest.approx(far, abs=5e-7)
    tokens = frames_lat * 1560
    assert (tokens - 16381) * (tokens - 16380) / tokens**2 == pytest.approx(far_in_tokens, abs=5e-7)
    in_tokens = np.array([[float(shares[abs(i - j)]) for j in range(frames_lat)] for i in range(frames_lat)]).mean()
    assert in_tokens == pytest.approx(far_in_tokens, abs=5e-7)


def test_frames_half_an_even_window_apart_are_not_far() -> None:
    """The code's |m - n| > T0 n / 2 in tokens is D > T0 / 2 of the same places in their frames."""
    assert UltraViCo().table(Geometry(24, 12, (1.0,)))[0].tolist() == [1.0] * 7 + [0.9] * 17


def test_hunyuanvideo_s_table_is_the_code_s_but_at_edges() -> None:
    """The code, 2040 tokens a frame: beta from 46 to 54 and from 96 to 104 frames, with both ends, else alpha beyond 33 / 2."""
    table = only_pass(UltraViCo(), HUNYUAN).columns["positive_logit_scale"]
    by_distance = table[0]
    assert [d for d in range(99) if by_distance[d] == 0.6] == [*range(46, 55), 96, 97, 98]
    assert [d for d in range(99) if by_distance[d] == 1] == [*range(17)]
    assert all(table[i, j] == by_distance[abs(i - j)] for i, j in itertools.product(range(99), repeat=2))
    for apart in range(99):
        in_band = sum(
            share_at_least(apart, 2040, a * 2040) - share_at_least(apart, 2040, b * 2040 + 1) for a, b in ((46, 54), (96, 104))
        )
        near = 1 - share_at_least(apart, 2040, 2040 * 33 // 2 + 1)
        code = {0.6: in_band, 1.0: near, 0.9: 1 - in_band - near}
        if apart not in (16, 17, 45, 46, 54, 55, 95, 96):
            assert code[by_distance[apart]] == 1
        else:
            assert code[by_distance[apart]] > Fraction(1, 2)
    long = UltraViCo().table(replace(HUNYUAN, frames_lat=206))[0]
    assert [d for d in range(105, 206) if long[d] == 0.6] == [*range(146, 155), *range(196, 205)]


def test_only_hunyuanvideo_has_harmonics() -> None:
    assert {name for name, spec in SPECS.items() if spec.repetition_lat} == {HUNYUANVIDEO.name, HUNYUANVIDEO_I2V.name}
    assert set(np.unique(UltraViCo().table(wan(81)))) == {0.9, 1.0}
    chosen = UltraViCo(period=20, beta=0.5).table(wan(81))[0]
    assert [d for d in range(81) if chosen[d] == 0.5] == [d for d in range(16, 81) if min(d % 20, -d % 20) <= 4]


def test_the_first_frame_s_rule() -> None:
    """The code: tokens up to 1560 do not see tokens beyond 21 * 1560: frame 0, and 1 token of 1,560 in the next."""
    plain, ruled = only_pass(UltraViCo(), wan(81)), only_pass(UltraViCo(first_frame=True), wan(81))
    assert plain.visible.all()
    assert np.flatnonzero(ruled.visible[0]).tolist() == list(range(21))
    assert ruled.visible[1:].all()
    assert np.array_equal(ruled.columns["positive_logit_scale"], plain.columns["positive_logit_scale"])
    alone = UltraViCo(alpha=1, first_frame=True).apply(full_attention(81), wan(81))
    assert not alone.passes[0].columns
    assert not alone.passes[0].visible.all()


@pytest.mark.parametrize("option", [{"alpha": 0.8}, {"sign": "any"}, {"origin": "mean"}, {"first_frame": True}, {"period": 30}])
def test_every_option_changes_the_plan(option: dict[str, object]) -> None:
    plain = full_attention(81)
    assert UltraViCo(**option).apply(plain, wan(81)).key != UltraViCo().apply(plain, wan(81)).key


@pytest.mark.parametrize(("option", "geometry"), [({}, wan(21)), ({}, wan(15)), ({}, replace(HUNYUAN, frames_lat=33)),
                                                  ({"alpha": 1}, wan(81)), ({"alpha": 1, "beta": 1}, HUNYUAN)])  # fmt: skip
def test_neutral(option: dict[str, object], geometry: Geometry) -> None:
    plain = full_attention(geometry.frames_lat)
    assert UltraViCo(**option).apply(plain, geometry) is plain


def test_any_sign_is_a_plain_factor() -> None:
    plan = UltraViCo(sign="any").apply(full_attention(81), wan(81))
    (one,) = plan.passes
    assert list(one.columns) == ["logit_scale"]
    assert np.array_equal(one.columns["logit_scale"], UltraViCo().table(wan(81)))
    assert not plan.by_sign
    assert not plan.centred


def test_passes_that_are_there_are_kept() -> None:
    one = full_attention(81).passes[0]
    both = FramePlan((Pass(one.rel / 2, np.tri(81, dtype=bool), one.weight / 2), Pass(one.rel, one.visible, one.weight / 2)))
    first, second = UltraViCo().apply(both, wan(81)).passes
    assert np.array_equal(first.visible, np.tri(81, dtype=bool))
    assert np.array_equal(first.rel, one.rel / 2)
    assert np.array_equal(first.columns["positive_logit_scale"], second.columns["positive_logit_scale"])


def test_what_plan_says() -> None:
    plan = planner.build(preset.load("ultravico", (), preset.Sample(frames=321)), WAN_1_3B)
    ((frame_plan, _, _),) = plan.branches().values()
    text = "\n".join(branch_lines(frame_plan, tables=True))
    assert "logits count from their query's mean" not in text
    (smoothed,) = (
        planner.build(preset.load("ultravico", ("ultravico.origin=mean",), preset.Sample(frames=321)), WAN_1_3B).branches().values()
    )
    assert "logits count from their query's mean" in "\n".join(branch_lines(smoothed[0], tables=False))
    assert "frame  40 sees all 81 (60 of them with positive logits x 0.9)" in text
    assert cost.ratio(plan) == 1
    native = planner.build(preset.load("ultravico", (), preset.Sample(frames=81)), WAN_1_3B)
    assert any("ultravico changes nothing" in note for note in native.notes)


def test_a_rollout_is_refused() -> None:
    with pytest.raises(UsageError, match="ultravico needs whole-clip"):
        planner.build(preset.load("ultravico", (), preset.Sample(frames=321)), SELF_FORCING)


def test_an_attention_backend_that_has_no_say_is_noted() -> None:
    from longgen.backbones.settings import ModelSettings
    from longgen.pipelines.checks import check_plan

    chosen = ModelSettings("cpu", "fp32", attention="native")
    signed, plain = (planner.build(preset.load(name, (), preset.Sample(frames=321)), WAN_1_3B) for name in ("ultravico", "lvsa"))
    assert check_plan(plain, chosen) == check_plan(signed, ModelSettings("cpu", "fp32")) == ()
    (note,) = check_plan(signed, chosen)
    assert note.startswith("--attention native has no effect where ultravico multiplies logits by their sign")
