"""A pool of workers on a Ray cluster: tasks go to whichever is free, and one that fails is tried once more on another.

Without an address a cluster of this machine alone is started, on loopback, and stopped at the end. A worker that dies is replaced,
and counts as a failure of what it did. The driver holds one outcome at a time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longgen import __version__, disk
from longgen.backbones.spec import BackboneSpec
from longgen.cluster.worker import Outcome, Task, Worker
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.progress import Log, OnProgress, Phase, no_report

LOCAL = "local"  # in place of an address: a cluster of this machine alone
MARK = ".longgen-shared"  # a file in the folder of the videos, by which workers tell whether they see it
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's own name: at 0 a cluster stays on loopback
START_S = 120.0  # for a worker's process to come up


@dataclass(eq=False)
class _Member:
    """A worker, and the names of the tasks that it has failed."""

    number: int
    actor: Any
    about: dict[str, Any]
    failed: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"worker {self.number} on {self.about['host']}"


@dataclass(eq=False)
class Pool:
    """ray: the library. options: of an actor, for Ray. make: what starts a member of a number."""

    ray: Any
    options: dict[str, Any]
    arguments: tuple[str, str, int]
    members: list[_Member] = field(default_factory=list)
    started: int = 0

    def start(self, count: int, log: Log) -> None:
        """Starts `count` workers. Raises LonggenError where one does not come up, or has another longgen."""
        actors = [self._actor() for _ in range(count)]
        for number, actor in actors:
            self.members.append(self._member(number, actor))
            log(f"{self.members[-1]}, process {self.members[-1].about['pid']}")

    def _actor(self) -> tuple[int, Any]:
        self.started += 1
        return self.started, self.ray.remote(Worker).options(**self.options).remote(self.started, *self.arguments)

    def _member(self, number: int, actor: Any) -> _Member:
        try:
            about = self.ray.get(actor.about.remote(), timeout=START_S)
        except Exception as error:
            raise LonggenError(f"worker {number} did not start: {_reason(error)}", expected="longgen on every node of the cluster",
                               hint="look at ray status, and at the logs of Ray on that node") from None  # fmt: skip
        if about["longgen"] != __version__:
            raise UsageError(f"{about['host']} has longgen {about['longgen']}, and here it is {__version__}",
                             expected="one version on all nodes", hint="install the same there")  # fmt: skip
        return _Member(number, actor, about)

    def run(self, tasks: Sequence[Task], report: OnProgress = no_report, log: Log = no_report) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, as soon as it is settled."""
        waiting, running = deque(tasks), dict[Any, tuple[_Member, Task]]()
        tries = dict.fromkeys((task.name for task in tasks), 0)
        idle, done, cost_done, left = [*self.members], 0, 0.0, sum(task.cost for task in tasks)
        phase = Phase("videos", len(tasks), f"{len(self.members)} workers", report) if tasks else None
        while waiting or running:
            for member in [*idle]:
                fits = [task for task in waiting if task.name not in member.failed or len(self.members) == 1]
                if fits:
                    waiting.remove(fits[0])
                    idle.remove(member)
                    tries[fits[0].name] += 1
                    running[member.actor.make.remote(fits[0])] = member, fits[0]
            ready, _ = self.ray.wait([*running], num_returns=1)
            member, task = running.pop(ready[0])
            try:
                outcome = self.ray.get(ready[0])
            except self.ray.exceptions.RayTaskError as error:  # what it made could not be sent; the worker itself goes on
                outcome = Outcome(error=(f"{member} could not send this video: {_reason(error)}", "", "look at the logs of Ray", 1))
                idle.append(member)
            except self.ray.exceptions.RayError:  # of several kinds: died, ended by Ray for lack of memory, lost with its node
                outcome = Outcome(
                    error=(f"{member} died while it made this video", "", "look at its memory, and at the logs of Ray", 1)
                )
                self.members.remove(member)
                idle += self._replaced(member, log)
            else:
                idle.append(member)
            for line in outcome.log:
                log(f"{member}: {line}")
            del ready
            if outcome.error is not None:
                member.failed.add(task.name)
                if tries[task.name] == 1 and self.members:
                    log(f"{task.name}: {outcome.error[0]}; it is tried once more")
                    waiting.appendleft(task)
                    continue
                log(f"failed: {task.name}: {outcome.error[0]}")
            self._store(task, outcome)
            done, cost_done, left = done + 1, cost_done + task.cost, left - task.cost
            assert phase is not None
            phase.at(done, cost_done, left)
            yield task, outcome
            if not self.members and waiting:
                raise LonggenError("no worker is left", expected="a cluster on which workers stay alive",
                                   hint="the same command goes on with what is missing")  # fmt: skip

    def _replaced(self, lost: _Member, log: Log) -> list[_Member]:
        """A new worker in the place of `lost`, none where that fails."""
        log(f"{lost} died")
        try:
            member = self._member(*self._actor())
        except LonggenError as error:
            log(f"it was not replaced: {error.given}")
            return []
        self.members.append(member)
        log(f"{member} takes its place")
        return [member]

    def _store(self, task: Task, outcome: Outcome) -> None:
        """Writes what a worker sent that does not see the folder: the record of the run first, so that a video has one."""
        for name, content in sorted(outcome.files.items(), key=lambda item: item[0] == task.output.name):
            path = task.output.parent / name
            disk.make_folder(path.parent)
            disk.replace_file(path, functools.partial(_write, content))
        outcome.files = {}


def _reason(error: Exception) -> str:
    """The last line of an error of Ray, whose others are a traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def _write(content: bytes, partial: Path) -> None:
    partial.write_bytes(content)


@contextmanager
def pool(address: str, workers: int | None, spec: BackboneSpec, device: str, folder: Path, log: Log = no_report) -> Iterator[Pool]:
    """The pool of the cluster at `address`, or of this machine alone. workers: by default one a GPU, or as many as fit the cores.

    folder: of the videos. Raises MissingError without the library, UsageError and LonggenError.
    """
    ray = _library(local=address == LOCAL)
    threads = int(os.environ.get("OMP_NUM_THREADS") or spec.cpu_threads or 1)
    disk.make_folder(folder)
    mark, token = folder / f"{MARK}-{secrets.token_hex(4)}", secrets.token_hex(8)
    mark.write_text(token, encoding="utf-8")
    try:
        _connect(ray, address)
        resources = ray.cluster_resources()
        on_gpu = device.startswith("cuda")
        most = int(resources.get("GPU", 0)) if on_gpu else max(1, int(resources.get("CPU", 1)) // threads)
        if on_gpu and not most:
            raise UsageError("the cluster has no GPU that Ray knows of", expected="nodes started with --num-gpus, or --device cpu",
                             hint="ray status shows what it has")  # fmt: skip
        count = most if workers is None else workers
        if count > most and on_gpu:
            raise UsageError(f"--ray-workers {count}, and the cluster has {most} GPUs", expected=f"1 to {most}", hint="give fewer")
        options = {"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": min(threads, resources.get("CPU", 1) / count)}
        each = "a GPU" if on_gpu else f"{threads} thread{'s' * (threads != 1)}"
        log(f"{count} worker{'s' * (count != 1)}, {each} each")
        made = Pool(ray, options | {"max_restarts": 0}, (str(mark.absolute()), token, threads))
        made.start(count, log)
        if not all(member.about["sees_folder"] for member in made.members):
            log(f"note: not every worker sees {folder}: what they make is sent here, and a stopped video is not resumed")
        yield made
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()
        if ray.is_initialized():
            ray.shutdown()


def _library(local: bool) -> Any:
    if local:  # ray reads it as it is imported: without it 127.0.0.1 becomes this machine's address, and ports open beyond loopback
        if sys.modules.get("ray") is not None and os.environ.get(LOOPBACK) != "0":
            raise UsageError("ray was imported before its ports were kept to this machine", expected=f"{LOOPBACK}=0 before it",
                             hint="set it in the environment of the command")  # fmt: skip
        os.environ[LOOPBACK] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise MissingError("--ray needs the library ray, which is not installed", expected="pip install 'longgen[ray]'",
                           hint="install it, or leave --ray out; --shard I/N needs none") from None  # fmt: skip
    return ray


def _connect(ray: Any, address: str) -> None:
    local = address == LOCAL
    own = {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}  # "local": whatever RAY_ADDRESS names
    where = own if local else {"address": address}
    try:
        ray.init(log_to_driver=False, configure_logging=False, **where)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise LonggenError(f"--ray {address}: no cluster could be {'started' if local else 'reached'}: {reason}",
                           expected="--ray alone, for a cluster of this machine; or the address of one, as auto or 10.0.0.1:6379",
                           hint="ray status on the head node shows whether it runs") from None  # fmt: skip
