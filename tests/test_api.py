"""The Python functions: the names, types and defaults of the command line, the same videos, and how results show themselves."""

from __future__ import annotations

import ast
import inspect
import logging
import re
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import typer.main

import longgen
from longgen import notebook
from longgen.api import words
from longgen.cli import app
from longgen.errors import UsageError
from longgen.progress import Progress

PROMPT = "a large red circle bouncing on a navy background"
EVIL = "</b><script>alert(1)</script>"
SHORT: dict[str, Any] = {"steps": 2, "seed": 1}

# ---- the command line's options are the parameters -----------------------------------------------------------------------

OF_THE_SHELL = {  # options that have no parameter, by command; and what Python has for them
    "generate": {"words", "prompts", "seeds", "ray", "ray_workers", "shard", "dry_run", "as_json", "quiet", "log_file",
                 "preview"},  # longgen.load; a strip is for eyes at a terminal
    "plan": {"npz", "overwrite", "as_json", "quiet"},  # PlanResult.save_tables
    "compare": {"ray", "ray_workers", "shard", "as_json", "quiet", "log_file"},
    "probe": {"ray", "ray_workers", "as_json", "quiet", "log_file"},
}  # fmt: skip
ONLY_HERE = {"log", "progress"}  # for what goes to stderr
OTHER_TYPE = {"gpus", "seeds", "presets", "metrics", "size", "schedule", "prompts"}  # lists and numbers, where the shell has text
OTHER_DEFAULT = {
    "gpus": (None, 1),  # ranks that a scheduler started are not joined unasked
    "seeds": {"0": (0,), "0,1": (0, 1)},
}


def kind(annotation: Any) -> set[Any]:
    """What a value may be, the same for the shell and for Python."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {part for choice in get_args(annotation) for part in kind(choice)}
    if get_origin(annotation) in (list, Sequence):
        return {("list", *kind(get_args(annotation)[0]))}
    if get_origin(annotation) is Literal:
        return {*get_args(annotation)}
    return {"file" if isinstance(annotation, type) and issubclass(annotation, Path) else annotation}


@pytest.mark.parametrize("name", OF_THE_SHELL)
def test_a_function_has_the_options_of_its_command(name: str) -> None:
    function = getattr(longgen, name)
    parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    callback = inspect.signature(inspect.unwrap(command.callback, stop=lambda f: hasattr(f, "__signature__"))).parameters
    options = {option.name for option in command.params} - OF_THE_SHELL[name]
    assert {*parameters} - ONLY_HERE == options
    for option in options:
        default, own = callback[option].default, parameters[option].default
        different = OTHER_DEFAULT.get(option)
        if option == "gpus" and name == "plan":
            different = None
        if isinstance(different, dict):
            assert own == different[default]
        elif different is not None:
            assert (default, own) == different
        else:
            assert own == default, option
        if option in OTHER_TYPE:
            continue
        shell, here = kind(get_args(callback[option].annotation)[0]), kind(hints[option])
        files = kind(words.FileName)
        if here & files == files:  # a name of a file
            here = here - files | {"file"}
            shell = {"file" if choice is str else choice for choice in shell}
        if different is not None:
            here -= {types.NoneType}
        here = {("list", "file") if isinstance(choice, tuple) and {*choice[1:]} == files else choice for choice in here}
        assert here == shell, option


def test_a_loaded_model_takes_what_generate_takes() -> None:
    whole = inspect.signature(longgen.generate).parameters
    loading, video = inspect.signature(longgen.load).parameters, inspect.signature(longgen.Model.generate).parameters
    both = {**loading, **{name: one for name, one in video.items() if name != "self"}}
    assert {*whole} - {*both} == {"gpus", "guidance_parallel"}
    assert {*both} <= {*whole}
    for part in (loading, video):
        for name in part.keys() - {"self", "progress"}:
            assert (part[name].default, part[name].annotation) == (whole[name].default, whole[name].annotation), name


def test_every_parameter_is_documented() -> None:
    shared = inspect.getdoc(longgen.generate) or ""
    for function in (longgen.generate, longgen.plan, longgen.compare, longgen.probe):
        text = f"{inspect.getdoc(function)} {shared}"
        unsaid = [name for name in inspect.signature(function).parameters if not re.search(rf"\b{name}\b", text)]
        assert unsaid == [], function


# ---- names ---------------------------------------------------------------------------------------------------------------

IMPORTED = """
import sys
before = {*sys.modules}
import longgen
print({"numpy", "pydantic", "torch", "diffusers", "typer", "jinja2"} & ({*sys.modules} - before))
import longgen.plan, longgen.compare.record, longgen.probe.classify
from longgen.plan import Plan
print({"plan", "compare", "probe"} & {*vars(longgen)}, type(longgen.plan).__name__, Plan is longgen.Plan)
"""


def test_importing_is_cheap_and_modules_of_the_same_name_do_not_hide_functions() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset() function True\n"


def test_type_checkers_see_what_is_imported_when_it_is_used() -> None:
    package = Path(longgen.__file__)
    assert (package.parent / "py.typed").is_file()
    (block,) = (node for node in ast.parse(package.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    typed = {alias.asname: f"{node.module}:{alias.name}" for node in block.body if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    assert typed == longgen._NAMES


# ---- words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "python"),
    [
        ("--frames cannot be combined with --duration", "frames cannot be combined with duration"),
        ("--seed N or -o FILE.mp4", "seed=N or -o FILE.mp4"),
        ("--image FILE or --continue VIDEO with it", "image=FILE or continue_from=VIDEO with it"),
        ('for example --prompt "a red circle"', 'for example prompt="a red circle"'),
        ("--set a.b=3: no key b", "overrides a.b=3: no key b"),
        ("longgen probe --quick first, or leave --fps out", "longgen probe --quick first, or leave fps out"),
        ("torchrun --nproc-per-node 2 SCRIPT.py, or --gpus N", "torchrun --nproc-per-node 2 SCRIPT.py, or gpus=N"),
        ("a -- b --- c", "a -- b --- c"),
    ],
)  # fmt: skip
def test_messages_speak_of_parameters(shell: str, python: str) -> None:
    assert words.in_python(shell) == python


# ---- videos --------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a run in its midst."""


@pytest.fixture(scope="module")
def model() -> Iterator[longgen.Model]:
    with longgen.load("tiny", device="cpu") as loaded:
        yield loaded


def test_a_loaded_model_makes_the_videos_of_separate_calls(model: longgen.Model, tmp_path: Path) -> None:
    """Presets and lengths one after the other, an error and a stop in between: every file equals that of a model of its own."""

    def stop(now: Progress) -> None:
        if now.phase == "sample" and now.done == 1:
            raise Stop

    long = SHORT | {"preset": "freespec", "frames": 85}
    with pytest.raises(Stop):
        model.generate(PROMPT, tmp_path / "stopped.mp4", **long, progress=stop)
    alone: dict[int, longgen.Result] = {}
    for number, settings in enumerate((long, SHORT | {"frames": 9}, long)):
        with pytest.raises(UsageError):
            model.generate(PROMPT, tmp_path / "x.mp4", preset="nothing")
        made = model.generate(PROMPT, tmp_path / f"kept-{number}.mp4", **settings)
        length = settings["frames"]
        if length not in alone:
            alone[length] = longgen.generate(PROMPT, tmp_path / f"alone-{length}.mp4", backbone="tiny", device="cpu", **settings)
        assert made.path.read_bytes() == alone[length].path.read_bytes()
        assert (made.frames, made.seed, made.settings) == (length, 1, alone[length].settings)
    again = model.generate(output=tmp_path / "stopped.mp4", resume=True)
    assert again.path.read_bytes() == made.path.read_bytes()
    assert longgen.generate(output=again.path, resume=True, device="cpu").skipped
    with pytest.raises(UsageError, match="frames cannot be combined with it"):
        model.generate(output=again.path, resume=True, frames=33)


def test_a_closed_model_makes_nothing(tmp_path: Path) -> None:
    with longgen.load("tiny", device="cpu") as model:
        assert repr(model) == "<longgen.Model tiny, fp32 on cpu>"
    model.close()
    with pytest.raises(UsageError, match="this model is closed"):
        model.generate(PROMPT, tmp_path / "a.mp4")
    assert not any(tmp_path.iterdir())


def test_notes_are_warnings_and_progress_comes(
    model: longgen.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `log` they reach the logger `longgen`; with it, that function alone, and in the words of Python."""
    seen: list[Progress] = []
    with caplog.at_level(logging.INFO, "longgen"):
        made = model.generate(f"nonsense {EVIL}", tmp_path, **SHORT | {"steps": 1, "frames": 6}, progress=seen.append)
    levels = {record.message.partition(":")[0]: record.levelname for record in caplog.records}
    assert levels["note"] == "WARNING"
    assert levels["seed 1"] == "INFO"
    assert {now.phase for now in seen} == {"sample", "decode", "write"}
    assert made.path == tmp_path / "nonsense-b-script-alert-1-script-1.mp4"
    html = made._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "data:video/mp4;base64," in html
    caplog.clear()
    lines: list[str] = []
    model.generate(PROMPT, tmp_path / "b.mp4", **SHORT | {"steps": 1, "frames": 6}, log=lines.append)
    assert any(line.startswith("note: rounded 6 frames up to 9") for line in lines)
    assert caplog.records == []
    capsys.readouterr()
    model.generate(PROMPT, tmp_path / "c.mp4", **SHORT | {"steps": 1, "frames": 9}, log=lines.append, progress=True)
    assert "\nsample 1/1, " in capsys.readouterr().err  # also where it is no terminal, as in a notebook


# ---- results -------------------------------------------------------------------------------------------------------------


def test_a_plan_shows_its_figures_and_saves_its_tables(tmp_path: Path) -> None:
    made = longgen.plan(preset="freespec", frames=321, backbone="wan2.1-1.3b", card="h100", gpus=(2, 5))
    assert made.plan.frames_px == 321
    assert str(made).startswith("freespec on wan2.1-1.3b")
    assert "on 5 GPUs: refused" in str(made)
    assert made.as_dict()["estimate"]["seconds"] == made.seconds
    html = made._repr_html_()
    for shown in ("321 frames", "832x480", f"{made.cost_ratio:.2f} × direct sampling", '<td style="text-align:left">freespec</td>'):
        assert shown in html
    made.save_tables(tmp_path / "tables.npz")
    assert (tmp_path / "tables.npz").stat().st_size > 0
    with pytest.raises(UsageError, match="probe run cannot be combined with plan"):
        longgen.plan(preset="freeloc", probe="run")
    taken = longgen.plan(backbone="hunyuanvideo", duration="20s", gpus=4)  # of those recommended, the first that can be split
    assert (taken.plan.preset.name, taken.refused) == ("gen-l-video", {})


def test_existing_videos_are_compared_without_what_makes_new_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seeds, backbone cannot be combined with existing videos"):
        longgen.compare([tmp_path], seeds=[2], backbone="tiny")
    with pytest.raises(UsageError, match="nothing to compare"):
        longgen.compare(prompt=PROMPT)


def test_what_users_wrote_is_never_markup(tmp_path: Path) -> None:
    html = notebook.shown(EVIL + "\x1b[2J", EVIL, facts=[(EVIL, EVIL)], heads=[EVIL], rows=[[EVIL]], notes=[EVIL], text=EVIL,
                          files=[tmp_path / f"{EVIL.replace('/', '')}.mp4"], links=[Path(f"{EVIL}/x.html")])  # fmt: skip
    assert "<script" not in html
    assert "\x1b" not in html
    assert "is not there any more" in html


def test_a_large_video_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a b.mp4").write_bytes(b"x" * 100)
    monkeypatch.setattr(notebook, "EMBED_BYTES", 99)
    assert '<a href="a%20b.mp4">a b.mp4</a>' in notebook.video(Path("a b.mp4"), PROMPT, "")
