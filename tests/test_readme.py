"""README and the pages of the documentation: what they show exists, and the generated parts are what is printed today."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

import longgen
from longgen import errors, preset
from longgen.cli import app, suggest
from longgen.cli.docs import topics
from longgen.docs import generate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {**topics(), "README": ROOT / "README.md"}
LOGS = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)


def text_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The code blocks of a page in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(name), flags=re.DOTALL | re.MULTILINE)


def commands(name: str) -> list[str]:
    """Every `longgen` and `python -m` command line that a page shows, in blocks and in the text."""
    lines = [line for block in blocks(name, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:longgen|python -m) [^`]*)`", re.sub(r"\n(?!\n)", " ", LOGS.sub("", text_of(name))))
    starts = (re.search(r"(?:^|&& |\$\(|; do |^  )((?:longgen|python -m) .*)", line) for line in lines)
    return [re.split(r" (?:&&|\||>|#) | \$\(|;", start[1])[0] for start in starts if start]


def heading_anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_parts_are_up_to_date() -> None:
    stale = [path.name for path in generate.files() if generate.generated(text := path.read_text(encoding="utf-8")) != text]
    assert stale == [], "run python -m longgen.docs.generate"


def test_an_edited_part_is_found_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- generated: memory -->\nstale\n<!-- end -->\n\nafter\n", encoding="utf-8")
    monkeypatch.setattr(generate, "files", lambda: [page])
    assert generate.main(["--check"]) == 1
    assert "stale" in page.read_text(encoding="utf-8")
    assert "out of date" in capsys.readouterr().out
    assert generate.main([]) == 0
    assert "| estimate |" in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").endswith("<!-- end -->\n\nafter\n")
    assert generate.main(["--check"]) == 0


def test_every_table_is_used_and_no_other_is_asked_for() -> None:
    used = {match[1] for name in PAGES for match in generate.BLOCK.finditer(text_of(name))}
    assert {name for name in used if not name.startswith("$")} == set(generate.TABLES)
    assert sum(text_of(name).count("<!-- generated: ") for name in PAGES) == sum(
        text_of(name).count("<!-- end -->") for name in PAGES
    )


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_their_options_exist(name: str) -> None:
    for line in commands(name):
        words = shlex.split(line.replace("...", "x"))
        if words[0] == "python":
            assert importlib.util.find_spec(words[2]) is not None, line
            continue
        command = typer.main.get_command(app)
        rest = words[1:]
        if rest and suggest.is_prompt(rest[0]):
            rest = ["generate", *rest]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]  # type: ignore[attr-defined]
        assert not hasattr(command, "commands") or not rest or rest[0].startswith("-"), f"{line}: no such command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in rest if re.match(r"-{1,2}[a-z]", word)}
        assert given <= known | {"-h", "--help"}, line


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(name)) for name in PAGES) > 40
    assert any("--preset freespec -o ball.mp4" in line for line in commands("README"))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert path.is_file(), target
        assert not anchor or anchor in heading_anchors(path), target


@pytest.mark.parametrize("name", topics())
def test_a_page_has_a_title_and_a_paragraph_of_summary(name: str) -> None:
    title, summary, *rest = text_of(name).split("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert summary.endswith(".")
    assert not summary.startswith(("#", "|", "<", "`"))
    assert rest


def test_presets_in_the_text_are_presets(tmp_path: Path) -> None:
    shown = [block for name in PAGES for block in blocks(name, "toml") if block.startswith("schema")]
    assert shown
    for block in shown:
        (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
        assert preset.load(str(tmp_path / "mine.toml")).techniques


def test_the_python_example_uses_what_there_is() -> None:
    (example,) = blocks("python-api", "python")
    used = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "longgen"
    }
    assert used
    assert used <= set(longgen.__all__)


def test_exit_codes_are_those_of_the_errors() -> None:
    shown = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", text_of("errors-and-exit-codes"), flags=re.MULTILINE))
    raised = [errors.LonggenError, *errors.LonggenError.__subclasses__(), errors.Terminated, errors.HungUp]
    assert {name: int(code) for code, name in shown.items()} == {kind.__name__: kind.exit_code for kind in raised} | {
        "KeyboardInterrupt": 130
    }


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_ci_runs_the_test_command_of_readme() -> None:
    shown = re.findall(r"```bash\n(pip install [^\n]*)\n```", README)
    assert len(shown) == 2
    assert "longgen generate" in shown[0]
    assert shown[1] in (ROOT / ".ci" / "run").read_text().splitlines()
