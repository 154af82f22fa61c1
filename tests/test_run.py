"""Whole runs as a user starts them: files, resume after a real kill, batches, full disks, Ctrl-C and SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs
from safetensors.torch import load_file

from longgen import run
from longgen.errors import OutOfMemoryError
from longgen.video import read_frames, read_settings

PROMPT = "a large red circle bouncing on a navy background"
BASE = [
    "generate",
    "--prompt",
    PROMPT,
    "--backbone",
    "tiny",
    "--frames",
    "121",
    "--steps",
    "6",
    "--preset",
    "freespec",
    "--seed",
    "7",
]
# a shell starts background jobs with SIGINT ignored, and this suite may be one: the command gets Python's own handler
MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from longgen.cli import main; main()"
# starts the command in a process that may not write files beyond a size, as on a full disk
SMALL_DISK = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); from longgen.cli import main; main()"


def start(folder: Path, *arguments: str, code: str = MAIN) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def longgen(folder: Path, *arguments: str, code: str = MAIN) -> tuple[int, str, str]:
    process = start(folder, *arguments, code=code)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one uninterrupted run, ball.mp4."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, err = longgen(folder, *BASE, "-o", "ball.mp4", "--json")
    assert code == 0, err
    (folder / "stdout").write_text(out)
    (folder / "stderr").write_text(err)
    return folder


def latents(folder: Path, stem: str = "ball") -> bytes:
    return load_file(folder / f"{stem}.run" / "latents.safetensors")["latents"].numpy().tobytes()


def test_files_and_record(whole: Path) -> None:
    assert sorted(p.name for p in whole.iterdir()) == ["ball.mp4", "ball.run", "stderr", "stdout"]
    assert sorted(p.name for p in (whole / "ball.run").iterdir()) == ["latents.safetensors", "run.json"]
    assert count_frames_and_secs(str(whole / "ball.mp4")) == (121, pytest.approx(121 / 16, abs=0.05))
    result = json.loads((whole / "stdout").read_text())
    record = json.loads((whole / "ball.run" / "run.json").read_text())
    assert (result["name"], result["output"], result["seed"], result["frames"]) == ("ball", "ball.mp4", 7, 121)
    assert record["status"] == "done"
    assert record["schema"] == 1
    assert record["settings"] == read_settings(whole / "ball.mp4")
    assert record["techniques"][0]["layers"] == [0, 1, 2, 3, 4, 5]
    assert record["techniques"][0]["steps"] == [0, 1, 2, 3, 4, 5]
    assert {b["name"]: b["steps"] for b in record["branches"]} == {"global": [0, 1, 2], "local": [0, 1, 2, 3, 4, 5]}
    assert record["seconds"]["sample"] > 0
    assert record["peak_memory_bytes"] > 1e8
    assert read_settings(whole / "ball.mp4")["prompt"] == PROMPT


def test_progress_is_plain_lines_on_stderr(whole: Path) -> None:
    err = (whole / "stderr").read_text()
    assert "\r" not in err
    assert "\x1b" not in err
    assert "sample 6/6" in err
    assert "decode 121/121" in err


def test_same_seed_same_file(whole: Path, tmp_path: Path) -> None:
    code, out, err = longgen(tmp_path, *BASE, "-o", "ball.mp4", "--quiet")
    assert (code, out, err) == (0, "ball.mp4\n", "")
    assert latents(tmp_path) == latents(whole)
    assert (tmp_path / "ball.mp4").read_bytes() == (whole / "ball.mp4").read_bytes()


def test_the_settings_in_the_file_make_it_again(whole: Path, tmp_path: Path) -> None:
    code, out, err = longgen(whole, "inspect", "ball.mp4", "--toml")
    assert code == 0, err
    (tmp_path / "again.toml").write_text(out)
    code, _, err = longgen(tmp_path, "generate", "--prompt", PROMPT, "--backbone", "tiny", "--preset", "again.toml", "--seed", "7",
                           "-o", "x.mp4")  # fmt: skip
    assert code == 0, err
    assert latents(tmp_path, "x") == latents(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_resume_after_a_real_kill_gives_the_same_bytes(whole: Path, tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path, *BASE, "-o", "ball.mp4")
    checkpoint = tmp_path / "ball.run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not (tmp_path / "ball.mp4").exists()
    assert "Traceback" not in err
    assert checkpoint.exists()
    if number == signal.SIGKILL:  # without --resume, what was computed is not thrown away
        refused, _, err = longgen(tmp_path, *BASE, "-o", "ball.mp4")
        assert refused == 2
        assert "--resume" in err
        assert "--overwrite" in err
        other, _, err = longgen(tmp_path, *BASE[:-1], "8", "-o", "ball.mp4", "--resume")
        assert other == 2
        assert "another seed" in err
        assert json.loads((tmp_path / "ball.run" / "run.json").read_text())["settings"]["seed"] == 7  # refused, and untouched
        resumed, _, err = longgen(tmp_path, *BASE, "-o", "ball.mp4", "--resume")
    else:  # everything else comes from the run's own record
        assert "--resume" in err
        resumed, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert resumed == 0, err
    assert latents(tmp_path) == latents(whole)
    assert (tmp_path / "ball.mp4").read_bytes() == (whole / "ball.mp4").read_bytes()
    assert sorted(p.name for p in (tmp_path / "ball.run").iterdir()) == ["latents.safetensors", "run.json"]


def test_decode_of_saved_latents_equals_the_run(whole: Path, tmp_path: Path) -> None:
    code, out, err = longgen(tmp_path, "decode", str(whole / "ball.run" / "latents.safetensors"), "-o", "again.mp4", "--json")
    assert code == 0, err
    assert json.loads(out)["name"] == "again"
    assert (tmp_path / "again.mp4").read_bytes() == (whole / "ball.mp4").read_bytes()


def test_a_full_disk_keeps_the_older_checkpoint_and_the_run_goes_on_later(whole: Path, tmp_path: Path) -> None:
    code, _, err = longgen(tmp_path, *BASE, "-o", "ball.mp4", code=SMALL_DISK.format(200_000))
    assert code == 1
    assert "could not be written" in err
    assert "Traceback" not in err
    assert not (tmp_path / "ball.mp4").exists()
    code, _, err = longgen(tmp_path, *BASE, "-o", "ball.mp4", "--resume")
    assert code == 0, err
    assert latents(tmp_path) == latents(whole)


def test_a_failed_decode_keeps_the_latents(whole: Path, tmp_path: Path) -> None:
    """The latents fit, the video does not: it can be decoded later, and --resume does."""
    folder = tmp_path / "ball.run"
    folder.mkdir()
    for name in ("latents.safetensors", "run.json"):
        (folder / name).write_bytes((whole / "ball.run" / name).read_bytes())
    code, _, err = longgen(tmp_path, *BASE, "-o", "ball.mp4", "--resume", code=SMALL_DISK.format(6_000))
    assert code == 1
    assert "could not be written" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ball.run"]
    assert latents(tmp_path) == latents(whole)
    code, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert code == 0, err
    assert (tmp_path / "ball.mp4").read_bytes() == (whole / "ball.mp4").read_bytes()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "ball.run").mkdir()
    (tmp_path / "ball.run" / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0half")
    code, _, err = longgen(tmp_path, *BASE, "-o", "ball.mp4", "--resume")
    assert code == 1
    assert "is damaged" in err
    assert "--overwrite" in err


def test_a_batch_loads_once_reports_failures_and_resumes(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"# two of a kind\n{PROMPT}\n\n{PROMPT}\na small blue square pulsing on a grey background\n")
    batch = ["generate", "--prompts", "prompts.txt", "--backbone", "tiny", "--frames", "17", "--steps", "2", "--seed", "1",
             "-o", "out", "--json"]  # fmt: skip
    blocked = tmp_path / "out" / f"{run.slug(PROMPT)}-1.mp4"
    blocked.mkdir(parents=True)  # the first video cannot be moved onto a folder
    code, out, err = longgen(tmp_path, *batch)
    assert code == 5, err
    results = json.loads(out)
    assert [("error" in one) for one in results] == [True, False, False]
    assert err.count("load 1/1") == 1
    assert results[1]["output"].endswith("-1-2.mp4")
    blocked.rmdir()
    code, out, err = longgen(tmp_path, *batch, "--resume")
    assert code == 0, err
    assert [one["skipped"] for one in json.loads(out)] == [False, True, True]
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 3


def test_the_video_shows_the_decoded_frames(tiny: Any, whole: Path) -> None:
    """At any moment the decoder hands out at most four frames, and the file shows them."""
    tensor = load_file(whole / "ball.run" / "latents.safetensors")["latents"]
    frames = list(tiny.decode(tensor))
    assert max(map(len, frames)) == 4
    shown = np.stack(list(read_frames(whole / "ball.mp4", (64, 64)))).astype(int)
    assert np.abs(shown - np.concatenate(frames)).mean() < 6


def test_resume_of_a_finished_run_checks_that_it_is_the_same(whole: Path) -> None:
    before = (whole / "ball.mp4").read_bytes()
    code, out, err = longgen(whole, *BASE, "-o", "ball.mp4", "--resume", "--json")
    assert (code, json.loads(out)["skipped"]) == (0, True), err
    other = [argument if argument != "freespec" else "direct" for argument in BASE]
    code, out, err = longgen(whole, *other, "-o", "ball.mp4", "--resume")
    assert (code, out) == (2, "")
    assert "another preset" in err
    assert (whole / "ball.mp4").read_bytes() == before


def test_a_folder_serves_as_backbone(tmp_path: Path, tiny: Any) -> None:
    code, out, err = longgen(tmp_path, "generate", "--prompt", PROMPT, "--backbone", tiny.spec.source, "--frames", "17", "--size",
                             "64x64", "--steps", "1", "--fps", "8", "--dtype", "bf16", "-o", "ball.mp4")  # fmt: skip
    assert (code, out) == (0, "ball.mp4\n"), err
    assert count_frames_and_secs(str(tmp_path / "ball.mp4")) == (17, pytest.approx(17 / 8, abs=0.05))
    assert read_settings(tmp_path / "ball.mp4")["dtype"] == "bf16"
    assert read_settings(tmp_path / "ball.mp4")["backbone"] == tiny.spec.source


def test_resume_without_a_prompt_takes_no_other_settings(whole: Path) -> None:
    code, out, err = longgen(whole, "generate", "-o", "ball.mp4", "--resume", "--frames", "17", "--seed", "3")
    assert (code, out) == (2, "")
    assert "--frames, --seed is given" in err
    code, out, err = longgen(whole, "generate", "-o", "ball.mp4", "--resume", "--dry-run", "--json")
    assert code == 0, err
    assert (json.loads(out)["outputs"], json.loads(out)["frames"]) == (["ball.mp4"], 121)


def test_settings_that_are_not_longgen_s_are_named(tmp_path: Path) -> None:
    (tmp_path / "ball.run").mkdir()
    (tmp_path / "ball.run" / "run.json").write_text('{"status": "running", "settings": {"prompt": "x"}}')
    code, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert code == 1
    assert "the settings in ball.run/run.json are damaged" in err


def test_lack_of_memory_has_its_own_exit_code_and_names_the_stage(tmp_path: Path) -> None:
    """A real limit on the address space: the attention of a picture of 4096 x 4096 does not fit."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30)); " + MAIN
    code, out, err = longgen(tmp_path, *BASE, "--size", "4096x4096", "-o", "ball.mp4", code=limited)
    assert (code, out) == (4, ""), err
    assert "out of memory while sampling" in err
    assert "a smaller --size" in err
    assert not (tmp_path / "ball.mp4").exists()


def test_an_error_without_words_is_named_too() -> None:
    with pytest.raises(OutOfMemoryError, match="out of memory while decoding: the host has no more"):  # noqa: SIM117
        with run._naming_lack_of_memory("decoding", "cpu", "the latents are kept"):
            raise MemoryError
    with pytest.raises(RuntimeError, match="another matter"):  # noqa: SIM117
        with run._naming_lack_of_memory("decoding", "cpu", ""):
            raise RuntimeError("another matter")


def test_a_run_with_a_cache_does_not_go_on_in_the_middle(tiny: Any, tiny_plan: Any, tmp_path: Path) -> None:
    """What the cache held between steps is in no checkpoint."""
    import copy
    import dataclasses

    from longgen import run
    from longgen.errors import UsageError

    output = tmp_path / "ball.mp4"
    run.run_folder(output).mkdir()
    (run.run_folder(output) / "checkpoint.safetensors").touch()
    cached = copy.copy(tiny)
    cached.setup = dataclasses.replace(tiny.setup, cache="first-block:0.1")
    with pytest.raises(UsageError, match="what the cache held is lost"):
        run.generate_one(cached, tiny_plan("direct", frames=17, steps=2), PROMPT, 0, output, resume=True)


SHOTS = """
[[shot]]
prompt = "a large red circle bouncing on a navy background"

[[shot]]
at = "2s"
prompt = "a large green square bouncing on a navy background"
"""
IN_PIECES = {  # sampling by clips and by a queue, with a schedule of prompts
    "glc-diffusion": ("--frames", "165", "--steps", "6"),
    "fifo": ("--frames", "65", "--set", "fifo.frames=8", "--set", "fifo.partitions=2"),
}


@pytest.mark.parametrize("name", IN_PIECES)
def test_clips_and_the_queue_go_on_after_a_kill_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    """Frames of the queue go into the video as they are done; after kill -9 it is made again, and equal."""
    (tmp_path / "shots.toml").write_text(SHOTS)
    base = ["generate", "--schedule", "shots.toml", "--backbone", "tiny", "--preset", name, *IN_PIECES[name], "--seed", "7"]
    code, _, err = longgen(tmp_path, *base, "-o", "whole.mp4")
    assert code == 0, err
    assert read_settings(tmp_path / "whole.mp4")["schedule"]["shots"][1]["at"] == "2"
    process = start(tmp_path, *base, "-o", "ball.mp4")
    checkpoint, deadline = tmp_path / "ball.run" / "checkpoint.safetensors", time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert checkpoint.exists()
    code, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert code == 0, err
    assert latents(tmp_path, "ball") == latents(tmp_path, "whole")
    assert (tmp_path / "ball.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not checkpoint.exists()


def test_a_schedule_s_errors_name_line_and_key(tmp_path: Path) -> None:
    (tmp_path / "shots.toml").write_text(SHOTS.replace('at = "2s"', 'at = "soon"\nmood = "calm"'))
    code, out, err = longgen(tmp_path, "generate", "--schedule", "shots.toml", "--backbone", "tiny", "--dry-run")
    assert (code, out) == (2, "")
    assert "line 6: shot 2: at = 'soon' is not a time" in err
    assert "line 7: shot 2: mood: unknown key" in err
    code, _, err = longgen(tmp_path, "generate", "--schedule", "shots.toml", "--prompt", "x")
    assert code == 2
    assert "--schedule is given beside --prompt" in err
