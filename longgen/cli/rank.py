"""A process of the command line that is one of several ranks: only rank 0 speaks, and none outlives a signal for long."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from longgen.errors import LonggenError
from longgen.launch import SIGNALS, started
from longgen.ranks import STORE, Ranks, from_environment

GRACE_S = 15  # from a signal to the end of a rank that does not react
_PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when the one that started it dies


def enter() -> Ranks:
    """This process among its ranks, made ready: only rank 0 speaks, and none outlives a signal or the process that started it.

    Raises UsageError for an environment that says half of it.
    """
    here = from_environment()
    if here.size > 1:
        if not here.writes:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        if started() and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written at once, also while a collective keeps Python waiting
        threading.Thread(target=_end_after_signal, args=[reading], daemon=True).start()
    return here


def _end_after_signal(reading: int) -> None:
    codes = {getattr(signal, name): getattr(kind, "exit_code", 130) for name, kind in SIGNALS.items() if hasattr(signal, name)}
    while (code := codes.get(signal.Signals(os.read(reading, 1)[0]))) is None:
        pass
    time.sleep(GRACE_S)
    os._exit(code)


def leave_report(here: Ranks, error: LonggenError, exit_code: int, stopped: bool, lost: bool, video: dict[str, Any] | None) -> None:
    """Leaves the error that ends this rank for the process that started it. stopped: by a signal. lost: as another rank is gone."""
    facts = {"given": error.given, "expected": error.expected, "hint": error.hint, "everywhere": error.everywhere}
    report = facts | {"exit_code": exit_code, "stopped": stopped, "lost": lost, "video": video}
    with contextlib.suppress(OSError):
        Path(os.environ[STORE]).with_name(f"ended-{here.rank}.json").write_text(json.dumps(report), encoding="utf-8")


def leave(code: int) -> None:
    """Ends this rank, whose streams are flushed: libraries would wait for other ranks at its end, or complain of collectives."""
    distributed = sys.modules.get("torch.distributed")
    if code == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)
