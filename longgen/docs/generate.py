"""Writes the generated parts of the documentation: tables from the catalog, presets, backbones and commands.

    python -m longgen.docs.generate            rewrite every generated part
    python -m longgen.docs.generate --check    change nothing; exit code 1 if a file is out of date

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`. NAME is a key of TABLES, or
`$ longgen ...`: that command with what it prints. The files are those of this folder, and README.md of a checkout.
"""

from __future__ import annotations

import argparse
import ast
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

from longgen import catalog, cost, describe, planner, preset, run_record
from longgen.backbones import hub, sources
from longgen.backbones.registry import FAMILIES, SPECS, family_of
from longgen.backbones.spec import CAPABILITIES, FIRST_FRAME, LAST_FRAME
from longgen.cli import app, lines
from longgen.cli.docs import FOLDER, SCHEMAS, summary, topics
from longgen.metrics import METRICS
from longgen.plan import Plan
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


def techniques() -> str:
    rows = []
    for slot, names in catalog.SLOTS.items():
        for name in names:
            technique = catalog.technique(name)
            header = " ".join(str(sys.modules[technique.__module__].__doc__).split("\n\n")[0].split())
            what = header.partition(": ")[2] or header
            alone = describe.preset_row(preset.Preset(name=name, techniques=(technique(),)))
            attention = _attention_cost(name, alone["backbones"])
            rows.append((f"`{name}`", slot, technique.paper, what.rstrip("."), describe.backbones_label(alone), attention))
    return table(("name", "slot", "paper", "what it does", "backbones", "cost"), rows)


def _attention_cost(name: str, backbones: list[str]) -> str:
    """Attention against direct sampling's, on the first of describe.COSTED that can take the technique."""
    backbone = next((known for known in describe.COSTED if known in backbones), None)
    if backbone is None:
        return "–"

    def attention(*stack: str) -> float:
        stacked = tuple(catalog.technique(technique)() for technique in stack)
        alone = preset.Preset(name=name, techniques=stacked, sample=preset.Sample(frames=321))
        spec = SPECS[backbone]
        return cost.attention_ratio(planner.build(alone, spec, conditions=planner.stand_in(spec)))

    if name == "sink":  # which adds to a context, and is nothing without
        return f"{attention('window', name) - attention('window'):.2f} more"
    return f"{attention(name):.2f}"


def presets() -> str:
    rows = []
    for shipped in map(preset.load, preset.names()):
        row = describe.preset_row(shipped)
        stack = " + ".join(f"`{technique}`" for technique in row["techniques"]) or "none"
        ratio = "–" if row["cost_ratio"] is None else f"{row['cost_ratio']:.2f}"
        where = describe.backbones_label(row)
        rows.append((f"`{shipped.name}`", shipped.description.rstrip("."), stack, ratio, where, shipped.source))
    return table(("name", "what it does", "techniques", "cost", "backbones", "source"), rows)


def costs() -> str:
    """All arithmetic against direct sampling, at 4 times the native length; in all layers where a probe is needed."""
    rows = []
    for name in preset.names():
        plans = planner.on_every_backbone(preset.load(name))
        known = (plans[backbone] for backbone in COST_COLUMNS)
        rows.append((f"`{name}`", *(f"{cost.ratio(plan):.2f}" if isinstance(plan, Plan) else "–" for plan in known)))
    return table(("preset", *COST_COLUMNS), rows)


def backbones() -> str:
    rows = []
    for spec in SPECS.values():
        width, height = spec.size
        native = f"{spec.native_px} frames, {width}x{height}, {spec.fps} fps"
        weights = "in the package" if spec.built_in else " + ".join(filter(None, (spec.checkpoint, spec.lora, spec.source)))
        rows.append((f"`{spec.name}`", weights, native, f"{spec.steps}, {spec.guidance_scale:g}", spec.license))
    return table(("name", "weights", "native", "steps, guidance", "license"), rows)


def _setting(value: object) -> str:
    """A setting as text for a table."""
    if isinstance(value, str):
        text = value if len(value) < 70 else f"{value[:24]}… ({len(value)} characters)"
        return "none" if not value else f"“{text}”" if " " in text else f"`{text}`"
    if isinstance(value, tuple) and len(value) == 4:
        return "{:g} to {:g} in logarithm, from {} to {} tokens".format(*value)
    return "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def _source(where: str) -> str:
    """`repository path` of `longgen.backbones.sources` as a link."""
    name, path = where.split(" ", 1)
    repository, commit = sources.REPOSITORIES[name]
    return f"[{name} {path}](https://github.com/{repository}/blob/{commit}/{path})"


def settings() -> str:
    """Every setting of every published backbone beside its publisher's, a table each."""
    parts = []
    for name, rows in sources.SOURCES.items():
        used = sources.in_use(SPECS[name])
        cells = [
            (key, _setting(used[key]), "the same" if used[key] == source.value else f"{_setting(source.value)} ({source.why})",
             _source(source.where))
            for key, source in rows.items()
        ]  # fmt: skip
        parts.append(f"### {name}\n\n" + table(("setting", "default here", "publisher", "source"), cells))
    return "\n\n".join(parts)


def downloads() -> str:
    """The commands that download each published backbone."""
    commands = (f"# {name}\n" + "\n".join(hub.download_commands(SPECS[name])) for name in sources.SOURCES)
    return "```bash\n" + "\n\n".join(commands) + "\n```"


def pipelines() -> str:
    """The classes of diffusers that are driven, a row for each family."""
    rows = []
    for family in FAMILIES.values():
        transformer = family.marker or family.transformer
        own = ", ".join(f"`{spec.name}`" for spec in family.specs)
        kinds = " or ".join(f"`{kind}`" for kind in (family.pipeline, *family.picture_pipelines))
        rows.append((family.title, f"{kinds} with `{transformer}`", own))
    return table(("family", "pipeline of diffusers", "here"), rows)


def models() -> str:
    """The names of the backbones by their transformer class."""
    names: dict[str, list[str]] = {}
    for spec in SPECS.values():
        kind = "on a CPU: the built-in models" if spec.built_in else f"diffusers' {family_of(spec).transformer}"
        names.setdefault(kind, []).append(f"`{spec.name}`")
    return table(("run", "backbones"), ((kind, ", ".join(those)) for kind, those in names.items()))


def capabilities() -> str:
    rows = ((f"`{spec.name}`", *("yes" * (each in spec.capabilities) for each in CAPABILITIES)) for spec in SPECS.values())
    meanings = "\n".join(f"- *{name}*: {meaning}" for name, meaning in CAPABILITIES.items())
    return f"{table(('name', *CAPABILITIES), rows)}\n\n{meanings}"


def starts() -> str:
    """What each backbone can start from."""
    rows = []
    for spec in SPECS.values():
        if FIRST_FRAME in spec.capabilities or spec.continues:
            goes_on = (
                "its cache" if spec.causal else f"up to {spec.clean_lat} latent frames" if spec.clean_lat > 1 else "the last frame"
            )
            rows.append((f"`{spec.name}`", "" if spec.picture_needed else "yes", "yes" * (FIRST_FRAME in spec.capabilities),
                         "needed" if spec.last_picture_needed else "yes" * (LAST_FRAME in spec.capabilities),
                         goes_on if spec.continues else ""))  # fmt: skip
    return table(("name", "text alone", "`--image`", "`--last-image`", "`--continue`, by"), rows)


def memory() -> str:
    """The estimated peak by --offload, for 321 frames of Wan 2.1 1.3B with freespec."""
    kinds = ("none", "model", "group", "sequential")
    plan = planner.build(preset.load("freespec", sample=preset.Sample(frames=321)), SPECS["wan2.1-1.3b"])
    peaks = (human_bytes(cost.memory_bytes(plan, "bf16", kind)["peak"]) for kind in kinds)
    return table(("`--offload`", *kinds), [("estimate", *peaks)])


def metrics() -> str:
    rows = ((metric.name, metric.unit, metric.better, metric.about) for metric in METRICS.values())
    return table(("metric", "unit", "better", "what it measures"), rows)


def commands() -> str:
    group: Any = typer.main.get_command(app)
    named = {name: group.commands[name] for name in group.list_commands(None)}
    rows = ((f"`longgen {name}`", str(command.help).split("\n\n")[0].replace("\n", " ")) for name, command in named.items())
    return table(("command", "what it does"), rows)


def _walk(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Every command below `command` with its name and click context."""
    settings = {key: value for key, value in command.context_settings.items() if key.startswith("help")}
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=WIDTH, **settings)
    yield context.command_path, command, context
    for child in command.list_commands(context) if hasattr(command, "commands") else ():
        yield from _walk(command.commands[child], child, context)


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
    function.__name__: function
    for function in (techniques, presets, costs, backbones, settings, downloads, pipelines, models, capabilities, starts, memory,
                     metrics, commands, options, variables, modules, imports, index)
}  # fmt: skip


def block(name: str) -> str:
    """The text of the generated part called `name`."""
    if name.startswith("$ longgen "):
        return f"```text\n{name}\n{run(name.removeprefix('$ '))}\n```\n"
    if name not in TABLES:
        raise SystemExit(f"no generated part is called {name!r}; there are {', '.join(TABLES)}, and `$ longgen ...`")
    return f"\n{TABLES[name]()}\n\n"


SCHEMA_OF: dict[Path, Callable[[], dict[str, Any]]] = {
    SCHEMAS["run.json"]: run_record.json_schema,
    SCHEMAS["json-lines"]: lines.json_schema,
}


def generated(text: str) -> str:
    """`text` with every generated part made anew."""
    return BLOCK.sub(lambda match: match[1] + match[2] + block(match[1]), text)


def schema_text(path: Path) -> str:
    """The JSON Schema that belongs at `path`, of the classes that write such data."""
    return json.dumps(SCHEMA_OF[path](), indent=2) + "\n"


def files() -> list[Path]:
    readme = FOLDER.parent.parent / "README.md"
    return [*topics().values(), *([readme] if readme.is_file() else [])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m longgen.docs.generate", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for path in sorted([*files(), *SCHEMA_OF], key=lambda path: path.name == "index.md"):  # the index quotes the others
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (new := schema_text(path) if path in SCHEMA_OF else generated(text)) != text:
            stale.append(path)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path}")
    if check and stale:
        print("run python -m longgen.docs.generate", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
