"""`longgen bench` through the command line."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from longgen import cost, pictures
from longgen.backbones import tiny_grammar
from longgen.backbones.wan import TINY
from longgen.bench import run, synthetic
from longgen.bench.record import BenchResult
from longgen.cli import app
from longgen.cli import bench as command
from longgen.conditions import NOTHING
from longgen.errors import OutOfMemoryError, Terminated
from longgen.plan import Plan
from tests.bench.small import SETUP, SHAPE, planned

SMALL = ["bench", "--shape", "small", "--frames", "81", "--repeats", "1"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and a shape small enough."""
    monkeypatch.setitem(synthetic.SHAPES, "small", SHAPE)
    monkeypatch.delenv("LONGGEN_BACKBONE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def longgen(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_json_is_one_object_of_the_schema_and_is_exported(place: Path) -> None:
    done = longgen(
        *SMALL[:3], "--duration", "5s", *SMALL[5:], "--presets", "sliding-window,freelong", "--json", "-o", "out.json", "--quiet",
        "--export", "csv,latex,svg",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data == json.loads((place / "out.json").read_text())
    assert done.stderr == ""
    assert [*data] == ["schema", "shape", "device", "versions", "settings", "weights_bytes", "stopped", "presets"]
    assert (data["schema"], data["shape"], data["stopped"]) == (1, "small", False)
    assert set(data["versions"]) == {"torch", "diffusers", "transformers"}
    assert {"frames": 81, "latent_frames": 21, "size": [32, 32], "tokens": 84, "rounds": 1, "dtype": "fp32"}.items() <= data[
        "settings"
    ].items()
    assert [row["preset"] for row in data["presets"]] == ["stock", "direct", "sliding-window", "freelong"]
    for row in data["presets"]:
        assert set(row) == {"preset", "ratio_to_direct", "floor", "ratio_to_floor", "run_seconds", "seconds_per_step", "steps",
                            "peak_memory_bytes", "memory_ratio_to_direct"}  # fmt: skip
        assert all(seconds > 0 for seconds in row["seconds_per_step"].values())
        for kind in row["steps"].values():
            assert kind["least"] <= kind["median"] <= kind["most"]
    freelong = data["presets"][3]
    assert set(freelong["seconds_per_step"]) == {"fused", "local"}
    assert sum(kind["in_a_run"] for kind in freelong["steps"].values()) == data["settings"]["steps"]
    assert {path.name for path in place.iterdir()} == {
        "out.json", "out-presets.csv", "out-steps.csv", "out-table.tex", "out-times.svg"
    }  # fmt: skip
    rows = [*csv.DictReader((place / "out-presets.csv").read_text().splitlines())]
    assert [float(row["run_seconds"]) for row in rows] == pytest.approx([row["run_seconds"] for row in data["presets"]], abs=6e-4)
    steps = [*csv.DictReader((place / "out-steps.csv").read_text().splitlines())]
    assert [(row["preset"], row["step"]) for row in steps[-2:]] == [("freelong", kind) for kind in freelong["steps"]]
    assert "sliding{-}window & 81 &" in (place / "out-table.tex").read_text()


def test_several_lengths_are_one_table(place: Path) -> None:
    presets = ["--presets", "sliding-window,flex", "--repeats", "1"]
    done = longgen(*SMALL[:3], "--lengths", "3,2,3", *presets, "-o", "out.json", "--quiet", "--export", "csv,markdown,pdf")
    assert done.exit_code == 5
    assert "2 of 8 could not be measured: flex" in done.stderr
    data = json.loads((place / "out.json").read_text())
    assert [(of["times_native"], of["settings"]["frames"]) for of in data["lengths"]] == [(2, 65), (3, 97)]  # native: 33
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("sliding-window"))
    cells = line.replace(" s ", " ").split()[1:]
    for of, shown in zip(data["lengths"], (cells[:3], cells[3:]), strict=True):
        assert [row["preset"] for row in of["presets"]] == ["stock", "direct", "sliding-window", "flex"]
        window = of["presets"][2]
        assert window["ratio_to_direct"] > 0
        assert shown[1:] == [f"{window[name]:.2f}" for name in ("ratio_to_direct", "memory_ratio_to_direct")]
    assert "2x is 65 frames, 3x is 97 frames" in done.stdout
    rows = [*csv.DictReader((place / "out-presets.csv").read_text().splitlines())]
    assert [(row["preset"], row["frames"]) for row in rows if row["error"]] == [("flex", "65"), ("flex", "97")]
    assert (place / "out-table.md").read_text().count("| sliding-window |") == 2
    assert (place / "out-times.pdf").read_bytes().startswith(b"%PDF")
    assert "flex at 3x: rollout needs kv-cache" in done.stdout


def test_where_memory_ends_the_shorter_lengths_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def measured(plans: run.Plans) -> BenchResult:
        plan = plans["direct"]
        assert isinstance(plan, Plan)
        if plan.frames_px > 65:
            raise OutOfMemoryError("out of memory", expected="less", hint="less")
        return BenchResult("small", "cpu", {}, run.settings_of(plan, SETUP), [])

    by_length = {times: planned(frames=frames) for times, frames in ((2, 65), (3, 97), (4, 129))}
    assert [*command._at_lengths(by_length, measured).results] == [2]
    assert "nothing is measured at 3 times the native length and more: out of memory" in capsys.readouterr().err
    with pytest.raises(OutOfMemoryError):
        command._at_lengths({3: by_length[3]}, measured)


def test_a_preset_that_cannot_be_ends_in_exit_5_with_the_rest_measured() -> None:
    done = longgen(*SMALL, "--presets", "fifo,sliding-window,flex")
    assert done.exit_code == 5
    assert "1 of 5 could not be measured: flex: rollout needs kv-cache" in done.stderr
    assert "sliding-window" in done.stdout
    assert "bench 0/4" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--shape", "round"], "expected: cpu-attention"),
        (["--shape", "small", "--backbone", "tiny"], "--shape cannot be combined with"),
        (["--shape", "small", "--random-weights"], "--shape cannot be combined with"),
        (["--shape", "small", "--probe", "run"], "--probe run cannot be combined with bench"),
        (["--shape", "small", "--size", "40x40"], "does not fit small"),
        (["--shape", "small", "--cache", "mag"], "--cache mag"),
        (["--accelerate", "mag", "--shape", "small"], "--accelerate cannot be combined with --shape or --random-weights"),
        (["--accelerate", "mag", "--random-weights"], "--accelerate cannot be combined with --shape or --random-weights"),
        (["--accelerate", "mag", "--compile"], "--accelerate cannot be combined with"),
        (["--accelerate", "mag", "--cache", "first-block"], "--accelerate cannot be combined with"),
        (["--accelerate", "mag", "--repeats", "3"], "--accelerate cannot be combined with --repeats"),
        (["--accelerate", "wonder", "--backbone", "tiny"], "--cache wonder is refused"),
        (["--accelerate", ",", "--backbone", "tiny"], "--accelerate names nothing"),
        (["--prompt", "a cat"], "does not depend on it"),
        (["--lengths", "2", "--frames", "81"], "--lengths cannot be combined with --frames"),
        (["--lengths", "2", "--count"], "--lengths cannot be combined with"),
        (["--lengths", "2,x", "--shape", "small"], "whole numbers, 1 to 1000, as 2,3,4"),
        (["--lengths", "0", "--shape", "small"], "names no lengths"),
        (["--count", "--image", "a.png"], "--count cannot be combined with --image"),
        (["--count", "--repeats", "2"], "--count cannot be combined with --repeats"),
        (["--count", "--device", "cpu", "--compile"], "--count cannot be combined with --device, --compile"),
        (["--count", "--card", "h1000"], "expected: 4090, a100, h100, h200"),
        (["--card", "h100"], "--card has no effect without --count"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(args: list[str], said: str) -> None:
    done = longgen("bench", *args)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


COUNT = ["bench", "--count", "--shape", "small", "--frames", "81", "--presets"]


def test_counts_as_one_object(place: Path) -> None:
    done = longgen(*COUNT, "sliding-window,freespec", "--card", "h100,4090", "--json", "-o", "out.json", "--quiet")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data == json.loads((place / "out.json").read_text())
    assert done.stderr == ""
    assert [*data] == ["schema", "backbone", "measured", "settings", "cards", "presets"]
    assert data["measured"] is False
    assert [*data["cards"]] == ["h100", "4090"]
    assert [row["preset"] for row in data["presets"]] == ["direct", "sliding-window", "freespec"]
    fused, _ = data["presets"][2]["steps"]
    assert set(fused) == {"step", "in_a_run", "model_calls", "layers", "rest_of_model", "estimated_seconds"}
    (layer,) = fused["layers"]
    assert set(layer) == {"block", "layers", "launches", "attention_calls", "copies_from_host", "waits", "eigenproblems",
                          "operations", "bytes", "by_operator"}  # fmt: skip
    assert layer["launches"] == sum(layer["by_operator"].values())
    assert layer["eigenproblems"] == layer["waits"] == 2
    assert all(seconds > 0 for row in data["presets"] for seconds in row["estimated_run_seconds"].values())


def test_counts_as_a_table() -> None:
    done = longgen(*COUNT, "sliding-window,self-forcing", "--card", "h100,h200,a100,4090")
    assert done.exit_code == 5
    assert "1 of 3 could not be counted: self-forcing: rollout needs kv-cache" in done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith(("direct", "sliding-window"))] == ["direct", "sliding-window"] * 2
    assert "nothing here is measured" in " ".join(done.stdout.split())


@pytest.mark.parametrize(("kind", "code"), [(KeyboardInterrupt, 130), (Terminated, 75)])
def test_ctrl_c_prints_what_is_measured(kind: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.bench

    def stopped(*args: object) -> object:
        found = whole(*args)  # type: ignore[arg-type]
        found.stopped = kind()  # type: ignore[assignment]
        return found

    monkeypatch.setattr(run, "bench", stopped)
    cli: Any = importlib.import_module("longgen.cli.app")  # whose name in longgen.cli is that of the app
    monkeypatch.setattr(cli, "_reported", False)
    handlers = {number: signal.getsignal(number) for number in cli._SIGNALS}
    try:
        done = longgen(*SMALL, "--presets", "direct")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert cli._reported  # else the end of the process says once more that it was stopped
    assert done.exit_code == code
    assert "stock" in done.stdout
    assert "what was measured until then is above" in done.stderr


def test_accelerators_are_measured_on_whole_runs(place: Path) -> None:
    done = longgen("bench", "--accelerate", "first-block:0.9, first-block:0.000001", "--backbone", "tiny", "--presets", "direct",
                   "--frames", "17", "--json", "-o", "out.json", "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data == json.loads((place / "out.json").read_text())
    assert done.stderr == ""
    (direct,) = data["presets"]
    assert [one["verdict"] for one in direct["accelerators"]] == ["approximate", "equal"]
    assert set(direct["accelerators"][0]) == {"accelerator", "verdict", "relative_difference", "psnr_db", "computed", "seconds",
                                              "time_ratio"}  # fmt: skip
    assert tiny_grammar.parse(data["settings"]["prompt"]) is not None


def test_random_weights_of_a_named_backbone() -> None:
    done = longgen("bench", "--backbone", "tiny", "--random-weights", "--presets", "direct", "--frames", "5", "--repeats", "1",
                   "--size", "32x32", "--json", "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["backbone"] == "tiny"


def test_the_shipped_shape_is_what_its_name_promises() -> None:
    made = synthetic.CPU_ATTENTION
    assert (made.heads, made.head_dim, made.layers, made.ffn_dim) == (4, 64, 6, 1024)
    assert made.frame_grid(made.size) == (8, 8)
    assert made.native_lat == 21
    from longgen import planner, preset

    direct = planner.build(preset.load("direct", (), preset.Sample(frames=synthetic.FRAMES)), made)
    assert direct.frames_lat == 81
    attention = 4 * direct.tokens**2 * made.width
    assert 0.7 < attention / cost.flops(direct, None) < 0.9


def test_plan_quotes_the_floor_that_bench_divides_by() -> None:
    args = ("--backbone", "tiny", "--frames", "161")
    done = longgen("bench", *args, "--random-weights", "--presets", "sliding-window", "--repeats", "1", "--size", "32x32", "--json")
    floor = json.loads(done.stdout)["presets"][-1]["floor"]
    shown = longgen("plan", "--preset", "sliding-window", *args, "--size", "32x32").stdout
    assert f"floor: {floor:.2f} (arithmetic against direct sampling" in shown


def test_a_step_is_measured_from_a_picture(place: Path) -> None:
    Image.new("RGB", (64, 64), "red").save("red.png")
    small = ["bench", "--backbone", "tiny", "--presets", "sliding-window", "--frames", "9", "--repeats", "1", "--json", "--quiet"]
    done = longgen(*small, "--image", "red.png")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert json.loads(done.stdout)["settings"]["conditions"]["fit"] == "crop"
    done = longgen("bench", "--shape", "small", "--image", "red.png")
    assert done.exit_code == 2
    assert "--image: small cannot take a picture as the first frame" in done.stderr


def test_a_model_that_needs_a_picture_is_measured_with_grey() -> None:
    needy = dataclasses.replace(TINY, picture_needed=True)
    grey = command._conditions(None, needy)
    assert grey.image is not None
    assert set(np.asarray(pictures.fitted(grey.image, (8, 8), "crop")).ravel().tolist()) == {128}
    assert command._conditions(None, TINY) == NOTHING
