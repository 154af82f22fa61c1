"""What a cluster makes: the cells of a comparison, and the videos of a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longgen import cost, run, rundir
from longgen.backbones.settings import ModelSettings
from longgen.backbones.spec import BackboneSpec
from longgen.cluster.pool import Pool
from longgen.cluster.worker import Outcome, Task
from longgen.compare import grid
from longgen.conditions import Conditions
from longgen.errors import LonggenError
from longgen.layers.probe_file import ProbeSettings
from longgen.probe import measure
from longgen.progress import Log, OnProgress, no_report
from longgen.resolve import PlanRequest, resolve
from longgen.run_settings import stored_settings

if TYPE_CHECKING:
    from longgen.pipelines.base import PipelineBackbone
    from longgen.rundir import Job


def cells(
    pool: Pool, videos: Sequence[grid.PlannedVideo], report: OnProgress = no_report, log: Log = no_report
) -> Iterator[tuple[grid.PlannedVideo, str | None]]:
    """As `grid.generate_videos`: the missing ones are made on `pool`, and each is yielded when it is settled."""
    by_name = {video.name: video for video in videos}
    missing = [video for video in videos if not grid.finished(video)]
    if len(missing) < len(videos):
        log(f"{len(videos) - len(missing)} of {len(videos)} videos exist already")
    yield from ((video, None) for video in videos if video not in missing)
    tasks = []
    for video in missing:
        work = functools.partial(_cell, video)
        tasks.append(Task(video.name, video.plan, video.model_settings, video.output, work, cost.ratio(video.plan)))
    for task, outcome in pool.run(tasks, report, log):
        yield by_name[task.name], outcome.error and outcome.error[0]


def _cell(video: grid.PlannedVideo, backbone: PipelineBackbone, output: Path, log: Log) -> None:
    log(grid.described(video))
    grid.generate(dataclasses.replace(video, output=output), backbone, no_report, log)


def videos(
    pool: Pool,
    jobs: Sequence[Job],
    model_settings: ModelSettings,
    resume: bool,
    overwrite: bool,
    report: OnProgress = no_report,
    log: Log = no_report,
    each: Callable[[run.Result | run.Failure], None] = no_report,
) -> list[run.Result | run.Failure]:
    """As `run.generate_jobs`, on `pool`. Results come as they are settled, and are returned in the order of `jobs`."""
    results: dict[Path, run.Result | run.Failure] = {}

    def settle(job: Job, result: run.Result | run.Failure) -> None:
        results[job.output] = result
        each(result)

    tasks, by_output = [], {str(job.output): job for job in jobs}
    for job in jobs:
        settings = stored_settings(job.plan, job.prompt, job.seed, model_settings)
        with rundir.lock(job.output):
            if rundir.already_finished(job.output, settings, job.plan.written_px, resume, overwrite):
                settle(job, run.skipped(job))
                log(f"{job.output} is finished, with these settings")
                continue
        work = functools.partial(_video, job, resume, overwrite)
        tasks.append(Task(str(job.output), job.plan, model_settings, job.output, work, cost.ratio(job.plan)))
    for task, outcome in pool.run(tasks, report, log):
        settle(by_output[task.name], _result(by_output[task.name], outcome))
    return [results[job.output] for job in jobs]


def _video(job: Job, resume: bool, overwrite: bool, backbone: PipelineBackbone, output: Path, log: Log) -> run.Result:
    """Goes on from the checkpoint of a worker that died: that none was there before was checked, unless it may be replaced."""
    goes_on = resume or (not overwrite and rundir.unfinished_work(output) is not None)
    return run.make(backbone, job._replace(output=output), goes_on, overwrite, no_report, log)


def _result(job: Job, outcome: Outcome) -> run.Result | run.Failure:
    if outcome.error is not None:
        return run.Failure(job.output.stem, str(job.output), job.prompt, job.seed, *outcome.error)
    made: run.Result = outcome.result
    return dataclasses.replace(made, output=str(job.output), run=str(rundir.run_folder(job.output)))


def probe_samples(
    pool: Pool,
    spec: BackboneSpec,
    settings: ProbeSettings,
    model_settings: ModelSettings,
    conditions: Conditions,
    report: OnProgress,
    log: Log,
    folder: Path,
) -> None:
    """The runs of a probe, each prompt and seed on some worker; their results go to `folder`. Raises the error of a run."""
    plan = resolve(PlanRequest("direct", spec, conditions=conditions))
    tasks = []
    for name, _, _, _ in measure.samples_of(settings):
        work = functools.partial(_sample, spec, settings, model_settings, conditions, name)
        tasks.append(Task(name, plan, model_settings, folder / f"{name}.json", work))
    for _, outcome in pool.run(tasks, report, log):
        if outcome.error is not None:
            given, expected, hint, _ = outcome.error
            raise LonggenError(given, expected, hint)


def _sample(
    spec: BackboneSpec,
    settings: ProbeSettings,
    model_settings: ModelSettings,
    conditions: Conditions,
    name: str,
    backbone: PipelineBackbone,
    output: Path,
    log: Log,
) -> None:
    log(f"prompt and seed {name}")
    results = measure.PartialResults(output.parent)
    measure.run_samples(lambda: backbone, spec, settings, results, model_settings, no_report, conditions, (name,))
