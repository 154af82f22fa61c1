"""`longgen compare` on videos that are there: of longgen, of others, of an earlier comparison, and what is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from typer.testing import CliRunner, Result

from longgen import rundir
from longgen.backbones.settings import ModelSettings
from longgen.cli import app
from longgen.compare.inputs import read_videos
from longgen.compare.record import Comparison, read
from longgen.metrics.score import score_video
from longgen.plan import Plan
from longgen.run_settings import stored_settings
from longgen.video import Writer, read_settings

PROMPTS = ("a red ball", "a blue ball")
Make = Callable[..., Plan]


def film(path: Path, frames: int = 20, fps: int = 16, size: tuple[int, int] = (64, 64), settings: dict | None = None) -> Path:
    """A video of a bar that moves to the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, size, fps, settings or {}) as writer:
        picture = np.random.default_rng(len(path.stem)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        writer.add(np.stack([np.roll(picture, 2 * frame, axis=1) for frame in range(frames)]))
    return path


@pytest.fixture
def made(tiny_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a video with the settings of a generation, without generating: made("a.mp4", "direct", "a red ball", 0)."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, preset: str, prompt: str, seed: int, frames: int = 9, **sample: int) -> Path:
        settings = stored_settings(tiny_plan(preset, frames=frames, **sample), prompt, seed, ModelSettings("cpu", "fp32"))
        return film(Path(name), frames, settings=settings)

    return write


def longgen(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def compared(*args: str | Path) -> Comparison:
    done = longgen(*args, "-o", "out")
    assert done.exit_code == 0, done.stderr
    return read(Path("out") / "compare.json")


def test_videos_of_longgen_tell_their_preset_prompt_and_seed(made: Callable[..., Path]) -> None:
    paths = [made(f"{preset}-{seed}.mp4", preset, PROMPTS[0], seed) for seed in (0, 1) for preset in ("direct", "riflex")]
    result = compared(*paths)
    assert (result.presets, result.prompts, result.seeds) == (["direct", "riflex"], [PROMPTS[0]], [0, 1])
    assert (result.baseline, result.backbone) == ("direct", "tiny")
    assert [(row.cells, row.cost_ratio) for row in result.table] == [(2, 1.0), (2, 1.0)]
    assert result.table[1].metrics["motion"].difference is not None
    assert [(watch.prompt, watch.side_by_side) for watch in result.watch] == [(PROMPTS[0], "side-by-side/a-red-ball.mp4")]
    assert [Path("out", str(cell.video)) for cell in result.cells] == [path.absolute() for path in paths]


def test_other_videos_are_known_by_name_and_may_differ(made: Callable[..., Path]) -> None:
    paths = [
        made("direct.mp4", "direct", PROMPTS[0], 0),
        film(Path("Some Other.mp4"), 30, 8, (96, 48)),
        film(Path("x", "Some Other.mp4")),
    ]
    result = compared(*paths)
    assert result.presets == ["direct", "Some Other.mp4", "x/Some Other.mp4"]
    assert [(cell.prompt, cell.seed) for cell in result.cells] == [(PROMPTS[0], 0), (None, None), (None, None)]
    assert [(cell.frames, cell.fps, cell.size) for cell in result.cells] == [
        (9, 16, (64, 64)),
        (30, 8, (96, 48)),
        (20, 16, (64, 64)),
    ]
    assert [watch.prompt for watch in result.watch] == [None]
    assert all(any(what in warning for warning in result.warnings) for what in ("frame rate", "length", "size"))
    assert len({cell.name for cell in result.cells}) == 3
    assert result.backbone is None


def test_videos_of_several_prompts_are_watched_prompt_by_prompt(made: Callable[..., Path]) -> None:
    paths = [
        made(f"{preset}-{number}.mp4", preset, prompt, 0)
        for number, prompt in enumerate(PROMPTS)
        for preset in ("direct", "riflex")
    ]
    assert [watch.prompt for watch in compared(*paths).watch] == [*PROMPTS]
    assert [watch.prompt for watch in compared(paths[0], paths[3], "--overwrite").watch] == [None]  # no two of one prompt


def test_presets_of_one_name_that_differ_are_two_rows(made: Callable[..., Path]) -> None:
    few, more, again = (made(f"{name}.mp4", "direct", PROMPTS[0], seed, steps=steps)
                        for name, seed, steps in (("few", 0, 2), ("more", 0, 3), ("again", 1, 2)))  # fmt: skip
    assert [cell.preset for cell in read_videos([few, more, again]).values()] == ["direct", "direct #2", "direct"]
    shutil.copy(few, "copy.mp4")
    assert [cell.preset for cell in read_videos([few, Path("copy.mp4")]).values()] == ["direct", "direct #2"]
    assert any("differ in steps: 2 (direct), 3 (direct #2)" in warning for warning in compared(few, more).warnings)


def test_edges_are_known_from_the_settings(made: Callable[..., Path]) -> None:
    result = compared(made("clips.mp4", "gen-l-video", PROMPTS[0], 0, frames=161))
    assert result.cells[0].seams == [37, 77, 81, 121]
    assert result.cells[0].metrics["seam"] is not None


def test_a_video_is_taken_once_whatever_it_is_called(made: Callable[..., Path]) -> None:
    path = made("videos/a.mp4", "direct", PROMPTS[0], 0)
    film(Path("videos/b.partial.mp4"))
    rundir.run_folder(path).mkdir()
    (rundir.run_folder(path) / "run.json").write_text("{}")
    os.symlink(path.absolute(), "link.mp4")
    assert [*read_videos([path, Path("link.mp4"), rundir.run_folder(path), Path("videos"), Path()])] == [path]


def test_a_folder_of_an_earlier_comparison_is_compared_anew_in_its_place(made: Callable[..., Path]) -> None:
    inside = [made(f"{preset}.mp4", preset, PROMPTS[0], 0) for preset in ("direct", "riflex")]
    first = compared(*inside)
    written = Path("out/compare.json").stat().st_mtime_ns
    done = longgen("out")
    assert done.exit_code == 0, done.stderr
    assert Path("out/compare.json").stat().st_mtime_ns > written
    assert read(Path("out/compare.json")) == first
    assert sorted(path.name for path in Path().iterdir()) == ["direct.mp4", "out", "riflex.mp4"]


def test_settings_that_longgen_cannot_read_leave_a_video_without_edges(made: Callable[..., Path]) -> None:
    settings = read_settings(made("then.mp4", "riflex", "p", 0))
    settings["preset"] |= {"name": "gone", "technique": [{"name": "gone"}]}
    film(Path("gone.mp4"), settings=settings | {"longgen": "0.1.0", "backbone": "nowhere"})
    result = compared("gone.mp4")
    assert (result.presets, result.cells[0].seams, result.cells[0].cost_ratio) == (["gone"], [], None)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("text.mp4", 1, "text.mp4 could not be read as a video: it holds text"), ("cut.mp4", 1, "it is cut off: 99 bytes or more"),
     ("dir.mp4", 3, "dir.mp4 contains no video"),
     ("mixed", 1, "mixed/b.MOV could not be read as a video: it holds text"), ("none.mp4", 3, "none.mp4 is not there"),
     ("empty", 3, "empty contains no video"), ("lost.run", 3, "lost.mp4 does not exist"), ("bad", 1, "is not a comparison")],
)  # fmt: skip
def test_what_is_no_video_is_named_and_nothing_is_written(made: Callable[..., Path], name: str, code: int, said: str) -> None:
    good = film(Path("good.mp4"))
    Path("text.mp4").write_text("not a video\n" * 100)
    Path("cut.mp4").write_bytes(good.read_bytes()[:-99])
    for folder in ("empty", "dir.mp4", "mixed"):
        Path(folder).mkdir()
    shutil.copy(good, "mixed/a.mp4")
    shutil.copy("text.mp4", "mixed/b.MOV")
    Path("lost.run").mkdir()
    Path("lost.run/run.json").write_text("{}")
    Path("bad").mkdir()
    Path("bad/compare.json").write_text("[]")
    done = longgen(good, name, "-o", "out")
    assert done.exit_code == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert not Path("out").exists()


def test_the_baseline_is_one_of_the_rows(made: Callable[..., Path]) -> None:
    done = longgen(film(Path("a.mp4")), film(Path("b.mp4")), "--baseline", "c")
    assert (done.exit_code, "expected: a, b" in done.stderr) == (2, True)
    assert compared("a.mp4", "b.mp4", "--baseline", "b").baseline == "b"
    assert compared("a.mp4", "b.mp4").baseline is None


def remuxed(source: Path, target: Path, *arguments: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", source, *arguments, "-map_metadata", "-1", target], check=True)
    return target


def test_a_folder_gives_every_video_in_it_and_says_what_is_left_out(made: Callable[..., Path]) -> None:
    source = film(Path("source.mp4"), 5)
    for name in ("a.mp4", "A.MP4", "b.Mov", "c.mkv", "d.m4v"):
        remuxed(source, Path("clips", name), "-c", "copy")
    remuxed(source, Path("clips/e.webm"), "-c:v", "libvpx", "-deadline", "realtime")
    remuxed(source, Path("clips/f.AVI"), "-c:v", "mpeg4")
    Path("clips/made.run").mkdir()
    Path("clips/inner").mkdir()
    for name in (".g.mp4", "h.partial.mp4", "notes.txt", "song.wav", "noext"):
        shutil.copy(source, Path("clips", name))
    shutil.copy(source, os.fsdecode(b"clips/i\xff.mp4"))
    told: list[str] = []
    labels = [cell.preset for cell in read_videos([Path("clips")], told.append).values()]
    assert labels == ["A", "a", "b", "c", "d", "e", "f", os.fsdecode(b"i\xff")]
    assert told == [
        "skipped in clips, hidden: .g.mp4", "skipped in clips, incomplete: h.partial.mp4",
        "skipped in clips, a subfolder: inner", "skipped in clips, a run without its video: made.run",
        "skipped in clips, not .mp4, .m4v, .mov, .mkv, .webm, .avi: noext, notes.txt, song.wav",
    ]  # fmt: skip
    result = compared("clips")
    assert result.warnings[:5] == told
    assert [cell.frames for cell in result.cells] == [5] * 8
    assert len({cell.name for cell in result.cells}) == 8
    again = longgen("out")
    assert again.exit_code == 0, again.stderr
    for name in (".g.mp4", "noext", "h.partial.mp4"):  # what is named is taken
        assert [video.name for video in read_videos([Path("clips", name)])] == [name]
    assert "incomplete" in next(iter(read_videos([Path("clips/h.partial.mp4")]).values())).caveats[0]
    for name in ("song.wav", "noext"):
        Path("clips", name).rename(Path("clips/inner", name))
    done = longgen("clips/inner")
    assert (done.exit_code, "contains no video; not .mp4" in done.stderr) == (3, True), done.stderr


def test_files_of_one_name_are_told_apart(made: Callable[..., Path]) -> None:
    names = ("a/x.mp4", "b/x.mp4", "a/y.mp4", "a/y.MOV", "z.mp4", "c/a/x.mp4", "direct.mp4")
    for name in names:
        film(Path(name), 3)
    run_of = made("d/made.mp4", "direct", PROMPTS[0], 0)
    assert [cell.preset for cell in read_videos([*map(Path, names), run_of]).values()] == [
        "a/x.mp4",
        "b/x.mp4",
        "y.mp4",
        "y.MOV",
        "z",
        "c/a/x.mp4",
        "direct.mp4",
        "direct",
    ]
    long = [film(Path(f"{'cat-walking-slowly-' * 3}{end}.mp4"), 3) for end in ("one", "two")]
    done = longgen(*names[:2], *long, "-o", "out")
    assert done.exit_code == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[4:8]] == ["a/x.mp4", "b/x.mp4", "cat-walking-…-slowly-one",
                                                                           "cat-walking-…-slowly-two"]  # fmt: skip


def test_one_file_named_twice_and_copies_are_noted(made: Callable[..., Path]) -> None:
    path, other = film(Path("a.mp4"), 5), film(Path("bb.mp4"), 5)
    shutil.copy(path, "copy.mp4")
    os.link(path, "hard.mp4")
    result = compared(path, path, "hard.mp4", other, "copy.mp4")
    assert [cell.preset for cell in result.cells] == ["a", "bb", "copy"]
    assert result.warnings[:3] == ["a.mp4 is listed more than once: it is used once",
                                   "hard.mp4 and a.mp4 are the same file: it is used once",
                                   "identical files: a.mp4, copy.mp4"]  # fmt: skip


def test_times_of_a_video_are_its_own_and_caveats_are_told(made: Callable[..., Path]) -> None:
    """The same 20 pictures, evenly and with the last ten at half the rate, show the same motion where that is for each second."""
    even = film(Path("even.mp4"), 20, 16)
    varying = remuxed(
        even, Path("varying.mp4"), "-vf", "setpts='(N+gt(N,9)*(N-10))/16/TB'", "-fps_mode", "passthrough", "-crf", "10"
    )
    wide = remuxed(even, Path("wide.mp4"), "-vf", "setsar=2/1")
    result = compared(even, varying, wide)
    cells = {cell.preset: cell for cell in result.cells}
    assert cells["even"].times is None
    times = [number / 16 for number in range(10)] + [(10 + 2 * number) / 16 for number in range(11)]
    assert cells["varying"].times == pytest.approx(times, abs=1e-3)
    assert (cells["varying"].frames, cells["varying"].fps) == (20, pytest.approx(20 / times[-1]))
    motion = np.array(score_video(even).curves["motion"][1:]), np.array(score_video(varying).curves["motion"][1:])
    assert motion[1][:9] == pytest.approx(motion[0][:9], rel=0.1)
    assert motion[1][10:] == pytest.approx(motion[0][10:] / 2, rel=0.1)
    assert cells["wide"].size == (128, 64)
    assert any(warning.startswith("varying: its frames come at varying intervals, 62.5 to 125 ms") for warning in result.warnings)
    assert any(warning.startswith("wide: its pixels are not square (2:1)") for warning in result.warnings)
