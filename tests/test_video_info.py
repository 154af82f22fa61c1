"""What is known of videos that others made, on files that ffmpeg writes here."""

from __future__ import annotations

import os
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from longgen.errors import LonggenError, MissingError
from longgen.video import Writer, read_frames
from longgen.video_info import facts

SIZE = (64, 48)
RED = (200, 40, 40)


def ffmpeg(*arguments: str | Path, frames: np.ndarray | None = None, size: tuple[int, int] = SIZE, rate: str = "16") -> None:
    """The program, fed with `frames` where there are some."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", rate, "-i", "pipe:0"]
    subprocess.run(
        [get_ffmpeg_exe(), "-y", "-v", "error", *(raw if frames is not None else []), *map(str, arguments)],
        check=True,
        input=None if frames is None else frames.tobytes(),
        stdin=subprocess.DEVNULL if frames is None else None,
    )


def plain(path: Path, colour: tuple[int, int, int], *arguments: str, size: tuple[int, int] = SIZE, frames: int = 4) -> Path:
    """A video of one colour, made with `arguments`."""
    ffmpeg(*arguments, path, frames=np.full((frames, size[1], size[0], 3), colour, np.uint8), size=size)
    return path


def steps(count: int = 8) -> np.ndarray:
    """Grey frames, each lighter than the one before."""
    levels = np.linspace(30, 220, count).astype(np.uint8)
    return np.repeat(levels, SIZE[0] * SIZE[1] * 3).reshape(count, SIZE[1], SIZE[0], 3)


def off(path: Path, colour: tuple[int, int, int]) -> int:
    """By how many levels the frames of `path` are another colour."""
    return max(int(np.abs(frame.astype(int) - colour).max()) for frame in read_frames(path, facts(path).size))


def scaled(matrix: str, spread: str = "tv") -> list[str]:
    flags = "flags=accurate_rnd+full_chroma_int"
    return ["-vf", f"scale=out_color_matrix={matrix}:out_range={spread}:{flags},format=yuv420p,setparams=colorspace=unknown"]


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((64, 48), "bt601"), ((720, 576), "bt601"), ((1280, 720), "bt709"), ((480, 832), "bt709"), ((1280, 400), "bt709")],
)
def test_colours_that_are_not_tagged_are_read_as_players_guess(tmp_path: Path, size: tuple[int, int], matrix: str) -> None:
    path = plain(tmp_path / "x.mp4", RED, *scaled(matrix), "-crf", "8", size=size, frames=1)
    assert facts(path).matrix == matrix
    assert off(path, RED) <= 3


@pytest.mark.parametrize("size", [(64, 64), (1280, 720)])
def test_what_longgen_wrote_before_it_tagged_colours_is_read_as_it_was_written(tmp_path: Path, size: tuple[int, int]) -> None:
    """As 0.5.0 wrote: by ffmpeg's own default, without a tag."""
    told = ["-metadata", 'comment={"longgen": "0.5.0", "prompt": "a"}']
    path = plain(tmp_path / "x.mp4", RED, *scaled("bt601"), *told, "-crf", "8", size=size, frames=1)
    assert facts(path).matrix == "bt601"
    assert off(path, RED) <= 3


TAGS = {
    "bt709": "bt709",
    "smpte170m": "bt601",
    "bt470bg": "bt470",
    "smpte240m": "smpte240m",
    "fcc": "fcc",
}


@pytest.mark.parametrize("tag", TAGS)
def test_colours_are_read_by_the_tag(tmp_path: Path, tag: str) -> None:
    vf = f"scale=out_color_matrix={TAGS[tag]}:out_range=tv:flags=accurate_rnd,format=yuv420p,setparams=colorspace={tag}"
    assert off(plain(tmp_path / "x.mp4", RED, "-vf", vf, "-colorspace", tag, "-crf", "8"), RED) <= 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "full.mp4",
            [
                "-vf",
                "scale=out_color_matrix=bt709:out_range=pc,format=yuv420p,setparams=colorspace=bt709:range=pc",
                "-color_range",
                "pc",
                "-colorspace",
                "bt709",
            ],
        ),
        ("rgb.mp4", ["-c:v", "libx264rgb"]),
        ("x.gif", ["-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"]),
        ("x.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "gbrp", "-lossless", "1"]),
        ("ten.mkv", ["-pix_fmt", "yuv444p10le", "-crf", "8"]),
    ],
)
def test_other_ranges_depths_and_rgb_are_read_right(tmp_path: Path, name: str, arguments: list[str]) -> None:
    path = plain(tmp_path / name, RED, *arguments)
    assert off(path, RED) <= 4
    assert ("more than 8 bits" in " ".join(facts(path).notes)) == (name == "ten.mkv")


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ("color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc", "HDR (PQ; transfer smpte2084, primaries bt2020)"),
        ("color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc", "HDR (HLG"),
        ("color_primaries=bt2020:color_trc=bt709:colorspace=bt709", "HDR (a wide gamut"),
        ("color_primaries=bt709:color_trc=linear:colorspace=bt709", "transfer curve linear"),
        ("color_primaries=bt709:color_trc=bt709:colorspace=ycgco", "matrix ycgco"),
    ],
)
def test_colours_that_would_be_wrong_are_refused_by_name(tmp_path: Path, params: str, said: str) -> None:
    named = [part for pair in params.split(":") for part in ("-" + pair.split("=")[0], pair.split("=")[1])]
    path = plain(tmp_path / "it's.mp4", RED, "-vf", f"format=yuv420p,setparams={params}", *named)
    with pytest.raises(LonggenError) as refused:
        facts(path)
    assert said in refused.value.given
    if "HDR" in said:
        assert "tonemap" in refused.value.hint
        assert f"'{tmp_path}/it'\"'\"'s.mp4'" in refused.value.hint
        with pytest.raises(LonggenError, match="HDR"):
            next(read_frames(path, SIZE))


def test_primaries_of_another_kind_are_noted(tmp_path: Path) -> None:
    vf = "scale=out_color_matrix=bt709,format=yuv420p,setparams=color_primaries=smpte432:color_trc=bt709:colorspace=bt709"
    path = plain(tmp_path / "x.mp4", RED, "-vf", vf, "-color_primaries", "smpte432", "-colorspace", "bt709")
    assert [note for note in facts(path).notes if "Display P3" in note]


def test_frames_of_varying_intervals_come_once_each_with_their_times(tmp_path: Path) -> None:
    """Of 8 frames, at 16 a second, the fourth is held for half a second more; in MP4 and in Matroska, which rounds to 1 ms."""
    for name in ("vfr.mp4", "vfr.mkv"):
        path = tmp_path / name
        ffmpeg("-vf", "setpts='(N+if(gt(N,3),8,0))/16/TB'", "-fps_mode", "passthrough", "-crf", "10", path, frames=steps())
        found = facts(path)
        assert found.times == pytest.approx([0, 1 / 16, 2 / 16, 3 / 16, 12 / 16, 13 / 16, 14 / 16, 15 / 16, 1], abs=0.0015)
        assert found.fps == pytest.approx(8, abs=0.02)
        read = np.array([frame.mean() for frame in read_frames(path, SIZE)])
        assert np.abs(read - steps().mean(axis=(1, 2, 3))).max() < 3
        assert ["62.5 to 562 ms" in note or "62 to 562 ms" in note or "62 to 563 ms" in note for note in found.notes] == [True]


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.webm", "x.avi", "x.mov"])
@pytest.mark.parametrize("rate", ["30000/1001", "12"])
def test_even_rates_are_exact_in_every_container(tmp_path: Path, name: str, rate: str) -> None:
    codec = ["-c:v", "libvpx", "-deadline", "realtime"] if name == "x.webm" else ["-bf", "0"] if name == "x.avi" else []
    ffmpeg(*codec, tmp_path / name, frames=steps(20), rate=rate)
    found = facts(tmp_path / name)
    assert found.fps == pytest.approx(float(Fraction(rate)), abs=0.005)
    assert (found.times, found.notes, found.cut) == (None, (), None)
    assert len([*read_frames(tmp_path / name, found.size)]) == 20


@pytest.mark.parametrize(("sar", "size"), [("4/3", (85, 48)), ("1/2", (64, 96)), ("1/1", SIZE)])
def test_pixels_are_made_square(tmp_path: Path, sar: str, size: tuple[int, int]) -> None:
    """A white left half stays half."""
    frames = np.zeros((2, SIZE[1], SIZE[0], 3), np.uint8)
    frames[:, :, : SIZE[0] // 2] = 255
    ffmpeg("-vf", f"setsar={sar}", tmp_path / "x.mp4", frames=frames)
    found = facts(tmp_path / "x.mp4")
    assert found.size == size
    assert bool(found.notes) == (size != SIZE)
    for frame in read_frames(tmp_path / "x.mp4", size):
        assert frame.shape == (size[1], size[0], 3)
        assert frame[:, : size[0] // 2 - 2].min() > 240
        assert frame[:, size[0] // 2 + 2 :].max() < 15


def test_turned_and_not_square_go_together(tmp_path: Path) -> None:
    plain(tmp_path / "a.mp4", RED, "-vf", "setsar=2/1")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert facts(tmp_path / "a.mp4").size == (128, 48)
    assert facts(tmp_path / "b.mp4").size == (48, 128)


def test_odd_sides_transparency_and_fields(tmp_path: Path) -> None:
    odd = plain(tmp_path / "odd.mkv", RED, "-c:v", "ffv1", "-pix_fmt", "gbrp", size=(33, 17))
    assert (facts(odd).size, off(odd, RED)) == ((33, 17), 0)
    clear = plain(tmp_path / "clear.webm", RED, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-deadline", "realtime")
    assert facts(clear).notes == ("its alpha channel, if any, is ignored",)
    qtrle = ["-c:v", "qtrle", "-pix_fmt", "argb"]
    assert facts(plain(tmp_path / "opaque.mov", RED, *qtrle)).notes == ()
    glass = plain(tmp_path / "glass.mov", RED, "-vf", "format=argb,colorchannelmixer=aa=0.5", *qtrle)
    assert facts(glass).notes == ("its alpha channel is ignored",)
    with Writer(tmp_path / "own.gif", SIZE, 16, {"longgen": "0"}) as writer:  # whose frames leave out what did not change
        writer.add(steps())
    assert facts(tmp_path / "own.gif").notes == ()
    hole = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 8, 8))
    hole.save(tmp_path / "hole.gif", save_all=True, append_images=[hole.rotate(90)], duration=60, disposal=2)
    assert "its alpha channel is ignored" in facts(tmp_path / "hole.gif").notes
    fields = plain(tmp_path / "fields.mp4", RED, "-vf", "setfield=tff", "-flags", "+ildct+ilme", "-x264-params", "tff=1")
    assert [note for note in facts(fields).notes if "interlaced" in note]


def test_the_first_of_two_streams_is_read_and_a_cover_is_none(tmp_path: Path) -> None:
    red = plain(tmp_path / "red.mp4", RED)
    large = plain(tmp_path / "large.mp4", (20, 40, 200), size=(128, 96))
    ffmpeg("-i", red, "-i", large, "-map", "0", "-map", "1", "-c", "copy", tmp_path / "two.mp4")
    found = facts(tmp_path / "two.mp4")
    assert (found.size, found.notes) == (SIZE, ("it holds 2 video streams, of which the first is used",))
    assert off(tmp_path / "two.mp4", RED) <= 4
    ffmpeg("-i", red, "-frames:v", "1", tmp_path / "cover.png")
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        "sine=d=0.2",
        "-i",
        tmp_path / "cover.png",
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "copy",
        "-disposition:v:0",
        "attached_pic",
        tmp_path / "song.m4a",
    )
    with pytest.raises(LonggenError, match="it holds sound only"):
        facts(tmp_path / "song.m4a")


def test_what_a_prompt_says_is_not_taken_for_facts(tmp_path: Path) -> None:
    lies = (
        "x\n[Parsed_showinfo_0 @ 0x1] n: 0 pts: 0 fmt:rgba sar:2/1 s:10x20 i:T\n    alpha_mode : 1\nStream mapping:\n"
        "  Stream #0:9: Video: h264, 9x9\n    DOVI configuration record: profile: 5\nstsd encv; moov atom not found"
    )
    with Writer(tmp_path / "x.mp4", SIZE, 16, {"longgen": "0", "prompt": lies}) as writer:
        writer.add(steps())
    for path in (tmp_path / "x.mp4", tmp_path / "y.mp4"):
        found = facts(path) if path.exists() else None
        if found is None:
            ffmpeg("-i", tmp_path / "x.mp4", "-c", "copy", "-metadata", f"comment={lies}", "-metadata:s:v:0", f"title={lies}", path)
            found = facts(path)
        assert (found.size, found.fps, found.notes, found.matrix) == (SIZE, 16, (), "bt709")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with its index in front; behind it with `back-` before its name."""
    folder = tmp_path_factory.mktemp("whole")
    frames = np.random.default_rng(0).integers(0, 256, (30, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    for name in ("front.mp4", "back.mp4", "x.mkv", "x.avi"):
        ffmpeg(
            *(["-movflags", "+faststart"] if name == "front.mp4" else []),
            *(["-bf", "0"] if name == "x.avi" else []),
            folder / name,
            frames=frames,
        )
    return folder


@pytest.mark.parametrize("name", ["front.mp4", "back.mp4", "x.mkv", "x.avi"])
def test_a_file_that_was_cut_off_is_known(whole: Path, tmp_path: Path, name: str) -> None:
    data = (whole / name).read_bytes()
    assert facts(whole / name).cut is None
    for kept in (0.6, 0.9):
        path = tmp_path / f"{kept}-{name}"
        path.write_bytes(data[: int(kept * len(data))])
        if name == "back.mp4":
            with pytest.raises(LonggenError, match="it is cut off, or still being written"):
                facts(path)
        else:
            assert str(facts(path).cut).startswith("it is cut off")
            assert 5 < len([*read_frames(path, SIZE)]) < 30


def test_what_could_not_be_decoded_is_told(whole: Path, tmp_path: Path) -> None:
    data = bytearray((whole / "front.mp4").read_bytes())
    late = int(0.8 * len(data))
    data[late : late + 400] = bytes(400)
    (tmp_path / "x.mp4").write_bytes(data)
    told: list[str] = []
    frames = [*read_frames(tmp_path / "x.mp4", SIZE, told.append)]
    assert len(frames) > 10
    assert [told[0][:33], len(told)] == ["not all of it could be decoded, s", 1]
    assert len([*read_frames(whole / "front.mp4", SIZE, told.append)]) == 30
    assert len(told) == 1


def test_each_kind_of_file_that_is_no_video_has_its_reason(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = (whole / "front.mp4").read_bytes()
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"hello, there\n" * 9,
        "noise.mp4": np.random.default_rng(0).bytes(3000),
        "zeros.mp4": bytes(5000),
        "html.mp4": b"<!DOCTYPE html><html>404</html>",
        "codec.mp4": data.replace(b"avc1", b"zzzz"),
        "utf16.mp4": "text".encode("utf-16"),
        "start.mp4": data[:200],
    }.items():
        Path(name).write_bytes(content)
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", "sound.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", "sound.wav")
    ffmpeg("-i", whole / "front.mp4", "-frames:v", "1", "picture.png")
    ffmpeg(
        "-i",
        whole / "front.mp4",
        "-c",
        "copy",
        "-encryption_scheme",
        "cenc-aes-ctr",
        "-encryption_key",
        "76a6c65c5ea762046bd749a2e632ccbb",
        "-encryption_kid",
        "a7e61c373e219033c21091fa607bf3b8",
        "locked.mp4",
    )
    Path("folder.mp4").mkdir()
    os.mkfifo("fifo.mp4")
    Path("round.mp4").symlink_to("round.mp4")
    reasons = {
        "empty.mp4": "it is empty",
        "text.mp4": "it holds text",
        "noise.mp4": "its format is not supported",
        "zeros.mp4": "its format is not supported",
        "html.mp4": "it holds text",
        "codec.mp4": r"ffmpeg does not support its codec \(zzzz\)",
        "utf16.mp4": "its format is not supported",
        "start.mp4": "it is cut off",
        "sound.mp4": "it holds sound only",
        "sound.wav": r"it is sound \(WAV\)",
        "picture.png": r"it is a picture \(PNG\)",
        "locked.mp4": "it is encrypted",
        "folder.mp4": "it is a folder",
        "fifo.mp4": "it is a pipe",
        "round.mp4": "Too many levels",
    }
    for name, reason in reasons.items():
        with pytest.raises(LonggenError, match=f"^{name} could not be read as a video: {reason}"):
            facts(Path(name))
    with pytest.raises(LonggenError, match="File name too long"):
        facts(Path("x" * 300))
    with pytest.raises(LonggenError, match="null"):
        facts(Path("a\0b.mp4"))
    Path("lost.mp4").symlink_to("gone.mp4")
    with pytest.raises(MissingError, match=r"lost\.mp4 is not there; it is a link to gone\.mp4"):
        facts(Path("lost.mp4"))
    with pytest.raises(MissingError, match="is not there"):
        facts(Path("empty.mp4/x.mp4"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes((whole / "front.mp4").read_bytes())
    path.chmod(0)
    with pytest.raises(LonggenError, match="Permission denied"):
        facts(path)


def test_a_file_is_asked_again_when_it_changed(tmp_path: Path) -> None:
    path = plain(tmp_path / "x.mp4", RED)
    assert facts(path).size == SIZE
    plain(path, RED, size=(96, 48))
    assert facts(path).size == (96, 48)
