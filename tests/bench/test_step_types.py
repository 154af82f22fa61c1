"""The kinds of step of a plan: what they are called, how many there are, and what runs in them."""

from __future__ import annotations

import numpy as np
import pytest

from longgen import preset
from longgen.bench.step_types import CLEAN, FIRST, LAST, ROUND, step_types
from longgen.plan import Plan
from tests.bench.small import CAUSAL, plan_of, planned


def test_a_fusion_in_half_of_the_steps_makes_two_kinds() -> None:
    made = plan_of("freelong", steps=6)
    fused, local = step_types(made)
    assert [(kind.name, kind.steps) for kind in (fused, local)] == [("fused", (0, 1, 2)), ("local", (3, 4, 5))]
    assert (fused.step, local.step) == (1, 4)
    for kind in (fused, local):
        assert (kind.plan.table == made.table[:, [kind.step]]).all()


@pytest.mark.parametrize(
    ("name", "names"), [("direct", ["direct"]), ("sliding-window", ["main"]), ("gen-l-video", ["clips"]), ("ans", ["direct"])]
)
def test_a_preset_that_does_the_same_in_every_step_has_one_kind(name: str, names: list[str]) -> None:
    assert [kind.name for kind in step_types(plan_of(name))] == names


TAKEN = [name for name in preset.names() if isinstance(planned(name)[name], Plan)]


@pytest.mark.parametrize("name", TAKEN)
def test_the_kinds_of_every_preset_are_all_its_steps_each_once(name: str) -> None:
    made = plan_of(name)
    found = step_types(made)
    assert len({kind.name for kind in found}) == len(found)
    assert sorted(step for kind in found for step in kind.steps) == list(range(made.steps))
    assert sum(kind.count for kind in found) == made.steps
    for kind in found:
        columns = (made.programs[index] for step in kind.steps for index in made.table[:, step])
        assert len({program and round(program.density, 6) for program in columns}) <= len(np.unique(kind.plan.table))
        assert np.array_equal(kind.plan.table[:, 0], made.table[:, kind.steps[0]])


def test_steps_whose_latent_is_edited_are_a_kind_of_their_own() -> None:
    found = step_types(plan_of("glc-diffusion", steps=6, sets=("vmcr.steps=[0.5, 1.0]",)))
    assert [(kind.name.split(" + ")[1:], kind.steps) for kind in found] == [([], (0, 1, 2)), (["vmcr"], (3, 4, 5))]


def test_the_chunks_of_a_rollout_are_parts_of_the_first_and_the_last() -> None:
    made = plan_of("direct", spec=CAUSAL, steps=None)  # a window of the native length
    first, last, clean = step_types(made)
    assert [kind.name for kind in (first, last, clean)] == [FIRST, LAST, CLEAN]
    assert first.count + last.count == pytest.approx(made.rounds)
    assert (made.rounds, clean.count) == (7, 6)
    assert 1 < first.count < last.count
    assert step_types(plan_of("self-forcing", spec=CAUSAL, frames=9, steps=None))[0].count == 1


def test_the_whole_history_makes_cost_grow_evenly() -> None:
    """So that half of the chunks stand for the last."""
    first, last, _ = step_types(plan_of("self-forcing", spec=CAUSAL, steps=None))
    assert first.count == pytest.approx(3.5)
    assert last.count == pytest.approx(3.5)


def test_a_queue_has_rounds_and_its_first_clip_is_parts_of_them() -> None:
    made = plan_of("fifo", steps=None)
    (kind,) = step_types(made)
    windows = len(made.sampling.windows(made.call_geometry.frames_lat))  # type: ignore[union-attr]
    assert kind.name == ROUND
    assert kind.count == pytest.approx(made.rounds - made.steps + made.steps / windows)
