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

from longgen import disk, ffmpeg, gif_comment, naming
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.video_info import facts, settings_of, unreadable

CRF = 18  # constant rate factor of x264: visually lossless
LOOKAHEAD = 12  # frames; the default of 40 would delay frames by seconds
FRAGMENT = 12  # frames per fragment of the growing file: a chunk of three latent frames, with a stride of four
SOUND_CODECS = {  # of the files that can have sound
    ".mp4": ("-c:a", "aac", "-b:a", "192k", "-flags:a", "+bitexact"),
    ".webm": ("-c:a", "libopus", "-b:a", "192k", "-flags:a", "+bitexact"),
}
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"  # scaler flags: colours within 1 level


VP9_CRF = 24  # constant quality of libvpx
GIF_FPS = 50  # frames of a GIF last whole hundredths of a second, and players slow those that last one
PALETTE = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=bayer:bayer_scale=4"  # of each frame alone


class Sound(NamedTuple):
    """A waveform: samples [S, channels] float32 in -1..1, `rate` of them a second."""

    samples: np.ndarray
    rate: int


def partial_of(path: Path) -> Path:
    """The growing file, until `path` is complete."""
    return path.with_name(f"{path.stem}.partial{path.suffix if naming.is_video(path) else '.mp4'}")


def is_partial(path: Path) -> bool:
    """Whether `path` is named like an incomplete video of longgen."""
    return ".partial" in path.name and naming.is_video(path)


def check_kind(path: Path, fps: float) -> None:
    """Raises MissingError where ffmpeg here cannot write `path`, UsageError where its format cannot have so many `fps`."""
    suffix = path.suffix.lower()
    if naming.is_plain(path):
        return
    if suffix == ".gif" and fps > GIF_FPS:
        raise UsageError(f"{path}: a GIF shows at most {GIF_FPS} frames a second, and this video has {fps:g}",
                         expected=f"a .mp4 or .webm, or at most {GIF_FPS} fps", hint="give another name, or --fps")  # fmt: skip
    if not ffmpeg.has_encoder(ffmpeg.run(["-encoders"]).stdout, suffix):
        raise MissingError(f"{path}: ffmpeg here has no {ffmpeg.ENCODERS[suffix]}, which writes {suffix} files",
                           expected="the ffmpeg that imageio-ffmpeg ships, or another with it",
                           hint="give a name in .mp4; longgen doctor says which ffmpeg is used")  # fmt: skip


def notes_of(path: Path) -> list[str]:
    """What a reader should know of a video of this kind."""
    if path.suffix.lower() != ".gif":
        return []
    return ["a GIF has no sound, 256 colours a frame, frames that last whole hundredths of a second (their mean is kept), and "
            "takes more bytes; longgen decode RUN -o NAME.mp4 makes the video of the same latents"]  # fmt: skip


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Streams frames into an H.264 yuv420p MP4, a VP9 WebM or a GIF, which appears under its name only when it is complete.

    A sound goes into the first two. Until then it grows as a fragmented `NAME.partial.mp4`, which can be played meanwhile, 26
    frames behind (measured: 12 of a fragment, the rest in x264). That file remains if the context is left with an exception; then,
    and after kill -9 of longgen, it holds every frame that was added.

        with Writer(path, (width, height), fps, settings) as writer:
            writer.add(frames)  # [F, height, width, 3] uint8
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, settings: dict[str, Any], sound: Sound | None = None) -> None:
        self.path, self.partial = path, partial_of(path)
        width, height = size
        self._log = ffmpeg.scratch()
        self._scratch: list[Path] = []
        self._kind = path.suffix.lower() if naming.is_video(path) else ".mp4"
        self._sound = sound if self._kind in SOUND_CODECS else None
        heard = ["-map", "2:a", *SOUND_CODECS[self._kind]] if self._sound is not None else []
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        # tags are set on the frames too: the encoder of ffmpeg 9 follows those and ignores the options
        tags = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
        colours = f"scale=out_color_matrix=bt709:out_range=tv:{EXACT},format=yuv420p,setparams={tags}"
        self._input = ["-protocol_whitelist", "pipe", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
                       "-r", f"{fps:.9g}", "-i", "pipe:0"]  # fmt: skip
        tagged = ["-map", "0:v", *heard, "-map_metadata", "1", "-vf", colours, "-c:v", ffmpeg.ENCODERS[self._kind],
                  "-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
                  "-color_range", "tv"]  # fmt: skip
        encoded = {
            ".mp4": [*tagged, "-crf", str(CRF), "-preset", "medium", "-rc-lookahead", str(LOOKAHEAD), "-movflags",
                     "+delay_moov+default_base_moof", "-frag_duration", str(round(1_000_000 * FRAGMENT / fps))],
            ".webm": [*tagged, "-crf", str(VP9_CRF), "-b:v", "0", "-deadline", "good", "-cpu-used", "4",
                      "-lag-in-frames", str(LOOKAHEAD)],
            ".gif": ["-map", "0:v", "-map_metadata", "-1", "-vf", PALETTE, "-loop", "0"],
        }[self._kind]  # fmt: skip
        # bitexact omits versions and dates, one thread makes x264 deterministic: equal frames and settings give equal bytes
        self._output = [*encoded, "-threads", "1", "-fflags", "+bitexact", "-flush_packets", "1",
                        "-f", self._kind.removeprefix("."), ffmpeg.url(self.partial)]  # fmt: skip

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
        """Remuxes the fragments into a file with its index in front, or gives a GIF its comment, and renames it atomically."""
        copy = disk.partial_of(self.path)
        index = ["-movflags", "+faststart"] if self._kind == ".mp4" else ["-cues_to_front", "1"]
        arguments = ["-y", "-v", "error", *ffmpeg.source(self.partial), "-c", "copy", "-fflags", "+bitexact",
                     *index, "-f", self._kind.removeprefix("."), ffmpeg.url(copy)]  # fmt: skip
        try:
            if self._kind == ".gif":
                gif_comment.add(self.partial, copy, json.dumps(self._settings, sort_keys=True).encode())
            elif ffmpeg.run(arguments, stderr=self._log, own_session=True).returncode:
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
        raise LonggenError(f"{path} holds no longgen settings", expected="a video written by longgen and not re-encoded",
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
