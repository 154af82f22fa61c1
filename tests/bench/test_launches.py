"""The launch budget on a sample of presets and families; `python -m tests.launches` has all of them."""

from __future__ import annotations

import pytest

from tests import launches
from tests.stacks import STACKS

SAMPLE = (  # of what launches most or is computed in a way of its own
    ("wan2.1-1.3b", "direct"), ("wan2.1-1.3b", "freespec"), ("wan2.1-1.3b", "freelong"), ("wan2.1-1.3b", "tsa"),
    ("ltx-2b", "vrpr"), ("ltx-2b", "freenoise"), ("cogvideox-2b", "freepca"), ("cogvideox-2b", "keyframes"),
    ("cogvideox-5b", "sliding-window"), ("cogvideox-5b", "longdiff"), ("hunyuanvideo", "sink-window"),
    ("hunyuanvideo", "ultravico"),
)  # fmt: skip


@pytest.mark.parametrize(("backbone", "name"), SAMPLE)
def test_a_layer_launches_no_more_than_its_budget_and_neither_copies_nor_waits(backbone: str, name: str) -> None:
    assert launches.faults(name, launches.count(name, backbone)) == []


def test_every_preset_has_a_budget() -> None:
    assert {name.partition("@")[0] for name in launches.PRESETS} == {*STACKS}
    assert {*launches.BUDGETS} <= {*STACKS}
    assert {launches.budget(name) for name in launches.PRESETS} == {250, 400, 600, 1500}


def test_what_is_over_is_said() -> None:
    assert launches.faults("vrpr", launches.Cost(600, 0, 0)) == []
    assert launches.faults("vrpr", launches.Cost(601, 2, 3)) == ["601 launches, of 600", "2 copies from the host", "3 waits"]
