"""Runs ffmpeg safely; the only module that does. Files are passed as absolute `file:` URLs, whatever their names.

A bare name is not enough: ffmpeg takes `12:30.mp4`, `http://...` and `concat:...` for protocols and `-x.mp4` for an option. Nor may
the content of a file redirect it: a playlist named .mp4 could make it contact a server, or read other files of the user.
imageio-ffmpeg ships the program. Its reader and writer are not used: they pass names unescaped and ignore the exit status.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from longgen.errors import LonggenError, MissingError, UsageError

# self-contained containers; ffmpeg's demuxers for others (hls, concat, dash, sdp, image2) open the files that they name
FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif", "yuv4mpegpipe")
FORMAT_NAMES = "MP4/MOV, Matroska/WebM, AVI, MPEG, FLV, Ogg, ASF/WMV, GIF and Y4M"
# reads a truncated file as far as possible: drops damaged packets, ignores the index
TOLERANT = ("-fflags", "+discardcorrupt+ignidx")
ENCODERS = {".mp4": "libx264", ".webm": "libvpx-vp9", ".gif": "gif"}  # of the files that longgen writes
ESCAPED = re.compile(r"[=;#\\\n]")  # characters to escape in a metadata file
PROTOCOLS = {
    "async", "bluray", "cache", "concat", "concatf", "crypto", "data", "dtls", "fd", "ffrtmpcrypt", "ffrtmphttp", "file",
    "ftp", "gopher", "gophers", "hls", "http", "httpproxy", "https", "icecast", "ipfs", "ipns", "md5", "mmsh", "mmst", "pipe",
    "prompeg", "rist", "rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtp", "rtsp", "s3", "gs", "sftp", "shared",
    "smb", "srt", "srtp", "subfile", "tcp", "tee", "tls", "udp", "udplite", "unix", "zmq",
}  # fmt: skip


def program() -> str:
    """Path of the ffmpeg executable. Raises MissingError."""
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        path = get_ffmpeg_exe()
    except RuntimeError as error:
        raise _missing(str(error).splitlines()[0]) from None
    if shutil.which(path) is None:
        raise _missing(f"{path} is not executable")
    return path


def _missing(reason: str) -> MissingError:
    return MissingError(f"ffmpeg is missing: {reason}", expected="the program that imageio-ffmpeg ships, or IMAGEIO_FFMPEG_EXE",
                        hint="pip install --force-reinstall imageio-ffmpeg; longgen doctor checks again")  # fmt: skip


def url(path: Path) -> str:
    """URL of the file `path`, for reading or writing, that ffmpeg does not interpret further."""
    return f"file:{path.absolute()}"


def source(path: Path) -> list[str]:
    """Arguments that make the video `path`, and nothing else, an input."""
    return ["-protocol_whitelist", "file", "-format_whitelist", ",".join(FORMATS), *TOLERANT, "-i", url(path)]


def start(
    arguments: list[str],
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts ffmpeg. own_session: shields it from Ctrl-C in the terminal. Raises MissingError, LonggenError."""
    # both variables would alter its output
    environment = {name: value for name, value in os.environ.items() if name not in ("AV_LOG_FORCE_COLOR", "FFREPORT")}
    try:
        return subprocess.Popen([program(), "-hide_banner", *arguments], env=environment, stdin=stdin, stdout=stdout, stderr=stderr,
                                start_new_session=own_session)  # fmt: skip
    except (FileNotFoundError, PermissionError) as error:
        raise _missing(f"{error.filename or program()}: {error.strerror}") from None
    except OSError as error:
        raise LonggenError(f"ffmpeg could not be started: {error.strerror}", expected="resources for one more process",
                           hint="close something, then repeat the command") from None  # fmt: skip


def run(
    arguments: list[str], stderr: int | IO[bytes] = subprocess.PIPE, own_session: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Runs ffmpeg to the end and captures stdout, and stderr unless that is redirected."""
    with start(arguments, stdout=subprocess.PIPE, stderr=stderr, own_session=own_session) as process:
        stdout, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, errors)


def has_encoder(listed: bytes, suffix: str) -> bool:
    """Whether ffmpeg, whose `-encoders` printed `listed`, has the encoder of files that end in `suffix`."""
    return re.search(rb"(?m)^ V\S+ " + re.escape(ENCODERS[suffix]).encode() + rb" ", listed) is not None


def scratch() -> IO[bytes]:
    """A temporary file for stderr of ffmpeg, deleted when closed. Raises LonggenError."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise LonggenError(f"no temporary file could be created: {error.strerror}", expected="a temporary folder with free space",
                           hint="set TMPDIR, or close something") from None  # fmt: skip


def metadata_file(values: dict[str, str]) -> bytes:
    """Content of an FFMETADATA file, for metadata of any length: a command line is limited to 128 kB."""
    lines = [name + "=" + ESCAPED.sub(r"\\\g<0>", value) for name, value in values.items()]
    return "\n".join([";FFMETADATA1", *lines, ""]).encode()


def metadata(text: str, name: str) -> str:
    """The value of `name` in an FFMETADATA file, in which `= ; # \\` and newlines are escaped by a backslash."""
    value, characters = [], iter(text.partition(f"\n{name}=")[2])
    for character in characters:
        if character == "\n":
            break
        value.append(next(characters, "") if character == "\\" else character)
    return "".join(value)


def url_scheme(name: str) -> str | None:
    """The URL scheme of `name` if it looks like a URL: "http" of `http://host/x.mp4`, "file" of `file:x.mp4`. Otherwise None.

    `12:30.mp4`, `scene 4: the end.mp4` and `C:/x.mp4` are file names; so are files in a folder named like a protocol.
    """
    scheme, colon, rest = name.strip().partition(":")
    if not colon or len(scheme) < 2:
        return None
    if re.fullmatch(r"[a-zA-Z][\w+.-]*", scheme) and rest.startswith("//"):
        return scheme
    known = scheme.split(",")[0].lower() in PROTOCOLS and not rest.startswith(" ")
    path = re.fullmatch(r"[a-zA-Z][\w+.-]*", scheme) and rest.startswith("/")  # pathlib merges double slashes
    return scheme if (known or path) and not os.path.exists(f"{scheme}:") else None


def check_output(name: str, option: str = "--output") -> None:
    """Raises UsageError if `name`, of a file or folder to be written, is a URL."""
    kind = url_scheme(name)
    if kind is not None:
        raise UsageError(f"{option} {name}: that is a URL ({kind}:), but longgen writes files",
                         expected="the name of a file or a folder", hint="give a name without "
                         f"'{kind}:', or ./{name.replace('/', '-')} for a file of that name")  # fmt: skip


def error_line(stderr: bytes, status: int = 0) -> str:
    """The last informative line of ffmpeg's stderr, without memory addresses; or its exit status, if not 0 and there is none."""
    message = f"ffmpeg crashed with signal {-status}" if status < 0 else f"ffmpeg ended with status {status}" if status else ""
    for line in stderr.decode(errors="replace").splitlines() if status >= 0 else ():
        line = re.sub(r"^(\[[^\]]* @ 0x[0-9a-f]+\] ?)+", "", line).strip()
        if line and not re.match(r"Error opening (in|out)put file|Conversion failed|frame=|Press \[q\]", line):
            message = line
    return "".join(character if character.isprintable() else " " for character in message)[:200]
