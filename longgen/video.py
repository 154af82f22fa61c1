"""Writes and reads MP4 files through ffmpeg, a few frames at a time.

What is written is BT.709 of limited range and says so, as players expect of it; see filmfacts.py for how others are read.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longgen import disk, ffmpeg
from longgen.errors import LonggenError
from longgen.video_info import comment, facts, unreadable

CRF = 18  # x264's constant rate factor: visually lossless
LOOKAHEAD = 12  # frames that x264 looks ahead, where its own 40 would hold them back for seconds
FRAGMENT = 12  # frames that appear in the file at a time: a chunk of three latent frames, with a stride of four
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"  # of ffmpeg's scaler: colours within 1 level


def partial_of(path: Path) -> Path:
    """The file that grows until `path` is complete."""
    return path.with_name(f"{path.stem}.partial.mp4")


def is_partial(path: Path) -> bool:
    """Whether `path` is called as a video of longgen's that is not complete yet."""
    return ".partial" in path.name and path.suffix.lower() == ".mp4"


class Writer:
    """Streams frames into an H.264 yuv420p MP4. The file appears under its name only when it is complete.

    Until then it grows beside it as `NAME.partial.mp4`, in fragments, and can be played meanwhile, 26 frames behind (measured: 12
    of a fragment, the rest in x264). It stays where the context is left with an exception; then, and after kill -9 of longgen,
    it holds every frame that was added.

        with Writer(path, (width, height), fps, settings) as writer:
            writer.add(frames)  # [F, height, width, 3] uint8
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, settings: dict[str, Any]) -> None:
        self.path, self.partial = path, partial_of(path)
        width, height = size
        self._log = ffmpeg.scratch()
        self._metadata: Path | None = None
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        # tags are set on the frames too: ffmpeg 9 has the encoder follow those, and takes no notice of the options
        tags = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
        colours = f"scale=out_color_matrix=bt709:out_range=tv:{EXACT},format=yuv420p,setparams={tags}"
        self._input = ["-protocol_whitelist", "pipe", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
                       "-r", f"{fps:.9g}", "-i", "pipe:0"]  # fmt: skip
        # bitexact leaves versions and dates out, one thread makes x264 repeatable: equal frames and settings, equal bytes
        self._output = [
            "-map", "0:v", "-map_metadata", "1", "-vf", colours, "-c:v", "libx264", "-pix_fmt", "yuv420p",
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
            "-crf", str(CRF), "-preset", "medium", "-threads", "1", "-rc-lookahead", str(LOOKAHEAD), "-fflags", "+bitexact",
            "-movflags", "+delay_moov+default_base_moof", "-frag_duration", str(round(1_000_000 * FRAGMENT / fps)),
            "-flush_packets", "1", "-f", "mp4", ffmpeg.url(self.partial),
        ]  # fmt: skip

    def __enter__(self) -> Writer:
        return self

    def add(self, frames: np.ndarray) -> None:
        """Appends frames [F, height, width, 3] uint8. Raises LonggenError where ffmpeg has stopped."""
        if self._process is None:  # not before: what an earlier run left stays until there is something to put in its place
            with contextlib.suppress(OSError):
                self.partial.unlink(missing_ok=True)  # an ffmpeg whose longgen was killed may still be writing to that file
            # a session of its own: Ctrl-C in the terminal is for us to handle, not for ffmpeg
            self._process = ffmpeg.start(self._command(), stdin=subprocess.PIPE, stderr=self._log, own_session=True)
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
            if self._metadata is not None:
                self._metadata.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        """What ffmpeg is asked to do. The settings are handed over in a file: with prompts they outgrow a command line."""
        try:
            with tempfile.NamedTemporaryFile(prefix="longgen-", suffix=".txt", delete=False) as file:
                self._metadata = Path(file.name)
                file.write(ffmpeg.metadata_file({"comment": json.dumps(self._settings, sort_keys=True)}))
        except OSError as refused:
            raise self._failure(f"{tempfile.gettempdir()}: {refused.strerror}") from None
        told = ["-protocol_whitelist", "file", "-f", "ffmetadata", "-i", ffmpeg.url(self._metadata)]
        return ["-y", "-v", "error", *self._input, *told, *self._output]

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
        arguments = ["-y", "-v", "error", *ffmpeg.source(self.partial), "-c", "copy", "-fflags", "+bitexact",
                     "-movflags", "+faststart", "-f", "mp4", ffmpeg.url(copy)]  # fmt: skip
        try:
            done = ffmpeg.run(arguments, stderr=self._log, own_session=True)
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
        return LonggenError(f"{self.path} could not be written: {said[0]}", expected="a folder with room that may be written to",
                            hint="longgen decode on the run's folder writes it again, to -o ELSEWHERE.mp4")  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """The settings stored in a video that longgen wrote. Raises MissingError or LonggenError where there are none."""
    try:
        settings = json.loads(comment(path))
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or "longgen" not in settings:
        raise LonggenError(f"{path} holds no longgen settings", expected="an MP4 that longgen wrote and nobody re-encoded",
                           hint="look for run.json in the folder NAME.run beside it")  # fmt: skip
    return settings


def size_and_fps(path: Path) -> tuple[tuple[int, int], float]:
    """Width and height in pixels of the frames that `read_frames` reads from `path`, and the frames a second it is shown at.

    Raises MissingError, or LonggenError where it is no video.
    """
    found = facts(path)
    return found.size, found.fps


def read_frames(path: Path, size: tuple[int, int], log: Callable[[str], None] | None = None) -> Iterator[np.ndarray]:
    """Frames [height, width, 3] uint8 of a video of `size` (width, height), one at a time; of a file cut off those it holds.

    Each frame that is stored comes once, whenever it is shown. Their colours are read by the matrix that the file names, see
    `longgen.video_info`. log: is given a sentence at the end where some of it could not be decoded. Raises as `facts` does.
    """
    width, height = size
    matrix = facts(path).matrix
    colours = f"scale={width}:{height}:{f'in_color_matrix={matrix}:' if matrix else ''}{EXACT},format=rgb24"
    arguments = ["-v", "error", *ffmpeg.source(path), "-map", "0:V:0", "-vf", colours, "-fps_mode", "passthrough", "-f", "rawvideo",
                 "pipe:1"]  # fmt: skip
    found = False
    with ffmpeg.scratch() as errors:
        with ffmpeg.start(arguments, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            while len(data := process.stdout.read(width * height * 3)) == width * height * 3:
                found = True
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        errors.seek(0)
        said = ffmpeg.last_words(errors.read(), process.returncode)
    if not found:
        raise unreadable(path, f"none of its frames could be decoded ({said or 'ffmpeg gives no reason'})")
    if said and log is not None:
        log(f"not all of it could be decoded, so that pictures may be missing or wrong ({said})")
