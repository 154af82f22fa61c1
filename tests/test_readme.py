"""README shows what the commands print, to the letter."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longgen.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```\n\$ longgen ([^\n]*)\n(.*?)```", README, flags=re.DOTALL)


def test_there_is_something_to_check() -> None:
    assert [command.split()[0] for command, _ in SHOWN] == ["plan", "backbones"]


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_output_in_readme_is_the_output(command: str, shown: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0
    assert [line.rstrip() for line in done.stdout.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def test_ci_runs_the_test_command_of_readme() -> None:
    commands = re.findall(r"```bash\n(pip install [^\n]*)\n```", README)
    assert len(commands) == 2
    assert "longgen generate" in commands[0]
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
