"""MemRoPE's slots against the authors' numbers, its averages against their equations, and where it is the plain window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longgen import describe, planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.context.memrope import MovingAverages
from longgen.errors import UsageError
from longgen.frameplan import FramePlan
from longgen.memory import MemorySlot
from longgen.plan import Plan

B, N, H, D = 2, 5, 3, 4
LONG, SHORT = MemorySlot(0), MemorySlot(1)


def never(x: Tensor, times: np.ndarray) -> Tensor:
    raise AssertionError("averages are of keys before they are rotated")


def made(frames_lat: int, *others: dict[str, Any], **parameters: Any) -> Plan:
    stack = [{"name": "memrope"} | parameters, *others]
    sample = {"frames": 4 * frames_lat - 3}
    return planner.build(preset.from_tables({"name": "s", "sample": sample, "technique": stack}, "s"), SELF_FORCING)


def seen(plan: Plan, start: int, held: list[int] | None = None) -> FramePlan:
    programs, table = plan.programs_for_chunk(start + 3, 3, held)
    program = programs[table[0, 0]]
    assert program is not None
    return program.branches["main"]


@pytest.mark.parametrize(
    ("start", "leave", "recent"),
    [(12, (5, 6, 7), range(8, 12)), (15, (8, 9, 10), range(11, 15)), (237, (230, 231, 232), range(233, 237)),
     (10, (5,), range(6, 10)), (13, (6, 7, 8), range(9, 13))],
)  # fmt: skip
def test_the_slots_hold_what_the_code_s_hold(start: int, leave: tuple[int, ...], recent: range) -> None:
    """The last two are after a picture, where the first chunk has one frame."""
    branch = seen(made(240), start)
    assert branch.sources == (0, 1, 2, LONG, SHORT, *recent, start, start + 1, start + 2)
    assert branch.passes[0].rel.tolist() == [[9.0 + row - slot for slot in range(12)] for row in range(3)]
    assert branch.memory is not None
    assert branch.memory.frames == leave
    held = seen(made(240), start, [0, 1, 2, *leave, *recent])
    assert held.key == branch.key
    without = seen(made(240), start, [0, 1, 2, *recent]).memory
    assert without is not None
    assert without.frames == ()


def by_definition(frames: list[list[Tensor]], rate: float, per_token: bool) -> Tensor:
    """[B, N, H, D] of frames [B, N, H, D] that leave together, list by list."""
    average: Tensor | None = None
    for leaving in frames:
        mean = sum(leaving, torch.zeros(())) / len(leaving)
        if not per_token:
            mean = torch.stack([mean[:, token] for token in range(N)]).sum(0)[:, None].repeat(1, N, 1, 1) / N
        average = mean if average is None else rate * mean + (1 - rate) * average
    assert average is not None
    return average


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_averages_are_those_of_the_equations(per_token: bool, dtype: torch.dtype) -> None:
    """In single precision also where the cache is not: a hundredth of a mean is below half of what bfloat16 resolves."""
    generator, held, both = torch.Generator().manual_seed(0), None, ([], [])
    for count in (2, 3, 3, 3, 1):
        frames = tuple([torch.randn(B, N, H, D, generator=generator).to(dtype) for _ in range(count)] for _ in both)
        memory = MovingAverages(tuple(range(count)), (0.01, 0.1), per_token, False)
        held = memory.update(held, tuple(torch.cat(each, dim=1) for each in frames), None, never)  # type: ignore[arg-type]
        for history, each in zip(both, frames, strict=True):
            history.append([frame.float() for frame in each])
    assert held is not None
    for average, history in zip(held, both, strict=True):
        assert average.dtype == torch.float32
        for slot, rate in enumerate((0.01, 0.1)):
            expected = by_definition(history, rate, per_token)
            assert (average[:, slot * N : (slot + 1) * N] - expected).abs().max() < 1e-6


def test_adaptive_rates_are_those_of_the_equation() -> None:
    generator = torch.Generator().manual_seed(1)
    held = tuple(torch.randn(B, 2 * N, H, D, generator=generator) for _ in "kv")
    leaving = tuple(torch.randn(B, 3 * N, H, D, generator=generator) for _ in "kv")
    memories = [MovingAverages((7, 8, 9), (0.01, 0.1), True, flag) for flag in (False, True)]
    plain, adaptive = (memory.update(held, leaving, None, never) for memory in memories)  # type: ignore[arg-type]
    for b in range(B):
        mean = [x[b].view(3, N, H, D).mean(0) for x in leaving]
        motion = [sum((mean[0][j, h] - held[0][b, N + j, h]).norm() for h in range(H)) / H for j in range(N)]
        for j in range(N):
            rate = 0.1 * (0.1 + 4.9 * motion[j] / max(motion))
            for x, before, now, first in zip(mean, held, adaptive, plain, strict=True):
                assert (now[b, N + j] - (rate * x[j] + (1 - rate) * before[b, N + j])).abs().max() < 1e-6
                assert torch.equal(now[b, j], first[b, j])


def test_as_many_slots_as_frames_are_the_window() -> None:
    assert not made(12).table.any()
    assert made(15).table.all()
    assert any("memrope changes nothing at 45 frames" in note for note in made(12).notes)


def test_the_plan_says_what_the_slots_hold() -> None:
    text = describe.plan_text(made(240), "bf16", "none")
    assert "13 frames and 2 slots of memory in the cache" in text
    assert "  frames 237 to 239 see 12 slots of a frame each:\n" in text
    assert "    frames 0 to 2, moved to relative times 9 to 7\n" in text
    assert "    long average of the frames that left, by 0.01 a chunk, at relative time 6\n" in text
    assert "    short average of the frames that left, by 0.1 a chunk, at relative time 5\n" in text
    assert "  frames 230-232 of 240 leave the cache and go into the memory\n" in text
    arrays = made(240).arrays()
    assert arrays["main/sources"].tolist() == [0, 1, 2, -1, -2, *range(233, 240)]
    assert seen(made(240), 237).density == 12 / 240


def test_plans_that_differ_in_their_memory_alone_have_other_keys() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"long": 0.02},
        {"short": 0.2},
        {"per_token": True},
        {"per_token": True, "adaptive": True},
    ]
    assert len({seen(made(60, **variant), 30).key for variant in variants}) == len(variants)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"memrope.frames = 7 slots are fewer than a sink of 3, 2 averages and a chunk of 3"):
        made(60, frames=7)
    with pytest.raises(UsageError, match="memrope acts in all layers and steps"):
        made(60, layers=[0, 1])
    with pytest.raises(UsageError, match="adaptive has a rate for each token"):
        made(60, adaptive=True)
    with pytest.raises(UsageError, match=r"it must be at most 0\.2"):
        made(60, adaptive=True, per_token=True, short=0.3)
    with pytest.raises(UsageError, match=r"rollout\.switch = flush drops all but the sink"):
        made(60, {"name": "rollout", "switch": "flush"})
    made(12, {"name": "rollout", "switch": "flush"})
    for other in ("window", "sink", "rebase", "rolling-sink"):
        with pytest.raises(UsageError, match="both decide"):
            made(60, {"name": other})
