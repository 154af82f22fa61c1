"""Reports of a probe: a table for the terminal, and a folder with probe.json, figures and an HTML page.

The page makes no network requests and runs no script. What users pass (prompts, names, paths) is escaped in it.
"""

from __future__ import annotations

import math
import os
import shlex
import textwrap
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from longgen import disk, export, html, naming
from longgen.errors import LonggenError
from longgen.layers.probe_file import HEAD_PARTS, SENSITIVITIES, Probe, ProbeSettings, Sensitivity, read
from longgen.probe.export import NAMES as EXPORTED
from longgen.probe.heads import LETTERS, meaning
from longgen.probe.plots import (
    MOST_HEADS,
    effective_ranks,
    head_maps,
    heads_figure,
    number_format,
    rank_figure,
    save,
    scale_end,
    score_columns,
    scores_figure,
)
from longgen.terminal import WIDTH, aligned, cut_to_width, side_by_side
from longgen.textfile import on_one_line
from longgen.units import count_label, human_bytes

LABEL = 12  # columns of a line's label
BAR = (4, 24)  # columns of a bar, at least and at most
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
PROMPTS = 4  # that the text lists; the page has them all
SHADES = 6  # of the heat map on the page, besides the palest
FILES = ("probe.json", "scores.png", "effective_rank.png", "heads.png", "report.html")


def text(probe: Probe, width: int = WIDTH) -> str:
    """The verdicts as a table, then what they are based on. width: columns of the terminal; a narrow one has several tables."""
    layers = _padded(["layer", *(str(row.layer) for row in probe.layers)], str.rjust)
    verdicts = _padded(["verdict", *(row.verdict for row in probe.layers)], str.ljust)
    ranks = [_padded([name, *map(number_format(values), values)], str.rjust) for name, values in effective_ranks(probe).items()]
    numbers = [_padded([*map(_format(probe, key), _scores(probe, key))], str.rjust) for key in SENSITIVITIES]
    taken = sum(len(column[-1]) + 2 for column in (layers, *ranks)) + sum(len(column[0]) + 3 for column in numbers)
    cells = min(max((width - taken - len(verdicts[0])) // 2, BAR[0]), BAR[1])
    scores = [
        _padded([key, *(f"{value} {bar}" for value, bar in zip(column, _bars(probe, key, cells), strict=True))], str.ljust)
        for key, column in zip(SENSITIVITIES, numbers, strict=True)
    ]
    together = [_padded(["effective rank", *("  ".join(row) for row in zip(*ranks, strict=True))], str.ljust)] if ranks else []
    columns = [*(["", *column] for column in scores), *together, ["", *verdicts]]
    lines = [cut_to_width(f"{probe.settings.mode} probe of {on_one_line(probe.backbone)}", width), ""]
    for warning in probe.warnings:
        lines += _labelled("warning", warning, width)
    lines += [""] * bool(probe.warnings)
    for table in side_by_side(["", *layers], columns, width):
        lines += [*table[not table[0] :], ""]
    lines += [
        *textwrap.wrap(f"Scores by {probe.metric}; bars start at 0, ┊ marks a threshold that is not exceeded.", width),
        "",
        *_heads(probe, width),
    ]
    for label, words in (*_findings(probe), ("", ""), *_settings(probe)):
        lines += _labelled(label, words, width) or [""]
    lines += [cut_to_width(f"{'prompt':<{LABEL}}{on_one_line(prompt)}", width) for prompt in probe.settings.prompts[:PROMPTS]]
    if len(probe.settings.prompts) > PROMPTS:
        lines.append(f"{'':{LABEL}}and {len(probe.settings.prompts) - PROMPTS} more")
    return "\n".join(lines)


def _heads(probe: Probe, width: int) -> list[str]:
    """What heads see: a letter for each, and the mean shares of every layer; nothing where they were not read."""
    if probe.heads is None:
        return []
    rows = [["layer", "heads", *HEAD_PARTS]]  # shares are means over the layer's heads
    room = max(width - len("layer") - sum(len(part) + 2 for part in HEAD_PARTS) - 2, 8)  # for letters
    for layer, heads in enumerate(probe.heads):
        shares = [f"{100 * sum(getattr(head, part) for head in heads) / len(heads):.0f}%" for part in HEAD_PARTS]
        letters = "".join(LETTERS[head.group] for head in heads)
        rows.append([str(layer), letters[:room], *shares])
        rows += [["", letters[start : start + room], "", "", ""] for start in range(room, len(letters), room)]
    lines = aligned([[row[0].rjust(len("layer")), *row[1:]] for row in rows], left=2)
    return [
        *(line.rstrip() for line in lines),
        "",
        *(line for words in meaning(probe) for line in textwrap.wrap(words, width)),
        "",
    ]


def _scores(probe: Probe, sensitivity: Sensitivity) -> list[float]:
    """The deciding scores of all layers."""
    return [getattr(row, sensitivity) for row in probe.layers]


def _format(probe: Probe, sensitivity: Sensitivity) -> Callable[[float | None], str]:
    """Formats the deciding scores, and their threshold."""
    return number_format([*_scores(probe, sensitivity), probe.thresholds[sensitivity]])


def _padded(words: list[str], fill: Callable[[str, int], str]) -> list[str]:
    """`words` padded to one width by str.ljust or str.rjust."""
    return [fill(word, max(map(len, words))) for word in words]


def _bars(probe: Probe, sensitivity: Sensitivity, cells: int) -> list[str]:
    """A bar for each layer; one that does not exceed the threshold has a mark there."""
    scores, threshold = _scores(probe, sensitivity), probe.thresholds[sensitivity]
    end = scale_end([*scores, threshold])
    mark = min(int(threshold / end * cells), cells - 1)
    bars = []
    for score in scores:
        full, rest = divmod(round(score / end * cells * 8), 8)
        bar = "█" * full + EIGHTHS[rest]
        bars.append(bar if score > threshold else f"{bar[:mark]:<{mark}}┊")
    return bars


def _labelled(label: str, words: str, width: int) -> list[str]:
    """`words` beside their label, in lines of at most `width` characters."""
    return textwrap.wrap(on_one_line(words), width, initial_indent=label.ljust(LABEL), subsequent_indent=" " * LABEL)


def _findings(probe: Probe) -> list[tuple[str, str]]:
    """Which layers are sensitive, by which rule, and how reliable that is: labels and sentences."""
    sensitive, agreement, stability = [], [], []
    for key in SENSITIVITIES:
        layers, threshold = count_label(probe.sensitive(key), len(probe.layers)), _format(probe, key)(probe.thresholds[key])
        sensitive.append((str(key), f"sensitive above {threshold}: {layers} layers"))
        others = {score: value for score, value in probe.agreement.get(key, {}).items() if score != "attention"}
        if others:
            agreement.append(f"{key} " + ", ".join(f"{value:.2f} by {score}" for score, value in others.items()))
    for axis, count in (("seeds", len(probe.settings.seeds)), ("prompts", len(probe.settings.prompts))):
        by_key = {key: getattr(correlations, axis) for key, correlations in probe.stability.items()}
        known = ", ".join(f"{key} {value:.2f}" for key, value in by_key.items() if value is not None)
        stability.append(f"between {axis}: {known or ('unknown, there was only one' if count == 1 else 'unknown')}")
    unknown = "unknown: no full probe of these weights" if probe.settings.mode == "quick" else "unknown"
    return [
        *sensitive,
        ("rule", probe.rule),
        ("stability", f"{'; '.join(stability)} (1: the same order of layers, 0: no relation)"),
        ("agreement", f"of the quick attention scores with the scores of reruns: {'; '.join(agreement) or unknown}"),
    ]


def _settings(probe: Probe) -> list[tuple[str, str]]:
    """What was run, on what and for how long: labels and values."""
    settings = probe.settings
    lora = f", with LoRA {', '.join(settings.lora)}" if settings.lora else ""
    picture = f", from the picture {settings.conditions['image'][:12]}" if settings.conditions else ""
    return [
        ("settings", f"{settings.mode}, {settings.frames} frames ({settings.native_frames} native), "
                     f"{settings.size[0]}x{settings.size[1]}, {settings.steps} steps, guidance {settings.guidance_scale:g}, "
                     f"{settings.dtype}{lora}{picture}; "
                     f"attention read in steps {count_label(settings.observed_steps, settings.steps)}; "
                     f"keys shifted by {', '.join(map(str, settings.shifts))} latent frames; "
                     f"ranks at {', '.join(map(str, settings.windows))} times the native length"),
        ("weights", probe.weights),
        ("time", f"{timedelta(seconds=round(probe.seconds))} on {probe.device}, peak memory {human_bytes(probe.peak_memory_bytes)},"
                 f" longgen {probe.longgen}"),
        ("seeds", ", ".join(map(str, settings.seeds))),
    ]  # fmt: skip


def check_output(folder: Path, backbone: str, settings: ProbeSettings, overwrite: bool, formats: Sequence[str] = ()) -> None:
    """Refuses to replace files in `folder`, unless they report a probe of `backbone` with the same settings. formats: to export."""
    own = _reports(folder, backbone, settings)
    for name in (*FILES, *(f"{export.FOLDER}/{name}.{export.SUFFIXES[kind]}" for kind in formats for name in EXPORTED)):
        disk.check_new(folder / name, overwrite, own=own)


def free_folder(folder: Path, backbone: str, settings: ProbeSettings, overwrite: bool) -> Path:
    """`folder`, or the first numbered one without a report of another probe."""

    def is_taken(candidate: Path) -> bool:
        if overwrite or not os.path.lexists(candidate) or _reports(candidate, backbone, settings):
            return False
        return not candidate.is_dir() or any(os.path.lexists(candidate / name) for name in FILES)

    return naming.first_free(folder, is_taken)


def _reports(folder: Path, backbone: str, settings: ProbeSettings) -> bool:
    try:
        probe = read(folder / "probe.json")
    except LonggenError:
        return False
    return (probe.backbone, probe.settings) == (backbone, settings)


def write(probe: Probe, folder: Path) -> list[Path]:
    """Writes probe.json, scores.png, effective_rank.png (if ranks were measured), heads.png (if heads were read) and report.html;
    returns their paths.

    Creates `folder`; each file is written atomically. Raises LonggenError if one cannot be written.
    """
    disk.make_folder(folder)
    disk.save_json(folder / "probe.json", probe.as_dict())
    figures = {"scores.png": scores_figure(probe)}
    if effective_ranks(probe):
        figures["effective_rank.png"] = rank_figure(probe)
    if probe.heads is not None:
        figures["heads.png"] = heads_figure(probe)
    for name, figure in figures.items():
        disk.replace_file(folder / name, partial(save, figure))
    disk.save_text(folder / "report.html", page(probe, folder / "probe.json"))
    return [folder / name for name in ("probe.json", *figures, "report.html")]


def page(probe: Probe, file: Path) -> str:
    """The HTML page. file: where the probe is saved, for the command that uses it."""
    command = f"longgen generate --prompt 'a prompt' --preset freeloc --frames {probe.settings.frames}"
    flags = [("backbone", probe.backbone), *(("lora", lora) for lora in probe.settings.lora), ("probe", str(file))]
    command += "".join(f" --{name} {shlex.quote(value)}" for name, value in flags)
    columns: dict[str, list[Any]] = {key: _scores(probe, key) for key in SENSITIVITIES}
    columns |= {f"rank {name}": values for name, values in effective_ranks(probe).items()}
    numbers = zip(*([*map(number_format(values), values)] for values in columns.values()), strict=True)
    return html.render(
        Path(__file__).with_name("page.html.j2"),
        probe=probe,
        command=command,
        findings=_findings(probe),
        settings=_settings(probe),
        lists={key: count_label(probe.sensitive(key), len(probe.layers)) for key in SENSITIVITIES},
        heat=score_columns(probe),
        shades=SHADES,
        maps=head_maps(probe),
        wide=MOST_HEADS,
        letters=LETTERS,
        meaning=meaning(probe) if probe.heads else [],
        curves=_curves(probe),
        heads=list(columns),
        rows=[*zip(probe.layers, numbers, strict=True)],
    )


def _curves(probe: Probe) -> dict[str, Any] | None:
    """The curves of effective rank in per cent of the plot, from its lower left; None if no rank was measured."""
    curves, count = effective_ranks(probe), len(probe.layers)
    if not curves:
        return None
    end = scale_end(value for values in curves.values() for value in values)
    power = 10 ** math.floor(math.log10(end))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if end / (power * part) <= 5)
    ticks = math.ceil(end / step)
    numbers = ([f"{name} {number}" for number in map(number_format(values), values)] for name, values in curves.items())
    layers = [{"layer": row.layer, "ranks": ", ".join(words)}
              for row, words in zip(probe.layers, zip(*numbers, strict=True), strict=True)]  # fmt: skip
    return {
        "ticks": [(f"{index * step:.4g}", 100 * index / ticks) for index in range(ticks + 1)],
        "lines": {
            name: [(100 * (i + 0.5) / count, 100 * value / (ticks * step)) for i, value in enumerate(values) if value is not None]
            for name, values in curves.items()
        },
        "layers": layers,
    }
