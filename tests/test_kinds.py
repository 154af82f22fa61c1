"""Videos of other kinds than MP4: their frames, their rate, the settings inside, and the names of their files and folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longgen import ffmpeg, naming, video
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.video_info import facts

SETTINGS = {"longgen": "0", "prompt": 'a cat; a = \\ "dog"\n' + "é" * 300}


def frames(count: int = 20) -> np.ndarray:
    """A smooth picture [count, 48, 64, 3] that moves."""
    rows, columns = np.mgrid[:48, :64]
    return np.stack([np.stack([4 * columns, 5 * rows, 2 * (columns + rows) + 3 * i], axis=-1) % 256 for i in range(count)]).astype(
        np.uint8
    )


@pytest.mark.parametrize(("name", "fps", "most"), [("a.webm", 16, 8.0), ("a.gif", 16, 12.0), ("b.GIF", 24, 12.0)])
def test_frames_rate_and_settings_come_back(name: str, fps: int, most: float, tmp_path: Path) -> None:
    path, shown = tmp_path / name, frames()
    video.check_kind(path, fps)
    with video.Writer(path, (64, 48), fps, SETTINGS) as writer:
        for batch in np.split(shown, 4):
            writer.add(batch)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    read = np.stack([*video.read_frames(path, (64, 48))])
    assert read.shape == shown.shape
    assert np.abs(read.astype(float) - shown).mean() < most
    assert facts(path).size == (64, 48)
    assert facts(path).fps == pytest.approx(fps, rel=0.03)
    assert facts(path).cut is None
    assert video.read_settings(path) == SETTINGS
    with Image.open(path) if path.suffix.lower() == ".gif" else Image.new("P", (64, 48)) as picture:
        assert picture.size == (64, 48)
        assert getattr(picture, "n_frames", 20) == 20  # another reader finds the frames behind the comment
    other = tmp_path / f"again{path.suffix}"
    with video.Writer(other, (64, 48), fps, SETTINGS) as writer:
        writer.add(shown)
    assert other.read_bytes() == path.read_bytes()


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="at most 50"):
        video.check_kind(tmp_path / "a.gif", 60)
    monkeypatch.setitem(ffmpeg.ENCODERS, ".webm", "libnothing")
    with pytest.raises(MissingError, match="no libnothing"):
        video.check_kind(tmp_path / "a.webm", 16)
    video.check_kind(tmp_path / "a.mp4", 120)


def test_a_gif_that_is_cut_or_of_another_program_has_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.fromarray(frames(1)[0]).save(path)
    with pytest.raises(LonggenError, match="holds no longgen settings"):
        video.read_settings(path)


@pytest.mark.parametrize(("name", "folder"), [("a.mp4", "a.run"), ("a.webm", "a.webm.run"), ("a.b.gif", "a.b.gif.run")])
def test_each_kind_has_a_run_folder_of_its_own(name: str, folder: str) -> None:
    assert naming.run_folder(Path("x") / name) == Path("x") / folder
    assert naming.output_of(Path("x") / folder) == Path("x") / name
    assert naming.output_path(name, "p", 1) == Path(name)
    with pytest.raises(UsageError, match="incomplete"):
        naming.output_path(str(video.partial_of(Path(name))), "p", 1)
