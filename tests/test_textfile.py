"""The one reader of what people write, and the files of prompts that it reads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from longgen import prompts, textfile
from longgen.errors import LonggenError, MissingError, UsageError

TEXT = "é 猫\n\u2028a\u2029b\x85c\x0bd\x0ce\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        b"\xff\xfe" + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
    ],
)
def test_every_encoding_and_line_end_reads_the_same(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert textfile.read(tmp_path / "a.txt", "x") == TEXT
    rows, _ = prompts.read(tmp_path / "a.txt")
    assert [(row.line, row.prompt) for row in rows] == [
        (1, "é 猫"),
        (2, "a\u2029b\x85c\x0bd\x0ce"),
    ]  # strip takes U+2028 at the end


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (b"a\nb\xe9c\n", ["line 2 is not UTF-8", "byte 3 is 0xe9", "Windows-1252", "iconv"]),
        (b"a\n\0b\n", ["line 2 contains a NUL byte", "UTF-8"]),
        ("ab\ncd".encode("utf-16-le"), ["NUL byte", "UTF-16 without a byte order mark"]),
        (b"\xff\xfea\x00\x00\xd8", ["its byte order mark says UTF-16", "byte 4"]),
        (b"a" * (textfile.MOST_BYTES + 1), ["larger than 16 MB"]),
    ],
)
def test_what_is_no_text_is_said_with_its_place(data: bytes, fragments: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UsageError) as refusal:
        textfile.read(tmp_path / "a.txt", "--prompts")
    assert [fragment for fragment in fragments if fragment not in str(refusal.value)] == []


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is a folder"):
        textfile.read(tmp_path, "x")
    for name in ("nothing", "a/b", "x" * 300):
        with pytest.raises(MissingError, match="is not there"):
            textfile.read(tmp_path / name, "x")
    with pytest.raises(LonggenError, match="null"):
        textfile.read("a\0b", "x")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a\n"))
    writer.start()
    assert textfile.read(tmp_path / "pipe", "x") == "a\n"
    writer.join()


def read(folder: Path, name: str, text: str, **options: Any) -> list[dict[str, Any]]:
    """The rows of a file of prompts, as what each gives."""
    (folder / name).write_text(text, encoding="utf-8", newline="")
    rows, _ = prompts.read(folder / name, **options)
    return [row.model_dump(exclude_none=True) for row in rows]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt,Seed,Negative Prompt,size\r\n"a, ""b""\r\nc",3,dark,64x48\r\n\r\n,,,\r\nd,,,\r\n'),
        ("a.csv", 'prompt;seed;negative-prompt;size\n"a, ""b""\nc";3;dark;64*48\n\n\nd\n'),
        ("a.tsv", 'prompt\tseed\tnegative_prompt\tsize\n"a, ""b""\nc"\t3\tdark\t64X48\n\n\nd\t\t\t\n'),
    ],
)
def test_a_table_has_its_columns(name: str, text: str, tmp_path: Path) -> None:
    first, second = read(tmp_path, name, text)
    assert first == {"prompt": 'a, "b"\nc', "seed": 3, "negative_prompt": "dark", "size": (64, 48), "line": 2}
    assert second == {"prompt": "d", "line": 6}


def test_json_lines_have_theirs(tmp_path: Path) -> None:
    text = '{"prompt": "a", "seed": 0, "size": [64, 48], "duration": "2s", "steps": null}\n\n{"prompt": "b", "output": "b.mp4"}\n'
    assert read(tmp_path, "a.jsonl", text) == [
        {"prompt": "a", "seed": 0, "size": (64, 48), "duration": "2s", "line": 1},
        {"prompt": "b", "output": "b.mp4", "line": 3},
    ]


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("a.csv", "prompt,sed\na,3\n", ["line 1: 'sed': unknown column (did you mean seed?)"]),
        ("a.csv", "a red circle\na blue one\n", ["line 1: there is no column prompt"]),
        ("a.csv", "promt\na\n", ["did you mean 'promt'?"]),
        ("a.csv", "prompt,prompt\na,b\n", ["two columns are called prompt"]),
        (
            "a.csv",
            "prompt,seed\na,3.5\nb,-1\n,5\nc,d,7\n",
            ["line 2: seed = '3.5'", "line 3: seed = '-1'", "line 4: the prompt is missing", "line 5: 3 cells", "double quotes"],
        ),
        ("a.csv", "prompt,frames\na,many\n", ["line 2: frames = 'many'"]),
        ("a.csv", "prompt,size\na,big\n", ["line 2: size 'big' is not a frame size", "832x480"]),
        ("a.csv", 'prompt\n"a\n', ["line 2: unclosed quote"]),
        ("a.csv", "prompt,frames,duration\na,81,5s\n", ["line 2: frames cannot be combined with duration"]),
        ("a.csv", "prompt,output\na,x.mp4\nb,X.MP4\n", ["line 3: output = 'X.MP4' is already used in line 2"]),
        *(
            ("a.csv", f"prompt,output\na,{out}\n", ["line 2: output = ", "go into the folder of --output"])
            for out in ("../x.mp4", "/x.mp4", "a/x.mp4", "http://h/x.mp4", "C:x.mp4", "..", ".x.mp4", "file:x.mp4/y.mp4")
        ),
        ("a.csv", "prompt,output\na,x.avi\n", ["does not end in .mp4"]),
        ("a.csv", "prompt\n", ["holds no prompt"]),
        (
            "a.jsonl",
            '{"promt": "a"}\n{"prompt": 5}\n{"prompt": "\\ud800"}\n[1]\n{"prompt": "a", "prompt": "b"}\n'
            '{"prompt": "a", "seed": "3"}\n'
            '{"prompt": " "}\n{"prompt": "a", "guidance_scale": NaN}\n{"prompt": "a"\n'
            + "[" * 9999
            + '\n{"prompt":"a","seed":'
            + "9" * 5000
            + "}\n",
            [
                "line 1: 'promt': unknown column (did you mean prompt?)",
                "line 2: prompt = 5",
                "line 3: prompt contains half a character",
                "line 4: [1] is not an object",
                "line 5: 'prompt' is given twice",
                "line 6: seed = '3'",
                "line 7: prompt is empty",
                "line 8: NaN is not a number",
                "line 9: invalid JSON",
                "line 10: nested too deeply",
                "line 11: a number with too many digits",
            ],
        ),
        ("a.txt", "# x\n\nprompt,seed\na,3\n", ["line 3 is a table header", ".csv"]),
        ("a.txt", "Prompt\na\n", ["line 1 is a table header"]),
        ("a", '{"prompt": "a"}\n', ["line 1 is JSON", ".jsonl"]),
        ("a.txt", '[\n{"prompt": "a"}\n]\n', ["line 1 is JSON"]),
        ("a.json", "[]", ["cannot be read from .json files", ".jsonl"]),
        ("a.xlsx", "PK", ["save the sheet as .csv"]),
    ],
)
def test_wrong_files_of_prompts(name: str, text: str, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        read(tmp_path, name, text)
    assert [fragment for fragment in fragments if fragment not in str(refusal.value)] == []
    assert refusal.value.expected
    assert refusal.value.hint
    assert len(str(refusal.value)) < 3000


def test_a_column_that_cannot_be_honoured_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2 gives seed, which is for generate"):
        read(tmp_path, "a.csv", "prompt,seed\na,3\n", columns=("prompt",), why="which is for generate")
    assert read(tmp_path, "b.csv", "prompt,seed\na,\n", columns=("prompt",)) == [{"prompt": "a", "line": 2}]


def test_a_table_has_no_comments_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\n# old\nb\n")
    rows, notes = prompts.read(tmp_path / "a.csv")
    assert [row.prompt for row in rows] == ["# old", "b"]
    assert "line 2 begins with #" in notes[0]


def test_what_moves_a_terminal_is_written_out() -> None:
    assert textfile.visible("a\x1b[31mb\x07\x9b\u202ec\n") == "a\\x1b[31mb\\x07\\x9b\\u202ec\n"
    assert textfile.on_one_line("a\nb\x1bc " + "d" * 50, 20) == "a b\\x1bc dddddddddd…"
