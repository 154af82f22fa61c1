"""What query frames see, in words: key frames or slots of a rollout's cache, relative times, and what changes their logits."""

from __future__ import annotations

import math

import numpy as np

from longgen.frameplan import PAIR_COLUMNS, FramePlan, Pass
from longgen.memory import MemorySlot, Source
from longgen.units import count_label


def row_label(pass_: Pass, query: int) -> str:
    """The key frames that frame `query` sees, its pair columns there that are not neutral, and the relative times."""
    visible = pass_.visible[query]
    seen = np.flatnonzero(visible)
    rel = pass_.rel[:, visible] if len(pass_.rel) < len(visible) else pass_.rel[query, visible]  # of a whole chunk in a rollout
    label = count_label(tuple(seen.tolist()), len(visible))
    return f"{label}{_changed(pass_, query, seen)}, at relative times {_time_label(rel)}"


def _changed(pass_: Pass, query: int, columns: np.ndarray) -> str:
    """How the pair columns of frame `query` change what it sees in `columns`; empty where they are neutral."""
    label = ""
    for name, table in pass_.columns.items():
        values, column = table[query, columns], PAIR_COLUMNS[name]
        changed = values[values != column.neutral]
        if len(changed):
            label += f" ({len(changed)} of them {column.said(changed.min(), changed.max())})"
    return label


def _time_label(rel: np.ndarray) -> str:
    return f"{rel.max() + 0.0:.4g} to {rel.min() + 0.0:.4g}"


def slot_lines(plan: FramePlan, pass_: Pass) -> list[str]:
    """What the key columns of a rollout's chunk hold, in runs of frames, and at which times its first query frame sees them."""
    assert plan.sources is not None
    sources, (queries, columns) = plan.sources, plan.shape
    own, memory = sources[-queries:], plan.memory
    chunk = f"frame {own[0]} sees" if queries == 1 else f"frames {own[0]} to {own[-1]} see"
    lines = [f"{chunk} {columns} slots of a frame each:"]
    for run in _runs(sources[:-queries]):
        first, last, rel = sources[run[0]], sources[run[-1]], pass_.rel[0, run]
        place = "at"
        if isinstance(first, MemorySlot):
            assert memory is not None
            held = memory.phrase(first.index)
        else:
            assert isinstance(last, int)
            held = f"frames {first} to {last}{', backwards' * (last < first)}" if len(run) > 1 else f"frame {first}"
            place = "at" if rel[0] == plan.frames_lat - queries - first else "moved to"
        time = f"relative time {rel[0]:.4g}" if len(run) == 1 else f"relative times {_time_label(rel)}"
        lines.append(f"  {held}{_changed(pass_, 0, np.array(run))}, {place} {time}")
    newest = np.arange(columns - queries, columns)
    lines.append(f"  themselves{_changed(pass_, 0, newest)}, at {_time_label(pass_.rel[:, newest])}")
    if plan.kept:
        lines.append(f"frames {count_label(plan.kept, plan.frames_lat)} stay in the cache for later chunks")
    if memory is not None and memory.frames:
        lines.append(f"frames {count_label(memory.frames, plan.frames_lat)} leave the cache and go into the memory")
    if memory is not None and memory.period > 1:
        lines.append(f"frames leave for the memory with every {memory.period} chunks")
    return lines


def _runs(sources: tuple[Source, ...]) -> list[list[int]]:
    """The columns of `sources` in runs: of frames one after the other, forwards or backwards, and of single slots of a memory."""
    numbers = [source if isinstance(source, int) else math.nan for source in sources]
    runs: list[list[int]] = []
    for column, number in enumerate(numbers):
        step = number - numbers[column - 1]
        if runs and abs(step) == 1 and (len(runs[-1]) == 1 or step == numbers[column - 1] - numbers[column - 2]):
            runs[-1].append(column)
        else:
            runs.append([column])
    return runs
