"""What accelerators do to presets, measured: equal, approximate or refused; and the table of it."""

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
from longgen.bench.accelerators import Composition, Pair, Row, compose
from longgen.bench.run import plans
from longgen.errors import UsageError
from longgen.pipelines import loading
from longgen.progress import Progress

PROMPT = "a small cyan triangle orbiting on a sand background"
SETUP = ModelSettings("cpu", "fp32")


def composed(names: list[str], accelerators: list[str], frames: int, steps: int | None = None, spec: BackboneSpec = TINY,
             sets: tuple[str, ...] = (), **more: Any) -> Composition:  # fmt: skip
    made = plans(names, spec, sets, preset.Sample(frames=frames, steps=steps), None)
    return compose(made, accelerators, lambda model_settings: loading.load(spec, model_settings), SETUP, PROMPT, **more)


def test_each_pair_is_equal_or_measured_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that never skips changes nothing; one that skips computes less."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reports: list[Progress] = []
    caches = ["first-block:0.000001", "first-block:0.9", "mag:0.000001", "mag:0.9", "wonder"]
    found = composed(["freeloc@all", "longlive"], caches, 33, 6, report=reports.append)
    direct, freeloc, longlive = found.rows
    assert [row.preset for row in found.rows] == ["direct", "freeloc@all", "longlive"]
    assert longlive.error is not None
    assert "kv-cache" in longlive.error
    for row in (direct, freeloc):
        assert [pair.verdict for pair in row.pairs] == ["equal", "approximate", "equal", "approximate", "refused"]
        assert row.seconds > 0
        for pair in row.pairs:
            if pair.verdict == "equal":
                assert (pair.difference, pair.psnr, pair.computed) == (0.0, None, 1.0)
            elif pair.verdict == "approximate":
                assert pair.difference is not None
                assert 0 < pair.difference < 2
                assert pair.psnr is not None
                assert 5 < pair.psnr < 80
                assert pair.computed is not None
                assert 0 < pair.computed < 1
            else:
                assert "longgen has not tried it" in str(pair.error)
    data = json.loads(json.dumps(found.as_dict()))
    assert [[one["verdict"] for one in row["accelerators"]] for row in data["presets"][:2]] == [
        [pair.verdict for pair in row.pairs] for row in (direct, freeloc)
    ]
    assert data["settings"].items() >= {"frames": 33, "steps": 6, "prompt": PROMPT, "seed": 1}.items()
    assert {one.phase for one in reports} == {"bench", "calibrate"}
    bench = [one for one in reports if one.phase == "bench"]
    assert [one.done for one in bench] == sorted(one.done for one in bench)
    assert (bench[0].eta_s, bench[-1].done, bench[-1].total) == (None, 72, 72)  # 2 presets, 6 runs of 6 steps


def test_what_sampling_refuses_is_refused_by_name() -> None:
    found = composed(["fifo"], ["first-block:0.9"], 17, sets=("fifo.frames=2", "fifo.partitions=2"))
    assert [row.pairs[0].verdict for row in found.rows] == ["approximate", "refused"]
    assert "fifo moves frames on" in str(found.rows[1].pairs[0].error)


def test_what_the_model_refuses_is_refused_for_all() -> None:
    found = composed(["self-forcing"], ["mag"], 33, spec=SPECS["tiny-causal"])
    assert [row.pairs[0].verdict for row in found.rows] == ["refused", "refused"]
    assert all("compares a step with the step before" in str(row.pairs[0].error) for row in found.rows)


def test_ctrl_c_keeps_what_is_measured() -> None:
    def report(now: Progress) -> None:
        if now.done == 5:  # of 4 plain steps and 8 with caches
            raise KeyboardInterrupt

    found = composed([], ["first-block:0.000001", "first-block:0.9"], 17, 4, report=report)
    assert isinstance(found.stopped, KeyboardInterrupt)
    assert found.rows[0].seconds > 0
    assert [pair.verdict for pair in found.rows[0].pairs] == ["not measured", "not measured"]
    assert found.as_dict()["stopped"] is True
    assert "not measured" in accelerators_table.text(found)


def test_without_direct_sampling_there_is_nothing_to_say() -> None:
    with pytest.raises(UsageError, match="63 does not fit tiny"):
        compose(
            plans([], TINY, (), preset.Sample(size=(63, 64)), None),
            ["mag"],
            lambda model_settings: loading.load(TINY, model_settings),
            SETUP,
            "",
        )


def test_the_table() -> None:
    rows = [
        Row("direct", [Pair("mag", 0.05, 37.9, 0.6, 3.0), Pair("compile", 0.0, None, None, 3.0)], 6.0),
        Row("fifo", [Pair("mag", error="it moves"), Pair("compile", 1e-6, 97.0, None, 5.0)], 6.0),
        Row("flex", [Pair("mag"), Pair("compile")], error="it rolls"),
        Row("freelong", [Pair("mag"), Pair("compile")]),
    ]
    settings = {"size": [64, 64], "dtype": "fp32", "frames": 33, "tokens": 100, "seed": 1, "prompt": "a cat"}
    made = Composition("tiny", "cpu", {}, settings, rows)
    assert accelerators_table.text(made).splitlines()[:-4] == [
        "tiny, fp32, on cpu: 33 frames, 64x64, 100 tokens; seed 1, 'a cat'",
        "",
        "preset  accelerator  latent       differs by   PSNR  computed  a run  x plain",
        "direct  none                                                   6.0 s",
        "        mag          approximate     5.0e-02  38 dB       60%  3.0 s     0.50",
        "        compile      equal                 –      –         –  3.0 s     0.50",
        "fifo    none                                                   6.0 s",
        "        mag          refused (1)",
        "        compile      approximate     1.0e-06  97 dB         –  5.0 s     0.83",
        "",
        "1. it moves",
        "",
        "flex: it rolls",
        "freelong: not measured",
    ]
    assert all(len(line) <= 100 for line in accelerators_table.text(made).splitlines())
