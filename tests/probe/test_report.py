"""What a probe shows: the table for the terminal, the files, and the page in a real browser."""

from __future__ import annotations

import csv
import random
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from longgen.errors import LonggenError
from longgen.layers.probe_file import LayerScores, Probe, ProbeRun, ProbeSettings, Stability, read
from longgen.probe import plots, report
from longgen.probe.export import NAMES, exports
from tests import browser as chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "<script>alert(1)</script><img src=http://example.com/a.png> \"double\" 'single' & 😀 \x1b[31m {{ 7 * 7 }} $\\frac{"


def probe(layers: int = 6, mode: str = "full", seed: int = 0, **changed: Any) -> Probe:
    """A probe by hand: scores from a generator, verdicts by the thresholds."""
    draw = random.Random(seed)
    names = ["attention", "latent", "video"] if mode == "full" else ["attention"]
    scores = {kind: {name: [draw.random() ** 3 * 4 for _ in range(layers)] for name in names} for kind in ("position", "context")}
    thresholds = {"position": 0.8, "context": 0.5}
    rows = []
    for index in range(layers):
        own = {kind: {name: values[index] for name, values in by_name.items()} for kind, by_name in scores.items()}
        deciding = {kind: by_name[names[-1]] for kind, by_name in own.items()}
        over = [kind for kind in deciding if deciding[kind] > thresholds[kind]]
        verdict = "both" if len(over) == 2 else f"{over[0]}-sensitive" if over else "neither"
        base = 20 + 30 * index / layers + draw.random() * 4
        ranks = {"1x": base, "2x": base * 0.8, "4x": base * 0.55}
        rows.append(LayerScores(layer=index, effective_rank=ranks, verdict=verdict, scores=own, **deciding))  # type: ignore[arg-type]
    agreement = {"position": {"latent": 0.81, "video": 0.62}, "context": {"latent": 0.77, "video": 0.58}} if mode == "full" else {}
    settings = {
        "mode": mode, "frames": 81, "native_frames": 21, "size": (64, 64), "steps": 20, "observed_steps": (2, 10, 18),
        "guidance_scale": 3.0, "shifts": (20, 40), "windows": (1, 2, 4), "prompts": ("a large red circle", "a small blue square"),
        "seeds": (0, 1), "dtype": "fp32",
    }  # fmt: skip
    whole = {
        "longgen": "0.3.0", "backbone": "tiny", "weights": "9f86d081884c7d65", "metric": names[-1],
        "rule": "a layer is sensitive where its score is above the median plus the median absolute deviation",
        "thresholds": thresholds, "layers": rows, "agreement": agreement, "warnings": [],
        "runs": [ProbeRun(prompt=0, seed=0, scores=scores)],  # type: ignore[arg-type]
        "stability": {kind: Stability(seeds=0.93, prompts=0.88) for kind in thresholds}, "seconds": 194.4,
        "peak_memory_bytes": 1_234_000_000, "device": "cpu",
    }  # fmt: skip
    settings |= {key: value for key, value in changed.items() if key in ProbeSettings.model_fields}
    whole |= {key: value for key, value in changed.items() if key not in ProbeSettings.model_fields}
    return Probe(settings=ProbeSettings(**settings), **whole)


def hostile(layers: int = 6, mode: str = "full") -> Probe:
    return probe(layers, mode, backbone=HOSTILE, warnings=[HOSTILE, "é" * 300], rule=HOSTILE, weights="x" * 300, device=HOSTILE,
                 prompts=(HOSTILE, "long " * 100, "x" * 500, "two\nlines\tand a tab"), lora=(HOSTILE,))  # fmt: skip


def columns(line: str) -> int:
    """The columns of a terminal that `line` takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


SORTS = pytest.mark.parametrize(("layers", "mode"), [(6, "full"), (6, "quick"), (60, "full"), (60, "quick")])


@SORTS
@pytest.mark.parametrize("width", [80, 100])
def test_text_has_a_row_for_every_layer_and_fits(layers: int, mode: str, width: int) -> None:
    shown = probe(layers, mode)
    lines = report.text(shown, width).splitlines()
    rows = [line.split() for line in lines if line[:5].strip().isdigit()]
    assert [(int(row[0]), row[-1]) for row in rows] == [(layer.layer, layer.verdict) for layer in shown.layers]
    assert all(
        row[-4:-1] == [f"{rank:.1f}" for rank in layer.effective_rank.values()]
        for row, layer in zip(rows, shown.layers, strict=True)
    )
    assert max(map(columns, lines)) <= width
    narrow = report.text(shown, 40).splitlines()
    tables = [line.split() for line in narrow if line[:5].strip().isdigit()]
    assert max(map(columns, narrow)) <= 40 or layers == 60  # whose lists of layers have no spaces
    assert [row[1:] for row in tables[-layers:]] == [[layer.verdict] for layer in shown.layers]  # in a table of its own
    assert all(any(f"{rank:.1f}" in row for row in tables if row[0] == str(layer.layer))
               for layer in shown.layers for rank in layer.effective_rank.values())  # fmt: skip


def test_bars_are_as_long_as_scores_and_mark_a_threshold_that_is_not_exceeded() -> None:
    scores = [0.0, 2.0, 4.0, 8.0]
    rows = [layer.model_copy(update={"position": score}) for layer, score in zip(probe(4).layers, scores, strict=True)]
    shown = probe(4).model_copy(update={"layers": rows, "thresholds": {"position": 4.0, "context": 9.0}})
    assert report._bars(shown, "position", 8) == ["    ┊", "██  ┊", "████┊", "████████"]
    assert all(bar.endswith("┊") and len(bar) == 8 for bar in report._bars(shown, "context", 8))


def test_text_tells_how_far_to_trust() -> None:
    told = " ".join(report.text(probe(warnings=["one thing", "another thing"])).split())
    assert "warning one thing warning another thing" in told
    assert "between seeds: position 0.93, context 0.93; between prompts: position 0.88, context 0.88" in told
    assert "reruns: position 0.81 by latent, 0.62 by video; context 0.77 by latent, 0.58 by video" in told
    assert "position sensitive above 0.80: 1-2, 4-5 of 6 layers" in told
    alone = {kind: Stability(seeds=None, prompts=0.5) for kind in ("position", "context")}
    quick = " ".join(report.text(probe(mode="quick", seeds=(7,), stability=alone)).split())
    assert "between seeds: unknown, there was only one; between prompts: position 0.50" in quick
    assert "unknown: no full probe of these weights" in quick


@pytest.mark.parametrize("width", [80, 100])
def test_text_of_hostile_words_obeys_nothing_and_fits(width: int) -> None:
    told = report.text(hostile(), width)
    assert "\x1b" not in told
    assert max(map(columns, told.splitlines()[:1])) <= width
    assert [line for line in told.splitlines() if line.startswith("prompt")][-1] == "prompt      two lines and a tab"


def test_a_probe_without_ranks_and_scores_above_nothing() -> None:
    nothing = {"position": 0.0, "context": 0.0, "effective_rank": {}, "verdict": "neither",
               "scores": {"position": {"attention": 0.0}, "context": {}}}  # fmt: skip
    rows = [layer.model_copy(update=nothing) for layer in probe().layers]
    bare = probe(thresholds={"position": -1.0, "context": 0.0}, stability={}, agreement={}).model_copy(update={"layers": rows})
    told = report.text(bare, 80)
    assert "effective rank" not in told
    assert "none of 6 layers" in told
    assert "unknown" in told
    assert "Not measured in this probe." in report.page(bare, Path("probe.json"))


@SORTS
def test_files_are_the_probe_and_pictures_of_their_size(layers: int, mode: str, tmp_path: Path) -> None:
    shown = probe(layers, mode)
    written = report.write(shown, tmp_path / "a" / "b")
    assert [path.name for path in written] == ["probe.json", "scores.png", "effective_rank.png", "report.html"]
    assert sorted(written) == sorted((tmp_path / "a" / "b").iterdir())
    assert read(written[0]) == shown
    count = 6 if mode == "full" else 2
    sizes = [(1.2 + 0.9 * count, 0.9 + plots.ROW_IN * layers), (max(4.5, 0.12 * layers), 3)]
    for path, inches in zip(written[1:3], sizes, strict=True):
        with Image.open(path) as picture:
            assert picture.size == tuple(int(side * plots.DPI + 1e-6) for side in inches)
            assert "Software" not in picture.info
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_equal_probes_are_equal_files(tmp_path: Path) -> None:
    first, again = ([path.read_bytes() for path in report.write(probe(seed=3), tmp_path)] for _ in range(2))
    assert first == again


def test_a_heat_map_is_shaded_from_0_to_the_greatest_of_its_column() -> None:
    shown = probe()
    page = report.page(shown, Path("probe.json"))
    for column in plots.score_columns(shown):
        values = [row.scores[column.sensitivity][column.score] for row in shown.layers]
        drawn = re.findall(rf"{column.sensitivity} by {column.score}: .*\n.*--{column.sensitivity[0]}(\d)", page)
        shades = [int(shade) for shade in drawn]
        assert shades[int(np.argmax(values))] == report.SHADES
        assert shades == [round(value / max(values) * report.SHADES) for value in values]
        over = tuple(cell.layer for cell in column.cells if cell.over)
        assert over == (shown.sensitive(column.sensitivity) if column.score == "video" else ())


def test_numbers_of_a_column_have_three_digits_in_the_greatest() -> None:
    assert [*map(plots.number_format([0.00123, 0.0456]), [0.00123, 0.0456, None])] == ["0.0012", "0.0456", "–"]
    assert [*map(plots.number_format([12.34, 0.5]), [12.34, 0.5])] == ["12.3", "0.5"]
    assert plots.number_format([12345.0])(12345.0) == "12345"
    assert plots.number_format([0.0, -1.0])(0.0) == "0.00"


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LonggenError, match=r"the folder .*file cannot be created"):
        report.write(probe(), tmp_path / "file")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.started() as made:
        yield made


CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const style = node => getComputedStyle(node);
  const page = style(document.body).backgroundColor;
  return [
    ...[...document.querySelectorAll('.heat g')].map(g =>
      contrast(style(g.querySelector('rect')).fill, style(g.querySelector('text')).fill)),
    ...[...document.querySelectorAll('p, dt, figcaption, .tag.neither')].map(node => contrast(style(node).color, page)),
    ...[...document.querySelectorAll('svg > text')].map(node => contrast(style(node).fill, page)),
    ...[...document.querySelectorAll('.warnings, pre, .tag.position-sensitive, .tag.context-sensitive')].map(node =>
      contrast(style(node).color, style(node).backgroundColor)),
  ];
}"""


@pytest.mark.parametrize(("layers", "mode"), [(6, "quick"), (60, "full")])
def test_page_shows_every_layer_asks_for_nothing_and_fits(layers: int, mode: str, tmp_path: Path, browser: Browser) -> None:
    shown = probe(layers, mode, warnings=["a warning"])
    file = tmp_path / "report.html"
    file.write_text(report.page(shown, tmp_path / "probe.json"), encoding="utf-8")
    for width, dark in ((900, True), (400, False)):
        with chromium.opened(browser, file, width, dark) as (page, requests, complaints):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert min(page.evaluate(CONTRASTS)) >= 4.5
            rows = [row.split() for row in page.locator("tbody tr").all_inner_texts()]
            assert [(int(row[0]), row[1]) for row in rows] == [(layer.layer, layer.verdict) for layer in shown.layers]
            cells = page.locator(".heat title").all_text_contents()
            assert len(cells) == layers * (6 if mode == "full" else 2)
            assert sum(cell.endswith(", sensitive") for cell in cells) == sum(
                len(shown.sensitive(kind)) for kind in ("position", "context")
            )
            assert page.locator(".band title").count() == layers
            assert page.locator("polyline").count() == 3
            assert page.locator(".warnings").inner_text() == "a warning"
            assert requests == complaints == []


def test_page_of_hostile_words_is_only_words(tmp_path: Path, browser: Browser) -> None:
    file = report.write(hostile(), tmp_path / "<b>'&")[-1]
    with chromium.opened(browser, file, 400) as (page, requests, complaints):
        assert page.locator("script, img, b b").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.locator("ol li").first.text_content() == HOSTILE
        assert page.locator("h1 bdi").text_content() == HOSTILE
        assert requests == complaints == []


def test_a_probe_is_exported_for_papers(tmp_path: Path) -> None:
    made = probe(layers=7, backbone="a_b")
    written = exports(made).write(("csv", "latex", "markdown", "svg"), tmp_path)
    assert {path.name for path in written} == {"layers.csv", "layers.tex", "layers.md", "scores.svg", "effective_rank.svg"}
    assert {path.stem for path in written} <= {*NAMES}
    rows = [*csv.DictReader((tmp_path / "layers.csv").read_text().splitlines())]
    assert [float(row["context.video"]) for row in rows] == [row.scores["context"]["video"] for row in made.layers]
    assert [row["verdict"] for row in rows] == [row.verdict for row in made.layers]
    lines = (tmp_path / "layers.md").read_text().splitlines()
    bold = [index for index, line in enumerate(lines[2:9]) if line.split("|")[2].strip().startswith("**")]
    assert tuple(bold) == tuple(made.sensitive("position"))
    assert r"a\_b" in lines[-1]
