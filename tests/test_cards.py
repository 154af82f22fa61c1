"""The time that `longgen plan` quotes: which card it is for, and that it is always called an estimate."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from longgen import cards
from longgen.cli import app
from longgen.units import about_time

WAN = ["plan", "--backbone", "wan2.1-1.3b", "--preset", "sliding-window", "--frames", "321"]


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What nvidia-smi says; empty: it is not there. The driver's files are those in `gpus` of the test's folder: none."""
    names: list[str] = []
    monkeypatch.setattr(cards, "DRIVER_INFORMATION", str(tmp_path / "gpus/*/information"))
    monkeypatch.setattr(cards.shutil, "which", lambda tool: "/usr/bin/nvidia-smi" if names else None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="\n".join(names)))
    return names


def planned(*args: str) -> tuple[str, dict[str, Any] | None]:
    """The text, and the estimate in the JSON."""
    text, data = (CliRunner().invoke(app, [*args, *more]) for more in ((), ("--json",)))
    assert text.exit_code == data.exit_code == 0, text.output
    return text.stdout, json.loads(data.stdout)["estimate"]


def test_without_a_gpu_the_card_is_an_h100() -> None:
    text, estimate = planned(*WAN)
    assert "time estimate: about 5.8 min on an H100, estimated from its rates and not measured" in text
    assert estimate is not None
    assert (estimate["card"], estimate["measured"]) == ("h100", False)
    assert estimate["seconds"] == pytest.approx(5.8 * 60, rel=0.01)


def test_the_card_of_the_machine_is_taken_and_another_can_be_named(driver: list[str]) -> None:
    driver.append("NVIDIA A100-SXM4-80GB")
    assert "on an A100, estimated" in planned(*WAN)[0]
    assert "on an RTX 4090, estimated" in planned(*WAN, "--card", "4090")[0]


def test_the_card_is_found_without_nvidia_smi(tmp_path: Path) -> None:
    for bus, model in (("0000:17:00.0", "NVIDIA A100-SXM4-80GB"), ("0000:65:00.0", "NVIDIA H200")):
        (folder := tmp_path / "gpus" / bus).mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 24\n", encoding="utf-8")
    assert "on an A100, estimated" in planned(*WAN)[0]
    (tmp_path / "gpus/0000:17:00.0/information").write_text("IRQ: 24\n", encoding="utf-8")
    assert cards.card_here() is None


def test_a_card_that_is_not_known_leaves_the_default(driver: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    driver.append("Tesla T4")
    assert "on an H100, estimated" in planned(*WAN)[0]

    def silent(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(subprocess, "run", silent)
    assert cards.card_here() is None


def test_no_time_is_quoted_for_the_built_in_models() -> None:
    text, estimate = planned("plan", "--backbone", "tiny")
    assert "time estimate" not in text
    assert estimate is None


def test_a_card_is_refused_where_no_time_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in model has no estimate; a variable, which may be set for other models, is no request."""
    tiny = ("plan", "--backbone", "tiny", "--preset", "direct")
    done = CliRunner().invoke(app, [*tiny, "--card", "h100"])
    assert done.exit_code == 2
    assert "--card has no effect on tiny" in done.stderr
    monkeypatch.setenv("LONGGEN_CARD", "h100")
    assert planned(*tiny)[1] is None


def test_the_estimate_says_that_it_knows_no_offload() -> None:
    assert "sampling alone, without offload" in planned(*WAN, "--offload", "group")[0]
    assert "without offload" not in planned(*WAN)[0]


def test_an_unknown_card_is_a_usage_error() -> None:
    done = CliRunner().invoke(app, [*WAN, "--card", "h20"])
    assert done.exit_code == 2
    assert "did you mean h200" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.26, "3.3 s"), (59.9, "60 s"), (100, "1.7 min"), (352, "5.9 min"), (2982, "50 min"), (24643, "6.8 h")]
)
def test_times_have_two_digits(seconds: float, text: str) -> None:
    assert about_time(seconds) == text
