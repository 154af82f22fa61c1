"""The preset that is taken where none is named."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longgen import planner, preset, run, rundir
from longgen.backbones import defaults
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.cli import app
from longgen.planner import LONG, length_px, stand_in
from longgen.preset import Sample
from longgen.recommended import Recommendation, recommended
from longgen.run_settings import stored_settings
from longgen.schedule import PromptSchedule, Shot

PROMPT = "a large red circle bouncing on a navy background"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LONGGEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SPECS)
def test_every_backbone_has_one_beyond_its_length_that_needs_no_probe_and_no_weights(name: str) -> None:
    spec = SPECS[name]
    assert recommended(spec, spec.native_px, conditions=stand_in(spec)) == Recommendation("direct")
    advice = recommended(spec, length_px(spec, LONG), conditions=stand_in(spec))
    shipped = preset.load(advice.preset, sample=Sample(frames=length_px(spec, LONG)))
    plan = planner.build(shipped, spec, conditions=stand_in(spec))
    assert plan.techniques
    assert not shipped.model.lora
    assert advice.preset != "direct"
    assert f"preset {advice.preset} is taken" in advice.note
    assert "--preset direct" in advice.note


@pytest.mark.parametrize(
    ("name", "times", "more", "expected"),
    [
        ("tiny", LONG, {}, "sliding-window"),
        ("tiny", LONG, {"overrides": ["freenoise.seed=1"]}, "direct"),
        ("tiny", 80, {}, "gen-l-video"),  # more than the others can address
        ("wan2.1-1.3b", LONG, {"gpus": 2}, "sliding-window"),
        ("hunyuanvideo", LONG, {}, "sliding-window"),
        ("hunyuanvideo", LONG, {"gpus": 4}, "gen-l-video"),
        ("hunyuanvideo", LONG, {"schedule": True}, "gen-l-video"),
        ("tiny-causal", LONG, {}, "deep-forcing"),
        ("self-forcing", LONG, {"schedule": True}, "deep-forcing"),
        ("longlive", LONG, {}, "longlive"),
        ("longlive-2", LONG, {}, "longlive-2"),
    ],
)
def test_it_takes_what_is_asked_for(name: str, times: int, more: dict[str, object], expected: str) -> None:
    schedule = PromptSchedule(shots=(Shot(Fraction(0), "a"), Shot(Fraction(5), "b"))) if more.pop("schedule", None) else None
    spec = SPECS[name]
    advice = recommended(spec, length_px(spec, times), schedule=schedule, conditions=stand_in(spec), **more)  # type: ignore[arg-type]
    assert advice.preset == expected
    assert ("--preset direct" in advice.note) == (expected not in ("direct", "gen-l-video"))  # offered where it can be


def test_plan_names_it_and_a_preset_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*args: str) -> tuple[str, str]:
        data = json.loads(CliRunner().invoke(app, ["plan", "-m", "tiny", "--json", *args]).stdout)
        return data["name"], " ".join(data["notes"])

    name, notes = planned("--duration", "20s")
    assert (name, "preset sliding-window is taken" in notes) == ("sliding-window", True)
    assert planned("--duration", "5s")[0] == "direct"
    assert "is taken" not in planned("--frames", "321", "--preset", "direct")[1]
    monkeypatch.setenv("LONGGEN_PRESET", "riflex")
    assert planned("--frames", "321")[0] == "riflex"


@pytest.mark.parametrize("named", [False, True])
def test_a_run_that_began_without_a_recommendation_goes_on_as_it_began(named: bool) -> None:
    plan = planner.build(preset.load("direct", sample=Sample(frames=85)), SPECS["tiny"])
    settings = ModelSettings(defaults.default_device(), "fp32")
    output = Path("ball.mp4") if named else rundir.jobs_of([rundir.JobRequest(plan, PROMPT, 1, None)], settings)[0].output
    rundir.run_folder(output).mkdir()
    run.RunRecord(output, plan, stored_settings(plan, PROMPT, 1, settings), "cpu", 0.0).write("running")
    words = [
        "generate",
        PROMPT,
        "-m",
        "tiny",
        "--frames",
        "85",
        "--dtype",
        "fp32",
        "--dry-run",
        "--json",
        *(["-o", "ball.mp4"] * named),
    ]
    again = CliRunner().invoke(app, [*words, *([] if named else ["--seed", "1"]), "--resume"])
    assert again.exit_code == 0, again.stderr
    assert "goes on with direct, with which the run began" in again.stderr
    video = json.loads(again.stdout)["videos"][0]
    assert (video["preset"], video["output"], video["seed"]) == ("direct", str(output), 1)
    anew = json.loads(CliRunner().invoke(app, [*words, "--seed", "2"]).stdout)["videos"][0]
    assert anew["preset"] == "sliding-window"
