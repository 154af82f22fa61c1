"""The verdict of a comparison: what its differences bear, in a few sentences for the terminal, the page and compare.json."""

from __future__ import annotations

from collections.abc import Sequence

from longgen.compare.record import Cell, Difference, PresetRow, Verdict
from longgen.compare.statistics import FLATTERED, LEVEL, least_p, needed_pairs, still_presets, tested_comparisons
from longgen.metrics import describe

LISTED = 12  # pairs of presets beside the baseline's that have a sentence


def verdict(
    presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, table: Sequence[PresetRow], rows: Sequence[Difference]
) -> Verdict | None:
    """The verdict on `presets`, from the rows of `statistics.paired_differences`; None for a single preset."""
    if len(presets) < 2:
        return None
    tested, pairs = tested_comparisons(rows), max((row.pairs for row in rows), default=0)
    found = any(row.distinguishable for row in rows)
    needed = needed_pairs(tested)
    text = _found(presets, cells, baseline, table, rows) if found else [_nothing(tested, pairs, needed, bool(rows))]
    return Verdict(text=text, tested=tested, pairs=pairs, needed_pairs=needed, differences=[*rows])


def _nothing(tested: int, pairs: int, needed: int, paired: bool) -> str:
    """Why no difference is beyond chance."""
    if not paired:
        return "Nothing here can be told from chance: no two presets have a video of the same prompt and seed."
    if not tested:
        return f"The presets do not differ: every metric is equal in every pair of videos ({_count(pairs, 'pair')})."
    comparisons = _count(tested, "comparison")
    if pairs >= needed:
        return (f"Nothing here is beyond chance: of {comparisons}, each of two presets in one metric over up to {pairs} pairs of "
                f"videos, none passes {_method(tested)}.")  # fmt: skip
    several = f"{comparisons}, each of two presets in one metric, ask for {LEVEL / tested:.2g}"
    asked = f"{LEVEL:g} is asked for" if tested == 1 else several
    return (f"Nothing here is beyond chance: with {_count(pairs, 'pair')} of videos (same prompt, same seed) p cannot fall below "
            f"{least_p(pairs):.2g}, and {asked}. {needed} pairs can get there, for example {-(-needed // 2)} prompts with 2 seeds "
            f"each{'; fewer presets or --metrics need fewer' * (tested > 1)}.")  # fmt: skip


def _found(
    presets: Sequence[str], cells: Sequence[Cell], baseline: str | None, table: Sequence[PresetRow], rows: Sequence[Difference]
) -> list[str]:
    tested, still = tested_comparisons(rows), {*still_presets(table)}
    count = sum(row.distinguishable for row in rows)
    text = [f"{count} of {_count(tested, 'comparison')}, each of two presets in one metric, {'is' if count == 1 else 'are'} beyond "
            f"chance by {_method(tested)}."]  # fmt: skip
    by_pair: dict[tuple[str, str], list[Difference]] = {}
    for row in rows:
        by_pair.setdefault((row.preset, row.other), []).append(row)
    silent, listed = 0, 0
    for (preset, other), of_pair in by_pair.items():
        told = [_moved(row, still) for row in of_pair if row.distinguishable]
        lead = f"{preset} against {other}, {_count(max(row.pairs for row in of_pair), 'pair')}"
        if told:
            listed += other != baseline
            if other == baseline or listed <= LISTED:
                text.append(f"{lead}: {'; '.join(told)}.")
        elif other == baseline:
            text.append(f"{lead}: nothing is beyond chance.")
        else:
            silent += 1
    if listed > LISTED:
        text.append(f"{listed - LISTED} more pairs of presets differ; compare.json has them.")
    if silent:
        others = "1 other pair of presets" if silent == 1 else f"{silent} other pairs of presets"
        text.append(f"In {others} nothing is beyond chance.")
    if len(prompts := {cell.prompt for cell in cells}) == 1 and prompts != {None}:
        text.append("All of this is of one prompt; others may differ.")
    return text


def _moved(row: Difference, still: set[str]) -> str:
    """A metric that differs: by how much, with its interval, and whether that is better."""
    metric = describe(row.metric)
    assert row.low is not None
    assert row.high is not None
    unit = "" if metric.unit in ("", "of 1") else f" {metric.unit}"
    size = f"{row.metric} {number(row.difference, '+')}{unit} [{number(row.low)}, {number(row.high)}]"
    if metric.better == "neither":
        return size
    if row.metric in FLATTERED and (stills := [preset for preset in (row.preset, row.other) if preset in still]):
        return f"{size} (no merit: {' and '.join(stills)} hardly move{'s' * (len(stills) == 1)})"
    return f"{size} ({'better' if (row.difference > 0) == (metric.better == 'higher') else 'worse'})"


def _method(tested: int) -> str:
    corrected = f", corrected by Holm's method for all {tested}" if tested > 1 else ""
    return f"Wilcoxon's signed-rank test at {LEVEL:.0%}{corrected}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def number(value: float, sign: str = "") -> str:
    """Three significant digits, never an exponent."""
    size = abs(float(f"{value:.3g}"))  # rounded: 0.9999 is 1.00
    if size == 0:
        return "0"
    if size >= 100:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.{1 if size >= 10 else 2 if size >= 1 else 3}f}"
