"""longgen presets list, show and check."""

from __future__ import annotations

from typing import Annotated

import typer

from longgen.cli.app import App, answer, app
from longgen.cli.options import AllowCode, Backbone, Json, Set

presets_app = App(no_args_is_help=True, help="List, show and check presets.")
app.add_typer(presets_app, name="presets")


@presets_app.command("list")
def presets_list(as_json: Json = False) -> None:
    """All presets that longgen ships: cost, techniques, backbones, paper."""
    from longgen import preset
    from longgen.describe import preset_row, presets_text

    shipped = [preset.load(name) for name in preset.names()]
    if as_json:
        return answer("", [each.as_dict() | preset_row(each) for each in shipped], as_json)
    answer(presets_text(shipped), [], as_json)


@presets_app.command("show")
def presets_show(
    name: Annotated[str, typer.Argument(help="A name or a TOML file.")],
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
    files: Annotated[list[str], typer.Argument(help="TOML files or names.")],
    backbone: Backbone = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Check presets; with --backbone also whether that backbone can run them."""
    from longgen import preset
    from longgen.backbones.find import find
    from longgen.planner import as_if_probed, build

    loaded = [preset.load(name, allow_code=allow_code) for name in files]
    if backbone is not None:
        for each in loaded:
            build(each, as_if_probed(find(backbone)))
    answer("\n".join(f"{name}: fine" for name in files), [{"name": name, "ok": True} for name in files], as_json)
