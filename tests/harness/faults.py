"""The system refuses the n-th file operation, or every one from then on, or files beyond a size, also to ffmpeg."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.harness import operations
from tests.harness.stops import standing
from tests.harness.trial import KINDS, fresh, longgen, reference

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT, errno.EROFS, errno.EACCES)


def run(trials: int, seed: int, folder: Path) -> dict[str, int]:
    chance = random.Random(seed)
    kinds = chance.sample([*KINDS], 2) if trials < 20 else [*KINDS]
    whole = {kind: (reference(kind, 1, folder.parent), reference(kind, 2, folder.parent)) for kind in kinds}
    counts = {"trials": 0, "wrong": 0, "finished": 0, "refused": 0}
    for number in range(trials):
        place, kind, earlier = fresh(folder, number), chance.choice(kinds), chance.random() < 0.5
        old, new = whole[kind]
        if earlier:
            old.put(place)
        what, fault = chosen(chance, place)
        command = [*new.arguments, "-o", "a.mp4"]
        done = longgen(place, [*command, *(["--overwrite"] if earlier else [])], fault)
        counts["finished"] += done.code == 0
        counts["refused"] += done.code != 0
        reason = standing(place, old if earlier else None, new) or ("" if done.sentence else done.said)
        if not reason and done.code == 0 and not new.is_at(place):
            reason = f"exit code 0 without the video: {done.said}"
        again = longgen(place, [*command, "--resume"])
        if again.code == 2 and earlier and again.sentence:
            again = longgen(place, [*command, "--overwrite"])
        if not reason and (again.code != 0 or not again.sentence or not new.is_at(place)):
            reason = f"after it {again.code}: {again.said}"
        counts["trials"] += 1
        counts["wrong"] += bool(reason)
        if reason:
            print(f"faults: {what}, {kind}, {'with' if earlier else 'without'} an earlier video: {reason}", flush=True)
        else:
            shutil.rmtree(place)
    return counts


def chosen(chance: random.Random, place: Path) -> tuple[str, Callable[[], None]]:
    """A fault, in words and as what brings it about in the process that is to have it."""
    if chance.random() < 0.3:
        size = int(10 ** chance.uniform(2, 5.2))

        def limit() -> None:
            import resource
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return f"files of {size} bytes at most", limit
    at, code, lasting = chance.randint(1, 90), chance.choice(ERRORS), chance.random() < 0.4

    def act(now: int, name: str) -> None:
        due = now >= at if lasting else now == at
        if due and name.startswith(("before", "half")) and not name.endswith(("unlink", "remove", "rmdir")):
            raise OSError(code, os.strerror(code))

    return (f"{errno.errorcode[code]} {'from' if lasting else 'at'} operation {at}{' on' if lasting else ''}",
            lambda: operations.watch(place, act))  # fmt: skip
