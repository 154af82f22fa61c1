"""A benchmark as plain data: what was measured of each preset, against direct sampling and against its arithmetic."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
DIRECT = "direct"


@dataclass
class Timed:
    """A kind of step. count: how many a run has. seconds: of each that was measured. peak_bytes: the most in one."""

    name: str
    count: float
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        return {
            "in_a_run": round(self.count, 3),
            "median": round(self.median, 5),
            "least": round(min(self.seconds), 5),
            "most": round(max(self.seconds), 5),
            "measured": len(self.seconds),
            "peak_memory_bytes": self.peak_bytes,
        }


@dataclass
class Row:
    """A preset. floor: its arithmetic against direct sampling's, by its plan; None for the stock pipeline. error: why not."""

    preset: str
    kinds: list[Timed] = field(default_factory=list)
    floor: float | None = None
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every kind was measured."""
        return bool(self.kinds) and all(kind.seconds for kind in self.kinds) and self.error is None

    @property
    def run_seconds(self) -> float:
        """Sampling of a whole run: each kind's median times the steps that are of it."""
        return sum(kind.median * kind.count for kind in self.kinds)

    @property
    def peak_bytes(self) -> int | None:
        return max((kind.peak_bytes for kind in self.kinds if kind.peak_bytes is not None), default=None)


@dataclass
class Bench:
    """A benchmark. model: the backbone's name, or the shape's. settings: what was run. weights_bytes: of the transformers.

    stopped: what cut it short.
    """

    model: str
    shape: bool
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row]
    weights_bytes: int = 0
    stopped: KeyboardInterrupt | None = None

    @property
    def direct(self) -> Row | None:
        """The yardstick, where it is measured."""
        return next((row for row in self.rows if row.preset == DIRECT and row.complete), None)

    def time_ratio(self, row: Row) -> float | None:
        """The time of a run against direct sampling's."""
        return None if self.direct is None else row.run_seconds / self.direct.run_seconds

    def floor_ratio(self, row: Row) -> float | None:
        """How much longer a run takes than its arithmetic says, direct sampling being 1."""
        ratio = self.time_ratio(row)
        return None if ratio is None or row.floor is None else ratio / row.floor

    def memory_ratio(self, row: Row) -> float | None:
        """The peak of memory, weights included, against direct sampling's."""
        if self.direct is None or self.direct.peak_bytes is None or row.peak_bytes is None:
            return None
        return row.peak_bytes / self.direct.peak_bytes

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "shape" if self.shape else "backbone": self.model,
            "device": self.device,
            "versions": self.versions,
            "settings": self.settings,
            "weights_bytes": self.weights_bytes,
            "stopped": self.stopped is not None,
            "presets": [self._row(row) for row in self.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        if not row.complete:
            return {"preset": row.preset, "error": row.error or "not measured"}
        return {
            "preset": row.preset,
            "ratio_to_direct": _rounded(self.time_ratio(row)),
            "floor": _rounded(row.floor),
            "ratio_to_floor": _rounded(self.floor_ratio(row)),
            "run_seconds": round(row.run_seconds, 3),
            "seconds_per_step": {kind.name: round(kind.median, 5) for kind in row.kinds},
            "steps": {kind.name: kind.as_dict() for kind in row.kinds},
            "peak_memory_bytes": row.peak_bytes,
            "memory_ratio_to_direct": _rounded(self.memory_ratio(row)),
        }


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)
