"""What ffmpeg says of a video before its frames are read, asked once a file; and why a file that is none cannot be read.

Colours. Frames are read by the matrix that the file names. Where it names none, players guess by the size, and so do we: BT.709
from 1280 pixels across or more than 576 down on, else BT.601. What longgen wrote up to 0.5 names none and is BT.601 at any size.
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
from typing import BinaryIO

from longgen import ffmpeg
from longgen.errors import LonggenError, MissingError, UsageError

MATRICES = {  # as files name them, and as ffmpeg's filter does
    "bt709": "bt709", "fcc": "fcc", "bt470bg": "bt601", "smpte170m": "bt601", "smpte240m": "smpte240m", "gbr": None,
}  # fmt: skip
# curves that are shown alike: gamma of 2.2 to 2.8, and sRGB
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
JITTER_S = 0.001  # that times are rounded by: Matroska counts milliseconds
PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF....WEBP": "WebP"}
SOUNDS = {b"RIFF....WAVE": "WAV", b"ID3": "MP3", b"\xff\xfb": "MP3", b"fLaC": "FLAC"}
LISTS = {  # of files that ffmpeg would open
    rb"\s*#EXTM3U": "an HLS playlist", rb"\s*ffconcat": "a list of files for ffmpeg's concat",
    rb"\s*(<\?xml[^>]*>\s*)?<MPD": "a DASH manifest", rb"v=0\r?\no=": "a description of a stream (SDP)",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """A video as `read_frames` reads it: turned upright, with square pixels, in 8 bits of RGB.

    fps: frames a second; where they come at varying intervals, on average, and `times` says when each is shown, in seconds from the
    first one, and after them when the last one ends. matrix: of YUV to RGB, as ffmpeg's filter calls it; None where the file holds
    RGB. notes: what a reader of the frames should know, as words that follow the file's name. cut: why not all of it is there.
    """

    size: tuple[int, int]
    fps: float
    times: tuple[float, ...] | None = None
    matrix: str | None = "bt709"
    notes: tuple[str, ...] = ()
    cut: str | None = None


def facts(path: Path) -> Facts:
    """The facts of the video at `path`. Raises MissingError where it is not there, and LonggenError where it cannot be read."""
    here = _checked(path)
    return _asked(path, (here.st_dev, here.st_ino, here.st_size, here.st_mtime_ns))


def comment(path: Path) -> str:
    """The comment in the metadata of the video at `path`, where longgen keeps its settings. Raises MissingError or LonggenError."""
    try:
        here = _checked(path)
        return _commented(path, (here.st_dev, here.st_ino, here.st_size, here.st_mtime_ns))
    except LonggenError as error:
        if UNREADABLE not in error.given:
            raise
        raise LonggenError(error.given.replace(UNREADABLE, "is no video, or damaged", 1), expected="an MP4 that longgen wrote",
                           hint=error.hint) from None  # fmt: skip


def unreadable(path: Path, reason: str, hint: str = "check the file") -> LonggenError:
    return LonggenError(f"{path} {UNREADABLE}: {reason}", expected=f"a video in {ffmpeg.FORMAT_NAMES}", hint=hint)


def _checked(path: Path) -> os.stat_result:
    """What the system says of `path`. Raises where it is no file that can be read, or surely no video."""
    try:
        here = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if ffmpeg.address(str(path)):
            raise UsageError(f"{path} is a URL, and longgen reads files", expected="the name of a file",
                             hint="download it first") from None  # fmt: skip
        gone = f"; it is a link to {os.readlink(path)}" if path.is_symlink() else ""
        raise MissingError(f"{path} is not there{gone}", expected="a video", hint="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise unreadable(path, getattr(error, "strerror", None) or str(error), "check the path") from None
    if stat.S_ISDIR(here.st_mode):
        raise unreadable(path, "it is a folder", "name a video in it")
    if not stat.S_ISREG(here.st_mode):
        raise unreadable(path, "it is a pipe, a socket or a device", "write it to a file first")
    if here.st_size == 0:
        raise unreadable(path, "it is empty (0 bytes)", "copy or download it again")
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, f"{error.strerror}", f"chmod u+r {shlex.quote(str(path))}") from None
    return here


@lru_cache(maxsize=256)
def _commented(path: Path, _: tuple[int, ...]) -> str:
    done = ffmpeg.run(["-v", "error", *ffmpeg.source(path), "-f", "ffmetadata", "pipe:1"])
    if done.returncode:
        raise unreadable(path, _reason(path, done.stderr, done.returncode))
    return ffmpeg.metadata(done.stdout.decode(errors="replace"), "comment")


@lru_cache(maxsize=256)
def _asked(path: Path, _: tuple[int, ...]) -> Facts:
    """The facts. The first frame is decoded and described by a filter; the times of all are those of their packets."""
    done = ffmpeg.run([
        "-v", "info", "-nostats", *ffmpeg.source(path),
        "-map", "0:V:0", "-map_metadata", "-1", "-vf", "showinfo=checksum=0", "-frames:v", "1", "-f", "null", "pipe:2",
        "-map", "0:V:0", "-map_metadata", "-1", "-c", "copy", "-f", "framecrc", "pipe:1",
    ])  # fmt: skip
    said = done.stderr.decode(errors="replace")
    line = r"(?m)^\[Parsed_showinfo_0 @ \w+\] *"  # what the file itself says never begins a line
    frame = re.search(line + r"n: *0 .*? fmt:(\S+) .*?sar:(\d+)/(\d+) s:(\d+)x(\d+) i:(\w)", said)
    rate = re.search(line + r"config in time_base: \S+ frame_rate: (\d+)/(\d+)", said)
    encrypted = _encrypted(path)
    if frame is None or rate is None or encrypted:
        raise unreadable(path, "it is encrypted" if encrypted else _reason(path, done.stderr, done.returncode))
    colour = re.search(line + r"color_range:\S+ color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)", said)
    space, primaries, transfer = (colour[1], colour[2], colour[3]) if colour else ("unknown",) * 3
    layout, field = frame[1], frame[6]
    across, down, width, height = map(int, (frame[2], frame[3], frame[4], frame[5]))
    notes = []
    size = width, height
    if across and down and across != down:  # the side that is too short grows: no pixel is lost
        size = (round(width * across / down), height) if across > down else (width, round(height * down / across))
        notes.append(f"its pixels are not square ({across}:{down}); it is shown and measured at {size[0]}x{size[1]}")
    matrix, told = _matrix(path, (width, height), layout, space, primaries, transfer, said)
    notes += told
    if field in "TB":
        notes.append("it is interlaced; the combs of its fields count as detail and as motion")
    if re.match(r"(yuva|rgba|bgra|argb|abgr|gbrap|ya|pal8)", layout) or re.search(r"(?m)^\s+alpha_mode\s*: 1", said):
        notes.append("its transparency, where it has any, is left out")
    streams = len(re.findall(r"(?m)^  Stream #0:\d+.*?: Video: (?!.*\(attached pic\))", said.partition("\nStream mapping:")[0]))
    if streams > 1:
        notes.append(f"it holds {streams} video streams, of which the first is read")
    guessed = Fraction(int(rate[1]), int(rate[2]) or 1)
    fps, times = _rate(done.stdout.decode(errors="replace"), guessed)
    if times:
        gaps = sorted(after - before for before, after in itertools.pairwise(times))
        notes.append(f"its frames come at varying intervals, {1000 * gaps[0]:.3g} to {1000 * gaps[-1]:.3g} ms: motion, drift and "
                     f"the pictures side by side go by each one's time, other numbers by {fps:.4g} a second")  # fmt: skip
    cut = _cut(path, said)
    return Facts(size, fps, times, matrix, tuple(notes), cut)


def _matrix(
    path: Path, size: tuple[int, int], layout: str, space: str, primaries: str, transfer: str, said: str
) -> tuple[str | None, list[str]]:
    """The matrix of a video, and what is to be noted of its colours. Raises LonggenError where they would be read wrong."""
    dolby = re.search(r"(?m)^ +DOVI configuration record: .*profile: 5", said) is not None
    if transfer in HDR or primaries == "bt2020" or space.startswith(("bt2020", "ictcp", "ipt")) or dolby:
        kind = HDR.get(transfer) or ("Dolby Vision" if dolby else "a wide gamut")
        raise unreadable(
            path, f"it is HDR ({kind}; transfer {transfer}, primaries {primaries}), and its colours would be read wrong",
            f"ffmpeg -i {shlex.quote(str(path.absolute()))} -vf {TONE_MAP} -c:v libx264 sdr.mp4 makes an SDR video of it",
        )  # fmt: skip
    rgb = re.match(r"(rgb|bgr|gbr|argb|abgr|0rgb|0bgr|pal8)", layout) is not None
    if transfer not in TRANSFERS or (space not in MATRICES and space not in ("unknown", "reserved") and not rgb):
        what = f"transfer curve {transfer}" if transfer not in TRANSFERS else f"matrix {space}"
        raise unreadable(path, f"its colours have the {what}, which longgen does not read", "convert it to BT.709")
    notes = []
    if primaries not in PRIMARIES:
        name = P3.get(primaries, primaries)
        notes.append(f"its primaries are {name}; they are taken for those of BT.709, so that colours are a little off")
    if re.search(r"p?(9|1[0-6])(le|be)$|^x2|^p01|^p21|^p41|48(le|be)|64(le|be)|f(16|32)(le|be)", layout):
        notes.append(f"it has more than 8 bits a channel ({layout}); 8 are read")
    if rgb or layout.startswith(("gray", "mono", "ya")):
        return None, notes
    if space not in MATRICES:
        own = "longgen" in _json_of(comment(path))
        return "bt601" if own or (size[0] < 1280 and size[1] <= 576) else "bt709", notes
    return MATRICES[space], notes


def _json_of(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _rate(packets: str, guessed: Fraction) -> tuple[float, tuple[float, ...] | None]:
    """Frames a second, and the time of each frame where they do not come evenly. guessed: what ffmpeg takes the rate for."""
    base = re.search(r"#tb 0: (\d+)/(\d+)", packets)
    rows = [(int(shown), int(lasts)) for shown, lasts in re.findall(r"(?m)^0, *-?\d+, *(-?\d+), *(\d+),", packets)]
    rows = sorted(row for row in rows if row[0] >= 0)  # what comes before 0 is decoded and not shown
    if base is None or len(rows) < 2 or any(one[0] == other[0] for one, other in itertools.pairwise(rows)):
        return float(guessed) or 1.0, None
    tick_s = Fraction(int(base[1]), int(base[2]))
    last = rows[-1][1] or rows[-1][0] - rows[-2][0]
    times = [float((shown - rows[0][0]) * tick_s) for shown, _ in [*rows, (rows[-1][0] + last, 0)]]
    even = (len(rows) - 1) / times[-2]
    for rate in (float(guessed), even):
        if rate and all(abs(time - number / rate) <= max(float(tick_s), JITTER_S) for number, time in enumerate(times[:-1])):
            return rate, None
    return len(rows) / times[-1], tuple(times)


def _boxes(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an MP4 one after the other: kind, where its content begins, where it ends."""
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


def _cut(path: Path, said: str) -> str | None:
    """Why not all of a file that can be read is there, or None."""
    with path.open("rb") as file:
        head, end = file.read(16), path.stat().st_size
        if _is_mp4(head):
            missing = max((stops - end for _, _, stops in _boxes(file, end)), default=0)
            return f"it is cut off: {missing} bytes or more are missing at its end" if missing > 0 else None
        if head.startswith(b"RIFF") and int.from_bytes(head[4:8], "little") + 8 > end + 1:
            return f"it is cut off: {int.from_bytes(head[4:8], 'little') + 8 - end} bytes or more are missing at its end"
    return "it is cut off: it ends in the middle of something" if "File ended prematurely" in said else None


def _encrypted(path: Path) -> bool:
    """Whether an MP4 says that its pictures are encrypted: ffmpeg would decode them to noise."""
    with path.open("rb") as file:
        if not _is_mp4(file.read(8)):
            return False
        for kind, begins, stops in _boxes(file, path.stat().st_size):
            if kind == b"moov":
                file.seek(begins)
                return re.search(rb"(?s)stsd\0{4}.{8}encv", file.read(max(stops - begins, 0))) is not None
    return False


def _reason(path: Path, said: bytes, status: int) -> str:
    """Why ffmpeg reads no frame of the file at `path`, in our words where we know them."""
    with path.open("rb") as file:
        head = file.read(1024)
    for start, kind in LISTS.items():
        if re.match(start, head):
            return f"it is {kind}, which names other files; longgen opens none of them"
    for kinds, what in ((PICTURES, "a picture"), (SOUNDS, "sound")):
        for begins, name in kinds.items():
            if re.match(rb"(?s)" + (begins if b"...." in begins else re.escape(begins)), head):
                return f"it is {what} ({name})"
    words = said.decode(errors="replace")
    if "moov atom not found" in words and _is_mp4(head):
        return "it is cut off, or still being written: the index that comes last in such a file is missing"
    if _text(head):
        return "it holds text"
    cut = _cut(path, words)
    if cut is not None:
        return cut
    if "matches no streams" in words:
        return "it holds sound only" if ": Audio:" in words else "it holds no pictures"
    codec = re.search(r"Video: none \((\S+)", words) or re.search(r"[Nn]o decoder found for: (\S+)", words)
    if codec:
        return f"its codec ({codec[1]}) is one that ffmpeg does not know"
    if "not on whitelist" in words or "moov atom not found" in words or "Invalid data found" in words:
        return "it is in no format that longgen reads, or its beginning is damaged"
    return f"none of its frames could be decoded ({ffmpeg.last_words(said, status) or 'ffmpeg gives no reason'})"


def _text(head: bytes) -> bool:
    words = head.decode(errors="ignore")
    return len(words) > 0.9 * len(head) and all(letter.isprintable() or letter in "\r\n\t\f\ufeff" for letter in words)
