"""Grids on a Ray cluster of this machine: two workers, one of which is killed; and shares of a grid that are joined."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from longgen import device, planner, preset, run, shards
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.cluster import pool, tasks
from longgen.cluster.worker import Task
from longgen.compare import grid, join
from longgen.compare.run import compare_presets, compare_videos
from longgen.conditions import NOTHING
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.plan import Plan
from longgen.probe import measure
from longgen.progress import no_report
from longgen.rundir import Job

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")  # whose import is longgen's to make
SETTINGS = ModelSettings("cpu", "fp32")
PROMPT, SEEDS, PRESETS = "a small red circle bouncing on a navy background", (0, 1, 2), ("direct", "sliding-window")
IGNORED = ("seconds", "peak_memory_bytes", "device", "details", "warnings", "watch", "libraries", "longgen")


def plan_of(name: str) -> Plan:
    """Seven latent frames, of which a window has three."""
    sets = ("window.frames=3",) if name == "sliding-window" else ()
    return planner.build(preset.load(name, sets, preset.Sample(frames=25, size=(32, 32), steps=2)), TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid as one process makes it."""
    folder = tmp_path_factory.mktemp("whole") / "grid"
    compare_presets([plan_of(name) for name in PRESETS], [PROMPT], SEEDS, SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pool.Pool]:
    said: list[str] = []
    with pool.pool(pool.LOCAL, 2, TINY, "cpu", tmp_path_factory.mktemp("shared"), said.append) as made:
        assert said[0] == "2 workers, 1 thread each"
        yield made


def table(folder: Path) -> dict[str, Any]:
    """The comparison in `folder` without what differs from run to run."""
    content = json.loads((folder / "compare.json").read_text())
    for part in (content, *content["cells"], *content["table"]):
        for name in IGNORED:
            part.pop(name, None)
    for cell in content["cells"]:
        cell["video"] = Path(cell["video"]).name
    return content


def test_the_grid_survives_the_death_of_a_worker_and_equals_that_of_one_process(
    workers: pool.Pool, whole: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    victim, at_work = workers.members[0], list[str]()

    def make(videos: Any) -> Iterator[Any]:
        for video, error in tasks.cells(workers, videos, log=said.append):
            if not at_work:  # the first is there; both workers are at the next ones
                at_work.append(str(victim))
                os.kill(victim.about["pid"], signal.SIGKILL)
            yield video, error

    folder = tmp_path / "grid"
    compare_presets([plan_of(name) for name in PRESETS], [PROMPT], SEEDS, SETTINGS, folder, log=said.append, make=make)
    assert table(folder) == table(whole)
    for video in (whole / "videos").glob("*.mp4"):
        assert (folder / "videos" / video.name).read_bytes() == video.read_bytes()
    deadline = time.monotonic() + 30
    while f"{victim} died" not in said and time.monotonic() < deadline:  # where it was idle when it was killed, the next task tells
        job = Job(plan_of("direct"), PROMPT, 7, tmp_path / f"{len(said)}.mp4")
        tasks.videos(workers, [job], SETTINGS, False, False, log=said.append)
    assert f"{victim} died" in said
    assert len(workers.members) == 2
    said.clear()
    compare_presets([plan_of(name) for name in PRESETS], [PROMPT], SEEDS, SETTINGS, folder, log=said.append,
                    make=functools.partial(tasks.cells, workers, log=said.append))  # fmt: skip
    assert said == ["6 of 6 videos exist already"]


def fail(number: int, backbone: Any, output: Path, log: Any) -> None:
    log(f"try of {number}")
    raise LonggenError(f"{number} cannot be made", expected="another", hint="none")


def nothing(number: int, backbone: Any, output: Path, log: Any) -> int:
    return number


def test_a_task_that_fails_is_tried_once_more_on_another_worker(workers: pool.Pool, tmp_path: Path) -> None:
    said: list[str] = []
    work = [functools.partial(fail, 0), functools.partial(nothing, 1)]
    given = [
        Task(f"task {number}", plan_of("direct"), SETTINGS, tmp_path / f"{number}.mp4", part) for number, part in enumerate(work)
    ]
    outcomes = {task.name: outcome for task, outcome in workers.run(given, log=said.append)}
    assert outcomes["task 0"].error == ("0 cannot be made", "another", "none", 1)
    assert outcomes["task 1"].result == 1
    assert len({line.partition(":")[0] for line in said if line.endswith("try of 0")}) == 2
    assert said[-1] == "failed: task 0: 0 cannot be made" or "failed: task 0: 0 cannot be made" in said


def test_the_driver_s_memory_is_flat_over_two_hundred_cells(workers: pool.Pool, tmp_path: Path) -> None:
    made = plan_of("direct")
    given = [
        Task(str(number), made, SETTINGS, tmp_path / f"{number}.mp4", functools.partial(nothing, number)) for number in range(200)
    ]
    sizes, results = [], []
    for _, outcome in workers.run(given):
        results.append(outcome.result)
        sizes.append(device._resident_bytes()["RssAnon"])
    assert sorted(results) == list(range(200))
    assert max(sizes[100:]) - sizes[20] < 8e6


def test_a_worker_that_does_not_see_the_folder_sends_what_it_makes(workers: pool.Pool, tmp_path: Path) -> None:
    apart = pool.Pool(workers.ray, {"num_cpus": 0, "max_restarts": 0}, ("/nowhere", "token", 1))  # beside those of the cluster
    apart.start(1, lambda line: None)
    job = Job(plan_of("direct"), PROMPT, 3, tmp_path / "sent.mp4")
    (result,) = tasks.videos(apart, [job], SETTINGS, False, False)
    assert isinstance(result, run.Result)
    assert (result.output, result.frames) == (str(tmp_path / "sent.mp4"), 25)
    alone = run.generate_jobs([job._replace(output=tmp_path / "alone.mp4")], SETTINGS)
    assert isinstance(alone[0], run.Result)
    assert (tmp_path / "sent.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    assert json.loads((tmp_path / "sent.run" / "run.json").read_text())["status"] == "done"
    (again,) = tasks.videos(apart, [job], SETTINGS, False, False)
    assert isinstance(again, run.Result)
    assert again.skipped
    workers.ray.kill(apart.members[0].actor)


def test_a_probe_spread_over_workers_is_that_of_one_process(workers: pool.Pool, tmp_path: Path) -> None:
    settings = measure.make_settings(TINY, "quick", 97, 1, [PROMPT], (0, 1), (32, 32), "fp32", (), NOTHING)
    tasks.probe_samples(workers, TINY, settings, SETTINGS, NOTHING, no_report, no_report, tmp_path)
    there = measure.PartialResults(tmp_path)
    spread = measure.measure(lambda: pytest.fail("nothing is left to do"), TINY, settings, there, SETTINGS,
                             no_report)  # fmt: skip
    backbone, _ = run.load(TINY, SETTINGS)
    alone = measure.measure(lambda: backbone, TINY, settings, measure.PartialResults(tmp_path / "alone"), SETTINGS, no_report)
    assert spread == alone


def test_what_is_no_cluster_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingError, match="needs the library ray"), pool.pool(pool.LOCAL, 1, TINY, "cpu", tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_three_shards_joined_are_the_whole(whole: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"shard-{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(parts, start=1):
        made = compare_presets(
            [plan_of(name) for name in PRESETS], [PROMPT], SEEDS, SETTINGS, folder, shard=shards.Shard(number, 3)
        )
        assert len(made.cells) == 2
    compare_videos(parts, tmp_path / "joined")
    assert table(tmp_path / "joined") == table(whole)
    lacking = compare_videos(parts[:2], tmp_path / "lacking")
    assert sum(cell.status == "failed" for cell in lacking.cells) == 2
    assert any(warning.startswith("no shard has") for warning in lacking.warnings)
    assert join.parts([whole, parts[0]]) is None, "a whole grid is no shard"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shards_are_disjoint_complete_and_even(count: int) -> None:
    costs = [1.0, 4.0, 1.0, 0.5, 2.0, 2.0, 1.5, 0.5]
    own = [shards.Shard(number, count).of(costs) for number in range(1, count + 1)]
    assert sorted(index for part in own for index in part) == list(range(len(costs)))
    loads = [sum(costs[index] for index in part) for part in own]
    assert max(loads) <= max(max(costs), sum(costs) / count + max(costs) / 2)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no share"):
        shards.parse(text)
    assert shards.parse("2/3") == shards.Shard(2, 3)


def test_cells_of_other_loras_load_the_model_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos of one model settings come after each other, whatever their place in the grid."""
    videos = grid.planned_videos([plan_of(name) for name in PRESETS], [PROMPT], SEEDS, SETTINGS, tmp_path)
    other = SETTINGS.replace(clip_batch=2)
    videos = [dataclasses.replace(video, model_settings=other) if video.plan.preset.name == "direct" else video for video in videos]
    loads: list[ModelSettings] = []

    class Loaded:
        notes = ()

        def __init__(self, settings: ModelSettings) -> None:
            self.model_settings = settings

    def load(spec: Any, settings: ModelSettings, report: Any, plan: Plan) -> tuple[Loaded, float]:
        loads.append(settings)
        return Loaded(settings), 0.0

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(grid, "tried", lambda video, backbone, report, log: None)
    monkeypatch.setattr(grid, "cut_notes", lambda *arguments: ())
    monkeypatch.setattr(grid, "tokenizer_of", lambda backbone: None)
    made = [video.name for video, _ in grid.generate_videos(videos)]
    assert loads == [other, SETTINGS]
    assert sorted(made) == sorted(video.name for video in videos)
