"""The file of --log-file: what is said on stderr and milestones of progress, each line with its time and level.

Lines are appended and flushed at once, so that several processes, as the tasks of a job array, may share a file.
"""

from __future__ import annotations

import datetime
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longgen.errors import LonggenError, UsageError

OF_OTHER_FILES = {  # names that longgen writes or reads as something else
    ".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".json", ".jsonl", ".ndjson", ".csv", ".tsv",
    ".toml", ".npz", ".npy", ".html", ".safetensors", ".gguf", ".pt", ".bin", ".py", ".md",
}  # fmt: skip
LEVELS = {"longgen: ": logging.ERROR, "failed: ": logging.ERROR, "note: ": logging.WARNING}  # by how a message begins


class Line(logging.Formatter):
    """`2026-11-27T20:25:21.123+00:00 INFO sample 3/20, 1.2 s`, in local time."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


class LogFile(logging.Handler):
    """Appends to `path`, a system call a line. trouble: the error of the first line that could not be written; the work goes on
    without them. Raises OSError, ValueError where it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.trouble: LonggenError | None = None
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.setFormatter(Line("%(asctime)s %(levelname)s %(message)s"))
        self.logger = logging.Logger("longgen")  # of its own: libraries that set up logging have no say here
        self.logger.addHandler(self)

    def write(self, message: str) -> None:
        """Each line of `message` with the time and the level that its first words tell."""
        level = next((level for start, level in LEVELS.items() if message.startswith(start)), logging.INFO)
        for line in message.splitlines():
            self.logger.log(level, "%s", line.translate({code: f"\\x{code:02x}" for code in range(32) if code != 9}))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(self.descriptor, f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except OSError as error:
            if self.trouble is None:
                self.trouble = LonggenError(f"--log-file {self.path} could not be written: {error.strerror}",
                                            "a place with free space", "free some space, or give another name")  # fmt: skip

    def close(self) -> None:
        os.close(self.descriptor)
        super().close()


def opened(path: Path, parameters: Mapping[str, Any], first: str) -> LogFile:
    """The log file at `path`, with the line `first`. parameters: those of the command, whose files it may not be. Raises
    UsageError, LonggenError.
    """
    name, expected = f"--log-file {path}", "a text file of its own, as run.log"
    if path.suffix.lower() in OF_OTHER_FILES:
        raise UsageError(f"{name}: {path.suffix} is no name for a log", expected, "give it a name in .log")
    for other in _names(
        {key: value for key, value in parameters.items() if key not in ("log_file", "words", "prompt", "negative_prompt")}
    ):
        if os.path.abspath(other) == os.path.abspath(path) or _is_same(path, other):
            raise UsageError(f"{name} is a file that the command reads or writes", expected, "give another name")
    if path.is_dir():
        raise UsageError(f"{name} is a folder", expected, f"for example --log-file {path / 'run.log'}")
    try:
        if path.is_file():
            with path.open("rb") as file:
                if b"\0" in file.read(4096):
                    raise UsageError(f"{name} is there already, and is no text", expected, "give another name")
        log = LogFile(path)
    except (OSError, ValueError) as error:
        raise LonggenError(f"{name} cannot be written: {getattr(error, 'strerror', None) or error}",
                           expected="a file in a folder that is there, with write permission",
                           hint="create the folder, or give another name") from None  # fmt: skip
    log.write(first)
    if log.trouble is not None:
        log.close()
        raise log.trouble
    return log


def _names(parameters: Mapping[str, Any]) -> Iterator[str]:
    for value in parameters.values():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, str | Path):
                yield str(one)


def _is_same(path: Path, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


def command_line(context: Any) -> str:
    """The command as it was typed, to be copied; in a test that calls the app, its name."""
    return shlex.join(sys.argv[1:]) if os.path.basename(sys.argv[0]) in ("longgen", "__main__.py") else context.command_path
