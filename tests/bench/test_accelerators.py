"""What accelerators do to presets, measured: equal, approximate or unsupported; and the table of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longgen import preset
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.backbones.wan import TINY
from longgen.bench import accelerators_table
from longgen.bench.accelerators import AcceleratedPreset, AcceleratedRun, AcceleratorReport, measure_accelerators
from longgen.bench.run import plan_presets
from longgen.errors import UsageError
from longgen.pipelines import loading
from longgen.progress import Progress
from longgen.resolve import PlanRequest

PROMPT = "a small cyan triangle orbiting on a sand background"
SETUP = ModelSettings("cpu", "fp32")


def composed(names: list[str], accelerators: list[str], frames: int, steps: int | None = None, spec: BackboneSpec = TINY,
             sets: tuple[str, ...] = (), **more: Any) -> AcceleratorReport:  # fmt: skip
    made = plan_presets(names, PlanRequest("", spec, sets, preset.Sample(frames=frames, steps=steps)))
    return measure_accelerators(
        made, accelerators, lambda model_settings: loading.load(spec, model_settings), SETUP, PROMPT, **more
    )


def test_each_run_is_equal_or_measured_or_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that never skips changes nothing; one that skips computes less."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reports: list[Progress] = []
    caches = ["first-block:0.000001", "first-block:0.9", "mag:0.000001", "mag:0.9", "wonder"]
    found = composed(["freeloc@all", "longlive"], caches, 17, 6, report=reports.append)
    direct, freeloc, longlive = found.rows
    assert [row.preset for row in found.rows] == ["direct", "freeloc@all", "longlive"]
    assert longlive.error is not None
    assert "kv-cache" in longlive.error
    for row in (direct, freeloc):
        assert [run_.verdict for run_ in row.runs] == ["equal", "approximate", "equal", "approximate", "unsupported"]
        assert row.seconds > 0
        for run_ in row.runs:
            if run_.verdict == "equal":
                assert (run_.difference, run_.psnr, run_.computed) == (0.0, None, 1.0)
            elif run_.verdict == "approximate":
                assert run_.difference is not None
                assert 0 < run_.difference < 2
                assert run_.psnr is not None
                assert 5 < run_.psnr < 80
                assert run_.computed is not None
                assert 0 < run_.computed < 1
            else:
                assert "longgen has not tried it" in str(run_.error)
    data = json.loads(json.dumps(found.as_dict()))
    assert [[one["verdict"] for one in row["accelerators"]] for row in data["presets"][:2]] == [
        [run_.verdict for run_ in row.runs] for row in (direct, freeloc)
    ]
    assert data["settings"].items() >= {"frames": 17, "steps": 6, "prompt": PROMPT, "seed": 1}.items()
    assert {one.phase for one in reports} == {"bench", "calibrate"}
    bench = [one for one in reports if one.phase == "bench"]
    assert [one.done for one in bench] == sorted(one.done for one in bench)
    assert (bench[0].eta_s, bench[-1].done, bench[-1].total) == (None, 72, 72)  # 2 presets, 6 runs of 6 steps


def test_what_sampling_refuses_is_unsupported_by_name() -> None:
    found = composed(["fifo"], ["first-block:0.9"], 17, sets=("fifo.frames=2", "fifo.partitions=2"))
    assert [row.runs[0].verdict for row in found.rows] == ["approximate", "unsupported"]
    assert "fifo moves frames on" in str(found.rows[1].runs[0].error)


def test_what_the_model_refuses_is_unsupported_for_all() -> None:
    found = composed(["self-forcing"], ["mag"], 33, spec=SPECS["tiny-causal"])
    assert [row.runs[0].verdict for row in found.rows] == ["unsupported", "unsupported"]
    assert all("compares a step with the previous one" in str(row.runs[0].error) for row in found.rows)


def test_ctrl_c_keeps_what_is_measured() -> None:
    def report(now: Progress) -> None:
        if now.done == 5:  # of 4 plain steps and 8 with caches
            raise KeyboardInterrupt

    found = composed([], ["first-block:0.000001", "first-block:0.9"], 17, 4, report=report)
    assert isinstance(found.stopped, KeyboardInterrupt)
    assert found.rows[0].seconds > 0
    assert [run_.verdict for run_ in found.rows[0].runs] == ["not measured", "not measured"]
    assert found.as_dict()["stopped"] is True
    assert "not measured" in accelerators_table.text(found)


def test_without_direct_sampling_there_is_nothing_to_say() -> None:
    with pytest.raises(UsageError, match="63 does not fit tiny"):
        measure_accelerators(
            plan_presets([], PlanRequest("", TINY, (), preset.Sample(size=(63, 64)))), ["mag"],
            lambda model_settings: loading.load(TINY, model_settings), SETUP, "",
        )  # fmt: skip


def test_the_table() -> None:
    rows = [
        AcceleratedPreset(
            "direct", [AcceleratedRun("mag", 0.05, 37.9, 0.6, 3.0), AcceleratedRun("compile", 0.0, None, None, 3.0)], 6.0
        ),
        AcceleratedPreset("fifo", [AcceleratedRun("mag", error="it moves"), AcceleratedRun("compile", 1e-6, 97.0, None, 5.0)], 6.0),
        AcceleratedPreset("flex", [AcceleratedRun("mag"), AcceleratedRun("compile")], error="it rolls"),
        AcceleratedPreset("freelong", [AcceleratedRun("mag"), AcceleratedRun("compile")]),
    ]
    settings = {"size": [64, 64], "dtype": "fp32", "frames": 33, "tokens": 100, "seed": 1, "prompt": "a cat"}
    made = AcceleratorReport("tiny", "cpu", {}, settings, rows)
    assert accelerators_table.text(made).splitlines()[:-4] == [
        "tiny, fp32, on cpu: 33 frames, 64x64, 100 tokens; seed 1, 'a cat'",
        "",
        "preset  accelerator  latent           differs by   PSNR  computed  a run  x plain",
        "direct  none                                                       6.0 s",
        "        mag          approximate         5.0e-02  38 dB       60%  3.0 s     0.50",
        "        compile      equal                     –      –         –  3.0 s     0.50",
        "fifo    none                                                       6.0 s",
        "        mag          unsupported (1)",
        "        compile      approximate         1.0e-06  97 dB         –  5.0 s     0.83",
        "",
        "1. it moves",
        "",
        "flex: it rolls",
        "freelong: not measured",
    ]
    narrow = accelerators_table.text(made, 60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert {*narrow.split()} == {*accelerators_table.text(made).split()}
