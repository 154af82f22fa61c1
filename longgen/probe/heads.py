"""Groups of attention heads by what they see of a rollout's past, as `dummy-forcing` at its defaults would make them.

`dummy-forcing` measures heads itself, in one chunk of every run, and does not read a probe: this is for people to look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longgen.context.dummy_forcing import DummyForcing
from longgen.layers.probe_file import HeadGroup, HeadShares, HeadSpan, Probe, ProbeRun

LETTERS: dict[HeadGroup, str] = {"first": "F", "middle": "M", "dummy": "D"}
SPANS: tuple[HeadSpan, ...] = ("mean", "early")
TECHNIQUE = DummyForcing.model_validate({})


def group_heads(runs: Sequence[ProbeRun]) -> list[list[HeadShares]] | None:
    """By layer and head, of means over `runs`; None where these have read none."""
    by_run = [run.heads for run in runs if run.heads is not None]
    if not by_run:
        return None
    mean, early = (np.array([shares[span] for shares in by_run]) for span in SPANS)  # [runs, L, H, 3]
    groups = TECHNIQUE.assign(early.mean(axis=0))
    agreement = np.mean([TECHNIQUE.assign(alone) == groups for alone in early], axis=0)
    return [
        [
            HeadShares(first=first, middle=middle, current=current, group=group, agreement=alike)
            for (first, middle, current), group, alike in zip(*of_layer, strict=True)
        ]
        for of_layer in zip(mean.mean(axis=0).tolist(), groups.tolist(), agreement.tolist(), strict=True)
    ]


def meaning(probe: Probe) -> list[str]:
    """What the shares and letters of a probe that has heads are, in sentences."""
    assert probe.heads is not None
    agreement = 100 * np.mean([head.agreement for row in probe.heads for head in row])
    alike = f"One prompt and seed alone puts {agreement:.0f}% of heads in the same group. " if len(probe.runs) > 1 else ""
    return [
        "Shares: of attention on the first frame, on the current chunk, and on the middle between them, in the clean pass of each "
        "chunk; means over chunks and runs.",
        "Letters: dummy-forcing's groups at its defaults, by the chunk in which it measures, the one that reaches latent frame "
        f"{TECHNIQUE.measured_lat}. Of what all heads together see there of the first frame each head has a part, and of the "
        f"middle: D is the {100 * TECHNIQUE.dummy:.0f}% of heads where the larger part is least, F where that of the first frame "
        "is the larger, M where that of the middle is.",
        f"{alike}dummy-forcing measures heads anew in each run and does not read this.",
    ]
