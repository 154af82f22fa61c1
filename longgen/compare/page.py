"""A comparison as one HTML page: the videos played in step, their curves, the table, and the settings and costs of each.

The page makes no network requests. Its only script is page.js, which its content security policy allows by hash, so nothing in a
prompt, a name or a path can run.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import shlex
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from longgen import disk, ffmpeg, html, naming, pictures, preset
from longgen.compare import statistics
from longgen.compare.record import Cell, Comparison, MetricValue, PresetRow
from longgen.conditions import options, stored_parts
from longgen.errors import LonggenError
from longgen.metrics import KNOWN, Metric, describe, in_order
from longgen.naming import INPUTS
from longgen.notebook import TYPES
from longgen.progress import clock_text
from longgen.units import human_bytes

EMBED_BYTES = 64_000_000  # of all videos together: up to this the page embeds them, up to 85 MB in all; beyond it links to them
MANY_COLUMNS = 13  # of the table, beyond which they are narrower, so that it fits 1440 pixels
COLORS = 8  # after Okabe and Ito; from the ninth preset on they repeat with other dashes
DASHES = 4
THUMBNAIL, MOST_PICTURES = 160, 24  # pixels a side of a picture that videos start from; and how many are shown
CURVE_DIGITS = 4  # significant: a curve is 200 pixels high
CURVES = {  # unit and meaning of curves that are not metrics, or differ from the metric of that name
    "freeze": ("", "1 where a frame is nearly identical to the previous one, else 0."),
    "difference": ("Lab", "Mean colour difference of a pixel from the previous frame."),
    "brightness": ("Lab", "Mean lightness."),
    "green_red": ("Lab", "Mean on the axis from green (below 0) to red."),
    "blue_yellow": ("Lab", "Mean on the axis from blue (below 0) to yellow."),
    "contrast": ("Lab", "Standard deviation of lightness."),
    "saturation": ("Lab", "Mean distance from grey."),
    "sharpness": ("Lab", "Mean difference of lightness from a blurred copy."),
}
COSTS: dict[Metric, tuple[str, Callable[[float], str]]] = {  # with the field of a row that holds it, and its format
    Metric("cost", "×", "lower", "FLOPs of the transformer, relative to direct sampling of the same length."):
        ("cost_ratio", "{:.2f}".format),
    Metric("time", "s", "lower", "Seconds of sampling and decoding a video; median over videos."): ("seconds", "{:.1f}".format),
    Metric("memory", "", "lower", "Peak memory of the GPU if there is one, else of the process."):
        ("peak_memory_bytes", human_bytes),
}  # fmt: skip


class TableCell(NamedTuple):
    """A number of the table. order: sort key. difference: to the baseline, with its interval. marks: CSS classes."""

    text: str
    order: float | None = None
    difference: str = ""
    tooltip: str = ""
    marks: str = ""


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Writes folder/report.html atomically. folder: of compare.json, which paths of videos are relative to.

    Embeds the videos if they have at most EMBED_BYTES together, else links to them. Raises LonggenError if it cannot be written.
    """
    path = folder / "report.html"
    disk.save_text(path, page(comparison, folder))
    return path


def page(comparison: Comparison, folder: Path) -> str:
    """The HTML page; see `write_page`."""
    from markupsafe import Markup

    here = Path(__file__).parent
    script, style = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    files = {cell.name: folder / cell.video for cell in comparison.cells if cell.status == "done" and cell.video}
    sizes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
    embedded = sum(sizes.values()) <= EMBED_BYTES
    columns = _columns(comparison)
    data = json.dumps(_data(comparison, sizes, embedded), allow_nan=False, separators=(",", ":"))
    return html.render(
        here / "page.html.j2",
        comparison=comparison,
        script=Markup(script),
        style=Markup(style),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(data.replace("<", "\\u003c")),  # so that it can neither end its script element nor start another
        videos={name: Markup(base64.b64encode(_playable(files[name])).decode()) for name in sizes} if embedded else {},
        linked=None if embedded else human_bytes(sum(sizes.values())),
        facts=_facts(comparison),
        pictures=_pictures(comparison, folder),
        marks={name: _mark(index) for index, name in enumerate(comparison.presets)},
        columns=columns,
        many=len(columns) > MANY_COLUMNS,
        table=[(row, _table_cells(row, columns, comparison)) for row in comparison.table],
        best=bool(_best(comparison)),
        still=bool(statistics.still_presets(comparison.table)),
        groups=[
            (prompt, [_details(cell, folder) for cell in comparison.cells if cell.prompt == prompt])
            for prompt in comparison.prompts
        ],
        curves=[(name, *_curve(name)) for name in _curve_names(comparison.cells)],
    )


def _playable(file: Path) -> bytes:
    """The bytes of a video for the player of a browser, which plays no GIF: that becomes an MP4, with its frames' times.

    Where ffmpeg cannot make one, the player says that it cannot play the file.
    """
    if file.suffix.lower() != ".gif":
        return file.read_bytes()
    with tempfile.TemporaryDirectory(prefix="longgen-") as folder:
        video = Path(folder) / "video.mp4"
        even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"  # H.264 in 4:2:0 has no odd sizes
        encoded = ["-fps_mode", "passthrough", "-c:v", ffmpeg.ENCODERS[".mp4"], "-crf", "12", "-pix_fmt", "yuv420p"]
        done = ffmpeg.run(["-v", "error", *ffmpeg.source(file), "-vf", even, *encoded, ffmpeg.url(video)])
        return (video if done.returncode == 0 else file).read_bytes()


def _pictures(comparison: Comparison, folder: Path) -> list[tuple[str, str | None]]:
    """What videos start from: each with words, and a thumbnail in base64 where a run beside its video keeps a copy."""
    shown: dict[str, tuple[str, str | None]] = {}
    for cell in comparison.cells:
        stored, files, names = stored_parts(cell.settings)
        for name, key in ((name, key) for name, key in files.items() if name != "continue"):
            small = None
            if cell.video is not None and (key not in shown or shown[key][1] is None):
                with contextlib.suppress(LonggenError):  # no copy, or none that can be read
                    picture = pictures.kept(key, naming.run_folder(folder / cell.video) / INPUTS, None)
                    small = base64.b64encode(pictures.thumbnail(picture, THUMBNAIL)).decode()
                words = f"{name.replace('_', ' ')} {names.get(key, key[:12])} (fit {stored.get('fit')})"
                shown[key] = (words, small)
    return [*shown.values()][:MOST_PICTURES]


def _mark(index: int) -> str:
    """CSS classes of the colour and the dashes of preset number `index`."""
    return f"k{index % COLORS} d{index // COLORS % DASHES}"


def _facts(comparison: Comparison) -> list[str]:
    """What all videos have in common, or its range."""
    done = [cell for cell in comparison.cells if cell.status == "done"]
    facts = []
    if done:
        rates = {f"{cell.fps:.4g}" for cell in done}
        facts = [
            f"{_range(cell.frames for cell in done)} frames",
            f"{_range(round(cell.frames / cell.fps, 1) for cell in done if cell.fps)} s",
            f"{' or '.join(sorted(rates))} fps",
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


def _range(values: Iterable[float]) -> str:
    """`81`, or `81 to 161`."""
    ordered = sorted(set(values))
    return " to ".join(f"{value:g}" for value in (ordered if len(ordered) < 2 else (ordered[0], ordered[-1])))


def _data(comparison: Comparison, sizes: dict[str, int], embedded: bool) -> dict[str, Any]:
    """What the script plays and draws."""
    links = {
        view.prompt: [["side by side", _link(view.side_by_side)], ["contact sheet", _link(view.sheet)]] for view in comparison.watch
    }
    return {
        "prompts": [{"text": prompt, "links": links.get(prompt, [])} for prompt in comparison.prompts],
        "presets": [
            {"name": name, "mark": _mark(index), "color": index % COLORS, "dash": index // COLORS}
            for index, name in enumerate(comparison.presets)
        ],
        "seeds": comparison.seeds,
        "curves": {name: _curve(name)[0] for name in _curve_names(comparison.cells)},
        "cells": [_tile(cell, comparison, cell.name in sizes, embedded) for cell in comparison.cells],
    }


def _tile(cell: Cell, comparison: Comparison, exists: bool, embedded: bool) -> dict[str, Any]:
    error = cell.error or "failed" if cell.status == "failed" else None if exists else f"{cell.video} is missing"
    return cell.model_dump(include={"name", "frames", "fps", "times", "size", "seams"}) | {
        "preset": comparison.presets.index(cell.preset),
        "prompt": comparison.prompts.index(cell.prompt),
        "seed": comparison.seeds.index(cell.seed),
        "cost": _cost_label(cell),
        "error": error,
        "type": TYPES.get(Path(cell.video or "").suffix.lower(), TYPES[".mp4"]),  # not every browser looks into an embedded file
        "link": None if embedded or error or cell.video is None else _link(cell.video),
        "curves": {name: [None if value is None else float(f"{value:.{CURVE_DIGITS}g}") for value in curve]
                   for name, curve in cell.curves.items()},
    }  # fmt: skip


def _cost_label(cell: Cell) -> str:
    """Cost and time, briefly."""
    seconds = statistics.generation_seconds(cell) if {"sample", "decode"} <= cell.seconds.keys() else None
    cost = "" if cell.cost_ratio is None else f"{cell.cost_ratio:.2f}× cost"
    return " · ".join(filter(None, (cost, "" if seconds is None else clock_text(seconds))))


def _link(file: str) -> str:
    """URL of `file` from the page: relative if it is inside its folder."""
    return Path(file).as_uri() if Path(file).is_absolute() else quote(Path(file).as_posix())


def _curve_names(cells: Iterable[Cell]) -> list[str]:
    """The curves of any cell, in the order of tables and then of CURVES."""
    names = dict.fromkeys(name for cell in cells for name in cell.curves)
    return sorted(names, key=[*KNOWN, *CURVES, *names].index)


def _curve(name: str) -> tuple[str, str]:
    """Unit and meaning of the curve `name`."""
    return CURVES.get(name) or (describe(name).unit, describe(name).about)


def _columns(comparison: Comparison) -> list[Metric]:
    """The columns: motion first, since consistency means little without it; then the other metrics and the costs."""
    metrics = [describe(name) for name in in_order(name for row in comparison.table for name in row.metrics)]
    metrics.sort(key=lambda metric: metric.name != "motion")
    return [*metrics, *(column for column, (field, _) in COSTS.items() if any(getattr(row, field) for row in comparison.table))]


def _table_cells(row: PresetRow, columns: Sequence[Metric], comparison: Comparison) -> list[TableCell]:
    """The cells of a preset's row."""
    best, still = _best(comparison), statistics.still_presets(comparison.table)
    cells = []
    for column in columns:
        name = column.name
        if name not in row.metrics:
            field, write = COSTS.get(column, ("", str))
            cost = getattr(row, field, None)
            cells.append(TableCell(write(cost), cost) if cost else TableCell(""))
            continue
        value = row.metrics[name]
        decimals = _decimals(other.metrics[name] for other in comparison.table if name in other.metrics)
        marks = ["best"] * (row.preset == best.get(name))
        notes = ["better than every other, beyond chance"] * bool(marks)
        if value.distinguishable is False:
            marks.append("same")
            notes.append(f"against {comparison.baseline} it may be chance")
        if row.preset in still and (name == "motion" or name in statistics.FLATTERED):
            marks.append("warned")
            notes.append("hardly moves" if name == "motion" else "hardly moves, which flatters this number")
        difference = ""
        if value.difference is not None and value.low is not None and value.high is not None:
            low, high = (_number(end, decimals) for end in (value.low, value.high))
            space = " " if len(columns) > MANY_COLUMNS else "\u00a0"  # where the interval may break
            difference = f"{_number(value.difference, decimals, '+')} [{low},{space}{high}]"
            notes.append(f"difference to {comparison.baseline} with its 95% interval: {difference}")
        notes.append(f"mean of {value.cells} video{'s' * (value.cells > 1)}")
        cells.append(TableCell(_number(value.mean, decimals), value.mean, difference, "; ".join(notes), " ".join(marks)))
    return cells


def _number(value: float, decimals: int, sign: str = "-") -> str:
    """`value` with a proper minus sign, but no negative zero. sign: + to show that as well."""
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}".replace("-", "−")


def _decimals(values: Iterable[MetricValue]) -> int:
    """Decimals for three significant digits of the largest value of a column."""
    largest = max((abs(value.mean) for value in values), default=0.0)
    return 2 if largest == 0 else min(max(2 - math.floor(math.log10(largest)), 0), 4)


def _best(comparison: Comparison) -> dict[str, str]:
    """For each metric the preset that is better than every other beyond chance, where there is one."""
    return statistics.best_presets(comparison.table, comparison.verdict.differences if comparison.verdict else ())


def _details(cell: Cell, folder: Path) -> dict[str, Any]:
    """A cell in full: labelled facts, the commands that reproduce it, and its settings."""
    facts = {
        "error": cell.error,
        "video": cell.video,
        "length": f"{cell.frames} frames at {cell.fps:.4g} fps, {cell.size[0]}×{cell.size[1]}" if cell.frames else None,
        "time": ", ".join(f"{phase} {clock_text(seconds)}" for phase, seconds in cell.seconds.items()),
        "memory": human_bytes(cell.peak_memory_bytes) if cell.peak_memory_bytes else None,
        "cost": None if cell.cost_ratio is None else f"{cell.cost_ratio:.3g} times direct sampling",
        "notes": "; ".join([*cell.notes, *cell.caveats]),
        "metrics": _join_values(cell.metrics),
        "details": _join_values(cell.details),
        "seams": f"before frames {', '.join(map(str, cell.seams))}, counted from 0" if cell.seams else None,
    }
    return {
        "cell": cell,
        "costs": _cost_label(cell),
        "facts": [(label, words) for label, words in facts.items() if words],
        "again": reproduce(cell, folder),
        "settings": json.dumps(cell.settings, indent=1, ensure_ascii=False) if cell.settings else "",
    }


def _join_values(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items() if value is not None)  # fmt: skip


def reproduce(cell: Cell, folder: Path = Path()) -> str:
    """The commands that generate the video of `cell` again, run in the `folder` of the page; empty if there are none.

    A preset that differs from the one shipped under its name is extracted from the video.
    """
    settings = cell.settings
    if "preset" not in settings or "schedule" in settings or cell.prompt is None or cell.seed is None:
        return ""
    words: list[Any] = ["longgen", "generate", "--prompt", cell.prompt, "--backbone", settings["backbone"], "--preset"]
    lines = []
    if _is_shipped(settings["preset"]):
        sample = settings["sample"]
        words += [settings["preset"]["name"], "--size", "x".join(map(str, sample["size"]))]
        for key in ("frames", "steps", "guidance_scale", "flow_shift", "negative_prompt", "fps"):
            words += [] if sample.get(key) is None else [f"--{key.replace('_', '-')}", sample[key]]
    elif cell.video is None:
        return ""
    else:
        lines.append(f"longgen inspect --toml {shlex.quote(cell.video)} > again.toml")
        words += ["again.toml"]
    for name, value in options(settings, naming.run_folder(folder / (cell.video or ""))):
        file = isinstance(value, Path) and value.is_relative_to(folder)
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [value.relative_to(folder) if file else value])]
    words += ["--seed", cell.seed, "--dtype", settings["dtype"]]
    for key in ("lora", "quantize", "attention", "cache", "compile", "clip_batch"):
        for value in settings[key] if isinstance(settings.get(key), list) else [settings[key]] if key in settings else []:
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [value])]
    return "\n".join([*lines, shlex.join(map(str, words))])


def _is_shipped(tables: dict[str, Any]) -> bool:
    """Whether a stored preset equals the one that longgen ships under its name."""
    if tables.get("name") not in preset.names():
        return False
    try:
        shipped = preset.load(tables["name"]).as_dict()
    except LonggenError:
        return False
    return {key: value for key, value in shipped.items() if key != "sample"} == tables
