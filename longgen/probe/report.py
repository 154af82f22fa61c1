"""A probe for people: a table for the terminal, and a folder with probe.json, two plots and one HTML page.

The page asks the network for nothing and runs no script. What users gave (prompts, names, paths) is escaped in it.
"""

from __future__ import annotations

import math
import os
import shlex
import textwrap
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from longgen import disk
from longgen.errors import LonggenError
from longgen.layers.probe_file import KINDS, Kind, Probe, Settings, read
from longgen.probe.plots import columns, number, rank_figure, ranks, save, scores_figure, top
from longgen.units import count_label, human_bytes

LABEL = 12  # characters before what a line of the text says
BAR = (4, 24)  # characters: the least and the most
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
PROMPTS = 4  # so many prompts are listed in the text; the page has them all
SHADES = 6  # of the heat map on the page, beside the palest


def text(probe: Probe, width: int = 100) -> str:
    """The verdicts as a table, then what they rest on. width: columns of the terminal, 80 or more."""
    layers = _filled(["layer", *(str(row.layer) for row in probe.layers)], str.rjust)
    verdicts = ["verdict", *(row.verdict for row in probe.layers)]
    curves = [_filled([name, *map(number(values), values)], str.rjust) for name, values in ranks(probe).items()]
    numbers = [_filled([*map(_writer(probe, kind), _deciding(probe, kind))], str.rjust) for kind in KINDS]
    taken = sum(len(column[-1]) + 2 for column in (layers, *curves)) + sum(len(column[0]) + 3 for column in numbers)
    cells = min(max((width - taken - max(map(len, verdicts))) // 2, BAR[0]), BAR[1])
    scores = []
    for kind, column in zip(KINDS, numbers, strict=True):
        bars = _bars(probe, kind, cells)
        scores.append(_filled([kind, *(f"{value} {bar}" for value, bar in zip(column, bars, strict=True))], str.ljust))
    table = [*zip(layers, *scores, *curves, verdicts, strict=True)]
    lines = [_cut(f"{probe.settings.mode} probe of {_plain(probe.backbone)}", width), ""]
    for warning in probe.warnings:
        lines += _labelled("warning", warning, width)
    lines += [""] * bool(probe.warnings)
    if curves:
        lines.append(f"{'':{sum(len(column[0]) + 2 for column in (layers, *scores))}}effective rank")
    lines += ["  ".join(row) for row in table]
    lines += ["", f"Scores by {probe.metric}; bars begin at 0, ┊ is a threshold not exceeded.", ""]
    for label, words in (*_findings(probe), ("", ""), *_settings(probe)):
        lines += _labelled(label, words, width) or [""]
    lines += [_cut(f"{'prompt':<{LABEL}}{_plain(prompt)}", width) for prompt in probe.settings.prompts[:PROMPTS]]
    if len(probe.settings.prompts) > PROMPTS:
        lines.append(f"{'':{LABEL}}and {len(probe.settings.prompts) - PROMPTS} more")
    return "\n".join(lines)


def _deciding(probe: Probe, kind: Kind) -> list[float]:
    return [row.position if kind == "position" else row.context for row in probe.layers]


def _writer(probe: Probe, kind: Kind) -> Callable[[float | None], str]:
    """Writes the deciding scores of `kind`, and their threshold."""
    return number([*_deciding(probe, kind), probe.thresholds[kind]])


def _filled(words: list[str], fill: Callable[[str, int], str]) -> list[str]:
    """`words` filled to one width by str.ljust or str.rjust."""
    return [fill(word, max(map(len, words))) for word in words]


def _bars(probe: Probe, kind: Kind, cells: int) -> list[str]:
    """A bar for each layer; where a score is not above the threshold, that is marked."""
    scores, threshold = _deciding(probe, kind), probe.thresholds[kind]
    greatest = top([*scores, threshold])
    mark = min(int(threshold / greatest * cells), cells - 1)
    bars = []
    for score in scores:
        whole, rest = divmod(round(score / greatest * cells * 8), 8)
        bar = "█" * whole + EIGHTHS[rest]
        bars.append(bar if score > threshold else f"{bar[:mark]:<{mark}}┊")
    return bars


def _labelled(label: str, words: str, width: int) -> list[str]:
    """`words` beside their label, in lines of at most `width` characters."""
    return textwrap.wrap(_plain(words), width, initial_indent=label.ljust(LABEL), subsequent_indent=" " * LABEL)


def _plain(words: str) -> str:
    """`words` on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(words.split()))


def _cut(line: str, width: int) -> str:
    """What of `line` fits `width` columns of a terminal, where East Asian letters and emoji take two."""
    ends = 0
    for index, letter in enumerate(line):
        ends += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if ends > width:
            return line[: index - 1] + "…"
    return line


def _findings(probe: Probe) -> list[tuple[str, str]]:
    """Which layers are sensitive, by which rule, and how far that can be trusted: labels and sentences."""
    found, agreed, stable = [], [], []
    for kind in KINDS:
        layers, threshold = count_label(probe.sensitive(kind), len(probe.layers)), _writer(probe, kind)(probe.thresholds[kind])
        found.append((kind, f"sensitive above {threshold}: {layers} layers"))
        others = {score: value for score, value in probe.agreement.get(kind, {}).items() if score != "attention"}
        if others:
            agreed.append(f"{kind} " + ", ".join(f"{value:.2f} by {score}" for score, value in others.items()))
    for name, count in (("seeds", len(probe.settings.seeds)), ("prompts", len(probe.settings.prompts))):
        by_kind = {kind: getattr(stability, name) for kind, stability in probe.stability.items()}
        known = ", ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items() if value is not None)
        stable.append(f"between {name}: {known or ('not known, there was one only' if count == 1 else 'not known')}")
    unknown = "not known: no full probe of these weights" if probe.settings.mode == "quick" else "not known"
    return [
        *found,
        ("rule", probe.rule),
        ("stability", f"{'; '.join(stable)} (1: the same order of layers, 0: no relation)"),
        ("agreement", f"of the quick attention scores with scores of reruns: {'; '.join(agreed) or unknown}"),
    ]


def _settings(probe: Probe) -> list[tuple[str, str]]:
    """What was run, on what and for how long: labels and values, in few lines."""
    made = probe.settings
    lora = f", with LoRA {', '.join(made.lora)}" if made.lora else ""
    steps = count_label(made.observed_steps, made.steps)
    seeds = ", ".join(map(str, made.seeds))
    return [
        ("settings", f"{made.mode}, {made.frames} frames ({made.native_frames} native), {made.size[0]}x{made.size[1]},"
                     f" {made.steps} steps, guidance {made.guidance_scale:g}, {made.dtype}{lora}; attention read in steps {steps};"
                     f" keys shifted by {', '.join(map(str, made.shifts))} latent frames;"
                     f" ranks at {', '.join(map(str, made.windows))} times the native length"),
        ("weights", probe.weights),
        ("time", f"{timedelta(seconds=round(probe.seconds))} on {probe.device}, peak memory {human_bytes(probe.peak_memory_bytes)},"
                 f" longgen {probe.longgen}"),
        ("seeds", seeds),
    ]  # fmt: skip


FILES = ("probe.json", "scores.png", "effective_rank.png", "report.html")


def check(folder: Path, backbone: str, settings: Settings, overwrite: bool) -> None:
    """Refuses to replace what is in `folder`, but where it is the report of a probe of `backbone` with the same settings."""
    own = _is_of(folder, backbone, settings)
    for name in FILES:
        disk.check_new(folder / name, overwrite, own=own)


def free(folder: Path, backbone: str, settings: Settings, overwrite: bool) -> Path:
    """`folder`, or the first with a number behind it that has no other report."""
    made, number = folder, 2
    while (
        not overwrite
        and not _is_of(made, backbone, settings)
        and (os.path.lexists(made) and (not made.is_dir() or any(os.path.lexists(made / name) for name in FILES)))
    ):
        made, number = Path(f"{folder}-{number}"), number + 1
    return made


def _is_of(folder: Path, backbone: str, settings: Settings) -> bool:
    try:
        probe = read(folder / "probe.json")
    except LonggenError:
        return False
    return (probe.backbone, probe.settings) == (backbone, settings)


def write(probe: Probe, folder: Path) -> list[Path]:
    """Writes probe.json, scores.png, effective_rank.png (where ranks were measured) and report.html; gives their paths.

    folder: made where it is not there. Each file is whole or not there. Raises LonggenError where it cannot be written.
    """
    disk.make_folder(folder)
    disk.save_json(folder / "probe.json", probe.as_dict())
    figures = {"scores.png": scores_figure(probe)}
    if ranks(probe):
        figures["effective_rank.png"] = rank_figure(probe)
    for name, figure in figures.items():
        disk.replace_file(folder / name, partial(save, figure))
    disk.replace_file(folder / "report.html", partial(_save_page, page(probe, folder / "probe.json")))
    return [folder / name for name in ("probe.json", *figures, "report.html")]


def _save_page(html: str, path: Path) -> None:
    path.write_text(html, encoding="utf-8", errors="replace")  # the path of a folder may have letters that UTF-8 has not


def page(probe: Probe, file: Path) -> str:
    """The HTML page. file: where the probe is, for the command that uses it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    command = f"longgen generate --prompt 'a prompt' --preset freeloc --frames {probe.settings.frames}"
    flags = [("backbone", probe.backbone), *(("lora", lora) for lora in probe.settings.lora), ("probe", str(file))]
    command += "".join(f" --{name} {shlex.quote(value)}" for name, value in flags)
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2").render(
        probe=probe,
        command=command,
        findings=_findings(probe),
        settings=_settings(probe),
        lists={kind: count_label(probe.sensitive(kind), len(probe.layers)) for kind in KINDS},
        heat=_heat(probe),
        curves=_curves(probe),
        table=_table(probe),
    )


def _heat(probe: Probe) -> list[dict[str, Any]]:
    """The heat map by columns: each cell's number, its shade 0 to SHADES, and whether it makes the layer sensitive."""
    heat = []
    for column in columns(probe):
        greatest, write = top(column.values), number(column.values)
        sensitive = probe.sensitive(column.kind) if column.decides else ()
        cells = []
        for row, value in zip(probe.layers, column.values, strict=True):
            shade = round((value or 0) / greatest * SHADES)
            cells.append({"layer": row.layer, "value": write(value), "shade": shade, "over": row.layer in sensitive})
        heat.append({"kind": column.kind, "score": column.score, "decides": column.decides, "cells": cells})
    return heat


def _curves(probe: Probe) -> dict[str, Any] | None:
    """The curves of effective rank in per cent of the picture, from its lower left; None where no rank was measured."""
    curves, count = ranks(probe), len(probe.layers)
    if not curves:
        return None
    greatest = top(value for values in curves.values() for value in values)
    power = 10 ** math.floor(math.log10(greatest))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if greatest / (power * part) <= 5)
    ticks = math.ceil(greatest / step)
    lines, told = {}, [[] for _ in probe.layers]  # type: tuple[dict[str, Any], list[list[str]]]
    for name, values in curves.items():
        write = number(values)
        lines[name] = [
            (100 * (i + 0.5) / count, 100 * value / (ticks * step)) for i, value in enumerate(values) if value is not None
        ]
        for words, value in zip(told, values, strict=True):
            words.append(f"{name} {write(value)}")
    return {
        "ticks": [(f"{index * step:.4g}", 100 * index / ticks) for index in range(ticks + 1)],
        "lines": lines,
        "layers": [{"layer": row.layer, "ranks": ", ".join(words)} for row, words in zip(probe.layers, told, strict=True)],
    }


def _table(probe: Probe) -> dict[str, Any]:
    """The table of verdicts: heads of the numbers, and each layer with its numbers."""
    numbers: dict[str, list[float | None]] = {kind: [getattr(row, kind) for row in probe.layers] for kind in KINDS}
    numbers |= {f"rank {name}": values for name, values in ranks(probe).items()}
    written = zip(*([*map(number(values), values)] for values in numbers.values()), strict=True)
    return {"heads": list(numbers), "rows": [*zip(probe.layers, written, strict=True)]}
