"""The caches of rolling-sink, memrope and participative-compression: lists of slots, shifted and overwritten chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

Shown = int | str  # in a slot: a frame, or one of the means by its name
Seen = list[tuple[Shown, float]]  # what each slot holds, and its place
TOP = "top"  # a slot of chosen tokens
Means = dict[Shown, dict[int, float]]  # by its name, a mean's weights of rows


class RollingSink:
    """Slots have the times of the frames that they were made for; behind the last chunk others take their place."""

    means: ClassVar[Means] = {}

    def __init__(self, window: int, chunk: int) -> None:
        self.window, self.chunk = window, chunk
        there = list(range(window - chunk))
        self.sweep = there + there[::-1]
        self.slots: list[tuple[int, int]] = []  # frame, time

    def open(self, own: list[int], rows: dict[int, int]) -> Seen:
        past = [slot for slot in self.slots if slot[1] < own[0]]
        self.slots = past[max(0, len(past) - (self.window - len(own))) :]
        return [(frame, float(time)) for frame, time in [*self.slots, *zip(own, own, strict=True)]]

    def again(self, own: list[int]) -> Seen:
        """Of frames that run again in the slots that they have, or had when the last chunk saw them."""
        return [(frame, float(time)) for frame, time in self.slots if time < own[0]] + [(frame, float(frame)) for frame in own]

    def close(self, own: list[int]) -> None:
        """After the clean pass."""
        self.slots += zip(own, own, strict=True)
        if own[-1] + 1 > self.window:
            before = range(own[0] - self.chunk, own[0])
            self.slots = [(self.sweep[time % len(self.sweep)] if time in before else frame, time) for frame, time in self.slots]

    def forget(self, frames: list[int]) -> None:
        self.slots = [(self.sweep[time % len(self.sweep)] if frame in frames else frame, time) for frame, time in self.slots]


class MemRope:
    """Slots stand at 0, 1, 2, ...; two behind the sink become means when they are too many."""

    def __init__(self, window: int, sink: int, rates: dict[Shown, float]) -> None:
        self.window, self.sink, self.rates = window, sink, rates
        self.slots: list[Shown] = []
        self.means: Means = {}

    def open(self, own: list[int], rows: dict[int, int]) -> Seen:
        surplus = len(self.slots) + len(own) - self.window
        if surplus > 0:
            first = self.sink + 2
            leaving = [rows[frame] for frame in self.slots[first : first + surplus] if isinstance(frame, int)]
            self.slots = [*self.slots[: self.sink], *self.rates, *self.slots[first + surplus :]]
            mean = dict.fromkeys(leaving, 1 / len(leaving))
            old = self.means or dict.fromkeys(self.rates, mean)
            self.means = {
                name: {row: rate * mean.get(row, 0) + (1 - rate) * old[name].get(row, 0) for row in {**old[name], **mean}}
                for name, rate in self.rates.items()
            }
        return [(slot, float(place)) for place, slot in enumerate([*self.slots, *own])]

    def again(self, own: list[int]) -> Seen:
        return [(slot, float(place)) for place, slot in enumerate([*(slot for slot in self.slots if slot not in own), *own])]

    def close(self, own: list[int]) -> None:
        self.slots += own


@dataclass(frozen=True)
class Choice:
    """Which tokens stay: of those chosen before and of `leaving`, the most that `asking` look at. Frames with their rows."""

    leaving: dict[int, int]
    asking: dict[int, int]
    frames: int
    reuse: int


class Compression:
    """Slots stand at 0, 1, 2, ... once tokens were chosen; `TOP` is a slot of these."""

    means: ClassVar[Means] = {}

    def __init__(self, window: int, sink: int, top: int, recent: int, reuse: int) -> None:
        self.window, self.sink, self.top, self.recent, self.reuse = window, sink, top, recent, reuse
        self.slots: list[Shown] = []
        self.choice: Choice | None = None

    def open(self, own: list[int], rows: dict[int, int]) -> Seen:
        self.choice = None
        if len(self.slots) + len(own) > self.window:
            frames = [slot for slot in self.slots[self.sink :] if isinstance(slot, int)]
            stay = frames[len(frames) - (self.recent - len(own)) :]
            leaving = {frame: rows[frame] for frame in frames if frame not in stay}
            self.choice = Choice(leaving, {frame: rows[frame] for frame in stay}, self.top, self.reuse)
            self.slots = [*self.slots[: self.sink], *[TOP] * self.top, *stay]
        return [(slot, float(place)) for place, slot in enumerate([*self.slots, *own])]

    def again(self, own: list[int]) -> Seen:
        self.choice = None
        return [(slot, float(place)) for place, slot in enumerate([*(slot for slot in self.slots if slot not in own), *own])]

    def close(self, own: list[int]) -> None:
        self.slots += own


def memory_of(stack: list[dict[str, Any]], native: int, chunk: int) -> RollingSink | MemRope | Compression | None:
    for table in stack:
        if table["name"] == "rolling-sink":
            return RollingSink(table.get("frames", native), chunk)
        if table["name"] == "memrope":
            rates: dict[Shown, float] = {"long": table.get("long", 0.01), "short": table.get("short", 0.1)}
            return MemRope(table.get("frames", min(12, native)), table.get("sink", 3), rates)
        if table["name"] == "participative-compression":
            sizes = table.get("sink", 10), table.get("top", 2), table.get("recent", chunk + 1)
            return Compression(table.get("frames", native), *sizes, table.get("reuse", 7))
    return None
