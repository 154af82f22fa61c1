"""Benchmark results as plain data: time and memory of each preset, relative to direct sampling and to its FLOPs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
DIRECT = "direct"


@dataclass
class StepTiming:
    """Timings of a step type. count: steps of it in a run. seconds: of each measured step. peak_bytes: the maximum.

    estimated: the seconds of such a step by `longgen.bench.count`, on a device whose rates are known.
    """

    name: str
    count: float
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    estimated: float | None = None

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
class PresetTiming:
    """A preset. floor: FLOPs of its plan relative to direct sampling; None for the stock pipeline. error: why it failed."""

    preset: str
    timings: list[StepTiming] = field(default_factory=list)
    floor: float | None = None
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every step type was measured."""
        return bool(self.timings) and all(timing.seconds for timing in self.timings) and self.error is None

    @property
    def run_seconds(self) -> float:
        """Sampling time of a whole run: the median of each step type times its count."""
        return sum(timing.median * timing.count for timing in self.timings)

    @property
    def estimated_seconds(self) -> float | None:
        """`run_seconds` as it was estimated before; None where the device's rates are unknown."""
        parts = [None if timing.estimated is None else timing.estimated * timing.count for timing in self.timings]
        return None if None in parts else sum(part for part in parts if part is not None)

    @property
    def estimate_error(self) -> float | None:
        """By how much the estimate was off, as a share of what was measured: above 0 where it was too long."""
        return None if self.estimated_seconds is None else self.estimated_seconds / self.run_seconds - 1

    @property
    def peak_bytes(self) -> int | None:
        return max((timing.peak_bytes for timing in self.timings if timing.peak_bytes is not None), default=None)


@dataclass
class Report:
    """A benchmark. model: name of the backbone or the synthetic shape. settings: what was run. stopped: what interrupted it.

    weights_bytes: of the transformers, where memory is measured.
    """

    model: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Any]
    shape: bool = False
    weights_bytes: int | None = None
    stopped: KeyboardInterrupt | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "shape" if self.shape else "backbone": self.model,
            **{name: getattr(self, name) for name in ("device", "versions", "settings")},
            **({} if self.weights_bytes is None else {"weights_bytes": self.weights_bytes}),
            "stopped": self.stopped is not None,
            "presets": [self._row(row) for row in self.rows],
        }

    def _row(self, row: Any) -> dict[str, Any]:
        return row.as_dict()


@dataclass
class BenchResult(Report):
    """Time and memory of presets. card: by whose rates times were estimated. no_estimate: why not, where its rates are known."""

    rows: list[PresetTiming]
    card: str | None = None
    no_estimate: str = ""

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | ({} if self.card is None else {"card": self.card})

    @property
    def direct(self) -> PresetTiming | None:
        """The baseline, if it was measured."""
        return next((row for row in self.rows if row.preset == DIRECT and row.complete), None)

    def time_ratio(self, row: PresetTiming) -> float | None:
        """Time of a run, relative to direct sampling."""
        return None if self.direct is None else row.run_seconds / self.direct.run_seconds

    def floor_ratio(self, row: PresetTiming) -> float | None:
        """How much longer a run takes than its FLOPs suggest; 1 for direct sampling."""
        ratio = self.time_ratio(row)
        return None if ratio is None or row.floor is None else ratio / row.floor

    def memory_ratio(self, row: PresetTiming) -> float | None:
        """Peak memory including weights, relative to direct sampling."""
        if self.direct is None or self.direct.peak_bytes is None or row.peak_bytes is None:
            return None
        return row.peak_bytes / self.direct.peak_bytes

    def _row(self, row: PresetTiming) -> dict[str, Any]:
        if not row.complete:
            return {"preset": row.preset, "error": row.error or "not measured"}
        return {
            "preset": row.preset,
            "ratio_to_direct": rounded(self.time_ratio(row)),
            "floor": rounded(row.floor),
            "ratio_to_floor": rounded(self.floor_ratio(row)),
            "run_seconds": round(row.run_seconds, 3),
            "seconds_per_step": {timing.name: round(timing.median, 5) for timing in row.timings},
            "steps": {timing.name: timing.as_dict() for timing in row.timings},
            "peak_memory_bytes": row.peak_bytes,
            "memory_ratio_to_direct": rounded(self.memory_ratio(row)),
            **self._estimate(row),
        }

    def _estimate(self, row: PresetTiming) -> dict[str, Any]:
        if self.card is None:
            return {}
        return {"estimated_run_seconds": rounded(row.estimated_seconds, 3), "estimate_error": rounded(row.estimate_error)}


@dataclass
class LengthsResult:
    """Benchmarks of the same presets at several lengths: by how many times the native length."""

    results: dict[int, BenchResult]

    def as_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "lengths": [{"times_native": times} | result.as_dict() for times, result in self.results.items()]}

    @property
    def rows(self) -> list[PresetTiming]:
        return [row for result in self.results.values() for row in result.rows]

    @property
    def stopped(self) -> KeyboardInterrupt | None:
        return next((result.stopped for result in self.results.values() if result.stopped is not None), None)


def rounded(number: float | None, digits: int = 4) -> float | None:
    return None if number is None else round(number, digits)
