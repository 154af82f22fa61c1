"""Writes the generated parts of the documentation: tables from the catalog, presets, backbones and commands.

    python -m longgen.docs.generate            rewrite every generated part
    python -m longgen.docs.generate --check    change nothing; exit code 1 if a file is out of date

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`. NAME is a key of TABLES, or
`$ longgen ...`: that command with what it prints. The files are those of this folder, and README.md of a checkout.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from longgen import catalog, describe, preset
from longgen.backbones.registry import FAMILIES
from longgen.backbones.spec import CAPABILITIES
from longgen.cli import app
from longgen.cli.docs import FOLDER, summary, topics
from longgen.metrics import METRICS
from longgen.units import human_bytes

BLOCK = re.compile(r"(?<=^<!-- generated: )(.+?)( -->\n)(.*?)(?=^<!-- end -->$)", re.DOTALL | re.MULTILINE)
WIDTH = 100  # characters a line of help text
COST_COLUMNS = ("wan2.1-1.3b", "ltx-2b", "cogvideox-5b", "hunyuanvideo", "self-forcing")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [[*header], *([*row] for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def run(line: str) -> str:
    """What the command `line` prints, without the caller's variables and cache. `# exit code N` states the code it ends with."""
    with tempfile.TemporaryDirectory() as cache:
        env = {name: None for name in os.environ if name.startswith("LONGGEN_")} | {"XDG_CACHE_HOME": cache}
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:], env=env)
    if result.exit_code != int(line.partition("# exit code ")[2] or 0):
        raise SystemExit(f"{line}: ended with {result.exit_code}: {result.output or result.exception}")
    return "\n".join(row.rstrip() for row in result.output.splitlines())


@functools.cache
def data(*words: str) -> Any:
    """What `longgen WORDS --json` prints, parsed."""
    return json.loads(run(shlex.join(["longgen", *words, "--json"])))


def techniques() -> str:
    rows = []
    for slot, names in catalog.SLOTS.items():
        for name in names:
            technique = catalog.technique(name)
            header = " ".join(str(sys.modules[technique.__module__].__doc__).split("\n\n")[0].split())
            what = header.partition(": ")[2] or header
            where = describe.preset_row(preset.Preset(name=name, techniques=(technique(),)))["backbones"]
            rows.append((f"`{name}`", slot, technique.paper, what.rstrip("."), _where(where), _attention_cost(name, where)))
    return table(("name", "slot", "paper", "what it does", "backbones", "cost"), rows)


def _attention_cost(name: str, backbones: list[str]) -> str:
    """Attention against direct sampling's, on the first of describe.COSTED that can take the technique."""
    backbone = next((known for known in describe.COSTED if known in backbones), None)
    if backbone is None:
        return "–"
    with tempfile.TemporaryDirectory() as folder:

        def attention(*stack: str) -> float:
            path = Path(folder, f"{'-'.join(stack)}.toml")
            lines = ["schema = 1", f'name = "{path.stem}"', *(f'[[technique]]\nname = "{technique}"' for technique in stack)]
            path.write_text("\n".join(lines), encoding="utf-8")
            return data("plan", "--preset", str(path), "--backbone", backbone, "--frames", "321")["attention_ratio"]

        if name == "sink":  # which adds to a context, and is nothing without
            return f"{attention('window', name) - attention('window'):.2f} more"
        return f"{attention(name):.2f}"


def _where(names: list[str]) -> str:
    """The backbones that can take a preset, in few words."""
    return describe._able(names, [name for name in specs() if name not in names])


def presets() -> str:
    rows = []
    for shipped in data("presets", "list"):
        stack = " + ".join(f"`{technique}`" for technique in shipped["techniques"]) or "none"
        cost = "–" if shipped["cost_ratio"] is None else f"{shipped['cost_ratio']:.2f}"
        what = shipped["description"].rstrip(".")
        rows.append((f"`{shipped['name']}`", what, stack, cost, _where(shipped["backbones"]), shipped["source"]))
    return table(("name", "what it does", "techniques", "cost", "backbones", "source"), rows)


def costs() -> str:
    rows = []
    for shipped in data("presets", "list"):
        cells = [_cost(shipped["name"], backbone) if backbone in shipped["backbones"] else "–" for backbone in COST_COLUMNS]
        rows.append((f"`{shipped['name']}`", *cells))
    return table(("preset", *COST_COLUMNS), rows)


def _cost(name: str, backbone: str) -> str:
    """All arithmetic against direct sampling, at 4 times the native length; in all layers where a probe is needed."""
    native_px = specs()[backbone]["native_px"]
    words = ["plan", "--preset", name, "--backbone", backbone, "--frames", str(4 * native_px - 3)]
    asks_a_probe = any(
        isinstance(technique.layers, str) and technique.layers != "all" for technique in preset.load(name).techniques
    )
    everywhere = ["--layers", "all"] if asks_a_probe and not specs()[backbone]["verdicts"] else []
    return f"{data(*words, *everywhere)['cost_ratio']:.2f}"


@functools.cache
def specs() -> dict[str, dict[str, Any]]:
    """What `longgen backbones list` knows, by name."""
    return {spec["name"]: spec for spec in data("backbones", "list")}


def in_package(spec: dict[str, Any]) -> bool:
    return Path(spec["source"]).is_dir()


def backbones() -> str:
    rows = []
    for name, spec in specs().items():
        width, height = spec["size"]
        native = f"{spec['native_px']} frames, {width}x{height}, {spec['fps']} fps"
        weights = (
            "in the package" if in_package(spec) else " + ".join(filter(None, (spec["checkpoint"], spec["lora"], spec["source"])))
        )
        rows.append((f"`{name}`", weights, native, f"{spec['steps']}, {spec['guidance_scale']:g}", spec["license"]))
    return table(("name", "weights", "native", "steps, guidance", "license"), rows)


def pipelines() -> str:
    """The classes of diffusers that are driven, a row for each family."""
    rows = []
    for family in FAMILIES.values():
        transformer = family.marker or family.transformer
        own = ", ".join(f"`{spec.name}`" for spec in family.specs)
        rows.append((family.title, f"`{family.pipeline}` with `{transformer}`", own))
    return table(("family", "pipeline of diffusers", "here"), rows)


def models() -> str:
    """The backbones with what they have really been run on by the authors of this repository."""
    rows = []
    for name, spec in specs().items():
        ran = "CPU: every test and table here" if in_package(spec) else "not with these weights, not on a GPU"
        rows.append((f"`{name}`", spec["about"], "{} frames, {}x{}".format(spec["native_px"], *spec["size"]), ran))
    return table(("name", "model", "native", "run on"), rows)


def capabilities() -> str:
    rows = (
        (f"`{name}`", *("yes" if one in spec["capabilities"] else "" for one in CAPABILITIES)) for name, spec in specs().items()
    )
    meanings = "\n".join(f"- *{name}*: {meaning}" for name, meaning in CAPABILITIES.items())
    return f"{table(('name', *CAPABILITIES), rows)}\n\n{meanings}"


def memory() -> str:
    """The estimated peak by --offload, for 321 frames of Wan 2.1 1.3B with freespec."""
    kinds = ("none", "model", "group", "sequential")
    words = ["plan", "--preset", "freespec", "--backbone", "wan2.1-1.3b", "--frames", "321", "--dtype", "bf16", "--offload"]
    return table(
        ("`--offload`", *kinds), [("estimate", *(human_bytes(data(*words, kind)["memory_bytes"]["peak"]) for kind in kinds))]
    )


def metrics() -> str:
    rows = ((metric.name, metric.unit, metric.better, metric.about) for metric in METRICS.values())
    return table(("metric", "unit", "better", "what it measures"), rows)


def commands() -> str:
    group = typer.main.get_command(app)
    named: dict[str, Any] = getattr(group, "commands", {})
    return table(
        ("command", "what it does"),
        ((f"`longgen {name}`", str(command.help).split("\n\n")[0].replace("\n", " ")) for name, command in named.items()),
    )


def _walk(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Every command below `command` with its name and click context."""
    settings = {key: value for key, value in command.context_settings.items() if key.startswith("help")}
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=WIDTH, **settings)
    yield context.command_path, command, context
    for child, below in getattr(command, "commands", {}).items():
        yield from _walk(below, child, context)


def options() -> str:
    """The help of every command, as plain text."""
    parts = []
    for path, command, context in _walk(typer.main.get_command(app), "longgen"):
        if hasattr(command, "commands"):
            continue
        command.rich_markup_mode = None
        parts.append(f"## {path}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)


def variables() -> str:
    users: dict[str, dict[str, list[str]]] = {}
    for path, command, _ in _walk(typer.main.get_command(app), "longgen"):
        for parameter in command.params:
            if parameter.envvar:
                option = next(name for name in parameter.opts if name.startswith("--"))
                users.setdefault(str(parameter.envvar), {}).setdefault(option, []).append(path.removeprefix("longgen "))
    rows = []
    for name, commands_by_option in sorted(users.items()):
        paths = sorted({path for paths in commands_by_option.values() for path in paths})
        rows.append((f"`{name}`", ", ".join(f"`{option}`" for option in commands_by_option), ", ".join(paths)))
    return table(("variable", "option", "commands"), rows)


def modules() -> str:
    """Every module that is no technique, by package, with the first sentence of its docstring."""
    package, techniques = FOLDER.parent, {place.split(":")[0] for place in catalog.TECHNIQUES.values()}
    rows = []
    for path in sorted(package.rglob("*.py"), key=lambda path: (path.parent != package, path.parent, path.name)):
        name = path.relative_to(package).with_suffix("").as_posix()
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring and f"longgen.{name.replace('/', '.')}" not in techniques:
            sentence = re.split(r"(?<=\.)\s", " ".join(docstring.split("\n\n")[0].split()) + " ")[0].rstrip(".")
            rows.append((f"`{name.removesuffix('/__init__')}`", sentence))
    return table(("module", "what it is"), rows)


def imports() -> str:
    """The rows of the import test, in their order."""
    tree = ast.parse((FOLDER.parent.parent / "tests" / "test_house.py").read_text(encoding="utf-8"))
    values = (node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER")
    return textwrap.fill(" ".join(ast.literal_eval(next(values))), WIDTH, initial_indent="    ", subsequent_indent="    ")


def index() -> str:
    rows = ((f"[{name}]({name}.md)", summary(page)) for name, page in topics().items() if name != "index")
    return table(("topic", "what is in it"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "techniques": techniques,
    "presets": presets,
    "costs": costs,
    "backbones": backbones,
    "pipelines": pipelines,
    "models": models,
    "capabilities": capabilities,
    "memory": memory,
    "metrics": metrics,
    "commands": commands,
    "options": options,
    "variables": variables,
    "modules": modules,
    "imports": imports,
    "index": index,
}


def block(name: str) -> str:
    """The text of the generated part called `name`."""
    if name.startswith("$ longgen "):
        return f"```text\n{name}\n{run(name.removeprefix('$ '))}\n```\n"
    if name not in TABLES:
        raise SystemExit(f"no generated part is called {name!r}; there are {', '.join(TABLES)}, and `$ longgen ...`")
    return f"\n{TABLES[name]()}\n\n"


def generated(text: str) -> str:
    """`text` with every generated part made anew."""
    return BLOCK.sub(lambda match: match[1] + match[2] + block(match[1]), text)


def files() -> list[Path]:
    readme = FOLDER.parent.parent / "README.md"
    return [*topics().values(), *([readme] if readme.is_file() else [])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m longgen.docs.generate", description="Write the generated parts of the documentation."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for path in sorted(files(), key=lambda path: path.name == "index.md"):  # the index quotes the others
        text = path.read_text(encoding="utf-8")
        if (new := generated(text)) != text:
            stale.append(path)
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path}")
    if check and stale:
        print("run python -m longgen.docs.generate", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
