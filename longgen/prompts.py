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
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from longgen import textfile
from longgen.errors import UsageError, shown
from longgen.preset import Sample, SampleFields

TABLES = {".csv": ",", ".tsv": "\t"}  # the delimiter; a .csv may also use semicolons or tabs
JSON_LINES = (".jsonl", ".ndjson")
OTHERS = {  # file types that people may pass -> hint
    ".json": "write one object a line, to a .jsonl file",
    ".toml": "--schedule FILE.toml for prompts that change over time; else one prompt a line, in .txt",
    ".yaml": "write one prompt a line, to a .txt file", ".yml": "write one prompt a line, to a .txt file",
    ".xls": "save the sheet as .csv", ".xlsx": "save the sheet as .csv", ".ods": "save the sheet as .csv",
    ".doc": "save it as plain text", ".docx": "save it as plain text", ".odt": "save it as plain text",
    ".pdf": "save it as plain text", ".rtf": "save it as plain text",
}  # fmt: skip
ACCEPTED = "one prompt a line in .txt; a table in .csv or .tsv; JSON Lines in .jsonl"
SIZE = re.compile(r"([1-9][0-9]{0,4})[x*]([1-9][0-9]{0,4})")


class Row(SampleFields):
    """One video of a file of prompts: its prompt, and the fields in which it differs from the flags.

    line: of the file, from 1. output: a file name in the folder of the outputs. duration: in place of frames.
    """

    prompt: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    output: str | None = None
    duration: str | None = None
    preset: str | None = None
    line: int = 0

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        return parse_size(value, "size") if isinstance(value, str) else value

    @property
    def sample(self) -> Sample:
        """The fields of the row that concern sampling."""
        return Sample(**{name: getattr(self, name) for name in Sample.model_fields})

    def given(self) -> list[str]:
        """The columns that are set, besides the prompt."""
        return [name for name in COLUMNS[1:] if getattr(self, name) is not None]


COLUMNS = ("prompt", *(name for name in ("seed", "output", "duration", "preset", *Sample.model_fields)))


def parse_size(size: str, what: str = "--size") -> tuple[int, int]:
    """`832x480`, `832*480` or `832X480` as (width, height)."""
    match = SIZE.fullmatch(size.strip().lower())
    if match is None:
        raise UsageError(
            f"{what} {shown(size)} is not a frame size", expected="WIDTHxHEIGHT in pixels, as 832x480", hint="correct it"
        )
    return int(match[1]), int(match[2])


def checked(prompt: str, what: str) -> str:
    """`prompt`, decoded where the locale is not UTF-8. Raises UsageError, naming `what`, where it is empty or not text."""
    if not prompt.isascii():
        with contextlib.suppress(UnicodeError):  # with other locales Python passes bytes as surrogates
            prompt = os.fsencode(prompt).decode()
    wrong = textfile.flaw(prompt)
    if wrong is not None:
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
    rows, disallowed = [], dict[str, int]()
    for line, values in cells:
        for key in values:
            if key in COLUMNS and key not in columns:
                disallowed.setdefault(key, line)
        row = _row(line, values, suffix in JSON_LINES, errors)
        rows += [row] if row else []
    if disallowed:
        key, line = next(iter(disallowed.items()))
        raise UsageError(f"{name}: line {line} gives {key}, {why}", expected=", ".join(columns),
                         hint=f"leave the column {key} out")  # fmt: skip
    errors += _clashes(rows)
    if errors:
        errors.sort(key=lambda wrong: int(re.match(r"line (\d+)", wrong)[1]))  # type: ignore[index]
        rest = [f"and {len(errors) - MOST_ERRORS} more"] if len(errors) > MOST_ERRORS else []
        raise UsageError(f"{name}:\n" + "\n".join(f"    {wrong}" for wrong in [*errors[:MOST_ERRORS], *rest]),
                         expected=f"columns: {', '.join(columns)}" if suffix in (*TABLES, *JSON_LINES) else "one prompt a line",
                         hint="correct these lines")  # fmt: skip
    if not rows:
        raise UsageError(f"{name} holds no prompt", expected=ACCEPTED, hint="write some")
    return rows, _notes(path, rows)


MOST_ERRORS = 20  # listed in a message


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
    titles: list[str] | None = None
    cells = []
    while True:
        line = reader.line_num + 1
        try:
            row = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            reason = "unclosed quote" if "unexpected end" in str(error) else str(error)
            errors.append(f"line {line}: {reason}")
            break
        if not any(row):
            continue
        if titles is None:
            titles = [_column(cell) for cell in row]
            wrong = _wrong_titles(titles)
            if wrong:
                errors.append(f"line {line}: {wrong}")
                break
            continue
        if len(row) > len(titles) and any(row[len(titles) :]):
            errors.append(f"line {line}: {len(row)} cells in {len(titles)} columns; put a text with "
                          f"{'commas' if delimiter == ',' else 'tabs' if delimiter == chr(9) else 'semicolons'} in it in "
                          "double quotes")  # fmt: skip
            continue
        values = {title: cell for title, cell in zip(titles, row, strict=False) if title and cell}
        if any(cell for title, cell in zip(titles, row, strict=False) if not title):
            errors.append(f"line {line}: a cell in a column without a name")
        cells.append((line, values))
    return cells


def _wrong_titles(titles: Sequence[str]) -> str | None:
    unknown = [title for title in titles if title and title not in COLUMNS]
    if "prompt" not in titles:
        near = difflib.get_close_matches("prompt", [*titles], n=1, cutoff=0.6)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"there is no column prompt{hint}: the first line must name the columns"
    if unknown:
        return unknown_column(unknown[0])
    twice = next((title for title in titles if title and titles.count(title) > 1), None)
    return None if twice is None else f"two columns are called {twice}"


def unknown_column(name: str) -> str:
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
            errors += [f"line {number}: {unknown_column(key)}" for key in unknown]
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
    return None if name.lower().endswith(".mp4") else "does not end in .mp4"


def _clashes(rows: Iterable[Row]) -> list[str]:
    """Errors for rows that would write the same file."""
    seen: dict[str, int] = {}
    errors = []
    for row in rows:
        if row.output is None:
            continue
        same = row.output.casefold()  # macOS and Windows file systems ignore case
        if same in seen:
            errors.append(f"line {row.line}: output = {shown(row.output)} is already used in line {seen[same]}")
        seen.setdefault(same, row.line)
    return errors


def _notes(path: Path, rows: Sequence[Row]) -> list[str]:
    commented = [row.line for row in rows if row.prompt.startswith("#")]  # only possible in tables
    return [f"{path}: line {commented[0]} begins with # but is a prompt: tables have no comments"] if commented else []
