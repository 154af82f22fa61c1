"""A comparison for the terminal: tables no wider than asked, then in words what they do not say."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from longgen.compare.record import Comparison, Row, Value
from longgen.compare.statistics import best, pairs
from longgen.metrics import describe, in_order
from longgen.metrics.vbench import PREFIX
from longgen.progress import clock_text
from longgen.units import human_bytes

WIDTH = 100  # columns of the terminal
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
BEST, SAME = "*", "~"
SIGNS = len(BEST + SAME)  # places behind each number
PARTS = ("subject_", PREFIX)  # what the names of metrics that belong together begin with
NAME = 24  # characters of a preset's name
MISSING = "–"


def text(comparison: Comparison, width: int = WIDTH) -> str:
    """The whole: the table of means, the table of differences to the baseline, warnings, and what the signs mean."""
    top, rows = best(comparison.table), comparison.table
    names = in_order(name for row in rows for name in row.metrics)
    firsts = ["", "preset", "", *_cut([row.preset for row in rows])]
    means = [_column(name, [_mean(row.metrics.get(name), row.preset in top.get(name, ())) for row in rows]) for name in names]
    lines = [_title(comparison), "", *_tables(firsts, [*means, *_costs(rows)], width)]
    measured = [row for row in rows if any(value.difference is not None for value in row.metrics.values())]
    if measured:
        firsts = ["", "preset", "", *_cut([row.preset for row in measured])]
        against = [_column(name, [_difference(row.metrics.get(name)) for row in measured], arrow=False) for name in names]
        lines += [f"Difference to {comparison.baseline}, and its 95% interval:", "", *_tables(firsts, against, width)]
    lines += _signs(comparison, bool(top), width)
    for row in measured:
        lines += _words(row, comparison, width)
    for warning in comparison.warnings:
        lines += textwrap.wrap(f"warning: {plain(warning)}", width, subsequent_indent="  ")
    return "\n".join(lines)


def _title(comparison: Comparison) -> str:
    done = sum(cell.status == "done" for cell in comparison.cells)
    parts = [f"{len(comparison.presets)} preset{'s' * (len(comparison.presets) != 1)}",
             f"{len(comparison.prompts)} prompt{'s' * (len(comparison.prompts) != 1)}",
             f"{len(comparison.seeds)} seed{'s' * (len(comparison.seeds) != 1)}"]  # fmt: skip
    failed = f", {len(comparison.cells) - done} failed" if done < len(comparison.cells) else ""
    return f"{', '.join(parts)}: {done} video{'s' * (done != 1)}{failed}" + (
        f", on {comparison.backbone}" if comparison.backbone else ""
    )


def _tables(firsts: Sequence[str], columns: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns beside `firsts`, to the right; those that do not fit below `width` go into further tables."""
    lines: list[str] = []
    left = max(map(len, firsts))
    room, part = width - left, [[f"{first:<{left}}" for first in firsts]]
    for column in [*columns, None]:
        wide = 0 if column is None else max(map(len, column)) + 1
        if column is None or wide > room:
            made = ["".join(cells).rstrip() for cells in zip(*part, strict=True)]
            lines += [*made[not made[0] :], ""]  # the first line is empty where no metric is a part of something
            room, part = width - left, [[f"{first:<{left}}" for first in firsts]]
        if column is not None:
            part.append([f"{cell:>{wide}}" for cell in column])
            room -= wide
    return lines


def _column(name: str, cells: list[str], arrow: bool = True) -> list[str]:
    """A metric: what it is a part of, its name, its unit with the direction that is better, and `cells`."""
    metric = describe(name)
    sign = ARROWS[metric.better] if arrow else ""
    part = next((part for part in PARTS if name.startswith(part)), "")
    heads = (part.rstrip("_."), name.removeprefix(part), f"{metric.unit} {sign}".rstrip())
    return [*(head + " " * SIGNS for head in heads), *cells]


def _costs(rows: Sequence[Row]) -> list[list[str]]:
    columns = [
        ["", "cost", "×", *(MISSING if row.cost_ratio is None else f"{row.cost_ratio:.2f}" for row in rows)],
        ["", "time", "median", *(MISSING if row.seconds is None else clock_text(row.seconds) for row in rows)],
        ["", "memory", "peak", *(human_bytes(row.peak_memory_bytes) if row.peak_memory_bytes else MISSING for row in rows)],
    ]
    if any(row.failed for row in rows):
        columns.append(["", "failed", "", *(f"{row.failed} of {row.cells}" if row.failed else "" for row in rows)])
    return columns


def _mean(value: Value | None, is_best: bool) -> str:
    """A mean and its signs."""
    if value is None:
        return MISSING + " " * SIGNS
    signs = BEST * is_best + SAME * (value.distinguishable is False)
    return f"{_number(value.mean)}{signs:<{SIGNS}}"


def _difference(value: Value | None) -> str:
    if value is None or value.difference is None or value.low is None or value.high is None:
        return MISSING + " " * SIGNS
    sign = SAME if value.distinguishable is False else ""
    return f"{_number(value.difference, '+')} [{_number(value.low)}, {_number(value.high)}]{sign:<{SIGNS}}"


def _number(number: float, sign: str = "") -> str:
    """Three digits that count, never an exponent."""
    if number == 0:
        return "0"
    if abs(number) >= 100:
        return f"{number:{sign},.0f}"
    return f"{number:{sign}.{1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3}f}"


def _words(row: Row, comparison: Comparison, width: int) -> list[str]:
    """What of `row` can be told from the baseline, in words."""
    count = pairs(row, comparison.cells, comparison.baseline)
    told = {found: [name for name, value in row.metrics.items() if value.distinguishable is found] for found in (True, False)}
    said = [f"{', '.join(told[True])} differ" + "s" * (len(told[True]) == 1)] if told[True] else []
    if told[False]:
        names = f"{', '.join(told[False])} {'is' if len(told[False]) == 1 else 'are'}" if told[True] else "no difference is"
        said.append(f"{names} {'not ' if told[True] else ''}distinguishable")
    line = f"{plain(row.preset)} against {plain(comparison.baseline or '')}, {count} pairs: {'; '.join(said)}."
    return textwrap.wrap(line, width, subsequent_indent="  ")


def _signs(comparison: Comparison, has_best: bool, width: int) -> list[str]:
    """What the signs of the table mean, where they are used."""
    same = any(value.distinguishable is False for row in comparison.table for value in row.metrics.values())
    said = [
        *([f"{BEST} best"] if has_best else []),
        *([f"{SAME} not distinguishable from {plain(comparison.baseline or '')}"] if same else []),
        "↑ ↓ which way is better",
        "cost: arithmetic against direct sampling" if any(row.cost_ratio is not None for row in comparison.table) else "",
    ]
    return textwrap.wrap("; ".join(filter(None, said)) + ".", width, subsequent_indent="  ")


def plain(words: str) -> str:
    """`words` on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in words)


def _cut(names: Sequence[str]) -> list[str]:
    """`names` cut in their middle to NAME characters; those that would then be alike are left whole."""
    whole = [plain(name) for name in names]
    short = [name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[len(name) - (NAME - NAME // 2 - 1) :]}" for name in whole]
    return [one if short.count(one) == 1 or short.count(one) == whole.count(name) else name
            for one, name in zip(short, whole, strict=True)]  # fmt: skip
