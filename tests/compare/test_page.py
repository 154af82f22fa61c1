"""report.html in a real browser: its tiles show the same frame, whatever is pressed; its table; and what hostile words do to it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from longgen import planner, preset
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.compare import page
from longgen.compare.record import Cell, Comparison, PromptView
from longgen.describe import plan_dict
from longgen.errors import LonggenError
from longgen.metrics import KNOWN, METRICS
from longgen.run_settings import stored_settings
from longgen.video import Writer, read_frames
from tests import browser as chromium
from tests.compare.aggregated import aggregated

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '</script><script>ran = 1</script><img src=x onerror="ran = 1"> "double" \'single\' & 😀\nline <!-- {{ 7 * 7 }} \x1b[31m'
BITS, BIT_PX, SIDE = 9, 7, 64  # of the frame number, which every frame shows as black and white columns
# The number that each tile shows, as its pixels have it; null where there is no picture.
SHOWN = """tiles.filter((tile) => !tile.broken).map(({video}) => {
  if (video.readyState < 2 || video.seeking) return null;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(video, 0, 0);
  const row = context.getImageData(0, 32, 64, 1).data;
  return [0, 1, 2, 3, 4, 5, 6, 7, 8].reduce((number, bit) => number + (row[(bit * 7 + 3) * 4] > 127 ? 1 << bit : 0), 0);
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.started() as started:
        yield started


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """counting(frames, fps): a video whose frames show their numbers."""
    folder = tmp_path_factory.mktemp("counting")

    def made(frames: int, fps: int = 16) -> Path:
        path = folder / f"{frames}-{fps}.mp4"
        if not path.exists():
            pictures = np.full((frames, SIDE, SIDE, 3), 16, np.uint8)
            for bit in range(BITS):
                on = (np.arange(frames) >> bit) % 2 == 1
                pictures[on, 8:56, bit * BIT_PX : (bit + 1) * BIT_PX] = 240
            with Writer(path, (SIDE, SIDE), fps, {}) as writer:
                writer.add(pictures)
        return path

    return made


@pytest.fixture
def write(counting: Any, tmp_path: Path) -> Any:
    """write(presets=2, ...): a comparison of counting videos, written as a page; its path."""

    def made(**changed: Any) -> Path:
        folder = tmp_path / "a folder"
        folder.mkdir(exist_ok=True)
        whole = comparison(**changed)
        for cell in whole.cells:
            if cell.video:
                shutil.copy(counting(cell.frames, round(cell.fps)), folder / cell.video)
        return page.write_page(whole, folder)

    return made


def comparison(
    presets: int | list[str] = 3,
    prompts: tuple[str | None, ...] = ("a red circle",),
    seeds: tuple[int | None, ...] = (0,),
    frames: int = 40,
    fps: dict[str, int] | None = None,
    failed: dict[int, str] | None = None,
    baseline: str | None = "preset-0",
    **changed: Any,
) -> Comparison:
    """A comparison by hand, its scores from a generator. fps: of presets that are not at 16. failed: cell -> error."""
    names = [f"preset-{index}" for index in range(presets)] if isinstance(presets, int) else presets
    draw, cells = np.random.default_rng(0), []
    for prompt in prompts:
        for seed in seeds:
            for index, name in enumerate(names):
                rate = (fps or {}).get(name, 16)
                length = frames * rate // 16
                own = {metric: 20 + 10 * index + draw.random() for metric in METRICS}
                curves = {curve: [None, *draw.random(length - 1).tolist()] for curve in ("motion", "difference", "flicker")}
                error = (failed or {}).get(len(cells))
                known: dict[str, Any] = dict(video=f"v{len(cells)} #1.mp4", metrics=own, curves=curves, seams=[8, 16])
                cells.append(Cell(
                    name=f"v{len(cells)}", preset=name, prompt=prompt, seed=seed, status="failed" if error else "done", error=error,
                    frames=length, fps=rate, size=(SIDE, SIDE), seconds={"load": 1.0, "sample": 2.0, "decode": 0.5},
                    cost_ratio=0.75, peak_memory_bytes=1_500_000_000, **({} if error else known),
                ))  # fmt: skip
    whole: dict[str, Any] = {
        "longgen": "0.4.0", "backbone": "tiny", "presets": names, "prompts": [*prompts], "seeds": [*seeds], "baseline": baseline,
        "cells": cells, **aggregated(names, cells, baseline, [*METRICS]), "warnings": [], "device": "cpu",
        "watch": [PromptView(prompt=prompt, side_by_side="side-by-side/a.mp4", sheet="sheets/a.png") for prompt in prompts],
        "libraries": {"torch": "2.13.0"},
    }  # fmt: skip
    return Comparison(**whole | changed)


def stands(opened: Page, frame: int | list[int]) -> list[int | None]:
    """The numbers of all tiles, as soon as none is being sought and they are `frame`; what they are where that does not come."""
    wanted = frame if isinstance(frame, list) else [frame] * opened.evaluate("tiles.filter((tile) => !tile.broken).length")
    for _ in range(100):
        shown: list[int | None] = opened.evaluate(SHOWN)
        if shown == wanted:
            opened.wait_for_timeout(30)  # and it stays
            shown = opened.evaluate(SHOWN)
            break
        opened.wait_for_timeout(30)
    assert shown == wanted
    return shown


def until(opened: Page, condition: str) -> None:
    """Waits for `condition`. The page's own policy forbids what playwright's wait_for_function does."""
    for _ in range(400):
        if opened.evaluate(condition):
            return
        opened.wait_for_timeout(25)
    raise AssertionError(f"never came: {condition}")


def position(opened: Page) -> int:
    return int(opened.locator("#position").inner_text().split()[1])


def test_step_and_seek_show_the_same_frame_in_every_tile(browser: Browser, write: Any) -> None:
    file = write(presets=3, seeds=(0, 1), fps={"preset-2": 8})
    with chromium.opened(browser, file) as (opened, requests, complaints):

        def everywhere(frame: int) -> None:
            stands(opened, [frame, frame, frame // 2] * 2)
            assert position(opened) == frame
            assert int(opened.locator("#seek").input_value()) == frame

        everywhere(0)
        for button, frame in (("forward", 1), ("forward", 2), ("forward", 3), ("back", 2)):
            opened.click(f"#{button}")
            everywhere(frame)
        opened.locator("#seek").fill("17")
        everywhere(17)
        opened.locator("h1").click()
        for key, frame in (("ArrowRight", 18), ("ArrowLeft", 17)):
            opened.keyboard.press(key)
            everywhere(frame)
        opened.locator("#seek").focus()
        for key, frame in (("ArrowRight", 18), ("End", 39), ("Home", 0)):
            opened.keyboard.press(key)
            everywhere(frame)
        opened.click("#back")
        everywhere(0)
        for frame in range(1, 40, 7):
            opened.evaluate(f"go({frame})")
            everywhere(frame)
        assert all(address.startswith("blob:") for address in requests)
        assert complaints == []


def test_play_advances_all_tiles_together_and_pause_stops_them(browser: Browser, write: Any) -> None:
    with chromium.opened(browser, write(presets=4, frames=96)) as (opened, _, complaints):
        stands(opened, 0)
        opened.click("#play")
        until(opened, "clock.frame > 16")
        seen = []
        for _ in range(8):
            seen.append(opened.evaluate(SHOWN))
            assert max(seen[-1]) - min(seen[-1]) <= 2, seen
            opened.wait_for_timeout(60)
        assert min(seen[-1]) > max(seen[0])
        opened.click("#play")
        stopped = position(opened)
        stands(opened, stopped)
        opened.wait_for_timeout(200)
        stands(opened, stopped)
        opened.locator("h1").click()
        opened.keyboard.press("Space")
        until(opened, f"clock.frame > {stopped} + 3")
        opened.click("#forward")  # a step ends playing
        assert not opened.evaluate("clock.playing")
        stands(opened, position(opened))
        assert complaints == []


def test_playing_ends_at_the_last_frame_or_begins_again(browser: Browser, write: Any) -> None:
    file = write(presets=2, frames=24, fps={"preset-1": 8})
    with chromium.opened(browser, file) as (opened, _, complaints):
        stands(opened, 0)
        opened.uncheck("#loop")
        opened.select_option("#speed", "2")
        opened.click("#play")
        until(opened, "!clock.playing")
        stands(opened, [23, 11])
        opened.check("#loop")
        opened.click("#play")  # from the end: from the beginning
        until(opened, "clock.frame > 16")
        until(opened, "clock.frame < 10")
        assert opened.evaluate("clock.playing")
        opened.select_option("#speed", "0.25")
        assert opened.evaluate("clock.speed") == 0.25
        assert complaints == []


def test_the_cursor_follows_and_a_click_on_the_curves_seeks(browser: Browser, write: Any) -> None:
    with chromium.opened(browser, write(presets=2)) as (opened, _, complaints):
        cursor = "Number(document.querySelector('#chart .cursor').getAttribute('x1'))"
        first = opened.evaluate(cursor)
        opened.locator("#seek").fill("20")
        middle = opened.evaluate(cursor)
        opened.locator("#seek").fill("39")
        assert opened.evaluate(cursor) - first == pytest.approx((middle - first) * 39 / 20, abs=0.1)
        opened.locator("#chart svg").scroll_into_view_if_needed()
        box = opened.locator("#chart svg").bounding_box()
        assert box
        opened.mouse.click(box["x"] + middle, box["y"] + 50)
        stands(opened, 20)
        curve = comparison(presets=2).cells[0].curves["flicker"]
        opened.select_option("#curve", "flicker")
        assert float(opened.locator("#legend b").first.inner_text()) == pytest.approx(curve[20], abs=0.006)
        assert opened.locator("#chart .tick").count() == 4  # two seams of two presets
        assert opened.locator("#chart path").count() == 2
        colours = "[...document.querySelectorAll(%r)].map((node) => getComputedStyle(node).%s)"
        lines = opened.evaluate(colours % ("#chart path", "stroke"))
        assert lines == opened.evaluate(colours % (".tile figcaption", "borderTopColor"))
        assert len(set(lines)) == 2
        assert complaints == []


def test_the_table_is_sorted_by_its_heads(browser: Browser, write: Any) -> None:
    with chromium.opened(browser, write(presets=3, failed={1: "no memory"})) as (opened, _, complaints):

        def order() -> list[str]:
            return [text.split("\n")[0].split(" ")[0] for text in opened.locator("tbody .name").all_inner_texts()]

        assert order() == ["preset-0", "preset-1", "preset-2"]
        opened.click("thead button:has-text('smoothness')")  # higher is better: the best first; without a number last
        assert order() == ["preset-2", "preset-0", "preset-1"]
        opened.click("thead button:has-text('smoothness')")
        assert order() == ["preset-0", "preset-2", "preset-1"]
        assert opened.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
        opened.click("thead button:has-text('drift')")  # lower is better
        assert order() == ["preset-0", "preset-2", "preset-1"]
        opened.click("thead .name button")
        assert order() == ["preset-0", "preset-1", "preset-2"]
        assert "at equal brightness" in str(opened.locator("thead .motion button").get_attribute("title"))
        assert complaints == []


def test_prompts_and_seeds_are_chosen_and_tiles_enlarged(browser: Browser, write: Any) -> None:
    file = write(presets=2, prompts=("a red circle", "a blue square"), seeds=(0, 1), failed={5: "no memory"})
    with chromium.opened(browser, file, width=1200) as (opened, _, complaints):
        stands(opened, 0)
        names = "tiles.map((tile) => tile.cell.name)"
        assert opened.evaluate(names) == ["v0", "v1", "v2", "v3"]
        opened.locator("#seek").fill("9")
        opened.select_option("#prompt", label="a blue square")
        assert opened.evaluate(names) == ["v4", "v5", "v6", "v7"]
        assert opened.locator("#text bdi").inner_text() == "a blue square"
        assert opened.locator("div.screen").all_inner_texts() == ["no memory"]
        stands(opened, 9)
        opened.select_option("#seed", label="1")
        assert opened.evaluate(names) == ["v6", "v7"]
        assert opened.locator(".tile .cost").all_inner_texts() == ["seed 1 · 0.75× cost · 2.5 s"] * 2
        stands(opened, 9)

        def widths() -> list[float]:
            boxes = [box for tile in opened.locator(".tile video").all() if (box := tile.bounding_box())]
            assert all(box["height"] == box["width"] for box in boxes)
            return [box["width"] for box in boxes]

        before = widths()
        opened.locator("button.screen").last.click()
        assert widths()[0] == before[0] < widths()[1]
        assert all(width % SIDE == 0 for width in widths())
        assert opened.evaluate("getComputedStyle(tiles[1].video).imageRendering") == "pixelated"
        opened.keyboard.press("Escape")
        assert widths() == before
        assert complaints == []


@pytest.mark.parametrize(("presets", "seeds", "frames"), [(1, (None,), 9), (12, (0, 1), 321)])
def test_few_and_many_tiles(browser: Browser, write: Any, presets: int, seeds: tuple[int | None, ...], frames: int) -> None:
    with chromium.opened(browser, write(presets=presets, seeds=seeds, frames=frames), width=1280) as (opened, _, complaints):
        assert opened.locator(".tile video").count() == presets * len(seeds)
        for frame in (frames // 2, frames - 1, 1):
            opened.evaluate(f"go({frame})")
            stands(opened, frame)
        opened.click("#play")
        until(opened, "clock.frame > 4")
        opened.click("#play")
        stands(opened, position(opened))
        looks = opened.evaluate("[...document.querySelectorAll('tbody .swatch')].map((node) => node.className.baseVal)")
        assert len(set(looks)) == presets  # colours come again with other dashes
        for width in (1280, 400):
            opened.set_viewport_size({"width": width, "height": 800})
            until(opened, f"innerWidth == {width} && document.documentElement.scrollWidth <= {width}")  # the tiles follow
        assert complaints == []


def test_hostile_words_are_text(browser: Browser, write: Any) -> None:
    long = "x" * 500
    names = [HOSTILE, long]
    file = write(
        presets=names, prompts=(HOSTILE, long, None), failed={1: HOSTILE}, warnings=[HOSTILE, long], device=HOSTILE,
        backbone=HOSTILE, baseline=HOSTILE, libraries={HOSTILE: HOSTILE},
    )  # fmt: skip
    with chromium.opened(browser, file, width=400, dark=True) as (opened, requests, complaints):
        opened.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
        assert opened.evaluate("document.documentElement.scrollWidth") <= 400
        for index, text in enumerate((HOSTILE, long, "")):
            opened.select_option("#prompt", str(index))
            assert "".join(opened.locator("#text bdi").all_text_contents()).replace("\r", "") == text
            opened.locator("#seek").fill("3")
            assert opened.evaluate("document.documentElement.scrollWidth") <= 400
        opened.select_option("#prompt", "0")
        stands(opened, 3)
        assert opened.locator("div.screen").text_content() == HOSTILE
        assert opened.locator(".warnings li").first.text_content() == HOSTILE
        assert opened.locator("tbody .name bdi").first.text_content() == HOSTILE
        assert opened.locator("img").count() == 0
        assert opened.evaluate("typeof ran") == "undefined"
        assert all(address.startswith("blob:") for address in requests)
        assert complaints == []


def test_the_script_policy_keeps_others_from_running(browser: Browser, write: Any) -> None:
    file = write(presets=1)
    file.write_text(file.read_text(encoding="utf-8").replace("<h1>", "<script>ran = 1</script><h1>"), encoding="utf-8")
    with chromium.opened(browser, file) as (opened, _, complaints):
        stands(opened, 0)
        assert opened.evaluate("typeof ran") == "undefined"
        assert len(complaints) == 1


def test_videos_too_large_together_are_linked(browser: Browser, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from PIL import Image

    monkeypatch.setattr(page, "EMBED_BYTES", 1)
    file = write(presets=2)
    assert "plays them from its folder" in file.read_text(encoding="utf-8")
    with chromium.opened(browser, file) as (opened, requests, complaints):
        opened.locator("#seek").fill("37")
        until(opened, "tiles.every(({video}) => video.readyState > 1 && !video.seeking)")
        for number, video in enumerate(opened.locator(".tile video").all()):
            picture = np.asarray(Image.open(io.BytesIO(video.screenshot())).convert("L").resize((SIDE, SIDE)))
            assert sum(1 << bit for bit in range(BITS) if picture[32, bit * BIT_PX + 3] > 127) == 37
            assert f"{(file.parent / f'v{number} #1.mp4').as_uri()}" in requests
        assert not opened.locator("#save").is_visible()  # their pixels cannot be read
        assert complaints == []


def test_a_video_that_is_not_there_or_not_to_be_played_says_so(browser: Browser, write: Any) -> None:
    file = write(presets=3)
    (file.parent / "v0 #1.mp4").unlink()
    (file.parent / "v1 #1.mp4").write_bytes(b"no video" * 100)
    page.write_page(comparison(presets=3), file.parent)
    with chromium.opened(browser, file) as (opened, _, complaints):
        stands(opened, [0])
        told = opened.locator("div.screen").all_inner_texts()
        assert told == ["v0 #1.mp4 is missing", "This browser cannot play the video."]
        opened.click("#play")
        until(opened, "clock.frame > 3")
        assert complaints == []


def test_the_table_says_what_is_best_and_what_could_be_chance(browser: Browser, write: Any) -> None:
    whole = comparison(presets=2, prompts=tuple("abcdefghij"))
    cells = [cell.model_copy(update={"metrics": cell.metrics | {"drift": 5 + index % 2 * (-1) ** (index // 2)}})
             for index, cell in enumerate(whole.cells)]  # fmt: skip
    fields = aggregated(whole.presets, cells, "preset-0", [*METRICS])
    with chromium.opened(browser, write(presets=2, prompts=tuple("abcdefghij"), cells=cells, **fields)) as (opened, _, _):
        heads = [text.split("\n")[0].strip() for text in opened.locator("thead button").all_inner_texts()]
        assert heads[:3] == ["preset", "motion", "freeze"]
        said = opened.locator(".verdict").inner_text()
        assert "preset-1 against preset-0, 10 pairs: motion +" in said
        assert "drift" not in said  # which may be chance
        row = opened.locator("tbody tr").nth(1)
        smooth, drift = (row.locator("td").nth(heads.index(name) - 1) for name in ("smoothness", "drift"))
        assert "best" in str(smooth.get_attribute("class"))
        assert "same" not in str(smooth.get_attribute("class"))
        assert "same" in str(drift.get_attribute("class"))
        assert "against preset-0 it may be chance" in str(drift.get_attribute("title"))
        interval = drift.locator(".difference")
        assert not interval.is_visible()
        opened.check("#intervals")
        assert interval.is_visible()
        opened.uncheck("#intervals")
        opened.emulate_media(media="print")
        assert interval.inner_text().startswith("~ ")
        assert interval.is_visible()
        assert not opened.locator("#controls").is_visible()


def test_the_table_of_our_metrics_and_vbench_s_fits_a_window_of_1440_pixels(browser: Browser, write: Any) -> None:
    names = [name for name in KNOWN if not name.startswith("feature_")]  # with these two as well it scrolls in its box
    presets, draw = ["direct", "sliding-window", "freespec", "free-long"], np.random.default_rng(1)
    cells = [cell.model_copy(update={"metrics": {name: draw.uniform(-100, 100) for name in names}})
             for cell in comparison(presets=presets, seeds=(0, 1), failed={3: "no memory"}).cells]  # fmt: skip
    fields = {"cells": cells, "baseline": "direct", **aggregated(presets, cells, "direct", names)}
    with chromium.opened(browser, write(presets=presets, seeds=(0, 1), **fields), width=1440) as (opened, _, complaints):
        assert opened.locator("thead th").count() == 1 + len(names) + 3
        for shown in (False, True):
            opened.set_checked("#intervals", shown)
        box = opened.evaluate("[document.querySelector('.scroll').scrollWidth, document.querySelector('.scroll').clientWidth]")
        assert box[0] <= box[1]
        assert complaints == []


def test_seeds_are_told_apart_by_dashes_and_presets_by_colour(browser: Browser, write: Any) -> None:
    with chromium.opened(browser, write(presets=9, seeds=(0, 1, 2, 3), frames=9)) as (opened, _, _):
        opened.select_option("#seed", "-1")
        look = "({stroke, strokeDasharray}) => `${stroke} ${strokeDasharray}`"
        lines = opened.evaluate(f"tiles.map((tile) => getComputedStyle(tile.line)).map({look})")
        assert len(set(lines)) == len(lines) == 36
        entries = opened.evaluate(f"tiles.map((tile) => getComputedStyle(tile.entry.querySelector('line'))).map({look})")
        assert entries == lines
        opened.select_option("#seed", "2")
        assert len(set(opened.evaluate("tiles.map((tile) => getComputedStyle(tile.line).strokeDasharray)"))) == 2  # as alone


def test_frames_of_all_tiles_are_saved_as_one_picture(browser: Browser, write: Any) -> None:
    from PIL import Image

    def numbers(moments: str) -> tuple[str, list[list[int]]]:
        """The name of the file, and the frame numbers that its tiles show, row by row."""
        opened.select_option("#moments", moments)
        with opened.expect_download() as waiting:
            opened.click("#save")
        download = waiting.value
        picture = np.asarray(Image.open(download.path()).convert("L"))
        side, gap, line = 3 * SIDE, 6, 20
        tops, lefts = (range(line * 2, picture.shape[0] - gap, line + side), range(gap, picture.shape[1] - gap, side + gap))
        read = [[sum(1 << bit for bit in range(BITS) if picture[top + 96, left + 3 * (bit * BIT_PX + 3)] > 127) for left in lefts]
                for top in tops]  # fmt: skip
        return download.suggested_filename, read

    with chromium.opened(browser, write(presets=3, prompts=("A red circle!",), fps={"preset-1": 8})) as (opened, _, complaints):
        opened.locator("#seek").fill("17")
        assert numbers("1") == ("a-red-circle-frame-17.png", [[17, 8, 17]])
        assert numbers("4") == ("a-red-circle-4-moments.png", [[0, 13, 26, 39], [0, 6, 13, 19], [0, 13, 26, 39]])
        stands(opened, [17, 8, 17])  # as before
        assert complaints == []


def test_a_still_is_marked_where_that_flatters_it() -> None:
    whole = comparison(presets=2)
    cells = [cell.model_copy(update={"metrics": cell.metrics | {"motion": 0.1 + 50 * index, "smoothness": 60 - index}})
             for index, cell in enumerate(whole.cells)]  # fmt: skip
    whole, columns = whole.model_copy(update=aggregated(whole.presets, cells, "preset-0", [*METRICS])), page._columns(whole)
    cells_of_row = page._table_cells(whole.table[0], columns, whole)
    entries = {column.name: entry for column, entry in zip(columns, cells_of_row, strict=True)}
    assert "warned" in entries["smoothness"].marks
    assert "best" not in entries["smoothness"].marks
    assert "flatters" in entries["smoothness"].tooltip
    assert "warned" not in entries["repetition"].marks


@pytest.mark.parametrize("preset_name", ["direct", "freespec"])
def test_the_command_makes_the_same_plan_again(preset_name: str) -> None:
    import json

    from typer.testing import CliRunner

    from longgen.cli import app

    prompt = 'it\'s a "red" circle; $HOME\n<b>'
    made = planner.build(preset.load(preset_name, (), preset.Sample(frames=97, steps=7, negative_prompt="", flow_shift=2.5)), TINY)
    settings = stored_settings(made, prompt, 3, ModelSettings("cpu", "fp32", compile=True, clip_batch=2))
    cell = comparison().cells[0].model_copy(update={"settings": settings, "prompt": prompt, "seed": 3})
    words = shlex.split(page.reproduce(cell))
    assert words[words.index("--prompt") + 1] == prompt
    assert words[words.index("--compile") :][1:3] == ["--clip-batch", "2"]
    assert words[words.index("--seed") + 1] == "3"
    answer = CliRunner().invoke(app, [*words[1:], "--dry-run", "--json", "--quiet"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert [one["output"] for one in told.pop("videos")] == told.pop("outputs")
    assert told.pop("status") == "planned"
    assert told.pop("estimate")["memory_bytes"] > 0
    assert told == json.loads(json.dumps(plan_dict(made)))


def test_a_changed_preset_is_taken_from_its_video() -> None:
    made = planner.build(preset.load("sliding-window", ["window.frames=9"], preset.Sample(frames=97)), TINY)
    cell = comparison().cells[0].model_copy(update={"settings": stored_settings(made, "a", 0, ModelSettings("cpu", "fp32"))})
    first, second = page.reproduce(cell).splitlines()
    assert first == "longgen inspect --toml 'v0 #1.mp4' > again.toml"
    assert "--preset again.toml" in second
    assert page.reproduce(cell.model_copy(update={"video": None})) == ""
    assert page.reproduce(comparison().cells[0]) == ""


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(LonggenError, match=r"report\.html could not be written"):
        page.write_page(comparison(presets=1), tmp_path)


def test_a_gif_is_played_as_an_mp4(tmp_path: Path) -> None:
    """No browser's player takes a GIF, not even for one of its own pages. Its odd width is no reason to fail."""
    first, *others = [Image.new("RGB", (63, 64), (10 * index, 0, 0)) for index in range(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=60)
    (tmp_path / "a.mp4").write_bytes(page._playable(tmp_path / "a.gif"))
    frames = [*read_frames(tmp_path / "a.mp4", (64, 64))]
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    assert [int(frame[32, 32, 0]) for frame in frames] == pytest.approx([0, 10, 20, 30], abs=4)
