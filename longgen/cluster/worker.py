"""One worker: a process on some machine of the cluster that keeps a model loaded and makes one task after the other."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longgen import __version__, run
from longgen.backbones.settings import ModelSettings
from longgen.errors import LonggenError
from longgen.plan import Plan


@dataclass(frozen=True)
class Task:
    """A video, and what makes it.

    work: a function of a module, called with the loaded model, `output` and a function for lines of a log; what it returns comes
    back as the outcome's `result`. It raises LonggenError.
    """

    name: str
    plan: Plan
    model_settings: ModelSettings
    output: Path
    work: Callable[[Any, Path, Callable[[str], None]], Any]
    cost: float = 1.0


@dataclass
class Outcome:
    """What became of a task. error: the facts of the error that ended it, and its exit code. files: those of a worker that does not
    see the folder, by their names beside the video.
    """

    result: Any = None
    error: tuple[str, str, str, int] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class Worker:
    """The Ray actor. mark: a file that the driver wrote; where it is not seen, results travel. threads: of a CPU."""

    def __init__(self, number: int, mark: str, token: str, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.number = number
        self.backbone: Any = None
        self.key: Any = None
        try:
            self.sees_folder = Path(mark).read_text(encoding="utf-8") == token
        except OSError:
            self.sees_folder = False

    def about(self) -> dict[str, Any]:
        return {"longgen": __version__, "host": platform.node(), "sees_folder": self.sees_folder, "pid": os.getpid()}

    def make(self, task: Task) -> Outcome:
        """Makes `task`; its own errors and a library's become the outcome's."""
        outcome = Outcome()
        try:
            if self.sees_folder:
                outcome.result = task.work(self._loaded(task, outcome), task.output, outcome.log.append)
            else:
                with tempfile.TemporaryDirectory(prefix="longgen-") as folder:
                    output = Path(folder) / task.output.name
                    outcome.result = task.work(self._loaded(task, outcome), output, outcome.log.append)
                    made = (path for path in Path(folder).rglob("*") if path.is_file())
                    outcome.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in made}
        except LonggenError as error:
            outcome.error = error.given, error.expected, error.hint, error.exit_code
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}", "", "", 1
        return outcome

    def _loaded(self, task: Task, outcome: Outcome) -> Any:
        key = task.plan.spec, task.model_settings
        if self.key != key:
            self.backbone = self.key = None  # freed before the next one is read
            self.backbone, _ = run.load(task.plan.spec, task.model_settings, plan=task.plan)
            self.key = key
            outcome.log += [f"note: {note}" for note in self.backbone.notes]
        return self.backbone
