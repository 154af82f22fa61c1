"""The mechanical part of the house rules: import directions, a light start, complete rows, names and versions that agree."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import longgen
from longgen import catalog, preset

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "longgen"
FILES = sorted(PACKAGE.rglob("*.py"))
FACE = PACKAGE / "__init__.py"  # which names what users import, and imports it when it is used
SCRIPTS = {
    *(f"longgen.backbones.tiny.{name}" for name in ("train", "check", "effect")),
    "longgen.docs.generate",
}  # run with python -m; they print and exit

# Who may import whom, types and imports inside functions included: a row names rows above it only. A row is a module of `longgen`
# or a whole package; `backbones.tiny` is the laboratory in which the built-in model is trained and measured.
ORDER = [
    "errors", "signals", "closed", "arguments", "textfile", "units", "frames", "plugins", "terminal", "measured", "html",
    "notebook", "device", "device_costs", "device_tables", "slurm", "ranks", "launch", "cache_folder", "cards", "ffmpeg",
    "disk", "export", "naming", "checkpoint", "gif_comment", "video_info", "video", "progress", "bars", "pictures", "past",
    "conditions", "memory", "frameplan", "technique", "noise", "refine", "positions", "context", "fusion", "sampling",
    "catalog", "backbones", "schedule", "preset", "prompts", "program", "stack", "plan", "distilled", "repeats",
    "soundtrack", "cost", "split", "shards", "out_of_memory", "layers", "conditioning", "planner", "recommended", "resolve",
    "attention", "pipelines", "run_settings", "run_record", "rundir", "shown", "sight", "describe", "backbone_facts",
    "machine", "timings", "loops", "preview", "interrupted", "start", "run", "metrics", "probe", "bench", "compare",
    "cluster", "api", "backbones.tiny", "cli", "docs",
]  # fmt: skip
ONLY_UNDER = {  # library -> the rows whose modules may import it
    "diffusers": ("longgen.backbones", "longgen.pipelines", "longgen.loops"),
    "transformers": ("longgen.pipelines", "longgen.metrics.vbench", "longgen.backbones.tiny"),
    "typer": ("longgen.cli", "longgen.docs"),
    "rich": ("longgen.bars", "longgen.cli"),
}
LIGHT = """
import json, sys
import longgen.cli
start = sorted(sys.modules)
from typer.testing import CliRunner
for args in {commands}:
    assert CliRunner().invoke(longgen.cli.app, args).exit_code == 0, args
print(json.dumps([start, sorted(sys.modules)]))
"""
LIGHT_COMMANDS = [
    ["plan", "--preset", "freespec", "--backbone", "tiny", "--frames", "321"],
    ["presets", "list"],
    ["presets", "show", "freespec"],
    ["techniques", "list"],
    ["techniques", "show", "glc-noise"],
    ["backbones", "list"],
    ["--help"],
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = frozenset(map(module_name, FILES))


@functools.cache
def imported(path: Path) -> set[str]:
    """The modules that `path` imports: at its top, inside a function, or for types alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & MODULES
            names |= modules | ({node.module} if len(modules) < len(inner) else set())
    return names


def row(module: str) -> str:
    """The row of ORDER that `module` falls under; `longgen` itself, which imports nothing, stands above all."""
    inside = module.removeprefix("longgen").removeprefix(".")
    fits = [name for name in ("", *ORDER) if f"{inside}.".startswith(f"{name}.") or name == inside]
    assert fits, f"{module} has no row in ORDER: decide what it may import"
    return max(fits, key=len)


def calls_and_raises(path: Path) -> Iterator[str]:
    """The dotted names that `path` calls or raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            yield ast.unparse(node.exc)


def test_every_row_is_a_module_or_a_package() -> None:
    assert {row(module_name(path)) for path in FILES} == {"", *ORDER}
    packages = {module_name(path).removeprefix("longgen.") for path in FILES if path.name == "__init__.py"}
    assert all("." not in name or name in packages for name in ORDER), "a row for a single file inside a package"


@pytest.mark.parametrize("path", [path for path in FILES if path != FACE], ids=module_name)
def test_a_module_imports_its_own_row_and_those_above(path: Path) -> None:
    own = row(module_name(path))
    rows = ["", *ORDER]
    used = {row(name) for name in imported(path) if name.split(".")[0] == "longgen"}
    assert [name for name in used if rows.index(name) > rows.index(own)] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module_name(path): imported(path) & MODULES - {module_name(path)} for path in FILES if path != FACE} | {
        "longgen": set()
    }
    while leaves := {name for name, used in graph.items() if not used & graph.keys()}:
        graph = {name: used for name, used in graph.items() if name not in leaves}
    assert {name: sorted(used & graph.keys()) for name, used in graph.items()} == {}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    module, libraries = module_name(path), {name.split(".")[0] for name in imported(path)}
    strays = [library for library, places in ONLY_UNDER.items()
              if library in libraries and not any(f"{module}.".startswith(f"{place}.") for place in places)]  # fmt: skip
    assert strays == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_command_line_and_scripts_print_or_exit(path: Path) -> None:
    found = [
        name for name in calls_and_raises(path) if re.match(r"(print|exit|quit|sys\.exit|os\._exit|typer\.Exit|SystemExit)\b", name)
    ]
    assert found == [] or row(module_name(path)) == "cli" or module_name(path) in SCRIPTS


def test_starting_and_planning_load_no_model_library() -> None:
    code = LIGHT.format(commands=LIGHT_COMMANDS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    start, after = json.loads(done.stdout)
    models = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "cv2", "imageio_ffmpeg",
              "scipy", "matplotlib", "jinja2"}  # fmt: skip
    assert models.isdisjoint(after)
    assert (models | {"numpy", "pydantic", "einops"}).isdisjoint(start)  # rich is left to typer, whose versions differ


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_are_short_and_named_for_what_they_hold(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600
    assert path.stem.strip("_") not in {"utils", "util", "core", "common", "helpers", "misc"}


ROWS = [(slot, name) for slot, table in catalog.SLOTS.items() for name in table]


def test_no_technique_stands_in_two_tables() -> None:
    assert sorted(name for _, name in ROWS) == sorted(catalog.TECHNIQUES)


@pytest.mark.parametrize(("slot", "name"), ROWS)
def test_a_technique_says_its_slot_and_its_paper(slot: str, name: str) -> None:
    technique = catalog.technique(name)
    header = sys.modules[technique.__module__].__doc__
    assert technique.slot == slot
    assert technique.__module__.split(".")[1] == slot
    assert technique.paper
    assert header
    assert re.findall(r"\d{4}\.\d{5}", header)[:1] == re.findall(r"\d{4}\.\d{5}", technique.paper)[:1]
    assert technique.paper.split(",")[0].removeprefix("baseline of ").split()[0] in header


@pytest.mark.parametrize(("slot", "name"), ROWS)
def test_a_technique_has_a_test_file_a_preset_and_a_mention(slot: str, name: str) -> None:
    technique = catalog.technique(name)
    assert (ROOT / "tests" / slot / f"test_{name}.py").is_file()
    assert any(isinstance(used, technique) for one in preset.names() for used in preset.load(one).techniques)
    assert f"\n| `{name}` | {slot} |" in (PACKAGE / "docs" / "techniques.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", preset.names())
def test_a_preset_is_named_as_its_file_and_stands_in_the_documentation(name: str) -> None:
    shipped = preset.load(name)
    assert shipped.name == name
    assert shipped.description
    assert shipped.source
    assert preset.parse_file(ROOT / "presets" / f"{name}.toml")["schema"] == preset.SCHEMA
    assert f"\n| `{name}` | " in (PACKAGE / "docs" / "presets.md").read_text(encoding="utf-8")


def test_versions_agree() -> None:
    heading = re.search(r"^## \[?v?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert heading[1] == longgen.__version__ == preset.parse_file(ROOT / "pyproject.toml")["project"]["version"]


def test_public_names() -> None:
    assert longgen.__all__ == [
        "__version__",
        "CompareResult",
        "LonggenError",
        "Model",
        "Plan",
        "PlanResult",
        "Preset",
        "ProbeResult",
        "Progress",
        "Result",
        "Sample",
        "build_plan",
        "compare",
        "find_backbone",
        "generate",
        "load",
        "load_preset",
        "plan",
        "probe",
    ]
    assert all(getattr(longgen, name) is not None for name in longgen.__all__)
    assert dir(longgen) == sorted(longgen.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        longgen.nothing  # noqa: B018


def test_console_script_exists() -> None:
    module, _, function = preset.parse_file(ROOT / "pyproject.toml")["project"]["scripts"]["longgen"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
