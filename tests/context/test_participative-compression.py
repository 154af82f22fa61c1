"""Participative compression: its slots chunk by chunk against the numbers of the code, its choice by token, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import describe, planner, preset, split
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.backbones.settings import ModelSettings
from longgen.context.participative_compression import ChosenTokens
from longgen.errors import UsageError
from longgen.frameplan import FramePlan
from longgen.memory import MemorySlot
from longgen.plan import Plan

B, N, H, D = 2, 5, 3, 4
SINK, TOP = (*range(10),), (MemorySlot(0), MemorySlot(1))
NAME = "participative-compression"


def made(frames_lat: int, *others: dict[str, Any], **parameters: Any) -> Plan:
    stack = [{"name": NAME} | parameters, *others]
    sample = {"frames": 4 * frames_lat - 3}
    return planner.build(preset.from_tables({"name": "s", "sample": sample, "technique": stack}, "s"), SELF_FORCING)


def seen(plan: Plan, start: int) -> FramePlan:
    programs, table = plan.programs_for_chunk(start + 3, 3)
    program = programs[table[0, 0]]
    assert program is not None
    return program.branches["main"]


@pytest.mark.parametrize(
    ("start", "first", "leave", "asking"),
    [(21, 20, range(10, 20), (20,)), (24, 20, (), ()), (27, 26, range(20, 26), (26,)), (30, 26, (), ()),
     (33, 32, range(26, 32), (32,)), (237, 236, range(230, 236), (236,)),
     (19, 18, range(10, 18), (18,)), (25, 24, range(18, 24), (24,))],
)  # fmt: skip
def test_the_cache_goes_from_21_frames_to_16_with_every_second_chunk(
    start: int, first: int, leave: range | tuple[int, ...], asking: tuple[int, ...]
) -> None:
    """The last two are after a picture, where the first chunk has one frame."""
    branch = seen(made(240), start)
    assert branch.sources == (*SINK, *TOP, *range(first, start + 3))
    assert len(branch.sources) == (16 if leave else 19)
    assert branch.passes[0].rel[0].tolist() == [float(len(branch.sources) - 3 - slot) for slot in range(len(branch.sources))]
    assert branch.memory is not None
    assert (branch.memory.frames, branch.memory.queries_of) == (tuple(leave), asking)


def test_it_chooses_the_tokens_of_the_greatest_sums_until_they_are_spent() -> None:
    generator, held = torch.Generator().manual_seed(0), None
    times: list[list[float]] = []
    known: list[dict[tuple[float, ...], int]] = [{} for _ in range(B)]

    def in_time(x: Tensor, at: np.ndarray) -> Tensor:
        times.append(at.tolist())
        return x * torch.from_numpy(at).float().repeat_interleave(N)[:, None, None]

    for frames in ((3, 4, 5), (6, 7), (8, 9)):
        leaving = tuple(torch.randn(B, len(frames) * N, H, D, generator=generator) for _ in "kv")
        queries = torch.randn(B, 3 * N, H, D, generator=generator)
        memory = ChosenTokens(frames, (frames[-1] + 1,), 2, 2, 2)
        before, held = held, memory.update(held, leaving, queries, in_time)  # type: ignore[arg-type]
        at = [*(range(frames[0] - 2, frames[0]) if before else ()), *frames]
        assert times[-2:] == [[frames[-1] + 1], at]
        for b in range(B):
            keys = leaving[0][b] if before is None else torch.cat([before[0][b], leaving[0][b]])
            phi = [
                sum(float(at[j // N] * (frames[-1] + 1) * (queries[b, i] * key).sum()) for i in range(N))
                for j, key in enumerate(keys)
            ]
            allowed = [j for j, key in enumerate(keys) if known[b].get(tuple(key.flatten().tolist()), 0) < 2]
            best = sorted(sorted(allowed, key=lambda j: -phi[j])[: 2 * N])
            assert torch.equal(held[0][b], keys[best])
            for key in keys[best]:
                token = tuple(key.flatten().tolist())
                known[b][token] = known[b].get(token, 0) + 1
    assert any(2 in counts.values() for counts in known)


def test_the_plan_says_what_the_slots_hold() -> None:
    text = describe.plan_text(made(240), "bf16", "none")
    assert "24 frames and 2 slots of memory in the cache" in text
    assert "    tokens of frames that left, those most asked for, at relative time 2\n" in text
    assert "  frames 230-235 of 240 leave the cache and go into the memory\n" in text
    assert "  frames leave for the memory with every 2 chunks\n" in text


def test_the_cache_has_room_for_every_chunk_of_a_period() -> None:
    """In chunks of 4 the most columns are those of the chunk before the next choice."""
    plan = made(120, {"name": "rollout", "chunk": 4})
    assert (plan.columns_lat, plan.slots_lat, plan.keeps_queries) == (21, 24, True)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=rf"{NAME}\.frames = 12 slots are fewer than a sink of 10, 2 frames of chosen"):
        made(60, frames=12, sink=10)
    with pytest.raises(UsageError, match=r"recent = 3 leave none before a chunk of 3 to choose by"):
        made(60, recent=3)
    with pytest.raises(UsageError, match="acts in all layers and steps"):
        made(60, layers=[0, 1])
    with pytest.raises(UsageError, match=r"rollout\.switch = flush drops all but the sink"):
        made(60, {"name": "rollout", "switch": "flush"})
    with pytest.raises(UsageError, match="is chosen over all heads, of which each has some"):
        split.split_of(made(60), ModelSettings("cpu", "fp32", gpus=2))
    assert not made(21).table.any()
    for other in ("window", "sink", "rebase", "rolling-sink", "memrope", "dummy-forcing"):
        with pytest.raises(UsageError, match="both decide"):
            made(60, {"name": other})
