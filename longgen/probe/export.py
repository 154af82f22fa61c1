"""A probe for papers: its verdicts and scores as a table and as numbers, and its figures."""

from __future__ import annotations

from functools import partial
from typing import Any

from longgen.export import Data, Exports, Table
from longgen.layers.probe_file import HEAD_PARTS, SENSITIVITIES, Probe
from longgen.probe.plots import effective_ranks, heads_figure, number_format, rank_figure, score_columns, scores_figure

NAMES = ("layers", "heads", "scores", "effective_rank")  # of all files, without suffix


def exports(probe: Probe) -> Exports:
    """Data `layers`, and `heads` where heads were read; a table `layers`; the figures of the report."""
    ranks, columns = effective_ranks(probe), score_columns(probe)
    scores = [[row.scores.get(column.sensitivity, {}).get(column.score) for row in probe.layers] for column in columns]
    heads = (
        "layer",
        "verdict",
        *(f"{column.sensitivity}.{column.score}" for column in columns),
        *(f"rank.{name}" for name in ranks),
    )
    layers = [(row.layer, row.verdict) for row in probe.layers]
    numbers = zip(layers, *scores, *ranks.values(), strict=True)
    data = [Data("layers", heads, [(*layer, *values) for layer, *values in numbers])]
    figures: dict[str, Any] = {"scores": partial(scores_figure, probe)}
    if ranks:
        figures["effective_rank"] = partial(rank_figure, probe)
    if probe.heads is not None:
        rows = [(layer, number, head.group, *(getattr(head, part) for part in HEAD_PARTS))
                for layer, own in enumerate(probe.heads) for number, head in enumerate(own)]  # fmt: skip
        data.append(Data("heads", ("layer", "head", "group", *HEAD_PARTS), rows))
        figures["heads"] = partial(heads_figure, probe)
    return Exports(data, [_table(probe)], figures)


def _table(probe: Probe) -> Table:
    """The deciding scores, those that make a layer sensitive in bold, and effective ranks."""
    ranks = effective_ranks(probe)
    decides = {key: [getattr(row, key) for row in probe.layers] for key in SENSITIVITIES}
    shown = [[number_format([*values, probe.thresholds[key]])(value) for value in values] for key, values in decides.items()]
    shown += [[number_format(values)(value) for value in values] for values in ranks.values()]
    rows = [(str(row.layer), *cells, row.verdict) for row, *cells in zip(probe.layers, *shown, strict=True)]
    over = frozenset((line, column) for column, key in enumerate(SENSITIVITIES, start=1)
                     for line, row in enumerate(probe.layers) if row.layer in probe.sensitive(key))  # fmt: skip
    limits = ", ".join(f"{key} {probe.thresholds[key]:.3g}" for key in SENSITIVITIES)
    notes = (f"{probe.settings.mode} probe of {probe.backbone}, {probe.settings.frames} frames; scores by {probe.metric}; "
             f"bold: above the threshold ({limits}).",)  # fmt: skip
    return Table("layers", ("layer", *SENSITIVITIES, *(f"rank {name}" for name in ranks), "verdict"), rows, over, notes)
