"""Earlier videos that a new one goes on from: the latents of a run of longgen, as they are, or the frames of any video file.

Legend: C channels, h x w latent cells, m latent frames; lat counts latent frames, px pixel frames.

A run is taken with all that its sampling would have gone on with: every latent frame, those of the last chunk beyond its end too,
the state of its generator, the noise that it carried over, and which prompt each frame was made with. So a rollout in two parts
equals the rollout in one. Of a stream that was stopped what is there is taken. The frames of a video file are taken at the rate of
the new video, on a grid of times that ends with its last frame: each is the frame nearest in time.

A new run keeps what it takes in `inputs/` of its folder, so that it can be resumed when the original has moved:

    SHA256.safetensors      of a run, under the hash of what is taken
    SHA256.mp4              a video file, under its own: a hard link where the file system allows it
    given.safetensors       of a rollout, the latents that a picture or a video file was encoded to
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longgen import disk, naming, pictures
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pictures import Fit
from longgen.video import read_frames
from longgen.video_info import facts

if TYPE_CHECKING:
    from torch import Tensor

GIVEN = "given.safetensors"
EXPECTED = "a run folder of longgen, its video, or another one"
Row = tuple[int, tuple[float, ...]]  # from this latent frame on, the share of each prompt


@dataclass(frozen=True)
class Past:
    """An earlier video that a new one goes on from.

    path: a video file, a run folder of longgen, or what a run kept of one. sha256: of the file, or of all that is taken of the run.
    frames_px, fps, size: of that video; frames_px counts the frames of its file. times: of each frame, where they vary, in seconds.
    latents: how many latent frames are handed over as they are; None for a video file, whose last frames are encoded.

    Of a run: shown_lat, how many of these its video shows, which is all but the rest of a last chunk; latent_shape, (C, h, w);
    backbone; seed, where its generator can go on; prompts and rows, what each latent frame was made with; cuts, the
    first frames of its chunks that began with a cut; and lead, the video file
    that its own began with, at lead_fps frames a second and fitted by lead_fit. named: what its user called it, where that is
    not `path`.
    """

    path: Path
    sha256: str
    frames_px: int
    fps: float
    size: tuple[int, int]
    latents: int | None = None
    notes: tuple[str, ...] = ()
    times: tuple[float, ...] | None = field(default=None, repr=False)
    shown_lat: int = 0
    latent_shape: tuple[int, int, int] | None = None
    backbone: str | None = None
    seed: int | None = None
    prompts: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    cuts: tuple[int, ...] = ()
    lead: Past | None = None
    lead_fps: float = 0.0
    lead_fit: Fit = "crop"
    named: str | None = None

    @property
    def name(self) -> str:
        """The name of the file or folder that the user gave, without its own folder."""
        return self.named or self.path.name

    def sampled(self, fps: float) -> np.ndarray:
        """Of a video file: the indices of its frames, each the nearest in time, on a grid of `fps` that ends with the last."""
        times = np.array(self.times[: self.frames_px]) if self.times else np.arange(self.frames_px) / self.fps
        grid = times[-1] - np.arange(int(times[-1] * fps + 1e-6) + 1)[::-1] / fps
        return np.searchsorted((times[1:] + times[:-1]) / 2, grid + 1e-9)

    def row_at(self, frame_lat: int) -> tuple[float, ...]:
        """The share of each of `prompts` in a latent frame."""
        return next((row for first, row in reversed(self.rows) if first <= frame_lat), self.rows[0][1])


class Taken(NamedTuple):
    """latents: [1, C, m, h, w]. generator: the state of the run's. carried: by step, the last frame of noise, or None."""

    latents: Tensor
    generator: Tensor | None
    carried: list[Tensor | None]


def read(path: Path) -> Past:
    """The earlier video at `path`: a run folder, its video with the folder beside it, what a run kept of one, or another video.

    Raises MissingError, UsageError, LonggenError.
    """
    if (path / naming.RECORD).is_file():
        return _of_run(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _kept(path)[0]
    if path.is_dir():
        raise UsageError(f"--continue {path}: it is a folder without {naming.RECORD}, so no run of longgen", expected=EXPECTED,
                         hint="name the folder NAME.run, or a video in it")  # fmt: skip
    folder = naming.run_folder(path)
    if path.is_file() and naming.is_video(path) and (folder / naming.RECORD).is_file():
        try:
            record = _record(folder)
            if record["status"] == "done" and record.get("video") == disk.file_hash(path):
                past = _of_run(folder)
                said = f"--continue takes the latents in {folder} as they are, not the frames of {path.name}"
                return replace(past, notes=(said, *past.notes))
        except (LonggenError, OSError) as error:
            reason = error.given if isinstance(error, LonggenError) else str(error)
            video = of_video(path)
            return replace(video, notes=(f"its frames are taken, since its run's latents cannot be: {reason}", *video.notes))
        video = of_video(path)
        return replace(video, notes=(f"{folder} is not the run that {path.name} is of now, so its frames are taken", *video.notes))
    return of_video(path)


# Video files


def of_video(path: Path) -> Past:
    """The video file at `path`. All of it is decoded, to count its frames. Raises MissingError, LonggenError."""
    try:
        info, said = facts(path), list[str]()
        count = sum(1 for _ in read_frames(path, (16, 16), said.append))
        sha256 = _sha256(path)
    except LonggenError as error:
        expected = EXPECTED if isinstance(error, MissingError) else error.expected
        hint = "--image takes a picture" if "it is a picture" in error.given else error.hint
        raise type(error)(f"--continue: {error.given}", expected=expected, hint=hint) from None
    except OSError as error:
        raise LonggenError(
            f"--continue: {path} could not be read: {error.strerror}", expected=EXPECTED, hint="copy it again"
        ) from None
    about = (*info.notes, *([info.cut] if info.cut else ()), *said)
    times, notes = info.times, [f"{path.name}: {note}" for note in about if "varying intervals" not in note]  # a plan says it
    if times is not None and len(times) != count + 1:
        notes.append(f"{path.name}: it has timestamps of {len(times) - 1} frames and {count} could be decoded, so that its mean of "
                     f"{info.fps:.4g} fps is taken for all")  # fmt: skip
        times = None
    return Past(path, sha256, count, info.fps, info.size, notes=tuple(notes), times=times)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def frames(past: Past, fps: float, size: tuple[int, int], fit: Fit, last: int | None = None) -> Iterator[np.ndarray]:
    """Frames [1, height, width, 3] uint8 of a video file at `fps` and `size` (width, height); `last` of them, or all.

    Raises LonggenError where the file is not as it was.
    """
    from PIL import Image

    wanted = past.sampled(fps)[-last if last else 0 :]
    done, times_taken = 0, np.bincount(wanted)
    for index, frame in enumerate(read_frames(past.path, past.size)):
        if done == len(wanted):
            break
        if index != wanted[done]:
            continue
        fitted = np.asarray(pictures.fitted_image(Image.fromarray(frame), size, fit))
        for _ in range(times_taken[index]):
            yield fitted[None]
            done += 1
    if done < len(wanted):
        raise _changed(past)


# Runs


def taken(past: Past) -> Taken:
    """What is taken of a run. Raises LonggenError where it is not as it was when it was read."""
    now, both = (_kept if past.path.is_file() else _gather)(past.path)
    if now.sha256 != past.sha256:
        raise _changed(past)
    return both


def _of_run(folder: Path) -> Past:
    return _gather(folder)[0]


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = disk.load_record(folder / naming.RECORD, lambda record: record.get("schema", 1) < 2)
    except LonggenError as error:
        raise LonggenError(f"--continue: {error.given}", expected=error.expected, hint="give the video file") from None
    settings = record.get("settings")
    sample = settings.get("sample") if isinstance(settings, dict) else None
    whole = isinstance(sample, dict) and all(name in sample for name in ("frames", "size", "fps"))
    if not whole or not all(name in record for name in ("status", "frames", "latent_frames")):
        raise LonggenError(f"--continue: {folder / naming.RECORD} is damaged: it is no record of a run", expected=EXPECTED,
                           hint="give the video file")  # fmt: skip
    return record


def _gather(folder: Path) -> tuple[Past, Taken]:
    """A run in its folder. Its latents are what it was given, and then its own."""
    import torch

    from longgen import checkpoint

    record = _record(folder)
    settings, inputs = record["settings"], folder / naming.INPUTS
    conditions = settings.get("conditions") or {}
    head: Past | None = None
    held = Taken(torch.empty(0), None, [])
    parts: list[Tensor] = []
    kept = inputs / f"{conditions.get('continue')}.safetensors"
    if kept.is_file():
        head, held = _kept(kept)
        parts = [held.latents]
    elif (inputs / GIVEN).is_file() and conditions:
        parts = [_loaded(inputs / GIVEN)["latents"]]
    chunks, generator, carried = checkpoint.Chunks(folder / naming.CHUNKS, {}), held.generator, held.carried
    notes = []
    given_lat, missing_lat, first = record.get("given_latent_frames", 0), 0, 1
    if len(chunks):
        _check_same(folder / naming.CHUNKS, chunks.stored_settings(), settings)
        chunks.check((1, None, None, None, None))
        tensors, described = chunks.state()
        rollout, end_lat = "carried" in described, record["latent_frames"]
        if rollout and conditions and not parts:
            raise MissingError(f"--continue: {inputs} holds nothing of what {folder.stem} began with", expected=EXPECTED,
                               hint="give the video file")  # fmt: skip
        if rollout:
            generator, carried = tensors["generator"], checkpoint.unpack(tensors, described)["carried"]
        else:  # clips in turn, the first of which begins with what it was given
            front_lat = 0 if head is None else max(0, head.shown_lat - given_lat)
            parts = [held.latents[:, :, :front_lat]] if front_lat else []
            generator, carried, end_lat = None, [], end_lat + front_lat
        parts += [chunks[index] for index in range(len(chunks))]
        shown_lat = min(sum(part.shape[2] for part in parts), end_lat)
        missing_lat = end_lat - shown_lat
        if "continue" in conditions:
            first = head.shown_lat if rollout and head is not None else given_lat
    elif (folder / naming.LATENTS).is_file():
        tensors = _loaded(folder / naming.LATENTS, settings)
        if head is not None:  # the newest of these are the first of the run's own
            parts = [held.latents[:, :, : max(0, head.shown_lat - given_lat)]]
        parts.append(checkpoint.check_latents(folder / naming.LATENTS, tensors.get("latents"), (1, None, None, None, None)))
        generator, carried = None, []
        shown_lat = sum(part.shape[2] for part in parts)
    elif head is not None and record["status"] == "done":  # all of it was in the last chunk of the run before
        shown_lat = record["latent_frames"]
    else:
        unfinished = record["status"] != "done"
        name = naming.output_of(folder).name
        raise MissingError(f"--continue: {folder} holds no finished latents" + ": its run is not finished" * unfinished,
                           expected=EXPECTED, hint=f"longgen generate -o {name} --resume finishes it" if unfinished
                           else "give the video file")  # fmt: skip
    latents = torch.cat(parts, dim=2)
    frames_px = record["frames"]
    if missing_lat:
        sampled_px = settings["sample"]["frames"] - ("continue" not in conditions)
        frames_px -= missing_lat * round(sampled_px / max(1, record["latent_frames"] - first))
        notes.append(f"the run was stopped after {len(chunks)} chunks: it goes on from there")
    (prompts, rows), cuts = _texts(record, head), tuple((record.get("texts") or {}).get("cuts", ()))
    lead = None
    if "continue" in conditions and conditions.get("join"):
        lead = head.lead if head is not None else _kept_video(inputs, conditions["continue"])
    past = Past(
        folder, "", frames_px, settings["sample"]["fps"], tuple(settings["sample"]["size"]), latents.shape[2], tuple(notes),
        shown_lat=shown_lat, latent_shape=(latents.shape[1], latents.shape[3], latents.shape[4]), backbone=settings["backbone"],
        seed=settings["seed"] if generator is not None else None, prompts=prompts, rows=rows, cuts=cuts, lead=lead,
        lead_fps=head.lead_fps if head is not None else settings["sample"]["fps"] if lead is not None else 0.0,
        lead_fit=(head.lead_fit if head is not None else conditions.get("fit", "crop")),
    )  # fmt: skip
    both = Taken(latents, generator, carried)
    return replace(past, sha256=_hash(past, both)), both


def _texts(record: dict[str, Any], head: Past | None) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """`prompts` and `rows` of a run, from its record; of one before longgen wrote these, its prompt."""
    texts = record.get("texts")
    if texts is not None:
        return tuple(texts["prompts"]), tuple((first, tuple(row)) for first, row in texts["rows"])
    schedule = record["settings"].get("schedule")
    return (schedule["shots"][-1]["prompt"] if schedule else record["settings"]["prompt"],), ((0, (1.0,)),)


def _loaded(path: Path, settings: dict[str, Any] | None = None) -> dict[str, Tensor]:
    from longgen import checkpoint

    try:
        tensors, stored = checkpoint.load_tensors(path)
    except LonggenError as error:
        raise LonggenError(f"--continue: {error.given}", expected=EXPECTED, hint="give the video file") from None
    if settings is not None:
        _check_same(path, stored, settings)
        if "done" in stored:
            raise LonggenError(f"--continue: {path} is a checkpoint", expected=EXPECTED, hint="finish the run with --resume")
    return tensors


def _check_same(path: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises LonggenError where the latents at `path` are of other settings than their record says."""
    names = ("prompt", "seed", "backbone", "preset", "sample", "schedule", "conditions")
    if any(stored.get(name) != settings.get(name) for name in names):
        raise LonggenError(f"--continue: {path} is another run's than {naming.RECORD} beside it", expected=EXPECTED,
                           hint="give the video file")  # fmt: skip


def _described(past: Past) -> dict[str, Any]:
    """`past` as JSON, but for its path and its notes."""
    names = ("sha256", "frames_px", "fps", "size", "latents", "shown_lat", "latent_shape", "backbone", "seed", "prompts", "rows",
             "lead_fps", "lead_fit")  # fmt: skip
    lead = None if past.lead is None else past.lead.sha256
    cuts = {"cuts": past.cuts} if past.cuts else {}  # else as of earlier versions, whose hash it is
    return json.loads(json.dumps({name: getattr(past, name) for name in names} | {"lead": lead} | cuts))


def _hash(past: Past, both: Taken) -> str:
    """SHA-256 of all that is taken of a run."""
    described = {name: value for name, value in _described(past).items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for tensor in (both.latents, both.generator, *both.carried):
        if tensor is None:
            digest.update(b"-")
        else:
            digest.update(repr((str(tensor.dtype), [*tensor.shape])).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# Copies that a run keeps


def keep(past: Past, folder: Path) -> None:
    """Copies to `folder` what a run takes of `past`. Raises LonggenError where it is not as it was when it was read."""
    disk.make_folder(folder)
    for video in filter(None, (past if past.latents is None else None, past.lead)):
        copy = folder / f"{video.sha256}{video.path.suffix}"
        if not copy.exists():
            disk.replace_file(copy, functools.partial(_link_or_copy, video.path))
            if _sha256(copy) != video.sha256:
                copy.unlink()
                raise _changed(video)
    copy = folder / f"{past.sha256}.safetensors"
    if past.latents is not None and past.path != copy:
        from longgen import checkpoint

        both = taken(past)
        tensors, described = checkpoint.pack({"carried": both.carried}, "taken")
        tensors |= {"latents": both.latents} | ({} if both.generator is None else {"generator": both.generator})
        checkpoint.save_tensors(copy, tensors, {"past": _described(past), "state": described})


def restored(folder: Path, sha256: str) -> Past:
    """The past with this hash that `keep` copied to `folder`. Raises MissingError where it is not there, and LonggenError."""
    copy = folder / f"{sha256}.safetensors"
    past = _kept(copy)[0] if copy.is_file() else _kept_video(folder, sha256)
    if past.sha256 != sha256:
        raise _changed(past)
    return past


def _link_or_copy(path: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), copy)
    except OSError:
        shutil.copyfile(path, copy)


def _kept_video(folder: Path, sha256: str) -> Past:
    with contextlib.suppress(StopIteration):
        return of_video(next(folder.glob(f"{sha256}.*")))
    raise MissingError(f"{folder} does not hold the video that the run goes on from", expected="the files that the run kept",
                       hint="give the video again with --continue")  # fmt: skip


def _kept(path: Path) -> tuple[Past, Taken]:
    """What `keep` wrote of a run, checked."""
    from longgen import checkpoint

    tensors, stored = checkpoint.load_tensors(path)
    try:
        described = dict(stored["past"])
        lead = described.pop("lead")
        lists = {"size": tuple(described["size"]), "latent_shape": tuple(described["latent_shape"]),
                 "prompts": tuple(described["prompts"]),
                 "rows": tuple((first, tuple(row)) for first, row in described["rows"]),
                 "cuts": tuple(described.get("cuts", ()))}  # fmt: skip
        past = Past(path, **described | lists, lead=None if lead is None else _kept_video(path.parent, lead))
        both = Taken(tensors["latents"], tensors.get("generator"), checkpoint.unpack(tensors, stored["state"])["carried"])
    except (KeyError, TypeError, ValueError):
        raise disk.damaged(path, "it does not hold what a run went on from") from None
    return past, both


def _changed(past: Past) -> LonggenError:
    return LonggenError(f"--continue: {past.path} is not as it was when it was first read", expected="a video that nothing changes",
                        hint="repeat the command")  # fmt: skip
