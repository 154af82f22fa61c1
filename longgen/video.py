"""Writes and reads MP4 files through ffmpeg, a few frames at a time.

imageio-ffmpeg brings the ffmpeg program. Its own writer is not used: it ignores ffmpeg's exit status, so a full disk
would leave a broken file and no error.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from longgen.errors import LonggenError, MissingError

CRF = 18  # x264's constant rate factor: visually lossless


class Writer:
    """Streams frames into an H.264 yuv420p MP4. The file appears under its name only when it is complete.

    Use as a context manager: leaving it with an exception removes what was written.

        with Writer(path, (width, height), fps, settings) as writer:
            writer.add(frames)  # [F, height, width, 3] uint8
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: int, settings: dict[str, Any]) -> None:
        self.path, self.partial = path, path.with_name(f".{path.stem}.partial.mp4")
        width, height = size
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        # bitexact leaves versions and dates out, one thread makes x264 repeatable: equal frames and settings, equal bytes
        command = [
            get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps),
            "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(CRF), "-preset", "medium", "-threads", "1",
            "-fflags", "+bitexact", "-movflags", "+faststart", "-metadata", f"comment={json.dumps(settings, sort_keys=True)}",
            str(self.partial),
        ]  # fmt: skip
        # a session of its own: Ctrl-C in the terminal is for us to handle, not for ffmpeg
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._log,
                                         start_new_session=True)  # fmt: skip

    def __enter__(self) -> Writer:
        return self

    def add(self, frames: np.ndarray) -> None:
        """Appends frames [F, height, width, 3] uint8. Raises LonggenError where ffmpeg has stopped."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
        except OSError:
            raise self._failure() from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is not None:
                self._process.kill()
                return
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            if self._process.wait() != 0:
                raise self._failure()
            try:
                os.replace(self.partial, self.path)
            except OSError as refused:
                raise self._failure(refused.strerror) from None
        finally:
            self._process.wait()
            if self._process.stdin and not self._process.stdin.closed:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            self._log.close()
            with contextlib.suppress(OSError):
                self.partial.unlink(missing_ok=True)

    def _failure(self, reason: str | None = None) -> LonggenError:
        self._process.wait()
        self._log.seek(0)
        said = [reason] if reason else self._log.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
        return LonggenError(f"{self.path} could not be written: {said[0]}", accepted="a folder with room that may be written to",
                            do="longgen decode on the run's latents.safetensors writes it again, to -o ELSEWHERE.mp4")  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """The settings stored in a video that longgen wrote. Raises MissingError or LonggenError where there are none."""
    if not path.is_file():
        raise MissingError(f"{path} is not there", accepted="an MP4 that longgen wrote", do="check the path")
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
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


def read_frames(path: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames [height, width, 3] uint8 of a video of `size` (width, height), one at a time."""
    width, height = size
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while len(data := process.stdout.read(width * height * 3)) == width * height * 3:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if process.returncode:
        raise LonggenError(f"{path} could not be read as a video", accepted="an MP4", do="check the file")
