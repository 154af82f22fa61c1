"""The grid of presets, prompts and seeds: plans its videos and generates the missing ones.

The name of a video contains a hash of the settings that decide it, so a finished one is recognised by its name alone, and the same
command resumes an interrupted grid.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longgen import cost, disk, naming, run, rundir
from longgen.backbones.settings import ModelSettings
from longgen.errors import LonggenError, OutOfMemoryError, UsageError
from longgen.frames import pixel_frames
from longgen.pipelines import base
from longgen.pipelines.preset_lora import settings_of
from longgen.pipelines.token_limit import cut_notes, tokenizer_of
from longgen.plan import Plan
from longgen.progress import Log, OnProgress, Videos, no_report
from longgen.resolve import PlanRequest, check_overrides, resolve
from longgen.run_settings import content_hash, stored_settings
from longgen.sampling.multidiffusion import MultiDiffusion
from longgen.textfile import on_one_line

PROMPT_LENGTH = 50  # characters of a prompt in a log line
ANY_TIMESTEP = 500.0  # clips that move from step to step have no fixed boundaries, so one step is representative


@dataclass(frozen=True, eq=False)
class PlannedVideo:
    """A video of the grid, whether it exists yet or not. model_settings: with the LoRAs of its preset."""

    name: str
    plan: Plan
    prompt: str
    seed: int
    output: Path
    settings: dict[str, Any]
    model_settings: ModelSettings


def plans(requests: Sequence[PlanRequest]) -> list[Plan]:
    """A plan for each preset. An override applies to the presets that have its technique, `probe` to those that use one.

    Raises UsageError: no presets, two of the same name, an override that applies to none, and whatever the planner rejects.
    """
    if not requests:
        raise UsageError("there are no presets to compare", expected="comma-separated names or TOML files, such as direct,freespec",
                         hint="longgen presets list shows them")  # fmt: skip
    fitted = [request.fitted() for request in requests]
    plans: dict[str, Plan] = {}
    for request in fitted:
        plan = resolve(request)
        if plan.preset.name in plans:
            raise UsageError(f"two presets are called {plan.preset.name}", expected="presets with different names",
                             hint="leave one out, or change the name in its TOML file")  # fmt: skip
        plans[plan.preset.name] = plan
    check_overrides(requests[0].overrides, fitted)
    return [*plans.values()]


def planned_videos(
    plans: Sequence[Plan], prompts: Iterable[str], seeds: Iterable[int], model_settings: ModelSettings, folder: Path
) -> list[PlannedVideo]:
    """The videos of the grid in `folder`, prompt by prompt, so that there is something to watch early."""
    videos, of_plan = [], {plan: settings_of(plan, model_settings) for plan in plans}
    for prompt, seed, plan in ((prompt, seed, plan) for prompt in prompts for seed in seeds for plan in plans):
        settings = stored_settings(plan, prompt, seed, of_plan[plan])
        words = f"{naming.slug(plan.preset.name, (40, 60))}-{naming.slug(prompt, (60, 100))}"
        name = f"{words}-{seed}-{content_hash(settings)}"
        videos.append(PlannedVideo(name, plan, prompt, seed, folder / f"{name}.mp4", settings, of_plan[plan]))
    return videos


def generate_videos(
    videos: Sequence[PlannedVideo], report: OnProgress = no_report, log: Log = no_report, device: str = "cpu"
) -> Iterator[tuple[PlannedVideo, str | None]]:
    """Generates the missing videos, those of one model and its LoRAs after each other. Yields each as soon as it is settled, with
    an error if it failed.
    """
    kinds = [*dict.fromkeys(video.model_settings for video in videos)]
    videos = sorted(videos, key=lambda video: kinds.index(video.model_settings))
    missing = [video for video in videos if not finished(video)]
    if len(missing) < len(videos):
        log(f"{len(videos) - len(missing)} of {len(videos)} videos exist already")
    backbone: base.PipelineBackbone | None = None
    phase = Videos([cost.ratio(video.plan) * (video in missing) for video in videos], device, report) if missing else None
    for number, video in enumerate(videos, start=1):
        error = None
        if video in missing:
            log(f"[{number}/{len(videos)}] {described(video)}")
            if backbone is None or backbone.model_settings != video.model_settings:
                backbone = None  # freed before the next one is read
                backbone, _ = run.load(video.plan.spec, video.model_settings, report, video.plan)
                cut = (note for video in videos for note in cut_notes(video.plan, [video.prompt], tokenizer_of(backbone)))
                for note in dict.fromkeys([*backbone.notes, *cut]):
                    log(f"note: {note}")
            error = tried(video, backbone, report if phase is None else phase.of_one, log)
        if phase is not None:
            phase.settled()
        yield video, error


def described(video: PlannedVideo) -> str:
    """Its preset, seed and prompt, for a line of a log."""
    return f"{video.plan.preset.name}, seed {video.seed}, {on_one_line(video.prompt, PROMPT_LENGTH)}"


def tried(video: PlannedVideo, backbone: base.PipelineBackbone, report: OnProgress, log: Log) -> str | None:
    """Generates `video`; returns why that failed, or None."""
    error = None
    try:
        generate(video, backbone, report, log)
    except LonggenError as failure:
        error = failure.given
        if isinstance(failure, OutOfMemoryError):
            log(f"hint: {failure.hint}")
    except Exception as failure:  # a bug, in longgen or in a library: the other videos need not wait for the fix
        if os.environ.get("LONGGEN_DEBUG") == "1":
            raise
        error = f"{type(failure).__name__}: {failure}"
    if error:
        log(f"failed: {error}")
    return error


def finished(video: PlannedVideo) -> bool:
    """Whether `video` is there, with its settings."""
    try:
        return rundir.is_finished(video.output, video.settings, video.plan.written_px)
    except LonggenError:  # a damaged record, which generating it reports
        return False


def generate(video: PlannedVideo, backbone: base.PipelineBackbone, report: OnProgress, log: Log) -> None:
    """Generates `video`, resuming an interrupted run if possible."""
    folder = rundir.run_folder(video.output)
    with rundir.lock(video.output):
        interrupted = rundir.unfinished_work(video.output)
        if interrupted and backbone.model_settings.cache and not (folder / rundir.LATENTS).is_file():
            interrupted = None  # the state of a step cache is lost
        if rundir.already_finished(video.output, video.settings, video.plan.written_px, resume=True, overwrite=False):
            return  # another process was faster
        if sys.platform == "linux":  # the kernel resets the peak memory of this process; elsewhere it includes earlier videos
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        job = run.Job(video.plan, video.prompt, video.seed, video.output)
        run.generate_one(backbone, job, interrupted is not None, report, log)
        if interrupted:
            disk.save_record(folder / rundir.RECORD, rundir.stored_record(video.output) | {"resumed": True})


def record_fields(video: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Fields of a Cell from the run.json beside `video`; without one, `settings` alone."""
    record: dict[str, Any] = {"settings": settings}
    with contextlib.suppress(LonggenError):  # there is none, or a damaged one
        record |= rundir.stored_record(video)
    fields = {key: record[key] for key in ("settings", "seconds", "peak_memory_bytes") if key in record}
    return fields | {"details": {key: record[key] for key in ("device", "resumed") if key in record}}


def plan_fields(plan: Plan) -> dict[str, Any]:
    """Fields of a Cell from its plan."""
    return {"cost_ratio": round(cost.ratio(plan), 4), "notes": [*plan.notes], "seams": seams(plan)}


def seams(plan: Plan) -> list[int]:
    """The pixel frames, from 1 on, right after a boundary: of a rollout's chunks, of what a chain's clips add, or the start or end
    of a MultiDiffusion clip.

    There are none for clips that move from step to step or are strided, since no boundary stays in place, and none for FIFO queues
    and attention windows, which advance frame by frame.
    """
    edges: set[int] = set()
    if plan.chunk_lat is not None:
        edges.update(start for start, _ in plan.chunks if start >= plan.given_lat)
    edges.update(clip.start for clip in plan.clips if not clip.begins)  # a shot with a picture is a cut that is meant
    sampling, length = plan.sampling, plan.call_geometry.frames_lat
    if isinstance(sampling, MultiDiffusion) and length < plan.frames_lat and sampling.shifts(length) == 1:
        clips = sampling.clips(plan.frames_lat, length, ANY_TIMESTEP, 0)
        for frames, weight in zip(clips.frames, clips.weight, strict=True):
            weighted = frames[weight > 0]
            if weighted[-1] - weighted[0] == len(weighted) - 1:
                edges.update((int(weighted[0]), int(weighted[-1]) + 1))
    edges |= {plan.past_lat}
    before = plan.frames_px - plan.written_px  # frames that are decoded and not in the file; less than none with those of a video
    first = (pixel_frames(edge, plan.spec.stride_t) - before for edge in edges if 0 < edge < plan.frames_lat)
    return sorted(frame for frame in first if 0 < frame < plan.written_px)
