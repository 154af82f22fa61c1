"""Reads text files that people write (prompts, presets, schedules) and makes text safe to print.

A byte order mark selects the Unicode encoding (UTF-8, UTF-16 or UTF-32); the default is UTF-8. Lines end in LF, CR LF or CR, which
become LF. Nothing else ends a line: not U+2028, U+2029, NEL, a vertical tab or a form feed, at which str.splitlines splits.
"""

from __future__ import annotations

import codecs
import errno
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longgen.errors import LonggenError, MissingError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 16_000_000  # of a file; the longest film script has half a million
STDIN = "-"
DEEPEST = 20  # nesting of tables and lists; longgen's own files have four levels at most
BIDIRECTIONAL = {0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)}  # they reorder a line
MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def read(path: str | Path, what: str, unread: str = "cannot be read") -> str:
    """The text of the file `path`, or of stdin for `-`. Messages call it `what`, and say `unread` if it is not text.

    Raises MissingError if there is no such file, UsageError if it is not text, LonggenError if it cannot be read.
    """
    name = f"{what} {path}"
    try:
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, AttributeError) as error:  # a NUL in the name; a stdin that is closed
        code, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
        if code in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            long = ": the name is too long" * (code == errno.ENAMETOOLONG)
            raise MissingError(f"{name} is not there{long}", "a text file, or - for stdin", "check the path") from None
        if code == errno.EISDIR:
            raise UsageError(f"{name} cannot be read: it is a folder", "a text file", "name a file in it") from None
        raise LonggenError(f"{name} cannot be read: {reason}", "a readable file", "check its permissions") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{name} is larger than {MOST_BYTES // 1_000_000} MB", expected="a text file", hint="check the path")
    mark, encoding = next(((mark, encoding) for mark, encoding in MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(f"{name} {unread}", body, encoding, error.start, len(mark)) from None
    if "\0" in text:
        place = text.index("\0")
        wide = "; it may be UTF-16 without a byte order mark" if body[:200].count(0) > len(body[:200]) // 4 else ""
        raise UsageError(f"{name} {unread}: line {text.count(chr(10), 0, place) + 1} contains a NUL byte{wide}",
                         expected="a text file in UTF-8, or in UTF-16 with a byte order mark",
                         hint="save it as UTF-8, or check that it is a text file")  # fmt: skip
    return re.sub("\r\n?", "\n", text)


def _undecodable(unread: str, body: bytes, encoding: str, at: int, before: int) -> UsageError:
    """The error for `body`, whose byte `at` is invalid in `encoding`."""
    if encoding != "utf-8":
        return UsageError(f"{unread}: its byte order mark says {encoding.upper()[:6]}, but byte {at + before} is invalid",
                          expected="text in UTF-8, or in UTF-16 with a byte order mark", hint="save it as UTF-8")  # fmt: skip
    line = body.count(b"\n", 0, at) + 1
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\v" for byte in body[:1000])
    old = "" if controls else "; it may be Windows-1252, Latin-1 or another legacy encoding"
    hint = "check that it is a text file" if controls else "save it as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
    return UsageError(f"{unread}: line {line} is not UTF-8 (byte {at + before} is 0x{body[at]:02x}){old}",
                      expected="a text file in UTF-8, or in UTF-16 with a byte order mark", hint=hint)  # fmt: skip


def toml(text: str, name: str) -> dict[str, Any]:
    """Parses the text of a TOML file. Raises UsageError, which calls it `name`."""

    def invalid(reason: str) -> UsageError:
        return UsageError(f"{name} is not TOML: {reason}", expected="TOML 1.0 in UTF-8", hint="correct the line named")

    tables = parsed(lambda: tomllib.loads(text if text.endswith("\n") else text + "\n"), text, invalid)
    level, depth = [tables], 0
    while level:  # a.b.c = 1 nests without brackets, and later code is recursive
        values = [value for table in level for value in (table.values() if isinstance(table, dict) else table)]
        level = [value for value in values if isinstance(value, dict | list)]
        depth += 1
        if depth > DEEPEST:
            raise invalid("it is nested too deeply")
    return tables


def toml_value(value: Any) -> str:
    """A number, boolean, string or list of these as TOML: JSON, plus the escapes that TOML and terminals require."""
    return "".join(f"\\u{ord(c):04x}" if visible(c) != c else c for c in json.dumps(value, ensure_ascii=False))


def parsed(parse: Callable[[], Any], text: str, invalid: Callable[[str], LonggenError]) -> Any:
    """The result of `parse`, which reads `text`; errors of its library are raised as `invalid` with the reason."""
    try:
        return parse()
    except RecursionError:
        raise invalid("it is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:  # for an unclosed bracket or quote it names no line
        last = f"the end, line {text.rstrip().count(chr(10)) + 1}"
        raise invalid(str(error).replace("end of document", last)) from None
    except ValueError as error:  # an integer of thousands of digits, which Python rejects
        long = re.search(r"[0-9_]{1000,}", text)
        where = f", line {text.count(chr(10), 0, long.start()) + 1}" if long else ""
        raise invalid(f"a number of too many digits{where}" if long else str(error)) from None


def flaw(prompt: str) -> str | None:
    """Why `prompt` is invalid, phrased to follow it; None if it is fine."""
    if not prompt.strip():
        return "is empty"
    if "\0" in prompt:
        return "contains a NUL character"
    surrogate = next((character for character in prompt if "\ud800" <= character <= "\udfff"), None)
    if surrogate is None:
        return None
    if "\udc80" <= surrogate <= "\udcff":  # how Python represents an undecodable byte of an argument
        return f"contains the byte 0x{ord(surrogate) - 0xDC00:02x}, which is not valid UTF-8"
    return f"contains half a character (U+{ord(surrogate):04X})"


def visible(text: str) -> str:
    """`text` with control characters escaped, so that it cannot move the cursor of a terminal or change its colours."""
    return "".join(_escaped(c) if c not in "\n\t" and _is_control(ord(c)) else c for c in text)


def on_one_line(text: str, most: int = 0) -> str:
    """`text` on one line with control characters escaped, cut to `most` characters if that is given."""
    line = visible(" ".join(text[: 4 * most or None].split()))
    return line if not most or len(line) <= most else line[: most - 1].rstrip() + "…"


def _is_control(code: int) -> bool:
    return code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000 or code in BIDIRECTIONAL


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
