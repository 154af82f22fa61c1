"""The files of a run: the video, the folder `NAME.run` beside it, or `NAME.webm.run`, and what may be resumed or replaced.

    run.json                  settings, versions, what acted where, seconds per phase, peak memory; once finished the video's hash
    checkpoint.safetensors    after every step, until sampling is done
    latents.safetensors       from the end of sampling on, before decoding begins
    latents/000000.safetensors, 000001 ...   in place of the two, where frames are made in chunks: each as soon as it is done; in
                              a chain each clip, beside the checkpoint of the one under way
    preview.png               with --preview, the newest strip of frames
    inputs/                   copies of the pictures and of the earlier video that the run starts from, see `longgen.past`
    earlier/                  of a finished run that --overwrite replaces: its record and latents, until the new video is complete

A video is finished if its run.json says so, the settings in the file are the run's, and it has the hash in run.json. Without a
run.json: if the settings in the file are the requested ones, and all frames can be read. Only --overwrite replaces a finished
video, or a file that longgen did not write. One process at a time works on a video: see `lock`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from longgen import disk, naming, pictures, preset, video
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.run_settings import SCHEMA, differences, stored_settings
from longgen.split import split_of

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.plan import Plan
    from longgen.resolve import PlanRequest

LATENTS, CHUNKS, STEP, RECORD, INPUTS = naming.LATENTS, naming.CHUNKS, naming.STEP, naming.RECORD, naming.INPUTS
EARLIER = "earlier"
REPLACES = "overwrite"  # key of run.json while the run may replace the file under the video's name


class JobRequest(NamedTuple):
    """A video to make whose file is not decided yet. output: a file, a folder, or None for the current folder."""

    plan: Plan
    prompt: str
    seed: int
    output: str | None


class Job(NamedTuple):
    """One video to make: each has its own plan, since prompts may come with lengths and negative prompts of their own."""

    plan: Plan
    prompt: str
    seed: int
    output: Path


run_folder = naming.run_folder


def lock(output: Path) -> AbstractContextManager[None]:
    """Locks the run folder of `output`, from before it is read until the video is in place. See `longgen.disk.held`."""
    return disk.held(run_folder(output) / disk.LOCK, str(output))


def check_same_run(stored: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    """Raises UsageError if the settings stored at `path` are another run's."""
    changed = differences(stored, settings)
    if changed:
        raise UsageError(f"--resume: {path} was made with another {', '.join(changed)}",
                         expected="the settings the run began with (longgen generate -o ... --resume alone takes them)",
                         hint="give the same settings, or --overwrite to start again")  # fmt: skip


def stored_record(output: Path) -> dict[str, Any]:
    """The run.json of an earlier run of `output`. Raises MissingError if there is none, LonggenError if it is damaged."""
    path = run_folder(output) / RECORD
    try:
        record = disk.load_record(path, lambda record: record.get("schema", 1) < SCHEMA)
        if not isinstance(record["status"], str) or not isinstance(record["settings"], dict):
            raise TypeError
        return record
    except MissingError:
        raise MissingError(f"--resume: {path} is not there", expected="the --output of a run that was interrupted",
                           hint="leave --resume out to start") from None  # fmt: skip
    except (KeyError, TypeError):
        raise disk.damaged(path, "it is no record of a run") from None


def _record(output: Path) -> dict[str, Any] | None:
    """The run.json of `output`, or None. Raises LonggenError if it is damaged."""
    with contextlib.suppress(MissingError):
        return stored_record(output)
    return None


def unfinished_work(output: Path) -> str | None:
    """A description of the unfinished work of an earlier run of `output`, which a new run would lose; None if there is none."""
    folder = run_folder(output)
    left = "latents that were not decoded" if (folder / LATENTS).is_file() else None
    if (folder / STEP).is_file():
        left = left or "a run that was stopped while sampling"
    if (folder / CHUNKS).is_dir():
        from longgen.checkpoint import Chunks

        chunks = Chunks(folder / CHUNKS, {})
        left = f"a stream that was stopped after chunk {len(chunks)}" if len(chunks) or chunks.damage else left
    try:
        done = left is not None and stored_record(output)["status"] == "done"
    except LonggenError:
        return left
    if done:
        return None if os.path.lexists(output) else "the latents of a video that is not there any more"
    return left


def is_finished(output: Path, settings: dict[str, Any], frames: int) -> bool:
    """Whether `output` is the complete video of the run with `settings`. Raises LonggenError if run.json is damaged."""
    from longgen.video_info import facts

    if not output.is_file():
        return False
    record = _record(output)
    if record is not None and (record["status"] != "done" or differences(record["settings"], settings)):
        return False
    inside = settings_inside(output)
    if inside is None or differences(inside, settings):
        return False
    if record is not None and record.get("video") is not None:
        return disk.file_hash(output) == record["video"]
    try:
        return facts(output).cut is None and sum(1 for _ in video.read_frames(output, facts(output).size)) == frames
    except LonggenError:
        return False


def settings_inside(path: Path) -> dict[str, Any] | None:
    """The settings stored in a video of longgen; None for any other file."""
    try:
        return video.read_settings(path)
    except LonggenError:
        return None


def check_place(output: Path) -> None:
    """Refuses names that no flag makes valid: a folder, a special file, a run folder that is a file, a place without permission."""
    if disk.what_stands_at(output) in ("a folder", "no ordinary file"):
        disk.check_new(output, overwrite=True)
    folder = run_folder(output)
    if disk.what_stands_at(folder) is not None and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder, and the files of the run go there", expected="another name, or that one free",
                         hint=f"give another --output, or move {folder} away")  # fmt: skip
    disk.check_writable(output)
    disk.check_writable(folder / RECORD)


def check_not_past(plan: Plan, output: Path) -> None:
    """Raises UsageError where the video would take the place of the one that it goes on from."""
    past = plan.conditions.past
    if past is not None and past.path.resolve() in (output.resolve(), run_folder(output).resolve()):
        raise UsageError(f"--output {output} is the video that --continue goes on from", expected="another name",
                         hint="give another --output; --join makes one video of both")  # fmt: skip


def already_finished(output: Path, settings: dict[str, Any], frames: int, resume: bool, overwrite: bool) -> bool:
    """Whether `output` is finished, so that there is nothing to do; otherwise it may be made, or resumed.

    Raises UsageError if something is in the way that the two flags do not cover, LonggenError for damaged files.
    """
    check_place(output)
    if overwrite:
        return False
    if is_finished(output, settings, frames):
        return True
    folder, record = run_folder(output), _record(output)
    left = unfinished_work(output)
    if resume:
        if record is not None:
            check_same_run(record["settings"], settings, folder / RECORD if left is None or not output.exists() else output)
        existing = disk.what_stands_at(output)
        if existing is not None and not may_replace(output):  # the name is taken by what the run may not replace
            inside = settings_inside(output) if existing == "a file" else None
            same_run = inside is not None and not differences(inside, settings)
            if not same_run or record is None or record["status"] == "done":
                reason = "it is not as its run left it" if same_run else _describe(output, settings)
                raise UsageError(f"--resume: {output} exists: {reason}", expected="a name that is free, or the run's own video",
                                 hint="move it away, then the same command; --overwrite makes it again")  # fmt: skip
    elif left:
        raise UsageError(f"{folder} holds {left}", expected="--resume or --overwrite",
                         hint="--resume to go on from there, --overwrite to start again")  # fmt: skip
    else:
        existing = _describe(output, settings)
        if existing:
            raise UsageError(f"{output} exists already: {existing}", expected="a name that is free, or --overwrite",
                             hint="give another --output; --overwrite replaces what is there")  # fmt: skip
    return False


def may_replace(output: Path) -> bool:
    """Whether the run under way may replace the file `output`."""
    record = _record(output)
    return record is not None and record.get(REPLACES) is True


def _describe(output: Path, settings: dict[str, Any]) -> str | None:
    """What exists under the name `output`, in words; None if nothing does."""
    existing = disk.what_stands_at(output)
    if existing != "a file":
        return existing
    inside = settings_inside(output)
    if inside is None:
        return "a file that longgen did not make"
    changed = differences(inside, settings)
    return f"a video with another {', '.join(changed)}" if changed else "a video of these settings, incomplete or changed"


def latent_shape(plan: Plan) -> tuple[int, int, int, int, int]:
    """The shape [1, C, T, h, w] of the latents of a run by `plan`."""
    (width, height), stride = plan.size, plan.spec.stride_hw
    return 1, plan.spec.latent_channels, plan.frames_lat, height // stride, width // stride


def jobs_of(
    requests: Sequence[JobRequest], model_settings: ModelSettings, resume: bool = False, overwrite: bool = False
) -> list[Job]:
    """The requests with their files, checked by `already_finished`. A default name that another run has gets a number.

    A run that exists, finished or not, is found by its settings whatever its number, so that a name depends on nothing but the
    video: not on its place in a file of prompts. Raises UsageError, LonggenError, before anything is loaded; also where a plan
    cannot be split between the ranks of `model_settings`.
    """
    for plan in dict.fromkeys(request.plan for request in requests):
        split_of(plan, model_settings)
    outputs = [naming.output_path(request.output, request.prompt, request.seed) for request in requests]
    for output, fps in dict.fromkeys((output, request.plan.fps) for output, request in zip(outputs, requests, strict=True)):
        video.check_kind(output, fps)
    named = [request.output is not None and naming.is_file_name(request.output) for request in requests]
    taken: dict[str, Path] = {}
    for output in itertools.compress(outputs, named):
        other = taken.setdefault(naming.key_of(run_folder(output)), output)
        if other is not output:
            raise UsageError(f"two videos go to {output}" + f" and {other}" * (output != other), hint="rename one",
                             expected="a name for each, which differ in more than case")  # fmt: skip
    listings: dict[Path, list[str]] = {}
    jobs = []
    for request, output, has_name in zip(requests, outputs, named, strict=True):
        settings = stored_settings(request.plan, request.prompt, request.seed, model_settings)
        if not has_name:
            output = _numbered(output, settings, {*taken}, listings, resume)
            taken[naming.key_of(run_folder(output))] = output
        check_place(output)
        check_not_past(request.plan, output)
        with lock(output) if run_folder(output).is_dir() else nullcontext():  # the state of a run under way says little
            already_finished(output, settings, request.plan.written_px, resume, overwrite)
        jobs.append(Job(request.plan, request.prompt, request.seed, output))
    return jobs


def _numbered(path: Path, settings: dict[str, Any], taken: set[str], listings: dict[Path, list[str]], resume: bool) -> Path:
    """`path`, or the same with a number: where this very run is, else the first that is free."""
    if path.parent not in listings:
        try:
            listings[path.parent] = os.listdir(path.parent)
        except OSError:  # `check_place` says why, unless the folder merely does not exist
            listings[path.parent] = []
    present = {naming.key_of(run_folder(path.with_name(name))) for name in listings[path.parent] if name.endswith((".mp4", ".run"))}
    stem = naming.key_of(path.with_name(f"{path.stem}-x")).removesuffix("x")
    suffixes = [key.removeprefix(stem).removesuffix(".run") for key in present if key.startswith(stem)]
    last = min(max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=1), 100_000)
    number, free = 0, None
    while free is None or number < last:
        number += 1
        candidate = naming.numbered(path, number)
        key = naming.key_of(run_folder(candidate))
        if key not in taken | present:
            free = free or candidate
        elif key not in taken and number <= last and not differences(_settings_at(candidate, resume) or {}, settings):
            return candidate
    return free


def _settings_at(output: Path, resume: bool) -> dict[str, Any] | None:
    """The settings of the run at `output`, or in its video; None if there are none. A damaged record is an error with `resume`."""
    try:
        record = _record(output)
    except LonggenError:
        if resume:
            raise
        return None
    return settings_inside(output) if record is None else record["settings"]


def stored_presets(output: str | None, prompt: str, seed: int) -> list[str]:
    """The names of the presets of earlier runs of `prompt` and `seed` where a request for `output` would go, numbered ones too."""
    path = naming.output_path(output, prompt, seed)
    named = output is not None and naming.is_file_name(output)
    stems = [path.stem] if named else [path.stem, *(f"{path.stem}-{number}" for number in range(2, 100))]
    found = []
    for stem in stems:
        settings = _settings_at(path.with_name(f"{stem}{path.suffix}"), resume=False) or {}
        if settings.get("prompt") == prompt and settings.get("seed") == seed and isinstance(settings.get("preset"), dict):
            found.append(str(settings["preset"].get("name")))
    return [*dict.fromkeys(found)]


def kept_preset(request: PlanRequest, output: str | None, prompt: str, seed: int) -> str | None:
    """The preset that an earlier run of this video began with, where `request` names none and another is recommended today."""
    if request.preset is not None:
        return None
    stored = stored_presets(output, prompt, seed)
    other = next((name for name in stored if name in preset.names()), None)
    return other if other is not None and request.settled()[1] not in stored else None


def start_anew(output: Path) -> None:
    """Removes what an earlier run left; that of a finished run moves to `earlier`, where it stays until `clean_up`.

    The record stays until that of the new run replaces it, so that at every moment it is known which run the video belongs to.
    """
    from longgen.checkpoint import Chunks

    folder = run_folder(output)
    try:
        finished = output.is_file() and stored_record(output)["status"] == "done"
    except LonggenError:
        finished = False
    if finished:
        earlier = folder / EARLIER
        disk.make_folder(earlier)
        disk.save_json(earlier / RECORD, json.loads((folder / RECORD).read_text(encoding="utf-8")))
        for name in (LATENTS, CHUNKS):
            if (folder / name).exists():
                if (earlier / name).is_dir():
                    shutil.rmtree(earlier / name)
                os.replace(folder / name, earlier / name)
        disk.sync_folder(folder)
    (folder / STEP).unlink(missing_ok=True)
    (folder / LATENTS).unlink(missing_ok=True)
    Chunks(folder / CHUNKS, {}).clear()
    (folder / naming.PREVIEW).unlink(missing_ok=True)
    for name in (RECORD, STEP, LATENTS, naming.PREVIEW):
        disk.clear_partials(folder / name)


def mark_decoded(output: Path) -> None:
    """Records that `longgen decode` made the complete video of the run beside it: the run is finished."""
    record = _record(output)
    if record is not None:
        disk.save_record(run_folder(output) / RECORD, record | {"status": "done", "video": disk.file_hash(output)})


def clean_up(output: Path) -> None:
    """Removes what `start_anew` put aside, and partial files of killed processes; for a video that is complete."""
    folder = run_folder(output)
    shutil.rmtree(folder / EARLIER, ignore_errors=True)
    for path in (output, *(folder / name for name in (RECORD, STEP, LATENTS, naming.PREVIEW))):
        disk.clear_partials(path)
    with contextlib.suppress(LonggenError):
        used = stored_record(output)["settings"].get("inputs", {})
        for path in (folder / INPUTS).glob("?" * 64 + ".*"):
            if path.suffix in pictures.SUFFIXES and path.stem not in used:  # of a run that this one replaced
                path.unlink(missing_ok=True)
    for path in (folder / CHUNKS).glob(".*.partial"):
        path.unlink(missing_ok=True)
