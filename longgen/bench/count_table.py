"""Counts of operators for the terminal: a row for each type of step and kind of layer, then the estimated time of a run by card."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from longgen.bench.count import StepCount, as_dict, run_seconds
from longgen.bench.record import DIRECT
from longgen.cards import DOUBLE, MATMUL_SHARE, PRECISIONS, Card
from longgen.plan import Plan
from longgen.terminal import MISSING, tables
from longgen.units import about_time

SCHEMA = 1
WIDTH = 80
HEADS = ("preset", "step", "x", "launches", "attn", "copy", "wait", "eigh", "TFLOP", "f64", "GB")

Counts = Mapping[str, Sequence[StepCount] | str]  # by preset, or why it could not be counted


def count_dict(counts: Counts, yardstick: Plan, dtype: str, cards: Sequence[Card]) -> dict[str, Any]:
    """As plain data: of each preset its types of step, with operators of a layer and of the rest of the model in one model call.

    estimated_run_seconds: by card, sampling alone. Nothing in it is measured.
    """
    return {
        "schema": SCHEMA,
        "backbone": yardstick.spec.name,
        "measured": False,
        "settings": {"frames": yardstick.frames_px, "latent_frames": yardstick.frames_lat, "size": [*yardstick.size],
                     "tokens": yardstick.tokens, "steps": yardstick.steps, "dtype": dtype},
        "cards": {card.name: {"launch_seconds": card.launch_s, "matmul_tflops": card.matmul, "vector_tflops": card.vector,
                              "bandwidth_tb_per_s": card.bandwidth, "matmul_share": MATMUL_SHARE,
                              "attention_share": card.attention_share, "eigen_tflops": card.eigen} for card in cards},
        "presets": [{"preset": name, "error": found} if isinstance(found, str) else _preset_dict(name, found, cards)
                    for name, found in counts.items()],
    }  # fmt: skip


def _preset_dict(name: str, counts: Sequence[StepCount], cards: Sequence[Card]) -> dict[str, Any]:
    steps = [
        {
            "step": count.name,
            "in_a_run": round(count.in_a_run, 3),
            "model_calls": round(count.calls, 3),
            "layers": [{"block": layer.block, "layers": layer.layers, **as_dict(layer.operators)} for layer in count.layers],
            "rest_of_model": as_dict(count.rest),
            "estimated_seconds": {card.name: round(count.seconds(card), 5) for card in cards},
        }
        for count in counts
    ]
    return {
        "preset": name,
        "steps": steps,
        "estimated_run_seconds": {card.name: round(run_seconds(counts, card), 3) for card in cards},
    }


def count_text(counts: Counts, yardstick: Plan, dtype: str, cards: Sequence[Card], width: int = WIDTH) -> str:
    """A title, the table of counts, the table of estimates, what could not be counted, and a legend, at most 80 columns wide."""
    columns = min(width, WIDTH)
    done = {name: found for name, found in counts.items() if not isinstance(found, str)}
    across, height = yardstick.size
    title = (f"{yardstick.spec.name}, {dtype}: {yardstick.frames_px} frames, {across}x{height}, {yardstick.tokens:,} tokens; "
             "counted without a GPU")  # fmt: skip
    rows = [HEADS, *(row for name, found in done.items() for row in _count_rows(name, found))]
    lines = [*textwrap.wrap(title, columns), "", *tables(rows, columns, left=2), ""]
    lines += tables([("a run, estimated", *(f"{card.name}  ratio" for card in cards)),
                      *((name, *_estimates(found, done.get(DIRECT), cards)) for name, found in done.items())], columns)  # fmt: skip
    for name, found in counts.items():
        if isinstance(found, str):
            lines += ["", *textwrap.wrap(f"{name}: {found}", columns, subsequent_indent="  ")]
    legend = (
        "A row is one layer in one model call after the first. x: how many are alike. attn: attention calls; copy: from the host; "
        "wait: of the host; TFLOP: all arithmetic, f64: of it in double precision; GB: read and written. a run: sampling alone, "
        "without text encoder and VAE; ratio: to direct's; estimated from a card's published rates "
        f"({MATMUL_SHARE:.0%} of them for matrix products) and {cards[0].launch_s * 1e6:g} microseconds a launch: "
        "nothing here is measured."
    )
    return "\n".join([*lines, "", *textwrap.wrap(legend, columns)])


def _count_rows(name: str, counts: Sequence[StepCount]) -> list[tuple[str, ...]]:
    rows = []
    for count in counts:
        for layer in count.layers:
            found = as_dict(layer.operators)
            operations = found["operations"]
            names = ("launches", "attention_calls", "copies_from_host", "waits", "eigenproblems")
            rows.append((
                name, count.name, str(layer.layers), *(f"{found[key]:,}" for key in names),
                _short(sum(operations[precision] for precision in PRECISIONS) / 1e12),
                _short(operations[DOUBLE] / 1e12), _short(found["bytes"] / 1e9),
            ))  # fmt: skip
            name = ""
    return rows


def _short(number: float) -> str:
    """Three digits; what is too small for the table is only said to be there."""
    return f"{number:.3g}" if number >= 0.01 or not number else "<.01"


def _estimates(counts: Sequence[StepCount], direct: Sequence[StepCount] | None, cards: Sequence[Card]) -> list[str]:
    """By card, the time of a run and its ratio to direct sampling's."""
    cells = []
    for card in cards:
        seconds = run_seconds(counts, card)
        ratio = MISSING if direct is None else f"{seconds / run_seconds(direct, card):.2f}"
        cells.append(f"{about_time(seconds)}  {ratio:>5}")
    return cells
