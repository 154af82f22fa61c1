"""What `longgen generate` prints on stdout: a line for each video as soon as it is finished, its path or with --json an object.

The objects are described by `longgen docs json-lines`, whose schema is made of the classes here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from longgen.cli.app import about_video, error_dict, note_in_log, print_line, say, unwritten
from longgen.errors import LonggenError

if TYPE_CHECKING:
    from longgen.run import Failure, Result
    from longgen.rundir import Job


class Lines:
    """The lines of `jobs`. `show` never raises: a stdout that is gone or full does not stop a batch; `finish` says so."""

    def __init__(self, jobs: Sequence[Job], as_json: bool) -> None:
        self.jobs, self.as_json = jobs, as_json
        self.left = {str(job.output): index for index, job in enumerate(jobs)}
        self.made: list[str] = []
        self.lost: Exception | None = None  # what keeps lines from stdout

    def show(self, result: Result | Failure) -> None:
        """Prints the line of `result`, at once. Without --json a failure has none: stderr has it."""
        index = self.left.pop(result.output)
        data = video_line(self.jobs[index], result) | self._place(index)
        if data["status"] != "failed":
            self.made.append(result.output)
            if data["status"] == "done":
                note_in_log(f"done: {result.output}")
        elif not self.as_json:
            return
        line = json.dumps(data) if self.as_json else result.output
        if self.lost is None:
            try:
                return print_line(line)
            except (OSError, ValueError) as error:
                self.lost = error
        if isinstance(self.lost, BrokenPipeError):
            say(result.output)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """An error or a signal inside is that of the first video without a line, and is its line."""
        try:
            yield
        except BaseException:
            if self.left:
                index = min(self.left.values())
                about_video(job_facts(self.jobs[index]) | self._place(index))
            raise

    def finish(self) -> None:
        """Raises LonggenError where stdout could not take the lines."""
        if self.lost is not None and not isinstance(self.lost, BrokenPipeError):  # a reader that is gone wants no more
            raise unwritten(self.lost, "\n".join(self.made))

    def _place(self, index: int) -> dict[str, Any]:
        return {"index": index + 1, "of": len(self.jobs)}


def job_facts(job: Job) -> dict[str, Any]:
    """What is known of a video before it is made."""
    from longgen.rundir import run_folder

    plan = job.plan
    files = {"name": job.output.stem, "output": str(job.output), "run": str(run_folder(job.output))}
    what = {"prompt": job.prompt, "preset": plan.preset.name, "backbone": plan.spec.name, "seed": job.seed}
    return files | what | {"frames": plan.written_px, "fps": plan.fps}


def video_line(job: Job, result: Result | Failure) -> dict[str, Any]:
    """The object of a video that is finished, was finished already, or failed."""
    from longgen.run import Failure

    if isinstance(result, Failure):
        error = error_dict(LonggenError(result.error, result.expected, result.hint))
        return {"status": "failed", **job_facts(job), "error": error, "exit_code": result.exit_code}
    more = {name: getattr(result, name) for name in ("seconds", "peak_memory_bytes", "notes", "skipped")}
    return {"status": "skipped" if result.skipped else "done", **job_facts(job), **more}
