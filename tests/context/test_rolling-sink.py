"""Which frames the slots of Rolling Sink hold, against numbers of the authors' code, and where it is the plain window."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from longgen import describe, planner, preset
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.errors import UsageError
from longgen.frameplan import FramePlan
from longgen.plan import Plan


def made(frames_lat: int, *others: dict[str, Any], **parameters: Any) -> Plan:
    stack = [{"name": "rolling-sink"} | parameters, *others]
    sample = {"frames": 4 * frames_lat - 3}
    return planner.build(preset.from_tables({"name": "s", "sample": sample, "technique": stack}, "s"), SELF_FORCING)


def seen(plan: Plan, start: int, chunk: int = 3) -> FramePlan:
    programs, table = plan.programs_for_chunk(start + chunk, chunk)
    program = programs[table[0, 0]]
    assert program is not None
    return program.branches["main"]


# For the first frame t of a chunk, what the code's buffer holds at the times t - 18, t - 17, ..., t + 2; run with its module.
CODE = {
    21: [*range(3, 24)],
    24: [*range(6, 18), 17, 16, 15, *range(21, 27)],
    27: [*range(9, 18), 17, 16, 15, 14, 13, 12, *range(24, 30)],
    36: [*range(17, 2, -1), *range(33, 39)],
    39: [*range(14, -1, -1), *range(36, 42)],
    42: [*range(11, -1, -1), 0, 1, 2, *range(39, 45)],
    60: [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 17, 16, 15, 57, 58, 59, 60, 61, 62],
}


@pytest.mark.parametrize("start", CODE)
def test_the_slots_hold_what_the_code_s_hold(start: int) -> None:
    branch = seen(made(90), start)
    assert branch.sources == tuple(CODE[start])
    assert branch.passes[0].rel.tolist() == [[18.0 + row - column for column in range(21)] for row in range(3)]
    assert branch.passes[0].visible.all()
    assert branch.kept == tuple(range(18))


def test_a_window_that_holds_the_video_is_the_window() -> None:
    plan = made(21)
    assert not plan.table.any()
    assert any("rolling-sink changes nothing at 81 frames" in note for note in plan.notes)
    assert made(24).table.all()


@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
def test_wherever_chunks_begin_a_frame_of_the_sink_moves_by_one_at_a_time(chunk: int) -> None:
    plan = made(90, {"name": "rollout", "chunk": chunk}, frames=11)
    for start in range(12, 80):
        sources = seen(plan, start, chunk).sources
        assert sources is not None
        assert sources[-2 * chunk :] == tuple(range(start - chunk, start + chunk))[-2 * chunk :] or 2 * chunk > 11
        swept = [source for source in sources[: 11 - 2 * chunk] if isinstance(source, int)]
        assert all(abs(one - other) <= 1 for one, other in itertools.pairwise(swept))
        assert max(swept, default=0) < 11 - chunk


def test_the_plan_says_what_the_slots_hold() -> None:
    text = describe.plan_text(made(228), "bf16", "none")
    assert "frames 225 to 227 see 21 slots of a frame each:\n" in text
    assert "    frames 8 to 0, backwards, moved to relative times 18 to 10\n" in text
    assert "    frames 0 to 5, moved to relative times 9 to 4\n" in text
    assert "    frames 222 to 224, at relative times 3 to 1\n" in text
    assert "24 frames in the cache" in text


def test_the_cost_is_that_of_its_slots() -> None:
    assert seen(made(240), 237).density == 21 / 240


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"rolling-sink.frames = 3 has no room for frames before a chunk of 3"):
        made(60, frames=3)
    with pytest.raises(UsageError, match="rolling-sink acts in all layers and steps"):
        made(60, layers=[0, 1])
    with pytest.raises(UsageError, match="rolling-sink acts in all layers and steps"):
        made(60, steps=[0, 0.5])
    for other in ("window", "sink", "rebase", "memrope"):
        with pytest.raises(UsageError, match="both decide"):
            made(60, {"name": other})
