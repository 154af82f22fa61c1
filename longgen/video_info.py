"""Size, frame rate, timing and colour matrix of a video, read with ffmpeg once per file; and why a file cannot be read.

Colours are converted by the matrix that the file names. If it names none, players guess by the size, and so do we: BT.709 from
1280 pixels wide or more than 576 high, else BT.601. Videos of longgen up to 0.5 name none and are BT.601 at any size.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from longgen import ffmpeg, gif_comment
from longgen.errors import LonggenError, MissingError, UsageError

MATRICES = {  # names in files, and of ffmpeg's filter
    "bt709": "bt709", "fcc": "fcc", "bt470bg": "bt601", "smpte170m": "bt601", "smpte240m": "smpte240m", "gbr": None,
}  # fmt: skip
# equivalent in practice: gamma of 2.2 to 2.8, and sRGB
TRANSFERS = {
    "bt709", "gamma22", "gamma28", "bt470m", "bt470bg", "smpte170m", "smpte240m", "iec61966-2-1", "iec61966-2-4", "bt1361e",
    "bt2020-10", "bt2020-12", "unknown", "reserved",
}  # fmt: skip
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
PRIMARIES = {"bt709", "bt470bg", "smpte170m", "smpte240m", "jedec-p22", "ebu3213", "unknown", "reserved"}  # nearly the same
P3 = {"smpte431": "DCI-P3", "smpte432": "Display P3"}
TONE_MAP = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)
UNREADABLE = "could not be read as a video"
JITTER_S = 0.001  # rounding of timestamps: Matroska counts milliseconds
NO_VIDEOS = {
    rb"\x89PNG": "a picture (PNG)", rb"\xff\xd8\xff": "a picture (JPEG)", rb"BM": "a picture (BMP)", rb"II\*\0": "a picture (TIFF)",
    rb"MM\0\*": "a picture (TIFF)", rb"(?s)RIFF....WEBP": "a picture (WebP)", rb"(?s)RIFF....WAVE": "sound (WAV)",
    rb"ID3|\xff\xfb": "sound (MP3)", rb"fLaC": "sound (FLAC)",
}  # fmt: skip
LISTS = {  # formats that refer to other files
    rb"\s*#EXTM3U": "an HLS playlist", rb"\s*ffconcat": "a list of files for ffmpeg's concat",
    rb"\s*(<\?xml[^>]*>\s*)?<MPD": "a DASH manifest", rb"v=0\r?\no=": "a description of a stream (SDP)",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """A video as `read_frames` reads it: upright, with square pixels, in 8-bit RGB.

    fps: for a variable frame rate the mean; `times` then has the presentation time of each frame, in seconds from the first one,
    and the end of the last one. matrix: from YUV to RGB, as ffmpeg's filter names it; None if the file is RGB. notes: what a reader
    of the frames should know, phrased to follow the file's name. cut: why the file is truncated.
    """

    size: tuple[int, int]
    fps: float
    times: tuple[float, ...] | None = None
    matrix: str | None = "bt709"
    notes: tuple[str, ...] = ()
    cut: str | None = None


def facts(path: Path) -> Facts:
    """The facts of the video at `path`. Raises MissingError if there is no such file, and LonggenError if it cannot be read."""
    return _facts(path, _file_key(path))


def comment(path: Path) -> str:
    """The comment in the metadata of the video at `path`, which holds longgen's settings. Raises MissingError or LonggenError."""
    try:
        return _comment(path, _file_key(path))
    except LonggenError as error:
        if UNREADABLE not in error.given:
            raise
        raise LonggenError(error.given.replace(UNREADABLE, "is no video, or damaged", 1), expected="a video written by longgen",
                           hint=error.hint) from None  # fmt: skip


def sound_of(path: Path) -> str | None:
    """The sound in the video at `path`, as ffmpeg names it: "aac (LC), 24000 Hz, stereo"; None where there is none.

    Raises MissingError or LonggenError.
    """
    _file_key(path)
    done = ffmpeg.run(["-v", "info", "-nostats", *ffmpeg.source(path), "-f", "ffmetadata", "pipe:1"])
    streams = done.stderr.decode(errors="replace").partition("\nOutput #0")[0]
    found = re.search(r"(?m)^  Stream #0:\d+.*?: Audio: ([^\n]*)", streams)  # metadata of the file are indented further
    if found is None:
        return None
    return ", ".join(re.sub(r" \(\w+ / 0x\w+\)", "", found[1]).split(", ")[:3])


def settings_of(path: Path) -> dict[str, Any]:
    """The JSON object in the comment of the video at `path`; empty if there is none. Raises MissingError or LonggenError."""
    text = comment(path)
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def unreadable(path: Path, reason: str, hint: str = "check the file") -> LonggenError:
    return LonggenError(f"{path} {UNREADABLE}: {reason}", expected=f"a video in {ffmpeg.FORMAT_NAMES}", hint=hint)


def _file_key(path: Path) -> tuple[int, ...]:
    """Cache key of the file at `path`. Raises if it is not a readable file, or surely not a video."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if ffmpeg.url_scheme(str(path)):
            raise UsageError(f"{path} is a URL, but longgen reads files", expected="a file name",
                             hint="download it first") from None  # fmt: skip
        link = f"; it is a link to {os.readlink(path)}" if path.is_symlink() else ""
        raise MissingError(f"{path} is not there{link}", expected="a video", hint="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        raise unreadable(path, getattr(error, "strerror", None) or str(error), "check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise unreadable(path, "it is a folder", "name a video in it")
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "it is a pipe, a socket or a device", "write it to a file first")
    if status.st_size == 0:
        raise unreadable(path, "it is empty (0 bytes)", "copy or download it again")
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, f"{error.strerror}", f"chmod u+r {shlex.quote(str(path))}") from None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _comment(path: Path, _: tuple[int, ...]) -> str:
    if (of_gif := gif_comment.read(path)) is not None:
        return of_gif.decode(errors="replace")
    done = ffmpeg.run(["-v", "error", *ffmpeg.source(path), "-f", "ffmetadata", "pipe:1"])
    if done.returncode:
        raise unreadable(path, _reason(path, done.stderr, done.returncode))
    text = done.stdout.decode(errors="replace")
    return ffmpeg.metadata(text, "comment") or ffmpeg.metadata(text, "COMMENT")  # as WebM has it


def _is_transparent(path: Path) -> bool:
    """Whether a pixel of a frame with an alpha channel is not opaque; every GIF has the channel."""
    least = "format=rgba,alphaextract,signalstats,metadata=print:key=lavfi.signalstats.YMIN:file=-"
    done = ffmpeg.run(["-v", "error", *ffmpeg.source(path), "-map", "0:V:0", "-vf", least, "-f", "null", os.devnull])
    return any(int(value) < 255 for value in re.findall(r"YMIN=(\d+)", done.stdout.decode(errors="replace")))


@lru_cache(maxsize=256)
def _facts(path: Path, _: tuple[int, ...]) -> Facts:
    """The facts: the showinfo filter describes the first frame; timestamps of all frames are those of their packets."""
    done = ffmpeg.run([
        "-v", "info", "-nostats", *ffmpeg.source(path),
        "-map", "0:V:0", "-map_metadata", "-1", "-vf", "showinfo=checksum=0", "-frames:v", "1", "-f", "null", "pipe:2",
        "-map", "0:V:0", "-map_metadata", "-1", "-c", "copy", "-f", "framecrc", "pipe:1",
    ])  # fmt: skip
    output = done.stderr.decode(errors="replace")
    line = r"(?m)^\[Parsed_showinfo_0 @ \w+\] *"  # metadata of the file never begins a line
    frame = re.search(line + r"n: *0 .*? fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+) i:(\w)", output)
    rate = re.search(line + r"config in time_base: \S+ frame_rate: (\d+)/(\d+)", output)
    encrypted = _encrypted(path)
    if frame is None or rate is None or encrypted:
        raise unreadable(path, "it is encrypted" if encrypted else _reason(path, done.stderr, done.returncode))
    colour = re.search(line + r"color_range:\S+ color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)", output)
    space, primaries, transfer = (colour[1], colour[2], colour[3]) if colour else ("unknown",) * 3
    layout, field = frame[1], frame[6]
    aspect_x, aspect_y, width, height = map(int, (frame[2], frame[3], frame[4], frame[5]))
    notes = []
    size = width, height
    if aspect_x and aspect_y and aspect_x != aspect_y:  # the shorter side grows: no pixel is lost
        size = (round(width * aspect_x / aspect_y), height) if aspect_x > aspect_y else (width, round(height * aspect_y / aspect_x))
        notes.append(f"its pixels are not square ({aspect_x}:{aspect_y}); it is shown and measured at {size[0]}x{size[1]}")
    matrix, color_notes = _matrix(path, (width, height), layout, space, primaries, transfer, output)
    notes += color_notes
    if field in "TB":
        notes.append("it is interlaced; combing counts as detail and as motion")
    if re.search(r"(?m)^\s+alpha_mode\s*: 1", output):
        notes.append("its alpha channel, if any, is ignored")
    elif re.match(r"(yuva|rgba|bgra|argb|abgr|gbrap|ya|pal8)", layout) and _is_transparent(path):
        notes.append("its alpha channel is ignored")
    streams = len(re.findall(r"(?m)^  Stream #0:\d+.*?: Video: (?!.*\(attached pic\))", output.partition("\nStream mapping:")[0]))
    if streams > 1:
        notes.append(f"it holds {streams} video streams, of which the first is used")
    nominal = Fraction(int(rate[1]), int(rate[2]) or 1)
    fps, times = _rate(done.stdout.decode(errors="replace"), nominal)
    if times:
        gaps = sorted(after - before for before, after in itertools.pairwise(times))
        notes.append(f"its frames come at varying intervals, {1000 * gaps[0]:.3g} to {1000 * gaps[-1]:.3g} ms: motion, drift and "
                     f"the side-by-side video follow its timestamps, other metrics assume {fps:.4g} fps")  # fmt: skip
    return Facts(size, fps, times, matrix, tuple(notes), _cut(path, output))


def _matrix(
    path: Path, size: tuple[int, int], layout: str, space: str, primaries: str, transfer: str, output: str
) -> tuple[str | None, list[str]]:
    """The colour matrix of a video, and notes on its colours. Raises LonggenError if they would be read wrong."""
    dolby = re.search(r"(?m)^ +DOVI configuration record: .*profile: 5", output) is not None
    if transfer in HDR or primaries == "bt2020" or space.startswith(("bt2020", "ictcp", "ipt")) or dolby:
        kind = HDR.get(transfer) or ("Dolby Vision" if dolby else "a wide gamut")
        raise unreadable(
            path, f"it is HDR ({kind}; transfer {transfer}, primaries {primaries}), and its colours would be read wrong",
            f"ffmpeg -i {shlex.quote(str(path.absolute()))} -vf {TONE_MAP} -c:v libx264 sdr.mp4 converts it to SDR",
        )  # fmt: skip
    rgb = re.match(r"(rgb|bgr|gbr|argb|abgr|0rgb|0bgr|pal8)", layout) is not None
    if transfer not in TRANSFERS or (space not in MATRICES and space not in ("unknown", "reserved") and not rgb):
        unsupported = f"transfer curve {transfer}" if transfer not in TRANSFERS else f"matrix {space}"
        raise unreadable(path, f"its colours have the {unsupported}, which longgen does not support", "convert it to BT.709")
    notes = []
    if primaries not in PRIMARIES:
        name = P3.get(primaries, primaries)
        notes.append(f"its primaries are {name}; they are read as BT.709, so colours are slightly off")
    if re.search(r"p?(9|1[0-6])(le|be)$|^x2|^p01|^p21|^p41|48(le|be)|64(le|be)|f(16|32)(le|be)", layout):
        notes.append(f"it has more than 8 bits per channel ({layout}); 8 are used")
    if rgb or layout.startswith(("gray", "mono", "ya")):
        return None, notes
    if space not in MATRICES:
        from_longgen = "longgen" in settings_of(path)
        return "bt601" if from_longgen or (size[0] < 1280 and size[1] <= 576) else "bt709", notes
    return MATRICES[space], notes


def _rate(packets: str, nominal: Fraction) -> tuple[float, tuple[float, ...] | None]:
    """The frame rate and, if it is variable, the time of each frame. nominal: the rate that ffmpeg reports."""
    base = re.search(r"#tb 0: (\d+)/(\d+)", packets)
    rows = [(int(shown), int(lasts)) for shown, lasts in re.findall(r"(?m)^0, *-?\d+, *(-?\d+), *(\d+),", packets)]
    rows = sorted(row for row in rows if row[0] >= 0)  # frames before 0 are decoded but not shown
    if base is None or len(rows) < 2 or any(row[0] == after[0] for row, after in itertools.pairwise(rows)):
        return float(nominal) or 1.0, None
    tick_s = Fraction(int(base[1]), int(base[2]))
    last = rows[-1][1] or rows[-1][0] - rows[-2][0]
    times = [float((shown - rows[0][0]) * tick_s) for shown, _ in [*rows, (rows[-1][0] + last, 0)]]
    even = (len(rows) - 1) / times[-2]
    for rate in (float(nominal), even):
        if rate and all(abs(time - number / rate) <= max(float(tick_s), JITTER_S) for number, time in enumerate(times[:-1])):
            return rate, None
    return len(rows) / times[-1], tuple(times)


def _boxes(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The top-level boxes of an MP4: type, start of the content, end."""
    at = 0
    while at < end:
        file.seek(at)
        head = file.read(16)
        size, kind, begins = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if size == 1:
            size, begins = int.from_bytes(head[8:16], "big"), at + 16
        if len(head) < 8:
            size = 8
        elif size == 0:
            size = end - at
        yield kind, begins, at + size
        if size < 8:
            return
        at += size


def _is_mp4(head: bytes) -> bool:
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def _cut(path: Path, output: str) -> str | None:
    """Why a readable file is truncated, or None."""
    with path.open("rb") as file:
        head, end = file.read(16), path.stat().st_size
        if _is_mp4(head):
            missing = max((stops - end for _, _, stops in _boxes(file, end)), default=0)
            return f"it is cut off: {missing} bytes or more are missing at its end" if missing > 0 else None
        if head.startswith(b"RIFF") and int.from_bytes(head[4:8], "little") + 8 > end + 1:
            return f"it is cut off: {int.from_bytes(head[4:8], 'little') + 8 - end} bytes or more are missing at its end"
    return "it is cut off: it ends in the middle of something" if "File ended prematurely" in output else None


def _encrypted(path: Path) -> bool:
    """Whether an MP4 is marked as encrypted: ffmpeg would decode it to noise."""
    with path.open("rb") as file:
        if not _is_mp4(file.read(8)):
            return False
        for kind, begins, stops in _boxes(file, path.stat().st_size):
            if kind == b"moov":
                file.seek(begins)
                return re.search(rb"(?s)stsd\0{4}.{8}encv", file.read(max(stops - begins, 0))) is not None
    return False


def _reason(path: Path, stderr: bytes, status: int) -> str:
    """Why ffmpeg reads no frame of the file at `path`, in plain words for known causes."""
    with path.open("rb") as file:
        head = file.read(1024)
    for start, kind in LISTS.items():
        if re.match(start, head):
            return f"it is {kind}, which refers to other files; longgen does not open them"
    for start, kind in NO_VIDEOS.items():
        if re.match(start, head):
            return f"it is {kind}"
    output = stderr.decode(errors="replace")
    if "moov atom not found" in output and _is_mp4(head):
        return "it is cut off, or still being written: its index, which comes last, is missing"
    words = head.decode(errors="ignore")
    if len(words) > 0.9 * len(head) and all(letter.isprintable() or letter in "\r\n\t\f\ufeff" for letter in words):
        return "it holds text"
    cut = _cut(path, output)
    if cut is not None:
        return cut
    if "matches no streams" in output:
        return "it holds sound only" if ": Audio:" in output else "it holds no pictures"
    codec = re.search(r"Video: none \((\S+)", output) or re.search(r"[Nn]o decoder found for: (\S+)", output)
    if codec:
        return f"ffmpeg does not support its codec ({codec[1]})"
    if "not on whitelist" in output or "moov atom not found" in output or "Invalid data found" in output:
        return "its format is not supported, or its beginning is damaged"
    return f"none of its frames could be decoded ({ffmpeg.error_line(stderr, status) or 'ffmpeg gives no reason'})"
