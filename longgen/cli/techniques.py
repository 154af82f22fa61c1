"""longgen techniques list and show."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from longgen.cli.app import App, answer, app
from longgen.cli.options import AllowCode, Json

techniques_app = App(no_args_is_help=True, help="List and show techniques.")
app.add_typer(techniques_app, name="techniques")


@techniques_app.command("list")
def techniques_list(as_json: Json = False) -> None:
    """Every technique, built in or of an installed package: slot, paper, what it does."""
    from longgen.describe_technique import technique_rows, techniques_text

    rows = technique_rows()
    answer(techniques_text(rows), rows, as_json)


@techniques_app.command("show")
def techniques_show(
    name: Annotated[str, typer.Argument(help="A technique's name; with --allow-code also package.module:Class.")],
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """A technique's equations, parameters, backbones, presets and cost."""
    from longgen.describe_technique import technique_dict, technique_text

    shown = technique_dict(name, allow_code)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    answer(technique_text(shown, columns), shown, as_json)
