"""What a visit runs: real calls of the real model, as few as it needs, and nothing is left of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from longgen.backbones.settings import ModelSettings
from longgen.bench import steps
from longgen.bench.step_types import CLEAN, FIRST, LAST, ROUND, step_types
from longgen.plan import Plan
from tests.backbones.test_random import small
from tests.bench.small import CAUSAL, SHAPE, built, plan_of, planned


@pytest.fixture(scope="module")
def model() -> Any:
    return built()


@pytest.fixture
def calls(model: Any) -> Any:
    """For each call that the model computes, where the schedule stood and what its layers did there."""
    seen: list[tuple[int, list[Any]]] = []

    def note(*_: Any) -> None:
        processors = [layer.processor for layer in model.layers(model.pipe.transformer)]
        seen.append((model.step_state.index, [getattr(one, "programs", None) for one in processors]))

    hook = model.pipe.transformer.blocks[0].register_forward_hook(note)
    yield seen
    hook.remove()


@pytest.mark.parametrize("name", ["fused", "local"])
def test_a_visit_warms_up_with_one_call_and_measures_a_step_of_its_kind(name: str, model: Any, calls: Any) -> None:
    made = plan_of("freelong", steps=6)
    (kind,) = [kind for kind in step_types(made) if kind.name == name]
    found = steps.measure_step(kind, model, 0, False)
    assert [index for index, _ in calls] == [kind.step - 1, kind.step, kind.step]  # with guidance, two a step
    program = made.programs[made.table[0, kind.step]]
    assert all(programs[0][index] is not None and programs[0][index] is program for index, programs in calls)
    assert found[name].seconds > 0
    assert found[name].peak_bytes is None


def test_where_memory_is_counted_the_first_step_is_whole(model: Any, calls: Any) -> None:
    (kind,) = step_types(plan_of("sliding-window"))
    found = steps.measure_step(kind, model, 0, True)
    assert [index for index, _ in calls] == [1, 1, 2, 2]
    weights = sum(weight.numel() * 4 for weight in model.pipe.transformer.parameters())
    tokens = SHAPE.width * kind.plan.tokens * 4
    assert weights + 4 * tokens < found["main"].peak_bytes < weights + 100 * tokens


def test_the_stock_pipeline_runs_with_nothing_installed(model: Any, calls: Any) -> None:
    (kind,) = step_types(plan_of("direct"))
    found = steps.measure_stock(replace(kind, name=steps.STOCK), False, model, 0, False)
    assert found[steps.STOCK].seconds > 0
    assert len(calls) == 3
    assert all(programs == [None, None] for _, programs in calls)


@pytest.mark.parametrize("counting", [False, True])
def test_nothing_is_left_of_a_visit(counting: bool, model: Any) -> None:
    transformer = model.pipe.transformer
    before = [layer.processor for layer in model.layers(transformer)]
    for name in ("freespec", "gen-l-video"):
        made = plan_of(name)
        for kind in step_types(made):
            steps.measure_step(kind, model, 0, counting)
    steps.measure_stock(step_types(plan_of("direct"))[0], False, model, 0, counting)
    assert [layer.processor for layer in model.layers(transformer)] == before
    assert transformer.forward.__func__ is type(transformer).forward
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_clips_are_a_step_together(model: Any, calls: Any) -> None:
    made = plan_of("gen-l-video")
    steps.measure_step(step_types(made)[0], model, 0, False)
    assert len(calls) == 1 + 2 * made.calls


def test_a_queue_is_measured_when_it_is_full(model: Any, calls: Any) -> None:
    made = plan_of("fifo", steps=None)
    (kind,) = step_types(made)
    found = steps.measure_queue(kind, model, 0, True)
    windows = len(made.sampling.windows(made.call_geometry.frames_lat))  # type: ignore[union-attr]
    assert len(calls) == 2 * 2 * windows
    assert found[ROUND].seconds > 0
    assert found[ROUND].peak_bytes > 0


@pytest.mark.parametrize("counting", [False, True])
def test_a_rollout_is_measured_at_both_ends_and_between(counting: bool) -> None:
    model, made = built(CAUSAL), plan_of("self-forcing", spec=CAUSAL, steps=None)
    lengths = []
    hook = model.pipe.transformer.blocks[0].register_forward_hook(lambda *_: lengths.append(model.step_state.index))
    found = steps.measure_rollout(made, model, 0, counting)
    hook.remove()
    passes = made.rounds - 1 + made.steps
    assert len(lengths) == made.steps + passes * (1 + counting)  # the first chunk; the clean passes and the last
    assert set(found) == {FIRST, LAST, CLEAN}
    assert all(one.seconds > 0 for one in found.values())
    assert (found[LAST].peak_bytes is not None) == counting


def test_with_a_step_cache_the_whole_schedule_runs(calls: Any) -> None:
    model_settings = ModelSettings("cpu", "fp32", cache="first-block:0.05")
    cached, made = built(SHAPE, model_settings), plan_of("freelong", steps=6)
    (visit,) = steps.measurements(made, step_types(made), True)
    ends: list[int] = []
    hook = cached.pipe.transformer.register_forward_hook(lambda *_: ends.append(cached.step_state.index))
    found = visit[1](cached, 0, False)
    hook.remove()
    assert ends == [step for step in range(6) for _ in range(2)]
    assert list(found) == ["fused", "local"]


def test_a_schedule_of_one_step_is_measured_as_it_is(model: Any, calls: Any) -> None:
    (kind,) = step_types(plan_of("sliding-window", steps=1))
    assert steps.measure_step(kind, model, 0, False)["main"].seconds > 0
    assert len(calls) == 2


@pytest.mark.parametrize("family", ["ltx-2b", "cogvideox-2b", "cogvideox-5b", "hunyuanvideo", "wan2.2-t2v-a14b", "wan2.2-ti2v-5b"])
def test_every_family_can_be_measured(family: str) -> None:
    """With a technique where its frames can be moved, in clips, and as diffusers has it."""
    spec = replace(small(family), native_px=17)
    model, frames = built(spec), 65
    for name in ("direct", "sliding-window", "gen-l-video"):
        made = planned(name, spec=spec, frames=frames)[name]
        assert isinstance(made, Plan)
        for kind in step_types(made):
            assert steps.measure_step(kind, model, 0, False)[kind.name].seconds > 0
    direct = planned("direct", spec=spec, frames=frames)["direct"]
    assert isinstance(direct, Plan)
    assert steps.measure_stock(step_types(direct)[0], False, model, 0, True)[steps.STOCK].peak_bytes


def test_memory_of_all_kinds_is_that_of_a_step_amidst_the_schedule(model: Any) -> None:
    """Where the scheduler keeps its history: direct sampling takes the same in each half, and as much as the stock pipeline."""
    early, late = (replace(step_types(plan_of("direct", steps=12))[0], steps=steps) for steps in ((3, 4, 5), (7, 8, 9)))
    peaks = [next(iter(steps.measure_step(kind, model, 0, True).values())).peak_bytes for kind in (early, late)]
    stock = steps.measure_stock(late, False, model, 0, True)[steps.STOCK].peak_bytes
    assert peaks[0] == peaks[1] == stock
