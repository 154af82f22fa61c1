"""inspect --toml: a command and a preset that make the file again, whatever its prompt holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from longgen import describe
from longgen.cli import app
from longgen.preset import load
from longgen.video import read_settings

PLAIN = ["generate", "--backbone", "tiny", "--device", "cpu", "--frames", "9", "--steps", "2", "--seed", "5"]
HOSTILE = 'a $HOME `touch pwned` "red" it\'s [red]x[/red] \\n\n[sample]\nsteps = 9\n\x1b[31m; touch pwned 猫'
SHOTS = 'blend = "0.125s"\ncommon = "$(touch pwned)"\n[[shot]]\nprompt = "a\\nb"\n[[shot]]\nat = "0.3s"\nprompt = "c"\n'
# stands in for longgen on the PATH: inspect is the real one, generate writes down what it was given
STAND_IN = """#!{python}
import pathlib, runpy, sys
if sys.argv[1] == "inspect":
    runpy.run_module("longgen.cli", run_name="__main__")
pathlib.Path("given").write_bytes(b"\\0".join(arg.encode("utf-8", "surrogateescape") for arg in sys.argv[1:]))
pathlib.Path("stdin").write_bytes(sys.stdin.buffer.read() if "-" in sys.argv else b"")
"""


def longgen(*args: str, stdin: bytes = b"") -> str:
    done = CliRunner().invoke(app, [*args], input=stdin)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["--prompt", HOSTILE, "--negative-prompt", "-dash `id`\n", "--preset", "freenoise", "--size", "80x64", "--fps", "7",
         "--guidance-scale", "2.5", "--quantize", "fp8", "--attention", "native", "--vae-tiling"],
        ["--schedule", "shots.toml", "--preset", "gen-l-video", "--frames", "97", "--clip-batch", "2"],
        ["--prompt=-x", "--preset", "freeloc", "--layers", "all"],
        ["--prompt", "a", "--image", "it's a $(touch pwned).png", "--fit", "pad"],
        ["--schedule", "pictured.toml", "--preset", "gen-l-video", "--frames", "97"],
    ],
)  # fmt: skip
def test_the_command_makes_the_file_again(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LONGGEN_")]:
        monkeypatch.delenv(name)
    (tmp_path / "it's here").mkdir()
    monkeypatch.chdir(tmp_path / "it's here")
    Path("shots.toml").write_text(SHOTS, encoding="utf-8")
    Path("pictured.toml").write_text('[[shot]]\nprompt = "a"\nimage = "wide.png"\n[[shot]]\nat = "1s"\nprompt = "b"\n')
    for name in ("it's a $(touch pwned).png", "wide.png"):
        Image.new("RGB", (96, 64), "red").save(name)
    given = [word for word in PLAIN if "--frames" not in args or word not in ("--frames", "9")]
    longgen(*given, *args, "-q", "-o", "first.mp4")
    toml = longgen("inspect", "first.mp4", "--toml")
    Path("THIS.toml").write_text(toml, encoding="utf-8")
    Path("longgen").write_text(STAND_IN.format(python=sys.executable))
    Path("longgen").chmod(0o755)
    environment = os.environ | {"PATH": f"{Path.cwd()}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", toml.splitlines()[0].removeprefix("# ")], check=True, env=environment)
    again = [word.decode() for word in Path("given").read_bytes().split(b"\0")]
    monkeypatch.setenv("LONGGEN_STEPS", "1")  # no variable stands before what the file was made with
    longgen(*again, "--device", "cpu", "-q", "-o", "second.mp4", stdin=Path("stdin").read_bytes())
    assert read_settings(Path("second.mp4")) == read_settings(Path("first.mp4"))
    assert Path("second.mp4").read_bytes() == Path("first.mp4").read_bytes()
    assert not Path("pwned").exists()
    assert "\x1b" not in toml
    assert load("THIS.toml").sample.steps == 2


def kept(**settings: Any) -> dict[str, Any]:
    return {"prompt": "x", "backbone": "tiny", "seed": 1, "sample": {"frames": 9, "flow_shift": None}, "dtype": "bf16"} | settings


def test_every_setting_of_loading_is_in_the_command() -> None:
    line = describe.command_again(
        kept(lora=["a b.safetensors:0.5", "-c"], quantize="int8", attention="flash", cache="mag:0.1", compile=True, clip_batch=3),
        Path("a.mp4"),
    )
    assert line == ("longgen generate --prompt x --preset THIS.toml --seed 1 --backbone tiny --frames 9 --dtype bf16 "
                    "--lora 'a b.safetensors:0.5' --lora=-c --quantize int8 --attention flash --cache mag:0.1 --compile "
                    "--clip-batch 3")  # fmt: skip


def test_a_prompt_ends_neither_its_line_nor_its_quotes() -> None:
    for text in (HOSTILE, "a\n", "-n", "\\", "\\n\n", "%s\n", "\x85\u2028é\n'", "\r\nx\\0101", "!x"):
        line = describe.command_again(kept(prompt=text), Path("a.mp4"))
        assert not set(line) & {"\n", "\x1b", "\x85", "\u2028"}
        words = subprocess.run(["bash", "-c", f"longgen() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, check=True)
        wanted = f"--prompt={text}" if text.startswith("-") else text
        assert wanted in words.stdout.decode().split("\0")
