"""Techniques from outside: a package that registers one, installed and run; a class that a preset names; what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longgen import catalog, plugins, preset
from longgen.cli import app
from longgen.errors import UsageError
from tests import warm

SAMPLE = Path(__file__).parent / "sample"
CLASS = "longgen_decay:Decay"
LONG = ("--frames", "161", "--backbone", "tiny")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the sample package is installed, as pip lays it out (which would need the network for hatchling)."""
    site = tmp_path_factory.mktemp("site")
    project = preset.parse_file(SAMPLE / "pyproject.toml")["project"]
    shutil.copy(SAMPLE / "longgen_decay.py", site)
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, rows in groups for line in (f"[{group}]", *(f"{name} = {place}" for name, place in rows.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample's module alone, installed nowhere; importing it leaves a file."""
    folder = tmp_path_factory.mktemp("module")
    source = (SAMPLE / "longgen_decay.py").read_text()
    (folder / "longgen_decay.py").write_text(f"{source}\nopen({str(folder / 'imported')!r}, 'w').close()\n")
    (folder / "code.toml").write_text((SAMPLE / "decay.toml").read_text().replace('name = "decay"\n', f'name = "{CLASS}"\n'))
    return folder


def longgen(*args: str, path: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`longgen ARGS` in a process of its own that can import what is in `path`."""
    code = f"import sys, warnings; warnings.simplefilter('error'); sys.path.append({str(path)!r}); {warm.CLI}"
    return warm.run(cwd or path, args, code)


def test_an_installed_technique_is_listed_and_shown(site: Path) -> None:
    rows = {row["name"]: row for row in json.loads(longgen("techniques", "list", "--json", path=site).stdout)}
    assert [*catalog.TECHNIQUES, "decay"] == [*rows]
    assert rows["decay"]["origin"] == "package longgen-decay 1.2.0"
    done = longgen("techniques", "show", "decay", path=site)
    assert done.returncode == 0, done.stderr
    header = (SAMPLE / "longgen_decay.py").read_text().split('"""')[1].strip()
    assert header in done.stdout
    assert "not on         tiny-causal" in done.stdout


def test_an_installed_technique_is_planned_and_runs(site: Path, tmp_path: Path) -> None:
    done = longgen("plan", "--preset", str(SAMPLE / "decay.toml"), "--set", "decay.rate=2", *LONG, path=site)
    assert done.returncode == 0, done.stderr
    assert "technique decay (" in done.stdout
    assert "rate = 2.0" in done.stdout
    assert "on their logits" in done.stdout  # the pair column that it adds
    run = ("generate", "--preset", str(SAMPLE / "decay.toml"), "--prompt", "a large red circle bouncing on a navy background",
           "--frames", "93", "--steps", "2", "--seed", "1", "--backbone", "tiny", "--device", "cpu", "-o", "ball.mp4")  # fmt: skip
    done = longgen(*run, path=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ball.run" / "run.json").read_text())["settings"]["libraries"]["longgen-decay"] == "1.2.0"
    written = longgen("inspect", "ball.mp4", "--toml", path=site, cwd=tmp_path)
    assert 'name = "decay"' in written.stdout
    elsewhere = longgen("inspect", "ball.mp4", "--toml", path=tmp_path, cwd=tmp_path)  # where the package is not installed
    assert elsewhere.returncode == 2
    assert "no technique is called 'decay'" in elsewhere.stderr


def test_a_builtin_preset_imports_no_plugin(site: Path) -> None:
    code = """
import sys
from typer.testing import CliRunner
from longgen.cli import app
for args in (["--help"], ["plan", "--preset", "freespec", "--backbone", "tiny"], ["presets", "list"]):
    assert CliRunner().invoke(app, args).exit_code == 0
assert "longgen_decay" not in sys.modules
"""
    done = warm.run(site, [], f"import sys; sys.path.append({str(site)!r}){code}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "--preset", "code.toml", *LONG),
        ("presets", "show", "code.toml"),
        ("generate", "--preset", "code.toml", "--prompt", "x", *LONG, "--dry-run", "-o", "ball.mp4"),
        ("compare", "--presets", "direct,code.toml", "--prompt", "x", *LONG, "-o", "page"),
        ("bench", "--presets", "direct,code.toml", *LONG),
        ("techniques", "show", CLASS),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_preset_runs_no_code_unless_it_may(command: tuple[str, ...], module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(module)
    monkeypatch.chdir(module)
    done = CliRunner().invoke(app, [*command])
    assert done.exit_code == (5 if command[0] == "bench" else 2)  # which measures the other presets
    assert f"technique '{CLASS}' is Python code, which runs with --allow-code only" in done.stderr
    assert not (module / "imported").exists()
    assert "longgen_decay" not in sys.modules


def test_with_allow_code_it_runs_and_goes_on(module: Path, tmp_path: Path) -> None:
    command = ("generate", "--preset", str(module / "code.toml"), "--set", f"{CLASS}.rate=2", "--seed", "1", "--backbone", "tiny",
               "--prompt", "a large red circle bouncing on a navy background", "--frames", "93", "--steps", "2",
               "--device", "cpu", "-o", "ball.mp4")  # fmt: skip
    done = longgen(*command, "--allow-code", path=module, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for again in (("generate", "--resume", "-o", "ball.mp4"), ("inspect", "ball.mp4", "--toml")):
        refused = longgen(*again, path=module, cwd=tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert "hint: add --allow-code" in refused.stderr
        allowed = longgen(*again, "--allow-code", path=module, cwd=tmp_path)
        assert allowed.returncode == 0, allowed.stderr
    assert longgen("inspect", "ball.mp4", path=tmp_path, cwd=tmp_path).returncode == 0  # settings are data
    assert f'name = "{CLASS}"' in allowed.stdout


def test_the_python_face_asks_too(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(module))
    with pytest.raises(UsageError, match="is Python code"):
        preset.load(str(module / "code.toml"))
    loaded = preset.load(str(module / "code.toml"), [f"{CLASS}.rate=2"], allow_code=True)
    assert loaded.techniques[0].model_dump()["rate"] == 2
    assert preset.from_tables(loaded.as_dict(), "again", allow_code=True) == loaded


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("raise SystemError('broken')", "SystemError: broken"),
        ("", "AttributeError"),
        ("def Broken(): pass", "not a subclass of longgen.technique.Technique"),
        ("from longgen.technique import FrameTechnique as Broken", "it does not define apply, slot, paper"),
    ],
)
def test_a_broken_plugin_is_named(source: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(source)
    info = tmp_path / "broken_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[longgen.techniques]\nbroken = broken:Broken\n")
    done = longgen("techniques", "show", "broken", path=tmp_path)
    assert done.returncode == 2
    assert f"technique broken:Broken of broken-package 0.1 cannot be used: {reason}" in done.stderr
    assert "hint: update, mend or uninstall broken-package 0.1" in done.stderr
    listed = longgen("techniques", "list", path=tmp_path)
    assert listed.returncode == 0
    assert "unusable\n  broken" in listed.stdout
    assert longgen("plan", "--preset", "freespec", *LONG, path=tmp_path).returncode == 0


@pytest.mark.parametrize(("names", "owner"), [(("window",), "longgen"), (("other", "other"), "an unnamed package")])
def test_a_name_is_used_once(names: tuple[str, ...], owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, CLASS, catalog.GROUP) for name in names]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(UsageError, match=f"registers a technique '{names[0]}', a name that {owner} already uses"):
        plugins.registered(catalog.GROUP, "technique", catalog.TECHNIQUES)
