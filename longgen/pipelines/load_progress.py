"""Progress of loading a model by bytes: files that are done, and in between what the system has read for this process.

Libraries read a component in one call, through memory-mapped files, and tell nothing of the way. Linux counts the bytes that a
process has had read from disk, page faults included; elsewhere, and where the files are in the page cache, a component is one step.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from longgen.backbones import hub
from longgen.progress import OnProgress, Phase

if TYPE_CHECKING:
    from typing_extensions import Self

EVERY_S = 0.5  # seconds between two reports
COUNTERS = Path("/proc/self/io")


def folder_of(source: str) -> Path | None:
    """The folder of the pipeline `source`: itself, or the local cache's of a hub id; None where it is not on this machine."""
    return Path(source) if Path(source).is_dir() else hub.cached_folder(source)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component that the libraries read: those of its index, else the one of the shortest name."""
    for index in sorted(folder.glob("*.safetensors.index.json"), key=lambda path: len(path.name)):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return []  # loading says what is wrong with it
        return [folder / name for name in sorted(names) if (folder / name).is_file()]
    return sorted(folder.glob("*.safetensors"), key=lambda path: len(path.name))[:1]


class LoadProgress:
    """Reports the load of `components` of the pipeline `source` to `report`, from a thread of its own as a context manager."""

    def __init__(
        self, source: str, components: Iterable[str], report: OnProgress, elsewhere: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """elsewhere: bytes of the components that are not in `source`."""
        folder = folder_of(source)
        sizes = {name: 0 if folder is None else sum(path.stat().st_size for path in weight_files(folder / name))
                 for name in components} | dict(elsewhere)  # fmt: skip
        total = sum(sizes.values())
        self.sizes = sizes if total else {}
        self.total, self.unit = (total, "bytes") if total else (1, "")  # not downloaded yet, or in files of another format
        self.finished, self.current, self.at_start, self.counted = 0, 0, _bytes_read(), 0
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.phase = Phase("load", self.total, "cpu", report, unit=self.unit)
        self.thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def done(self) -> int:
        return self.finished + min(self.current, max(self.counted, _bytes_read() - self.at_start))

    def start(self, component: str) -> None:
        with self.lock:
            self.current, self.at_start, self.counted = self.sizes.get(component, 0), _bytes_read(), 0

    def read(self, count: int) -> None:
        """`count` bytes of the component that was started have been read, by us and so known."""
        self.counted = count

    def finish(self) -> None:
        """The component that was started is where it belongs."""
        with self.lock:
            self.finished, self.current = self.finished + self.current, 0
            if self.finished < self.total:
                self.phase.at(self.finished)

    def _watch(self) -> None:
        last = 0
        while not self.stop.wait(EVERY_S):
            with self.lock:
                done = self.done
                if last < done < self.total:  # the end is reported where it is reached
                    last = done
                    self.phase.at(done)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        if error is None:
            self.phase.at(self.total)


def _bytes_read() -> int:
    """Bytes that this process has had read from disk, 0 where the system does not tell."""
    try:
        return next(int(line.split()[1]) for line in COUNTERS.read_text().splitlines() if line.startswith("read_bytes"))
    except (OSError, ValueError, StopIteration):
        return 0
