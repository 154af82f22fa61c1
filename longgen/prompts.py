"""Files of prompts, one video each per line, table row or JSON object.

    .txt, and any other name     one prompt a line; empty lines and those beginning with # are ignored
    .csv, .tsv                   a table whose first line names the columns
    .jsonl, .ndjson              JSON Lines: an object for each video

The columns and keys are the fields of `Row`; any other is an error. An empty cell or null leaves the field to the flags. Tables
have no comments.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, InstanceOf, ValidationError, field_validator

from longgen import pictures, textfile
from longgen.errors import LonggenError, UsageError, shown
from longgen.pictures import Picture
from longgen.preset import Sample, SampleFields

TABLES = {".csv": ",", ".tsv": "\t"}  # the delimiter; a .csv may also use semicolons or tabs
JSON_LINES = (".jsonl", ".ndjson")
OTHERS = {  # file types that people may pass -> hint
    ".json": "write one object a line, to a .jsonl file",
    ".toml": "--schedule FILE.toml for prompts that change over time; else one prompt a line, in .txt",
    **dict.fromkeys((".yaml", ".yml"), "write one prompt a line, to a .txt file"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "save the sheet as .csv"),
    **dict.fromkeys((".doc", ".docx", ".odt", ".pdf", ".rtf"), "save it as plain text"),
}
MOST_ERRORS = 20  # listed in a message
ACCEPTED = "one prompt a line in .txt; a table in .csv or .tsv; JSON Lines in .jsonl"
SIZE = re.compile(r"([1-9][0-9]{0,4}) *[x*×] *([1-9][0-9]{0,4})")
LINES = {"480p": "832x480", "540p": "960x544", "720p": "1280x720", "hd": "1280x720", "1080p": "1920x1088"}  # as models have them


class Row(SampleFields):
    """One video of a file of prompts: its prompt, and the fields in which it differs from the flags.

    line: of the file, from 1. output: a file name in the folder of the outputs. duration: in place of frames. image, last_image:
    names of files, relative to the folder of the file of prompts, until `read` reads them.
    """

    prompt: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    output: str | None = None
    duration: str | None = None
    preset: str | None = None
    image: str | InstanceOf[Picture] | None = None
    last_image: str | InstanceOf[Picture] | None = None
    line: int = 0

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        return parse_size(value, "size") if isinstance(value, str) else value

    @field_validator("image", "last_image", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, str | Picture):
            raise ValueError("not the name of a file")
        return value

    @property
    def sample(self) -> Sample:
        """The fields of the row that concern sampling."""
        return Sample(**{name: getattr(self, name) for name in Sample.model_fields})


IMAGES = ("image", "last_image")
COLUMNS = ("prompt", "seed", "output", "duration", "preset", *IMAGES, *Sample.model_fields)

ONE_MODEL = "is the same for all rows, which share one loaded model: give --{0}, and run the command once for each"
NO_COLUMNS = {  # what people may expect to be a column -> why it is none
    **dict.fromkeys(
        ("backbone", "model", "dtype", "device", "offload", "lora", "quantize", "attention", "cache", "compile"), ONE_MODEL
    ),
    "schedule": "is for one video: --schedule FILE.toml",
    "continue": "is for one video: --continue VIDEO",
    "seeds": "are several: write one seed a row, in the column seed, or give --seeds",
    **dict.fromkeys(
        ("set", "layers", "probe"), "is the same for all rows: give --{0}, or name a preset file of your own in preset"
    ),
}


def parse_size(size: str, what: str = "--size") -> tuple[int, int]:
    """`832x480`, `832*480`, `832×480` or `832X480` as (width, height)."""
    match = SIZE.fullmatch(size.strip().lower())
    if match is None:
        meant = LINES.get(size.strip().lower())
        hint = f"{what} {meant}, or {'x'.join(reversed(meant.split('x')))} upright" if meant else "correct it"
        raise UsageError(f"{what} {shown(size)} is not a frame size", "WIDTHxHEIGHT in pixels, as 832x480", hint)
    return int(match[1]), int(match[2])


def checked(prompt: str, what: str) -> str:
    """`prompt`, decoded where the locale is not UTF-8. Raises UsageError, naming `what`, where it is empty or not text."""
    if not prompt.isascii():
        with contextlib.suppress(UnicodeError):  # with other locales Python passes bytes as surrogates
            prompt = os.fsencode(prompt).decode()
    if wrong := textfile.flaw(prompt):
        raise UsageError(f"{what} {wrong}", expected="a text that says what the video shows", hint="write one")
    return prompt


def read(path: Path, columns: Collection[str] = COLUMNS, why: str = "") -> tuple[list[Row], list[str]]:
    """The rows of the file `path`, and notes on them. columns: those that are allowed; why: the reason that others are not.

    Raises UsageError with every error of the file, each with its line, and as `textfile.read` does.
    """
    name, suffix = f"--prompts {path}", path.suffix.lower()
    if suffix in OTHERS:
        raise UsageError(f"{name}: prompts cannot be read from {suffix} files", expected=ACCEPTED, hint=OTHERS[suffix])
    text = textfile.read(path, "--prompts")
    errors: list[str] = []
    if suffix in TABLES:
        cells = _table(text, TABLES[suffix], errors)
    elif suffix in JSON_LINES:
        cells = _objects(text, errors)
    else:
        cells = _lines(text)
        _refuse_other_format(name, cells)
    for line, values in cells:
        for key in values:
            if key in COLUMNS and key not in columns:
                raise UsageError(f"{name}: line {line} gives {key}, {why}", expected=", ".join(columns),
                                 hint=f"leave the column {key} out")  # fmt: skip
    parsed = [_row(line, values, suffix in JSON_LINES, errors) for line, values in cells]
    seen: dict[tuple[str, Path], Picture | LonggenError] = {}
    rows = [_with_pictures(row, path.parent, seen, errors) for row in parsed if row is not None]
    first_lines: dict[str, int] = {}
    for row in rows:
        if row.output is not None:  # macOS and Windows file systems ignore case
            first = first_lines.setdefault(row.output.casefold(), row.line)
            errors += [f"line {row.line}: output = {shown(row.output)} is already used in line {first}"] * (first != row.line)
    if errors:
        errors.sort(key=lambda wrong: int(re.match(r"line (\d+)", wrong)[1]))  # type: ignore[index]
        rest = [f"and {len(errors) - MOST_ERRORS} more"] if len(errors) > MOST_ERRORS else []
        raise UsageError(f"{name}:\n" + "\n".join(f"    {wrong}" for wrong in [*errors[:MOST_ERRORS], *rest]),
                         expected=f"columns: {', '.join(columns)}" if suffix in (*TABLES, *JSON_LINES) else "one prompt a line",
                         hint="correct these lines")  # fmt: skip
    if not rows:
        raise UsageError(f"{name} holds no prompt", expected=ACCEPTED, hint="write some")
    commented = [row.line for row in rows if row.prompt.startswith("#")]  # only possible in tables
    return rows, [f"{path}: line {line} begins with # but is a prompt: tables have no comments" for line in commented[:1]]


def _with_pictures(row: Row, folder: Path, seen: dict[tuple[str, Path], Picture | LonggenError], errors: list[str]) -> Row:
    """`row` with its pictures read; adds to `errors`. seen: what became of the files of earlier rows."""
    for column in IMAGES:
        name = getattr(row, column)
        if name is not None:
            file = folder / name
            if (column, file) not in seen:
                try:
                    seen[column, file] = pictures.read(file, column)
                except LonggenError as error:
                    seen[column, file] = error
            found = seen[column, file]
            if isinstance(found, LonggenError):
                errors.append(f"line {row.line}: {found.given}; expected: {found.expected}")
            else:
                row = row.model_copy(update={column: found})
    return row


def _lines(text: str) -> list[tuple[int, dict[str, Any]]]:
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, {"prompt": line}) for number, line in stripped if line and not line.startswith("#")]


def _refuse_other_format(name: str, cells: list[tuple[int, dict[str, Any]]]) -> None:
    """Raises UsageError where the lines look like a table or JSON, rather than prompts."""
    if not cells:
        return
    line, first = cells[0][0], cells[0][1]["prompt"]
    named = [_column(cell.strip('"')) for cell in re.split("[,;\t]", first)]
    if "prompt" in named and all(column in COLUMNS for column in named):
        raise UsageError(f"{name}: line {line} is a table header, not a prompt: {shown(first)}", expected=ACCEPTED,
                         hint="rename the file to .csv, or remove that line")  # fmt: skip
    if first.startswith(("{", "[")) and re.search(r'"\s*prompt\s*"\s*:|^\[\s*("|\{|$)|^\{\s*("|$)', first):
        raise UsageError(f"{name}: line {line} is JSON, not a prompt: {shown(first)}", expected=ACCEPTED,
                         hint="rename the file to .jsonl, with one object a line")  # fmt: skip


def _column(title: str) -> str:
    """`Negative Prompt` as negative_prompt."""
    return re.sub(r"[\s-]+", "_", title.strip().lower())


def _table(text: str, delimiter: str, errors: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Cells by column, with the line where each row begins."""
    head = next((line for line in text.split("\n") if line.strip()), "")
    if delimiter == ",":
        delimiter = max(",;\t", key=lambda character: re.sub('"[^"]*"', "", head).count(character))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    titles: list[str] = []
    cells, line = [], 1
    try:
        for row in ([cell.strip() for cell in record] for record in reader):
            first, line = line, reader.line_num + 1
            named, rest = [*zip(titles, row, strict=False)], row[len(titles) :]
            if not any(row):
                continue
            if not titles:
                titles = [_column(cell) for cell in row]
                if wrong := _wrong_titles(titles):
                    errors.append(f"line {first}: {wrong}")
                    break
            elif any(rest):
                separator = {",": "commas", "\t": "tabs", ";": "semicolons"}[delimiter]
                errors.append(f"line {first}: {len(row)} cells in {len(titles)} columns; put a text with {separator} in it in "
                              "double quotes")  # fmt: skip
            else:
                if any(cell for title, cell in named if not title):
                    errors.append(f"line {first}: a cell in a column without a name")
                cells.append((first, {title: cell for title, cell in named if title and cell}))
    except csv.Error as error:
        errors.append(f"line {line}: {'unclosed quote' if 'unexpected end' in str(error) else error}")
    return cells


def _wrong_titles(titles: list[str]) -> str | None:
    if "prompt" not in titles:
        near = difflib.get_close_matches("prompt", titles, n=1, cutoff=0.6)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"there is no column prompt{hint}: the first line must name the columns"
    if unknown := [title for title in titles if title and title not in COLUMNS]:
        return _unknown_column(unknown[0])
    repeated = [title for title in titles if title and titles.count(title) > 1]
    return f"two columns are called {repeated[0]}" if repeated else None


def _unknown_column(name: str) -> str:
    if name in NO_COLUMNS:
        return f"{name} is no column: it {NO_COLUMNS[name].format('backbone' if name == 'model' else name)}"
    near = difflib.get_close_matches(name[:100], COLUMNS, n=1, cutoff=0.5)
    return f"{shown(name)}: unknown column{f' (did you mean {near[0]}?)' if near else ''}"


def _objects(text: str, errors: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """The objects of JSON Lines, each with its line."""
    cells = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
        except RecursionError:
            errors.append(f"line {number}: nested too deeply")
        except json.JSONDecodeError as error:
            errors.append(f"line {number}: invalid JSON: {error.msg} at column {error.colno}")
        except ValueError as error:  # of the two hooks, or an integer of thousands of digits
            reason = "a number with too many digits" if "digits" in str(error) else str(error)
            errors.append(f"line {number}: {reason}")
        else:
            if not isinstance(values, dict):
                errors.append(f'line {number}: {shown(values)} is not an object; write {{"prompt": ...}}')
                continue
            unknown = [key for key in values if key not in COLUMNS]
            errors += [f"line {number}: {_unknown_column(key)}" for key in unknown]
            cells.append((number, {key: value for key, value in values.items() if value is not None and key not in unknown}))
    return cells


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(shown(key) for key in keys if keys.count(key) > 1)} is given twice")
    return values


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _row(line: int, values: dict[str, Any], typed: bool, errors: list[str]) -> Row | None:
    """The row of `values`, or None after adding to `errors`. typed: whether values have JSON types, rather than being text."""
    prompt = values.get("prompt", "")
    if isinstance(prompt, str) and (wrong := textfile.flaw(prompt)):
        errors.append(f"line {line}: prompt {wrong}" if "prompt" in values else f"line {line}: the prompt is missing")
        return None
    for key, value in values.items():
        if isinstance(value, str) and key != "prompt" and value.strip() and (wrong := textfile.flaw(value)):
            errors.append(f"line {line}: {key} {wrong}")
            return None
    try:
        row = Row.model_validate(values | {"line": line}) if typed else Row.model_validate_strings(values | {"line": str(line)})
    except UsageError as error:
        errors.append(f"line {line}: {error.given}; expected: {error.expected}")
        return None
    except ValidationError as error:
        for detail in error.errors():
            message = detail["msg"].removeprefix("Value error, ")
            errors.append(f"line {line}: {detail['loc'][0]} = {shown(detail['input'])}: {message[0].lower()}{message[1:]}")
        return None
    if row.frames is not None and row.duration is not None:
        errors.append(f"line {line}: frames cannot be combined with duration")
    if row.output is not None and (wrong := _wrong_output(row.output)):
        errors.append(f"line {line}: output = {shown(row.output)} {wrong}")
    return row


def _wrong_output(name: str) -> str | None:
    """Why `name` cannot be a file name in the output folder; None where it can."""
    if re.search(r"[/\\]", name) or name.startswith(".") or re.match(r"[A-Za-z]:", name):
        return "is not a plain file name: videos of a file of prompts go into the folder of --output"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "contains a control character"
    return None if name.lower().endswith((".mp4", ".webm", ".gif")) else "does not end in .mp4, .webm or .gif"
