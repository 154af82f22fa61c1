"""longgen docs: the documentation that ships with the package, as Markdown."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import typer

import longgen
from longgen.cli import complete, messages
from longgen.cli.app import answer, app
from longgen.cli.options import Json
from longgen.errors import unknown_name
from longgen.terminal import hanging

FOLDER = Path(longgen.__file__).parent / "docs"
SCHEMAS = {"run.json": FOLDER / "schemas" / "run.json", "json-lines": FOLDER / "schemas" / "json-lines.json"}


def topics() -> dict[str, Path]:
    """Every page by name: `presets`, `experiments/tiny`, ...; the index first."""
    pages = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in FOLDER.rglob("*.md")}
    return {name: pages[name] for name in sorted(pages, key=lambda name: (name != "index", "/" in name, name))}


def read(path: Path) -> str:
    """A page without the markers of its generated parts."""
    return re.sub(r"^<!-- .* -->\n\n?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).strip()


def summary(path: Path) -> str:
    """The first paragraph of a page, on one line."""
    return " ".join(read(path).split("\n\n")[1].split())


@app.command()
def docs(
    topic: Annotated[
        str | None,
        typer.Argument(
            autocompletion=complete.quietly(lambda ctx, incomplete: [*topics(), *SCHEMAS]),
            help="The page to print (default: the list of pages); run.json or json-lines for their JSON Schema.",
            show_default=False,
        ),
    ] = None,
    path: Annotated[bool, typer.Option("--path", help="Print where the file is instead.")] = False,
    as_json: Json = False,
) -> None:
    """Read the documentation; without a topic, list its pages."""
    pages = topics()
    if topic is None:
        width = max(map(len, pages))
        rows = [{"topic": name, "summary": summary(page), "path": str(page)} for name, page in pages.items()]
        columns = None if path else messages.stdout_columns()
        lines = [hanging(f"{row['topic']:<{width}}  ", row["path" if path else "summary"], columns) for row in rows]
        return answer("\n".join(lines), rows, as_json)
    pages |= SCHEMAS
    name = topic.removesuffix(".md")
    if name not in pages:
        raise unknown_name("page of the documentation", topic, pages, "run longgen docs for the list")
    page = pages[name]
    if path or as_json or name in SCHEMAS or not sys.stdout.isatty():
        text = read(page)
        return answer(str(page) if path else text, {"topic": name, "path": str(page), "text": text}, as_json)
    _render(read(page))


def _render(text: str) -> None:
    """Prints Markdown for a terminal, with every cell of its tables in full."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class Whole(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in super().__rich_console__(console, options):
                for index, column in enumerate(part.columns if isinstance(part, Table) else ()):
                    column.overflow = "fold"
                    column.no_wrap = index == 0 and all(len(str(cell)) <= 25 for cell in column.cells)  # names, to be copied
                yield part

    class Page(Markdown):
        elements: ClassVar = Markdown.elements | {"table_open": Whole}

    Console().print(Page(text))
