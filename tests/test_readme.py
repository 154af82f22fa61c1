"""README shows what the commands print, to the letter."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longgen import catalog, cost, planner, preset
from longgen.backbones.spec import SELF_FORCING, WAN_1_3B
from longgen.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```\n\$ longgen ([^\n]*)\n(.*?)```", README, flags=re.DOTALL)


def test_there_is_something_to_check() -> None:
    assert [command.split()[0] for command, _ in SHOWN] == ["plan", "presets", "backbones"]


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_output_in_readme_is_the_output(command: str, shown: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0
    assert [line.rstrip() for line in done.stdout.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def attention_cost(*names: str) -> float:
    stack = [{"name": name} for name in names]
    made = preset.from_tables({"name": "one", "sample": {"frames": 321}, "technique": stack}, "one")
    return cost.attention_ratio(planner.build(made, SELF_FORCING if "rollout" in names else WAN_1_3B))


@pytest.mark.parametrize("name", catalog.TECHNIQUES)
def test_costs_in_the_table_of_techniques_are_what_plan_says(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", README.split("## Presets")[0], flags=re.MULTILINE)
    told = row.split(" | ")[4].removesuffix(" more")
    ratio = attention_cost("window", name) - attention_cost("window") if name == "sink" else attention_cost(name)
    assert float(told) == pytest.approx(ratio, abs=0.006)


def test_ci_runs_the_test_command_of_readme() -> None:
    commands = re.findall(r"```bash\n(pip install [^\n]*)\n```", README)
    assert len(commands) == 2
    assert "longgen generate" in commands[0]
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
