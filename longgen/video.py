"""Writes and reads MP4 files through ffmpeg, a few frames at a time.

imageio-ffmpeg brings the ffmpeg program. Its own writer is not used: it ignores ffmpeg's exit status, so a full disk
would leave a broken file and no error.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from longgen import disk
from longgen.errors import LonggenError, MissingError

# what a file that was cut off holds is read: frames that are not whole are left out, and an index is not looked for
AS_FAR_AS_IT_GOES = ("-fflags", "+discardcorrupt+ignidx")
CRF = 18  # x264's constant rate factor: visually lossless
LOOKAHEAD = 12  # frames that x264 looks ahead, where its own 40 would hold them back for seconds
FRAGMENT = 12  # frames that appear in the file at a time: a chunk of three latent frames, with a stride of four


def partial_of(path: Path) -> Path:
    """The file that grows until `path` is complete."""
    return path.with_name(f"{path.stem}.partial.mp4")


class Writer:
    """Streams frames into an H.264 yuv420p MP4. The file appears under its name only when it is complete.

    Until then it grows beside it as `NAME.partial.mp4`, in fragments, and can be played meanwhile, 26 frames behind (measured: 12
    of a fragment, the rest in x264). It stays where the context is left with an exception; then, and after kill -9 of longgen,
    it holds every frame that was added.

        with Writer(path, (width, height), fps, settings) as writer:
            writer.add(frames)  # [F, height, width, 3] uint8
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: int, settings: dict[str, Any]) -> None:
        self.path, self.partial = path, partial_of(path)
        width, height = size
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process: subprocess.Popen[bytes] | None = None
        # bitexact leaves versions and dates out, one thread makes x264 repeatable: equal frames and settings, equal bytes
        self._command = [
            get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps),
            "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(CRF), "-preset", "medium", "-threads", "1",
            "-rc-lookahead", str(LOOKAHEAD), "-fflags", "+bitexact", "-metadata", f"comment={json.dumps(settings, sort_keys=True)}",
            "-movflags", "+delay_moov+default_base_moof", "-frag_duration", str(1_000_000 * FRAGMENT // fps), "-flush_packets", "1",
            str(self.partial),
        ]  # fmt: skip

    def __enter__(self) -> Writer:
        return self

    def add(self, frames: np.ndarray) -> None:
        """Appends frames [F, height, width, 3] uint8. Raises LonggenError where ffmpeg has stopped."""
        if self._process is None:  # not before: what an earlier run left stays until there is something to put in its place
            with contextlib.suppress(OSError):
                self.partial.unlink(missing_ok=True)  # an ffmpeg whose longgen was killed may still be writing to that file
            # a session of its own: Ctrl-C in the terminal is for us to handle, not for ffmpeg
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log,
                                             start_new_session=True)  # fmt: skip
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            whole = self._finished()
            if kind is None:
                if not whole:
                    raise self._failure(None if self._process else "there are no frames")
                self._complete()
        finally:
            self._log.close()

    def _finished(self) -> bool:
        """Ends ffmpeg, which encodes what it still holds; whether it wrote everything."""
        if self._process is None:
            return False
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        return self._process.wait() == 0

    def _complete(self) -> None:
        """Copies the fragments into an ordinary MP4, with its index in front, and moves it onto its name."""
        copy = disk.partial_of(self.path)
        command = [
            get_ffmpeg_exe(), "-y", "-v", "error", "-i", str(self.partial), "-c", "copy", "-fflags", "+bitexact",
            "-movflags", "+faststart", "-f", "mp4", str(copy),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
                                  start_new_session=True)  # fmt: skip
            if done.returncode:
                raise self._failure()
            disk.replace(copy, self.path)
            self.partial.unlink(missing_ok=True)
        except OSError as refused:
            raise self._failure(refused.strerror) from None
        finally:
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)

    def _failure(self, reason: str | None = None) -> LonggenError:
        self._finished()
        self._log.seek(0)
        said = [reason] if reason else self._log.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
        return LonggenError(f"{self.path} could not be written: {said[0]}", accepted="a folder with room that may be written to",
                            do="longgen decode on the run's folder writes it again, to -o ELSEWHERE.mp4")  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """The settings stored in a video that longgen wrote. Raises MissingError or LonggenError where there are none."""
    if not path.is_file():
        raise MissingError(f"{path} is not there", accepted="an MP4 that longgen wrote", do="check the path")
    command = [get_ffmpeg_exe(), "-v", "error", *AS_FAR_AS_IT_GOES, "-i", str(path), "-f", "ffmetadata", "-"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["unreadable"]
        raise LonggenError(
            f"{path} is no video, or damaged: {reason[-1]}", accepted="an MP4 that longgen wrote", do="check the file"
        )
    try:
        settings = json.loads(_comment(done.stdout.decode(errors="replace")))
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or "longgen" not in settings:
        raise LonggenError(f"{path} holds no longgen settings", accepted="an MP4 that longgen wrote and nobody re-encoded",
                           do="look for run.json in the folder NAME.run beside it")  # fmt: skip
    return settings


def _comment(metadata: str) -> str:
    """The value of `comment` in ffmpeg's metadata text, in which `= ; # \\` and newlines are escaped by a backslash."""
    value, characters = [], iter(metadata.partition("\ncomment=")[2])
    for character in characters:
        if character == "\n":
            break
        value.append(next(characters, "") if character == "\\" else character)
    return "".join(value)


def size_and_fps(path: Path) -> tuple[tuple[int, int], float]:
    """Width and height in pixels of the frames that `read_frames` reads from `path`, and the frames a second it is shown at.

    Raises MissingError, or LonggenError where it is no video.
    """
    if not path.is_file():
        raise MissingError(f"{path} is not there", accepted="a video", do="check the path")
    # ffmpeg says the size and the rate of the frames that it would give out, so a picture that is stored turned is seen upright
    command = [get_ffmpeg_exe(), "-hide_banner", *AS_FAR_AS_IT_GOES, "-i", str(path), "-frames:v", "1", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).stderr.decode(errors="replace")
    streams = re.findall(r" Video: .*? (\d+)x(\d+)[, ].*? ([\d.]+) fps", said)
    if not streams:
        raise LonggenError(f"{path} could not be read as a video", accepted="an MP4", do="check the file")
    width, height, fps = streams[-1]
    return (int(width), int(height)), float(fps)


def read_frames(path: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames [height, width, 3] uint8 of a video of `size` (width, height), one at a time; of a file cut off those it holds.

    Where such a file lacks one of its last few frames, the frame before stands in its place.
    """
    width, height = size
    command = [get_ffmpeg_exe(), "-v", "error", *AS_FAR_AS_IT_GOES, "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    found = False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while len(data := process.stdout.read(width * height * 3)) == width * height * 3:
            found = True
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if not found:
        raise LonggenError(f"{path} could not be read as a video", accepted="an MP4", do="check the file")
