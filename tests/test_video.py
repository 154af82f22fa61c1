"""The MP4 writer and reader, on real files."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs

from longgen.errors import LonggenError, MissingError
from longgen.video import Writer, read_frames, read_settings

SIZE = (64, 48)
SETTINGS = {"longgen": "0", "prompt": "a = b; c # d \\ \"e\"\n'ünï' 日本 \t|", "list": [1, 2.5, None, True]}


def clip(frames_px: int = 10) -> np.ndarray:
    ramp = np.linspace(0, 255, SIZE[0], dtype=np.uint8)
    still = np.broadcast_to(ramp[None, :, None], (SIZE[1], SIZE[0], 3))
    return np.stack([np.roll(still, shift, axis=1) for shift in range(frames_px)])


def write(path: Path, frames_px: int = 10) -> Path:
    with Writer(path, SIZE, 16, SETTINGS) as writer:
        for chunk in np.array_split(clip(frames_px), 3):
            writer.add(chunk)
    return path


def test_frames_rate_and_settings_come_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a b'c.mp4")
    assert count_frames_and_secs(str(path)) == (10, pytest.approx(10 / 16, abs=0.01))
    assert read_settings(path) == SETTINGS
    read = np.stack(list(read_frames(path, SIZE)))
    assert read.shape == clip().shape
    assert np.abs(read.astype(int) - clip()).mean() < 6  # lossy, chroma at half size
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_equal_frames_and_settings_give_equal_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one.mp4").read_bytes() == write(tmp_path / "two.mp4").read_bytes()


def test_an_exception_leaves_nothing_and_keeps_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")

    def stop_halfway() -> None:
        with Writer(path, SIZE, 16, SETTINGS) as writer:
            writer.add(clip())
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        stop_halfway()
    assert path.read_bytes() == b"older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    """A real limit on file size stands for the full disk: the kernel refuses ffmpeg's writes."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import numpy as np
from longgen.errors import LonggenError
from longgen.video import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
try:
    with Writer(Path("clip.mp4"), {SIZE}, 16, {{"longgen": "0"}}) as writer:
        for frame in noise:
            writer.add(frame[None])
except LonggenError as error:
    print("REFUSED", error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("REFUSED clip.mp4 could not be written"), done.stderr
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 1000])
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(LonggenError, match="no video, or damaged"):
        read_settings(path)


def test_a_missing_and_a_foreign_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not there"):
        read_settings(tmp_path / "none.mp4")
    for number, settings in enumerate(({"title": "holiday"}, {})):
        path = tmp_path / f"{number}.mp4"
        with Writer(path, SIZE, 16, settings) as writer:
            writer.add(clip())
        with pytest.raises(LonggenError, match="no longgen settings"):
            read_settings(path)


def test_settings_are_plain_json(tmp_path: Path) -> None:
    assert json.loads(json.dumps(read_settings(write(tmp_path / "a.mp4")))) == SETTINGS
