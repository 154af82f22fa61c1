"""Presets: closed at every level, read back equal, all errors of a file in one message."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from longgen import catalog, planner, preset, resolve, textfile
from longgen.backbones.registry import SPECS
from longgen.cli import app
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.plan import Plan

FREESPEC = '[[technique]]\nname = "freespec"\n'
WINDOW = '[[technique]]\nname = "window"\n'


def load(folder: Path, text: str, *overrides: str) -> preset.Preset:
    """The preset in `text`, by way of a file."""
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return preset.load(str(path), overrides)


@pytest.mark.parametrize("name", preset.names())
def test_shipped_presets_read_back_equal(name: str, tmp_path: Path) -> None:
    shipped = preset.load(name)
    assert load(tmp_path, shipped.as_toml()) == shipped
    assert preset.from_tables(shipped.as_dict(), origin=name) == shipped


@pytest.mark.parametrize("name", catalog.TECHNIQUES)
def test_as_toml_writes_every_parameter_that_has_a_value(name: str, tmp_path: Path) -> None:
    written = load(tmp_path, f'[[technique]]\nname = "{name}"\nlayers = [0, 2]\nsteps = [0.25, 0.75]\n')
    (technique,) = written.techniques
    text = written.as_toml()
    assert all(f"\n{key} = " in text for key, value in technique if value is not None)
    assert load(tmp_path, text) == written


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example('"quotes" \\ backslash\ttab\nnewline \x00 \x7f \u2028')
@example("a café")
@example("\U0001f600")  # outside the plane of four hexadecimal digits
def test_any_text_survives_toml(text: str) -> None:
    made = preset.from_tables({"name": text, "description": text, "sample": {"negative_prompt": text}}, origin="test")
    assert preset.from_tables(textfile.toml(made.as_toml(), "test"), origin="test") == made


@pytest.mark.parametrize("number", [1e-7, 1e22, 0.1, 0.0, 3.0])
def test_numbers_survive_toml(number: float, tmp_path: Path) -> None:
    made = load(tmp_path, f"{FREESPEC}kappa = {number!r}\n")
    assert made.techniques[0].kappa == number
    assert load(tmp_path, made.as_toml()) == made


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("nmae = 'x'", ["nmae: unknown key", "description"]),
        ("techniques = ['window']", ["techniques: unknown key", "[[technique]]"]),
        ("layers = [0]", ["layers: unknown key"]),
        ("[samples]\nsteps = 2", ["samples: unknown key", "sample"]),
        ("[sample]\nstep = 2", ["sample.step: unknown key", "steps"]),
        ("[sample]\nseed = 2", ["sample.seed: unknown key"]),
        (WINDOW + "frame = 3", ["window.frame: unknown key", "frames, edge"]),
        (WINDOW + "slot = 'noise'", ["window.slot: unknown key"]),
        ("[[technique]]\nname = 'windwo'", ["'windwo'", "did you mean window"]),
        ("[[technique]]\nframes = 3", ["technique[0]", "has no name", "window"]),
        ("[[technique]]\nname = 3", ["technique[0]", "has no name"]),
        ("[technique]\nname = 'window'", ["[[technique]]"]),
        ("technique = 'window'", ["[[technique]]"]),
        ("technique = ['window']", ["[[technique]]"]),
        ("sample = 5", ["sample = 5"]),
        ("name = 5", ["name = 5", "string"]),
        ("name = 2020-01-01", ["name", "string"]),
        ("schema = 2", ["schema: 2", "schema 1"]),
        ("schema = '1'", ["schema: '1'", "schema 1"]),
        ("[sample]\nsize = [64]", ["sample.size", "[64]"]),
        ("[sample]\nsize = [0, 64]", ["sample.size", "= 0"]),
        ("[sample]\nsteps = 0", ["sample.steps = 0"]),
        ("[sample]\nsteps = 2.5", ["sample.steps = 2.5", "integer"]),
        ("[sample]\nfps = 1000", ["sample.fps = 1000", "240"]),
        (WINDOW + "edge = 'cut'", ["window.edge = 'cut'", "shift", "clip"]),
        (WINDOW + "frames = 0", ["window.frames = 0", "1"]),
        (WINDOW + "layers = 'some'", ["window.layers = 'some'", "all"]),
        (WINDOW + "layers = [-1]", ["window.layers", "-1"]),
        (WINDOW + "steps = [0.5, 0.5]", ["window", "[0.5, 0.5]", "empty range"]),
        (WINDOW + "steps = [0.0, 2.0]", ["window.steps", "2.0"]),
        (FREESPEC + "alpha = 1.5", ["freespec.alpha = 1.5", "1"]),
        (FREESPEC + "alpha = nan", ["freespec.alpha"]),
        (FREESPEC + "kappa = inf", ["freespec.kappa"]),
        (FREESPEC + "kappa = 'hot'", ["freespec.kappa = 'hot'", "number"]),
    ],
)
def test_what_a_preset_may_not_hold(text: str, fragments: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        load(tmp_path, text)
    assert all(fragment in str(refusal.value) for fragment in [*fragments, "own.toml"])


def test_all_errors_of_a_file_come_in_one_message(tmp_path: Path) -> None:
    text = f"schema = 9\nnmae = 'x'\n[sample]\nsteps = 0\nstps = 1\n{WINDOW}frame = 1\nedge = 'cut'\n{FREESPEC}alpha = 2\n"
    text += "[[technique]]\nname = 'windwo'\n[[technique]]\nx = 1\n"
    with pytest.raises(UsageError) as refusal:
        load(tmp_path, text)
    places = ["schema", "nmae", "sample.steps", "sample.stps", "window.frame", "window.edge", "freespec.alpha",
              "technique[2]", "technique[3]"]  # fmt: skip
    lines = refusal.value.given.splitlines()[1:]
    assert sorted(line.strip().split(":")[0].split(" ")[0] for line in lines) == sorted(places)


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "name = ",
        "name = 'a'\nname = 'b'",
        "[sample]\n[sample]",
        "name = 'a",
        "x = [1,,2]",
        "\x00",
        "a = 1\na = 2",
        f"x = {'[' * 500}{']' * 500}",
        f"x = {'9' * 5000}",
        ".".join("abc" * 500) + " = 1",
    ],
)
def test_what_is_no_toml_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not TOML"):
        load(tmp_path, text)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"is not TOML: line 1 is not UTF-8 \(byte 8 is 0xff\)"):
        preset.load(str(path))


@pytest.mark.parametrize(
    ("name", "kind", "fragment"),
    [
        ("freespce", UsageError, "did you mean freespec"),
        ("", UsageError, "freespec"),
        ("..", UsageError, "freespec"),
        ("nothing.toml", MissingError, "nothing.toml"),
        ("no/folder", MissingError, "no/folder"),
        ("../presets/freespec", MissingError, "../presets/freespec"),
    ],
)
def test_a_name_that_is_no_preset(name: str, kind: type[LonggenError], fragment: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as refusal:
        preset.load(name)
    assert fragment in str(refusal.value)
    assert refusal.value.expected
    assert refusal.value.hint


def test_a_file_without_a_name_is_called_by_its_path(tmp_path: Path) -> None:
    assert load(tmp_path, "").name == str(tmp_path / "own.toml")


def test_a_preset_is_data_and_nothing_in_it_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    odd = f"__import__('pathlib').Path('{trap}').touch() $(touch {trap}) `touch {trap}` ${{HOME}} {{0}} %s ../../x"
    made = load(tmp_path, f'name = "{odd}"\ndescription = "{odd}"\n[sample]\nnegative_prompt = "{odd}"\n')
    assert (made.name, made.description, made.sample.negative_prompt) == (odd, odd, odd)
    assert not trap.exists()


@pytest.mark.parametrize("value", ["longgen.fusion.freespec:FreeSpec", "os:system", "builtins.eval", "../context/window"])
def test_a_preset_alone_names_registered_techniques_only(value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is Python code" if ":" in value else "no technique is called"):
        load(tmp_path, f"[[technique]]\nname = '{value}'")


def test_presets_and_techniques_are_frozen() -> None:
    shipped = preset.load("freespec")
    with pytest.raises(ValueError, match="frozen"):
        shipped.name = "other"
    with pytest.raises(ValueError, match="frozen"):
        shipped.sample.steps = 3
    with pytest.raises(ValueError, match="frozen"):
        shipped.techniques[0].kappa = 0.0


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("freespec.window=9", "window", 9),
        ("freespec.kappa=0.5", "kappa", 0.5),
        ("freespec.kappa=2", "kappa", 2.0),
        ("freespec.kappa=1e-3", "kappa", 1e-3),
        (" freespec.kappa = 2 ", "kappa", 2.0),
        ("freespec.basis=global", "basis", "global"),
        ("freespec.basis='global'", "basis", "global"),
        ('freespec.basis="global"', "basis", "global"),
        ("freespec.layers=[0, 2]", "layers", (0, 2)),
        ("freespec.layers=all", "layers", "all"),
        ("freespec.steps=[0,0.5]", "steps", (0.0, 0.5)),
    ],
)
def test_set_changes_one_parameter(override: str, key: str, value: object) -> None:
    (plain,), (changed,) = preset.load("freespec").techniques, preset.load("freespec", [override]).techniques
    assert getattr(changed, key) == value
    assert changed == plain.model_copy(update={key: value})


def test_sampling_has_flags_and_no_set() -> None:
    with pytest.raises(UsageError, match="no technique is called 'sample'"):
        preset.load("direct", ["sample.steps=8"])


def test_a_parameter_is_set_once() -> None:
    with pytest.raises(UsageError, match=r"'freespec\.kappa' is given twice"):
        preset.load("freespec", ["freespec.kappa=1", "freespec.alpha=0", "freespec.kappa=2"])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("", ["technique.key=value"]),
        ("freespec", ["technique.key=value"]),
        ("freespec.kappa", ["technique.key=value"]),
        ("kappa=1", ["technique.key=value"]),
        (".kappa=1", ["technique.key=value"]),
        ("freespec.=1", ["technique.key=value"]),
        ("=1", ["technique.key=value"]),
        ("freespce.kappa=1", ["did you mean freespec"]),
        ("window.frames=3", ["no technique 'window'", "freespec"]),
        ("freespec.kapa=1", ["freespec.kapa: unknown key", "kappa"]),
        ("freespec.kappa=hot", ["freespec.kappa = 'hot'"]),
        ("freespec.kappa=-1", ["freespec.kappa = -1"]),
        ("freespec.kappa=", ["freespec.kappa = ''"]),
        ("freespec.kappa.x=1", ["freespec.kappa.x: unknown key"]),
        ("freespec.name=window", ["freespec.name"]),
        ("freespec.window=3\nfoo=4", ["freespec.window"]),
    ],
)
def test_sets_that_are_refused(override: str, fragments: list[str]) -> None:
    with pytest.raises(UsageError) as refusal:
        preset.load("freespec", [override])
    assert all(fragment in str(refusal.value) for fragment in fragments)


@pytest.mark.parametrize("text", ["sample = 5", "technique = 'window'", "[technique]\nname = 'window'", "[[technique]]\nx = 1"])
def test_a_set_on_a_malformed_preset_is_refused_too(text: str, tmp_path: Path) -> None:
    for override in ("window.frames=3", "freespec.kappa=3"):
        with pytest.raises(UsageError):
            load(tmp_path, text, override)


def test_a_technique_that_stands_twice_is_kept_twice_and_set_twice(tmp_path: Path) -> None:
    made = load(tmp_path, f"{WINDOW}layers = [0]\n{WINDOW}layers = [1]\n", "window.frames=3")
    assert [technique.layers for technique in made.techniques] == [(0,), (1,)]
    assert [technique.frames for technique in made.techniques] == [3, 3]


def test_given_sample_values_go_over_the_preset(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[sample]\nsteps = 7\nfps = 8\n")
    made = preset.load(str(tmp_path / "own.toml"), sample=preset.Sample(steps=11))
    assert (made.sample.steps, made.sample.fps, made.sample.frames) == (11, 8, None)


OWN = """
name = "mine"
[sample]
steps = 30
fps = 8
[sample."wan2.1-1.3b"]
steps = 40
flow_shift = 8.0
[[technique]]
name = "window"
"""


def test_a_table_for_one_backbone_is_over_the_preset_s_sample_and_under_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    wan, tiny = SPECS["wan2.1-1.3b"], SPECS["tiny"]
    for spec, asked, expected in (
        (wan, {}, (40, 8, 8.0)),
        (tiny, {}, (30, 8, None)),
        (SPECS["wan2.1-14b"], {}, (30, 8, None)),
        (wan, {"steps": 5, "flow_shift": 3.0}, (5, 8, 3.0)),
        (replace(wan, name="/models/wan", source="/models/wan"), {}, (40, 8, 8.0)),  # a folder of that shape
    ):
        made = planner.build(preset.load(str(file), (), preset.Sample(**asked)), spec)
        assert (made.sample.steps, made.sample.fps, made.sample.flow_shift) == expected
        assert made.steps == expected[0]
    assert resolve.resolve(resolve.PlanRequest(str(file), wan, duration="10s")).frames_px == 81  # at the preset's 8 fps
    monkeypatch.setenv("LONGGEN_FLOW_SHIFT", "6")
    done = CliRunner().invoke(app, ["plan", "--preset", str(file), "-m", "wan2.1-1.3b", "--json"])
    assert json.loads(done.stdout)["sample"]["flow_shift"] == 6.0


def test_freeloc_has_its_paper_s_settings_on_wan_alone() -> None:
    shipped = preset.load("freeloc")
    on_wan = planner.build(shipped, SPECS["wan2.1-1.3b"])
    assert (on_wan.sample.flow_shift, on_wan.sample.guidance_scale) == (8.0, 6.0)
    on_others = [made for name, made in planner.on_every_backbone(shipped).items() if name != "wan2.1-1.3b"]
    assert any(isinstance(made, Plan) for made in on_others)
    for name, made in planner.on_every_backbone(shipped).items():
        if isinstance(made, Plan) and name != "wan2.1-1.3b":
            assert made.sample.flow_shift is None
            assert made.sample.guidance_scale == SPECS[name].guidance_scale
    assert planner.build(shipped, planner.as_if_probed(SPECS["ltx-2b"])).sample.flow_shift is None


def test_tables_for_backbones_go_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    first = preset.load(str(file))
    (tmp_path / "again.toml").write_text(first.as_toml())
    assert '[sample."wan2.1-1.3b"]\nsteps = 40\nflow_shift = 8.0' in first.as_toml()
    assert preset.load(str(tmp_path / "again.toml")) == first
    assert first.as_dict()["sample"] == {"steps": 30, "fps": 8, "wan2.1-1.3b": {"steps": 40, "flow_shift": 8.0}}


def test_loras_for_backbones_go_round_trip_and_refuse_the_others(tmp_path: Path) -> None:
    shipped = preset.load("lightx2v")
    (tmp_path / "again.toml").write_text(shipped.as_toml())
    again = preset.load(str(tmp_path / "again.toml"))
    assert again == shipped
    made = planner.build(again, SPECS["wan2.2-t2v-a14b"])
    assert (made.steps, made.sample.flow_shift, made.guided) == (4, 5.0, False)
    assert [text[:2] for text in again.lora_on(made.spec)] == ["1=", "2="]
    with pytest.raises(UsageError, match="needs a backbone that it has LoRAs for"):
        planner.build(again, SPECS["wan2.1-1.3b"])
    (tmp_path / "all.toml").write_text(
        'name = "all"\n[model]\nlora = ["a.safetensors:0.5"]\n[model.tiny]\nlora = ["b.safetensors"]'
    )
    for_all = preset.load(str(tmp_path / "all.toml"))
    assert [for_all.lora_on(SPECS[name]) for name in ("tiny", "ltx-2b")] == [("b.safetensors",), ("a.safetensors:0.5",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[sample."wan2.1-1.3"]\nsteps = 4', "sample.wan2.1-1.3: neither a key nor a backbone; did you mean wan2.1-1.3b"),
        ("[sample.wan2.1-1.3b]\nsteps = 4", 'its name in quotes: [sample."wan2.1-1.3b"]'),
        ("[sample.tiny]\nsteps = 0\nflow = 3\n[sample]\nfps = 0", 'sample."tiny".steps = 0: input should be greater'),
        ("[sample.tiny]\nflow = 3", 'sample."tiny".flow: unknown key; known keys: frames, size, steps'),
        ("[sample.tiny]\nflow_shift = nan", 'sample."tiny".flow_shift = nan: input should be a finite number'),
        ("backbone_samples = {}", "backbone_samples: unknown key"),
        ("[model]\nlora = ['a:b']", "model.lora = ['a:b']: a:b: 'b' is no scale"),
        ("[model]\nlora = ['']", "model.lora.0 = '': string should match"),
        ("[model]\nsteps = 4", "model.steps: unknown key; known keys: lora"),
        ('[model."wan9"]\nlora = []', "model.wan9: neither a key nor a backbone"),
        ("model = 3", "model = 3: input should be a valid dictionary"),
    ],
)
def test_tables_for_backbones_are_closed(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\n' + text)
    with pytest.raises(UsageError) as caught:
        preset.load(str(tmp_path / "mine.toml"))
    assert said in str(caught.value)
    assert ("sample.fps = 0" in str(caught.value)) == ("fps" in text)
