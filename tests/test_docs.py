"""longgen docs: its list, its pages, and what it says of a page that is not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longgen.cli import app
from longgen.cli.docs import SCHEMAS, topics
from longgen.docs import generate


def docs(*words: str) -> str:
    result = CliRunner().invoke(app, ["docs", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_without_a_topic_every_page_has_a_line() -> None:
    lines = docs().splitlines()
    assert [line.split()[0] for line in lines] == list(topics())
    assert lines[0].startswith("index ")
    assert "experiments/tiny" in topics()


def test_a_page_is_plain_markdown_without_markers() -> None:
    text = docs("techniques")
    assert text.startswith("# Techniques\n\n")
    assert "| `freespec` | fusion |" in text
    assert "<!--" not in text
    assert "\x1b" not in text
    assert docs("techniques.md") == text


def test_path_is_the_file() -> None:
    assert Path(docs("experiments/tiny", "--path").strip()).read_text(encoding="utf-8").startswith("# tiny")
    assert all(Path(line.split()[-1]).is_file() for line in docs("--path").splitlines())


def test_json() -> None:
    assert [page["topic"] for page in json.loads(docs("--json"))] == list(topics())
    page = json.loads(docs("presets", "--json"))
    assert page["topic"] == "presets"
    assert page["text"].startswith("# Presets")


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_those_of_the_classes_that_write(name: str) -> None:
    assert docs(name) == generate.schema_text(SCHEMAS[name])
    assert docs(name, "--path").strip() == str(SCHEMAS[name])


def test_an_unknown_page_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["docs", "preset"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "did you mean presets" in result.stderr


def on_a_terminal(*words: str) -> str:
    """What `longgen WORDS` shows on one of 80 columns, without colours and links."""
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-m", "longgen.cli", *words], stdout=follower, env=environment)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends the stream of a pseudo-terminal with an error
        while part := os.read(leader, 4096):
            shown += part
    os.close(leader)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\]8;[^\x1b]*\x1b\\", "", shown.decode()).replace("\r", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_a_page_is_rendered_and_its_tables_are_whole() -> None:
    shown = on_a_terminal("docs", "backbones")
    assert "# Backbones" not in shown
    assert re.search(r"\n wan2.2-t2v-a14b +Wan-AI/", shown)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


PLAN = ("plan", "--backbone", "tiny", "--preset", "freelong", "--frames", "97")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("words", [("docs",), ("techniques", "show", "rebase"), ("backbones", "show", "tiny"), PLAN], ids=" ".join)
def test_on_a_terminal_no_line_is_longer_than_it(words: tuple[str, ...]) -> None:
    shown, piped = on_a_terminal(*words), CliRunner().invoke(app, words).stdout
    assert max(map(len, shown.splitlines())) <= 80 < max(map(len, piped.splitlines()))
    assert shown.split() == piped.split()
