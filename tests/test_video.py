"""The MP4 writer and reader, on real files."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

from longgen.errors import LonggenError, MissingError
from longgen.video import Writer, read_frames, read_settings
from longgen.video_info import facts

SIZE = (64, 48)
LAG = 26  # frames by which the growing file is behind, as Writer says
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


def shown(path: Path) -> list[int]:
    """Which frames of `clip` the file at `path` shows, in their order; none where it cannot be read yet."""
    originals = clip(SIZE[0]).astype(int)
    with contextlib.suppress(LonggenError):
        return [int(np.abs(originals - frame).mean(axis=(1, 2, 3)).argmin()) for frame in read_frames(path, SIZE)]
    return []


def shown_soon(path: Path, frames_px: int) -> list[int]:
    """`shown`, once it has so many frames; ffmpeg writes at its own time."""
    deadline = time.monotonic() + 20
    while len(now := shown(path)) < frames_px and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def test_frames_rate_and_settings_come_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a b'c.mp4")
    assert count_frames_and_secs(str(path)) == (10, pytest.approx(10 / 16, abs=0.01))
    assert read_settings(path) == SETTINGS
    read = np.stack(list(read_frames(path, SIZE)))
    assert read.shape == clip().shape
    assert np.abs(read.astype(int) - clip()).mean() < 6  # lossy, chroma at half size
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("rate", ["16", "30000/1001", "2.5"])
def test_size_and_rate_are_those_of_the_frames_that_are_read(tmp_path: Path, rate: str) -> None:
    """A picture that is stored lying is turned, and what a prompt says of sizes is not believed."""
    said = {"longgen": "0", "prompt": "Stream #0:0: Video: h264, 10x20, 99 fps"}
    with Writer(tmp_path / "clip.mp4", SIZE, 16, said) as writer:
        writer.add(clip())
    plain, lying = tmp_path / "plain.mp4", tmp_path / "lying.mp4"
    ffmpeg = [get_ffmpeg_exe(), "-v", "error"]
    subprocess.run([*ffmpeg, "-r", rate, "-i", str(tmp_path / "clip.mp4"), "-crf", "18", str(plain)], check=True)
    subprocess.run([*ffmpeg, "-display_rotation", "90", "-i", str(plain), "-c", "copy", str(lying)], check=True)
    for path, size, frames in ((plain, SIZE, clip()), (lying, SIZE[::-1], np.rot90(clip(), axes=(1, 2)))):
        assert (facts(path).size, facts(path).fps) == (size, pytest.approx(float(Fraction(rate)), abs=0.005))
        read = np.stack([*read_frames(path, size)])
        assert np.abs(read.astype(int) - frames).mean() < 6


COLOURS = (
    (200, 40, 40),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
)


def by_the_standard(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Frames [F, 3] of plain colours, from the numbers in the file by the formulas of BT.709 in limited range."""
    width, height = size
    raw = subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"],
                         capture_output=True, check=True).stdout  # fmt: skip
    planes = np.frombuffer(raw, np.uint8).reshape(-1, width * height * 3 // 2).astype(float)
    edges = (0, width * height, width * height * 5 // 4, width * height * 3 // 2)
    y, blue, red = (planes[:, start:stop].mean(axis=1) for start, stop in itertools.pairwise(edges))
    y, blue, red = (y - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    return 255 * np.stack([y + 1.5748 * red, y - 0.1873 * blue - 0.4681 * red, y + 1.8556 * blue], axis=1)


@pytest.mark.parametrize("size", [(64, 64), (1280, 720)])
def test_colours_are_those_that_the_tags_say(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "clip.mp4"
    with Writer(path, size, 16, SETTINGS) as writer:
        for colour in COLOURS:
            writer.add(np.full((2, size[1], size[0], 3), colour, np.uint8))
    report = subprocess.run([get_ffmpeg_exe(), "-i", str(path)], capture_output=True).stderr
    assert b"yuv420p(tv, bt709, progressive)" in report  # matrix, primaries and curve: three words where they differ
    assert path.read_bytes().count(b"colrnclx" + struct.pack(">HHHB", 1, 1, 1, 0)) == 1
    stream = tmp_path / "clip.h264"  # what the codec itself says
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-c", "copy", str(stream)], check=True)
    assert b"yuv420p(tv, bt709, progressive)" in subprocess.run([get_ffmpeg_exe(), "-i", str(stream)], capture_output=True).stderr
    expected = np.repeat(COLOURS, 2, axis=0)
    assert np.abs(by_the_standard(path, size) - expected).max() <= 3
    for frame, colour in zip(read_frames(path, size), expected, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 3


def test_the_growing_file_has_the_tags_too(tmp_path: Path) -> None:
    def stop() -> None:
        with Writer(tmp_path / "clip.mp4", SIZE, 16, SETTINGS) as writer:
            writer.add(clip())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    report = subprocess.run([get_ffmpeg_exe(), "-i", str(tmp_path / "clip.partial.mp4")], capture_output=True).stderr
    assert b"yuv420p(tv, bt709, progressive)" in report


def test_settings_may_be_longer_than_a_command_line(tmp_path: Path) -> None:
    hostile = "".join(map(chr, range(1, 300))) + "\\;#=\n\u2028\ud800"
    settings = SETTINGS | {"schedule": [hostile * 100 for _ in range(20)]}
    with Writer(tmp_path / "clip.mp4", SIZE, 16, settings) as writer:
        writer.add(clip())
    assert read_settings(tmp_path / "clip.mp4") == settings


def test_nothing_is_left_of_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write(tmp_path / "clip.mp4")
    with pytest.raises(LonggenError, match="could not be written"):
        write(tmp_path / "no folder" / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(LonggenError, match="no temporary file could be created"):
        write(tmp_path / "b.mp4")


def test_equal_frames_and_settings_give_equal_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one.mp4").read_bytes() == write(tmp_path / "two.mp4").read_bytes()


def test_how_frames_come_does_not_change_the_file(tmp_path: Path) -> None:
    with Writer(tmp_path / "one.mp4", SIZE, 16, SETTINGS) as writer:
        for frame in clip():
            writer.add(frame[None])
    assert (tmp_path / "one.mp4").read_bytes() == write(tmp_path / "two.mp4").read_bytes()


def test_the_file_is_an_ordinary_one_with_its_index_in_front(tmp_path: Path) -> None:
    data = write(tmp_path / "clip.mp4", 60).read_bytes()
    assert b"moof" not in data
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [7, 16, 60])
def test_the_growing_file_can_be_read_not_far_behind(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "clip.mp4"
    with Writer(path, SIZE, fps, SETTINGS) as writer:
        for done, frame in enumerate(clip(60), start=1):
            writer.add(frame[None])
            if done in (40, 53, 60):
                now = shown_soon(writer.partial, done - LAG)
                assert now[: done - LAG] == list(range(done - LAG))
                assert len(now) < done  # or there would be nothing to wait for
        assert read_settings(writer.partial) == SETTINGS
        assert writer.partial == tmp_path / "clip.partial.mp4"
        assert not path.exists()
    assert shown(path) == list(range(60))
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from longgen.video import Writer
frames = np.load("frames.npy")
with Writer(Path("clip.mp4"), (64, 48), 16, {"longgen": "0"}) as writer:
    for frame in frames:
        writer.add(frame[None])
    print("added", flush=True)
    time.sleep(60)
"""


def test_after_kill_9_every_frame_that_was_added_can_be_seen(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", clip(30))
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"added\n"
        process.kill()
    assert not (tmp_path / "clip.mp4").exists()
    partial = tmp_path / "clip.partial.mp4"
    assert shown_soon(partial, 30) == list(range(30))
    assert read_settings(partial) == {"longgen": "0"}
    write(tmp_path / "clip.mp4")
    assert not partial.exists()  # a later run that comes to its end removes it


def test_a_file_that_was_cut_off_anywhere_shows_the_frames_before_the_cut(tmp_path: Path) -> None:
    """As after a power failure: the end of a fragment's index, of its frames, or anything between."""
    try:
        with Writer(tmp_path / "clip.mp4", SIZE, 16, SETTINGS) as writer:
            writer.add(clip(60))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        data = writer.partial.read_bytes()
    _, second, third, *_ = (match.start() for match in re.finditer(b"moof", data))
    cut = tmp_path / "cut.mp4"
    for end in (second + 4, second + 60, second + 300, third - 4, third + 60, third + 300, len(data) - 50):
        cut.write_bytes(data[:end])
        assert read_settings(cut) == SETTINGS
        assert (facts(cut).size, facts(cut).fps) == (SIZE, 16)
        frames = shown(cut)
        real = sorted(set(frames))
        assert frames == sorted(frames)
        assert real[:8] == list(range(8))
        assert len(frames) - len(real) <= 4  # frames that stand in the place of one that is not there
        assert frames[-1] >= len(frames) - 4
    cut.write_bytes(data[:200])
    with pytest.raises(LonggenError, match="could not be read as a video"):
        list(read_frames(cut, SIZE))


@pytest.mark.parametrize("stop", [RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
def test_an_exception_leaves_what_was_added_and_keeps_an_older_file(tmp_path: Path, stop: BaseException) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")

    def stop_halfway() -> None:
        with Writer(path, SIZE, 16, SETTINGS) as writer:
            writer.add(clip(20))
            raise stop

    with pytest.raises(type(stop)):
        stop_halfway()
    assert path.read_bytes() == b"older"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.mp4", "clip.partial.mp4"]
    assert shown(tmp_path / "clip.partial.mp4") == list(range(20))
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_before_the_first_frame_there_is_no_new_file_and_an_old_one_stays(tmp_path: Path) -> None:
    def stop_early() -> None:
        with Writer(tmp_path / "clip.mp4", SIZE, 16, SETTINGS):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        stop_early()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "clip.partial.mp4").write_bytes(b"older")
    with pytest.raises(RuntimeError, match="boom"):
        stop_early()
    assert (tmp_path / "clip.partial.mp4").read_bytes() == b"older"
    with pytest.raises(LonggenError, match="there are no frames"), Writer(tmp_path / "clip.mp4", SIZE, 16, SETTINGS):
        pass


def test_the_whole_video_stays_where_it_cannot_be_moved_onto_its_name(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(LonggenError, match=r"clip\.mp4 could not be written"):
        write(tmp_path / "clip.mp4", 20)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.mp4", "clip.partial.mp4"]
    assert shown(tmp_path / "clip.partial.mp4") == list(range(20))


def test_a_full_disk_is_reported_and_leaves_what_fitted(tmp_path: Path) -> None:
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
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.partial.mp4"]
    assert read_settings(tmp_path / "clip.partial.mp4") == {"longgen": "0"}
    assert len(list(read_frames(tmp_path / "clip.partial.mp4", SIZE))) >= 3
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 1000])
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    reason = "it is empty" if not content else "it holds text" if content[0] else "its format is not supported"
    with pytest.raises(LonggenError, match=f"is no video, or damaged: {reason}"):
        read_settings(path)
    with pytest.raises(LonggenError, match=f"could not be read as a video: {reason}"):
        facts(path)


def test_a_missing_and_a_foreign_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not there"):
        read_settings(tmp_path / "none.mp4")
    with pytest.raises(MissingError, match="is not there"):
        facts(tmp_path / "none.mp4")
    for number, settings in enumerate(({"title": "holiday"}, {})):
        path = tmp_path / f"{number}.mp4"
        with Writer(path, SIZE, 16, settings) as writer:
            writer.add(clip())
        with pytest.raises(LonggenError, match="no longgen settings"):
            read_settings(path)


def test_settings_are_plain_json(tmp_path: Path) -> None:
    assert json.loads(json.dumps(read_settings(write(tmp_path / "a.mp4")))) == SETTINGS
