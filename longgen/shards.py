"""Shares of a grid for job arrays: `--shard I/N` makes the I-th of N, and no job needs to know of another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from longgen.errors import UsageError, shown


@dataclass(frozen=True)
class Shard:
    """The part `number`, from 1 on, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """The name of its own folder."""
        return f"shard-{self.number}-of-{self.count}"

    def of(self, costs: Sequence[float]) -> list[int]:
        """The items of this part, in their order: each item goes to the part with the least cost so far, the costly ones first."""
        loads, own = [0.0] * self.count, []
        for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
            part = loads.index(min(loads))
            loads[part] += costs[index]
            if part == self.number - 1:
                own.append(index)
        return sorted(own)


def parse(text: str) -> Shard:
    """`2/8` as a Shard. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"--shard {shown(text)} is no share", expected="I/N, with I from 1 to N, as 1/8",
                         hint='in a SLURM array from 1 to 8: --shard "$SLURM_ARRAY_TASK_ID/8"')  # fmt: skip
    return Shard(number, count)
