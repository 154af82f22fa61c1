"""Processes of the command line, as children of one that has imported torch and diffusers, which is six seconds of seven of a run.

A test that kills a process, or takes its disk away, needs a real one; how one starts from nothing is tested in tests/test_cli.py.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
MOST = 2**18  # bytes of a request


class Process:
    """The part of `subprocess.Popen` that tests use, with text in `stdout` and `stderr`."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], code: str) -> None:
        """`python -c CODE ARGUMENTS` in `folder`."""
        (out, out_end), (err, err_end), (status, status_end) = os.pipe(), os.pipe(), os.pipe()
        request = {"folder": str(folder), "argv": ["-c", *arguments], "code": code, "environment": dict(os.environ)}
        socket.send_fds(_server(), [json.dumps(request).encode()], [out_end, err_end, status_end])
        for end in (out_end, err_end, status_end):
            os.close(end)
        self.stdout, self.stderr, self._status = (os.fdopen(end, encoding="utf-8") for end in (out, err, status))
        self.pid, self.returncode = int(self._status.readline()), None

    def send_signal(self, number: int) -> None:
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


@functools.cache
def _server() -> socket.socket:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (mine, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)
    command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    theirs.close()
    atexit.register(lambda: (mine.close(), server.wait()))
    return mine


def _serve(channel: socket.socket) -> dict[str, object]:
    """Returns a request in the child that is to answer it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for watchers
    while True:
        message, ends, _, _ = socket.recv_fds(channel, MOST, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            out, err, status = ends
            if (pid := os.fork()) == 0:
                os.close(status)
                os.dup2(out, 1)
                os.dup2(err, 2)
                sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # those of before had another file
                sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
                return json.loads(message)
            os.close(out)
            os.close(err)
            os.write(status, f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, f"{code}\n".encode())
            os._exit(0)
        for end in ends:
            os.close(end)


def main() -> None:
    import diffusers
    import transformers

    from longgen import run
    from longgen.backbones.registry import SPECS, adapter_of
    from longgen.pipelines import loading

    imported = (diffusers.WanPipeline, diffusers.AutoencoderKLWan, transformers.UMT5EncoderModel, transformers.AutoTokenizer, run,
                loading, adapter_of(SPECS["tiny"]), adapter_of(SPECS["tiny-causal"]))  # fmt: skip
    assert all(imported)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[arg-type]
    os.chdir(request["folder"])  # type: ignore[arg-type]
    sys.argv = request["argv"]  # type: ignore[assignment]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
