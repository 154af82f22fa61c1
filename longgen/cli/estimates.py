"""How long a run is likely to take, for `longgen generate --dry-run`: from earlier runs on this machine, else a card's rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longgen import cards, cost, timings
from longgen.backbones.settings import ModelSettings
from longgen.plan import Plan
from longgen.units import about_time, human_bytes


class Times:
    """Estimates of the plans of one command, each with its source."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.card = cards.card_here() if settings.device.startswith("cuda") else None
        self.of_plan: dict[Plan, timings.Estimate | None] = {}

    def line(self, plan: Plan) -> str:
        """The time of a video by `plan`, in words, and what it is from."""
        earlier, seconds = self._earlier(plan), self._seconds(plan)
        if seconds is None:
            return f"time estimate: none, for this machine has made no video of {plan.spec.name} with these settings yet"
        if earlier is None:
            assert self.card is not None
            return f"time estimate: about {about_time(seconds)} of sampling on {self.card.title}, by its rates; no earlier run here"
        kind = f"of {plan.preset.name}" if earlier.same_preset else "of other presets"
        parts = ", ".join(f"{phase} {about_time(value)}" for phase, value in earlier.seconds.items())
        peak = "" if earlier.memory_bytes is None else f"; their peak of memory: {human_bytes(earlier.memory_bytes)}"
        runs = f"{earlier.runs} earlier run{'s' * (earlier.runs != 1)}"
        return f"time estimate: about {about_time(seconds)} ({parts}), by {runs} {kind} on this machine{peak}"

    def whole(self, plans: Sequence[Plan]) -> str | None:
        """The time of videos by `plans`, one after the other on one loaded model; None where that of one is not known."""
        seconds = [self._seconds(plan) for plan in plans]
        if None in seconds:
            return None
        earlier = [self._earlier(plan) for plan in plans[1:]]
        loads = sum(each.seconds.get("load", 0.0) for each in earlier if each is not None)
        total = about_time(sum(value or 0.0 for value in seconds) - loads)
        return f"time estimate of all {len(plans)} videos: about {total}"

    def as_dict(self, plan: Plan) -> dict[str, Any]:
        """`line` as data, with the estimated peak of memory."""
        earlier, seconds = self._earlier(plan), self._seconds(plan)
        source = "earlier runs" if earlier is not None else None if self.card is None else f"rates of {self.card.name}"
        return {
            "seconds": None if seconds is None else round(seconds, 1),
            "by_phase": None if earlier is None else {phase: round(value, 1) for phase, value in earlier.seconds.items()},
            "source": None if seconds is None else source,
            "runs": 0 if earlier is None else earlier.runs,
            "memory_bytes": cost.memory_bytes(plan, self.settings.dtype, self.settings.offload)["peak"],
            "measured_memory_bytes": None if earlier is None else earlier.memory_bytes,
        }

    def _earlier(self, plan: Plan) -> timings.Estimate | None:
        if plan not in self.of_plan:
            self.of_plan[plan] = timings.estimate(plan, self.settings)
        return self.of_plan[plan]

    def _seconds(self, plan: Plan) -> float | None:
        if (earlier := self._earlier(plan)) is not None:
            return earlier.total_s
        return None if self.card is None or plan.spec.built_in else cost.seconds(plan, self.card, self.settings.dtype)
