"""What `longgen doctor --gpu` found, as plain data: equality with the CPU, time relative to direct sampling, memory, and estimates.

A report is a file that grows: each measurement is added when it is done, and a later run adds what is missing. Its identity is the
device, the libraries and what was run: measurements of others are not mixed with it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longgen import disk, html
from longgen.bench.record import DIRECT, StepTiming, rounded
from longgen.bench.steps import STOCK
from longgen.errors import LonggenError, UsageError
from longgen.terminal import MISSING, tables
from longgen.units import human_bytes

SCHEMA = 1
FILES = ("gpu.json", "gpu.html")
TARGETS = {  # time relative to direct sampling, of 321 frames of TARGETS_OF on a GPU
    "sliding-window": 0.42, "freenoise": 0.60, "freeloc": 0.80, "freelong": 0.90, "freespec": 0.90, "freepca": 1.25,
    "longdiff": 1.7,
}  # fmt: skip
TARGETS_OF = ("wan2.1-1.3b", 321)
COLUMNS = 80  # of the report as text
TOLERANCE = 1e-3  # relative error in float32 that is rounding, after a few steps of a random network


@dataclass
class Check:
    """A preset on a small `backbone`: relative error of the device's latents to the CPU's, in float32 and in `dtype`."""

    backbone: str
    error: float | None = None
    error_in_dtype: float | None = None
    dtype: str = "fp32"
    seconds: float = 0.0
    failure: str | None = None

    @property
    def equal(self) -> bool:
        return self.failure is None and self.error is not None and self.error <= TOLERANCE


@dataclass
class Timing:
    """A preset at full size on `backbone`. floor: its arithmetic relative to direct sampling. estimates: of a run's seconds, as
    counted for the card, and of the peak of memory in bytes, as `longgen plan` says; None where there is none."""

    backbone: str
    steps: list[StepTiming] = field(default_factory=list)
    floor: float | None = None
    estimated_seconds: float | None = None
    estimated_bytes: int | None = None
    failure: str | None = None

    @property
    def complete(self) -> bool:
        return self.failure is None and bool(self.steps) and all(step.seconds for step in self.steps)

    @property
    def rounds(self) -> int:
        """How often every type of step was measured."""
        return min((len(step.seconds) for step in self.steps), default=0)

    @property
    def run_seconds(self) -> float | None:
        """Sampling time of a whole run: the median of each step type times its count."""
        return sum(step.median * step.count for step in self.steps) if self.complete else None

    @property
    def peak_bytes(self) -> int | None:
        return max((step.peak_bytes for step in self.steps if step.peak_bytes is not None), default=None)


@dataclass
class DeviceReport:
    """settings: what is run. card: measured rates of the device. unsupported: preset -> why no backbone here runs it.

    stopped: why presets are missing, where the run ended before them.
    """

    version: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    card: dict[str, float] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("version", "device", "versions", "settings")}

    @property
    def targets_apply(self) -> bool:
        """Whether what was run is what TARGETS are for."""
        return (self.settings["backbone"], self.settings["frames"]) == TARGETS_OF and not self.device.startswith("cpu")

    def ratio(self, name: str) -> float | None:
        """Time of a run relative to direct sampling on the same backbone."""
        timing, direct = self.timings.get(name), self.timings.get(DIRECT)
        if timing is None or direct is None or timing.backbone != direct.backbone:
            return None
        seconds, whole = timing.run_seconds, direct.run_seconds
        return None if seconds is None or not whole else seconds / whole

    def met(self, name: str) -> bool | None:
        """Whether the target of preset `name` is met; None where it has none or it is not for this run, or nothing was measured."""
        ratio = self.ratio(name)
        return None if ratio is None or name not in TARGETS or not self.targets_apply else ratio <= TARGETS[name]

    def is_measured(self, name: str) -> bool:
        """Whether full size was measured, or failed."""
        return name in self.timings and (self.timings[name].complete or self.timings[name].failure is not None)

    def estimate_error(self, name: str) -> float | None:
        """By how much the estimated seconds of a run are off: 0.2 is 20 per cent too long."""
        timing = self.timings[name]
        return relative(timing.estimated_seconds, timing.run_seconds)

    def memory_error(self, name: str) -> float | None:
        timing = self.timings[name]
        return relative(timing.estimated_bytes, timing.peak_bytes)

    @property
    def failures(self) -> dict[str, str]:
        """What failed or differs from the CPU, by preset."""
        faults: dict[str, list[str]] = {}
        for name, check in self.checks.items():
            if check.failure is not None:
                faults.setdefault(name, []).append(f"check: {check.failure}")
            elif not check.equal:
                faults.setdefault(name, []).append(
                    f"differs from the CPU by {check.error or 0:.1e} in float32, more than {TOLERANCE:g}"
                )
        for name, timing in self.timings.items():
            if timing.failure:
                faults.setdefault(name, []).append(f"full size: {timing.failure}")
        return {name: "; ".join(words) for name, words in faults.items()}

    def summary(self) -> list[str]:
        """The findings in a few sentences."""
        equal = sum(check.equal for check in self.checks.values())
        lines = ["A rehearsal: the device is the CPU itself."] if self.device.startswith("cpu") else []
        lines += [f"{equal} of {len(self.checks)} presets equal the CPU within {TOLERANCE:g} on small shapes, in float32."]
        measured = [name for name, timing in self.timings.items() if timing.complete]
        lines.append(f"{len(measured)} of {len(self.timings)} were measured at full size.")
        judged = {name: self.met(name) for name in TARGETS if self.met(name) is not None}
        if judged:
            lines.append(f"{sum(map(bool, judged.values()))} of {len(judged)} targets of time relative to direct sampling are met.")
        stock, direct = (self.timings.get(name) for name in (STOCK, DIRECT))
        if stock and direct and stock.run_seconds and direct.run_seconds:
            lines.append(f"Direct sampling takes {direct.run_seconds / stock.run_seconds:.3f} times the stock pipeline's time.")
        for what, error_of in (("time", self.estimate_error), ("memory", self.memory_error)):
            errors = sorted(abs(error) for name in measured if (error := error_of(name)) is not None)
            if errors:
                lines.append(
                    f"The estimate of {what} was off by {errors[len(errors) // 2]:.0%} (median), {errors[-1]:.0%} at most."
                )
        if self.stopped:
            lines.append(f"Stopped: {self.stopped}.")
        return lines

    def text(self, width: int = COLUMNS) -> str:
        """The summary, a table, and what failed, at most 80 columns wide."""
        columns = min(width, COLUMNS)
        lines = [line for sentence in self.summary() for line in textwrap.wrap(sentence, columns)]
        rows = [("preset", "x direct", "target", "floor", "estimate", "peak", "estimate", "CPU")]
        for row in self.rows():
            peak, check = row["peak_memory_bytes"], self.checks.get(row["preset"])
            rows.append((
                row["preset"][:20],
                _number(row["ratio_to_direct"]) + {True: " ok", False: "  !", None: "   "}[row["target_met"]],
                _number(row["target"]),
                _number(row["floor"]),
                _percent(row["estimate_error"]),
                MISSING if peak is None else human_bytes(peak),
                _percent(row["memory_estimate_error"]),
                MISSING if check is None else "equal" if check.equal else "failed" if check.failure else "differs",
            ))  # fmt: skip
        lines += ["", *tables(rows, columns), ""]
        for name, fault in self.failures.items():
            lines += textwrap.wrap(f"{name}: {fault}", columns, subsequent_indent="  ")
        legend = "x direct: time of a run relative to direct sampling. estimate: how much that of time and of memory was off."
        return "\n".join([*lines, *textwrap.wrap(legend, columns)])

    def rows(self) -> list[dict[str, Any]]:
        """One row a preset, measured or not, with what follows from the measurements."""
        rows = []
        for name in dict.fromkeys((*self.timings, *self.checks)):
            timing, check = self.timings.get(name), self.checks.get(name)
            rows.append({
                "preset": name,
                "backbone": timing.backbone if timing else check.backbone if check else None,
                "ratio_to_direct": rounded(self.ratio(name)),
                "target": TARGETS.get(name),
                "target_met": self.met(name),
                "floor": rounded(timing.floor) if timing else None,
                "run_seconds": rounded(timing.run_seconds, 3) if timing else None,
                "estimate_error": rounded(self.estimate_error(name)) if timing else None,
                "peak_memory_bytes": timing.peak_bytes if timing else None,
                "memory_estimate_error": rounded(self.memory_error(name)) if timing else None,
                "equals_cpu": check.equal if check else None,
                "failure": self.failures.get(name),
            })  # fmt: skip
        return rows

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **self.identity,
            "card": self.card,
            "seconds": round(self.seconds, 1),
            "stopped": self.stopped,
            "summary": self.summary(),
            "presets": self.rows(),
            "unsupported": self.unsupported,
            "checks": {name: asdict(check) | {"error": _finite(check.error), "error_in_dtype": _finite(check.error_in_dtype)}
                       for name, check in self.checks.items()},
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Writes the JSON and the page into `folder`."""
        disk.make_folder(folder)
        disk.save_record(folder / FILES[0], self.as_dict())
        template = Path(__file__).with_name("device_page.html.j2")
        disk.save_text(folder / FILES[1], html.render(template, report=self, tolerance=TOLERANCE))


def relative(estimate: float | None, measured: float | None) -> float | None:
    """(estimate - measured) / measured."""
    return None if estimate is None or not measured else (estimate - measured) / measured


def resume(folder: Path, new: DeviceReport) -> DeviceReport:
    """The report in `folder` where it is of the same device and run, else `new`. Raises UsageError for one of another."""
    path = folder / FILES[0]
    if not path.is_file():
        return new
    stored = disk.load_record(path)
    try:
        if stored["schema"] != SCHEMA:
            raise ValueError(f"it has schema {stored['schema']}, not {SCHEMA}")
        checks = {name: Check(**check) for name, check in stored["checks"].items()}
        timings = {name: _timing(timing) for name, timing in stored["timings"].items()}
        report = DeviceReport(
            stored["version"], stored["device"], stored["versions"], stored["settings"], stored["card"], checks, timings,
            stored["unsupported"], float(stored["seconds"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LonggenError(f"{path} is damaged: {error}", expected="the file as longgen wrote it",
                           hint="--overwrite starts again") from None  # fmt: skip
    for name, value in new.identity.items():
        if (theirs := report.identity[name]) != value:
            raise UsageError(f"{path} has measurements of another run: {name}: {_difference(theirs, value)}",
                             expected="the same device, libraries and settings",
                             hint="--overwrite starts again; or give another --output")  # fmt: skip
    for check in report.checks.values():
        check.error = math.inf if check.error is None and check.failure is None else check.error
    return report


def _timing(stored: Mapping[str, Any]) -> Timing:
    return Timing(**{**stored, "steps": [StepTiming(**step) for step in stored["steps"]]})


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        key = next(key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key))
        return f"{key} is {theirs.get(key)} there and {ours.get(key)} here"
    return f"{theirs} there and {ours} here"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{share:+.0%}"


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return None if number is None or not math.isfinite(number) else number
