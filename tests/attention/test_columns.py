"""A technique that sets a pair column needs nothing but its own class: keys, plan text, exported arrays and outputs follow.

Legend: T latent frames, T0 the backbone's native length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import Field

from longgen import catalog, planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.wan import WAN_1_3B
from longgen.describe import branch_lines
from longgen.errors import UsageError
from longgen.frameplan import FramePlan, Geometry, Pass, distances, full_attention
from longgen.plan import Plan
from longgen.technique import FrameTechnique
from tests.attention.test_presets import SPECS, worst_difference


class LogitDecay(FrameTechnique):
    """-rate a frame on the logits of frames further apart than the native length."""

    slot: ClassVar[str] = "context"
    paper: ClassVar[str] = "none"

    rate: float = Field(0.5, ge=0)

    def apply(self, plan: FramePlan, geometry: Geometry) -> FramePlan:
        apart = np.abs(distances(plan.frames_lat)[-plan.shape[0] :])
        return plan.each(lambda p: p.with_columns(logit_bias=-self.rate * np.maximum(apart - geometry.native_lat, 0)))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.TECHNIQUES, "logitdecay", f"{__name__}:LogitDecay")


def planned(rate: float, *stack: str, spec: Any = SPECS["wan"], frames_px: int = 97) -> Plan:
    techniques = [*({"name": name} for name in stack), {"name": "logitdecay", "rate": rate}]
    tables = {"name": "decay", "sample": {"frames": frames_px, "steps": 2}, "technique": techniques}
    return planner.build(preset.from_tables(tables, "decay"), spec, conditions=planner.stand_in(spec))


def test_it_is_printed_exported_and_hashed() -> None:
    plan = planned(0.5)
    ((frame_plan, _, _),) = plan.branches().values()
    text = "\n".join(branch_lines(frame_plan, tables=False))
    assert "(3 of them with -1.5 to -0.5 on their logits)" in text
    distance = np.abs(np.subtract.outer(np.arange(25), np.arange(25)))
    assert np.array_equal(plan.arrays()["main/0/logit_bias"], -0.5 * np.maximum(distance - 21, 0))
    keys = {frame_plan.key, next(iter(planned(0.25).branches().values()))[0].key, full_attention(25).key}
    assert len(keys) == 3
    assert not planned(0.0).table.any()  # a neutral column is none
    assert not planned(0.5, frames_px=81).table.any()


@pytest.mark.parametrize("family", SPECS)
@pytest.mark.parametrize("stack", [(), ("vrpr",), ("freenoise",), ("keyframes",), ("tsa",)])
def test_it_runs_on_every_family_beside_other_techniques(family: str, stack: tuple[str, ...]) -> None:
    spec = replace(SPECS[family], native_px=8 * SPECS[family].stride_t + 1)
    if stack in (("vrpr",), ("tsa",)) and family == "cogvideox-2b":
        pytest.skip("it has no rotary positions")
    plan = planned(0.5, *stack, spec=spec, frames_px=24 * spec.stride_t + 1)
    assert any(pass_.logits is not None for frame_plan, _, _ in plan.branches().values() for pass_ in frame_plan.passes)
    assert worst_difference(plan, family) < 2e-5


def test_a_rollout_shows_it_too() -> None:
    plan = planned(0.5, "window", "sink", spec=SELF_FORCING, frames_px=161)
    ((frame_plan, _, _),) = plan.branches().values()
    assert frame_plan.passes[0].logits is not None
    assert "on their logits" in "\n".join(branch_lines(frame_plan, tables=False))


def test_unknown_columns_and_wrong_shapes_are_errors() -> None:
    pass_ = full_attention(3).passes[0]
    with pytest.raises(
        ValueError, match=r"pair columns \['decay'\] .* known are band, logit_scale, logit_bias, positive_logit_scale"
    ):
        Pass(pass_.rel, pass_.visible, pass_.weight, {"decay": pass_.rel})
    with pytest.raises(ValueError, match=r"\{'band': \(2, 2\)\} of a pass \(3, 3\)"):
        Pass(pass_.rel, pass_.visible, pass_.weight, {"band": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"pair columns \['decay'\]"):
        pass_.with_columns(decay=pass_.rel)
    with pytest.raises(ValueError, match=r"\{'logit_bias': \(1, 3\)\} of a pass \(3, 3\)"):
        pass_.with_columns(logit_bias=pass_.rel[:1])
    with pytest.raises(ValueError, match=r"\['logit_bias'\] of a pass hold NaN"):
        pass_.with_columns(logit_bias=np.full((3, 3), np.nan))
    for wrong in (-0.1, np.inf):
        with pytest.raises(ValueError, match=r"\['positive_logit_scale'\] of a pass hold numbers that are below 0 or infinite"):
            pass_.with_columns(positive_logit_scale=np.full((3, 3), wrong))


def test_a_technique_that_makes_such_tables_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogitDecay, "apply", lambda self, plan, geometry: plan.each(lambda p: p.with_columns(logit_bias=p.rel[:1])))
    with pytest.raises(UsageError, match="logitdecay makes a frame plan that cannot be: pair columns"):
        planner.build(preset.from_tables({"name": "one", "technique": [{"name": "logitdecay"}]}, "one"), WAN_1_3B)


def test_columns_combine_by_what_they_are() -> None:
    ones = np.ones((3, 3))
    pass_ = full_attention(3).passes[0].with_columns(band=ones / 2, logit_scale=2 * ones, logit_bias=ones)
    pass_ = pass_.with_columns(positive_logit_scale=ones / 2)
    pass_ = pass_.with_columns(band=ones / 4, logit_scale=3 * ones, logit_bias=2 * ones, positive_logit_scale=ones / 4)
    combined = {"band": 0.25, "logit_scale": 6, "logit_bias": 3, "positive_logit_scale": 0.125}
    assert {name: table[0, 0] for name, table in pass_.columns.items()} == combined
    assert list(pass_.tables) == ["rel", "visible", "weight", *combined]


@pytest.mark.parametrize(
    ("name", "key"),
    [("direct", "0de04e7453ba5596"), ("sliding-window", "1bcc43cde04f7783"), ("tsa", "c6bcec9337d1e6ae"),
     ("freenoise", "dffbf7e927b68557")],
)  # fmt: skip
def test_plans_have_the_keys_of_earlier_versions(name: str, key: str) -> None:
    """Columns came with 0.7.0; the tables of these presets are those of 0.6.0, and so are their digests."""
    plan = planner.build(preset.load(name, (), preset.Sample(frames=241)), WAN_1_3B)
    assert plan.branches()["main"][0].key == key
