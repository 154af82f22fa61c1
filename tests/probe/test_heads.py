"""What heads see of a rollout's past: their groups, the file, the table, the pictures and the command."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from longgen.cli import app
from longgen.layers.probe_file import HeadShares, Probe, ProbeRun, probe_folder, read
from longgen.probe import plots, report
from longgen.probe.heads import group_heads
from tests import browser as chromium
from tests.probe.test_report import columns
from tests.probe.test_report import probe as plain_probe

PROMPT = "a small red circle orbiting on a black background"


def run(mean: Any, early: Any) -> ProbeRun:
    return ProbeRun(prompt=0, seed=0, scores={}, heads={"mean": mean, "early": early})


def with_heads(layers: int, heads: int) -> Probe:
    draw = random.Random(0)
    rows = []
    for _ in range(layers):
        cuts = [sorted((draw.random() * 0.5, draw.random())) for _ in range(heads)]
        rows.append([HeadShares(first=a, middle=b - a, current=1 - b, group=draw.choice(["first", "middle", "dummy"]),
                                agreement=draw.choice([0.5, 1.0])) for a, b in cuts])  # fmt: skip
    return plain_probe(layers).model_copy(update={"heads": rows})


def test_groups_are_those_early_in_the_videos_and_shares_the_means_over_chunks() -> None:
    """Of all heads the parts in the first frame are 0.6, 0.1, 0.1, 0.2 of their sum, those in the middle 0.1, 0.1, 0.2, 0.6."""
    early = [[[0.30, 0.05, 0.65], [0.05, 0.05, 0.90]], [[0.05, 0.10, 0.85], [0.10, 0.30, 0.60]]]
    other = [
        [[0.05, 0.05, 0.90], [0.30, 0.05, 0.65]],
        [[0.05, 0.10, 0.85], [0.10, 0.30, 0.60]],
    ]  # the first layer's two change places
    mean = [[[0.1, 0.2, 0.7], [0.2, 0.3, 0.5]], [[0.4, 0.0, 0.6], [0.0, 0.0, 1.0]]]
    later = [[[0.3, 0.2, 0.5], [0.2, 0.3, 0.5]], [[0.4, 0.0, 0.6], [0.0, 0.0, 1.0]]]
    grouped = group_heads([run(mean, early), run(later, early), run(mean, early), run(mean, other)])
    assert grouped is not None
    assert [[head.group for head in row] for row in grouped] == [["first", "dummy"], ["dummy", "middle"]]
    assert [[head.agreement for head in row] for row in grouped] == [[0.75, 0.75], [1.0, 1.0]]
    assert [grouped[0][0].first, grouped[0][0].middle, grouped[0][0].current] == pytest.approx([0.15, 0.2, 0.65])
    assert [grouped[1][1].first, grouped[1][1].current] == [0.0, 1.0]
    assert group_heads([ProbeRun(prompt=0, seed=0, scores={})]) is None


def test_a_file_without_heads_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = plain_probe()
    assert "heads" not in json.dumps(plain.as_dict())
    (tmp_path / "probe.json").write_text(json.dumps(plain.as_dict()))
    assert read(tmp_path / "probe.json") == plain
    assert probe_folder("w", plain.settings.model_copy(update={"heads": True})) != probe_folder("w", plain.settings)
    shown = with_heads(2, 3)
    (tmp_path / "probe.json").write_text(json.dumps(shown.as_dict()))
    assert read(tmp_path / "probe.json") == shown


@pytest.mark.parametrize(("layers", "heads", "lines_each"), [(6, 4, 1), (40, 40, 1), (3, 100, 3)])
def test_a_letter_for_every_head_fits_the_terminal(layers: int, heads: int, lines_each: int) -> None:
    shown = with_heads(layers, heads)
    assert shown.heads is not None
    lines = report._heads(shown, 80)
    table = lines[1 : 1 + layers * lines_each]
    assert max(map(columns, lines)) <= 80
    assert lines[1 + layers * lines_each] == ""
    for layer, row in enumerate(shown.heads):
        first, *rest = (line.split() for line in table[layer * lines_each : (layer + 1) * lines_each])
        assert int(first[0]) == layer
        assert "".join([first[1], *(words[0] for words in rest)]) == "".join(head.group[0].upper() for head in row)
        shares = [np.mean([getattr(head, part) for head in row]) for part in ("first", "middle", "current")]
        assert first[2:] == [f"{100 * share:.0f}%" for share in shares]
    told = " ".join(report.text(shown, 80).split())
    assert "measures heads anew in each run and does not read this" in told
    assert "One prompt and seed alone" not in told  # there was one run
    two = " ".join(report.text(shown.model_copy(update={"runs": shown.runs * 2}), 80).split())
    alike = np.mean([head.agreement for row in shown.heads for head in row])
    assert f"One prompt and seed alone puts {100 * alike:.0f}% of heads in the same group" in two
    assert "dummy-forcing" not in report.text(plain_probe(), 80)


@pytest.mark.parametrize(("layers", "heads"), [(6, 4), (3, 40)])
def test_the_picture_and_the_page_have_every_head(layers: int, heads: int, tmp_path: Path) -> None:
    shown = with_heads(layers, heads)
    names = [path.name for path in report.write(shown, tmp_path)]
    assert names == ["probe.json", "scores.png", "effective_rank.png", "heads.png", "report.html"]
    side = plots.ROW_IN if heads == 4 else plots.DENSE_ROW_IN
    with Image.open(tmp_path / "heads.png") as picture:
        assert picture.size == tuple(int(plots.DPI * (0.8 + inches) + 1e-6) for inches in
                                     (3 * max(side * heads + 0.25, 0.9), side * layers))  # fmt: skip
    (axes, *_) = (figure := plots.heads_figure(shown)).axes
    assert len(figure.axes) == 3
    assert shown.heads is not None
    for group, letters in zip(("first", "middle", "dummy"), axes.collections, strict=True):
        places = {(x, y) for y, row in enumerate(shown.heads) for x, head in enumerate(row) if head.group == group}
        assert {(int(x), int(y)) for x, y in letters.get_offsets()} == places
    page = (tmp_path / "report.html").read_text()
    shades = dict(re.findall(r"<title>(.*)</title>\n.*--p(\d)", page))
    for part in ("first", "middle", "current"):
        most = max(getattr(head, part) for row in shown.heads for head in row)
        assert f"{part}</tspan> up to {100 * most:.0f}%" in page
        for layer, row in enumerate(shown.heads):
            for index, head in enumerate(row):
                share = getattr(head, part)
                cell = f"layer {layer}, head {index}, {head.group}: {100 * share:.1f}% {part}"
                assert shades[cell] == str(round(share / most * report.SHADES))
    assert "<h2>Heads" not in report.page(plain_probe(), Path("probe.json"))


def test_the_page_fits(tmp_path: Path) -> None:
    with chromium.started() as browser:
        for count in (4, 30):
            file = report.write(with_heads(3, count), tmp_path / str(count))[-1]
            with chromium.opened(browser, file, 400) as (page, requests, complaints):
                assert page.evaluate("document.documentElement.scrollWidth") <= 400
                assert page.locator(".heads title").count() == 3 * 3 * count
                assert requests == complaints == []


def test_the_command_reads_heads_and_says_where_there_is_no_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = ["--quick", "--seeds", "0", "--frames", "85", "--steps", "1", "--size", "32x32", "-p", PROMPT]
    made = CliRunner().invoke(app, ["probe", "--backbone", "tiny-causal", "--heads", *small, "--json", "--quiet"])
    assert made.exit_code == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["settings"]["heads"] is True
    assert [len(row) for row in found["heads"]] == [4] * 6
    assert [row[0]["first"] for row in found["heads"]] == [row[0][0] for row in found["runs"][0]["heads"]["mean"]]
    assert all(head["first"] + head["middle"] + head["current"] == pytest.approx(1) for row in found["heads"] for head in row)
    assert sum(head["group"] == "dummy" for row in found["heads"] for head in row) == 12
    again = CliRunner().invoke(app, ["probe", "--backbone", "tiny-causal", "--heads", *small])
    assert "already measured" in again.stderr
    assert "layer  heads  first  middle  current" in again.stdout
    refused = CliRunner().invoke(app, ["probe", "--backbone", "tiny", "--heads", "--quiet"])
    assert refused.exit_code == 2
    assert "--heads: tiny denoises a whole clip at once" in refused.stderr
