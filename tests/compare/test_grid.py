"""`longgen compare` over a grid, as a user starts it: what is made, skipped, resumed, failed and refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imageio_ffmpeg import count_frames_and_secs
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from longgen import run, rundir
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.cli import app
from longgen.compare import grid
from longgen.compare.record import read
from longgen.compare.run import compare_presets, default_folder, earlier_folder
from longgen.plan import Plan
from longgen.preset import Sample
from longgen.resolve import PlanRequest
from tests.warm import Process

PROMPT = "a large red circle bouncing on a navy background"
FLAGS = ["--backbone", "tiny", "--frames", "9", "--steps", "2"]
GRID = ["compare", *FLAGS, "--prompt", PROMPT, "--presets", "direct,sliding-window", "--seeds", "0,1", "-o", "out"]
CPU = ModelSettings("cpu", "fp32")
HOSTILE = ['he said "<b>&amp;</b>" \'; rm -rf $HOME', "../../../etc/passwd", "/abs/olute\\path", "two\nlines\r\n\x1b[31m\x00",
           "x" * 500, "🎈", "🎉", "日本語 ع", "-o --help", "{{ 7 * 7 }} %s", "</script><script>alert(1)</script>"]  # fmt: skip
Make = Callable[..., Plan]


def longgen(folder: Path, *args: str) -> Result:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(app, list(args))
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with a finished grid in out/, and what the command said."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, longgen(folder, *GRID, "--json")


def times(folder: Path) -> dict[Path, int]:
    """When each file was written that takes work to make."""
    return {path: path.stat().st_mtime_ns for kind in ("mp4", "png", "safetensors") for path in folder.rglob(f"*.{kind}")}


def test_a_grid_becomes_videos_one_video_a_table_and_a_page(whole: tuple[Path, Result]) -> None:
    folder, done = whole
    assert done.exit_code == 0, done.stderr
    out = folder / "out"
    made = read(out / "compare.json")
    assert json.loads(done.stdout) == made.as_dict() == json.loads((out / "compare.json").read_text())
    assert [(cell.preset, cell.seed) for cell in made.cells] == [
        ("direct", 0),
        ("sliding-window", 0),
        ("direct", 1),
        ("sliding-window", 1),
    ]
    assert {path.stem for path in (out / "videos").glob("*.mp4")} == {cell.name for cell in made.cells}
    for cell in made.cells:
        assert (cell.status, cell.frames, cell.fps, cell.size, cell.prompt) == ("done", 9, 16, (64, 64), PROMPT)
        assert cell.video == f"videos/{cell.name}.mp4"
        assert cell.seconds["sample"] > 0
        assert cell.peak_memory_bytes > 1e8
        assert cell.metrics["motion"] is not None
        assert cell.metrics["subject_colour"] is not None
        assert len(cell.curves["motion"]) == 9
        assert cell.settings["seed"] == cell.seed
    assert (made.baseline, made.presets, made.prompts, made.seeds) == ("direct", ["direct", "sliding-window"], [PROMPT], [0, 1])
    (watch,) = made.watch
    assert count_frames_and_secs(str(out / watch.side_by_side))[0] == 9
    assert (out / watch.sheet).is_file()
    assert PROMPT in (out / "report.html").read_text()
    assert "[3/4] direct, seed 1, a large red circle" in done.stderr
    assert len(re.findall(r"load (.* .B)/\1,", done.stderr)) == 1  # once for all
    assert "videos 4/4" in done.stderr


def test_again_nothing_is_made_and_nothing_loaded(whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = whole
    before, result = times(folder), json.loads((folder / "out" / "compare.json").read_text())
    monkeypatch.setattr(run, "load", None)  # to call it would be an error
    done = longgen(folder, *GRID)
    assert done.exit_code == 0, done.stderr
    assert "4 of 4 videos exist already" in done.stderr
    assert times(folder) == before
    assert json.loads((folder / "out" / "compare.json").read_text()) == result
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "verdict: The presets do not differ: every metric is equal in every pair of videos (2 pairs)." in done.stdout


def test_chosen_metrics_are_never_shown_without_motion(whole: tuple[Path, Result]) -> None:
    done = longgen(whole[0], *GRID, "--metrics", "smoothness", "--baseline", "sliding-window", "--json", "--quiet")
    assert done.exit_code == 0
    assert done.stderr == ""
    table = json.loads(done.stdout)["table"]
    assert [[*row["metrics"]] for row in table] == [["motion", "smoothness"]] * 2
    assert table[0]["metrics"]["motion"]["difference"] is not None
    assert table[1]["metrics"]["motion"]["difference"] is None


def test_scores_are_made_again_for_another_video(whole: tuple[Path, Result], tmp_path: Path) -> None:
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    videos, scores = sorted((tmp_path / "out" / "videos").glob("*.mp4")), sorted((tmp_path / "out" / "scores").glob("*.json"))
    before = [json.loads(score.read_text())["scores"] for score in scores]
    scores[1].write_text("{damaged", encoding="utf-8")
    scores[2].write_text(scores[2].read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    shutil.copy(videos[3], videos[0])  # is not that cell's, and stays what it is
    done = longgen(tmp_path, *GRID)
    assert done.exit_code == 5
    assert "videos failed" in done.stderr
    assert "exists: a video with another" in done.stderr
    assert videos[0].read_bytes() == videos[3].read_bytes()
    after = [json.loads(score.read_text())["scores"] for score in scores]
    assert after == before


def test_the_name_holds_what_decides_the_picture(tiny_plan: Make, tmp_path: Path) -> None:
    def name(made: Plan, prompt: str = "p", seed: int = 0, model_settings: ModelSettings = CPU) -> str:
        (place,) = grid.planned_videos([made], [prompt], [seed], model_settings, tmp_path)
        return place.name

    own = tiny_plan("direct", frames=9, steps=2)
    assert (
        name(own)
        == name(tiny_plan("direct", frames=9, steps=2))
        == name(own, model_settings=ModelSettings("cuda:1", "fp32", offload="model"))
    )
    other = [
        name(own), name(own, "P"), name(own, seed=1), name(tiny_plan("direct", frames=13, steps=2)),
        name(tiny_plan("direct", frames=9, steps=3)), name(own, model_settings=ModelSettings("cpu", "bf16")),
        name(own, model_settings=ModelSettings("cpu", "fp32", vae_tiling=True)),
    ]  # fmt: skip
    assert len({one.rpartition("-")[2] for one in other}) == len(other)


def test_a_killed_grid_goes_on_to_the_same_bytes(tiny: Any, tiny_plan: Make, tmp_path: Path) -> None:
    command = ["compare", "--backbone", "tiny", "--frames", "41", "--steps", "6", "--prompt", PROMPT, "--presets", "direct,riflex"]
    process = Process(tmp_path, [*command, "-o", "out"])
    deadline = time.monotonic() + 120
    while not [*tmp_path.glob("out/videos/riflex-*.run/checkpoint.safetensors")]:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (first,) = (tmp_path / "out" / "videos").glob("direct-*.mp4")
    before = first.stat().st_mtime_ns
    done = longgen(tmp_path, *command, "-o", "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert "1 of 2 videos exist already" in done.stderr
    assert first.stat().st_mtime_ns == before
    made = json.loads(done.stdout)
    assert [cell["details"].get("resumed") for cell in made["cells"]] == [None, True]
    assert [row["seconds"] is None for row in made["table"]] == [False, True]  # the seconds of the first go are lost
    assert any("with interruptions" in warning for warning in made["warnings"])
    run.generate_one(tiny, run.Job(tiny_plan("riflex", frames=41, steps=6), PROMPT, 0, tmp_path / "whole.mp4"))
    (second,) = (tmp_path / "out" / "videos").glob("riflex-*.mp4")
    kept, whole = (
        load_file(rundir.run_folder(path) / "latents.safetensors")["latents"] for path in (second, tmp_path / "whole.mp4")
    )
    assert kept.numpy().tobytes() == whole.numpy().tobytes()
    assert second.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_failing_cell_is_reported_and_the_rest_goes_on(tiny_plan: Make, tmp_path: Path) -> None:
    command = [*GRID[:-4], "-o", "out", "--seeds", "3"]
    sample = dict(frames=9, steps=2)
    (first, _) = grid.planned_videos(
        [tiny_plan("direct", **sample), tiny_plan("sliding-window", **sample)], [PROMPT], [3], CPU, tmp_path / "out/videos"
    )
    damaged = rundir.run_folder(first.output) / "checkpoint.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no tensors")
    done = longgen(tmp_path, *command)
    assert done.exit_code == 5, done.stderr
    assert "1 of 2 videos failed" in done.stderr
    made = read(tmp_path / "out" / "compare.json")
    assert [cell.status for cell in made.cells] == ["failed", "done"]
    assert "is damaged" in str(made.cells[0].error)
    assert (made.table[0].failed, made.table[1].failed) == (1, 0)
    assert any(first.name in warning for warning in made.warnings)
    assert "1 of 1" in done.stdout
    assert (tmp_path / "out" / made.watch[0].side_by_side).is_file()
    damaged.unlink()
    done = longgen(tmp_path, *command)
    assert done.exit_code == 0, done.stderr
    assert "1 of 2 videos exist already" in done.stderr
    assert read(tmp_path / "out" / "compare.json").table[0].failed == 0


def test_where_all_fail_there_is_still_a_record(tiny_plan: Make, tmp_path: Path) -> None:
    (place,) = grid.planned_videos([tiny_plan("direct", frames=9, steps=2)], [PROMPT], [0], CPU, tmp_path / "out" / "videos")
    rundir.run_folder(place.output).mkdir(parents=True)
    (rundir.run_folder(place.output) / "checkpoint.safetensors").write_bytes(b"no tensors")
    done = longgen(tmp_path, "compare", *FLAGS, "--prompt", PROMPT, "--presets", "direct", "-o", "out")
    assert done.exit_code == 5, done.stderr
    made = read(tmp_path / "out" / "compare.json")
    assert (made.watch, made.table[0].metrics, made.table[0].seconds) == ([], {}, None)


def test_no_prompt_leaves_the_folder_or_breaks_the_page(tiny_plan: Make, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    made = compare_presets([tiny_plan("direct", frames=5, steps=1)], [*HOSTILE, HOSTILE[0]], [0], CPU, out)
    assert [cell.prompt for cell in made.cells] == HOSTILE
    assert all(cell.status == "done" for cell in made.cells)
    assert len({cell.name for cell in made.cells}) == len({watch.side_by_side for watch in made.watch}) == len(HOSTILE)
    for path in [path for path in tmp_path.rglob("*") if not path.is_dir()]:
        assert path.is_relative_to(out)
        assert re.fullmatch(r"[\w.-]+", path.name)
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.json",
        "report.html",
        "scores",
        "sheets",
        "side-by-side",
        "videos",
    ]
    assert read(out / "compare.json") == made
    assert "<script>alert(1)" not in (out / "report.html").read_text()


def test_overrides_go_to_the_presets_that_take_them() -> None:
    from longgen.backbones.wan import TINY
    from longgen.resolve import PlanRequest

    made = grid.plans([PlanRequest(name, TINY, ("gen-l-video.stride=7",)) for name in ("direct", "gen-l-video")])
    assert made[1].preset.techniques[0].model_dump()["stride"] == 7
    assert [one.preset.name for one in made] == ["direct", "gen-l-video"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prompt", "p"], 2, "nothing to compare"),
        (["--prompt", "p", "--presets", ","], 2, "no presets to compare"),
        (["--presets", "direct"], 2, "no prompt is given"),
        (["--prompt", "p", "--presets", "direct,slidng-window"], 2, "did you mean sliding-window"),
        (["--prompt", "p", "--presets", "direct,direct"], 2, "two presets are called direct"),
        (["--prompt", "p", "--presets", "direct,missing.toml"], 3, "missing.toml does not exist"),
        (["--prompts", "empty.txt", "--presets", "direct"], 2, "holds no prompt"),
        (["--prompt", "p", "--presets", "direct", "--baseline", "freespec"], 2, "--baseline freespec is not among"),
        (["--prompt", "p", "--presets", "direct", "--metrics", "motoin"], 2, "did you mean motion"),
        (["--prompt", "p", "--presets", "direct", "--metrics", "motion,"], 2, "invalid --metrics"),
        (["--prompt", "p", "--presets", "direct", "--seeds", "0,0"], 2, "0 is given twice"),
        (["--prompt", "p", "--presets", "direct", "-o", "empty.txt"], 2, "empty.txt is a file"),
        (["--prompt", "p", "--presets", "direct", "-o", "empty.txt/below"], 1, "is not a folder"),
        (["--prompt", "p", "--presets", "direct,freespec", "--set", "window.frames=5"], 2, "applies to none of the presets"),
        (["--prompt", "p", "--presets", "direct", "--set", "widow.frames=5"], 2, "did you mean window"),
        (["--prompt", "p", "--presets", "direct,gen-l-video", "--set", "gen-l-video.stride=0"], 2, "gen-l-video.stride"),
        (["--prompt", "p", "--presets", "direct,self-forcing"], 2, "self-forcing"),
        (["a.mp4", "--presets", "direct"], 2, "--presets cannot be combined with existing videos"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_work(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    done = (
        longgen(tmp_path, "compare", "--backbone", "tiny", *arguments)
        if arguments[0] != "a.mp4"
        else longgen(tmp_path, "compare", *arguments)
    )
    assert done.exit_code == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_the_folder_is_named_after_all_prompts_and_an_earlier_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        str(default_folder(prompts)) for prompts in (["a cat"], ["a cat", "a dog"], ["a cat", "a cow"], ["a cat", "a dog", "a cow"])
    ]
    assert names[0] == str(default_folder(["a cat", "a cat"])) == "compare-a-cat"
    assert len({*names}) == 4
    assert re.fullmatch(r"compare-a-cat-and-1-more-[0-9a-f]{8}", names[1])
    assert all(len(str(default_folder([text, "b"])).encode()) < 230 for text in HOSTILE)
    plans = grid.plans([PlanRequest("direct", TINY, sample=Sample(frames=9, steps=2))])
    first, second = (grid.planned_videos(plans, prompts, [0, 1], CPU, Path("v")) for prompts in (["a cat"], ["a cat", "a dog"]))
    assert earlier_folder(second) is None
    old = tmp_path / "compare-a-cat" / "videos"
    old.mkdir(parents=True)
    for video in first:
        (old / f"{video.name}.mp4").touch()
    assert earlier_folder(second) == Path("compare-a-cat")  # which a prompt is added to
    assert earlier_folder(first[:1]) is None  # of which it has others


def test_a_finished_comparison_is_exported_again_in_place(whole: tuple[Path, Result], tmp_path: Path) -> None:
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    done = longgen(tmp_path, "compare", "out", "--export", "csv", "--export", "latex,csv", "--metrics", "motion")
    assert done.exit_code == 0, done.stderr
    names = {path.name for path in (tmp_path / "out" / "export").iterdir()}
    assert names == {"presets.csv", "differences.csv", "videos.csv", "means.tex", "differences.tex"}
    assert f"export: 5 files in {Path('out', 'export')}: presets.csv" in done.stderr
