"""The cache against one dense softmax, where it holds any frames at any times; and what it keeps, drops and refuses.

Legend: B batch, F slots, c newest frames, n tokens per latent frame, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longgen import planner, preset
from longgen.attention.kvcache import KVCache, chunk_view
from longgen.attention.rotary import Rotary, Tables
from longgen.backbones.causal_wan import SELF_FORCING
from longgen.frameplan import PAIR_COLUMNS, FramePlan, Pass, full_attention
from longgen.memory import Held, InTime, KeysValues, MemorySlot
from longgen.plan import Plan
from longgen.program import Program
from tests.attention.dense import dense

B, H, ROWS, COLUMNS = 2, 2, 2, 3
N = ROWS * COLUMNS
SPEC = SELF_FORCING


def rotary() -> Rotary:
    return Rotary(np.array(SPEC.frequencies), np.arange(len(SPEC.frequencies)))


def stock(frames: int) -> Tables:
    """cos and sin of Wan's own table, from frame 0."""
    tables = WanRotaryPosEmbed(SPEC.head_dim, (1, 1, 1), 1024)(torch.zeros(1, 1, frames, ROWS, COLUMNS))
    cos, sin = (table[0, :, 0] for table in tables)
    return cos[:, 0::2], sin[:, 1::2]


def random(frames: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, F n, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, frames * N, H, SPEC.head_dim, generator=generator) for _ in range(3))
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def filled(cache: KVCache, frames: list[int], k: Tensor, v: Tensor) -> None:
    """Has `cache` hold `frames` in layer 0, as if the clean pass of each had left k and v."""
    for index, frame in enumerate(frames):
        one = slice(index * N, (index + 1) * N)
        cache.open(frame, 1, (None,), np.zeros((1, 1), dtype=int))
        newest(cache, k[:, one], k[:, one], v[:, one], writing=True)
        cache.close(frame)


def newest(cache: KVCache, q: Tensor, k: Tensor, v: Tensor, writing: bool = False) -> Tensor:
    cache.writing = writing
    return cache.attend(0, 0, attend, stock(cache.newest), q, k, v)


def expected(cache: KVCache, program: Program | None, start: int, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The dense form over the slots, at the program's own times; the rows of the newest frames."""
    frame_plan = full_attention(start + cache.newest, cache.newest) if program is None else program.branches["main"]
    slots = [*cache.frames, *range(start, start + cache.newest)]
    one, held = frame_plan.passes[0], len(cache.frames)
    rel, visible = (np.zeros((len(slots), len(slots)), dtype=x.dtype) for x in (one.rel, one.visible))
    rel[held:], visible[held:], visible[:held] = one.rel[:, slots], one.visible[:, slots], True
    columns = {name: np.full(rel.shape, PAIR_COLUMNS[name].neutral) for name in one.columns}
    for name, table in columns.items():
        table[held:] = one.columns[name][:, slots]
    square = replace(frame_plan, passes=(Pass(rel, visible, np.ones(len(slots)), columns),))
    return dense(square, *qkv, rotary(), stock(len(slots)))[:, held * N :]


def made_for(frames_px: int, *stack: dict[str, Any]) -> Plan:
    sample = {"frames": frames_px}
    return planner.build(preset.from_tables({"name": "s", "sample": sample, "technique": list(stack)}, "s"), SPEC)


def programs_for_chunk(made: Plan, frames_lat: int, queries: int) -> tuple[tuple[Program | None, ...], np.ndarray]:
    programs, table = made.programs_for_chunk(frames_lat, queries)
    return programs, table[:1, :1]  # one layer, one step


STACKS: dict[str, list[dict[str, Any]]] = {
    "sink": [{"name": "window", "frames": 21}, {"name": "sink"}],
    "flex": [{"name": "window", "frames": 21}, {"name": "sink"}, {"name": "flex"}],
    "rebase": [{"name": "window", "frames": 21}, {"name": "sink"}, {"name": "rebase"}],
    "yarn": [{"name": "window", "frames": 21}, {"name": "sink"}, {"name": "yarn"}],
}


@pytest.mark.parametrize("name", STACKS)
def test_at_frame_4197_it_equals_the_dense_form(name: str) -> None:
    """4,200 latent frames, 17 minutes of Wan; its own rotary table ends at 1,024."""
    made = made_for(16797, *STACKS[name])
    programs, table = programs_for_chunk(made, 4200, 3)
    assert made.frames_lat == made.rounds_lat == 4200
    assert made.slots_lat == 24
    held = [0, 1, 2, *range(4179, 4197)]
    qkv = random(24)
    cache = KVCache(rotary(), made.slots_lat)
    filled(cache, held, *(x[:, : 21 * N] for x in qkv[1:]))
    cache.open(4197, 3, programs, table)
    assert cache.frames == held
    (program,) = (programs[index] for index in np.unique(table))
    assert program is not None
    rel = program.branches["main"].passes[0].rel
    assert np.abs(rel[:, held]).max() == (23 if name == "rebase" else 4199)
    output = newest(cache, *(x[:, 21 * N :] for x in qkv))
    difference = (output - expected(cache, program, 4197, qkv)).abs().max().item()
    print(f"{name}: max difference {difference:.1e}")
    assert difference < 1e-5
    scale = program.branches["main"].frequency_scale
    if name == "flex":
        assert scale is not None
        assert scale[:3].tolist() == [1, 1, 1]
        assert scale[3:] == pytest.approx(20 / 4199)


@pytest.mark.parametrize("seed", range(4))
def test_any_frames_at_any_times_equal_the_dense_form(seed: int) -> None:
    random_of = np.random.default_rng(seed)
    positions, logit_scale = random_of.uniform(-40, 40, 12), float(random_of.uniform(0.5, 2))
    seen = random_of.random(12) < 0.6
    seen[-4:] = True
    rel = positions[-4:, None] - positions
    scale = random_of.uniform(0.2, 1.5, len(SPEC.frequencies))
    rel[:, ~seen] = np.nan  # of what is not seen no time is read
    frame_plan = FramePlan((Pass(rel, np.broadcast_to(seen, (4, 12)), np.ones(4)),), scale, logit_scale)
    program, qkv = Program({"main": frame_plan}), random(12, seed)
    cache = KVCache(rotary(), 12)
    filled(cache, list(range(8)), *(x[:, : 8 * N] for x in qkv[1:]))
    cache.open(8, 4, (program,), np.zeros((1, 1), dtype=int))
    assert cache.frames == [frame for frame in range(8) if seen[frame]]
    left = np.repeat(seen, N)
    output = newest(cache, *(x[:, 8 * N :] for x in qkv))
    difference = (output - expected(cache, program, 8, tuple(x[:, left] for x in qkv))).abs().max().item()  # type: ignore[arg-type]
    print(f"max difference {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("columns", [("logit_scale",), ("logit_bias",), ("logit_scale", "logit_bias"), ("positive_logit_scale",),
                                     ("logit_scale", "positive_logit_scale", "logit_bias")])  # fmt: skip
@pytest.mark.parametrize("centred", [False, True])
def test_logit_columns_equal_the_dense_form(columns: tuple[str, ...], centred: bool) -> None:
    random_of = np.random.default_rng(3)
    hidden = np.ones((4, 12), dtype=bool)
    hidden[:, 2] = False
    tables = {"logit_scale": random_of.uniform(0.5, 2, (4, 12)), "logit_bias": random_of.uniform(-2, 1, (4, 12)),
              "positive_logit_scale": random_of.choice([0, 0.5, 1, 1.5], (4, 12))}  # fmt: skip
    frame_plan = full_attention(12, 4).see_only(hidden).each(lambda p: p.with_columns(**{name: tables[name] for name in columns}))
    frame_plan = replace(frame_plan, centred=centred)
    program, qkv = Program({"main": frame_plan}), random(12)
    cache = KVCache(rotary(), 12)
    filled(cache, list(range(8)), *(x[:, : 8 * N] for x in qkv[1:]))
    cache.open(8, 4, (program,), np.zeros((1, 1), dtype=int))
    left = np.repeat(hidden[0], N)
    output = newest(cache, *(x[:, 8 * N :] for x in qkv))
    seen = tuple(x[:, left] for x in qkv)
    difference = (output - expected(cache, program, 8, seen)).abs().max().item()  # type: ignore[arg-type]
    print(f"max difference {difference:.1e}")
    assert difference < 1e-5
    without = Program({"main": full_attention(12, 4).see_only(hidden)})
    assert (output - expected(cache, without, 8, seen)).abs().max() > 1e-2  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sum:
    """A memory of two slots: the sum of the frames that leave and what it held, and its negative; it notes the queries."""

    frames: tuple[int, ...]
    queries_of: tuple[int, ...] | None = None
    rotated_in_space: bool = False
    asked: list[Tensor] = field(default_factory=list, compare=False)
    slots: ClassVar[int] = 2
    period: ClassVar[int] = 1
    over_heads: ClassVar[bool] = False

    def phrase(self, slot: int) -> str:
        return "sum"

    def update(self, held: Held | None, leaving: KeysValues, queries: Tensor | None, in_time: InTime) -> Held:
        self.asked.extend([] if queries is None else [queries])
        sums = [x.unflatten(1, (len(self.frames), -1)).sum(1) for x in leaving]
        sums = sums if held is None else [x + old[:, :N] for x, old in zip(sums, held, strict=True)]
        keys, values = (torch.cat([x, -x], dim=1) for x in sums)
        return keys, values


@dataclass(frozen=True)
class Backwards:
    """A memory of one slot, which holds the tokens of one frame, the last first."""

    rotated_in_space: bool
    frames: tuple[int, ...] = (5,)
    queries_of: tuple[int, ...] | None = (7,)
    asked: list[Tensor] = field(default_factory=list, compare=False)
    slots: ClassVar[int] = 1
    period: ClassVar[int] = 1
    over_heads: ClassVar[bool] = False

    def phrase(self, slot: int) -> str:
        return "frame backwards"

    def update(self, held: Held | None, leaving: KeysValues, queries: Tensor | None, in_time: InTime) -> Held:
        assert queries is not None
        self.asked.append(queries)
        return leaving[0].flip(1), leaving[1].flip(1)


ONE_STEP = np.zeros((1, 1), dtype=int)


def test_plans_that_keep_other_frames_are_not_the_same() -> None:
    """Layers whose plans have one key share a program, and so what stays in the cache."""
    shown = [full_attention(12, 3).show((0, *range(9, 12)), np.arange(4.0), kept=kept) for kept in ((), (1,), (1, 2))]
    assert len({plan.key for plan in shown}) == 3


@pytest.mark.parametrize("columns", [False, True], ids=["plain", "logit columns"])
def test_columns_of_any_frames_and_of_a_memory_equal_the_dense_form(columns: bool) -> None:
    """Two chunks: frames out of order, one twice, two that leave for the memory and one later, at any times."""
    random_of, (q, k, v) = np.random.default_rng(5), random(18)
    cache = KVCache(rotary(), 15, columns=12, keeps_queries=True)
    filled(cache, list(range(12)), k[:, : 12 * N], v[:, : 12 * N])
    sums, asked = [torch.zeros(B, N, H, SPEC.head_dim) for _ in "kv"], list[Tensor]()
    for start, sources, leaving, queries_of in (
        (12, (7, MemorySlot(1), 2, 9, 9, MemorySlot(0), 0, 11), (3, 5), (1, 11)),
        (15, (14, MemorySlot(0), 2, MemorySlot(1), 2, 1), (7,), (13, 1)),
    ):
        own = slice(start * N, (start + 3) * N)
        full, tables, times = full_attention(start + 3, 3), dict[str, np.ndarray](), random_of.uniform(-30, 30, len(sources) + 3)
        if columns:
            tables = {name: random_of.uniform(0.5, 2, full.shape) for name in ("logit_scale", "logit_bias")}
            full = full.each(lambda p, tables=tables: p.with_columns(**tables))  # type: ignore[misc]
        memory = Sum(leaving, queries_of, asked=asked)
        frame_plan = full.show([*sources, start, start + 1, start + 2], times, memory, kept=(1, 2))
        newest_hidden = max({*range(start)}.difference(sources))
        stand_for = [s if isinstance(s, int) else newest_hidden for s in frame_plan.sources or ()]
        for name, table in frame_plan.passes[0].columns.items():
            assert table.tolist() == [[row[frame] for frame in stand_for] for row in tables[name].tolist()]
        cache.open(start, 3, (Program({"main": frame_plan}),), ONE_STEP)
        shown = {source for source in sources if isinstance(source, int)}
        assert cache.frames == sorted({1, 2, *leaving, *queries_of, *shown})
        frames = [(k[:, f * N : (f + 1) * N], v[:, f * N : (f + 1) * N]) for f in range(start + 3)]
        sums = [x + sum(frames[f][part] for f in leaving) for part, x in enumerate(sums)]
        held = [frames[s] if isinstance(s, int) else tuple(x * (1 - 2 * s.index) for x in sums) for s in frame_plan.sources or ()]
        keys, values = (torch.cat([pair[part] for pair in held], dim=1) for part in (0, 1))
        for writing in (False, True):
            output = newest(cache, q[:, own], k[:, own], v[:, own], writing)
            square = square_of(frame_plan, len(held))
            queries = torch.cat([torch.zeros_like(keys[:, : -3 * N]), q[:, own]], dim=1)
            expected = dense(square, queries, keys, values, rotary(), stock(len(held)))[:, -3 * N :]
            assert (output - expected).abs().max() < 1e-5
        wanted = torch.cat([q[:, f * N : (f + 1) * N] if f > 11 else k[:, f * N : (f + 1) * N] for f in queries_of], dim=1)
        assert len(asked) == 1 + (start == 15)  # once a chunk
        assert torch.equal(asked[-1], torch.cat([wanted, q[:, own]], dim=1))  # `filled` has keys for queries
        cache.close(start)
        assert not set(leaving) & set(cache.frames)


@pytest.mark.parametrize("rotated", [True, False])
def test_tokens_of_a_memory_keep_their_places_where_they_come_rotated_in_space(rotated: bool) -> None:
    """Attention does not ask in which order keys come, but where in the frame they stand."""
    q, k, v = random(11)
    cache = KVCache(rotary(), 11, columns=11, keeps_queries=True)
    filled(cache, list(range(8)), k[:, : 8 * N], v[:, : 8 * N])
    memory = Backwards(rotated)
    frame_plan = full_attention(11, 3).show([1, MemorySlot(0), 7, 8, 9, 10], np.array([-3.0, 2.5, 4, 5, 6, 7]), memory)
    cache.open(8, 3, (Program({"main": frame_plan}),), ONE_STEP)
    output = newest(cache, *(x[:, 8 * N :] for x in (q, k, v)))
    queries, keys, values = (torch.cat([x[:, f * N : (f + 1) * N] for f in (1, 5, 7, 8, 9, 10)], dim=1) for x in (q, k, v))
    expected = dense(square_of(frame_plan, 6), queries, keys, values, rotary(), stock(6))[:, 3 * N :]
    assert ((output - expected).abs().max() < 1e-5) == rotated
    seen = torch.cat([k[:, 7 * N : 8 * N], q[:, 8 * N :]], dim=1)  # `filled` has keys for queries
    if rotated:
        cos, sin = (table[:N].clone() for table in stock(1))
        cos[:, : len(SPEC.frequencies)], sin[:, : len(SPEC.frequencies)] = 1, 0
        seen = rotary().rotate(seen, (cos.repeat(4, 1), sin.repeat(4, 1)))
    assert (memory.asked[0] - seen).abs().max() < 1e-6


def square_of(frame_plan: FramePlan, columns: int) -> FramePlan:
    """`frame_plan` with rows for all of its columns, the query rows last."""
    (one,), above = frame_plan.passes, columns - frame_plan.shape[0]
    rel, visible = (np.concatenate([np.full((above, columns), fill), x]) for x, fill in ((one.rel, 0.0), (one.visible, True)))
    tables = {name: np.concatenate([np.full((above, columns), PAIR_COLUMNS[name].neutral), x]) for name, x in one.columns.items()}
    return FramePlan((Pass(rel, visible, np.ones(columns), tables),), frame_plan.frequency_scale, frame_plan.logit_scale)


def test_a_pass_runs_as_many_operators_whatever_its_columns_hold() -> None:
    """What columns hold is gathered in a chunk's first pass."""
    q, k, v = random(12)
    counts = []
    for columns in (None, 12):
        cache = KVCache(rotary(), 12, columns)
        filled(cache, list(range(9)), k[:, : 9 * N], v[:, : 9 * N])
        whole = full_attention(12, 3)
        frame_plan = whole if columns is None else whole.show([*reversed(range(9)), 9, 10, 11], np.arange(12.0))
        cache.open(9, 3, (Program({"main": frame_plan}),), ONE_STEP)
        newest(cache, *(x[:, 9 * N :] for x in (q, k, v)))
        with Operators() as run:
            newest(cache, *(x[:, 9 * N :] for x in (q, k, v)))
        counts.append(run.count)
    assert counts[0] == counts[1] > 0


class Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(named or {}))


def test_passes_before_the_clean_one_leave_no_trace() -> None:
    (q, k, v), (_, noisy_k, noisy_v) = random(9), random(9, seed=1)
    results: list[list[Tensor]] = []
    for passes_before in (0, 2):
        cache, outputs = KVCache(rotary(), 9), []
        filled(cache, list(range(3)), k[:, : 3 * N], v[:, : 3 * N])
        for start in (3, 6):
            own = slice(start * N, (start + 3) * N)
            cache.open(start, 3, (None,), np.zeros((1, 1), dtype=int))
            for _ in range(passes_before):
                newest(cache, q[:, own], noisy_k[:, own], noisy_v[:, own])
            outputs.append(newest(cache, q[:, own], k[:, own], v[:, own], writing=True))
            cache.close(start)
        results.append([*outputs, cache.layers[0].keys, cache.layers[0].values])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_what_no_program_shows_is_dropped_before_attention_and_nothing_else_moves() -> None:
    _, k, v = random(12)
    cache = KVCache(rotary(), 12)
    filled(cache, list(range(9)), k[:, : 9 * N], v[:, : 9 * N])
    assert cache.frames == list(range(9))
    whole, hidden = full_attention(12, 3), np.ones((3, 12), dtype=bool)
    hidden[:, 1:5] = False
    also = np.ones((3, 12), dtype=bool)
    also[:, 2:6] = False
    programs = tuple(Program({"main": whole.see_only(visible)}) for visible in (hidden, also))
    cache.open(9, 3, programs, np.array([[0], [1]]))
    assert cache.frames == [0, 1, 5, 6, 7, 8]  # 1 and 5 are seen by one of the two
    assert cache.visible_to_all_layers == [0, 6, 7, 8, 9, 10, 11]
    for index, frame in enumerate(cache.frames):
        for kept, given in ((cache.layers[0].keys, k), (cache.layers[0].values, v)):
            assert torch.equal(kept[:, index * N : (index + 1) * N], given[:, frame * N : (frame + 1) * N])


def test_frames_that_are_begun_again_are_forgotten() -> None:
    _, k, v = random(9)
    cache = KVCache(rotary(), 9)
    filled(cache, list(range(9)), k, v)
    cache.open(3, 6, (None,), np.zeros((1, 1), dtype=int))
    assert cache.frames == [0, 1, 2]
    cache.close(3)
    assert cache.frames == list(range(9))


def test_more_frames_than_slots_are_an_error() -> None:
    cache = KVCache(rotary(), 4)
    _, k, v = random(3)
    filled(cache, [0, 1, 2], k, v)
    with pytest.raises(ValueError, match="6 frames for 4 slots"):
        cache.open(3, 3, (None,), np.zeros((1, 1), dtype=int))
    cache = KVCache(rotary(), 12, columns=6)
    filled(cache, [0, 1, 2], k, v)
    twice = full_attention(6, 3).show([0, 1, 2, 0, 3, 4, 5], np.arange(7.0))
    with pytest.raises(ValueError, match="7 key columns for 6"):
        cache.open(3, 3, (Program({"main": twice}),), ONE_STEP)
    absent = full_attention(7, 3).show([0, 3, 4, 5, 6], np.arange(5.0))
    with pytest.raises(ValueError, match="3 is not in list"):
        cache.open(4, 3, (Program({"main": absent}),), ONE_STEP)


@pytest.mark.parametrize("wrong", ["visible", "rel", "band"])
def test_a_table_that_a_cache_cannot_serve_is_an_error(wrong: str) -> None:
    plain = full_attention(6, 3).passes[0]
    rel, visible, columns = plain.rel.copy(), plain.visible.copy(), dict[str, np.ndarray]()
    if wrong == "visible":
        visible[1, 0] = False
    elif wrong == "rel":
        rel[1, 0] += 1
    else:
        columns["band"] = np.full((3, 6), 0.5)
    chunk_view(full_attention(6, 3), list(range(6)))
    with pytest.raises(ValueError, match="see different frames, or at times that are no differences"):
        chunk_view(FramePlan((Pass(rel, visible, np.ones(3), columns),)), list(range(6)))
