"""Warnings of a comparison: what limits its validity."""

from __future__ import annotations

from collections.abc import Sequence

from longgen.compare.record import Cell, PresetRow
from longgen.compare.statistics import FLATTERED, still_presets
from longgen.conditions import label
from longgen.run_settings import MUST_AGREE
from longgen.textfile import on_one_line

MEASURED = ("frames", "size", "fps")  # of the fields of a sample: the file itself tells
CONSEQUENCES = {
    "frame rate": "; tiles are matched by time",
    "length": "; a tile stops at its last frame",
    "device": "; seconds and memory cannot be compared",
}
NAMED = 3  # differing values that are listed
CONSISTENCY = ("feature_consistency", "vbench.subject_consistency", "vbench.background_consistency")
# Measured on 120 frames of real footage, a man in a moving car, and on the first of them 120 times: docs/experiments/footage.md
REWARDS_STILLS = ("consistency rewards a video that stands still: real footage had feature_consistency 0.95 and motion 12.5 %/s, "
                  "its first frame alone 1.00 and 0; read {} together with motion")  # fmt: skip


def collect_warnings(cells: Sequence[Cell], table: Sequence[PresetRow]) -> list[str]:
    """The warnings of a comparison."""
    done = [cell for cell in cells if cell.status == "done"]
    notes = [f"{cell.name} failed: {cell.error}" for cell in cells if cell.status == "failed"]
    notes += [f"{cell.preset if cell.seed is None else cell.name}: {caveat}" for cell in done for caveat in cell.caveats]
    for row in table:
        if 0 < row.failed < row.cells:
            notes.append(
                f"{row.preset}: its means are over {row.cells - row.failed} of {row.cells} videos; the missing ones may differ"
            )
    flattered = [name for name in FLATTERED if any(name in row.metrics for row in table)]
    for preset, motion in still_presets(table).items():
        notes.append(f"{preset} hardly moves (motion {motion:.2g} %/s)" + bool(flattered) * (
                    f": {', '.join(flattered)} look good in a still video, so it is not called best in any of them"))  # fmt: skip
    consistency = [name for name in CONSISTENCY if any(name in row.metrics for row in table)]
    notes += [REWARDS_STILLS.format(" and ".join(consistency))] * bool(consistency)
    notes += _differences(done)
    notes += _starts(done)
    resumed = sum("resumed" in cell.details for cell in done)
    if resumed:
        notes.append(f"{resumed} of {len(done)} videos were generated with interruptions; their times are left out")
    return notes


def _facts(cell: Cell) -> dict[str, str]:
    """What should be equal for all videos, by name, as far as it is known of this one."""
    settings = cell.settings
    sample = settings.get("sample", {})
    facts = {key: settings.get(key, "none") for key in MUST_AGREE} if settings else {}
    facts |= {key: value for key, value in sample.items() if key not in MEASURED and value is not None}
    facts |= {"flow_shift": sample.get("flow_shift") or "the checkpoint's own"} if sample else {}
    facts |= {"size": "{}x{}".format(*cell.size), "frame rate": f"{cell.fps:g}", "length": f"{cell.frames} frames"}
    facts |= {"longgen": settings["longgen"]} if "longgen" in settings else {}
    facts |= settings.get("libraries", {})
    facts |= {"device": cell.details["device"]} if "device" in cell.details else {}
    return {name.replace("_", " "): str(fact) or "empty" for name, fact in facts.items()}


def _differences(done: Sequence[Cell]) -> list[str]:
    """A sentence for each setting, other than the preset, in which the videos differ, with examples of each value."""
    presets_of: dict[str, dict[str, list[str]]] = {}
    for cell in done:
        for name, fact in _facts(cell).items():
            presets_of.setdefault(name, {}).setdefault(fact, []).append(cell.preset)
    notes = []
    for name, presets in presets_of.items():
        if len(presets) > 1:
            examples = [f"{fact[:40]} ({', '.join(dict.fromkeys(those))[:60]})" for fact, those in [*presets.items()][:NAMED]]
            more = f" and {len(presets) - NAMED} more" if len(presets) > NAMED else ""
            notes.append(f"the videos differ in {name}: {', '.join(examples)}{more}{CONSEQUENCES.get(name, '')}")
    return notes


def _starts(done: Sequence[Cell]) -> list[str]:
    """A sentence for each prompt whose videos do not all start from the same."""
    starts: dict[str, dict[str, None]] = {}
    for cell in done:
        if cell.settings and cell.prompt is not None:
            starts.setdefault(cell.prompt, {})[label(cell.settings)] = None
    return [f"the videos of '{on_one_line(prompt, 60)}' start from different things: {'; '.join([*different][:NAMED])}"
            for prompt, different in starts.items() if len(different) > 1]  # fmt: skip
