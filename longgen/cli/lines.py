"""What `longgen generate` prints on stdout: a line for each video as soon as it is finished, its path or with --json an object.

In a terminal the path stands in a sentence of what the file is, which is on stderr where stdout goes elsewhere.
`longgen docs json-lines` prints the JSON Schema of the classes here.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from longgen.cli import viewing
from longgen.cli.app import about_video, note_in_log, print_line, say, unwritten
from longgen.closed import ClosedModel
from longgen.progress import clock_text
from longgen.run import Failure, Result
from longgen.run_record import DIALECT, without_titles
from longgen.rundir import Job, run_folder
from longgen.units import human_bytes

VERSION = 1  # of the lines


class ErrorFacts(ClosedModel):
    """An error: what is wrong, what is expected, what to do."""

    given: str
    expected: str
    hint: str


class Video(ClosedModel):
    """A video of the command. index: from 1, in the order of the prompts and seeds; of: their number."""

    status: str
    name: str
    output: Annotated[str, Field(description="the path of the video")]
    run: Annotated[str, Field(description="the folder of run.json, and of the checkpoint where there is one")]
    prompt: str
    preset: str
    backbone: str
    seed: int
    frames: int
    fps: int
    index: int
    of: int


class Made(Video):
    """A video that is complete; skipped: it was so before."""

    status: Literal["done", "skipped"]
    size: Annotated[tuple[int, int], Field(description="width and height in pixels")]
    duration_s: float
    bytes: Annotated[int, Field(description="of the file")]
    seconds: Annotated[dict[str, float], Field(description="by phase: load, sample, decode; 0 where an earlier run did it")]
    peak_memory_bytes: int
    notes: list[str]
    skipped: bool


class Unmade(Video):
    """A video that failed, or was under way when the command was stopped: --resume goes on with it."""

    status: Literal["failed", "stopped"]
    error: ErrorFacts
    exit_code: Annotated[int, Field(description="what the error alone ends a command with")]


class Ended(ClosedModel):
    """The error that the command ended with, where it is not that of the video in the line before; of every command."""

    error: ErrorFacts
    exit_code: Annotated[int, Field(description="the exit code of the command")]


class Planned(ClosedModel):
    """The only line of --dry-run: the plan of the first video, and what would be made."""

    model_config = ConfigDict(extra="allow")

    status: Literal["planned"]
    outputs: list[str]
    videos: list[dict[str, Any]]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    head = {"$schema": DIALECT, "$id": f"urn:longgen:json-lines:{VERSION}",
            "description": "A line of longgen generate --json."}  # fmt: skip
    return without_titles(head | TypeAdapter(Made | Unmade | Ended | Planned).json_schema())


def _json(line: Video) -> str:
    return json.dumps(line.model_dump())  # not pydantic's JSON, which takes no undecodable bytes of file names


def _bytes_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # moved away already
        return 0


def sentence(output: str, frames: int, fps: float, size: tuple[int, int], how: str) -> str:
    """`ball.mp4: 20.1 s (321 frames) at 96x64, 412 kB, made in 41.5 s`, of which the last part is `how`."""
    counted = f"{frames} frame{'s' * (frames != 1)}"
    return f"{output}: {clock_text(frames / fps)} ({counted}) at {size[0]}x{size[1]}, {human_bytes(_bytes_of(output))}, {how}"


class Lines:
    """The lines of `jobs`. `show` never raises: a stdout that is gone or full does not stop a batch; `finish` says so.

    quiet: no sentences, paths alone.
    """

    def __init__(self, jobs: Sequence[Job], as_json: bool, quiet: bool = False) -> None:
        self.jobs, self.as_json, self.quiet = jobs, as_json, quiet
        self.on_terminal = not as_json and not quiet and sys.stdout is not None and sys.stdout.isatty()
        self.last: str | None = None  # the sentence of a single video, which comes after the bars
        self.left = {str(job.output): index for index, job in enumerate(jobs)}
        self.made: list[str] = []
        self.lost: Exception | None = None  # what keeps lines from stdout

    def show(self, result: Result | Failure) -> None:
        """Prints the line of `result`, at once. Without --json a failure has none: stderr has it."""
        index = self.left.pop(result.output)
        facts = self._facts(index)
        if isinstance(result, Failure):
            error = ErrorFacts(given=result.error, expected=result.expected, hint=result.hint)
            if self.as_json:
                self._print(_json(Unmade(status="failed", **facts, error=error, exit_code=result.exit_code)), "")
            return
        size, count = self.jobs[index].plan.size, _bytes_of(result.output)
        line = Made(status="skipped" if result.skipped else "done", **facts, size=size, duration_s=result.frames / result.fps,
                    bytes=count, seconds=result.seconds, notes=[*result.notes], peak_memory_bytes=result.peak_memory_bytes,
                    skipped=result.skipped)  # fmt: skip
        self.made.append(result.output)
        if not result.skipped:
            note_in_log(f"done: {result.output}")
        how = "there already" if result.skipped else f"made in {clock_text(sum(result.seconds.values()))}"
        told = sentence(result.output, result.frames, result.fps, size, how)
        if not self.on_terminal:
            self._print(_json(line) if self.as_json else result.output, result.output)
            if not self.quiet and not result.skipped:
                say(told, logged=False)
        elif len(self.jobs) > 1:
            self._print(told, result.output)
        else:
            self.last = told

    def _print(self, line: str, output: str) -> None:
        """Prints `line` on stdout; if nobody reads that, `output` on stderr."""
        if self.lost is None:
            try:
                return print_line(line)
            except (OSError, ValueError) as error:
                self.lost = error
        if isinstance(self.lost, BrokenPipeError) and output:
            say(output)

    def _facts(self, index: int) -> dict[str, Any]:
        """What is known of a video before it is made."""
        job, plan = self.jobs[index], self.jobs[index].plan
        files = {"name": job.output.stem, "output": str(job.output), "run": str(run_folder(job.output))}
        what = {"prompt": job.prompt, "preset": plan.preset.name, "backbone": plan.spec.name, "seed": job.seed}
        return files | what | {"frames": plan.written_px, "fps": plan.fps, "index": index + 1, "of": len(self.jobs)}

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """An error or a signal inside is that of the first video without a line, and is its line."""
        try:
            yield
        except BaseException:
            if self.left:
                about_video(self._facts(min(self.left.values())))
            raise

    def finish(self) -> None:
        """Says how to look at the videos. Raises LonggenError where stdout could not take the lines."""
        if self.last is not None:
            self._print(self.last, self.made[0])
        if self.made and not self.quiet:
            paths = [Path(output) for output in self.made]
            if (command := viewing.command(paths[0] if len(paths) == 1 else paths[0].parent)) is not None:
                say(f"look: {command}")
        if self.lost is not None and not isinstance(self.lost, BrokenPipeError):  # a reader that is gone wants no more
            raise unwritten(self.lost, ", ".join(self.made))
