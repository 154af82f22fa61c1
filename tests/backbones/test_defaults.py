"""What is used where nothing is named: a GPU is found without nvidia-smi, and torch is asked only where there may be one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from longgen.backbones import defaults
from longgen.cli import app


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without a driver, whatever this one has."""
    monkeypatch.setattr(defaults, "DRIVER_FILES", (str(tmp_path / "nvidia[0-9]*"), str(tmp_path / "kfd")))
    monkeypatch.setenv("PATH", str(tmp_path))
    defaults.gpu_driver.cache_clear()
    yield
    defaults.gpu_driver.cache_clear()


@pytest.mark.parametrize("file", ["nvidia0", "nvidia12", "kfd"])
def test_a_driver_is_found_by_its_files(tmp_path: Path, file: str) -> None:
    assert defaults.gpu_driver() is None
    defaults.gpu_driver.cache_clear()
    (tmp_path / "nvidiactl").touch()
    (tmp_path / file).touch()
    assert defaults.gpu_driver() == str(tmp_path / file)


def test_or_by_its_program(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.touch(0o755)
    assert defaults.gpu_driver() == str(program)


def test_generate_and_doctor_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """No nvidia-smi on the PATH; torch is imported anyway, so it is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (defaults.default_backbone(), defaults.default_device()) == ("wan2.1-1.3b", "cuda")
    assert "none usable" not in CliRunner().invoke(app, ["doctor", "--json"]).output
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (defaults.default_backbone(), defaults.default_device()) == ("tiny", "cpu")
    assert "none usable by torch" in CliRunner().invoke(app, ["doctor", "--json"]).output


def test_doctor_names_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "nvidia0").touch()
    assert f"although a driver is here ({tmp_path / 'nvidia0'})" in CliRunner().invoke(app, ["doctor", "--json"]).output


CODE = """
import sys
from longgen.backbones import defaults
defaults.DRIVER_FILES = ({file!r},)
defaults.has_gpu()
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(("exists", "hidden"), [(False, None), (True, None), (True, ""), (True, "-1")])
def test_torch_is_imported_only_where_a_card_may_be_used(tmp_path: Path, exists: bool, hidden: str | None) -> None:
    file = tmp_path / "nvidia0"
    if exists:
        file.touch()
    root = str(Path(__file__).parent.parent.parent)
    env = {"PATH": str(tmp_path), "PYTHONPATH": root} | ({} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})
    done = subprocess.run([sys.executable, "-c", CODE.format(file=str(file))], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == str(exists and hidden is None), done.stderr
