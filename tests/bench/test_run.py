"""A whole benchmark: order, refusals, Ctrl-C, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from longgen import cost
from longgen.backbones.settings import ModelSettings
from longgen.bench import run, steps, table
from longgen.bench.record import BenchResult, PresetTiming, StepTiming
from longgen.bench.steps import Measurement
from longgen.errors import UsageError
from longgen.plan import Plan
from longgen.progress import Progress
from tests.bench.small import CAUSAL, SETUP, SHAPE, built, planned


@pytest.fixture(scope="module")
def model() -> Any:
    return built()


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """StepType, seed and whether memory is counted, of each visit; none is run."""
    seen: list[tuple[str, int, bool]] = []

    def note(name: str, seed: int, counting: bool) -> dict[str, Measurement]:
        seen.append((name, seed, counting))
        return {name.rpartition(" ")[2]: Measurement(float(len(seen)), 100 * len(seen) if counting else None)}

    def measure_step(kind: Any, model: Any, seed: int, counting: bool) -> dict[str, Measurement]:
        return note(f"{kind.plan.preset.name} {kind.name}", seed, counting)

    def measure_stock(kind: Any, cached: bool, model: Any, seed: int, counting: bool) -> dict[str, Measurement]:
        return note("stock", seed, counting)

    monkeypatch.setattr(steps, "measure_step", measure_step)
    monkeypatch.setattr(steps, "measure_stock", measure_stock)
    return seen


def benched(
    model: Any, *names: str, rounds: int = 1, report: Callable[[Progress], None] = lambda now: None, **how: Any
) -> BenchResult:
    return run.bench(planned(*names, **how), lambda: model, SETUP, rounds, True, report)


def test_every_round_is_of_all_kinds_of_all_presets(model: Any, visited: list[Any]) -> None:
    benched(model, "freelong", "sliding-window", rounds=2)
    order = ["stock", "direct direct", "freelong fused", "freelong local", "sliding-window main"]
    assert visited == [*((name, 0, True) for name in order), *((name, 1, False) for name in order)]


def test_medians_ratios_and_floors(model: Any, visited: list[Any]) -> None:
    found = benched(model, "freelong", rounds=3)
    stock, direct, freelong = found.rows
    assert [kind.seconds for kind in freelong.timings] == [[3, 7, 11], [4, 8, 12]]
    assert freelong.run_seconds == 2 * 7 + 2 * 8
    assert found.time_ratio(freelong) == 30 / (4 * 6)
    assert found.time_ratio(direct) == found.floor_ratio(direct) == 1
    plan = planned("freelong")["freelong"]
    assert isinstance(plan, Plan)
    assert freelong.floor == cost.ratio(plan)
    assert found.floor_ratio(freelong) == pytest.approx(30 / 24 / cost.ratio(plan))
    assert (stock.floor, found.floor_ratio(stock)) == (None, None)
    assert found.memory_ratio(freelong) == 400 / 200


def test_progress_goes_by_arithmetic(model: Any, visited: list[Any]) -> None:
    reports: list[Progress] = []
    benched(model, "freelong", rounds=2, report=reports.append)
    assert [(one.done, one.total) for one in reports] == [(done, 8) for done in range(9)]
    assert reports[0].eta_s is None
    assert reports[-1].eta_s == pytest.approx(0, abs=1e-6)


def test_ctrl_c_keeps_what_is_measured(model: Any, visited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(kind: Any, *_: Any) -> dict[str, Measurement]:
        if kind.name == "local":
            raise KeyboardInterrupt
        return {kind.name: Measurement(1.0, None)}

    monkeypatch.setattr(steps, "measure_step", stop)
    found = benched(model, "freelong", "sliding-window", rounds=2)
    assert found.stopped is not None
    assert [row.preset for row in found.rows if row.complete] == ["stock", "direct"]
    data = json.loads(json.dumps(found.as_dict()))
    assert data["stopped"] is True
    assert data["presets"][2] == {"preset": "freelong", "error": "not measured"}
    assert "freelong: not measured" in table.text(found)


def test_what_cannot_be_is_a_line_and_the_rest_goes_on(model: Any) -> None:
    found = benched(model, "self-forcing", "nothing", "sliding-window")
    assert [row.complete for row in found.rows] == [True, True, False, False, True]
    assert found.rows[2].error is not None
    assert "kv-cache" in found.rows[2].error
    assert "no preset is called 'nothing'" in str(found.rows[3].error)


def test_what_is_refused_while_it_runs_is_a_line_too() -> None:
    model_settings = ModelSettings("cpu", "fp32", cache="first-block:0.05")
    found = run.bench(planned("fifo", steps=None), lambda: built(SHAPE, model_settings), model_settings, 1, True)
    assert [row.complete for row in found.rows] == [True, True, False]
    assert "fifo" in str(found.rows[2].error)
    assert found.settings["cache"] == "first-block:0.05"


def test_direct_sampling_is_measured_asked_or_not_and_must_be_possible() -> None:
    assert [*planned("sliding-window")] == ["direct", "sliding-window"]
    with pytest.raises(UsageError, match="does not fit"):
        run.bench(planned("direct", spec=replace(SHAPE, size=(40, 40))), built, SETUP, 1)


def test_an_override_goes_where_its_technique_is() -> None:
    made = planned("sliding-window", "freelong", sets=("window.frames=5",))
    assert all(isinstance(plan, Plan) for plan in made.values())
    assert cost.ratio(made["sliding-window"]) < cost.ratio(planned("sliding-window")["sliding-window"])  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="applies to none of the presets"):
        planned("freelong", sets=("window.frames=5",))


def test_a_causal_backbone_has_no_stock_pipeline_to_compare_with() -> None:
    found = run.bench(planned("self-forcing", spec=CAUSAL, steps=None), lambda: built(CAUSAL), SETUP, 1)
    assert [row.preset for row in found.rows] == ["direct", "self-forcing"]
    assert [kind.name for kind in found.rows[1].timings] == ["first chunk", "last chunk", "clean pass"]
    assert found.as_dict()["backbone"] == "self-forcing"


def test_the_estimate_of_a_rollout_is_of_all_its_chunks() -> None:
    row = PresetTiming(
        "x", [StepTiming("first chunk", 2.5, [1.0]), StepTiming("last chunk", 1.5, [3.0]), StepTiming("clean pass", 3, [0.5])]
    )
    assert row.run_seconds == 2.5 + 4.5 + 1.5


@pytest.mark.parametrize("names", [("freespec", "freeloc", "gen-l-video"), ("fifo",)])
def test_the_table_fits_a_terminal_and_names_all(names: tuple[str, ...], model: Any) -> None:
    found = benched(model, *names, steps=None)
    lines = table.text(found).splitlines()
    for width in (40, 60, 80, table.WIDTH):  # narrow ones have several tables, with the same cells
        narrow = table.text(found, width).splitlines()
        assert max(map(len, narrow)) <= width
        assert {*"\n".join(narrow).split()} == {*"\n".join(lines).split()}
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in ("stock", "direct", *names))
    assert "arithmetic against direct sampling" in " ".join(lines)
    for row in found.rows:
        assert row.peak_bytes is not None
        assert row.peak_bytes > found.weights_bytes > 0


def test_a_device_with_other_work_is_told_of(model: Any, visited: list[Any]) -> None:
    assert "was busy" not in table.text(benched(model, rounds=1))
    assert "steps of one type took up to 2.3 times as long as others" in " ".join(table.text(benched(model, rounds=3)).split())
