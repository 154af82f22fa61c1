"""Estimates from earlier runs: what counts as alike, how seconds scale, and a cache that stays small and never stops a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from longgen import cost, timings
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.plan import Plan
from longgen.planner import build
from longgen.preset import Sample, load

CPU = ModelSettings("cpu", "fp32")


def plan_of(name: str, frames: int) -> Plan:
    return build(load(name, sample=Sample(frames=frames)), SPECS["tiny"])


def kept(plan: Plan, sample_s: float, settings: ModelSettings = CPU) -> list[str]:
    notes: list[str] = []
    timings.keep(plan, settings, {"load": 1.0, "sample": sample_s, "decode": 2.0}, 10**8, notes.append)
    return notes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "longgen" / "timings" / "timings.json"


def test_seconds_scale_with_arithmetic_and_pixels_and_runs_of_the_preset_come_first() -> None:
    short, long = plan_of("direct", 81), plan_of("direct", 321)
    assert timings.estimate(long, CPU) is None
    kept(short, 10.0)
    found = timings.estimate(long, CPU)
    assert found is not None
    assert found.seconds["load"] == 1.0
    assert found.seconds["sample"] == pytest.approx(10 * cost.total_flops(long) / cost.total_flops(short))
    assert found.seconds["decode"] == pytest.approx(2 * 321 / 81)
    assert (found.runs, found.same_preset, found.memory_bytes) == (1, True, None)
    assert timings.estimate(short, CPU)[1] == 10**8  # type: ignore[index]
    other = timings.estimate(plan_of("riflex", 161), CPU)
    assert other is not None
    assert not other.same_preset
    assert timings.estimate(long, CPU.replace(compile=True)) is None


def test_the_file_is_bounded_and_one_that_is_damaged_or_cannot_be_written_stops_nothing(cache: Path) -> None:
    plan = plan_of("direct", 81)
    kept(plan, 1.0)
    run = timings._runs()[0]
    cache.write_text(timings._File(runs=[run] * (timings.MOST + 7)).model_dump_json())
    assert kept(plan, 3.0) == []
    assert [len(timings._runs()), timings._runs()[-1].sample_s] == [timings.MOST, 3.0]
    cache.write_text("{")
    assert timings.estimate(plan, CPU) is None
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("in the way")
    (note,) = kept(plan, 1.0)
    assert "could not be kept" in note
