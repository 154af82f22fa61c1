"""Tables and figures for papers: what users write stays text, equal inputs give equal files, formats are checked first."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from longgen import export
from longgen.errors import UsageError
from longgen.export import Data, Exports, Table

HOSTILE = r'\input{/etc/passwd} $x_1^2$ 50% & #1 ~ {a} "q" <b>|</b> `c` *d* [e](f) --option' + "\n\x1b[31m_"


def compiled(text: str) -> str:
    """What LaTeX shows of text in which every special letter is escaped; fails where one is not."""
    shown = ""
    words = {r"\textbackslash": "\\", r"\textasciitilde": "~", r"\textasciicircum": "^", r"\textless": "<", r"\textgreater": ">",
             r"\textbar": "|", r"\ldots": "…"}  # fmt: skip
    for part in re.findall(r"\\[a-z]+\{\}|\\[{}&%$#_]|\{''\}|\{[-\[\]*`'!?]\}|\$\\?[a-z]+\$|\$-\$|.", text):
        if part.endswith("{}") and part[:-2] in words:
            shown += words[part[:-2]]
        elif len(part) == 1:
            assert part not in "\\{}&%$#_^~"
            shown += part
        else:
            shown += '"' if part == "{''}" else part.strip("{}") if part[0] == "{" else part[1:]
    return shown


def test_latex_shows_what_users_wrote() -> None:
    plain = HOSTILE.replace("\n", " ").replace("\x1b", "\\x1b")
    assert compiled(export.latex(HOSTILE)) == plain
    table = Table("t", ("name", "a (%) ↓"), [("[0]", "−1.0~"), (HOSTILE, "2")], frozenset({(1, 1)}), ("50% of\n\\end{tabular}",))
    lines = export.latex_text(table).splitlines()
    assert lines[1:5] == [r"\begin{tabular}{lr}", r"\hline", r"name & a (\%) $\downarrow$ \\", r"\hline"]
    assert lines[5] == r"{[}0{]} & $-$1.0\textasciitilde{} \\"  # a bare [ after \\ would be its option
    assert lines[6].endswith(r" & \textbf{2} \\")
    assert lines[7:] == [r"\hline", r"\end{tabular}", r"% 50% of \end{tabular}"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles_without_a_package(tmp_path: Path) -> None:
    names = ["own_preset", "50%_&_#1", HOSTILE, "[0]", "*", "über “ñ” — µ"]
    table = Table("t", ("preset", "motion (%/s) ↓", "cost ×"), [(name, "−1.0 [1, 2]~", "–") for name in names], frozenset({(1, 0)}))
    body = export.latex_text(table)
    assert "LuaLaTeX" not in body
    (tmp_path / "t.tex").write_text(f"\\documentclass{{article}}\\begin{{document}}\n{body}\n\\end{{document}}", encoding="utf-8")
    made = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True)
    assert made.returncode == 0, made.stdout.decode(errors="replace")[-800:]
    assert "LuaLaTeX" in export.latex_text(Table("t", ("preset",), [("日本",)]))


def test_markdown_and_csv_keep_it_in_its_cell() -> None:
    table = Table("t", ("name", "a"), [(HOSTILE, "2")], notes=("one | two",))
    lines = export.markdown_text(table).splitlines()
    assert len(lines) == 5
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines[:3]] == [3, 3, 3]
    assert not re.search(r"(?<!\\)[`*\[<$]", lines[2])
    assert lines[4] == r"one \| two"
    rows = [("a,b", HOSTILE, None, 0.1 + 0.2, True)]
    ((head, *_), row) = csv.reader(io.StringIO(export.csv_text(Data("d", ("x", "y", "z", "n", "t"), rows)), newline=""))
    assert (head, row) == ("x", ["a,b", HOSTILE, "", "0.30000000000000004", "True"])


def test_figures_are_vectors_without_a_date_and_take_any_name(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    import matplotlib

    def figure():  # type: ignore[no-untyped-def]
        made = export.figure_size(2, 1)
        axes = made.subplots()
        axes.plot([1, 2], label=export.label("_日本 $\\frac{$ <b>&"))
        axes.legend()
        return made

    before = dict(matplotlib.rcParams)
    both = [Exports([], [], {"f": figure}).write(("svg", "pdf"), tmp_path / name) for name in ("one", "two")]
    assert [path.read_bytes() for path in both[0]] == [path.read_bytes() for path in both[1]]
    svg, pdf = (path.read_bytes() for path in both[0])
    assert b"<image" not in svg
    assert b"<text" not in svg  # letters are outlines
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"CreationDate" not in pdf
    assert dict(matplotlib.rcParams) == before
    assert not recwarn.list  # no letter was missing from the font
    assert export.label("_日本 $") == " _?? \\$"


def test_formats_are_named_again_or_with_commas() -> None:
    assert export.parse(["csv,svg", "csv", " pdf"]) == ("csv", "svg", "pdf")
    assert export.parse(None) == ()
    for wrong in ("word", "csv,", "CSV"):
        with pytest.raises(UsageError):
            export.parse([wrong])
