"""Mutations of what people write: presets, schedules, files of prompts and --set, through the real command line, in process.

A trial is right where the command refuses what it is given in a message of three facts, or takes it and what it read is what an
independent reading of the file says. It is wrong with a traceback, a "defect", another exit code, a hang, or another reading.
"""

from __future__ import annotations

import codecs
import csv
import json
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image
from typer.testing import CliRunner, Result

from longgen import preset, schedule
from longgen.cli import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SLOW_S = 5.0
PRESETS = [preset.folder() / f"{name}.toml" for name in ("freespec", "freeloc", "longlive", "gen-l-video", "fifo", "keyframes")]
SAMPLE = b'\n[sample]\nframes = 161\nsteps = 4\nguidance_scale = 2.5\nnegative_prompt = "dark"\nfps = 8\nsize = [64, 64]\n'
SCHEDULES = [
    b'common = "35mm film"\nblend = "1s"\n\n[[shot]]\nprompt = "a circle"\n\n[[shot]]\nat = "4s"\nprompt = "a square"\n',
    b'[[shot]]\nprompt = """\na large red circle\nbouncing"""\n[[shot]]\nat = "2.5"\nprompt = \'a "green" one\'\n'
    b'[[shot]]\nat = "0m7s"\nprompt = "x\\u00e9"\n',
    b'[[shot]]\nprompt = "a circle"\nimage = "red.png"\n[[shot]]\nat = "4s"\nprompt = "b"\n',
]
PROMPTS = {
    ".txt": [b"# two\na red circle\n\n  a blue square  \nun caf\xc3\xa9\n", b"a cat, on a mat\nseed\n"],
    ".csv": [b'prompt,seed,frames,negative_prompt\na red circle,3,17,dark\n"a, b",,,\n"two\nlines",4,,"he said ""no"""\n',
             b"prompt;steps;size\na red circle;3;64x64\na blue one;;\n", b"prompt,image\na red circle,red.png\na blue one,\n"],
    ".jsonl": [b'{"prompt": "a red circle", "seed": 3, "size": [64, 64]}\n\n{"prompt": "caf\\u00e9", "guidance_scale": 2.5}\n'],
}  # fmt: skip
SETS = [
    b"freespec.kappa=1.5",
    b"freespec.layers=[0, 1, 2]",
    b"freespec.steps=[0.0, 0.5]",
    b"freespec.alpha=0",
    b"freespec.alpha = 1",
]
TOKENS = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x0b",
    b"\x0c",
    b"\r",
    b"\r\n",
    b"\n",
    b"\t",
    b"\x1b[31m",
    b'"',
    b"'",
    b'"""',
    b"[",
    b"]",
    b"[[",
    b"]]",
    b"{",
    b"}",
    b"[" * 500,
    b"{" * 500,
    b"a." * 500,
    b"=",
    b"==",
    b",",
    b";",
    b"#",
    b"..",
    b"/",
    b"9" * 400,
    b"9" * 5000,
    b"0x" + b"f" * 5000,
    b"1e400",
    b"-1",
    b"-0",
    b"nan",
    b"inf",
    b"-inf",
    b"true",
    b"null",
    b"NaN",
    b"1979-05-27",
    b"07:32:00",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b"\\",
    "猫".encode(),
    b"\xe2\x80\xae",
    b"name",
    b"layers = [99]",
    b"prompt",
    b'"name"',
    b"__class__",
    b"%s{0}$HOME`id`",
    b"a" * 3000,
    b"[sample]\n",
    b"[[technique]]\n",
    b"[[shot]]\n",
    b"schema = 2\n",
]
VALUES = [
    b"0",
    b"-1",
    b"1.5",
    b"true",
    b'"text"',
    b"[]",
    b"[1, [2]]",
    b"{a = 1}",
    b"1979-05-27",
    b"nan",
    b"inf",
    b"1" + b"0" * 30,
    b'""',
    b'"1s"',
    b"99999999999999999999",
    b"[0, 0]",
    b"1e-320",
    b"[" * 600 + b"]" * 600,
]


def mutated(text: bytes, chance: random.Random) -> bytes:
    """`text` after one to three changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        text = chance.choice(CHANGES)(text, chance)
    return text


def _flip(text: bytes, chance: random.Random) -> bytes:
    if not text:
        return text
    at = chance.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << chance.randrange(8)]) + text[at + 1 :]


def _delete(text: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(text) + 1)
    return text[:at] + text[at + chance.choice((1, 1, 5, 40)) :]


def _insert(text: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(text) + 1)
    return text[:at] + chance.choice(TOKENS) + text[at:]


def _line_twice(text: bytes, chance: random.Random) -> bytes:
    lines = text.split(b"\n")
    at = chance.randrange(len(lines))
    return b"\n".join([*lines[:at], lines[at], *lines[at:]])


def _other_value(text: bytes, chance: random.Random) -> bytes:
    found = [*re.finditer(rb"(?<=[=:,;\[])[ \t]*([^=:,;\[\]\n{}]+)", text)]
    if not found:
        return text
    one = chance.choice(found)
    return text[: one.start(1)] + chance.choice(VALUES) + text[one.end(1) :]


def _encoded(text: bytes, chance: random.Random) -> bytes:
    as_text = text.decode("utf-8", "replace")
    return chance.choice(
        [
            codecs.BOM_UTF8 + text,
            as_text.encode("utf-16"),
            codecs.BOM_UTF16_BE + as_text.encode("utf-16-be"),
            as_text.encode("utf-16-le"),
            as_text.encode("utf-32"),
            as_text.encode("latin-1", "replace"),
            text.replace(b"\n", b"\r\n"),
            text.replace(b"\n", b"\r"),
        ]
    )


def _swap(text: bytes, chance: random.Random) -> bytes:
    lines = text.split(b"\n")
    chance.shuffle(lines)
    return b"\n".join(lines)


CHANGES: list[Callable[[bytes, random.Random], bytes]] = [_flip, _delete, _insert, _insert, _line_twice, _other_value, _other_value,
                                                          _encoded, _swap]  # fmt: skip


class Slow(BaseException):
    """A command that takes longer than it may."""


def call(*args: str) -> Result:
    """The command, which is ended after SLOW_S."""

    def over(number: int, frame: object) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    try:
        return CliRunner().invoke(app, [*args])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refusal(done: Result) -> str:
    """What is wrong with how a command that was not done ended; empty where it said so as it should."""
    if isinstance(done.exception, Slow):
        return "slow"
    if not isinstance(done.exception, SystemExit) or "Traceback" in done.stderr or "defect" in done.stderr:
        return f"defect: {done.exception!r} {done.stderr[-300:]}"
    if done.exit_code not in (1, 2, 3):
        return f"exit code {done.exit_code}"
    if done.stdout and not _is_error(done.stdout, done.exit_code):
        return "a result besides an error"
    if ("expected: " not in done.stderr and "Usage:" not in done.stderr) or len(done.stderr) > 10_000:
        return f"no message of three facts: {done.stderr[:300]}"
    return ""


def _is_error(stdout: str, exit_code: int) -> bool:
    """Whether `stdout` is the object of an error, of `--json`, with the command's exit code."""
    try:
        told = json.loads(stdout)
    except ValueError:
        return False
    return isinstance(told, dict) and {*told} == {"error", "exit_code"} and told["exit_code"] == exit_code


def decoded(data: bytes) -> str:
    """`data` as an editor shows it. Raises UnicodeDecodeError."""
    for mark, name in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
                       (codecs.BOM_UTF16_BE, "utf-16")):  # fmt: skip
        if data.startswith(mark):
            return data.decode(name).replace("\r\n", "\n").replace("\r", "\n")
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def same(read: Any, written: Any) -> bool:
    """Whether a value that was read is the one that stands there; numbers by value, lists by their items."""
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(same, read, written))
    if isinstance(read, float) and isinstance(written, int) and not isinstance(written, bool):
        return read == float(written)
    if isinstance(written, bool) or isinstance(read, bool):
        return read is written
    return bool(read == written)


def preset_trial(path: Path, chance: random.Random) -> str | None:
    path = path.with_suffix(".toml")
    path.write_bytes(mutated(chance.choice(PRESETS).read_bytes() + chance.choice((b"", SAMPLE)), chance))
    done = call(
        *chance.choice([("presets", "show", str(path), "--json"), ("plan", "-m", "tiny", "--preset", str(path), "--json", "-q")])
    )
    if done.exit_code:
        return refusal(done)
    written, read = tomllib.loads(decoded(path.read_bytes())), preset.load(str(path))
    if preset.from_tables(tomllib.loads(read.as_toml()), "again") != read:
        return "another preset after as_toml"
    shown = read.as_dict()
    for table, own in zip(written.get("technique", []), shown.get("technique", []), strict=True):
        if not all(same(own.get(key), value) for key, value in table.items()):
            return f"read {own} of {table}"
    for key, value in written.get("sample", {}).items():
        if not isinstance(value, dict) and not same(shown["sample"].get(key), value):
            return f"read {shown['sample']} of {written['sample']}"
    return (
        None if all(shown[key] == written[key] for key in ("name", "description", "source") if key in written) else "another head"
    )


def schedule_trial(path: Path, chance: random.Random) -> str | None:
    path = path.with_suffix(".toml")
    Image.new("RGB", (8, 8), "red").save(path.with_name("red.png"))
    path.write_bytes(mutated(chance.choice(SCHEDULES), chance))
    done = call("plan", "-m", "tiny", "--frames", "161", "--schedule", str(path), "--json")
    if done.exit_code:
        return refusal(done)
    written, read = tomllib.loads(decoded(path.read_bytes())), json.loads(done.stdout)["schedule"]
    end = f", {written['common'].strip()}" if "common" in written else ""
    if [shot["prompt"] for shot in read["shots"]] != [shot["prompt"].strip() + end for shot in written["shot"]]:
        return f"read {read} of {written}"
    if [Fraction(shot["at"]) for shot in read["shots"]] != [_seconds(shot.get("at", "0s")) for shot in written["shot"]]:
        return f"read {read} of {written}"
    if Fraction(read["blend"]) != _seconds(written.get("blend", "0s")):
        return f"read {read} of {written}"
    again = path.with_name("again.toml")
    again.write_text(schedule.load(path).as_toml(), encoding="utf-8")
    return None if schedule.load(again).as_dict() == schedule.load(path).as_dict() else "another schedule after as_toml"


def _seconds(text: str) -> Fraction:
    minutes, m, rest = text.strip().lower().rstrip("s").rpartition("m")
    return 60 * Fraction(minutes if m else 0) + Fraction(rest or 0)


def prompts_trial(path: Path, chance: random.Random) -> str | None:
    suffix = chance.choice([*PROMPTS])
    path = path.with_suffix(suffix)
    Image.new("RGB", (8, 8), "red").save(path.with_name("red.png"))
    path.write_bytes(mutated(chance.choice(PROMPTS[suffix]), chance))
    done = call(
        "generate",
        "-m",
        "tiny",
        "--frames",
        "5",
        "--steps",
        "2",
        "--seed",
        "1",
        "--prompts",
        str(path),
        "--dry-run",
        "--json",
        "-q",
        "-o",
        str(path.parent / "videos"),
    )
    if done.exit_code:
        return refusal(done)
    read = [(one["prompt"], one["seed"]) for one in json.loads(done.stdout)["videos"]]
    written = _prompts_in(decoded(path.read_bytes()), suffix)
    return None if read == written else f"read {read} of {written}"


def _prompts_in(text: str, suffix: str) -> list[tuple[str, int]]:
    if suffix == ".txt":
        lines = [line.strip() for line in text.split("\n")]
        return [(line, 1) for line in lines if line and line[0] != "#"]
    if suffix == ".jsonl":
        objects = [json.loads(line) for line in text.split("\n") if line.strip()]
        return [(one["prompt"], 1 if one.get("seed") is None else one["seed"]) for one in objects]
    parted_by = ";" if text.lstrip().split("\n")[0].count(";") else ","
    titles, *rows = [
        row
        for row in csv.reader(
            text.lstrip("\n").splitlines(keepends=True)
            if "\x0b" not in text and "\x0c" not in text and "\u2028" not in text and "\x85" not in text
            else [line + "\n" for line in text.split("\n")],
            delimiter=parted_by,
            skipinitialspace=True,
        )
        if any(cell.strip() for cell in row)
    ]
    found = []
    for row in rows:
        cells = {title.strip().lower(): cell.strip() for title, cell in zip(titles, row, strict=False)}
        found.append((cells["prompt"], int(cells.get("seed") or 1)))
    return found


def set_trial(path: Path, chance: random.Random) -> str | None:
    text = mutated(chance.choice(SETS), chance).replace(b"\0", b"").decode("utf-8", "surrogateescape")
    done = call("presets", "show", "freespec", "--json", "--set", text)
    if done.exit_code:
        return refusal(done)
    name, _, value = text.partition("=")
    try:
        parsed = tomllib.loads(f"value = {value}")
        written = parsed["value"] if len(parsed) == 1 else value
    except (tomllib.TOMLDecodeError, ValueError):
        written = value.strip()
    read = json.loads(done.stdout)["technique"][0].get(name.strip().partition(".")[2])
    return None if same(read, written) else f"read {read!r} of {text!r}"


TRIALS = {"presets": preset_trial, "schedules": schedule_trial, "prompts": prompts_trial, "set": set_trial}


def run(trials: int, seed: int, folder: Path) -> dict[str, int]:
    """`trials` mutations of each kind, in files in `folder`, which then holds those that went wrong: counts of all and by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"trials": 0, "wrong": 0, "taken": 0, "slowest_ms": 0}
    for kind, trial in TRIALS.items():
        counts[f"{kind} wrong"] = 0
        for number in range(trials):
            chance = random.Random(f"{kind} {seed} {number}")
            path, began = folder / f"{kind}-{number}", time.monotonic()
            try:
                wrong = trial(path, chance)
            except (Exception, Slow) as error:
                wrong = f"{type(error).__name__}: {error}"
            counts["trials"] += 1
            counts["slowest_ms"] = max(counts["slowest_ms"], round(1000 * (time.monotonic() - began)))
            counts["taken"] += wrong is None  # a trial says nothing of what is right, and an empty text of what is refused
            if wrong:
                counts["wrong"] += 1
                counts[f"{kind} wrong"] += 1
                (folder / f"{kind}-{number}.wrong").write_text(wrong, encoding="utf-8", errors="backslashreplace")
            else:
                for left in folder.glob(f"{kind}-{number}.*"):
                    left.unlink()
    return counts
