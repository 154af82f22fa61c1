"""Processes of the command line, as children of one that has imported torch and diffusers, which is six seconds of seven of a run.

A test that kills a process, or takes its disk away, needs a real one; how one starts from nothing is tested in tests/test_cli.py,
and how one that starts ranks does in tests/test_launch.py.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parent.parent
MOST = 2**18  # bytes of a request
CLI = "from longgen.cli import main; main()"
_RANKS = "import tests.warm; tests.warm.start_ranks_warm(); "  # what is started by torch's agent is warm too
LAUNCHER, TORCHRUN = f"{_RANKS}{CLI}", f"{_RANKS}from torch.distributed.run import main; main()"
_PR_SET_CHILD_SUBREAPER = 36  # of Linux: a process becomes the parent of its children's orphans


class Process:
    """The part of `subprocess.Popen` that tests use, with text in `stdout` and `stderr`."""

    def __init__(
        self, folder: Path, arguments: Sequence[str], code: str = CLI, environment: Mapping[str, str] = os.environ
    ) -> None:
        """`python -c CODE ARGUMENTS` in `folder`, which heeds SIGINT and SIGHUP even where this suite is a background job."""
        (out, out_end), (err, err_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
        request = {"folder": str(folder), "argv": ["-c", *arguments], "code": code, "environment": dict(environment)}
        socket.send_fds(_server(), [json.dumps(request).encode()], [out_end, err_end, status_end])
        for end in (out_end, err_end, status_end):
            os.close(end)
        self.stdout, self.stderr, self._status = (os.fdopen(end, encoding="utf-8") for end in (out, err, status))
        self.pid, self.returncode = int(self._status.readline()), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            reader = threading.Thread(target=self._read_status, daemon=True)
            reader.start()
            reader.join(timeout)
            if self.returncode is None:
                raise subprocess.TimeoutExpired("longgen", timeout or 0)
        return self.returncode

    def _read_status(self) -> None:
        self.returncode = int(self._status.readline())

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = {"stdout": "", "stderr": ""}

        def read(name: str, stream: IO[str]) -> None:
            texts[name] = stream.read()

        readers = [threading.Thread(target=read, args=(name, getattr(self, name)), daemon=True) for name in texts]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("longgen", timeout or 0)
        self.wait(timeout)
        self.close()
        return texts["stdout"], texts["stderr"]

    def close(self) -> None:
        for stream in (self.stdout, self.stderr, self._status):
            stream.close()


def run(folder: Path, arguments: Sequence[str], code: str = CLI, **environment: str) -> subprocess.CompletedProcess[str]:
    """A `Process` to its end. environment: variables beside those of this process."""
    process = Process(folder, arguments, code, os.environ | environment)
    out, err = process.communicate(timeout=600)
    assert process.returncode is not None
    return subprocess.CompletedProcess([*arguments], process.returncode, out, err)


def _channel() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)
    return ends


@functools.cache
def _server() -> socket.socket:
    mine, theirs = _channel()
    command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    theirs.close()
    atexit.register(lambda: (mine.close(), server.wait()))
    return mine


def _serve(channel: socket.socket) -> dict[str, Any]:
    """Returns a request in the child that is to answer it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for watchers
    while True:
        message, ends, _, _ = socket.recv_fds(channel, MOST, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            (out, err, status), request, between = ends, json.loads(message), os.getpid()
            if (pid := os.fork()) == 0:
                while request.get("orphan") and os.getppid() == between:  # whose end is not that of the parent
                    time.sleep(0.001)
                for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
                    signal.signal(number, handler)
                os.close(status)
                os.dup2(out, 1)
                os.dup2(err, 2)
                sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # those of before had another file
                sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
                return request
            os.close(out)
            os.close(err)
            os.write(status, f"{pid}\n".encode())
            if request.get("orphan"):
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, f"{code}\n".encode())
            os._exit(0)
        for end in ends:
            os.close(end)


class _OfAgent(subprocess.Popen[Any]):
    """`python ARGUMENTS` as torch's agent starts a rank: forked by a process that is warm, and a child of this one all the same."""

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(super()._execute_child).bind(*given).arguments
        assert asked["args"][0] == sys.executable
        assert asked["c2pwrite"] == asked["errwrite"] == -1, "the streams are those of this process"
        request = {"folder": os.getcwd(), "argv": asked["args"], "environment": asked["env"], "code": _AS_PYTHON, "orphan": True,
                   "session": asked["start_new_session"]}  # fmt: skip
        status, status_end = os.pipe()
        socket.send_fds(_zygote(), [json.dumps(request).encode()], [1, 2, status_end])
        os.close(status_end)
        with os.fdopen(status, encoding="utf-8") as stream:
            self.pid = int(stream.readline())
        while _parent(self.pid) != os.getpid():
            time.sleep(0.001)
        self._child_created = True


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


_AS_PYTHON = "import tests.warm; tests.warm.as_python()"


def as_python() -> None:
    """What `python [-u] [-m] NAME ARGUMENTS` does, by `sys.argv`."""
    _, *words = sys.argv
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    if "RANK" in os.environ:
        Path("/proc/self/comm").write_text(f"rank {os.environ['RANK']}")  # /proc/self/environ is that of the first parent
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def start_ranks_warm() -> None:
    """From now on torch's agent in this process starts Python as `_OfAgent` does."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _zygote()
    subprocess_handler.Popen = _OfAgent


@functools.cache
def _zygote() -> socket.socket:
    """Forked before this process has handlers and threads of an agent."""
    mine, theirs = _channel()
    if os.fork() == 0:
        mine.close()
        _answer(_serve(theirs))
    theirs.close()
    return mine


def main() -> None:
    import diffusers
    import torch.distributed.launcher.api as launcher
    import transformers

    from longgen import cli, run
    from longgen.backbones.registry import SPECS, adapter_of
    from longgen.pipelines import loading

    imported = (diffusers.WanPipeline, diffusers.AutoencoderKLWan, transformers.UMT5EncoderModel, transformers.AutoTokenizer, cli,
                run, launcher, loading, adapter_of(SPECS["tiny"]), adapter_of(SPECS["tiny-causal"]))  # fmt: skip
    assert all(imported)
    gc.freeze()  # what is here already is not looked through again, which would copy its pages
    _answer(_serve(socket.socket(fileno=int(sys.argv[1]))))


def _answer(request: dict[str, Any]) -> NoReturn:
    if request.get("session"):
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["argv"]
    code: object = None
    try:
        exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)  # Python would first take apart all that was imported


if __name__ == "__main__":
    main()
