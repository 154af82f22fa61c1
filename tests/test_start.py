"""Videos that start from pictures: every way to give one, what makes a run the same, and its files when the originals are gone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import longgen
from longgen import conditions, planner, preset, prompts, run, rundir, schedule, start
from longgen.backbones.registry import SPECS
from longgen.backbones.settings import ModelSettings
from longgen.backbones.wan import TINY, WAN_1_3B
from longgen.cli import app
from longgen.conditions import NOTHING, Conditions
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.past import Past
from longgen.pipelines import loading
from longgen.progress import Progress
from longgen.resolve import from_settings
from longgen.run_settings import content_hash, differences, stored_settings
from longgen.schedule import settled
from longgen.video import read_frames, read_settings

PROMPT = "a large red circle bouncing on a navy background"
PLAIN = ["--backbone", "tiny", "--frames", "9", "--steps", "2"]
MODEL = ModelSettings("cpu", "fp32")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with pictures, and no LONGGEN_* variable."""
    for name in [name for name in os.environ if name.startswith("LONGGEN_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, colour in (("red.png", "red"), ("blue.png", "blue"), ("wide.png", "navy")):
        Image.new("RGB", (128, 64) if name == "wide.png" else (64, 64), colour).save(name)
    shutil.copy("red.png", "again.png")
    return tmp_path / "here"


@pytest.fixture
def loaded(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generating takes the model that is loaded already."""
    monkeypatch.setattr(loading, "load", lambda spec, model_settings, *_: tiny)


def longgen_cli(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(args), input=stdin)


def said(*args: str, code: int = 0) -> str:
    """What a command that ends with `code` writes on stderr."""
    done = longgen_cli(*args)
    assert done.exit_code == code, (done.stderr, done.stdout, done.exception)
    return done.stderr


def planned(*args: str) -> dict[str, Any]:
    done = longgen_cli("plan", *PLAIN, "--json", *args)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def make(output: str = "a.mp4", **more: Any) -> run.Result:
    sample = preset.Sample(frames=9, steps=2)
    return longgen.generate(PROMPT, output, **{"backbone": "tiny", "sample": sample, "seed": 1, "device": "cpu"} | more)


def stored(conditions: Conditions, shots: schedule.PromptSchedule | None = None) -> dict[str, Any]:
    plan = planner.build(preset.load("direct", (), preset.Sample(frames=33, steps=2)), TINY, shots, conditions=conditions)
    return stored_settings(plan, PROMPT, 1, MODEL)


class Stop(Exception):
    """Stands for kill -9 while sampling."""


def stop(at: int) -> Callable[[Progress], None]:
    def report(now: Progress) -> None:
        if now.phase == "sample" and now.done == at:
            raise Stop

    return report


# ---- options ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "words"), [
    (["--last-image", "red.png"], "--last-image is given without a first picture"),
    (["--join"], "--join has no effect without --continue"),
    (["--fit", "pad"], "--fit has no effect without a picture"),
    (["--image", "none.png"], "--image none.png is not there"),
    (["--image", "red.png", "--last-image", "none.png"], "--last-image none.png is not there"),
    (["--image", "red.png", "--last-image", "blue.png"], "--last-image: tiny cannot take a picture as the last frame"),
    (["--image", "red.png", "--backbone", "wan2.1-1.3b"], "--image: wan2.1-1.3b cannot take a picture as the first frame"),
    (["--image", "https://example.com/a.png"], "is an address"),
])  # fmt: skip
@pytest.mark.parametrize(
    "command", [["plan"], ["generate", "--dry-run", "-p", PROMPT], ["compare", "--presets", "direct", "-p", PROMPT]]
)
def test_what_cannot_be_is_refused_before_any_work(command: list[str], args: list[str], words: str) -> None:
    plain = PLAIN if "--backbone" not in args else PLAIN[2:]
    message = said(*command, *plain, *args, code=3 if "not there" in words else 2)
    assert words in message
    assert "expected: " in message
    assert "hint: " in message


def test_a_model_that_takes_no_picture_names_those_that_do() -> None:
    with pytest.raises(UsageError) as refusal:
        planner.build(preset.load("direct"), WAN_1_3B, conditions=start.read("red.png"))
    assert "tiny" in refusal.value.expected


def test_a_variable_is_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGGEN_FIT", "pad")
    assert planned()["starts_from"] is None
    assert planned("--image", "red.png")["starts_from"]["fit"] == "pad"
    assert planned("--image", "red.png", "--fit", "crop")["starts_from"]["fit"] == "crop"
    assert "fit" not in json.dumps(stored(start.read(fit="pad")))


def test_a_plan_says_what_it_starts_from() -> None:
    data = planned("--image", "wide.png")
    sha256 = start.read("wide.png").image.sha256  # type: ignore[union-attr]
    assert data["starts_from"] == {
        "image": {"name": "wide.png", "sha256": sha256, "size": [128, 64]}, "fit": "crop", "join": False, "given_latent_frames": 1,
    }  # fmt: skip
    assert "--image wide.png is 128x64: 50% cut off at left and right to be 64x64 (--fit pad keeps all of it)" in data["notes"]
    text = longgen_cli("plan", *PLAIN, "--image", "wide.png", "--fit", "pad").stdout
    assert f"starts from --image wide.png (128x64, {sha256[:12]}); fit pad; 1 of 3 latent frames are given\n" in text
    assert "note: --image wide.png is 128x64: reduced to 50%, 32 rows of black added to be 64x64" in text
    assert "starts from" not in longgen_cli("plan", *PLAIN).stdout


def test_a_dry_run_says_it_too() -> None:
    args = ["generate", *PLAIN, "-p", PROMPT, "--image", "wide.png", "--dry-run"]
    done = longgen_cli(*args)
    assert "starts from --image wide.png" in done.stdout
    assert "note: --image wide.png is 128x64" in done.stderr
    assert json.loads(longgen_cli(*args, "--json").stdout)["videos"][0]["starts_from"]["image"]["name"] == "wide.png"
    assert sorted(os.listdir()) == ["again.png", "blue.png", "red.png", "wide.png"]


@pytest.mark.parametrize(
    "wrong",
    [{"image": 3}, {"last_image": b"a"}, {"continue_from": 1}, {"join": 1}, {"fit": 2}, {"fit": "stretch"}, {"fit": "pad"},
     {"last_image": "red.png"}, {"join": True}],
)  # fmt: skip
def test_arguments_of_python_callers(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(**wrong)
    assert not Path("a.run").exists()


def test_pixels_are_no_file() -> None:
    for pixels in (Image.new("RGB", (8, 8)), np.zeros((64, 64, 3), np.uint8)):
        with pytest.raises(UsageError, match=r"^image = .* is of type") as refusal:
            make(image=pixels)
        assert "\n" not in refusal.value.given
        assert refusal.value.hint == "save it to a file, and pass its name"


# ---- the same run ------------------------------------------------------------------------------------------------------------


def test_the_same_bytes_under_another_name_are_the_same_run() -> None:
    plain, red, again = stored(NOTHING), stored(start.read("red.png")), stored(start.read("again.png"))
    assert differences(red, again) == []
    assert content_hash(red) == content_hash(again)
    assert differences(plain, red) == differences(red, plain) == ["image"]
    assert differences(red, stored(start.read("blue.png"))) == ["image"]
    assert differences(red, stored(start.read("red.png", fit="pad"))) == ["fit"]
    assert "conditions" not in plain
    assert "inputs" not in plain
    assert set(red["inputs"].values()) == {"red.png"}
    assert (
        len({content_hash(one) for one in (plain, red, stored(start.read("blue.png")), stored(start.read("red.png", fit="pad")))})
        == 4
    )


def test_stored_settings_give_the_same_plan_again(loaded: None) -> None:
    make(image="wide.png", fit="pad")
    settings = read_settings(Path("a.mp4"))
    for origin in (Path("a.mp4"), Path("a.run") / "run.json", Path("a.run") / "latents.safetensors", Path("a.mp4").absolute()):
        plan = from_settings(settings, origin)
        assert plan.conditions.image is not None
        assert (plan.conditions.image.name, plan.conditions.image.size, plan.given_lat) == ("wide.png", (128, 64), 1)
        assert differences(stored_settings(plan, PROMPT, 1, MODEL), settings) == []
    assert any("32 rows of black" in note for note in plan.notes)
    shutil.rmtree("a.run")
    plan = from_settings(settings, Path("a.mp4"))
    assert differences(stored_settings(plan, PROMPT, 1, MODEL), settings) == []


def test_both_pictures_and_their_fit_come_back_from_a_run(place: Path) -> None:
    started = start.read("red.png", "wide.png", fit="pad")
    started.keep(place / "a.run")
    names = {picture.sha256: picture.name for picture in started.pictures.values()}
    again = conditions.restore(started.as_dict(), place / "a.run", names)
    assert again.as_dict() == started.as_dict()
    assert [(picture.name, picture.size) for picture in again.pictures.values()] == [("red.png", (64, 64)), ("wide.png", (128, 64))]
    assert again.fit == "pad"


@pytest.mark.parametrize(
    "damaged",
    [3, [], {"image": 3}, {"image": "x", "fit": "crop"}, {"fit": "stretch"}, {"more": 1, "fit": "crop"},
     {"image": "../" * 10 + "etc/passwd", "fit": "crop"}],
)  # fmt: skip
def test_damaged_settings_are_one_error(damaged: Any) -> None:
    with pytest.raises(LonggenError):
        from_settings(stored(NOTHING) | {"conditions": damaged}, Path("a.mp4"))
    with pytest.raises(LonggenError):
        from_settings(stored(start.read("red.png")) | {"inputs": [3]}, Path("a.mp4"))


# ---- files of a run -----------------------------------------------------------------------------------------------------------


def test_the_video_begins_with_the_picture(loaded: None) -> None:
    make(image="red.png")
    first = next(iter(read_frames(Path("a.mp4"), (64, 64))))
    red, green, blue = first.astype(int).mean(axis=(0, 1))
    assert red > 150 > 70 > max(green, blue)  # as well as its VAE can say it


def test_a_run_keeps_its_picture_and_goes_on_without_the_original(loaded: None) -> None:
    make("whole.mp4", image="red.png")
    for how in ("api", "alone", "again"):
        with pytest.raises(Stop):
            make("a.mp4", image="red.png", report=stop(1))
        (copy,) = (Path("a.run") / "inputs").iterdir()
        assert copy.read_bytes() == Path("red.png").read_bytes()
        Path("red.png").rename("moved.png")
        if how == "api":
            make("a.mp4", image="red.png", resume=True)
        elif how == "alone":
            said("generate", "-o", "a.mp4", "--resume")
        else:
            said("generate", *PLAIN, "-p", PROMPT, "--seed", "1", "--image", "red.png", "-o", "a.mp4", "--resume")
        assert Path("a.mp4").read_bytes() == Path("whole.mp4").read_bytes(), how
        Path("moved.png").rename("red.png")
        Path("a.mp4").unlink()
        shutil.rmtree("a.run")


def test_a_finished_run_is_known_without_the_original(loaded: None) -> None:
    make(image="red.png")
    Path("red.png").unlink()
    assert make(image="red.png", resume=True).skipped
    assert "there is nothing to do" in said("generate", "-o", "a.mp4", "--resume")
    assert make(image="again.png").skipped
    with pytest.raises(MissingError):
        make(image="red.png")  # nothing says that it goes on


def test_a_changed_file_under_the_same_name_is_another_run(loaded: None) -> None:
    with pytest.raises(Stop):
        make(image="red.png", report=stop(1))
    shutil.copy("blue.png", "red.png")
    with pytest.raises(UsageError, match="made with another image"):
        make(image="red.png", resume=True)
    message = said("generate", *PLAIN, "-p", PROMPT, "--seed", "1", "--image", "red.png", "-o", "a.mp4", "--resume", code=2)
    assert "made with another image" in message
    assert make(image="again.png", resume=True).skipped is False
    with pytest.raises(UsageError, match="a video with another image"):
        make(image="blue.png")
    with pytest.raises(UsageError, match="a video with another image"):
        make()


def test_overwriting_leaves_no_picture_of_the_run_before(loaded: None) -> None:
    make(image="red.png")
    with pytest.raises(Stop):
        make(image="blue.png", overwrite=True, report=stop(1))
    assert len(os.listdir("a.run/inputs")) == 2
    make(image="blue.png", resume=True)
    assert os.listdir("a.run/inputs") == [f"{start.read('blue.png').image.sha256}.png"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("damage", "code"),
    [(Path.unlink, 3), (lambda path: path.write_bytes(b"x"), 2), (lambda path: shutil.copy("blue.png", path), 1)],
)
def test_a_copy_that_is_gone_or_damaged_is_said(loaded: None, damage: Callable[[Path], Any], code: int) -> None:
    with pytest.raises(Stop):
        make(image="red.png", report=stop(1))
    (copy,) = (Path("a.run") / "inputs").iterdir()
    damage(copy)
    message = said(
        "generate",
        "-o",
        "a.mp4",
        "--resume",
        code=1 if copy.exists() and copy.stat().st_size > 1 else 3 if not copy.exists() else 2,
    )
    assert copy.name[:40] in message
    make(image="red.png", resume=True)  # the original is there
    assert copy.read_bytes() == Path("red.png").read_bytes()


def test_decode_and_inspect_need_no_original(loaded: None) -> None:
    make(image="red.png")
    Path("red.png").unlink()
    said("decode", "a.run", "-o", "b.mp4")
    assert [frame.tobytes() for frame in read_frames(Path("a.mp4"), (64, 64))] == [
        frame.tobytes() for frame in read_frames(Path("b.mp4"), (64, 64))
    ]
    command = longgen_cli("inspect", "a.mp4", "--toml").stdout.splitlines()[0]
    assert f"--image {Path('a.run').absolute() / 'inputs'}" in command
    shutil.rmtree("a.run")
    command = longgen_cli("inspect", "a.mp4", "--toml").stdout.splitlines()[0]
    assert "--image red.png --fit crop" in command
    assert '"red.png"' in longgen_cli("inspect", "a.mp4").stdout


def test_a_copy_has_the_name_of_its_original(loaded: None) -> None:
    make(image="red.png")
    (copy,) = (Path("a.run") / "inputs").iterdir()
    assert start.read(copy).image.name == "red.png"  # type: ignore[union-attr]
    shutil.copy(copy, copy.name)
    assert start.read(copy.name).image.name == copy.name  # type: ignore[union-attr]


# ---- files of prompts ---------------------------------------------------------------------------------------------------------


def table(text: str, name: str = "sub/rows.csv") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_has_a_picture_beside_its_file() -> None:
    Path("sub").mkdir()
    Path("red.png").rename("sub/red.png")
    Image.new("RGB", (64, 64), "green").save("green.png")
    path = table(f"prompt,image\n{PROMPT},red.png\n{PROMPT},../blue.png\n{PROMPT},{Path('wide.png').absolute()}\n{PROMPT},\n")
    rows, _ = prompts.read(path)
    assert [row.image.name if row.image else None for row in rows] == ["red.png", "blue.png", "wide.png", None]  # type: ignore[union-attr]
    done = longgen_cli("generate", *PLAIN, "--prompts", str(path), "--seed", "1", "--image", "green.png", "--dry-run", "--json")
    names = [video["starts_from"]["image"]["name"] for video in json.loads(done.stdout)["videos"]]
    assert names == ["red.png", "blue.png", "wide.png", "green.png"]
    lines = [json.dumps({"prompt": PROMPT, "image": name}) for name in ("red.png", None)]
    rows, _ = prompts.read(table("\n".join(lines), "sub/rows.jsonl"))
    assert [row.image is None for row in rows] == [False, True]


def test_every_error_of_the_rows_is_in_one_message() -> None:
    Path("text.png").write_text("hello")
    path = table("prompt,image,last_image\na,none.png,\nb,red.png,blue.png\nc,text.png,\nd,,none.png\n", "rows.csv")
    with pytest.raises(UsageError) as refusal:
        prompts.read(path)
    lines = [line.strip() for line in refusal.value.given.split("\n")[1:]]
    assert lines == [
        "line 2: image none.png is not there; expected: a PNG, JPEG or WebP file",
        "line 4: image text.png is no picture; expected: a PNG, JPEG or WebP file",
        "line 5: last_image none.png is not there; expected: a PNG, JPEG or WebP file",
    ]
    for wrong in ('{"prompt": "a", "image": 3}', '{"prompt": "a", "image": {"path": "red.png", "sha256": "x", "size": [1, 1]}}'):
        with pytest.raises(UsageError, match=r"line 1: image = .*: not the name of a file") as refusal:
            prompts.read(table(wrong, "rows.jsonl"))
        assert refusal.value.given.count("line 1") == 1


def test_a_row_that_the_model_refuses_names_its_line() -> None:
    path = table(f"prompt,image,last_image\n{PROMPT},red.png,\n{PROMPT},red.png,blue.png\n", "rows.csv")
    message = said("generate", *PLAIN, "--prompts", str(path), "--seed", "1", "--dry-run", code=2)
    assert "line 3 of --prompts: --last-image: tiny cannot take" in message


def test_rows_share_plans_by_what_they_start_from() -> None:
    from longgen.cli import inputs
    from longgen.resolve import PlanRequest

    path = table("prompt,image\na,red.png\nb,again.png\nc,blue.png\nd,\ne,\n", "rows.csv")
    rows, _ = prompts.read(path)
    plans = inputs.plans_of_rows(rows, PlanRequest("direct", TINY), quiet=True)
    assert [plans.index(plan) for plan in plans] == [0, 0, 2, 3, 3]


def test_fit_with_rows_needs_one_picture() -> None:
    args = ["generate", *PLAIN, "--seed", "1", "--dry-run", "--fit", "pad", "--prompts"]
    assert "--fit has no effect" in said(*args, str(table(f"prompt\n{PROMPT}\n", "rows.csv")), code=2)
    said(*args, str(table(f"prompt,image\n{PROMPT},red.png\n", "rows.csv")))


def test_where_one_setting_holds_for_all_a_column_is_refused() -> None:
    path = table("prompt,image\na,red.png\n", "rows.csv")
    message = said("compare", *PLAIN, "--presets", "direct", "--prompts", str(path), code=2)
    assert "line 2 gives image" in message


# ---- schedules ----------------------------------------------------------------------------------------------------------------

SHOTS = 'image = "{}"\nprompt = "a"\n'


def shots(*pictures: str | None, name: str = "shots.toml") -> Path:
    text = ""
    for number, picture in enumerate(pictures):
        text += f'[[shot]]\nat = "{number}s"\nprompt = "{PROMPT} {number}"\n' + (f'image = "{picture}"\n' if picture else "")
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_first_shot_s_picture_is_the_first_frame() -> None:
    with_shot, with_option = schedule.load(shots("red.png", None)), schedule.load(shots(None, None, name="plain.toml"))
    assert differences(stored(NOTHING, with_shot), stored(start.read("again.png"), with_option)) == []
    assert settled(with_shot, NOTHING)[1].image is not None
    assert planned("--fps", "4", "--schedule", "shots.toml")["starts_from"]["image"]["name"] == "red.png"
    stored(start.read("again.png"), with_shot)  # the same picture twice
    with pytest.raises(UsageError, match="--image cannot be combined with the picture of the schedule's first shot"):
        stored(start.read("blue.png"), with_shot)
    earlier = Conditions(past=Past(Path("a.mp4"), "0" * 64, 9, 16.0, (64, 64)))
    with pytest.raises(UsageError, match="the picture of the schedule's first shot cannot be combined with --continue"):
        settled(with_shot, earlier)


def test_pictures_stand_beside_the_schedule() -> None:
    read = schedule.load(shots("../red.png", None, name="sub/shots.toml"))
    assert read.shots[0].image == dataclasses.replace(start.read("red.png").image, path=Path("sub/../red.png"))  # type: ignore[type-var]


def test_a_later_shot_s_picture_needs_clip_after_clip() -> None:
    chosen = schedule.load(shots(None, "red.png"))
    for name in ("direct", "freespec", "gen-l-video"):
        with pytest.raises(UsageError) as refusal:
            planner.build(preset.load(name, (), preset.Sample(frames=321)), TINY, chosen)
        assert "shot 2: image" in refusal.value.given
        assert "chain" in refusal.value.expected
        assert "--preset chain" in refusal.value.hint
    with pytest.raises(UsageError, match="rollout begins no clip there") as refusal:  # whose frames no chain denoises together
        planner.build(preset.load("direct", (), preset.Sample(frames=321)), SPECS["tiny-causal"], chosen)
    assert "chain" not in refusal.value.hint


@pytest.mark.parametrize(("line", "words"), [
    ('image = "none.png"', "line 3: shot 1: image: none.png is not there; expected: a PNG, JPEG or WebP file"),
    ("image = 3", "line 3: shot 1: image = 3 is not the name of a file"),
    ('image = ""', "line 3: shot 1: image = '' is not the name of a file"),
])  # fmt: skip
def test_errors_of_a_schedule_s_pictures(line: str, words: str) -> None:
    Path("shots.toml").write_text(f'[[shot]]\nprompt = "a"\n{line}\n')
    with pytest.raises(UsageError) as refusal:
        schedule.load(Path("shots.toml"))
    assert refusal.value.given.split("\n")[1].strip() == words


def test_a_schedule_of_pictures_survives_files_and_settings(place: Path) -> None:
    chosen = schedule.load(shots("red.png", None, "blue.png"))
    again = read_back(chosen)
    assert again == chosen
    (place / "copy.toml").write_text(chosen.as_toml(), encoding="utf-8")
    read = schedule.load(place / "copy.toml")
    assert [shot.image and shot.image.sha256 for shot in read.shots] == [shot.image and shot.image.sha256 for shot in chosen.shots]
    assert chosen.as_dict()["shots"][2]["image"] == chosen.shots[2].image.sha256  # type: ignore[union-attr]
    assert "image" not in chosen.as_dict()["shots"][1]


def read_back(chosen: schedule.PromptSchedule) -> schedule.PromptSchedule:
    """What `as_dict` and `from_dict` make of it."""
    by_hash = {picture.sha256: picture for picture in chosen.pictures.values()}
    return schedule.PromptSchedule.from_dict(json.loads(json.dumps(chosen.as_dict())), by_hash.__getitem__)


def test_a_run_of_a_schedule_keeps_its_pictures_and_goes_on(loaded: None) -> None:
    chosen = schedule.load(shots("red.png", None))
    sample = preset.Sample(frames=33, steps=2)
    make("whole.mp4", schedule=chosen, sample=sample)
    with pytest.raises(Stop):
        make(schedule=chosen, sample=sample, report=stop(1))
    Path("red.png").unlink()
    said("generate", "-o", "a.mp4", "--resume")
    assert Path("a.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert rundir.stored_record(Path("a.mp4"))["status"] == "done"
    printed = longgen_cli("inspect", "a.mp4", "--shots").stdout
    assert "image" not in printed  # it is the video's, and stands in the command
    assert "--schedule - " in longgen_cli("inspect", "a.mp4", "--toml").stdout.splitlines()[0]
    assert "--image " in longgen_cli("inspect", "a.mp4", "--toml").stdout.splitlines()[0]


def test_a_chain_begins_a_later_shot_with_its_picture(loaded: None) -> None:
    """From one file to the video: the picture is what the shot's first frame shows, and the run goes on when it has moved."""
    chosen = schedule.load(shots("red.png", "blue.png"))
    more: dict[str, Any] = {"schedule": chosen, "preset_name": "chain", "sample": preset.Sample(frames=33, steps=2)}
    make("whole.mp4", **more)
    frames = [frame.astype(int).mean(axis=(0, 1)) for frame in read_frames(Path("whole.mp4"), (64, 64))]
    assert frames[0].argmax() == 0
    assert frames[13].argmax() == 2  # the first of the latent frame in which the shot begins
    assert len(os.listdir("whole.run/inputs")) == 2
    with pytest.raises(Stop):
        make("a.mp4", **more, report=stop(3))
    for name in ("red.png", "blue.png"):
        Path(name).unlink()
    said("generate", "-o", "a.mp4", "--resume")
    assert Path("a.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    printed = longgen_cli("inspect", "a.mp4", "--shots").stdout
    assert f'image = "{Path("a.run").absolute()}/inputs/' in printed
    (Path("printed.toml")).write_text(printed, encoding="utf-8")
    assert schedule.load(Path("printed.toml")).shots[1].image is not None
