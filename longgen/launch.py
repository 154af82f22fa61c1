"""Starts the ranks of one video on this machine, by the agent of torch.distributed.run, and says how they ended.

The agent runs in this process, which has no other work: it starts the ranks with the same arguments, watches them, hands signals
on, and ends all where one fails. What differs from torchrun:

    no open port     torchrun's store listens on all addresses; here the ranks find each other by a file, over loopback alone
    one message      a rank leaves the error that ends it in a file, and this process says the first one
    30 seconds       a rank that hangs in a collective sees no signal: a thread ends it some seconds later (`longgen.cli.rank`)

OMP_NUM_THREADS stays as it is, where torchrun would set 1: the sums of a rank are then those of one process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longgen.errors import HungUp, LonggenError, Terminated, UsageError, conflict
from longgen.ranks import STORE, Ranks

SIGNALS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": HungUp}
GOES_ON = "generate with --resume goes on from the last checkpoint, with another --gpus too"


class Ended(NamedTuple):
    """How ranks ended before the video was done. video: the one under way, as --json describes it."""

    error: BaseException
    video: dict[str, Any] | None


def started() -> bool:
    """Whether this process is a rank that `run` started, whose errors another process says."""
    return STORE in os.environ


def check_device(size: int, device: str) -> None:
    """Raises UsageError where `size` ranks cannot share `device`."""
    if size == 1 or device in ("cpu", "cuda"):
        return
    if device.startswith("cuda:"):
        raise conflict(f"--gpus {size}", f"--device {device}", "each rank takes the GPU of its number",
                       hint="leave --device out; CUDA_VISIBLE_DEVICES chooses GPUs")  # fmt: skip
    raise UsageError(f"--gpus {size} runs on GPUs of CUDA, or on a CPU, and the device is {device}", expected="cuda or cpu",
                     hint="leave --gpus out")  # fmt: skip


def check(size: int, device: str, arguments: Sequence[str]) -> None:
    """Raises UsageError where `run` cannot start `size` ranks on this machine."""
    if device == "cuda":
        import torch

        if size > (count := torch.cuda.device_count()):
            raise UsageError(f"--gpus {size}, and this machine has {count} GPU{'s' * (count != 1)}",
                             expected=f"--gpus 1 to {count}", hint="give fewer; torchrun spans machines")  # fmt: skip
    for argument in arguments:
        path = argument.rpartition("=")[2]
        if os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode):
            raise UsageError(f"{path} is a pipe, and with --gpus {size} it would be read by several processes",
                             expected="a file", hint="write it to a file first")  # fmt: skip


def run(size: int, arguments: Sequence[str]) -> Ended | None:
    """Runs `longgen ARGUMENTS` on `size` ranks until all have ended; None where the video is done. stdin and streams are theirs."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    caught = [name for name in SIGNALS if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
    logging.disable(logging.CRITICAL)  # the agent tells of each signal it sends
    with tempfile.TemporaryDirectory(prefix="longgen-ranks-", ignore_cleanup_errors=True) as folder:
        os.environ |= {STORE: os.path.join(folder, "store"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=size, run_id=f"longgen-{os.getpid()}", rdzv_backend="c10d",
            rdzv_endpoint=os.path.join(folder, "rendezvous"), rdzv_configs={"store_type": "file"}, local_addr="127.0.0.1",
            max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=folder), signals_to_handle=",".join(caught),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "longgen.cli", *arguments)
            return None
        except ChildFailedError as error:
            return _ended(size, {rank: failure.exitcode for rank, failure in error.failures.items()}, _reports(folder))
        except SignalException as error:
            for name in caught:
                signal.signal(getattr(signal, name), signal.SIG_IGN)  # the ranks have ended, and so does this process
            return Ended(SIGNALS[error.sigval.name](), _reports(folder).get(0, {}).get("video"))
        finally:
            logging.disable(logging.NOTSET)
            del os.environ[STORE]


def _ended(size: int, exit_codes: dict[int, int], reports: dict[int, dict[str, Any]]) -> Ended:
    """Which rank ended first, and why. exit_codes: of failed ranks, in the order in which that was seen; -9 of a killed one."""
    video = reports.get(0, {}).get("video")
    own = [rank for rank in sorted(reports) if not reports[rank]["lost"] and not reports[rank]["stopped"]]
    if own:
        report = reports[own[0]]
        where = "" if own[0] == 0 or report["everywhere"] else f"{Ranks(own[0], size)}: "
        error = LonggenError(where + report["given"], report["expected"], report["hint"])
        error.exit_code = report["exit_code"]
        return Ended(error, video)
    first = next((rank for rank, code in exit_codes.items() if code < 0), next(iter(exit_codes)))
    code = exit_codes[first]
    how = f"died (killed by {signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    memory = "SIGKILL may be for lack of host memory; " if code == -getattr(signal, "SIGKILL", 9) else ""
    return Ended(LonggenError(f"{Ranks(first, size)} {how}", "all ranks until the video is done", memory + GOES_ON), video)


def _reports(folder: str) -> dict[int, dict[str, Any]]:
    """What ranks left by `longgen.cli.rank.leave_report`, by their numbers."""
    found = {}
    for path in Path(folder).glob("ended-*.json"):
        with contextlib.suppress(OSError, ValueError):  # of a rank that was killed while it wrote
            found[int(path.stem.rpartition("-")[2])] = json.loads(path.read_text(encoding="utf-8"))
    return found
