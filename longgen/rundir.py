"""What stands on the disk of a video: the MP4, the folder `NAME.run` beside it, and what may be made of them.

    run.json                  settings, versions, what acted where, seconds per phase, peak memory; once finished the video's hash
    checkpoint.safetensors    after every step, until sampling is done
    latents.safetensors       from the end of sampling on, before decoding begins
    latents/000000.safetensors, 000001 ...   in place of the two, where frames are made in chunks: each as soon as it is done
    earlier/                  of a finished run that --overwrite replaces: its record and latents, until the new video is complete

A video is finished where its run.json says so, the settings in the MP4 are the run's, and the file is as the run left it. Where
there is no run.json: where the settings in the MP4 are the ones asked for, and all frames can be read. Nothing that is finished
and nothing that longgen did not make is replaced but with --overwrite. One process at a time works on a video: see `held`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from longgen import disk, naming
from longgen.errors import LonggenError, MissingError, UsageError

if TYPE_CHECKING:
    from longgen.plan import Plan

SCHEMA = 2  # of run.json and of the settings in every file; 2 has checksums
IDENTITY = (
    "prompt", "backbone", "preset", "sample", "seed", "dtype", "lora", "quantize", "attention", "cache", "compile",
    "clip_batch", "schedule",
)  # fmt: skip  # settings that decide the latents
LATENTS, CHUNKS, STEP, RECORD, EARLIER = "latents.safetensors", "latents", "checkpoint.safetensors", "run.json", "earlier"
REPLACES = "overwrite"  # in run.json: what stands under the video's name may be replaced


class Wanted(NamedTuple):
    """A video that is asked for. settings: all of its run. frames: pixel frames. output: a file, a folder, or None for here."""

    settings: dict[str, Any]
    frames: int
    output: str | None


def run_folder(output: Path) -> Path:
    return output.with_suffix(".run")


def held(output: Path) -> AbstractContextManager[None]:
    """Holds the run folder of `output`: from before it is looked at until the video is in place. See `longgen.disk.held`."""
    return disk.held(run_folder(output) / disk.LOCK, str(output))


def different(kept: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """The deciding settings in which two runs differ."""
    return [key for key in IDENTITY if kept.get(key) != settings.get(key)]


def same_run(kept: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    """Raises UsageError where what is kept at `path` is of another run."""
    others = different(kept, settings)
    if others:
        raise UsageError(f"--resume: {path} was made with another {', '.join(others)}",
                         expected="the settings the run began with (longgen generate -o ... --resume alone takes them)",
                         hint="give the same settings, or --overwrite to start again")  # fmt: skip


def other_versions(kept: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """A warning where what is kept was computed by other versions; its continuation may then differ from one run in one go."""
    before, now = ({"longgen": one.get("longgen"), **(one.get("libraries") or {})} for one in (kept, settings))
    changed = [f"{name} {before.get(name)} (now {now[name]})" for name in now if before.get(name) != now[name]]
    told = f"what is here was made with {', '.join(changed)}: the rest may not be what one run would have given"
    said = [told] if changed else []
    if kept.get("schema") == SCHEMA - 1:
        said.append("it has no checksum, so that damage to it cannot be seen")
    return "; ".join(said) or None


def stored_record(output: Path) -> dict[str, Any]:
    """The run.json of an earlier run of `output`. Raises MissingError where there is none, LonggenError where it is damaged."""
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
        raise LonggenError(
            f"{path} is damaged", expected="run.json as longgen writes it", hint="start again with --overwrite"
        ) from None


def _record(output: Path) -> dict[str, Any] | None:
    """The run.json of `output`, or None where there is none. Raises LonggenError where it is damaged."""
    with contextlib.suppress(MissingError):
        return stored_record(output)
    return None


def unfinished(output: Path) -> str | None:
    """What an earlier run left for `output` that a new one would lose, in words, or None."""
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


def finished(output: Path, settings: dict[str, Any], frames: int) -> bool:
    """Whether `output` is the whole video of the run with `settings`. Raises LonggenError where run.json is damaged."""
    if not output.is_file():
        return False
    record = _record(output)
    if record is not None and (record["status"] != "done" or different(record["settings"], settings)):
        return False
    inside = settings_inside(output)
    if inside is None or different(inside, settings):
        return False
    kept = None if record is None else record.get("video")
    return _holds(output, frames) if kept is None else disk.file_hash(output) == kept


def settings_inside(video: Path) -> dict[str, Any] | None:
    """The settings in an MP4 of longgen's; None for any other file."""
    from longgen.video import read_settings

    try:
        return read_settings(video)
    except LonggenError:
        return None


def _holds(video: Path, frames: int) -> bool:
    """Whether all of so many frames can be read."""
    from longgen.video import read_frames
    from longgen.video_info import facts

    try:
        return _boxes_end_with(video) and sum(1 for _ in read_frames(video, facts(video).size)) == frames
    except LonggenError:
        return False


def _boxes_end_with(video: Path) -> bool:
    """Whether the boxes that the MP4 is made of end where the file does: of one that was cut off they do not."""
    with video.open("rb") as file:
        at, end = 0, file.seek(0, os.SEEK_END)
        while at < end:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:
                return False
            at += length
    return at == end


def check_place(output: Path) -> None:
    """Refuses names that no flag makes right: a folder, a special file, a run folder that is none, a place without permission."""
    if disk.what_stands_at(output) in ("a folder", "no ordinary file"):
        disk.check_new(output, overwrite=True)
    folder = run_folder(output)
    if disk.what_stands_at(folder) is not None and not folder.is_dir():
        raise UsageError(f"{folder} is no folder, and what is kept of a run goes there", expected="another name, or that one free",
                         hint=f"give another --output, or move {folder} away")  # fmt: skip
    disk.check_writable(output)
    disk.check_writable(folder / RECORD)


def ready(output: Path, settings: dict[str, Any], frames: int, resume: bool, overwrite: bool) -> bool:
    """Whether `output` is finished, so that there is nothing to do; else it may be made, or gone on with.

    Raises UsageError where something stands in the way that the two flags do not cover, LonggenError for what is damaged.
    """
    check_place(output)
    if overwrite:
        return False
    if finished(output, settings, frames):
        return True
    folder, record = run_folder(output), _record(output)
    left = unfinished(output)
    if resume:
        if record is not None:
            same_run(record["settings"], settings, folder / RECORD if left is None or not output.exists() else output)
        _check_video(output, settings, record)
    elif left:
        raise UsageError(f"{folder} holds {left}", expected="--resume or --overwrite",
                         hint="--resume to go on from there, --overwrite to start again")  # fmt: skip
    else:
        there = _described(output, settings)
        if there:
            raise UsageError(f"{output} is there already: {there}", expected="a name that is free, or --overwrite",
                             hint="give another --output; --overwrite replaces what is there")  # fmt: skip
    return False


def _check_video(output: Path, settings: dict[str, Any], record: dict[str, Any] | None) -> None:
    """Refuses to go on with a run whose name has something under it that it may not replace."""
    there = disk.what_stands_at(output)
    if there is None or may_replace(output):
        return
    inside = settings_inside(output) if there == "a file" else None
    own = inside is not None and not different(inside, settings)
    if not own or record is None or record["status"] == "done":
        reason = "it is not as its run left it" if own else _described(output, settings)
        raise UsageError(f"--resume: {output} is there: {reason}", expected="a name that is free, or the run's own video",
                         hint="move it away, then the same command; --overwrite makes it again")  # fmt: skip


def may_replace(output: Path) -> bool:
    """Whether the run that is under way may replace what stands under the name `output`."""
    record = _record(output)
    return record is not None and record.get(REPLACES) is True


def _described(output: Path, settings: dict[str, Any]) -> str | None:
    """What stands under the name `output`, for a person; None where there is nothing."""
    there = disk.what_stands_at(output)
    if there != "a file":
        return there
    inside = settings_inside(output)
    if inside is None:
        return "a file that longgen did not make"
    others = different(inside, settings)
    return f"a video with another {', '.join(others)}" if others else "a video of these settings, which is not whole or was changed"


def latent_shape(plan: Plan) -> tuple[int, int, int, int, int]:
    """[1, C, T, h, w] of the latents of a run by `plan`."""
    (width, height), stride = plan.size, plan.spec.stride_hw
    return 1, plan.spec.latent_channels, plan.frames_lat, height // stride, width // stride


# ---- names for what is asked ---------------------------------------------------------------------------------------------------


def assigned(wanted: Sequence[Wanted], prompts: Sequence[str], resume: bool, overwrite: bool) -> list[Path]:
    """Where each video goes, checked by `ready`. A name of longgen's own that is another run's gets a number.

    A run that is there already, finished or not, is found by its settings whatever its number, so that a name depends on nothing
    but the video: not on its place in a file of prompts. Raises UsageError, LonggenError.
    """
    given: dict[str, Path] = {}
    explicit = [one.output is not None and naming.is_file_name(one.output) for one in wanted]
    for one, prompt, named in zip(wanted, prompts, explicit, strict=True):
        if named:
            path = naming.output_path(one.output, prompt, one.settings["seed"])
            key = naming.key_of(run_folder(path))
            if key in given:
                raise UsageError(f"two videos go to {path}" + f" and {given[key]}" * (path != given[key]), hint="rename one",
                                 expected="a name for each, which differ in more than case")  # fmt: skip
            given[key] = path
    taken, listings, found = set(given), dict[Path, list[str]](), []
    for one, prompt, named in zip(wanted, prompts, explicit, strict=True):
        path = naming.output_path(one.output, prompt, one.settings["seed"])
        if not named:
            path = _named(path, one.settings, taken, listings, resume)
            taken.add(naming.key_of(run_folder(path)))
        check_place(path)
        with held(path) if run_folder(path).is_dir() else nullcontext():  # not of a run under way, whose state says little
            ready(path, one.settings, one.frames, resume, overwrite)
        found.append(path)
    return found


def _named(path: Path, settings: dict[str, Any], taken: set[str], listings: dict[Path, list[str]], resume: bool) -> Path:
    """`path`, or with a number: where this very run is, else the first that is free."""
    if path.parent not in listings:
        try:
            listings[path.parent] = os.listdir(path.parent)
        except OSError:  # `check_place` says why, where it is more than not there
            listings[path.parent] = []
    there = {naming.key_of(run_folder(path.with_name(name))) for name in listings[path.parent] if name.endswith((".mp4", ".run"))}
    number = 1
    free = None
    stem = naming.key_of(path.with_name(f"{path.stem}-x")).removesuffix("x")
    last = max((int(key.removeprefix(stem).removesuffix(".run")) for key in there
                if key.startswith(stem) and key.removeprefix(stem).removesuffix(".run").isdecimal()), default=1)  # fmt: skip
    for number in range(1, min(last, 100_000) + 1):
        candidate = naming.numbered(path, number)
        key = naming.key_of(run_folder(candidate))
        if key in taken:
            continue
        if key not in there:
            free = free or candidate
        elif not different(_settings_at(candidate, resume) or {}, settings):
            return candidate
    number = 1
    while free is None:
        number += 1
        candidate = naming.numbered(path, number)
        if naming.key_of(run_folder(candidate)) not in taken | there:
            free = candidate
    return free


def _settings_at(output: Path, resume: bool) -> dict[str, Any] | None:
    """The settings of the run at `output`, or in its video; None where there are none. A damaged record is refused by `resume`."""
    try:
        record = _record(output)
    except LonggenError:
        if resume:
            raise
        return None
    return settings_inside(output) if record is None else record["settings"]


# ---- the folder of a run ---------------------------------------------------------------------------------------------------------


def start_anew(output: Path) -> None:
    """Takes what an earlier run left out of the way: of a finished one to `earlier`, where it stays until `settle`; else it goes.

    The record stays until that of the new run takes its place, so that at every moment it is known whose the video is.
    """
    from longgen.checkpoint import Chunks

    folder = run_folder(output)
    try:
        kept = output.is_file() and stored_record(output)["status"] == "done"
    except LonggenError:
        kept = False
    if kept:
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
    for name in (RECORD, STEP, LATENTS):
        disk.clear_partials(folder / name)


def decoded(output: Path) -> None:
    """`longgen decode` made the whole video of the run beside it: the run is finished, and this is its video."""
    record = _record(output)
    if record is not None:
        disk.save_record(run_folder(output) / RECORD, record | {"status": "done", "video": disk.file_hash(output)})


def settle(output: Path) -> None:
    """The video is complete: what `start_anew` put aside goes, and what processes that were killed left half-written."""
    folder = run_folder(output)
    shutil.rmtree(folder / EARLIER, ignore_errors=True)
    for path in (output, folder / RECORD, folder / STEP, folder / LATENTS):
        disk.clear_partials(path)
    for path in (folder / CHUNKS).glob(".*.partial"):
        path.unlink(missing_ok=True)
