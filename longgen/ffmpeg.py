"""The one place that calls ffmpeg. It is given files by absolute `file:` addresses, whatever they are called.

A name alone would not do: ffmpeg takes `12:30.mp4`, `http://...` and `concat:...` for protocols and `-x.mp4` for an option. Nor may
what is in a file send it elsewhere: a playlist that calls itself .mp4 would have it ask a server, or read the user's other files.
imageio-ffmpeg brings the program. Its own reader and writer are not used: they pass names on raw and ignore the exit status.
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

# containers that hold all that they need; ffmpeg's demuxers for others (hls, concat, dash, sdp, image2) open files that they name
FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif", "yuv4mpegpipe")
FORMAT_NAMES = "MP4/MOV, Matroska/WebM, AVI, MPEG, FLV, Ogg, ASF/WMV, GIF and Y4M"
# what a file that was cut off holds is read: frames that are not whole are left out, and an index is not looked for
AS_FAR_AS_IT_GOES = ("-fflags", "+discardcorrupt+ignidx")
ESCAPED = re.compile(r"[=;#\\\n]")  # in a file of metadata
PROTOCOLS = {
    "async", "bluray", "cache", "concat", "concatf", "crypto", "data", "dtls", "fd", "ffrtmpcrypt", "ffrtmphttp", "file",
    "ftp", "gopher", "gophers", "hls", "http", "httpproxy", "https", "icecast", "ipfs", "ipns", "md5", "mmsh", "mmst", "pipe",
    "prompeg", "rist", "rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtp", "rtsp", "s3", "gs", "sftp", "shared",
    "smb", "srt", "srtp", "subfile", "tcp", "tee", "tls", "udp", "udplite", "unix", "zmq",
}  # fmt: skip


def program() -> str:
    """Where the ffmpeg program is. Raises MissingError."""
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        found = get_ffmpeg_exe()
    except RuntimeError as error:
        raise _missing(str(error).splitlines()[0]) from None
    if shutil.which(found) is None:
        raise _missing(f"{found} is no program")
    return found


def _missing(reason: str) -> MissingError:
    return MissingError(f"ffmpeg is not there: {reason}", expected="the program that imageio-ffmpeg brings, or IMAGEIO_FFMPEG_EXE",
                        hint="pip install --force-reinstall imageio-ffmpeg; longgen doctor looks again")  # fmt: skip


def url(path: Path) -> str:
    """The address of the file `path`, read or written, which ffmpeg takes as it stands."""
    return f"file:{path.absolute()}"


def source(path: Path) -> list[str]:
    """The arguments that make the video `path` an input, and nothing but it."""
    return ["-protocol_whitelist", "file", "-format_whitelist", ",".join(FORMATS), *AS_FAR_AS_IT_GOES, "-i", url(path)]


def start(
    arguments: list[str],
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """A running ffmpeg. own_session: Ctrl-C in the terminal does not reach it. Raises MissingError, LonggenError."""
    # colours, and a report, would come between what it says and us
    environment = {name: value for name, value in os.environ.items() if name not in ("AV_LOG_FORCE_COLOR", "FFREPORT")}
    try:
        return subprocess.Popen([program(), "-hide_banner", *arguments], env=environment, stdin=stdin, stdout=stdout, stderr=stderr,
                                start_new_session=own_session)  # fmt: skip
    except (FileNotFoundError, PermissionError) as error:
        raise _missing(f"{error.filename or program()}: {error.strerror}") from None
    except OSError as error:
        raise LonggenError(f"ffmpeg could not be started: {error.strerror}", expected="room for one more process",
                           hint="close something, then the same command again") from None  # fmt: skip


def run(
    arguments: list[str], stderr: int | IO[bytes] = subprocess.PIPE, own_session: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """ffmpeg from beginning to end, with what it wrote to stdout, and to stderr unless that goes elsewhere."""
    with start(arguments, stdout=subprocess.PIPE, stderr=stderr, own_session=own_session) as process:
        out, said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def scratch() -> IO[bytes]:
    """A file for what ffmpeg says, gone when it is closed. Raises LonggenError."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise LonggenError(f"no temporary file could be made: {error.strerror}", expected="a folder for them with room",
                           hint="set TMPDIR, or close something") from None  # fmt: skip


def metadata_file(values: dict[str, str]) -> bytes:
    """The content of a file from which ffmpeg takes metadata, of any length: a command line holds 128 kB at most."""
    lines = [f"{name}={ESCAPED.sub(_escaped, value)}" for name, value in values.items()]
    return "\n".join([";FFMETADATA1", *lines, ""]).encode()


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def metadata(text: str, name: str) -> str:
    """The value of `name` in such a file, in which `= ; # \\` and newlines are escaped by a backslash."""
    value, characters = [], iter(text.partition(f"\n{name}=")[2])
    for character in characters:
        if character == "\n":
            break
        value.append(next(characters, "") if character == "\\" else character)
    return "".join(value)


def address(name: str) -> str | None:
    """What kind of address `name` is where it looks like none of a file: "http" of `http://host/x.mp4`, "file" of `file:x.mp4`.

    `12:30.mp4`, `scene 4: the end.mp4` and `C:/x.mp4` are names; so is what stands in a folder that is called like a protocol.
    """
    scheme, colon, rest = name.strip().partition(":")
    if not colon or len(scheme) < 2:
        return None
    if re.fullmatch(r"[a-zA-Z][\w+.-]*", scheme) and rest.startswith("//"):
        return scheme
    known = scheme.split(",")[0].lower() in PROTOCOLS and not rest.startswith(" ")
    path = re.fullmatch(r"[a-zA-Z][\w+.-]*", scheme) and rest.startswith("/")  # pathlib makes one slash of two
    return scheme if (known or path) and not os.path.exists(f"{scheme}:") else None


def check_output(name: str, option: str = "--output") -> None:
    """Raises UsageError where `name`, of a file or a folder to be written, is an address: longgen writes files."""
    kind = address(name)
    if kind is not None:
        raise UsageError(f"{option} {name}: that is a URL ({kind}:), and longgen writes files",
                         expected="the name of a file or a folder", hint="give a name without "
                         f"'{kind}:', or ./{name.replace('/', '-')} for a file that is called so")  # fmt: skip


def last_words(said: bytes, status: int = 0) -> str:
    """What ffmpeg said last that says anything, on one line, without its addresses in memory; or how it ended, if not well."""
    words = f"ffmpeg crashed with signal {-status}" if status < 0 else f"ffmpeg ended with status {status}" if status else ""
    for line in said.decode(errors="replace").splitlines() if status >= 0 else ():
        line = re.sub(r"^(\[[^\]]* @ 0x[0-9a-f]+\] ?)+", "", line).strip()
        if line and not re.match(r"Error opening (in|out)put file|Conversion failed|frame=|Press \[q\]", line):
            words = line
    return "".join(character if character.isprintable() else " " for character in words)[:200]
