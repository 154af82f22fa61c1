"""VBench's numbers in `longgen compare`: computed by small networks of random weights, written, laid out, read back."""

from __future__ import annotations

import html
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel
from typer.testing import CliRunner, Result

from longgen import plan, run_settings
from longgen.backbones.settings import ModelSettings
from longgen.cli import app
from longgen.compare.record import Comparison, read
from longgen.compare.scores import parse_metrics
from longgen.compare.statistics import best_presets, paired_differences, preset_rows
from longgen.compare.table import text
from longgen.compare.warnings import collect_warnings
from longgen.errors import OutOfMemoryError
from longgen.metrics import KNOWN, METRICS, describe, in_order
from longgen.metrics.vbench import DIMENSIONS, FEATURES, clip, dino, musiq, scorer
from longgen.metrics.vbench.scorer import VBench
from longgen.video import Writer
from tests.compare.test_statistics import cell
from tests.compare.test_table import SIX, comparison

SUBJECT, BACKGROUND = "vbench.subject_consistency", "vbench.background_consistency"
BOTH = f"{SUBJECT},{BACKGROUND}"
PROMPT = "a large red circle bouncing on a navy background"
GRID = ["--backbone", "tiny", "--frames", "5", "--steps", "1", "--prompt", PROMPT, "--presets", "direct,riflex"]


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dino, "CONFIG", ViTConfig(**small, layer_norm_eps=1e-6))
        patch.setattr(clip, "B32", CLIPVisionConfig(**small, projection_dim=24))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --vbench-weights wants for both consistencies."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    ViTModel(dino.CONFIG).save_pretrained(folder / "dino-vitb16")
    CLIPVisionModelWithProjection(clip.B32).save_pretrained(folder / "clip-vit-base-patch32")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no weights but those that a test names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LONGGEN_VBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    return tmp_path


def film(path: Path, settings: dict[str, Any] | None = None) -> Path:
    """Five frames of noise that drifts to the right; another noise for another name."""
    with Writer(path, (64, 64), 16, settings or {}) as writer:
        picture = np.random.default_rng([*path.name.encode()]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        writer.add(np.stack([np.roll(picture, 3 * frame, axis=1) for frame in range(5)]))
    return path


@pytest.fixture
def films(tiny_plan: Callable[..., plan.Plan]) -> list[Path]:
    """Videos of two presets and two seeds, as longgen would have written them."""
    made = []
    for preset in ("direct", "riflex"):
        for seed in (0, 1):
            settings = run_settings.stored_settings(tiny_plan(preset, frames=5), PROMPT, seed, ModelSettings("cpu", "fp32"))
            made.append(film(Path(f"{preset}-{seed}.mp4"), settings))
    return made


def longgen(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, args), "-o", "out"])


def compared(*args: str | Path) -> Comparison:
    done = longgen(*args)
    assert done.exit_code == 0, done.stderr
    return read(Path("out/compare.json"))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What VBench does from here on: `load` for each object, and the names of videos."""
    done: list[str] = []
    load, score = VBench.__init__, VBench.score

    def counted_load(self: VBench, *args: Any) -> None:
        done.append("load")
        load(self, *args)

    def counted_score(self: VBench, video: Any, fps: float | None = None) -> Any:
        done.append(video.name)
        return score(self, video, fps)

    monkeypatch.setattr(VBench, "__init__", counted_load)
    monkeypatch.setattr(VBench, "score", counted_score)
    return done


def test_the_numbers_join_those_of_each_video_beside_motion(films: list[Path], weights: Path, scored: list[str]) -> None:
    done = longgen(*films[:2], "--metrics", f"seam,{BOTH}", "--vbench-weights", weights)
    assert done.exit_code == 0, done.stderr
    made = read(Path("out/compare.json"))
    assert scored == ["load", "direct-0.mp4", "direct-1.mp4"]  # one object for all
    assert "vbench 2/2" in done.stderr
    bench = VBench("cpu", weights, ["subject_consistency", "background_consistency"])
    for path, one in zip(films, made.cells, strict=False):
        assert [*one.metrics] == ["motion", "seam", SUBJECT, BACKGROUND]
        values = bench.score(path)
        for key in (SUBJECT, BACKGROUND):
            assert one.metrics[key] == pytest.approx(values.values[key])
            assert one.curves[key][0] is None
            assert one.curves[key][1:] == pytest.approx(values.curves[key][1:].tolist(), rel=1e-4)
    assert [*made.table[0].metrics] == ["motion", SUBJECT, BACKGROUND]
    assert "subject_consistency" in done.stdout
    assert "of 1 ↑" in done.stdout
    page = Path("out/report.html").read_text()
    for key in (SUBJECT, BACKGROUND):
        assert describe(key).about in page


def test_what_was_computed_is_kept_for_the_same_video_weights_and_dimensions(
    films: list[Path], weights: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGGEN_VBENCH_WEIGHTS", str(weights))
    pair = films[:2]
    first = compared(*pair, "--metrics", BOTH)
    assert scored == ["load", "direct-0.mp4", "direct-1.mp4"]
    assert compared(*pair, "--metrics", BOTH) == first
    assert len(scored) == 3
    compared(*pair, "--metrics", SUBJECT)
    assert scored[3:] == ["load", "direct-0.mp4", "direct-1.mp4"]
    for path in Path("out/scores").glob("*.vbench.json"):  # not from the weights: those of RAFT serve two
        assert json.loads(path.read_text())["key"]["dimensions"] == ["subject_consistency"]
    torch.manual_seed(1)
    other = Path("other")
    ViTModel(dino.CONFIG).save_pretrained(other / "dino-vitb16")
    changed = compared(*pair, "--metrics", SUBJECT, "--vbench-weights", other)
    assert scored[6:] == ["load", "direct-0.mp4", "direct-1.mp4"]
    assert changed.cells[0].metrics[SUBJECT] != first.cells[0].metrics[SUBJECT]
    kept = sorted(Path("out/scores").glob("*.vbench.json"))
    kept[0].write_text("{damaged", encoding="utf-8")
    assert compared(*pair, "--metrics", SUBJECT, "--vbench-weights", other) == changed
    assert scored[9:] == ["load", "direct-0.mp4"]


def test_missing_weights_are_named_before_anything_is_made(here: Path) -> None:
    done = longgen(*GRID, "--metrics", BOTH, "--vbench-weights", here / "empty")
    assert done.exit_code == 3
    for said in ("weights of VBench are missing", "facebook/dino-vitb16", "openai/clip-vit-base-patch32", "--vbench-weights DIR"):
        assert said in done.stderr
    assert [*here.iterdir()] == []


def test_a_grid_is_scored_when_it_is_made(weights: Path, scored: list[str]) -> None:
    made = compared(*GRID, "--metrics", SUBJECT, "--vbench-weights", weights, "--export-vbench", "laid")
    assert [*made.table[1].metrics] == ["motion", SUBJECT]
    assert scored == ["load", *(Path(str(one.video)).name for one in made.cells)]
    assert sorted(path.parts[1] for path in Path("laid").glob("*/videos/*-0.mp4")) == ["direct", "riflex"]


def test_the_own_and_all_of_vbench_have_a_name_each() -> None:
    free = [row.key for name, row in DIMENSIONS.items()
            if name not in FEATURES and (name != "imaging_quality" or musiq.installed())]  # fmt: skip
    assert parse_metrics("vbench") == ["motion", *free]
    assert parse_metrics("features") == ["motion", *FEATURES]
    assert parse_metrics(f"{SUBJECT},own") == [*METRICS, SUBJECT]
    assert parse_metrics(None) == [*METRICS]
    assert {row.key for row in DIMENSIONS.values()} <= KNOWN.keys()
    assert in_order(["vbench.colour", SUBJECT, "nobodys", "motion", SUBJECT]) == ["motion", SUBJECT, "nobodys", "vbench.colour"]
    assert (describe("vbench.colour").better, describe("vbench.dynamic_degree").better) == ("higher", "neither")


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_keeps_its_width(width: int) -> None:
    made = text(comparison({"direct": SIX, "other": [*map(abs, SIX)]}, names=tuple(KNOWN)), width)
    assert max(map(len, made.splitlines())) <= width
    for row in DIMENSIONS.values():
        assert row.key.removeprefix("vbench.") in made


def test_a_still_is_called_consistent_by_nobody() -> None:
    values = {"moving": (30.0, 0.9, 0.5), "still": (0.1, 1.0, 0.6), "other": (30.0, 0.8, 0.4)}
    names = ("motion", SUBJECT, "vbench.aesthetic_quality")
    cells = [cell(preset, "p", seed, **{name: number + seed / 100 for name, number in zip(names, numbers, strict=True)})
             for preset, numbers in values.items() for seed in range(9)]  # fmt: skip
    differences = paired_differences([*values], cells, None, names)
    table = preset_rows([*values], cells, None, names, differences)
    assert best_presets(table, differences) == {SUBJECT: "moving", "vbench.aesthetic_quality": "still"}
    notes = collect_warnings(cells, table)
    assert any("consistency rewards a video that stands still" in note and f"read {SUBJECT} together" in note for note in notes)
    (said,) = [line for line in notes if "hardly moves" in line]
    assert f": {SUBJECT} look good in a still" in said


def test_numbers_are_written_as_upstream_writes_them(films: list[Path], weights: Path) -> None:
    made = compared(*films, "--metrics", BOTH, "--vbench-weights", weights, "--vbench-json", "written")
    (info,) = Path("written").glob("*_full_info.json")
    (results,) = Path("written").glob("*_eval_results.json")
    assert {entry["prompt_en"] for entry in json.loads(info.read_text())} == {PROMPT}
    assert len(json.loads(results.read_text())["subject_consistency"][1]) == 4
    again = compared(*films, "--vbench-json", results)  # no weights, no --metrics
    assert [one.metrics[SUBJECT] for one in again.cells] == pytest.approx([one.metrics[SUBJECT] for one in made.cells])
    assert not any("none of these" in line for line in again.warnings)
    assert [*again.table[0].metrics][-2:] == [SUBJECT, BACKGROUND]


def upstream(preset: str, first: float, where: str = "videos") -> Path:
    """What VBench's own program would write for the two videos of `preset` in laid/; it was run in the folder of that."""
    items = [{"video_path": f"{where}/{PROMPT}-{seed}.mp4", "video_results": first + seed / 10} for seed in (0, 1)]
    path = Path("laid", preset, "results", "results_2026-01-01-00:00:00_eval_results.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"motion_smoothness": [first, items], "subject_consistency": [first, items]}), encoding="utf-8")
    return path


def test_videos_are_laid_out_and_upstreams_numbers_come_back(films: list[Path], scored: list[str]) -> None:
    done = longgen(*films, "--export-vbench", "laid")
    assert done.exit_code == 0, done.stderr
    assert scored == []
    for preset in ("direct", "riflex"):
        for seed in (0, 1):
            assert Path("laid", preset, "videos", f"{PROMPT}-{seed}.mp4").read_bytes() == Path(f"{preset}-{seed}.mp4").read_bytes()
        assert f"vbench evaluate --videos_path laid/{preset}/videos --prompt_file laid/{preset}/prompts.json" in done.stderr
    (command, _) = (line for line in done.stderr.splitlines() if line.startswith("vbench evaluate"))
    assert shlex.split(command)[-1].split()[0] == "subject_consistency"
    files = upstream("direct", 0.1), upstream("riflex", 0.5, "laid/riflex/videos")  # as it writes them in its folder, and from here
    options = [option for file in files for option in ("--vbench-json", file)]
    made = compared(*films, *options, "--metrics", f"motion,{SUBJECT}")  # what the files have is not computed
    wanted = [{"motion": one.metrics["motion"], SUBJECT: value, "vbench.motion_smoothness": value}
              for one, value in zip(made.cells, (0.1, 0.2, 0.5, 0.6), strict=True)]  # fmt: skip
    assert [one.metrics for one in made.cells] == [pytest.approx(values) for values in wanted]
    assert not any("none of these" in line for line in made.warnings)
    assert "Computed by VBench's own program" in html.unescape(Path("out/report.html").read_text())


def test_numbers_of_other_videos_are_left_out_and_said(films: list[Path]) -> None:
    compared(*films, "--export-vbench", "laid")
    file = upstream("direct", 0.1)
    os.rename(file, "alone.json")  # of which preset its videos are is lost
    made = compared(*films, "--vbench-json", "alone.json")
    assert [one.metrics[SUBJECT] for one in made.cells] == [None] * 4
    assert "alone.json: 2 of its 2 videos are unknown or ambiguous here" in made.warnings
    made = compared(*films[:2], "--vbench-json", "alone.json", "--overwrite")  # of one preset alone they can be told
    assert [one.metrics[SUBJECT] for one in made.cells] == [0.1, 0.2]


def test_lack_of_memory_is_named(films: list[Path], weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(frames: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dino.pictures, "for_dino", lacking)
    done = longgen(films[0], "--metrics", SUBJECT, "--vbench-weights", weights)
    assert done.exit_code == OutOfMemoryError.exit_code
    assert "out of memory while VBench scored direct-0.mp4" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--metrics", "vbench.subject_consistancy"], 2, "did you mean vbench.subject_consistency"),
        (["--metrics", "motion", "--vbench-json", "folder"], 2, "none are selected"),
        (["--vbench-json", "gone.json"], 3, "gone.json is not there"),
        (["--vbench-json", "bad.json"], 1, "bad.json holds no results of VBench"),
        (["--metrics", SUBJECT, "--vbench-json", "bad.json/below"], 1, "is not a folder"),
        (["--export-vbench", "bad.json"], 1, "is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_work(here: Path, args: list[str], code: int, said: str) -> None:
    (here / "bad.json").write_text("[]")
    done = longgen(*GRID, *args)
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert [path.name for path in here.iterdir()] == ["bad.json"]


def test_a_gap_after_every_number_is_no_curve() -> None:
    """Each number of a gauge of RAFT's has frames without one behind it, and the page draws lines between neighbours."""
    draw = torch.Generator().manual_seed(0)
    frames = torch.rand(9, 3, 128, 128, generator=draw) * 255
    flow = lambda first, second: torch.zeros(len(first), 2, *first.shape[2:])  # noqa: E731
    for gauge in (scorer.DynamicDegree(flow, 16.0), scorer.MotionSmoothness(flow)):
        gauge.add(frames)
        there = np.isfinite(gauge.curve)
        assert there.any()
        assert not (there[1:] & there[:-1]).any()
