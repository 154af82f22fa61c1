"""Nothing finished is overwritten, nobody's work is mistaken for another's: names, what stands in the way, what is finished."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import longgen
from longgen import checkpoint, disk, naming, preset, progress, resolve, run, rundir
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.pipelines import loading
from longgen.video import partial_of, read_settings
from tests.warm import Process

PROMPT = "a large red circle bouncing on a navy background"
Generate = Callable[..., run.Result]


@pytest.fixture
def make(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """`longgen.generate` of one step and five frames in an empty folder, with a model that is loaded already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load", lambda spec, model_settings, *_: tiny)

    def generate(
        output: str = "a.mp4", prompt: str = PROMPT, seed: int = 1, frames: int = 5, steps: int = 1, **more: Any
    ) -> run.Result:
        return longgen.generate(prompt, output, backbone="tiny", frames=frames, steps=steps, seed=seed, device="cpu", **more)

    return generate


class Stop(Exception):
    """Stands for kill -9 while sampling."""


def stop(at: int = 1) -> Callable[[progress.Progress], None]:
    def report(now: progress.Progress) -> None:
        if now.phase == "sample" and now.done == at:
            raise Stop

    return report


def seed_in(video: str) -> int:
    return read_settings(Path(video))["seed"]


# ---- names -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("猫", "猫"),
        ("A Red  CIRCLE!", "a-red-circle"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("Cafe\u0301", "caf\u00e9"),
        ("مرحبا ١٢", "مرحبا-١٢"),
        ("-rf .hidden", "rf-hidden"),
        ("../../etc/passwd", "etc-passwd"),
        ("a\0b\n\tc\u2028d\u202ee", "a-b-c-d-e"),
        ("CON", "con-video"),
        ("\U0001f600", "video"),
        ("\u0301", "video"),
        ("猫" * 90, "猫" * 40),
        ("a" * 59 + "e\u0323\u0302x", "a" * 59 + "\u1ec7"),
        ("a" * 59 + "q\u0301x", "a" * 59),
        ("x" * 90, "x" * 60),
    ],
)
def test_a_name_keeps_the_letters_of_every_script(text: str, name: str) -> None:
    assert naming.slug(text) == name


OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (dict(prompt="猫"), dict(prompt="狗")),
    (dict(prompt="🐱"), dict(prompt="🐶")),
    (dict(prompt="x" * 60 + "1"), dict(prompt="x" * 60 + "2")),
    (dict(steps=1), dict(steps=2)),
    (dict(preset="direct"), dict(preset="riflex", frames=85)),
    (dict(prompt="cat 1", seed=2), dict(prompt="cat", seed=1)),
]


@pytest.mark.parametrize(("first", "second"), OTHERS)
def test_two_runs_have_two_files_and_each_is_found_again(make: Generate, first: dict[str, Any], second: dict[str, Any]) -> None:
    one, two = make("out/", **first), make("out/", **second)
    assert one.output != two.output
    for made, asked in ((one, first), (two, second)):
        again = make("out/", **asked)
        assert (again.output, again.skipped, made.skipped) == (made.output, True, False)
    assert len(list(Path("out").glob("*.mp4"))) == 2
    assert read_settings(Path(one.output))["prompt"] == first.get("prompt", PROMPT)


def test_a_default_name_never_replaces_even_with_overwrite_what_is_another_s(make: Generate) -> None:
    one = make("out/")
    before = Path(one.output).read_bytes()
    two = make("out/", frames=9, overwrite=True)
    assert Path(two.output).name.endswith("-1-2.mp4")
    assert Path(one.output).read_bytes() == before
    again = make("out/", overwrite=True)
    assert (again.output, again.skipped) == (one.output, False)


def test_twins_of_case_and_of_composed_letters_are_told_apart() -> None:
    model_settings = ModelSettings("cpu", "fp32")
    plan = resolve.resolve(resolve.PlanRequest("direct", TINY, sample=preset.Sample(frames=5, steps=1)))
    for one, two in (("A.mp4", "a.mp4"), ("caf\u00e9.mp4", "cafe\u0301.mp4"), ("a.mp4", "./a.mp4"), ("a.mp4", "a.MP4")):
        with pytest.raises(UsageError, match="two videos go to"):
            rundir.jobs_of([rundir.JobRequest(plan, PROMPT, 1, one), rundir.JobRequest(plan, PROMPT, 2, two)], model_settings)
    jobs = rundir.jobs_of(
        [rundir.JobRequest(plan, "É", 1, None), rundir.JobRequest(plan, unicodedata.normalize("NFD", "é"), 1, None)], model_settings
    )
    assert [str(job.output) for job in jobs] == ["\u00e9-1.mp4", "\u00e9-1-2.mp4"]


# ---- what stands in the way ------------------------------------------------------------------------------------------------


def own_file(path: Path) -> None:
    path.write_bytes(b"holiday")


def link(path: Path) -> None:
    own_file(path.with_name("elsewhere.mp4"))
    path.symlink_to("elsewhere.mp4")


def hard_link(path: Path) -> None:
    own_file(path.with_name("elsewhere.mp4"))
    path.hardlink_to(path.with_name("elsewhere.mp4"))


def read_only(path: Path) -> None:
    own_file(path)
    path.chmod(0o444)


def latents_of_another(path: Path) -> None:
    path.with_suffix(".run").mkdir()
    checkpoint.save_tensors(path.with_suffix(".run") / "latents.safetensors", {"latents": torch.zeros(1)}, {"prompt": "x"})


IN_THE_WAY: list[tuple[Callable[[Path], object], bool]] = [  # and whether --overwrite helps
    (own_file, True),
    (link, True),
    (lambda path: path.symlink_to("nothing.mp4"), True),
    (hard_link, True),
    (read_only, True),
    (latents_of_another, True),
    (lambda path: path.mkdir(), False),
    (lambda path: os.mkfifo(path), False),
    (lambda path: path.symlink_to("/dev/null"), True),
    (lambda path: own_file(path.with_suffix(".run")), False),
]


@pytest.mark.parametrize(("put", "helps"), IN_THE_WAY)
def test_what_is_there_stays_unless_it_may_be_replaced(
    make: Generate, tmp_path: Path, put: Callable[[Path], object], helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.mp4")
    names = sorted(path.name for path in tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", lambda spec, model_settings, *_: pytest.fail("refused too late"))
        for flags in ({}, {"resume": True}):
            if flags and put is latents_of_another:
                continue
            with pytest.raises(LonggenError, match=r"a\.(mp4|run)"):
                make(**flags)
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    if helps:
        assert make(overwrite=True).skipped is False
        assert seed_in("a.mp4") == 1
        assert not Path("a.mp4").is_symlink()
    else:
        with pytest.raises(LonggenError, match=r"a\.(mp4|run)"):
            make(overwrite=True)
        assert sorted(path.name for path in tmp_path.rglob("*")) == names
    if Path("elsewhere.mp4").exists():
        assert Path("elsewhere.mp4").read_bytes() == b"holiday"


@pytest.mark.parametrize(
    "output",
    ["x" * 300 + ".mp4", "x" * 300 + "/a.mp4", "猫" * 80 + ".mp4", "/proc/a.mp4", "/dev/null/a.mp4", "a\0b.mp4",
     "y/" * 3000 + "a.mp4", "z" * 300 + "/"],
)  # fmt: skip
def test_a_name_that_cannot_be_is_refused_by_name(make: Generate, tmp_path: Path, output: str) -> None:
    with pytest.raises(LonggenError) as caught:
        make(output)
    assert len(str(caught.value)) < 700
    assert list(tmp_path.iterdir()) == []


# ---- finished --------------------------------------------------------------------------------------------------------------


def test_resume_does_not_take_another_s_video_for_its_own(make: Generate) -> None:
    """Seed 1 is finished, seed 2 is begun in its place and stopped before its first checkpoint."""
    make(seed=1)
    first = Path("a.mp4").read_bytes()
    with pytest.raises(UsageError, match="a video with another seed"):
        make(seed=2)
    with pytest.raises(Stop):
        make(seed=2, overwrite=True, progress=stop(0))
    assert Path("a.mp4").read_bytes() == first
    assert (Path("a.run") / "earlier" / "latents.safetensors").is_file()
    with pytest.raises(UsageError, match="another seed"):
        make(seed=1, resume=True)
    made = make(seed=2, resume=True)
    assert (made.skipped, seed_in("a.mp4")) == (False, 2)
    assert sorted(os.listdir("a.run")) == ["latents.safetensors", "run.json"]
    assert sorted(os.listdir()) == ["a.mp4", "a.run"]


def test_overwrite_keeps_a_finished_video_until_the_new_one_is_whole(make: Generate) -> None:
    make()
    video, latents = Path("a.mp4").read_bytes(), (Path("a.run") / "latents.safetensors").read_bytes()
    for _ in range(2):  # and again over what is then unfinished
        with pytest.raises(Stop):
            make(steps=2, overwrite=True, progress=stop(1))
        assert Path("a.mp4").read_bytes() == video
        assert (Path("a.run") / "earlier" / "latents.safetensors").read_bytes() == latents
    assert make(steps=2, resume=True).skipped is False
    assert read_settings(Path("a.mp4"))["sample"]["steps"] == 2
    assert not (Path("a.run") / "earlier").exists()


def test_what_is_finished_is_known_by_record_settings_and_bytes(make: Generate) -> None:
    make()
    whole = Path("a.mp4").read_bytes()
    assert make().skipped
    assert make(resume=True).skipped
    shutil.move("a.run", "kept")  # the folder may go: the settings inside agree, and all frames are there
    assert make().skipped
    with pytest.raises(UsageError, match="another seed"):
        make(seed=2)
    for damaged in (whole[:-300], whole[: len(whole) // 2], b""):
        Path("a.mp4").write_bytes(damaged)
        for flags in ({}, {"resume": True}):
            with pytest.raises(UsageError, match=r"a\.mp4 exists"):
                make(**flags)
    shutil.move("kept", "a.run")
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    for damaged in (whole[:-300], flipped):
        Path("a.mp4").write_bytes(damaged)
        with pytest.raises(UsageError, match="not as its run left it"):
            make(resume=True)
    Path("a.mp4").unlink()  # its latents are not to be lost by a run that begins anew
    with pytest.raises(UsageError, match="the latents of a video that is not there any more"):
        make(seed=2)
    assert make(resume=True).skipped is False
    assert Path("a.mp4").read_bytes() == whole


def test_a_checkpoint_of_other_versions_goes_on_with_a_warning(make: Generate, tiny: Any, tiny_plan: Any, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        make(steps=2, progress=stop(1))
    path = tmp_path / "a.run" / "checkpoint.safetensors"
    tensors, settings = checkpoint.load_tensors(path)
    settings["libraries"]["torch"] = "2.0"
    checkpoint.save_tensors(path, tensors, settings)
    said: list[str] = []
    plan = tiny_plan("direct", frames=5, steps=2)
    run.generate_one(tiny, run.Job(plan, PROMPT, 1, tmp_path / "a.mp4"), resume=True, log=said.append)
    assert f"torch 2.0 (now {torch.__version__})" in said[0]
    assert said[0].removeprefix("note: ") in rundir.stored_record(tmp_path / "a.mp4")["notes"]


def test_files_of_0_5_0_go_on_with_a_warning(make: Generate, tiny: Any, tiny_plan: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(Stop):
        make(steps=2, progress=stop(1))
    path = tmp_path / "a.run" / "checkpoint.safetensors"
    tensors, settings = checkpoint.load_tensors(path)
    save_file(tensors, path, {"longgen": json.dumps(settings | {"schema": 1})})
    record = json.loads((tmp_path / "a.run" / "run.json").read_text())
    (tmp_path / "a.run" / "run.json").write_text(json.dumps({key: record[key] for key in ("status", "settings")} | {"schema": 1}))
    said: list[str] = []
    run.generate_one(
        tiny, run.Job(tiny_plan("direct", frames=5, steps=2), PROMPT, 1, tmp_path / "a.mp4"), resume=True, log=said.append
    )
    assert "no checksum" in said[0]


def _shorter(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    tensors["latents"] = tensors["latents"][:, :, :1]


def _nan(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    tensors["latents"][0, 0, 0, 0, 0] = float("nan")


def _no_generator(tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    tensors["generator"] = tensors["generator"][:9]


DAMAGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "99 of 2 rounds": lambda tensors, settings: settings.update(done=99),
    "-1 of 2 rounds": lambda tensors, settings: settings.update(done=-1),
    "True of 2 rounds": lambda tensors, settings: settings.update(done=True),
    "None of 2 rounds": lambda tensors, settings: settings.pop("done"),
    "its latents are 1x48x1x4x4": _shorter,
    "not all of its latents are finite": _nan,
    "no state of a generator": _no_generator,
    "no state of a scheduler": lambda tensors, settings: settings["scheduler"].update(x={"tensor": "none"}),
    "it holds no latents": lambda tensors, settings: tensors.pop("latents"),
}


def test_a_checkpoint_that_cannot_be_is_refused(make: Generate, tmp_path: Path) -> None:
    """Whole and with a checksum that fits: what it says is checked as well."""
    with pytest.raises(Stop):
        make(steps=2, progress=stop(1))
    path = tmp_path / "a.run" / "checkpoint.safetensors"
    tensors, settings = checkpoint.load_tensors(path)
    for reason, change in DAMAGES.items():
        changed = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(settings))
        change(*changed)
        checkpoint.save_tensors(path, *changed)
        with pytest.raises(LonggenError, match=f"checkpoint.safetensors is damaged: .*{reason}"):
            make(steps=2, resume=True)
    assert not Path("a.mp4").exists()


def test_any_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, {"latents": torch.ones(2), "b": torch.zeros(0)}, {"schema": 2, "done": 1, "text": "é"})
    record = tmp_path / "run.json"
    disk.save_record(record, {"schema": 2, "status": "done", "done": 1.5})
    for one, read in ((path, checkpoint.load_tensors), (record, disk.load_record)):
        data, harmless = one.read_bytes(), 0
        before = str(read(one))
        for at in range(len(data)):
            for bit in (0, 3, 5):
                one.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
                try:
                    assert str(read(one)) == before
                    harmless += 1
                except LonggenError:
                    pass
        assert harmless < len(data) * 3 / 5  # spaces between words, and padding


# ---- one process at a time -------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_before_it_loads_anything(make: Generate, tmp_path: Path) -> None:
    with rundir.lock(Path("a.mp4")):
        pass
    assert list(tmp_path.iterdir()) == []  # no lock is left behind
    hold = "from pathlib import Path; import time; from longgen import rundir\n"
    hold += "with rundir.lock(Path('a.mp4')): print(1, flush=True); time.sleep(60)"
    other = Process(tmp_path, [], hold)
    other.stdout.readline()
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(LonggenError, match=rf"a\.mp4 is being written by another process, number {other.pid}"):
            make(**flags)
    other.kill()
    other.communicate()
    assert make().skipped is False  # kill -9 frees it
    assert sorted(os.listdir("a.run")) == ["latents.safetensors", "run.json"]


def test_a_file_system_without_locks(make: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's being there is the lock then."""
    import errno
    import fcntl

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with rundir.lock(Path("a.mp4")):
        assert (Path("a.run") / ".lock").exists()
    assert make().skipped is False
    assert sorted(os.listdir("a.run")) == ["latents.safetensors", "run.json"]


# ---- the disk ----------------------------------------------------------------------------------------------------------------


def test_bytes_reach_the_disk_before_the_name_and_then_the_name(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longgen.video import Writer

    seen: list[str] = []
    fsync, rename = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        seen.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        seen.append(f"name {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)

    def video(path: Path) -> None:
        with Writer(path, (16, 16), 8, {}) as writer:
            writer.add(torch.zeros(2, 16, 16, 3, dtype=torch.uint8).numpy())

    folder = tmp_path / "new" / "x.run"
    disk.make_folder(folder)
    assert seen == [f"sync {tmp_path.name}", "sync new"]
    for name, write in {
        "x.json": lambda path: disk.save_json(path, {}),
        "x.safetensors": lambda path: checkpoint.save_tensors(path, {}, {}),
        "x.mp4": video,
    }.items():
        seen.clear()
        write(folder / name)
        assert seen == [f"sync .{name}.{os.getpid()}.partial", f"name {name}", "sync x.run"]
    assert sorted(os.listdir(folder)) == ["x.json", "x.mp4", "x.safetensors"]


def test_records_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(MissingError, match="is not there"):
        disk.load_record(path)
    for text in ("[]", "{}", "[" * 5000, "\xff", '{"checksum": null}', '{"status": "done", "settings": {}, "schema": 2}'):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(LonggenError, match=r"run\.json is damaged"):
            disk.load_record(path, lambda record: record.get("schema", 2) < 2)


def test_partial_names_are_of_one_process(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert disk.partial_of(path).name == f".a.mp4.{os.getpid()}.partial"
    assert len(disk.partial_of(tmp_path / ("x" * naming.LONGEST_NAME)).name) <= 255 - 7 + len(str(os.getpid()))
    (tmp_path / ".a.mp4.99.partial").touch()
    (tmp_path / ".a.mp4.mine.partial").touch()
    disk.clear_partials(path)
    assert os.listdir(tmp_path) == [".a.mp4.mine.partial"]
    assert partial_of(path).name == "a.partial.mp4"  # the growing one has a name that people know
