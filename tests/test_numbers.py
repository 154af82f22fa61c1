"""Numbers that nobody means, for every parameter of every technique: a plan, or an error that says what is accepted; at once."""

from __future__ import annotations

import itertools
import math
import typing
from typing import Any

import numpy as np
import pytest

from longgen import catalog, cost, planner, preset
from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.wan import TINY
from longgen.errors import UsageError
from longgen.frameplan import Geometry
from longgen.plan import Plan
from longgen.technique import LONGEST, Technique

HUGE = (10**3, 10**6, 10**20, 1e20, 1e308, 5e-324, math.nan, math.inf, -1, -1.0, -(10**20), 0, 0.0)


def kinds(annotation: Any) -> set[type]:
    """The plain types in an annotation."""
    inside = typing.get_args(annotation)
    return set().union(*map(kinds, inside)) if inside else {annotation} if isinstance(annotation, type) else set()


def numeric(technique: type[Technique]) -> list[str]:
    """The parameters of one technique that are numbers, or lists of them."""
    fields = technique.model_fields.items()
    return [key for key, field in fields if key not in ("layers", "steps") and kinds(field.annotation) & {int, float}]


CASES = [(name, key) for name in catalog.TECHNIQUES for key in numeric(catalog.technique(name))]


def built(tables: list[dict[str, Any]], frames: int, causal: bool) -> Plan:
    made = preset.from_tables({"name": "one", "sample": {"frames": frames}, "technique": tables}, "one")
    return planner.build(made, TINY_CAUSAL if causal else TINY)


def test_the_parameters_are_found() -> None:
    assert len(CASES) > 60
    assert {("fifo", "partitions"), ("sink", "frames"), ("freelongpp", "scales"), ("vmcr", "omega")} <= {*CASES}
    assert ("window", "edge") not in CASES


@pytest.mark.parametrize(("name", "key"), CASES, ids=[f"{name}.{key}" for name, key in CASES])
def test_a_number_that_nobody_means_is_planned_or_refused(name: str, key: str) -> None:
    """Nothing else is raised, no number of a plan is nan, and no longer a table is made than the clip is."""
    causal = "whole-clip" not in catalog.technique(name).requires
    beside: list[dict[str, Any]] = []
    if name in ("rebase", "sink", "rollout") and causal:  # what they act on
        beside = [{"name": one} for one in ("window", "sink") if one != name]
    for value, frames in itertools.product(HUGE, (33, 161)):
        given = (value,) if key == "scales" else value
        try:
            made, refused = built([*beside, {"name": name, key: given}], frames, causal), None
        except UsageError as error:
            made, refused = None, error
        if made is None:
            assert refused is not None
            assert name in refused.given, (value, refused)
            assert refused.expected
            assert refused.hint
            continue
        assert math.isfinite(cost.ratio(made)), value
        assert made.steps <= 1000, value
        assert min(cost.memory_bytes(made, "bf16").values()) > 0, value
        for table in made.arrays().values():
            assert np.isfinite(table).all(), value
            assert all(length <= 1000 for length in table.shape), value


@pytest.mark.parametrize(
    ("backbone", "tables", "frames", "message", "expected"),
    [
        (TINY, {"name": "fifo", "partitions": 1000}, 321, "fifo.partitions = 1000 of 21 latent frames are 21000 places", "1 to 47"),
        (TINY, {"name": "fifo", "partitions": 10**20}, 33, "fifo.partitions = 1" + 20 * "0" + ": .*less than or equal to 1000", ""),
        (
            TINY,
            {"name": "fifo", "frames": 1001, "partitions": 1},
            4005,
            "partitions = 1 of 1001 .* 1001 places",
            "fewer fifo.frames",
        ),
        (TINY, {"name": "sink", "frames": 10**20}, 33, "sink.frames = 1" + 20 * "0" + ": .*less than or equal to 1000000", ""),
        (TINY_CAUSAL, {"name": "rollout", "chunk": 22}, 321, "rollout.chunk = 22 latent frames, but .* trained on 21", "1 to 21"),
        (TINY, {"name": "vmcr", "omega": 1e308}, 33, r"vmcr.omega = 1e\+308: .*less than or equal to 1\n", ""),
        (TINY, {"name": "freenoise", "layers": [], "window": 5, "stride": 6}, 161, "freenoise.stride = 6 is more than", "1 to 5"),
        (TINY, {"name": "glc-noise", "region": 22}, 161, "glc-noise.region = 22 is more than the unit of 21", "1 to 21"),
        (TINY, {"name": "freepca", "layers": [], "stride": 30}, 161, "freepca.stride = 30 is more than the window", "1 to 21"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_is_refused_says_what_is_accepted(backbone: Any, tables: Any, frames: int, message: str, expected: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        built([tables], frames, backbone is TINY_CAUSAL)
    assert caught.value.expected == (expected or "what each line names")
    assert caught.value.hint


def test_what_is_large_and_meant_is_planned() -> None:
    """A window or sink longer than any clip shows all of it; the largest queue that has a level for each place."""
    for name in ("window", "sink"):
        assert not built([{"name": name, "frames": LONGEST}], 161, False).table.any()
    largest = built([{"name": "fifo", "partitions": 47}], 161, False)
    assert largest.steps == 47 * 21
    assert not built([{"name": "flex", "b": 1e6, "a": 1e6, "horizon": LONGEST}], 81, False).table.any()


@pytest.mark.parametrize("cutoff", [5e-324, 1e-200])
def test_a_cutoff_near_zero_keeps_the_mean_alone(cutoff: float) -> None:
    """It was 0 / 0 in the noise: a black video."""
    import torch

    from longgen.fusion.freelong import kernel
    from longgen.noise.glc import GlcNoise

    low, high = GlcNoise(cutoff=cutoff).responses((5, 4, 6))
    assert low.sum() == low[0, 0, 0] == 1
    assert torch.equal(high, (1 - low**2).sqrt())
    noise = torch.randn(1, 2, 30, 4, 6, generator=torch.Generator().manual_seed(0))
    mixed = GlcNoise(cutoff=cutoff).mix(noise, Geometry(30, 8, (1.0,)), torch.Generator().manual_seed(1))
    assert mixed.std() == pytest.approx(1, abs=0.1)
    for boundary in ("circular", "reflect"):
        assert kernel(6, cutoff, boundary) == pytest.approx(np.full((6, 6), 1 / 6))  # type: ignore[arg-type]
