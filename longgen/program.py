"""What one transformer layer does in one step: frame plans of its branches, and the fusion of their outputs."""

from __future__ import annotations

from dataclasses import dataclass

from longgen.frameplan import FramePlan
from longgen.technique import Fusion


@dataclass(frozen=True, eq=False)
class Program:
    """What a layer does in a step: named branches, and the fusion of their outputs (None with a single branch)."""

    branches: dict[str, FramePlan]
    fusion: Fusion | None = None

    @property
    def density(self) -> float:
        """Attention computed, as a share of direct attention; above 1 with several branches."""
        return sum(plan.density for plan in self.branches.values())

    def density_at(self, tokens: int) -> float:
        """`density` at `tokens` a frame."""
        return sum(plan.density_at(tokens) for plan in self.branches.values())

    @property
    def spared(self) -> float:
        """Of `density`, what the fusion leaves out on the mean over its steps, as their timesteps decide."""
        return sum((1 - self.fusion.share(name)) * plan.density for name, plan in self.branches.items()) if self.fusion else 0.0
