"""What a reader of a comparison should know before trusting it, in words."""

from __future__ import annotations

from collections.abc import Sequence

from longgen.compare.record import Cell, Row
from longgen.compare.statistics import FLATTERED, LEAST_PAIRS, pairs, still
from longgen.run_settings import MUST_AGREE

SO = {
    "frame rate": "; tiles are matched by time",
    "length": "; a tile stops at its last frame",
    "device": "; seconds and memory cannot be compared",
}
MEASURED = ("frames", "size", "fps")  # of the fields of a sample: the file itself tells
NAMED = 3  # values of a difference that are written out


def cautions(cells: Sequence[Cell], table: Sequence[Row], baseline: str | None) -> list[str]:
    """The warnings of a comparison."""
    done = [cell for cell in cells if cell.status == "done"]
    said = [f"{cell.name} could not be made: {cell.error}" for cell in cells if cell.status == "failed"]
    said += [f"{cell.preset if cell.seed is None else cell.name}: {caveat}" for cell in done for caveat in cell.caveats]
    for row in table:
        if 0 < row.failed < row.cells:
            said.append(
                f"{row.preset}: its means are over {row.cells - row.failed} of {row.cells} videos; those that lack may differ"
            )
    flattered = [name for name in FLATTERED if any(name in row.metrics for row in table)]
    for preset, motion in still(table).items():
        said.append(f"{preset} hardly moves (motion {motion:.2g} %/s)" + bool(flattered) * (
                    f": {', '.join(flattered)} look good in a still, so that it is called best in none of them"))  # fmt: skip
    said += _differences(done)
    said += _few_pairs(done, table, baseline)
    resumed = sum("resumed" in cell.details for cell in done)
    if resumed:
        said.append(f"{resumed} of {len(done)} videos were made in more than one go; their seconds are left out")
    return said


def _facts(cell: Cell) -> dict[str, str]:
    """What should be the same for all videos, by name; without what is not known of this one."""
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
    """A sentence for each thing, beside the preset, in which the videos differ; it names some that have each value."""
    having: dict[str, dict[str, list[str]]] = {}
    for cell in done:
        for name, fact in _facts(cell).items():
            having.setdefault(name, {}).setdefault(fact, []).append(cell.preset)
    said = []
    for name, presets in having.items():
        if len(presets) > 1:
            few = [f"{fact[:40]} ({', '.join(dict.fromkeys(those))[:60]})" for fact, those in [*presets.items()][:NAMED]]
            more = f" and {len(presets) - NAMED} more" if len(presets) > NAMED else ""
            said.append(f"the videos differ in {name}: {', '.join(few)}{more}{SO.get(name, '')}")
    return said


def _few_pairs(done: Sequence[Cell], table: Sequence[Row], baseline: str | None) -> list[str]:
    """Where there are too few pairs to tell a difference from chance."""
    counts = [pairs(row, done, baseline) for row in table if row.preset != baseline]
    if baseline is None or not counts or min(counts) >= LEAST_PAIRS:
        return []
    most = max(counts)
    have = "no pair of videos" if most == 0 else "one pair of videos" if most == 1 else f"{most} pairs of videos"
    least = f"at least {min(counts)} and at most {have}" if 0 < min(counts) < most else have
    return [f"{least} of a preset and {baseline} with the same prompt and seed: too few to tell a difference from chance; "
            f"{LEAST_PAIRS} are needed, as of {LEAST_PAIRS // 2} prompts and 2 seeds"]  # fmt: skip
