"""Streaming video writer and reader on top of ffmpeg.

Videos are written as limited-range BT.709 with matching tags, as players expect; see video_info.py for how others are read.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longgen import disk, ffmpeg
from longgen.errors import LonggenError
from longgen.video_info import facts, settings_of, unreadable

CRF = 18  # constant rate factor of x264: visually lossless
LOOKAHEAD = 12  # frames; the default of 40 would delay frames by seconds
FRAGMENT = 12  # frames per fragment of the growing file: a chunk of three latent frames, with a stride of four
AAC = ("-c:a", "aac", "-b:a", "192k", "-flags:a", "+bitexact")
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"  # scaler flags: colours within 1 level


class Sound(NamedTuple):
    """A waveform: samples [S, channels] float32 in -1..1, `rate` of them a second."""

    samples: np.ndarray
    rate: int


def partial_of(path: Path) -> Path:
    """The growing file, until `path` is complete."""
    return path.with_name(f"{path.stem}.partial.mp4")


def is_partial(path: Path) -> bool:
    """Whether `path` is named like an incomplete video of longgen."""
    return ".partial" in path.name and path.suffix.lower() == ".mp4"


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Streams frames into an H.264 yuv420p MP4, with `sound` as AAC, which appears under its name only when it is complete.

    Until then it grows as a fragmented `NAME.partial.mp4`, which can be played meanwhile, 26 frames behind (measured: 12 of a
    fragment, the rest in x264). That file remains if the context is left with an exception; then, and after kill -9 of longgen, it
    holds every frame that was added.

        with Writer(path, (width, height), fps, settings) as writer:
            writer.add(frames)  # [F, height, width, 3] uint8
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, settings: dict[str, Any], sound: Sound | None = None) -> None:
        self.path, self.partial = path, partial_of(path)
        width, height = size
        self._log = ffmpeg.scratch()
        self._scratch: list[Path] = []
        self._sound = sound
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        # tags are set on the frames too: the encoder of ffmpeg 9 follows those and ignores the options
        tags = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
        colours = f"scale=out_color_matrix=bt709:out_range=tv:{EXACT},format=yuv420p,setparams={tags}"
        self._input = ["-protocol_whitelist", "pipe", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
                       "-r", f"{fps:.9g}", "-i", "pipe:0"]  # fmt: skip
        # bitexact omits versions and dates, one thread makes x264 deterministic: equal frames and settings give equal bytes
        self._output = [
            "-map", "0:v", *(["-map", "2:a", *AAC] if sound is not None else []), "-map_metadata", "1",
            "-vf", colours, "-c:v", "libx264", "-pix_fmt", "yuv420p",
            "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv",
            "-crf", str(CRF), "-preset", "medium", "-threads", "1", "-rc-lookahead", str(LOOKAHEAD), "-fflags", "+bitexact",
            "-movflags", "+delay_moov+default_base_moof", "-frag_duration", str(round(1_000_000 * FRAGMENT / fps)),
            "-flush_packets", "1", "-f", "mp4", ffmpeg.url(self.partial),
        ]  # fmt: skip

    def add(self, frames: np.ndarray) -> None:
        """Appends frames [F, height, width, 3] uint8. Raises LonggenError if ffmpeg has stopped."""
        if self._process is None:  # only now: the file of an earlier run stays until there is something to replace it
            with contextlib.suppress(OSError):
                self.partial.unlink(missing_ok=True)  # an orphaned ffmpeg may still be writing to that file
            # in its own session: we handle Ctrl-C in the terminal, not ffmpeg
            self._process = ffmpeg.start(self._command(), stdin=subprocess.PIPE, stderr=self._log, own_session=True)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            succeeded = self._finish()
            if kind is None:
                if not succeeded:
                    raise self._failure(None if self._process else "there are no frames")
                self._complete()
        finally:
            self._log.close()
            for file in self._scratch:
                file.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        """The arguments of ffmpeg. Settings are passed in a file, with prompts they can exceed a command line; so is the sound."""
        metadata = self._file(".txt", ffmpeg.metadata_file({"comment": json.dumps(self._settings, sort_keys=True)}))
        inputs = [*self._input, "-protocol_whitelist", "file", "-f", "ffmetadata", "-i", ffmpeg.url(metadata)]
        if self._sound is not None:
            samples, rate = self._sound
            waves = self._file(".f32", np.ascontiguousarray(samples, dtype="<f4").tobytes())
            inputs += ["-protocol_whitelist", "file", "-f", "f32le", "-ar", str(rate), "-ac", str(samples.shape[1]),
                       "-i", ffmpeg.url(waves)]  # fmt: skip
        return ["-y", "-v", "error", *inputs, *self._output]

    def _file(self, suffix: str, content: bytes) -> Path:
        """A temporary file with `content`, until the writer is left."""
        try:
            with tempfile.NamedTemporaryFile(prefix="longgen-", suffix=suffix, delete=False) as file:
                self._scratch.append(Path(file.name))
                file.write(content)
        except OSError as error:
            raise self._failure(f"{tempfile.gettempdir()}: {error.strerror}") from None
        return self._scratch[-1]

    def _finish(self) -> bool:
        """Lets ffmpeg encode the rest and exit; returns whether it succeeded."""
        if self._process is None:
            return False
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        return self._process.wait() == 0

    def _complete(self) -> None:
        """Remuxes the fragments into an ordinary MP4 with its index in front, and renames it atomically."""
        copy = disk.partial_of(self.path)
        arguments = ["-y", "-v", "error", *ffmpeg.source(self.partial), "-c", "copy", "-fflags", "+bitexact",
                     "-movflags", "+faststart", "-f", "mp4", ffmpeg.url(copy)]  # fmt: skip
        try:
            done = ffmpeg.run(arguments, stderr=self._log, own_session=True)
            if done.returncode:
                raise self._failure()
            disk.replace(copy, self.path)
            self.partial.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(error.strerror) from None
        finally:
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)

    def _failure(self, reason: str | None = None) -> LonggenError:
        self._finish()
        self._log.seek(0)
        lines = [reason] if reason else self._log.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
        return LonggenError(f"{self.path} could not be written: {lines[0]}", expected="a writable folder with free space",
                            hint="longgen decode on the run folder writes it again, to -o ELSEWHERE.mp4")  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """The settings embedded in a video that longgen wrote. Raises MissingError or LonggenError if there are none."""
    settings = settings_of(path)
    if "longgen" not in settings:
        raise LonggenError(f"{path} holds no longgen settings", expected="an MP4 written by longgen and not re-encoded",
                           hint="look for run.json in the folder NAME.run next to it")  # fmt: skip
    return settings


def read_frames(path: Path, size: tuple[int, int], log: Callable[[str], None] | None = None) -> Iterator[np.ndarray]:
    """Decodes frames [height, width, 3] uint8 of a video of `size` (width, height) one by one; of a truncated file, what is there.

    Each stored frame comes once, whatever its timing. Colours are converted by the matrix that the file names, see
    `longgen.video_info`. log: receives a sentence at the end if part of it could not be decoded. Raises as `facts` does.
    """
    width, height = size
    matrix = facts(path).matrix
    colours = f"scale={width}:{height}:{f'in_color_matrix={matrix}:' if matrix else ''}{EXACT},format=rgb24"
    arguments = ["-v", "error", *ffmpeg.source(path), "-map", "0:V:0", "-vf", colours, "-fps_mode", "passthrough", "-f", "rawvideo",
                 "pipe:1"]  # fmt: skip
    decoded = False
    with ffmpeg.scratch() as errors:
        with ffmpeg.start(arguments, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            while len(data := process.stdout.read(width * height * 3)) == width * height * 3:
                decoded = True
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        errors.seek(0)
        error = ffmpeg.error_line(errors.read(), process.returncode)
    if not decoded:
        raise unreadable(path, f"none of its frames could be decoded ({error or 'ffmpeg gives no reason'})")
    if error and log is not None:
        log(f"not all of it could be decoded, so frames may be missing or wrong ({error})")
