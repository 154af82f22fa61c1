"""What one transformer layer does in one step: frame plans of its branches, and the fusion of their outputs."""

from __future__ import annotations

from dataclasses import dataclass

from longgen.frameplan import FramePlan
from longgen.technique import Fusion, HeadTechnique


@dataclass(frozen=True, eq=False)
class Program:
    """What a layer does in a step: named branches, and the fusion of their outputs (None with a single branch).

    heads: the technique whose groups of heads are the branches, None where every branch is of all heads.
    """

    branches: dict[str, FramePlan]
    fusion: Fusion | None = None
    heads: HeadTechnique | None = None

    @property
    def density(self) -> float:
        """Attention computed, as a share of direct attention; above 1 with several branches of all heads, else at most."""
        return self._total({name: plan.density for name, plan in self.branches.items()})

    def density_at(self, tokens: int) -> float:
        """`density` at `tokens` a frame."""
        return self._total({name: plan.density_at(tokens) for name, plan in self.branches.items()})

    def _total(self, by_branch: dict[str, float]) -> float:
        return self.heads.most(by_branch) if self.heads else sum(by_branch.values())

    @property
    def spared(self) -> float:
        """Of `density`, what the fusion leaves out on the mean over its steps, as their timesteps decide."""
        return sum((1 - self.fusion.share(name)) * plan.density for name, plan in self.branches.items()) if self.fusion else 0.0
