"""The one reader of text that people wrote: prompts, presets and schedules, from whatever editor, as lines that end in a newline.

A byte order mark says which Unicode encoding it is (UTF-8, UTF-16 or UTF-32); without one it is UTF-8. Lines end in LF, CR LF or
CR. Nothing else ends a line: not U+2028, U+2029, NEL, a vertical tab or a form feed, at which str.splitlines cuts.
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
DEEPEST = 20  # tables and lists within each other; what longgen reads has four at most
BIDIRECTIONAL = {0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # they reorder a terminal's line
MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def read(path: str | Path, what: str, unread: str = "cannot be read") -> str:
    """The text in the file `path`, or on stdin where it is `-`; messages call it `what`, and say `unread` where it is no text.

    Raises MissingError where it is not there, UsageError where it is no text, LonggenError where it may not be read.
    """
    name = f"{what} {path}"
    try:
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{name} is not there", expected="a text file, or - for stdin", hint="check the path") from None
    except IsADirectoryError:
        raise UsageError(f"{name} cannot be read: it is a folder", expected="a text file", hint="name a file in it") from None
    except (OSError, ValueError, AttributeError) as error:  # a NUL in the name; a stdin that is closed
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise MissingError(f"{name} is not there: no file has so long a name", expected="a text file",
                               hint="check the path") from None  # fmt: skip
        raise LonggenError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}",
            expected="a file that may be read",
            hint="check its permissions",
        ) from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{name} is larger than {MOST_BYTES // 1_000_000} MB", expected="a text file", hint="check that it is one")
    mark, encoding = next(((mark, encoding) for mark, encoding in MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(f"{name} {unread}", body, encoding, error.start, len(mark)) from None
    if "\0" in text:
        place = text.index("\0")
        wide = "; it may be UTF-16 without a byte order mark" if body[:200].count(0) > len(body[:200]) // 4 else ""
        raise UsageError(f"{name} {unread}: line {text.count(chr(10), 0, place) + 1} holds a NUL byte{wide}",
                         expected="a text file in UTF-8, or in UTF-16 with its mark",
                         hint="save it as UTF-8, or check that it is a text file")  # fmt: skip
    return re.sub("\r\n?", "\n", text)


def _undecodable(unread: str, body: bytes, encoding: str, at: int, before: int) -> UsageError:
    """What is wrong with `body` from byte `at` on, which `encoding` does not allow."""
    if encoding != "utf-8":
        return UsageError(f"{unread}: by its mark it is {encoding.upper()[:6]}, and byte {at + before} is not",
                          expected="a text file in UTF-8, or in UTF-16 with its mark", hint="save it as UTF-8")  # fmt: skip
    line = body.count(b"\n", 0, at) + 1
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\v" for byte in body[:1000])
    old = "" if controls else "; it may be Windows-1252 or Latin-1, or another old encoding of its country"
    hint = "check that it is a text file" if controls else "save it as UTF-8, as with iconv -f WINDOWS-1252 -t UTF-8"
    return UsageError(f"{unread}: line {line} is not UTF-8 (byte {at + before} is 0x{body[at]:02x}){old}",
                      expected="a text file in UTF-8, or in UTF-16 with its mark", hint=hint)  # fmt: skip


def toml(text: str, name: str) -> dict[str, Any]:
    """The tables of a TOML file that `read` has read. Raises UsageError that calls it `name` where it is not TOML."""

    def refused(reason: str) -> UsageError:
        return UsageError(f"{name} is not TOML: {reason}", expected="TOML 1.0 in UTF-8", hint="mend the line named")

    tables = parsed(lambda: tomllib.loads(text if text.endswith("\n") else text + "\n"), text, refused)
    level, depth = [tables], 0
    while level:  # a.b.c = 1 nests without brackets, and what walks the tables afterwards does so by recursion
        level = [
            value for one in level for value in (one.values() if isinstance(one, dict) else one) if isinstance(value, dict | list)
        ]
        depth += 1
        if depth > DEEPEST:
            raise refused("it is nested too deeply")
    return tables


def toml_value(value: Any) -> str:
    """A number, truth value, string or list of these in TOML: JSON, but for what TOML and terminals want escaped."""
    return "".join(
        f"\\u{ord(character):04x}" if visible(character) != character else character
        for character in json.dumps(value, ensure_ascii=False)
    )


def parsed(parse: Callable[[], Any], text: str, refused: Callable[[str], LonggenError]) -> Any:
    """What `parse` makes of `text`; what its library raises for a text that is wrong comes as `refused` with the reason."""
    try:
        return parse()
    except RecursionError:
        raise refused("it is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:  # of what is never closed it names no line
        last = f"the end, line {text.rstrip().count(chr(10)) + 1}"
        raise refused(str(error).replace("end of document", last)) from None
    except ValueError as error:  # an integer of thousands of digits, which Python does not read
        long = re.search(r"[0-9_]{1000,}", text)
        where = f", line {text.count(chr(10), 0, long.start()) + 1}" if long else ""
        raise refused(f"a number of too many digits{where}" if long else str(error)) from None


def flaw(prompt: str) -> str | None:
    """What makes `prompt` none, in words that follow it: nothing in it, or what is no text."""
    if not prompt.strip():
        return "is empty"
    if "\0" in prompt:
        return "holds a NUL character"
    broken = next((character for character in prompt if "\ud800" <= character <= "\udfff"), None)
    if broken is None:
        return None
    if "\udc80" <= broken <= "\udcff":  # how Python hands over a byte of an argument that is not in the terminal's encoding
        return f"holds the byte 0x{ord(broken) - 0xDC00:02x}, which is not text in UTF-8"
    return f"holds half a character (U+{ord(broken):04X})"


def visible(text: str) -> str:
    """`text` with its control characters written out, so that it cannot move a terminal's cursor or change its colours."""
    return "".join(character if character in "\n\t" or not _moves(character) else _written(character) for character in text)


def on_one_line(text: str, most: int = 0) -> str:
    """`text` visible and on one line, of at most `most` characters where that is given."""
    line = visible(" ".join(text[: 4 * most or None].split()))
    return line if not most or len(line) <= most else line[: most - 1].rstrip() + "…"


def _moves(character: str) -> bool:
    code = ord(character)
    return code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000 or code in BIDIRECTIONAL


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
