"""What --help shows: the few options that matter, three examples and the names of the rest, which --help-all explains in panels.

One place for the order and the panels of commands and options. Rows are the same on a terminal and in docs/options.md.
"""

from __future__ import annotations

import io
import itertools
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 100  # columns, beyond which lines of help are hard to read
ALL = "--help-all"

COMMANDS = {  # by panel, in the order of use
    "Make a video": ("generate", "plan", "compare"),
    "Choose": ("presets", "backbones", "techniques"),
    "Afterwards": ("inspect", "decode"),
    "Measure": ("probe", "bench"),
    "Help": ("doctor", "docs"),
}
PANELS = {  # of options, by the names of their parameters
    "What it shows": ("words", "prompt", "prompts", "schedule", "negative_prompt", "image", "last_image", "continue_from", "join",
                      "fit"),
    "Length and sampling": ("duration", "frames", "lengths", "size", "fps", "steps", "guidance_scale", "flow_shift", "seed",
                            "seeds"),
    "Method": ("preset", "presets", "overrides", "layers", "probe", "allow_code"),
    "Measurement": ("gpu", "minutes", "baseline", "metrics", "vbench_weights", "vbench_json", "export_vbench", "metric",
                    "threshold", "top", "quick", "heads", "again", "shape", "random_weights", "count", "card", "accelerate",
                    "repeats"),
    "Model": ("backbone", "lora", "vae", "text_encoder", "quantize", "attention", "cache", "compile", "clip_batch", "vae_tiling"),
    "Machine": ("device", "dtype", "offload", "gpus", "guidance_parallel", "ray", "ray_workers", "shard"),
    "Files and output": ("output", "resume", "overwrite", "dry_run", "preview", "npz", "export", "toml", "shots", "path", "as_json",
                         "quiet", "log_file"),
}  # fmt: skip
FIRST = {  # of commands with more than fit a screen: the options that matter most
    "generate": ("duration", "preset", "backbone", "image", "output"),
    "plan": ("duration", "preset", "backbone", "size", "card"),
    "compare": ("presets", "prompt", "seeds", "backbone", "output"),
    "probe": ("backbone", "frames", "quick", "heads", "output"),
    "bench": ("presets", "backbone", "frames", "random_weights", "count"),
}
EXAMPLES = {
    "": ('longgen "a large red circle bouncing on a navy background"', "longgen plan --duration 20s --backbone wan2.1-1.3b",
         "longgen presets list --backbone wan2.1-1.3b"),
    "generate": ('longgen generate "a red circle bouncing" --duration 20s --output ball.mp4',
                 'longgen generate "a cat surfing" --image cat.png --backbone wan2.2-ti2v-5b',
                 "longgen generate --prompts prompts.txt --seeds 0,1 --output videos/"),
    "plan": ("longgen plan --duration 20s", "longgen plan --preset freespec --frames 321 --backbone wan2.1-1.3b",
             "longgen plan --duration 1m --backbone self-forcing --gpus 2,4"),
    "compare": ('longgen compare --presets direct,sliding-window --prompt "a red circle bouncing" --frames 321',
                "longgen compare --presets direct,freenoise --prompts prompts.txt --seeds 0,1,2 --frames 321",
                "longgen compare first.mp4 second.mp4"),
    "probe": ("longgen probe --backbone tiny", "longgen probe --backbone wan2.1-1.3b --frames 321 --quick",
              "longgen probe --backbone self-forcing --heads"),
    "bench": ("longgen bench --presets direct,sliding-window --backbone tiny",
              "longgen bench --backbone wan2.1-1.3b --random-weights --frames 161",
              "longgen bench --backbone wan2.1-14b --count --card h100,4090"),
    "decode": ("longgen decode ball.run", "longgen decode ball.run -o so-far.mp4", "longgen decode ball.run --device cpu"),
    "inspect": ("longgen inspect ball.mp4", "longgen inspect ball.mp4 --toml > ball.toml",
                "longgen inspect ball.mp4 --shots > shots.toml"),
    "doctor": ("longgen doctor", "longgen doctor --gpu", "longgen doctor --gpu --presets direct,sliding-window --minutes 5"),
    "docs": ("longgen docs", "longgen docs getting-started", "longgen docs presets --path"),
    "presets": ("longgen presets list", "longgen presets show freespec", "longgen presets check own.toml --backbone tiny"),
    "techniques": ("longgen techniques list", "longgen techniques show window", "longgen techniques show freespec --json"),
    "backbones": ("longgen backbones list", "longgen backbones show wan2.1-1.3b", "longgen backbones list models/"),
}  # fmt: skip


def panel_of(parameter: Any) -> str:
    """The panel that an option stands in."""
    return next((title for title, names in PANELS.items() if parameter.name in names), "Options")


def ordered(names: Iterable[str]) -> list[str]:
    """The names of commands in the order of use; others after them."""
    order = [*itertools.chain.from_iterable(COMMANDS.values())]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def value_of(parameter: Any, context: Any) -> str:
    """What stands after an option, as N or FILE; empty for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    described = parameter.display_type(context) if hasattr(parameter, "display_type") else parameter.make_metavar(context)
    kind = str(described).strip("<>[]").lower()
    named = {"int": "N", "integer": "N", "float": "X", "str": "TEXT", "text": "TEXT", "path": "PATH", "list[str]": "TEXT"}
    return named.get(kind.removesuffix(" range"), kind)


def row(parameter: Any, context: Any, everything: bool) -> tuple[str, str, str]:
    """Of an option its names, its value and its help; everything: also other spellings, its variable and its default."""
    if parameter.param_type_name == "argument":
        return argument_name(parameter), "", parameter.help or ""
    long = [name for name in parameter.opts if name.startswith("--")]
    short = [name for name in parameter.opts if not name.startswith("--")]
    names = ", ".join([*(long if everything else long[:1]), *short])
    text, default = parameter.help or "", parameter.default
    if not getattr(parameter, "is_flag", False) and default not in (None, ()) and not callable(default):
        text += f" [default: {default}]"
    if everything and parameter.envvar:
        text += f" [variable: {parameter.envvar}]"
    return names, value_of(parameter, context), text.strip()


def rows(command: Any, context: Any, everything: bool = True) -> dict[str, list[tuple[str, str, str]]]:
    """By panel, the rows of the options of `command`; its arguments first."""
    own = [one for one in command.params if not getattr(one, "hidden", False)]
    arguments = [one for one in own if one.param_type_name == "argument"]
    options = [one for one in own if one.param_type_name == "option"]
    panels = {"Arguments": [row(one, context, everything) for one in arguments]}
    for title in [*PANELS, "Options"]:
        names = [*PANELS.get(title, ())]
        inside = [one for one in options if panel_of(one) == title]
        inside.sort(key=lambda one: names.index(one.name) if one.name in names else 0)
        panels[title] = [row(one, context, everything) for one in inside]
    root = context.parent is None
    about = (
        f"Show every option{', of a command: longgen COMMAND ' + ALL if root else ', with its other spellings and its variable'}."
    )
    panels["Options"].append(("-h, --help", "", "Show this help."))
    if everything or root or command.name in FIRST:
        panels["Options"].append((ALL, "", about))
    return {title: found for title, found in panels.items() if found}


def plain_options(command: Any, context: Any, formatter: Any) -> None:
    """Every option in its panel as plain text, for docs/options.md."""
    for title, found in rows(command, context).items():
        with formatter.section(title):
            formatter.write_dl([(f"{names} {value}".strip(), text) for names, value, text in found])


def argument_name(parameter: Any) -> str:
    """An argument as the usage line and its row name it: in brackets where it may be left out."""
    name = str(parameter.metavar or parameter.name.upper())
    name = name if parameter.required or name.startswith("[") else f"[{name}]"
    return name if parameter.nargs == 1 or name.endswith("...") or parameter.name == "words" else f"{name}..."


def usage_pieces(command: Any) -> list[str]:
    """What follows the command's name in its usage line."""
    pieces = ["[OPTIONS]", *(argument_name(one) for one in command.params if one.param_type_name == "argument")]
    return [*pieces, "COMMAND [ARGS]..."] if hasattr(command, "commands") else pieces


def columns() -> int:
    """The width of help on this terminal."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)


def shown(command: Any, context: Any, everything: bool) -> str:
    """The help of `command` for this terminal. everything: as --help-all has it."""
    from rich.console import Console

    file = io.StringIO()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=file, width=columns(), force_terminal=terminal, highlight=False, soft_wrap=False)
    _print(console, command, context, everything)
    return file.getvalue().rstrip("\n")


def _print(console: Console, command: Any, context: Any, everything: bool) -> None:
    from rich.text import Text

    about = re.split(r"\n\s*\n", (command.help or "").strip())
    console.print(Text(f"{context.get_usage().strip()}\n", "bold"))
    for paragraph in about if everything else about[:1]:
        console.print(Text(f"{' '.join(paragraph.split())}\n"))
    if examples := EXAMPLES.get(_below_root(context)):
        console.print(Text("Examples", "bold"))
        for example in examples:
            console.print(Text(f"  {example}", "cyan", overflow="fold"))
        console.print()
    if hasattr(command, "commands"):
        _print_commands(console, command, context)
    short = command.name in FIRST and not everything
    if not short:
        for title, found in rows(command, context, everything).items():
            _print_panel(console, title, found)
        return
    own = {one.name: one for one in command.params}
    arguments = [row(one, context, False) for one in command.params if one.param_type_name == "argument"]
    _print_panel(console, "What matters most", [*arguments, *(row(own[name], context, False) for name in FIRST[command.name])])
    others = {title: [one.opts[0] for one in command.params if one.param_type_name == "option" and panel_of(one) == title
                      and one.name not in FIRST[command.name]] for title in PANELS}  # fmt: skip
    names = [(title, "", "  ".join(options)) for title, options in others.items() if options]
    _print_panel(console, f"More options: {context.command_path} {ALL} explains them", names)


def _below_root(context: Any) -> str:
    """The command as it is typed after `longgen`."""
    return "" if context.parent is None else f"{_below_root(context.parent)} {context.info_name}".strip()


def _print_commands(console: Console, command: Any, context: Any) -> None:
    present = {name: command.get_command(context, name) for name in command.list_commands(context)}
    titled = (
        {title: [name for name in names if name in present] for title, names in COMMANDS.items()} if context.parent is None else {}
    )
    placed = {*itertools.chain.from_iterable(titled.values())}
    titled["Commands"] = [name for name in present if name not in placed]
    width = max(map(len, present))
    for title, names in titled.items():
        summary = [(f"{name:<{width}} ", "", _first_paragraph(present[name].help)) for name in names if not present[name].hidden]
        _print_panel(console, title, summary)


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _print_panel(console: Console, title: str, found: list[tuple[str, str, str]]) -> None:
    """A frame with a row for each of `found`, in two columns."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    if not found:
        return
    table = Table.grid(padding=(0, 2), expand=True)
    left = max(len(f"{names} {value}" if value else names) for names, value, _ in found)
    table.add_column(width=min(left, max(24, console.width * 2 // 5)), overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for names, value, text in found:
        table.add_row(Text.assemble((names, "cyan"), f" {value}" if value else ""), _with_dim_facts(text))
    console.print(Panel(table, title=Text(title), title_align="left", box=box.ROUNDED, border_style="dim", padding=(0, 1)))


def _with_dim_facts(text: str) -> Any:
    from rich.text import Text

    shown_text = Text(text)
    shown_text.highlight_regex(r"\[(default|variable): [^\]]*\]", "dim")
    return shown_text


def wants_all(args: list[str]) -> Iterator[int]:
    """The places of --help-all among `args`, before a --."""
    for index, word in enumerate(itertools.takewhile(lambda word: word != "--", args)):
        if word.replace("_", "-") == ALL:
            yield index
