"""A comparison as one HTML page: the videos in step, their curves, the table, and the settings and costs of each.

The page asks the network for nothing. Its only script is page.js, which its content security policy knows by hash, so that
nothing that stands in a prompt, a name or a path could run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from longgen import checkpoint, preset
from longgen.compare import statistics
from longgen.compare.record import Cell, Comparison, Row, Value
from longgen.errors import LonggenError
from longgen.metrics import KNOWN, Metric, describe, in_order
from longgen.units import human_bytes

EMBED_BYTES = 64_000_000  # of all videos together: a page of up to 85 MB holds them, beside a larger lot it lies
COLOURS = 8  # after Okabe and Ito; from the ninth preset on they come again with other dashes
DASHES = 4
CURVE_DIGITS = 4  # significant: a curve is 200 pixels high
CURVES = {  # unit and meaning of the curves that are no metric, or another number than the metric of that name
    "freeze": ("", "1 where a frame is nearly the same as the frame before, else 0."),
    "difference": ("Lab", "How much the colour of a pixel differs from that in the frame before, on average."),
    "brightness": ("Lab", "Mean lightness."),
    "green_red": ("Lab", "Mean from green (below 0) to red."),
    "blue_yellow": ("Lab", "Mean from blue (below 0) to yellow."),
    "contrast": ("Lab", "Standard deviation of lightness."),
    "saturation": ("Lab", "Mean distance from grey."),
    "sharpness": ("Lab", "Mean difference of lightness from a blurred copy."),
}


class Entry(NamedTuple):
    """A number in the table. order: what it is sorted by; difference: to the baseline with its interval; marks: its CSS classes."""

    text: str
    order: float | None = None
    difference: str = ""
    told: str = ""
    marks: str = ""


COSTS = (
    Metric("cost", "×", "lower", "Arithmetic of the transformer, against direct sampling of the same length."),
    Metric("time", "s", "lower", "Seconds of sampling and decoding a video; the median of several."),
    Metric("memory", "", "lower", "Peak memory of the GPU where there is one, else of the process."),
)


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Writes folder/report.html and gives its path. folder: where compare.json lies; the videos are found from there.

    The file is whole or not there. Videos of EMBED_BYTES or less together are in the page, else it links to them. Raises
    LonggenError where it cannot be written.
    """
    html = page(comparison, folder)
    path = folder / "report.html"

    def save(partial: Path) -> None:
        partial.write_text(html, encoding="utf-8", errors="replace")  # a path may have letters that UTF-8 has not

    checkpoint.replace_file(path, save)
    return path


def page(comparison: Comparison, folder: Path) -> str:
    """The HTML page; see `write_page`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    here = Path(__file__).parent
    script, style = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    files = {cell.name: folder / cell.video for cell in comparison.cells if cell.status == "done" and cell.video}
    sizes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
    embedded = sum(sizes.values()) <= EMBED_BYTES
    columns = _columns(comparison)
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        script=Markup(script),
        style=Markup(style),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(_json(_data(comparison, sizes, embedded))),
        videos={name: Markup(base64.b64encode(files[name].read_bytes()).decode()) for name in sizes} if embedded else {},
        linked=None if embedded else human_bytes(sum(sizes.values())),
        facts=_facts(comparison),
        marks={name: _mark(index) for index, name in enumerate(comparison.presets)},
        columns=columns,
        table=[(row, _entries(row, columns, comparison)) for row in comparison.table],
        few=_few(comparison),
        least=statistics.LEAST_PAIRS,
        still=bool(statistics.still(comparison.table)),
        groups=[(prompt, [_told(cell) for cell in comparison.cells if cell.prompt == prompt]) for prompt in comparison.prompts],
        curves=[(name, *_curve(name)) for name in _curve_names(comparison.cells)],
    )


def _json(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends that or begins another."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _mark(index: int) -> str:
    """The CSS classes of the colour and the dashes of preset number `index`."""
    return f"k{index % COLOURS} d{index // COLOURS % DASHES}"


def _facts(comparison: Comparison) -> list[str]:
    """What all videos have in common, or from where to where it goes."""
    done = [cell for cell in comparison.cells if cell.status == "done"]
    facts = []
    if done:
        rates = {f"{cell.fps:.4g}" for cell in done}
        facts = [
            f"{_span(cell.frames for cell in done)} frames",
            f"{_span(round(cell.frames / cell.fps, 1) for cell in done if cell.fps)} s",
            f"{' or '.join(sorted(rates))} frames a second",
            " or ".join(sorted({f"{cell.size[0]}×{cell.size[1]}" for cell in done})) + " pixels",
        ]
    if comparison.prompts != [None]:
        facts.append(f"{len(comparison.prompts)} prompt{'s' * (len(comparison.prompts) > 1)}")
    seeds = [str(seed) for seed in comparison.seeds if seed is not None]
    if seeds:
        facts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}")
    if comparison.baseline is not None:
        facts.append(f"baseline {comparison.baseline}")
    return [*facts, comparison.device, f"longgen {comparison.longgen}"]


def _span(values: Iterable[float]) -> str:
    """`81`, or `81 to 161`."""
    found = sorted(set(values))
    return " to ".join(f"{value:g}" for value in (found if len(found) < 2 else (found[0], found[-1])))


def _data(comparison: Comparison, sizes: dict[str, int], embedded: bool) -> dict[str, Any]:
    """What the script plays and draws."""
    links = {
        item.prompt: [["side by side", _link(item.side_by_side)], ["contact sheet", _link(item.sheet)]] for item in comparison.watch
    }
    return {
        "prompts": [{"text": prompt, "links": links.get(prompt, [])} for prompt in comparison.prompts],
        "presets": [{"name": name, "mark": _mark(index)} for index, name in enumerate(comparison.presets)],
        "seeds": comparison.seeds,
        "curves": {name: _curve(name)[0] for name in _curve_names(comparison.cells)},
        "cells": [_tile(cell, comparison, cell.name in sizes, embedded) for cell in comparison.cells],
    }


def _tile(cell: Cell, comparison: Comparison, there: bool, embedded: bool) -> dict[str, Any]:
    error = cell.error or "failed" if cell.status == "failed" else None if there else f"{cell.video} is not there"
    return {
        "name": cell.name,
        "preset": comparison.presets.index(cell.preset),
        "prompt": comparison.prompts.index(cell.prompt),
        "seed": comparison.seeds.index(cell.seed),
        "cost": _costs(cell),
        "error": error,
        "link": None if embedded or error or cell.video is None else _link(cell.video),
        "frames": cell.frames,
        "fps": cell.fps,
        "times": cell.times,
        "size": cell.size,
        "seams": cell.seams,
        "curves": {name: [None if value is None else float(f"{value:.{CURVE_DIGITS}g}") for value in curve]
                   for name, curve in cell.curves.items()},
    }  # fmt: skip


def _costs(cell: Cell) -> str:
    """Arithmetic and time in few letters."""
    took = statistics.took_s(cell) if {"sample", "decode"} <= cell.seconds.keys() else None
    ratio = "" if cell.cost_ratio is None else f"{cell.cost_ratio:.2f}× cost"
    return " · ".join(filter(None, (ratio, "" if took is None else _seconds(took))))


def _link(file: str) -> str:
    """The address of `file` from the page: relative where it lies beside it."""
    return Path(file).as_uri() if Path(file).is_absolute() else quote(Path(file).as_posix())


def _curve_names(cells: Iterable[Cell]) -> list[str]:
    """The curves that any cell has, in the order of tables and then of CURVES."""
    found = dict.fromkeys(name for cell in cells for name in cell.curves)
    return sorted(found, key=[*KNOWN, *CURVES, *found].index)


def _curve(name: str) -> tuple[str, str]:
    """The unit of the curve `name`, and what it means."""
    return CURVES.get(name) or (describe(name).unit, describe(name).about)


def _columns(comparison: Comparison) -> list[Metric]:
    """The columns: motion first, for nothing about consistency is shown without it; then the other metrics, and the costs."""
    metrics = [describe(name) for name in in_order(name for row in comparison.table for name in row.metrics)]
    metrics.sort(key=lambda metric: metric.name != "motion")
    has = (
        any(row.cost_ratio is not None for row in comparison.table),
        any(row.seconds is not None for row in comparison.table),
        any(row.peak_memory_bytes for row in comparison.table),
    )
    return [*metrics, *(column for column, there in zip(COSTS, has, strict=True) if there)]


def _entries(row: Row, columns: Sequence[Metric], comparison: Comparison) -> list[Entry]:
    """What stands in the row of a preset."""
    costs = {
        "cost": Entry("") if row.cost_ratio is None else Entry(f"{row.cost_ratio:.2f}", row.cost_ratio),
        "time": Entry("") if row.seconds is None else Entry(f"{row.seconds:.1f}", row.seconds),
        "memory": Entry(human_bytes(row.peak_memory_bytes), row.peak_memory_bytes) if row.peak_memory_bytes else Entry(""),
    }
    best, still = statistics.best(comparison.table), statistics.still(comparison.table)
    entries = []
    for column in columns:
        name = column.name
        if name not in row.metrics:
            entries.append(costs.get(name, Entry("")))
            continue
        value = row.metrics[name]
        places = _places(other.metrics[name] for other in comparison.table if name in other.metrics)
        marks, told = ["best"] * (row.preset in best.get(name, ())), ["best"] * (row.preset in best.get(name, ()))
        if value.distinguishable is False:
            marks.append("same")
            told.append(f"not distinguishable from {comparison.baseline}")
        if row.preset in still and name == "motion":
            marks.append("warned")
            told.append("hardly moves")
        elif row.preset in still and name in statistics.FLATTERED:
            marks.append("warned")
            told.append("hardly moves, which flatters this number")
        difference = ""
        if value.difference is not None and value.low is not None and value.high is not None:
            low, high = (_number(end, places) for end in (value.low, value.high))
            difference = f"{_number(value.difference, places, '+')} [{low},\u00a0{high}]"
            told.append(f"difference to {comparison.baseline} with its 95% interval: {difference}")
        told.append(f"mean of {value.cells} video{'s' * (value.cells > 1)}")
        entries.append(Entry(_number(value.mean, places), value.mean, difference, "; ".join(told), " ".join(marks)))
    return entries


def _number(value: float, places: int, sign: str = "-") -> str:
    """`value` with a proper minus, and none before zero. sign: + to write that too."""
    return f"{round(value, places) + 0.0:{sign}.{places}f}".replace("-", "−")


def _places(values: Iterable[Value]) -> int:
    """Decimal places for three significant digits of the greatest of a column's values."""
    greatest = max((abs(value.mean) for value in values), default=0.0)
    return 2 if greatest == 0 else min(max(2 - math.floor(math.log10(greatest)), 0), 4)


def _few(comparison: Comparison) -> int:
    """The greatest number of pairs of a preset where that is too small to tell anything from chance, else 0."""
    others = [row for row in comparison.table if row.preset != comparison.baseline]
    most = max((statistics.pairs(row, comparison.cells, comparison.baseline) for row in others), default=0)
    return most if 2 <= most < statistics.LEAST_PAIRS else 0


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _told(cell: Cell) -> dict[str, Any]:
    """A cell in full: what it is, its facts as labels and words, the commands that make it again, and its settings."""
    phases = ", ".join(f"{phase} {_seconds(seconds)}" for phase, seconds in cell.seconds.items())
    facts = [
        ("error", cell.error),
        ("video", cell.video),
        ("length", f"{cell.frames} frames at {cell.fps:.4g} a second, {cell.size[0]}×{cell.size[1]}" if cell.frames else None),
        ("time", phases),
        ("memory", human_bytes(cell.peak_memory_bytes) if cell.peak_memory_bytes else None),
        ("cost", None if cell.cost_ratio is None else f"{cell.cost_ratio:.3g} times direct sampling"),
        ("notes", "; ".join([*cell.notes, *cell.caveats])),
        ("metrics", _listed(cell.metrics)),
        ("details", _listed(cell.details)),
        ("seams", ", ".join(map(str, cell.seams)) and f"before frames {', '.join(map(str, cell.seams))}, counted from 0"),
    ]
    return {
        "cell": cell,
        "costs": _costs(cell),
        "facts": [(label, words) for label, words in facts if words],
        "again": again(cell),
        "settings": json.dumps(cell.settings, indent=1, ensure_ascii=False) if cell.settings else "",
    }


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items() if value is not None)  # fmt: skip


def again(cell: Cell) -> str:
    """The commands that make the video of `cell` again, to be run in the folder of the page; empty where there are none.

    A preset that is not as it is shipped is taken from the video that it made.
    """
    made = cell.settings
    if "preset" not in made or "schedule" in made or cell.prompt is None or cell.seed is None:
        return ""
    words: list[Any] = ["longgen", "generate", "--prompt", cell.prompt, "--backbone", made["backbone"], "--preset"]
    lines = []
    if _shipped(made["preset"]):
        sample = made["sample"]
        words += [made["preset"]["name"], "--size", "x".join(map(str, sample["size"]))]
        for key in ("frames", "steps", "guidance_scale", "flow_shift", "negative_prompt", "fps"):
            words += [] if sample.get(key) is None else [f"--{key.replace('_', '-')}", sample[key]]
    elif cell.video is None:
        return ""
    else:
        lines.append(f"longgen inspect --toml {shlex.quote(cell.video)} > again.toml")
        words += ["again.toml"]
    words += ["--seed", cell.seed, "--dtype", made["dtype"]]
    for key in ("lora", "quantize", "attention", "cache", "compile", "clip_batch"):
        for value in made[key] if isinstance(made.get(key), list) else [made[key]] if key in made else []:
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [value])]
    return "\n".join([*lines, shlex.join(map(str, words))])


def _shipped(tables: dict[str, Any]) -> bool:
    """Whether a stored preset is one that longgen ships, as it is."""
    if tables.get("name") not in preset.names():
        return False
    try:
        own = preset.load(tables["name"]).as_dict()
    except LonggenError:
        return False
    return {key: value for key, value in own.items() if key != "sample"} == tables
