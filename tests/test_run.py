"""Whole runs as a user starts them: files, resume after a real kill, batches, full disks, Ctrl-C and SIGTERM."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imageio_ffmpeg import count_frames_and_secs
from jsonschema import Draft202012Validator
from safetensors.torch import load_file
from typer.testing import CliRunner

from longgen import cli, naming, run, run_settings, rundir, shown
from longgen.api.model import generate
from longgen.backbones import settings
from longgen.backbones.settings import ModelSettings
from longgen.checkpoint import Chunks
from longgen.errors import OutOfMemoryError, UsageError
from longgen.out_of_memory import translate_oom
from longgen.pipelines import loading
from longgen.units import human_bytes
from longgen.video import Writer, read_frames, read_settings
from tests.warm import CLI, Process

PROMPT = "a large red circle bouncing on a navy background"
BASE = [
    "generate",
    "--prompt",
    PROMPT,
    "--backbone",
    "tiny",
    "--frames",
    "97",
    "--steps",
    "4",
    "--preset",
    "freespec",
    "--seed",
    "7",
]
# starts the command in a process that may not write files beyond a size, as on a full disk
SMALL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); " + CLI


def start(folder: Path, *arguments: str, code: str = CLI) -> Process:
    return Process(folder, arguments, code)


def longgen(folder: Path, *arguments: str, code: str = CLI) -> tuple[int, str, str]:
    process = start(folder, *arguments, code=code)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def objects(lines: str) -> list[dict[str, Any]]:
    """The objects of JSON Lines."""
    return [json.loads(line) for line in lines.splitlines()]


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
    assert count_frames_and_secs(str(whole / "ball.mp4")) == (97, pytest.approx(97 / 16, abs=0.05))
    result = json.loads((whole / "stdout").read_text())
    record = json.loads((whole / "ball.run" / "run.json").read_text())
    assert (result["name"], result["output"], result["seed"], result["frames"]) == ("ball", "ball.mp4", 7, 97)
    assert record["status"] == "done"
    assert record["schema"] == 2
    assert record["settings"] == read_settings(whole / "ball.mp4")
    assert record["techniques"][0]["layers"] == [0, 1, 2, 3, 4, 5]
    assert record["techniques"][0]["steps"] == [0, 1, 2, 3]
    assert {b["name"]: b["steps"] for b in record["branches"]} == {"global": [0, 1], "local": [0, 1, 2, 3]}
    assert record["seconds"]["sample"] > 0
    assert record["peak_memory_bytes"] > 1e8
    assert read_settings(whole / "ball.mp4")["prompt"] == PROMPT


def test_progress_is_plain_lines_on_stderr(whole: Path) -> None:
    err = (whole / "stderr").read_text()
    assert "\r" not in err
    assert "\x1b" not in err
    assert "sample 4/4" in err
    assert "decode 97/97" in err


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


STOPS = [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), STOPS)
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
    code, out, err = longgen(tmp_path, "decode", str(whole / "ball.run"), "-o", "again.mp4", "--json")
    assert code == 0, err
    assert (json.loads(out)["name"], json.loads(out)["frames"]) == ("again", 97)
    size = len((tmp_path / "again.mp4").read_bytes())
    assert f"again.mp4: 6.1 s (97 frames) at 64x64, {human_bytes(size)}, decoded in " in err
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ball.partial.mp4", "ball.run"]
    assert latents(tmp_path) == latents(whole)
    code, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert code == 0, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ball.mp4", "ball.run"]
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
    code, out, err = longgen(tmp_path, *batch)
    assert code == 0, err
    stem = f"out/{naming.slug(PROMPT)}-1"
    assert [one["output"] for one in objects(out)][:2] == [f"{stem}.mp4", f"{stem}-2.mp4"]
    assert len(re.findall(r"load (.* .B)/\1,", err)) == 1
    (tmp_path / f"{stem}.mp4").unlink()
    latents_file = tmp_path / f"{stem}.run" / "latents.safetensors"
    whole = latents_file.read_bytes()
    latents_file.write_bytes(whole[:-9])
    prompts.write_text(f"a large red circle pulsing on a grey background\n{prompts.read_text()}")  # moves every line down
    code, out, err = longgen(tmp_path, *batch, "--resume")
    assert code == 5, err
    *results, last = objects(out)
    for line in (*results, last):
        schema("json-lines").validate(line)
    assert [one["status"] for one in results] == ["done", "failed", "skipped", "skipped"]
    assert "latents.safetensors is damaged" in results[1]["error"]["given"]
    assert (last["error"]["given"], last["exit_code"]) == ("1 of 4 videos failed", 5)
    latents_file.write_bytes(whole)
    code, out, err = longgen(tmp_path, *batch, "--resume")
    assert code == 0, err
    assert [one["skipped"] for one in objects(out)] == [True, False, True, True]
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 4


def schema(name: str) -> Draft202012Validator:
    """The published JSON Schema of run.json, or of the lines of --json."""
    published = json.loads(CliRunner().invoke(cli.app, ["docs", name]).stdout)
    Draft202012Validator.check_schema(published)
    return Draft202012Validator(published)


def test_a_line_comes_when_its_video_is_finished_and_a_stop_has_one_too(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"prompt,preset,frames,steps\n{PROMPT},direct,5,1\n{PROMPT},sliding-window,161,1000\n")
    process = start(tmp_path, "generate", "--prompts", "p.csv", "--backbone", "tiny", "--seed", "1", "-o", "out", "--json", "-q",
                    "--log-file", "run.log")  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert process.poll() is None  # although the batch goes on
    for _ in range(600):
        if [*tmp_path.glob("out/*-2.run/checkpoint.safetensors")]:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    (last,) = objects(out)
    known = ("status", "preset", "frames", "seed", "index", "of")
    assert [first[key] for key in known] == ["done", "direct", 5, 1, 1, 2]
    assert [last[key] for key in known] == ["stopped", "sliding-window", 161, 1, 2, 2]
    assert (last["error"]["given"], last["exit_code"], process.returncode) == ("stopped by SIGTERM", 75, 75), err
    for line in (first, last):
        schema("json-lines").validate(line)
        schema("run.json").validate(json.loads((tmp_path / line["run"] / "run.json").read_text()))
    log = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (INFO|WARNING|ERROR) ", line) for line in log)
    text = "\n".join(line.split(" ", 1)[1] for line in log)
    for said in ("INFO longgen 0.", "INFO sample 1/1, ", f"INFO done: {first['output']}", "INFO sample 0/1000, ",
                 "ERROR longgen: stopped by SIGTERM"):  # fmt: skip
        assert said in text
    assert text.endswith("INFO exit code 75")
    assert text.count("sample") < 6  # milestones, not every step


def test_run_json_is_what_its_schema_says(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that are finished, that failed, that go on from another, and of a rollout; test above: of one that was stopped."""
    monkeypatch.chdir(tmp_path)
    short = ["generate", "--prompt", PROMPT, "--seed", "1", "--json", "-q", "-o"]
    rollout = [*short, "rollout.mp4", "--backbone", "tiny-causal"]
    goes_on = [*short, "goes-on.mp4", "--backbone", "tiny-causal", "--continue", "rollout.mp4"]
    failing = [*short, "failed.mp4", "--backbone", "tiny", "--steps", "1", "--frames", "5", "--vae-tiling"]
    for command in (rollout, goes_on):
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.stderr
        schema("json-lines").validate(json.loads(done.stdout))

    def no_room(*rest: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shown, "in_file", no_room)
    done = CliRunner().invoke(cli.app, failing)
    line = json.loads(done.stdout)
    assert (line["status"], line["exit_code"], done.exit_code) == ("failed", 1, 1)
    assert "No space left on device" in line["error"]["given"]
    records = [json.loads((folder / "run.json").read_text()) for folder in (whole / "ball.run", *sorted(tmp_path.glob("*.run")))]
    assert [record["status"] for record in records] == ["done", "sampled", "done", "done"]
    assert [len({"texts", "given_latent_frames"} & {*record}) for record in records] == [0, 0, 2, 1]
    published = schema("run.json")
    assert published.schema["$id"] == f"urn:longgen:run.json:{run_settings.SCHEMA}"
    for record in records:
        published.validate(record)
        for changed in ({"frames": "97"}, {"schema": 1}, {"more": 0}, {"settings": record["settings"] | {"dtype": "fp4"}}):
            assert not published.is_valid(record | changed), changed
        assert not published.is_valid({key: value for key, value in record.items() if key != "seconds"})


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
    assert "--frames, --seed cannot be combined with it" in err
    code, out, err = longgen(whole, "generate", "-o", "ball.mp4", "--resume", "--dry-run", "--json")
    assert code == 0, err
    assert (json.loads(out)["outputs"], json.loads(out)["frames"]) == (["ball.mp4"], 97)


def test_settings_that_are_not_longgen_s_are_named(tmp_path: Path) -> None:
    (tmp_path / "ball.run").mkdir()
    (tmp_path / "ball.run" / "run.json").write_text('{"status": "running", "settings": {"prompt": "x"}}')
    code, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert code == 1
    assert "the settings in ball.run/run.json are damaged" in err


def test_lack_of_memory_has_its_own_exit_code_and_names_the_stage(tmp_path: Path) -> None:
    """A real limit on the address space: what a layer makes of pictures of 4096 x 4096 does not fit."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)); " + CLI
    code, out, err = longgen(tmp_path, *BASE, "--size", "4096x4096", "-o", "ball.mp4", code=limited)
    assert (code, out) == (4, ""), err
    assert "out of memory while sampling" in err
    assert "a smaller --size" in err
    assert not (tmp_path / "ball.mp4").exists()


def test_an_error_without_words_is_named_too() -> None:
    with pytest.raises(OutOfMemoryError, match="out of memory while decoding: the host has no more"):  # noqa: SIM117
        with translate_oom("decoding", ModelSettings("cpu", "fp32"), "the latents are kept"):
            raise MemoryError
    with pytest.raises(RuntimeError, match="another matter"):  # noqa: SIM117
        with translate_oom("decoding", ModelSettings("cpu", "fp32"), ""):
            raise RuntimeError("another matter")


def test_a_run_with_a_cache_does_not_go_on_in_the_middle(tiny: Any, tiny_plan: Any, tmp_path: Path) -> None:
    """What the cache held between steps is in no checkpoint."""
    import copy

    output = tmp_path / "ball.mp4"
    rundir.run_folder(output).mkdir()
    (rundir.run_folder(output) / "checkpoint.safetensors").touch()
    cached = copy.copy(tiny)
    cached.model_settings = tiny.model_settings.replace(cache="first-block:0.1")
    with pytest.raises(UsageError, match="the content of the cache is lost"):
        run.generate_one(cached, run.Job(tiny_plan("direct", frames=17, steps=2), PROMPT, 0, output), resume=True)


SHOTS = """
[[shot]]
prompt = "a large red circle bouncing on a navy background"

[[shot]]
at = "2s"
prompt = "a large green square bouncing on a navy background"
"""
IN_PIECES = {  # sampling by clips and by a queue, with a schedule of prompts
    "glc-diffusion": ("--frames", "85", "--steps", "4"),
    "fifo": ("--frames", "37", "--set", "fifo.frames=3", "--set", "fifo.partitions=2"),
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
    assert "--schedule cannot be combined with --prompt" in err


# ---- streams: latents in chunks ------------------------------------------------------------------------------------------


@pytest.fixture
def stream(tiny: Any, tiny_plan: Any, tmp_path: Path) -> tuple[Path, Chunks, Any]:
    """The folder of a stream of two chunks of three latent frames, which are 17 frames and 4 too many, and its plan."""
    plan = tiny_plan("direct", frames=17, steps=2)
    chunks = Chunks(tmp_path / "ball.run" / "latents", run_settings.stored_settings(plan, PROMPT, 0, tiny.model_settings))
    for seed in range(2):
        chunk = tiny.noise(plan, torch.Generator().manual_seed(seed))[:, :, :3]
        chunks.append({"latents": chunk, "generator": torch.zeros(1, dtype=torch.uint8)}, {})
    return tmp_path / "ball.run", chunks, plan


def decoded(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli.app, ["decode", *arguments, "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout) | {"said": done.stderr}


def test_the_folder_of_a_stream_is_decoded_frame_by_frame(tiny: Any, stream: tuple[Path, Chunks, Any]) -> None:
    folder, chunks, plan = stream
    made = decoded(str(folder))
    assert (made["output"], made["frames"]) == (str(folder.with_suffix(".mp4")), 17)
    assert "stopped" not in made["said"]
    again = decoded(str(folder / "latents"), "-o", str(folder.parent / "again.mp4"))
    assert again["frames"] == 17
    kept = torch.cat([*chunks], dim=2)[:, :, : plan.frames_lat]
    writer = Writer(folder.parent / "ours.mp4", plan.size, plan.spec.fps, chunks.settings)
    assert run.write_video(writer, tiny.decode(iter(kept.split(1, dim=2)))) == 17
    files = {(folder.parent / f"{name}.mp4").read_bytes() for name in ("ball", "again", "ours")}
    assert len(files) == 1
    assert read_settings(folder.with_suffix(".mp4")) == json.loads(json.dumps(chunks.settings))


def test_a_stream_that_was_stopped_is_decoded_as_far_as_it_goes(stream: tuple[Path, Chunks, Any]) -> None:
    """But not to the name of the whole video, which is there only when it is complete."""
    folder, _, _ = stream
    (folder / "latents" / "000001.safetensors").unlink()
    refused = CliRunner().invoke(cli.app, ["decode", str(folder), "--device", "cpu"])
    assert refused.exit_code == 2
    assert "holds 1 of 2 chunks" in refused.stderr
    assert "add -o ball-so-far.mp4" in refused.stderr
    made = decoded(str(folder), "-o", str(folder.parent / "so-far.mp4"))
    assert made["frames"] == 9
    assert "these are 9 frames of 17" in made["said"]
    assert count_frames_and_secs(made["output"])[0] == 9


def test_what_is_left_of_a_stream_is_named(stream: tuple[Path, Chunks, Any]) -> None:
    folder, chunks, _ = stream
    output = folder.with_suffix(".mp4")
    stopped, gone = "a stream that was stopped after chunk 2", "the latents of a video that is not there any more"
    assert rundir.unfinished_work(output) == stopped
    for status, left in (("sampled", stopped), ("done", gone)):
        (folder / "run.json").write_text(json.dumps({"status": status, "settings": {}}))
        assert rundir.unfinished_work(output) == left
    output.touch()
    assert rundir.unfinished_work(output) is None
    chunks.clear()
    assert rundir.unfinished_work(output) is None


def test_a_stream_of_other_settings_does_not_go_on_and_a_fresh_run_removes_it(
    tiny: Any, tiny_plan: Any, stream: tuple[Path, Chunks, Any]
) -> None:
    folder, _, plan = stream
    output = folder.with_suffix(".mp4")
    with pytest.raises(UsageError, match=r"ball\.run/latents was made with another seed"):
        run.generate_one(tiny, run.Job(plan, PROMPT, 1, output), resume=True)
    assert len(list((folder / "latents").iterdir())) == 2
    run.generate_one(tiny, run.Job(tiny_plan("direct", frames=9, steps=1), PROMPT, 1, output))
    assert sorted(path.name for path in folder.iterdir()) == ["latents.safetensors", "run.json"]


def test_the_name_of_a_growing_video_is_not_for_a_whole_one() -> None:
    with pytest.raises(UsageError, match="marks incomplete videos") as caught:
        naming.output_path("films/ball.partial.mp4", PROMPT, 0)
    assert caught.value.hint == "use films/ball.mp4"


# ---- streams: a causal model ---------------------------------------------------------------------------------------------

ROLLED = [
    "generate",
    "--backbone",
    "tiny-causal",
    "--preset",
    "flex",
    "--set",
    "ans.renoise=true",
    "--frames",
    "153",
    "--seed",
    "7",
]


@pytest.mark.parametrize("switch", ["recache", "flush"])
def test_a_rollout_is_playable_after_a_kill_and_goes_on_to_the_same_bytes(tmp_path: Path, switch: str) -> None:
    (tmp_path / "shots.toml").write_text(SHOTS)
    base = [*ROLLED, "--schedule", "shots.toml", "--set", f"rollout.switch={switch}"]
    code, _, err = longgen(tmp_path, *base, "-o", "whole.mp4")
    assert code == 0, err
    assert count_frames_and_secs(str(tmp_path / "whole.mp4"))[0] == 153  # 39 latent frames, in 13 chunks
    assert not (tmp_path / "whole.partial.mp4").exists()
    process = start(tmp_path, *base, "-o", "ball.mp4")
    chunk, deadline = tmp_path / "ball.run" / "latents" / "000007.safetensors", time.monotonic() + 120
    while not chunk.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    _, err = process.communicate(timeout=60)
    assert "growing, and playable meanwhile: ball.partial.mp4" in err
    assert not (tmp_path / "ball.mp4").exists()
    growing = tmp_path / "ball.partial.mp4"
    assert sum(1 for _ in read_frames(growing, (64, 64))) >= 48  # of 93 or more that were made
    assert read_settings(growing)["seed"] == 7
    assert rundir.unfinished_work(tmp_path / "ball.mp4") is not None
    code, _, err = longgen(tmp_path, "generate", "-o", "ball.mp4", "--resume")
    assert code == 0, err
    assert (tmp_path / "ball.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not growing.exists()
    for kept in (tmp_path / "whole.run" / "latents").iterdir():
        again = load_file(tmp_path / "ball.run" / "latents" / kept.name)
        assert all(torch.equal(value, again[name]) for name, value in load_file(kept).items())


def test_the_streamed_video_is_the_whole_decode(tmp_path: Path) -> None:
    """The VAE, frame by frame as chunks come, against one decode of all latents by diffusers: every pixel."""
    from longgen.backbones.registry import SPECS

    made = generate(PROMPT, tmp_path / "ball.mp4", backbone="tiny-causal", preset="self-forcing", frames=97, seed=1)
    chunks = Chunks(tmp_path / "ball.run" / "latents", {})
    latents = torch.cat([*chunks], dim=2)
    assert latents.shape[2] == 27  # 25, and two of the last chunk that the video leaves out
    backbone = loading.load(SPECS["tiny-causal"], settings.ModelSettings("cpu", "fp32"))
    vae = backbone.pipe.vae
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        video = vae.decode(latents[:, :, :25] / (1.0 / std) + mean).sample
    frames = (video[0].clamp(-1, 1) * 0.5 + 0.5).permute(1, 2, 3, 0).mul(255).round().byte().numpy()
    streamed = np.concatenate(list(backbone.decode(iter(latents[:, :, :25].split(1, dim=2)))))
    assert np.array_equal(streamed, frames)
    assert decoded(made.run, "-o", str(tmp_path / "again.mp4"))["frames"] == 97
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "ball.mp4").read_bytes()


def test_the_record_says_what_is_inert(tmp_path: Path) -> None:
    made = generate(PROMPT, tmp_path / "ball.mp4", backbone="tiny-causal", preset="flex", frames=33, seed=1)
    kept = json.loads((tmp_path / "ball.run" / "run.json").read_text())
    assert kept["notes"] == list(made.notes)
    assert any("flex changes nothing at 33 frames of tiny-causal" in note for note in made.notes)
    assert [one["name"] for one in kept["techniques"]] == ["ans", "window", "sink", "flex", "rollout"]
