"""ffmpeg is given files, whatever their names and contents say."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from longgen import ffmpeg, naming
from longgen.cli import app
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.video import Writer, read_frames, read_settings
from longgen.video_info import facts

SIZE = (64, 48)
SETTINGS = {"longgen": "0", "prompt": "a"}
NAMES = [
    "12:30:05.mp4",
    "-dash.mp4",
    "x%03d.mp4",
    "a|b.mp4",
    "new\nline.mp4",
    'it\'s "so" $HOME `id`.mp4',
    "scene 4: the end.mp4",
    "猫.mp4",
    " .mp4",
    "a,b;c=d#e\\.mp4",
    "*?[x].mp4",
    os.fsdecode(b"\xff\xfe.mp4"),
]
CALLED_LIKE = [
    "file:x.mp4",
    "concat:x.mp4",
    "tee:x.mp4",
    "pipe:1.mp4",
    "data:x.mp4",
    "http:x.mp4",
    "subfile,,start,0,end,9,,:x.mp4",
]


def film(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, SIZE, 16, SETTINGS) as writer:
        writer.add(np.full((3, SIZE[1], SIZE[0], 3), (200, 40, 40), np.uint8))
    return path


@pytest.mark.parametrize("name", [*NAMES, *CALLED_LIKE, "http:/127.0.0.1/x.mp4"])
def test_any_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = film(Path(name))
    assert [found.name for found in (tmp_path / path).parent.iterdir()] == [path.name]
    assert read_settings(path) == SETTINGS
    assert len([*read_frames(path, SIZE)]) == 3
    if name in NAMES:
        assert ffmpeg.address(name) is None
        assert naming.output_path(name, "p", 0) == path


@pytest.mark.parametrize(
    "name",
    [
        *CALLED_LIKE,
        "http://127.0.0.1/x.mp4",
        "HTTPS://h/x.mp4",
        "s3://bucket/x.mp4",
        "rtmp://h/x",
        "pipe:1",
        "file:///tmp/x.mp4",
        "made-up://x.mp4",
        " http://h/x.mp4",
        "gs:/bucket/x.mp4",
    ],
)
def test_an_output_that_is_an_address_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="that is a URL"):
        naming.output_path(name, "p", 0)
    for command in (["generate", "-p", "a", "--backbone", "tiny"], ["compare", "--prompt", "a", "--presets", "direct"]):
        done = CliRunner().invoke(app, [*command, "-o", name])
        assert (done.exit_code, "that is a URL" in done.stderr) == (2, True), done.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_called_like_a_protocol_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file:").mkdir()
    assert naming.output_path("file:/x.mp4", "p", 0) == Path("file:/x.mp4")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A server of `folder`: its address, and what is asked of it."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            asked.append(self.requestline)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", asked
        served.shutdown()


def test_no_file_and_no_name_sends_ffmpeg_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Playlists and scripts under the names of videos; a server and a file of the user's that nobody named."""
    real, clips = film(tmp_path / "real" / "clip.mp4"), tmp_path / "clips"
    clips.mkdir()
    monkeypatch.chdir(clips)
    with server(real.parent) as (address, asked):
        elsewhere = (f"{address}/clip.mp4", str(real))
        for number, target in enumerate(elsewhere):
            hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
            dash = (
                f'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
                f'<Period><AdaptationSet><Representation id="0" mimeType="video/mp4" codecs="avc1" bandwidth="1"><BaseURL>{target}'
                "</BaseURL></Representation></AdaptationSet></Period></MPD>"
            )
            for name, text, kind in (
                (f"hls{number}.mp4", hls, "an HLS playlist"),
                (f"l{number}.m3u8", hls, "an HLS playlist"),
                (f"cat{number}.mp4", f"ffconcat version 1.0\nfile '{target}'\n", "a list of files"),
                (f"dash{number}.mkv", dash, "a DASH manifest"),
                (f"d{number}.mpd", dash, "a DASH manifest"),
            ):
                Path(name).write_text(text)
                for read in (facts, read_settings, lambda path: [*read_frames(path, SIZE)]):
                    with pytest.raises(LonggenError, match=f"{name} .*{kind}.*, which names other files"):
                        read(Path(name))
        sdp = Path("live.mp4")
        sdp.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n")
        with pytest.raises(LonggenError, match="a description of a stream"):
            facts(sdp)
        done = CliRunner().invoke(app, ["compare", str(clips), "-o", str(tmp_path / "out")])
        assert (done.exit_code, "which names other files" in done.stderr) == (1, True)
        for name in (f"{address}/clip.mp4", f"concat:{real}", f"file:{real}", f"subfile,,start,0,end,9,,:{real}"):
            for command in (["inspect"], ["compare"]):
                done = CliRunner().invoke(app, [*command, name])
                assert done.exit_code in (2, 3), (name, done.stderr)
        assert asked == []
        import urllib.request

        urllib.request.urlopen(f"{address}/clip.mp4").close()
        assert len(asked) == 1  # or the server would count nothing


def test_a_program_that_is_not_there_is_missing_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "gone"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="ffmpeg is not there"):
        ffmpeg.run(["-version"])
    done = CliRunner().invoke(app, ["generate", "-p", "a", "--backbone", "tiny", "--frames", "5", "--steps", "1", "-o", "x.mp4"])
    assert (done.exit_code, "ffmpeg is not there" in done.stderr) == (3, True), done.stderr
    assert [*tmp_path.iterdir()] == []


def test_what_the_user_has_ffmpeg_say_does_not_come_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AV_LOG_FORCE_COLOR", "1")
    monkeypatch.setenv("FFREPORT", f"file={tmp_path / 'report.log'}")
    assert facts(film(tmp_path / "x.mp4")).size == SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
