"""longgen backbones list and show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from longgen.cli.app import App, answer, app
from longgen.cli.options import Json

if TYPE_CHECKING:
    from longgen.backbones.spec import BackboneSpec

backbones_app = App(no_args_is_help=True, help="List and show backbones.")
app.add_typer(backbones_app, name="backbones")


@backbones_app.command("list")
def backbones_list(as_json: Json = False) -> None:
    """All backbones by name."""
    from longgen.backbones.registry import all_specs

    specs = all_specs().values()
    rows = [f"{spec.name:<16}{spec.native_px:>4} frames native  {spec.about}" for spec in specs]
    answer("\n".join(rows), [spec_dict(spec) for spec in specs], as_json)


@backbones_app.command("show")
def backbones_show(name: Annotated[str, typer.Argument(help="A name, a hub id or a folder.")], as_json: Json = False) -> None:
    """Show the facts of a backbone; for tiny also the prompts that it understands."""
    from longgen.backbones.find import find
    from longgen.describe import backbone_text

    spec = find(name)
    answer(backbone_text(spec), spec_dict(spec), as_json)


def spec_dict(spec: BackboneSpec) -> dict[str, Any]:
    import dataclasses

    from longgen.backbones import tiny_grammar

    prompts = {"grammar": tiny_grammar.GRAMMAR, "words": {slot: list(words) for slot, words in tiny_grammar.SLOTS.items()}}
    return dataclasses.asdict(spec) | (prompts if spec.name == "tiny" else {})
