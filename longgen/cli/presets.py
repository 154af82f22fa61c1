"""longgen presets list, show and check."""

from __future__ import annotations

from typing import Annotated

import typer

from longgen.cli.app import App, answer, app, reports_errors
from longgen.cli.options import Backbone, Json, Set

presets_app = App(no_args_is_help=True, help="List, show and check presets.")
app.add_typer(presets_app, name="presets")


@presets_app.command("list")
@reports_errors
def presets_list(as_json: Json = False) -> None:
    """Every preset that longgen ships: cost, techniques, backbones, paper."""
    from longgen import preset
    from longgen.describe import preset_row, presets_text

    shipped = [preset.load(name) for name in preset.names()]
    answer(
        "" if as_json else presets_text(shipped), [one.as_dict() | preset_row(one) for one in shipped] if as_json else [], as_json
    )


@presets_app.command("show")
@reports_errors
def presets_show(
    name: Annotated[str, typer.Argument(help="A name or a TOML file.")], set_: Set = None, as_json: Json = False
) -> None:
    """A preset as TOML, every parameter written out."""
    from longgen import preset

    one = preset.load(name, set_ or ())
    answer(one.as_toml().rstrip(), one.as_dict(), as_json)


@presets_app.command("check")
@reports_errors
def presets_check(
    files: Annotated[list[str], typer.Argument(help="TOML files or names.")], backbone: Backbone = None, as_json: Json = False
) -> None:
    """Check presets; with --backbone also whether that backbone can run them."""
    from longgen import preset
    from longgen.backbones.find import find
    from longgen.planner import as_if_probed, build

    checked = [preset.load(name) for name in files]
    if backbone is not None:
        for one in checked:
            build(one, as_if_probed(find(backbone)))
    answer("\n".join(f"{name}: fine" for name in files), [{"name": name, "ok": True} for name in files], as_json)
