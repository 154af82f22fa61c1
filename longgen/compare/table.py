"""A comparison for the terminal: tables of means and differences no wider than asked, then warnings and explanations."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from longgen.compare.record import Comparison, MetricValue, PresetRow
from longgen.compare.statistics import best_presets
from longgen.compare.verdict import number
from longgen.metrics import describe, in_order
from longgen.metrics.vbench import PREFIX
from longgen.progress import clock_text
from longgen.terminal import MISSING, WIDTH, side_by_side
from longgen.textfile import on_one_line
from longgen.units import human_bytes

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
BEST, SAME = "*", "~"
SIGNS = len(BEST + SAME)  # columns after each number
GROUPS = ("subject_", PREFIX)  # prefixes of metrics that belong together
NAME = 24  # columns of a preset's name


def text(comparison: Comparison, width: int = WIDTH) -> str:
    """The table of means, the table of differences to the baseline, what the signs mean, the verdict, and the warnings."""
    rows, verdict = comparison.table, comparison.verdict
    best = best_presets(rows, verdict.differences if verdict else ())
    names = in_order(name for row in rows for name in row.metrics)
    means = [_column(name, [_mean(row.metrics.get(name), row.preset == best.get(name)) for row in rows]) for name in names]
    lines = [*textwrap.wrap(_title(comparison), width), "", *_tables([row.preset for row in rows], [*means, *_costs(rows)], width)]
    paired = [row for row in rows if any(value.difference is not None for value in row.metrics.values())]
    if paired:
        differences = [_column(name, [_difference(row.metrics.get(name)) for row in paired], arrow=False) for name in names]
        lines += [*textwrap.wrap(f"Difference to {on_one_line(comparison.baseline or '')}, with its 95% interval:", width), ""]
        lines += _tables([row.preset for row in paired], differences, width)
    same = any(value.distinguishable is False for row in rows for value in row.metrics.values())
    legend = [
        f"{BEST} better than every other, beyond chance" * bool(best),
        f"{SAME} may be chance against {on_one_line(comparison.baseline or '')}" * same,
        "↑ ↓ which way is better",
        "cost: FLOPs relative to direct sampling" * any(row.cost_ratio is not None for row in rows),
    ]
    lines += textwrap.wrap("; ".join(filter(None, legend)) + ".", width, subsequent_indent="  ")
    words = [f"verdict: {verdict.text[0]}", *verdict.text[1:]] if verdict else []
    for sentence in (*words, *(f"warning: {note}" for note in comparison.warnings)):
        lines += textwrap.wrap(on_one_line(sentence), width, subsequent_indent="  ")
    return "\n".join(lines)


def _title(comparison: Comparison) -> str:
    done = sum(cell.status == "done" for cell in comparison.cells)
    counts = {"preset": len(comparison.presets), "prompt": len(comparison.prompts), "seed": len(comparison.seeds)}
    parts = [f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items()]
    failed = f", {len(comparison.cells) - done} failed" if done < len(comparison.cells) else ""
    backbone = f", on {comparison.backbone}" if comparison.backbone else ""
    return f"{', '.join(parts)}: {done} video{'s' * (done != 1)}{failed}{backbone}"


def _tables(presets: Sequence[str], columns: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns beside the presets' names; those that do not fit `width` continue in further tables."""
    lines: list[str] = []
    for table in side_by_side(["", "preset", "", *_shortened(presets)], columns, width, gap=1):
        lines += [*table[not table[0] :], ""]  # the first line is empty if no metric is in a group
    return lines


def _column(name: str, cells: list[str], arrow: bool = True) -> list[str]:
    """A metric: its group, its name, its unit with an arrow in the better direction, and `cells`."""
    metric = describe(name)
    sign = ARROWS[metric.better] if arrow else ""
    group = next((group for group in GROUPS if name.startswith(group)), "")
    heads = (group.rstrip("_."), name.removeprefix(group), f"{metric.unit} {sign}".rstrip())
    return [*(head + " " * SIGNS for head in heads), *cells]


def _costs(rows: Sequence[PresetRow]) -> list[list[str]]:
    columns = [
        ["", "cost", "×", *(MISSING if row.cost_ratio is None else f"{row.cost_ratio:.2f}" for row in rows)],
        ["", "time", "median", *(MISSING if row.seconds is None else clock_text(row.seconds) for row in rows)],
        ["", "memory", "peak", *(human_bytes(row.peak_memory_bytes) if row.peak_memory_bytes else MISSING for row in rows)],
    ]
    if any(row.failed for row in rows):
        columns.append(["", "failed", "", *(f"{row.failed} of {row.cells}" if row.failed else "" for row in rows)])
    return columns


def _mean(value: MetricValue | None, is_best: bool) -> str:
    if value is None:
        return MISSING + " " * SIGNS
    signs = BEST * is_best + SAME * (value.distinguishable is False)
    return f"{number(value.mean)}{signs:<{SIGNS}}"


def _difference(value: MetricValue | None) -> str:
    if value is None or value.difference is None or value.low is None or value.high is None:
        return MISSING + " " * SIGNS
    sign = SAME if value.distinguishable is False else ""
    return f"{number(value.difference, '+')} [{number(value.low)}, {number(value.high)}]{sign:<{SIGNS}}"


def _shortened(names: Sequence[str]) -> list[str]:
    """`names` shortened in the middle to NAME characters, unless two would become alike."""
    full = [on_one_line(name) for name in names]
    short = [name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[len(name) - (NAME - NAME // 2 - 1) :]}" for name in full]
    return [cut if short.count(cut) == 1 or short.count(cut) == full.count(name) else name
            for cut, name in zip(short, full, strict=True)]  # fmt: skip
