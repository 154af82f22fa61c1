"""longgen presets, techniques and backbones: list, show and check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longgen.cli import complete, messages
from longgen.cli.app import App, answer, app
from longgen.cli.options import AllowCode, Backbone, Json, Set
from longgen.errors import LonggenError
from longgen.terminal import hanging, refilled

presets_app = App(no_args_is_help=True, help="List, show and check presets.")
techniques_app = App(no_args_is_help=True, help="List and show techniques.")
backbones_app = App(no_args_is_help=True, help="List and show backbones.")
app.add_typer(presets_app, name="presets")
app.add_typer(techniques_app, name="techniques")
app.add_typer(backbones_app, name="backbones")


@presets_app.command("list")
def presets_list(
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-m",
            metavar="NAME|HUB-ID|DIR|FILE",
            autocompletion=complete.backbones,
            help="Only those that this model can run.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """The presets that longgen ships, six to try first: cost, quality, techniques."""
    from longgen import preset
    from longgen.backbones.find import find
    from longgen.describe import preset_row, presets_text
    from longgen.recommended import to_try_first

    spec = None if backbone is None else find(backbone)
    first = to_try_first(spec)
    rows, left_out = [], []
    for name in sorted(preset.names(), key=lambda name: (first.index(name) if name in first else len(first), name)):
        row = (shipped := preset.load(name)).as_dict() | preset_row(shipped, spec) | {"try_first": name in first}
        if row["backbones"] or spec is None:
            rows.append(row)
        else:
            left_out.append(name)
    text = presets_text(rows, spec, left_out, messages.stdout_columns())
    answer(text, rows, as_json)


@presets_app.command("show")
def presets_show(
    name: Annotated[str, typer.Argument(help="A name or a TOML file.", autocompletion=complete.presets)],
    overrides: Set = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Print a preset as TOML, with every parameter."""
    from longgen import preset

    loaded = preset.load(name, overrides or (), allow_code=allow_code)
    answer(loaded.as_toml().rstrip(), loaded.as_dict(), as_json)


@presets_app.command("check")
def presets_check(
    files: Annotated[list[str], typer.Argument(help="TOML files or names.", autocompletion=complete.presets)],
    backbone: Backbone = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Check presets; with --backbone also whether that backbone can run them."""
    from longgen import preset
    from longgen.backbones.find import find
    from longgen.planner import as_if_probed, build, stand_in

    for loaded in [preset.load(name, allow_code=allow_code) for name in files]:
        if backbone is not None:
            spec = find(backbone)
            build(loaded, as_if_probed(spec), conditions=stand_in(spec))
    answer("\n".join(f"{name}: fine" for name in files), [{"name": name, "ok": True} for name in files], as_json)


@techniques_app.command("list")
def techniques_list(as_json: Json = False) -> None:
    """Every technique, built in or of an installed package: slot, paper, what it does."""
    from longgen.describe import technique_rows, techniques_text

    rows = technique_rows()
    answer(techniques_text(rows, messages.stdout_columns()), rows, as_json)


@techniques_app.command("show")
def techniques_show(
    name: Annotated[
        str,
        typer.Argument(autocompletion=complete.techniques, help="A technique's name; with --allow-code also package.module:Class."),
    ],
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """A technique's equations, parameters, backbones, presets and cost."""
    from longgen.describe import technique_dict, technique_text

    technique = technique_dict(name, allow_code)
    answer(technique_text(technique, messages.stdout_columns()), technique, as_json)


@backbones_app.command("list")
def backbones_list(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="A folder: say what each file of weights in it is instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """All backbones by name; or what the files in a folder are."""
    from longgen.backbone_facts import backbone_dict
    from longgen.backbones.find import files_in
    from longgen.backbones.registry import all_specs

    if folder is not None:
        data, lines = [], []
        for path, entry in files_in(folder):
            if isinstance(entry, LonggenError):
                what, name = entry.given.removeprefix(f"{path} "), None
            else:
                what, name = entry.about, entry.name
            data.append({"file": str(path), "what": what, "backbone": name})
            lines.append(f"{path.name}: {what}")
        return answer(refilled("\n".join(lines), messages.stdout_columns()) or f"no files of weights in {folder}", data, as_json)
    specs = all_specs().values()
    width, columns = max(len(spec.name) for spec in specs), messages.stdout_columns()
    rows = [hanging(f"{spec.name:<{width}}{spec.native_px:>5} frames native  ", spec.about, columns) for spec in specs]
    answer("\n".join(rows), [backbone_dict(spec) for spec in specs], as_json)


@backbones_app.command("show")
def backbones_show(
    name: Annotated[str, typer.Argument(help="A name, a hub id, a folder or a file.", autocompletion=complete.backbones)],
    as_json: Json = False,
) -> None:
    """Show the facts of a backbone: licence, bytes, memory, whether it is here; for tiny also the prompts that it understands."""
    from longgen.backbone_facts import backbone_dict, backbone_text, needs, published
    from longgen.backbones.find import find

    spec = find(name)
    answer(
        backbone_text(spec, messages.stdout_columns()),
        backbone_dict(spec) | {"needs": needs(spec), "published": published(spec)} if as_json else None,
        as_json,
    )
