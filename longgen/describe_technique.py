"""Techniques as text and JSON: what each does, its parameters, where it runs and what it costs. Makes strings; prints nothing."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import textwrap
from typing import Any

from longgen import catalog, preset
from longgen.describe import COSTED, preset_row
from longgen.errors import UsageError
from longgen.planner import LONG
from longgen.technique import LONGEST, Technique

WIDTH = 80  # columns of a terminal


def header(technique: type[Technique]) -> str:
    """The docstring of the technique's module: paper, equations, constants and their sources."""
    return inspect.cleandoc(inspect.getmodule(technique).__doc__ or technique.__doc__ or "")


def technique_row(name: str, technique: type[Technique]) -> dict[str, Any]:
    """What `longgen techniques list` shows of a technique."""
    summary = " ".join(header(technique).partition("\n\n")[0].split())
    return {"name": name, "slot": technique.slot, "paper": technique.paper, "summary": summary, "origin": catalog.origin(name)}


def technique_rows() -> list[dict[str, Any]]:
    """A row for each technique that a preset can name; one that cannot be imported has the error in place of a summary."""
    rows = []
    for name in catalog.names():
        try:
            rows.append(technique_row(name, catalog.technique(name)))
        except UsageError as error:
            rows.append({"name": name, "slot": "unusable", "paper": "", "summary": error.given, "origin": catalog.origin(name)})
    return rows


def techniques_text(rows: list[dict[str, Any]]) -> str:
    """`technique_rows` by slot, in lines of at most WIDTH columns."""
    indent = " " * (4 + max(len(row["name"]) for row in rows))
    lines = []
    for slot in dict.fromkeys([*catalog.SLOTS, *(row["slot"] for row in rows)]):
        lines.append(slot)
        for row in (row for row in rows if row["slot"] == slot):
            source = row["paper"] + ("" if row["origin"] == "built in" else f" [{row['origin']}]")
            lines += [f"  {row['name']:<{len(indent) - 2}}{source}", *_wrapped(row["summary"], indent)]
    return "\n".join(lines)


def technique_dict(name: str, allow_code: bool = False) -> dict[str, Any]:
    """Everything that `longgen techniques show` shows of the technique `name`. Raises UsageError."""
    technique = catalog.technique(name, allow_code)
    alone = preset_row(preset.Preset(name=name, techniques=(technique(),)))
    return technique_row(name, technique) | {
        "header": header(technique),
        "parameters": _parameters(technique),
        "exclusive": list(technique.exclusive),
        "requires": list(technique.requires),
        "backbones": alone["backbones"],
        "unsupported": alone["refused"],
        "presets": [shipped for shipped in preset.names() if name in _techniques_of(shipped)],
        "cost_ratio": alone["cost_ratio"],
    }


def technique_text(shown: dict[str, Any], columns: int | None = None) -> str:
    """`technique_dict` for people. columns: of the terminal, which the header is fitted to; None leaves it as it is written."""
    title = f"{shown['name']} ({shown['slot']}; {shown['paper']}; {shown['origin']})"
    lines = [title, "", *_fitted(shown["header"], columns), "", "parameters"]
    settings = {f"  {key} = {row['default']}": row for key, row in shown["parameters"].items()}
    column = 2 + max(map(len, settings))
    for setting, row in settings.items():
        about = "; ".join(filter(None, (row["type"], row["description"])))
        lines += _wrapped(about, " " * column, f"{setting:<{column}}")
    lines.append("  auto: decided by the clip's length and the backbone" if any(s.endswith("auto") for s in settings) else "")
    costed = next((name for name in COSTED if name in shown["backbones"]), None)
    cost = f"{shown['cost_ratio']:.2f} times direct sampling, at {LONG} times the native length of {costed}"
    facts = {
        "decides alone": ", ".join(shown["exclusive"]) or "nothing",
        "in presets": ", ".join(shown["presets"]) or "none",
        "cost": cost if costed else f"unknown: it runs on neither {' nor '.join(COSTED)}",
        "runs on": ", ".join(shown["backbones"]) or "none",
    }
    lines += [
        *([""] if lines[-1] else []),
        *(line for key, value in facts.items() for line in _wrapped(value, " " * 15, f"{key:<15}")),
    ]
    by_reason: dict[str, list[str]] = {}
    for backbone, reason in shown["unsupported"].items():
        by_reason.setdefault(reason.replace(backbone, "the backbone"), []).append(backbone)
    for heading, (reason, backbones) in zip(itertools.chain(["not on"], itertools.repeat("")), by_reason.items()):  # noqa: B905
        lines += _wrapped(f"{', '.join(backbones)}: {reason}", " " * 15, f"{heading:<15}")
    return "\n".join(lines)


def _fitted(header: str, columns: int | None) -> list[str]:
    """The lines of a header, none longer than `columns`: paragraphs are filled anew, equations keep their lines and indents."""
    lines = header.splitlines()
    if columns is None or all(len(line) <= columns for line in lines):
        return lines
    columns, fitted = max(40, columns), []
    for is_prose, run in itertools.groupby(lines, lambda line: re.search(r"^ | {3}|^$", line) is None):
        if is_prose:
            fitted += textwrap.wrap(" ".join(run), columns, break_long_words=False, break_on_hyphens=False)
            continue
        for line in run:
            body, tag = match.groups() if (match := re.fullmatch(r"(.*?\S) {2,}(\[[^\[\]]+\])", line)) else (line, "")
            if tag:
                line = f"{body}{tag:>{max(2 + len(tag), columns - len(body))}}"
            indent = " " * (4 + len(line) - len(line.lstrip()))
            fitted += textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
    return fitted


def _techniques_of(name: str) -> set[str]:
    """The names in a built-in preset's tables, none of them imported."""
    return {table["name"] for table in preset.parse_file(preset.folder() / f"{name}.toml").get("technique", [])}


def _parameters(technique: type[Technique]) -> dict[str, dict[str, str]]:
    """By name, each parameter's type with its range, default and description; the technique's own before those of all."""
    schema = technique.model_json_schema()
    fields = sorted(technique.model_fields.items(), key=lambda field: field[0] in Technique.model_fields)
    return {
        key: {
            "type": _type(schema["properties"][key]),
            "default": "auto" if field.default is None else json.dumps(field.default),
            "description": field.description or "",
        }
        for key, field in fields
    }


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema as words: "integer, 1 to 8"."""
    if "anyOf" in schema:
        return " or ".join(_type(inner) for inner in schema["anyOf"] if inner.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        items = schema.get("prefixItems")
        return f"[{', '.join(map(_type, items))}]" if items else f"[{_type(schema['items'])}, ...]"
    bounds = {"minimum": "from {:g}", "exclusiveMinimum": "above {:g}", "maximum": "to {:g}", "exclusiveMaximum": "below {:g}"}
    limits = [text.format(schema[key]) for key, text in bounds.items() if key in schema and schema[key] != LONGEST]
    return " ".join([schema["type"], *limits])


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent if first is None else first, subsequent_indent=indent,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
