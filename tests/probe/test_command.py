"""`longgen probe` and what takes its answer, through the command line."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from longgen import disk, video
from longgen.backbones.causal_wan import TINY_CAUSAL
from longgen.backbones.wan import TINY
from longgen.cli import app
from longgen.layers.probe_file import read
from tests.probe.test_selection import probe_of
from tests.warm import Process

PROMPT = "a small red circle orbiting on a black background"
SMALL = ["--frames", "85", "--steps", "2", "--size", "32x32", "-p", PROMPT]
QUICK = ["probe", "--backbone", "tiny", "--quick", "--seeds", "0", *SMALL]
THRICE = [*QUICK[:4], "--seeds", "0,1,2", *SMALL]
GENERATE = ["generate", "--backbone", "tiny", "--seed", "1", *SMALL]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def longgen(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_a_probe_is_shown_written_and_used(place: Path) -> None:
    long = longgen(*QUICK[:-1], " ".join([PROMPT] * 4), "-o", "long")
    assert long.exit_code == 0, long.stderr
    assert "note: the prompt has" in long.stderr
    assert "tiny reads 24; not read: '" in long.stderr
    shown = longgen(*QUICK)
    assert shown.exit_code == 0, shown.stderr
    assert "not read" not in shown.stderr
    assert "quick probe of tiny" in shown.stdout
    folder = place / "probe-tiny-85"
    assert sorted(path.name for path in folder.iterdir()) == ["effective_rank.png", "probe.json", "report.html", "scores.png"]
    found = read(folder / "probe.json")
    as_json = json.loads(longgen(*QUICK, "--json", "--quiet").stdout)
    assert as_json == json.loads((folder / "probe.json").read_text())
    assert [sorted(layer) for layer in as_json["layers"]] == [
        ["context", "effective_rank", "layer", "position", "scores", "verdict"]
    ] * 6
    made = longgen(*GENERATE, "--preset", "freeloc", "-o", "own.mp4")
    assert made.exit_code == 0, made.stderr
    assert "by the quick probe" in made.stderr
    record = json.loads((place / "own.run" / "run.json").read_text())
    layers = {technique["name"]: tuple(technique["layers"]) for technique in record["techniques"]}
    assert layers == {"vrpr": found.sensitive("position"), "tsa": found.sensitive("context")}
    toml = longgen("inspect", "own.mp4", "--toml").stdout
    Path("again.toml").write_text(toml)
    disk.save_json(place / "probe.json", probe_of(TINY, frames=85, top=1).as_dict())
    named = longgen(*GENERATE, "--preset", "freeloc", "--probe", "probe.json", "-o", "named.mp4", "--dry-run")
    assert "position-sensitive 0 of 6, context-sensitive 5 of 6" in named.stderr
    again = longgen(*GENERATE, "--preset", "again.toml", "-o", "again.mp4")  # the file has the layers: it needs no probe
    assert again.exit_code == 0, again.stderr
    assert (place / "again.mp4").stat().st_size > 0
    kept = [video.read_settings(place / name)["preset"]["technique"] for name in ("own.mp4", "again.mp4")]
    assert kept[0] == kept[1]


def test_probe_run_probes_first(place: Path) -> None:
    made = longgen(*GENERATE, "--preset", "freeloc", "--probe", "run", "-o", "own.mp4")
    assert made.exit_code == 0, made.stderr
    assert "probe 8/8" in made.stderr  # two prompts, two seeds, two lengths
    assert "by the probe" in made.stderr


def test_a_probe_that_was_killed_goes_on(place: Path) -> None:
    running = Process(place, THRICE)
    cache = place.parent / "cache"
    deadline = time.monotonic() + 120
    while not list(cache.rglob("parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    done = {path: path.stat().st_mtime_ns for path in cache.rglob("parts/*.json")}
    assert 0 < len(done) < 6
    assert not list(cache.rglob("probe.json"))
    again = longgen(*THRICE, "--json", "--quiet")
    assert again.exit_code == 0, again.stderr
    assert again.stderr == ""
    assert [run["seed"] for run in json.loads(again.stdout)["runs"]] == [0, 1, 2]
    assert not list(cache.rglob("parts"))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["probe", "--backbone", "tiny", "--frames", "81"], 2, "not longer"),
        (["probe", "--backbone", "tinny"], 2, "did you mean tiny"),
        (["probe", "--backbone", "tiny", "--seeds", "0,x"], 2, "is not a list of seeds"),
        (["probe", "--backbone", "tiny", "--seeds", "1,1"], 2, "1 is given twice"),
        (["probe", "--backbone", "tiny", "--prompts", "empty.txt"], 2, "holds no prompt"),
        (["probe", "--backbone", "tiny", "--prompts", "nowhere.txt"], 3, "is not there"),
        (["probe", "--backbone", "tiny", "--top", "7"], 2, "has 6 layers"),
        (["probe", "--backbone", "tiny", "--top", "1", "--threshold", "0.1"], 2, "cannot be combined"),
        (["probe", "--backbone", "tiny", "--threshold", "inf"], 2, "is not a score"),
        (["probe", "--backbone", "tiny", "--quick", "--metric", "video"], 2, "attention alone"),
        (["probe", "--backbone", "tiny", "-o", "empty.txt"], 2, "is a file"),
        (["plan", "--backbone", "tiny", "--preset", "freeloc", "--probe", "run"], 2, "loads no weights"),
        ([*GENERATE, "--preset", "freeloc", "--probe", "run", "--dry-run"], 2, "it runs the model"),
        ([*GENERATE, "--preset", "freeloc", "--probe", "nowhere.json"], 3, "does not exist"),
        ([*GENERATE, "--preset", "freeloc", "--probe", "empty.txt"], 1, "is not a probe"),
        ([*GENERATE, "--preset", "freeloc", "--probe", "foreign.json"], 2, "other weights"),
        ([*GENERATE, "--preset", "freeloc", "--set", "vrpr.layers=[7]", "--set", "tsa.layers=all"], 2, "6 layers"),
        ([*GENERATE, "--preset", "freeloc"], 2, "has not been probed at this length"),
        ([*GENERATE, "--preset", "freespec", "--layers", "all"], 2, "does not select its layers"),
    ],
)
def test_wrong_input_gets_one_clear_message(place: Path, args: list[str], code: int, message: str) -> None:
    (place / "empty.txt").write_text("# nothing\n")
    disk.save_json(place / "foreign.json", probe_of(TINY_CAUSAL, frames=85).as_dict())
    result = longgen(*args, "--quiet")
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith("longgen: ")
    assert result.stderr.count("expected:") == 1
    assert "Traceback" not in result.stderr


def test_a_probe_starts_from_a_picture(place: Path) -> None:
    """Its verdicts are its own: measured apart, and said."""
    Image.new("RGB", (64, 32), "red").save("red.png")
    plain = json.loads(longgen(*QUICK, "--json", "--quiet").stdout)
    done = longgen(*QUICK, "--image", "red.png", "-o", "pictured")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "note: --image red.png is 64x32: 50% cut off at left and right to be 32x32" in done.stderr
    assert "already measured" not in done.stderr
    found = read(place / "pictured" / "probe.json")
    assert found.settings.conditions is not None
    assert f"from the picture {found.settings.conditions['image'][:12]}" in " ".join(done.stdout.split())
    assert [layer["scores"] for layer in plain["layers"]] != [layer.model_dump()["scores"] for layer in found.layers]
    assert plain["settings"]["conditions"] is None
    assert "already measured" in longgen(*QUICK, "--image", "red.png", "-o", "pictured").stderr
    assert "--fit has no effect" in longgen(*QUICK, "--fit", "pad").stderr
    made = longgen(*GENERATE, "--preset", "freeloc", "--image", "red.png", "--dry-run")
    assert made.exit_code == 0, made.stderr
    assert "whose runs" not in made.stderr
