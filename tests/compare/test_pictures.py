"""Comparisons of videos that start from a picture: what they are made of, what the page shows, and what is warned of."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from longgen import run
from longgen.cli import app
from longgen.compare import page, warnings
from longgen.compare.record import Comparison, read
from tests import browser as chromium

PROMPT = "a large red circle bouncing on a navy background"
HOSTILE = '<img src=x onerror="ran = 1"> & "it\'s".png'
GRID = ["compare", "--backbone", "tiny", "--presets", "direct,sliding-window", "-p", PROMPT, "--frames", "9", "--steps", "1",
        "--metrics", "motion"]  # fmt: skip


def longgen(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LONGGEN_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture of a hostile name, and a comparison of videos that start from it in `out`."""
    folder = tmp_path_factory.mktemp("compared")
    Image.new("RGB", (640, 320), "red").save(folder / HOSTILE)
    done = longgen(*GRID, "--image", str(folder / HOSTILE), "-o", str(folder / "out"))
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert "is 640x320: reduced to 20%, 50% cut off at left and right to be 64x64" in done.stderr
    return folder


def again(folder: Path, *args: str) -> Comparison:
    done = longgen(*GRID, "-o", str(folder / "out"), *args)
    assert done.exit_code == 0, done.stderr
    return read(folder / "out" / "compare.json")


def test_every_cell_knows_its_picture(whole: Path) -> None:
    for cell in read(whole / "out" / "compare.json").cells:
        (key,) = cell.settings["inputs"]
        assert cell.settings["inputs"][key] == HOSTILE
        assert cell.settings["conditions"] == {"image": key, "fit": "crop"}
        assert (whole / "out" / "videos" / f"{cell.name}.run" / "inputs" / f"{key}.png").is_file()


def test_the_same_picture_makes_nothing_new_and_another_does(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    first = {cell.name for cell in read(tmp_path / "out" / "compare.json").cells}
    shutil.copy(whole / HOSTILE, tmp_path / "other.png")
    with monkeypatch.context() as patched:
        patched.setattr(run, "load", None)  # to call it would be an error
        made = again(tmp_path, "--image", str(tmp_path / "other.png"))
    assert {cell.name for cell in made.cells} == first
    padded = again(tmp_path, "--image", str(tmp_path / "other.png"), "--fit", "pad", "--overwrite")
    assert not first & {cell.name for cell in padded.cells}


def test_the_page_shows_the_picture_small_and_escaped(whole: Path) -> None:
    made = read(whole / "out" / "compare.json")
    html = page.page(made, whole / "out")
    assert HOSTILE not in html
    assert "img src=x" not in html.replace("&lt;img src=x", "")
    ((words, small),) = page._pictures(made, whole / "out")
    assert words == f"image {HOSTILE} (fit crop)"
    assert small is not None
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (160, 80)
    assert html.count(f"data:image/png;base64,{small}") == 1
    assert "img-src data:;" in html


def test_without_the_copy_the_page_names_it(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    for folder in (tmp_path / "out" / "videos").glob("*.run"):
        shutil.rmtree(folder)
    made = read(tmp_path / "out" / "compare.json")
    assert page._pictures(made, tmp_path / "out") == [(f"image {HOSTILE} (fit crop)", None)]
    assert "<figcaption" in page.page(made, tmp_path / "out")
    for damaged in ({"image": 3}, {"image": "../../x"}, 3, None):
        cells = [cell.model_copy(update={"settings": cell.settings | {"conditions": damaged}}) for cell in made.cells]
        page.page(made.model_copy(update={"cells": cells}), tmp_path / "out")


def test_the_page_s_command_takes_the_copy(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = read(whole / "out" / "compare.json").cells[0]
    words = shlex.split(page.reproduce(cell, whole / "out"))
    assert words[words.index("--image") + 1].startswith(f"videos/{cell.name}.run/inputs/")
    monkeypatch.chdir(whole / "out")
    done = longgen(*words[1:], "--dry-run", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["starts_from"]["image"] == {
        "name": HOSTILE, "sha256": cell.settings["conditions"]["image"], "size": [640, 320],
    }  # fmt: skip


def test_existing_videos_show_it_too(whole: Path, tmp_path: Path) -> None:
    videos = sorted((whole / "out" / "videos").glob("*.mp4"))
    done = longgen("compare", *map(str, videos), "-o", str(tmp_path / "out"), "--metrics", "motion")
    assert done.exit_code == 0, done.stderr
    made = read(tmp_path / "out" / "compare.json")
    assert {cell.preset for cell in made.cells} == {"direct", "sliding-window"}
    assert page._pictures(made, tmp_path / "out")[0][1] is not None
    done = longgen("compare", *map(str, videos), "-o", str(tmp_path / "two"), "--image", "a.png")
    assert done.exit_code == 2
    assert "--image cannot be combined with existing videos" in done.stderr


def cells(whole: Path, **pictures: str) -> list[Any]:
    """The first cells of the comparison, each of another prompt with its picture."""
    given = zip(read(whole / "out" / "compare.json").cells, pictures.items(), strict=True)
    return [
        cell.model_copy(update={"prompt": prompt, "settings": cell.settings | {"conditions": {"image": key, "fit": "crop"}}})
        for cell, (prompt, key) in given
    ]


def test_pictures_belong_to_prompts(whole: Path) -> None:
    """Each prompt with its own is no difference between presets; of one prompt it is."""
    own = warnings.collect_warnings(cells(whole, a="1" * 64, b="2" * 64), [])
    assert not any("start from" in warning or "conditions" in warning for warning in own)
    one, other = cells(whole, a="1" * 64, b="2" * 64)
    mixed = warnings.collect_warnings([one, other.model_copy(update={"prompt": "a"})], [])
    assert any(f"the videos of 'a' start from different things: image  {'1' * 12}" in warning for warning in mixed)


def test_a_browser_shows_it_and_runs_nothing(whole: Path) -> None:
    with chromium.started() as browser, chromium.opened(browser, whole / "out" / "report.html") as (opened, requests, complaints):
        picture = opened.locator(".pictures img")
        assert picture.count() == 1
        assert picture.evaluate("(image) => image.complete && image.naturalWidth") == 160
        assert opened.locator(".pictures figcaption").inner_text() == f"image {HOSTILE} (fit crop)"
        assert opened.evaluate("typeof ran") == "undefined"
        assert all(address.startswith(("blob:", "data:")) for address in requests)
        assert complaints == []
