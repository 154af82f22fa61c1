"""Counts what a process does to files, and lets something happen at the n-th: it dies, or the system refuses.

Seen: open for writing, rename, remove, mkdir, rmdir, fsync, truncate, the writing of tensors, and the start of another program.
"""

from __future__ import annotations

import builtins
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "open")


def watch(folder: Path, act: Callable[[int, str], None], write: Callable[[int], None] = lambda number: None) -> None:
    """Calls `act(number, name)` before each operation on files in `folder`, and once more after it, as the next number.

    write: called in the middle of the writing of a text or of tensors, when half of it is in the file. For a process of its own.
    """
    count = 0
    inside = f"{folder.resolve()}{os.sep}"

    def step(name: str) -> None:
        nonlocal count
        count += 1
        act(count, name)

    def ours(target: Any) -> bool:
        if isinstance(target, int):
            return True
        try:
            return f"{os.path.abspath(os.fspath(target))}{os.sep}".startswith(inside)
        except TypeError:
            return False

    def around(module: Any, name: str) -> None:
        plain = getattr(module, name)

        def seen(target: Any, *rest: Any, **named: Any) -> Any:
            mode = rest[0] if rest else named.get("flags", named.get("mode", "r"))
            reading = name == "open" and (mode == os.O_RDONLY if isinstance(mode, int) else not set(str(mode)) & set("wax+"))
            if reading or not ours(target):
                return plain(target, *rest, **named)
            step(f"before {name}")
            result = plain(target, *rest, **named)
            step(f"after {name}")
            return result

        setattr(module, name, seen)

    for name in NAMES:
        around(os, name)
    around(io, "open")
    builtins.open = io.open
    popen = subprocess.Popen

    class Popen(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *rest: Any, **named: Any) -> None:
            step("before a program")
            super().__init__(*rest, **named)
            step("after a program")

    subprocess.Popen = Popen  # type: ignore[misc]
    from longgen import checkpoint, disk

    save_file, write_text = checkpoint.save_file, disk._write_text

    def half(path: Path, whole: Callable[[], None]) -> None:
        nonlocal count
        whole()
        data = Path(path).read_bytes()
        count += 1
        with io.FileIO(str(path), "w") as file:
            file.write(data[: len(data) // 2])
        act(count, "half written")
        write(count)
        with io.FileIO(str(path), "w") as file:
            file.write(data)

    checkpoint.save_file = lambda tensors, path, metadata: half(path, lambda: save_file(tensors, path, metadata))
    disk._write_text = lambda path, text: half(path, lambda: write_text(path, text))
