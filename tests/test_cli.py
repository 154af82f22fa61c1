"""The command line: its options, its errors, its streams. No video is made here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from longgen import __version__, checkpoint, disk, measured, naming, planner, resolve, run, run_settings, units
from longgen.backbones import defaults
from longgen.backbones.spec import TINY_FOLDER
from longgen.cli import app, messages, suggest
from longgen.cli import help as help_text
from longgen.errors import UsageError
from longgen.video import Writer
from tests import warm

PLAN = ["plan", "--backbone", "tiny"]
PROMPT = "a large red circle bouncing on a navy background"
GENERATE = ["generate", "--backbone", "tiny", "--prompt", PROMPT, "--seed", "1"]
DRY = [*GENERATE, "--dry-run"]
BATCH = ["generate", "--backbone", "tiny", "--prompts"]
LONG = "x" * 300


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no LONGGEN_* variable."""
    for name in [name for name in os.environ if name.startswith("LONGGEN_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def longgen(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def planned(*args: str) -> dict[str, Any]:
    """The plan as data."""
    done = longgen(*PLAN, "--json", *args)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def one_line(args: object) -> str:
    return re.sub("x{9,}", "xxx...", " ".join(args)) if isinstance(args, list) else ""


# ---- options -------------------------------------------------------------------------------------------------------------

SHARED = """
    --preset $LONGGEN_PRESET
    --set
    --layers
    --probe
    --allow-code
    --backbone -m $LONGGEN_BACKBONE
    --frames -f --num-frames $LONGGEN_FRAMES
    --duration
    --size $LONGGEN_SIZE
    --steps --num-inference-steps $LONGGEN_STEPS
    --guidance-scale --cfg $LONGGEN_GUIDANCE_SCALE
    --flow-shift $LONGGEN_FLOW_SHIFT
    --fps $LONGGEN_FPS
    --dtype $LONGGEN_DTYPE
    --offload $LONGGEN_OFFLOAD
    --image
    --last-image
    --continue
    --join
    --fit $LONGGEN_FIT
    --json
    --quiet -q
"""
OPTIONS = {  # every option of every command: all its spellings, then its environment variable
    "": """
        --version
        --install-completion
        --show-completion
    """,
    "generate": SHARED
    + """
        --ray
        --ray-workers
        --shard
        --prompt -p
        --prompts
        --schedule
        --negative-prompt $LONGGEN_NEGATIVE_PROMPT
        --seed $LONGGEN_SEED
        --seeds
        --log-file
        --device $LONGGEN_DEVICE
        --lora
        --quantize $LONGGEN_QUANTIZE
        --attention $LONGGEN_ATTENTION
        --cache $LONGGEN_CACHE
        --compile $LONGGEN_COMPILE
        --vae-tiling $LONGGEN_VAE_TILING
        --vae $LONGGEN_VAE
        --text-encoder $LONGGEN_TEXT_ENCODER
        --clip-batch $LONGGEN_CLIP_BATCH
        --gpus $LONGGEN_GPUS
        --guidance-parallel $LONGGEN_GUIDANCE_PARALLEL
        --output -o
        --resume
        --overwrite
        --preview
        --dry-run
    """,
    "plan": SHARED
    + """
        --gpus
        --guidance-parallel $LONGGEN_GUIDANCE_PARALLEL
        --schedule
        --card $LONGGEN_CARD
        --npz
        --overwrite
    """,
    "compare": """
        --ray
        --ray-workers
        --shard
        --image
        --last-image
        --continue
        --join
        --fit $LONGGEN_FIT
        --prompt -p
        --prompts
        --presets
        --seeds
        --negative-prompt $LONGGEN_NEGATIVE_PROMPT
        --frames -f --num-frames $LONGGEN_FRAMES
        --duration
        --size $LONGGEN_SIZE
        --steps --num-inference-steps $LONGGEN_STEPS
        --guidance-scale --cfg $LONGGEN_GUIDANCE_SCALE
        --flow-shift $LONGGEN_FLOW_SHIFT
        --fps $LONGGEN_FPS
        --set
        --probe
        --allow-code
        --backbone -m $LONGGEN_BACKBONE
        --dtype $LONGGEN_DTYPE
        --device $LONGGEN_DEVICE
        --offload $LONGGEN_OFFLOAD
        --lora
        --quantize $LONGGEN_QUANTIZE
        --attention $LONGGEN_ATTENTION
        --cache $LONGGEN_CACHE
        --compile $LONGGEN_COMPILE
        --vae-tiling $LONGGEN_VAE_TILING
        --vae $LONGGEN_VAE
        --text-encoder $LONGGEN_TEXT_ENCODER
        --clip-batch $LONGGEN_CLIP_BATCH
        --baseline
        --metrics
        --vbench-weights $LONGGEN_VBENCH_WEIGHTS
        --vbench-json
        --export-vbench
        --export
        --output -o
        --log-file
        --overwrite
        --json
        --quiet -q
    """,
    "probe": """
        --ray
        --ray-workers
        --image
        --fit $LONGGEN_FIT
        --backbone -m $LONGGEN_BACKBONE
        --frames -f --num-frames $LONGGEN_FRAMES
        --duration
        --prompt -p
        --prompts
        --seeds
        --metric
        --threshold
        --top
        --steps
        --size $LONGGEN_SIZE
        --quick
        --again
        --heads
        --output -o
        --export
        --log-file
        --overwrite
        --dtype $LONGGEN_DTYPE
        --device $LONGGEN_DEVICE
        --offload $LONGGEN_OFFLOAD
        --lora
        --vae $LONGGEN_VAE
        --text-encoder $LONGGEN_TEXT_ENCODER
        --json
        --quiet -q
    """,
    "bench": """
        --gpus $LONGGEN_GPUS
        --guidance-parallel $LONGGEN_GUIDANCE_PARALLEL
        --presets
        --image
        --backbone -m $LONGGEN_BACKBONE
        --shape
        --random-weights
        --count
        --card $LONGGEN_CARD
        --accelerate
        --lengths
        --prompt -p
        --frames -f --num-frames $LONGGEN_FRAMES
        --duration
        --size $LONGGEN_SIZE
        --flow-shift $LONGGEN_FLOW_SHIFT
        --repeats
        --set
        --probe
        --allow-code
        --dtype $LONGGEN_DTYPE
        --device $LONGGEN_DEVICE
        --offload $LONGGEN_OFFLOAD
        --attention $LONGGEN_ATTENTION
        --cache $LONGGEN_CACHE
        --compile $LONGGEN_COMPILE
        --clip-batch $LONGGEN_CLIP_BATCH
        --output -o
        --export
        --log-file
        --overwrite
        --json
        --quiet -q
    """,
    "decode": """
        --output -o
        --overwrite
        --device $LONGGEN_DEVICE
        --vae-tiling $LONGGEN_VAE_TILING
        --allow-code
        --json
        --quiet -q
    """,
    "inspect": """
        --toml
        --shots
        --allow-code
        --json
    """,
    "doctor": """
        --gpu
        --presets
        --backbone -m $LONGGEN_BACKBONE
        --frames -f --num-frames $LONGGEN_FRAMES
        --duration
        --size $LONGGEN_SIZE
        --dtype $LONGGEN_DTYPE
        --device $LONGGEN_DEVICE
        --minutes
        --output -o
        --overwrite
        --json
        --quiet -q
    """,
    "docs": """
        --path
        --json
    """,
    "presets": "",
    "presets list": """
        --backbone -m
        --json
    """,
    "presets show": """
        --set
        --allow-code
        --json
    """,
    "presets check": """
        --backbone -m $LONGGEN_BACKBONE
        --allow-code
        --json
    """,
    "techniques": "",
    "techniques list": "--json",
    "techniques show": """
        --allow-code
        --json
    """,
    "backbones": "",
    "backbones list": "--json",
    "backbones show": "--json",
}


SPELLED_FIRST = {line.split()[0] for lines in OPTIONS.values() for line in lines.splitlines() if line.strip()}


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}".strip())


def test_options_are_frozen() -> None:
    real = {}
    for path, command in commands(typer.main.get_command(app)):
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        real[path] = {" ".join([*one.opts, *one.secondary_opts, *([f"${one.envvar}"] if one.envvar else [])]) for one in options}
    assert real == {path: {line.strip() for line in lines.splitlines() if line.strip()} for path, lines in OPTIONS.items()}


@pytest.mark.parametrize("path", OPTIONS)
def test_help_fits_a_screen_and_all_of_it_is_one_option_away(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    short, also, everything = (longgen(*path.split(), flag) for flag in ("--help", "-h", "--help-all"))
    for done in (short, also, everything):
        assert (done.exit_code, done.stderr) == (0, "")
        assert "Usage" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100
    assert short.stdout == also.stdout
    assert len(short.stdout.splitlines()) <= 40
    for line in OPTIONS[path].split():  # every spelling and every variable
        assert line.removeprefix("$") in everything.stdout
        assert not line.startswith("--") or line not in SPELLED_FIRST or line in short.stdout


@pytest.mark.parametrize("example", [example for examples in help_text.EXAMPLES.values() for example in examples])
def test_the_examples_of_help_parse(example: str) -> None:
    root = typer.main.get_command(app)
    words = shlex.split(example.partition(" > ")[0])[1:]
    with root.make_context("longgen", words, resilient_parsing=False) as context:
        name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
        while hasattr(command, "commands"):
            group = command.make_context(name, rest)
            name, command, rest = command.resolve_command(group, [*group._protected_args, *group.args])
        parsed = command.make_context(name, rest)
    assert parsed.args == []


def test_options_have_a_panel_and_commands_a_place() -> None:
    every = [*commands(typer.main.get_command(app))]
    assert sorted(name for names in help_text.COMMANDS.values() for name in names) == sorted(
        path for path, _ in every if path and " " not in path
    )
    names = [name for names in help_text.PANELS.values() for name in names]
    assert len(names) == len({*names})
    own = {one.name for path, command in every if path for one in command.params if one.param_type_name == "option"}
    assert own - {*names} == set()


@pytest.mark.parametrize(
    ("args", "environment", "expected"),
    [
        ([], {}, {}),
        (["--lora", "a.safetensors:0.5", "--lora", "b"], {}, {"lora": ("a.safetensors:0.5", "b")}),
        (["--quantize", "fp8"], {}, {"quantize": "fp8"}),
        (["--attention", "native"], {}, {"attention": "native"}),
        (["--cache", "first-block:0.1"], {}, {"cache": "first-block:0.1"}),
        (["--cache", "mag"], {}, {"cache": "mag"}),
        (["--compile"], {}, {"compile": True}),
        ([], {"COMPILE": "1"}, {"compile": True}),
        (["--vae-tiling"], {}, {"vae_tiling": True}),
        (["--clip-batch", "4"], {}, {"clip_batch": 4}),
        (["--dtype", "bf16"], {}, {"dtype": "bf16"}),
        ([], {"QUANTIZE": "int8", "CACHE": "first-block", "VAE_TILING": "1", "CLIP_BATCH": "3"},
         {"quantize": "int8", "cache": "first-block", "vae_tiling": True, "clip_batch": 3}),
    ],
)  # fmt: skip
def test_loading_flags_reach_the_backbone(
    args: list[str], environment: dict[str, str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from longgen import run
    from longgen.backbones.settings import ModelSettings

    seen: list[ModelSettings] = []

    def keep(jobs: Any, model_settings: ModelSettings, *rest: Any) -> list[run.Failure]:
        seen.append(model_settings)
        return [run.Failure("x", "x.mp4", "x", 0, "not made")]

    monkeypatch.setattr(run, "generate_jobs", keep)
    for name, value in environment.items():
        monkeypatch.setenv(f"LONGGEN_{name}", value)
    longgen(
        "generate", "--prompt", "a small red circle bouncing on a navy background", "--backbone", "tiny", "--device", "cpu", *args
    )
    assert seen == [ModelSettings(**{"device": "cpu", "dtype": "fp32"} | expected)]


def test_a_run_goes_on_with_the_flags_that_it_began_with(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longgen import preset
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.wan import TINY

    model_settings = ModelSettings(
        "cpu", "bf16", lora=("a.safetensors:0.5",), quantize="fp8", attention="native", cache="mag", compile=True, clip_batch=2
    )
    made = planner.build(preset.load("direct", (), preset.Sample(frames=17)), TINY)
    seen: list[ModelSettings] = []

    def keep(jobs: Any, model_settings: ModelSettings, *rest: Any) -> list[run.Failure]:
        seen.append(model_settings)
        return [run.Failure("x", "x.mp4", "x", 0, "not made")]

    monkeypatch.setattr(run, "generate_jobs", keep)
    (place / "ball.run").mkdir()
    disk.save_json(
        place / "ball.run" / "run.json",
        {"status": "running", "settings": run_settings.stored_settings(made, PROMPT, 1, model_settings)},
    )
    longgen("generate", "-o", "ball.mp4", "--resume", "--device", "cpu")
    assert seen == [model_settings]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cache", "first-block:2"], "--cache first-block:2: '2' is no threshold"),
        (["--cache", "pyramid_attention_broadcast"], "on tiny it gives the unconditioned branch the attention of the conditioned"),
        (["--cache", "fastercache"], "on tiny it assumes that both guidance branches are one batch"),
        (["--cache", "mag:much"], "--cache mag:much: 'much' is no threshold"),
        (["--cache", "wonder"], "longgen has not tried it"),
        (["--lora", "style.safetensors:much"], "'much' is no scale"),
        (["--quantize", "int3"], "'int3' is not one of 'fp8', 'int8'"),
        (["--offload", "group"], "the device is cpu"),
    ],
)
def test_a_wrong_loading_flag_is_refused_before_anything_is_loaded(args: list[str], message: str) -> None:
    done = longgen("generate", "--prompt", "x", "--backbone", "tiny", "--device", "cpu", "--dry-run", *args)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_version() -> None:
    done = longgen("--version")
    assert (done.exit_code, done.stdout) == (0, f"longgen {__version__}\n")


@pytest.mark.parametrize(
    ("args", "environment", "steps"),
    [
        (["--preset", "../own.toml", "--steps", "11"], "9", 11),
        (["--preset", "../own.toml"], "9", 9),
        (["--preset", "../own.toml"], None, 7),
        (["--preset", "direct", "--steps", "11"], "9", 11),
        (["--preset", "direct"], "9", 9),
        (["--preset", "direct"], None, 20),
    ],
)
def test_flag_over_variable_over_preset_over_backbone(
    args: list[str], environment: str | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("../own.toml").write_text("[sample]\nsteps = 7\n")
    if environment is not None:
        monkeypatch.setenv("LONGGEN_STEPS", environment)
    assert planned(*args)["sample"]["steps"] == steps


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("LONGGEN_PRESET", "riflex", "name", "riflex"),
        ("LONGGEN_FRAMES", "161", "frames", 161),
        ("LONGGEN_SIZE", "96x64", "size", [96, 64]),
        ("LONGGEN_GUIDANCE_SCALE", "2.5", "guidance_scale", 2.5),
        ("LONGGEN_FPS", "24", "fps", 24),
    ],
)
def test_environment_variables_count(name: str, value: str, key: str, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    made = planned()
    assert (made["sample"] | made)[key] == expected


def test_backbone_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGGEN_BACKBONE", "wan2.1-14b")
    assert json.loads(longgen("plan", "--json").stdout)["backbone"] == "wan2.1-14b"
    assert planned()["backbone"] == "tiny"


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        (["--frames", "161"], ["--num-frames", "161"]),
        (["--frames", "161"], ["--num_frames", "161"]),
        (["--frames", "161"], ["-f", "161"]),
        (["--steps", "5"], ["--num-inference-steps", "5"]),
        (["--steps", "5"], ["--num_inference_steps", "5"]),
        (["--guidance-scale", "2"], ["--cfg", "2"]),
        (["--guidance-scale", "2"], ["--guidance_scale", "2"]),
        (["--size", "832x480"], ["--size", "832*480"]),
        (["--size", "832x480"], ["--size", "832X480"]),
        (["--frames", "161"], ["--duration", "10s"]),
        (["--frames", "241"], ["--duration", "10s", "--fps", "24"]),
    ],
)
def test_other_spellings_mean_the_same(usual: list[str], other: list[str]) -> None:
    first, second = planned(*usual), planned(*other)
    for volatile in ("notes", "duration_s"):
        first.pop(volatile)
        second.pop(volatile)
    first["sample"].pop("fps")
    second["sample"].pop("fps")
    assert first == second
    assert first["sample"] != planned()["sample"]


def test_m_is_the_backbone() -> None:
    assert json.loads(longgen("plan", "-m", "wan2.1-1.3b", "--json").stdout)["backbone"] == "wan2.1-1.3b"


def test_a_duration_is_counted_in_the_frames_a_second_of_the_file() -> None:
    Path("../own.toml").write_text("[sample]\nfps = 8\n")
    for args in (["--fps", "8"], ["--preset", "../own.toml"]):
        assert planned("--duration", "10s", *args)["frames"] == 81, args


# ---- the prompt as a word ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [[PROMPT], ["generate", PROMPT], ["generate", "--prompt", PROMPT], ["generate", "--", PROMPT]], ids=one_line
)
def test_a_prompt_may_be_a_word(words: list[str]) -> None:
    options = ["--backbone", "tiny", "--seed", "1", "--dry-run", "--json"]
    done = longgen(*words, *options) if "--" not in words else longgen("generate", *options, *words[1:])
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["videos"][0]["prompt"] == PROMPT


def test_an_option_that_may_stand_alone_leaves_the_prompt_after_it(place: Path) -> None:
    done = longgen("generate", "--preview", "a red circle", "-m", "tiny", "--dry-run", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["videos"][0]["prompt"] == "a red circle"


def test_what_may_be_a_prompt_or_a_command_is_said() -> None:
    options = ["--backbone", "tiny", "--dry-run", "--json", "--seed", "1"]
    done = longgen("plan a trip", *options)
    assert json.loads(done.stdout)["videos"][0]["prompt"] == "plan a trip"
    assert "'plan a trip' is taken as a prompt" in done.stderr
    assert json.loads(longgen("猫が走る", *options).stdout)["videos"][0]["prompt"] == "猫が走る"
    for words, hint in (
        (["cat"], "longgen generate cat"),
        (["genrate", PROMPT], "did you mean generate?"),
        (["generate", "a", "cat"], "longgen generate 'a cat'"),
        ([PROMPT, "--prompt", "x"], "leave one out"),
        ([PROMPT, "--prompts", "x.txt"], "leave one out"),
        (["--frames", "81", PROMPT], "longgen generate ... --frames"),
    ):
        refused = longgen(*words)
        assert (refused.exit_code, refused.stdout) == (2, ""), words
        assert hint in refused.stderr


# ---- completion ----------------------------------------------------------------------------------------------------------


COMPLETED = {  # a line: what its last word may become, and what not
    "longgen generate --preset free": (["freespec", "freenoise"], ["direct"]),
    "longgen compare --presets direct,fre": (["direct,freespec"], ["freespec", "direct,riflex"]),
    "longgen plan -m wan2.2": (["wan2.2-ti2v-5b"], ["wan2.1-1.3b"]),
    "longgen plan --preset freespec --set ": (["freespec."], ["window."]),
    "longgen plan --set freespec.ka": (["freespec.kappa="], ["freespec.beta="]),
    "longgen docs exp": (["experiments/tiny"], ["presets"]),
    "longgen techniques show free": (["freelong"], ["window"]),
    "longgen gen": (["generate"], ["plan"]),
    "longgen generate --help-": (["--help-all"], ["--prompt"]),
    "longgen plan --set nothing.": ([], ["Traceback"]),
}
COMPLETE = """
import json, sys
from typer.testing import CliRunner
from longgen.cli import app, messages, suggest
answers = {}
for line in json.loads(sys.argv[1]):
    env = {"_LONGGEN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    answers[line] = CliRunner().invoke(app, [], env=env, prog_name="longgen").output.split()
print(json.dumps([answers, "torch" in sys.modules]))
"""


def test_a_shell_completes_names_and_imports_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", COMPLETE, json.dumps([*COMPLETED])], capture_output=True, text=True, check=True)
    answers, heavy = json.loads(done.stdout)
    assert not heavy
    for line, (expected, others) in COMPLETED.items():
        assert {*expected} <= {*answers[line]}, line
        assert {*others}.isdisjoint(answers[line]), line


# ---- errors --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders that are wrong in one way each; the errors below find them under ../files."""
    folder = tmp_path_factory.mktemp("cli") / "files"
    for name in ("empty", "damaged", "other-pipeline", "keyless", "list"):
        for part in ("transformer", "vae"):
            (folder / name / part).mkdir(parents=True)
            (folder / name / part / "config.json").write_text("{}")
    (folder / "empty" / "transformer" / "config.json").unlink()
    (folder / "damaged" / "model_index.json").write_text('{"_class_name": "Wan')
    (folder / "other-pipeline" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (folder / "keyless" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (folder / "list" / "model_index.json").write_text("[]")
    (folder / "text.txt").write_text("a red circle\n")
    (folder / "none.txt").write_text("# a comment\n\n   \n")
    (folder / "bytes.bin").write_bytes(bytes(range(256)))
    save_file({"latents": torch.zeros(1)}, folder / "foreign.safetensors")
    checkpoint.save_tensors(folder / "no-run.safetensors", {"other": torch.zeros(1)}, {"prompt": "x"})
    with Writer(folder / "foreign.mp4", (16, 16), 8, {"made": "elsewhere"}) as writer:
        writer.add(np.zeros((2, 16, 16, 3), np.uint8))
    return folder


ERRORS: list[tuple[list[str], int, list[str]]] = [
    # presets
    ([*PLAN, "--preset", "freespce"], 2, ["'freespce'", "did you mean freespec"]),
    ([*PLAN, "--preset", "../nothing.toml"], 3, ["../nothing.toml does not exist"]),
    ([*PLAN, "--preset", "../files/bytes.bin"], 2, ["../files/bytes.bin is not TOML"]),
    ([*PLAN, "--preset", f"{LONG}.toml"], 3, ["xxx.toml"]),
    (["presets", "show", "freespce"], 2, ["did you mean freespec"]),
    (["presets", "check", "direct", "freespce"], 2, ["did you mean freespec"]),
    # --set
    ([*PLAN, "--preset", "freespec", "--set", "freespce.kappa=1"], 2, ["'freespce'", "did you mean freespec"]),
    ([*PLAN, "--preset", "freespec", "--set", "window.frames=3"], 2, ["no technique 'window'", "its techniques: freespec"]),
    ([*PLAN, "--preset", "freespec", "--set", "freespec.kapa=1"], 2, ["freespec.kapa: unknown key", "lambda_start"]),
    ([*PLAN, "--preset", "freespec", "--set", "freespec.kappa=hot"], 2, ["freespec.kappa = 'hot'", "number"]),
    ([*PLAN, "--preset", "freespec", "--set", "freespec.alpha=7"], 2, ["freespec.alpha = 7", "less than or equal to 1"]),
    ([*PLAN, "--preset", "freespec", "--set", "freespec.alpha"], 2, ["'freespec.alpha'", "window.frames=21"]),
    ([*PLAN, "--preset", "freespec", "--set", "alpha=1"], 2, ["'alpha=1'", "window.frames=21"]),
    ([*PLAN, "--preset", "freespec", "--set", "freespec.layers=[9]"], 2, ["layers has 9", "0 to 5"]),
    ([*PLAN, "--preset", "riflex", "--set", "riflex.component=99"], 2, ["component = 99", "1 to 12"]),
    # backbones
    (["plan", "--backbone", "tinny"], 2, ["'tinny'", "did you mean tiny", "wan2.1-1.3b"]),
    (["plan", "--backbone", "./nowhere"], 3, ["./nowhere: no such folder", "longgen backbones list"]),
    (["plan", "--backbone", "../files/text.txt"], 2, ["files/text.txt is text and no weights", "folder"]),
    (["plan", "--backbone", "../files/empty"], 3, ["model_index.json is not there"]),
    (["plan", "--backbone", "../files/damaged"], 2, ["model_index.json is damaged"]),
    (["plan", "--backbone", "../files/other-pipeline"], 2, ["FluxPipeline", "WanPipeline"]),
    (["plan", "--backbone", "../files/keyless"], 2, ["transformer/config.json"]),
    (["plan", "--backbone", "../files/list"], 2, ["model_index.json"]),
    (["plan", "--backbone", f"./{LONG}"], 3, ["no such folder"]),
    (["plan", "--backbone", "~nobody-here/model"], 3, ["~nobody-here/model"]),
    (["backbones", "show", "tinny"], 2, ["did you mean tiny"]),
    (["presets", "check", "direct", "--backbone", "tinny"], 2, ["did you mean tiny"]),
    (["generate", "x", "--backbone", "tiny", "--text-encoder", "", "--dry-run"], 2, ["text_encoder = ''", "its tokenizer"]),
    (["generate", "x", "--backbone", "tiny", "--vae", "", "--dry-run"], 2, ["vae = ''", ".safetensors file"]),
    # length and size
    ([*PLAN, "--preset", "direct", "--frames", "5000"], 2, ["5000 frames", "1 to 4093"]),
    ([*PLAN, "--duration", "soon"], 2, ["'soon'", "1m30s"]),
    ([*PLAN, "--duration", "-5s"], 2, ["'-5s'", "1m30s"]),
    ([*PLAN, "--duration", ""], 2, ["''", "1m30s"]),
    (["probe", "--backbone", "tiny", "--duration", "5s"], 2, ["--frames 81 is not longer than the training length"]),
    (["bench", "--count", "--duration", "5s", "-f", "81"], 2, ["--frames cannot be combined with --duration", "one of them"]),
    (["bench", "--duration", "5s", "--lengths", "2"], 2, ["--lengths cannot be combined with --frames, --duration"]),
    ([*PLAN, "--duration", "10s", "--frames", "81"], 2, ["--frames cannot be combined with --duration", "one of them"]),
    ([*PLAN, "--size", "830x480"], 2, ["width 830", "multiples of 16", "816 or 832"]),
    ([*PLAN, "--size", "832x470"], 2, ["height 470", "multiples of 16", "464 or 480"]),
    ([*PLAN, "--size", "8x16"], 2, ["width 8", "use 16"]),
    ([*PLAN, "--size", "big"], 2, ["'big'", "832x480"]),
    ([*PLAN, "--size", "0x0"], 2, ["'0x0'", "832x480"]),
    ([*PLAN, "--size", "64x64x64"], 2, ["'64x64x64'", "832x480"]),
    ([*PLAN, "--size", "²x64"], 2, ["'²x64'", "832x480"]),
    ([*PLAN, "--size", ""], 2, ["''", "832x480"]),
    # prompts
    (["generate", "--backbone", "tiny"], 2, ["no prompt", "--prompts FILE"]),
    (["generate", "--backbone", "tiny", "-p", ""], 2, ["--prompt is empty"]),
    (["generate", "--backbone", "tiny", "-p", " \t\n"], 2, ["--prompt is empty"]),
    (["compare", "--backbone", "tiny", "--presets", "direct", "-p", " "], 2, ["--prompt is empty"]),
    (["probe", "--backbone", "tiny", "-p", ""], 2, ["--prompt is empty"]),
    (["generate", "--backbone", "tiny", "-p", "caf\udce9"], 2, ["--prompt contains the byte 0xe9", "UTF-8"]),
    ([*GENERATE, "--prompts", "../files/text.txt"], 2, ["--prompt cannot be combined with --prompts"]),
    ([*BATCH, "../files/none.txt"], 2, ["none.txt holds no prompt", "one prompt a line"]),
    ([*BATCH, "../files/nothing.txt"], 3, ["nothing.txt is not there"]),
    ([*BATCH, "../files/bytes.bin"], 2, ["bytes.bin cannot be read", "UTF-8"]),
    ([*BATCH, "../files"], 2, ["../files cannot be read"]),
    # options that are given twice, under whichever of their names
    ([*GENERATE, "-p", "a blue circle"], 2, ["--prompt is given 2 times", "expected: a single --prompt"]),
    ([*GENERATE, "--seed", "1", "--seed=2"], 2, ["--seed is given 3 times"]),
    ([*PLAN, "--num-frames", "81", "-f", "81"], 2, ["--frames is given 2 times"]),
    ([*PLAN, "--num_frames", "81", "-f", "81"], 2, ["--frames is given 2 times"]),
    (["presets", "check", "direct", "-m", "tiny", "-m", "tiny"], 2, ["--backbone is given 2 times"]),
    # outputs
    ([*BATCH, "../files/text.txt", "-o", "x.mp4"], 2, ["x.mp4 names a single file", "a folder"]),
    ([*GENERATE, "-o", "ball.avi"], 2, ["ball.avi", "MP4", "use ball.mp4"]),
    ([*GENERATE, "-o", "../files/text.txt/ball.mp4"], 1, ["../files/text.txt/ball.mp4", "written"]),
    ([*GENERATE, "-o", "../files/text.txt/below/"], 1, ["../files/text.txt/below", "written"]),
    ([*GENERATE, "-o", f"{LONG}.mp4"], 2, ["xxx.mp4", "name"]),
    ([*PLAN, "--npz", "tables.txt"], 2, ["tables.txt", "use tables.npz"]),
    ([*PLAN, "--npz", "nowhere/tables.npz"], 1, ["nowhere/tables.npz cannot be written"]),
    # resume
    ([*GENERATE, "--preview", "0"], 2, ["--preview '0' is no number of steps", "--preview alone"]),
    ([*GENERATE, "--preview", "--offload", "model", "--device", "cuda", "--ray"], 2, ["--preview", "--ray"]),
    ([*GENERATE, "--resume", "--overwrite"], 2, ["--resume cannot be combined with --overwrite", "one of them"]),
    (["generate", "--resume", "-o", "ball.mp4"], 3, ["ball.run/run.json is not there", "leave --resume out"]),
    ([*GENERATE[:-2], "--resume", "-o", "ball.mp4"], 3, ["ball.run/run.json is not there", "leave --resume out"]),
    ([*GENERATE[:-2], "--resume"], 2, ["--resume", "--seed N or -o FILE.mp4"]),
    ([*BATCH, "../files/text.txt", "--resume"], 2, ["--resume", "--seed N"]),
    # files to read
    (["decode", "nothing.safetensors"], 3, ["nothing.safetensors is not there"]),
    (["decode", "../files"], 3, ["../files is not there"]),
    (["decode", "../files/bytes.bin"], 1, ["bytes.bin is damaged"]),
    (["decode", "../files/foreign.safetensors"], 1, ["foreign.safetensors was not written by longgen"]),
    (["decode", "../files/no-run.safetensors"], 1, ["no-run.safetensors holds no latents"]),
    (["inspect", "nothing.mp4"], 3, ["nothing.mp4 is not there"]),
    (["inspect", "../files/bytes.bin"], 1, ["bytes.bin is no video"]),
    (["inspect", "../files/foreign.mp4"], 1, ["foreign.mp4 holds no longgen settings", "run.json"]),
    # what this machine or this model cannot do
    ([*GENERATE, "--device", "abacus"], 2, ["--device abacus", "cpu"]),
    ([*GENERATE, "--device", "cpu", "--dtype", "fp16"], 2, ["fp16", "fp32 or bf16"]),
    ([*GENERATE, "--device", "cpu", "--offload", "model"], 2, ["--offload model", "--offload none"]),
]
PARSED: list[tuple[list[str], list[str]]] = [  # refused by the option parser, in its words
    ([*PLAN, "--frames", "0"], ["--frames", "1"]),
    ([*PLAN, "--frames", "-3"], ["--frames", "1"]),
    ([*PLAN, "--frames", "many"], ["--frames"]),
    ([*PLAN, "--steps", "0"], ["--steps", "1"]),
    ([*PLAN, "--fps", "241"], ["--fps", "240"]),
    ([*PLAN, "--cfg", "101"], ["--guidance-scale", "100"]),
    ([*PLAN, "--cfg", "nan"], ["--guidance-scale"]),
    ([*PLAN, "--dtype", "fp8"], ["--dtype", "fp32", "bf16", "fp16"]),
    ([*PLAN, "--offload", "all"], ["--offload", "none", "sequential"]),
    ([*GENERATE[:-1], "-1"], ["--seed", "0"]),
    ([*PLAN, "--framez", "81"], ["No such option", "--framez"]),
    ([*PLAN, "more"], ["more"]),
    (["decode"], ["LATENTS"]),
    (["paint"], ["No such command", "paint"]),
]


def check_error(stderr: str, stdout: str, fragments: list[str]) -> None:
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "defect" not in stderr
    assert [fragment for fragment in fragments if fragment not in stderr] == []


@pytest.mark.parametrize(("args", "code", "fragments"), ERRORS, ids=one_line)
def test_errors_say_what_was_given_what_is_accepted_and_what_to_do(
    args: list[str], code: int, fragments: list[str], files: Path, place: Path
) -> None:
    (place.parent / "files").symlink_to(files)
    done = longgen(*args)
    check_error(done.stderr, done.stdout, ["longgen: ", "expected: ", "hint: ", *fragments])
    assert done.exit_code == code
    assert list(place.glob("*.mp4")) == []


@pytest.mark.parametrize(("args", "fragments"), PARSED, ids=one_line)
def test_the_option_parser_names_the_option(args: list[str], fragments: list[str]) -> None:
    done = longgen(*args)
    check_error(done.stderr, done.stdout, ["longgen: ", "expected: ", "hint: ", *fragments])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["generate", "x", "--length", "5"], "--frames N counts frames, --duration 20s seconds"),
        (["probe", "--length", "5"], "--frames N counts frames, --duration 20s seconds"),
        (["generate", "x", "--music", "y"], "only ltx-2 makes sound"),
        (["generate", "x", "--image_path", "y"], "--image FILE"),
        (["generate", "x", "--gpu", "2"], "--gpus N splits one video; --device cuda:1 chooses a GPU"),
        (["plan", "--width", "832"], "--size WIDTHxHEIGHT"),
        (["plan", "--model", "wan"], "--backbone NAME"),
        (["plan", "--prompt", "x"], "--dry-run takes the whole command"),
        (["decode", "x.run", "--seed", "1"], "an option of longgen generate"),
        (["bench", "--steps", "3"], "--repeats K"),
        (["plan", "--backbone", "wan"], "did you mean wan2.1-1.3b"),
        (["plan", "--size", "720p"], "--size 1280x720, or 720x1280 upright"),
        (["plan", "--frames", "5s"], "--duration 5s"),
        (["plan", "--duration", "80f"], "--frames 80"),
        (["plan", "--dtype", "float16"], "--dtype fp16"),
        (["generate", "x", "--seed", "random"], "leave --seed out"),
        (["plan", "-m", "tiny", "--preset", "none"], "did you mean direct?"),
        (["run", "x"], "longgen generate"),
        (["presets", "lst"], "did you mean list?"),
    ],
    ids=one_line,
)
def test_words_of_other_programs_are_understood(args: list[str], hint: str) -> None:
    done = longgen(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert hint in done.stderr


def test_hints_name_what_there_is() -> None:
    every = {option for _, command in commands(typer.main.get_command(app)) for one in command.params for option in one.opts}
    parameters = {one.name for _, command in commands(typer.main.get_command(app)) for one in command.params}
    words: list[str] = []
    for spelled, targets, how in suggest.SYNONYMS:
        words += spelled.split()
        assert {*targets.split()} <= parameters
        assert {*re.findall(r"--[a-z][a-z-]+", how)} <= every
    assert len(words) == len({*words})
    for _, _, how in suggest.VALUES:
        assert {*re.findall(r"--[a-z][a-z-]+", how)} <= every
    for _, target in suggest.COMMAND_SYNONYMS:
        assert longgen(*target.split(), *(["--help"] if "--" not in target else [])).exit_code == 0


def test_times_are_read_as_people_write_them() -> None:
    for text in ("1m", "1:00", "60", "60s", "1 min", "60 seconds", "1min"):
        assert units.seconds(text, "x") == 60
    assert units.seconds("1:30.5", "x") == units.seconds("1m30.5s", "x") == Fraction(181, 2)
    for text in ("1:60", ":30", "1:2:3", "m", "5x", "1:5"):
        with pytest.raises(UsageError):
            units.seconds(text, "x")


def test_an_error_on_a_terminal_is_wrapped_and_its_paths_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    path = "./" + "folder/" * 12 + "weights"
    error = str(UsageError(f"--backbone {path}: no such folder", ", ".join(["a-backbone"] * 20), "longgen backbones list"))
    shown = messages.on_terminal(f"longgen: {error}", 60)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain != shown
    assert plain.split() == f"longgen: {error}".split()
    assert path in plain
    assert max(len(line) for line in plain.splitlines() if path not in line) < 60
    monkeypatch.setenv("NO_COLOR", "1")
    assert messages.on_terminal(f"longgen: {error}", 60) == plain


@pytest.mark.parametrize(
    ("args", "code", "given"),
    [
        ([*PLAN, "--preset", "freespce"], 2, "no preset is called 'freespce'"),
        (["generate", "-m", "tiny"], 2, "no prompt is given"),
        ([*BATCH, "nothing.txt"], 3, "nothing.txt is not there"),
        (["compare", "--presets", "direct", "-p", "x", "--seeds", "one"], 2, "--seeds 'one' is not a list of seeds"),
        (["probe", "-m", "tinny"], 2, "'tinny'"),
        (["bench", "-m", "tinny"], 2, "'tinny'"),
        (["decode", "nothing"], 3, "nothing is not there"),
        (["presets", "show", "freespce"], 2, "no preset is called 'freespce'"),
        ([*PLAN, "--frames", "81", "-f", "81"], 2, "--frames is given 2 times"),
        ([*PLAN, "--framez", "81"], 2, "No such option: --framez"),  # the option parser's own
        ([*PLAN, "--frames", "many"], 2, "Invalid value for '--frames'"),
        (["decode"], 2, "LATENTS"),
        (["paint"], 2, "No such command"),
    ],
    ids=one_line,
)
def test_with_json_an_error_is_one_line_of_json(args: list[str], code: int, given: str) -> None:
    done = longgen(*args, "--json")
    error = json.loads(done.stdout)
    assert (done.exit_code, error["exit_code"], {*error}, {*error["error"]}) == (
        code, code, {"error", "exit_code"}, {"given", "expected", "hint"},
    )  # fmt: skip
    assert given in error["error"]["given"]
    assert error["error"]["hint"]
    assert done.stderr
    if args[0] != "generate":  # of which it would be the prompt
        assert longgen(*args[:1], "--", "--json").stdout == ""  # there it is no option


def test_a_bug_and_a_missing_value_are_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(longgen("plan", "--json", "--frames").stdout)["exit_code"] == 2
    monkeypatch.setattr(resolve, "build", lambda *rest, **named: {}["key"])
    error = json.loads(longgen(*PLAN, "--json").stdout)
    assert (error["error"]["given"], error["exit_code"]) == ("KeyError: 'key'", 1)
    assert "bug" in error["error"]["hint"]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        (".", 2, "is a folder"),
        ("nowhere/run.log", 1, "nowhere/run.log cannot be written: No such file or directory"),
        ("p.txt/run.log", 1, "cannot be written"),
        ("/dev/full", 1, "/dev/full could not be written: No space left on device"),
        ("ball.mp4", 2, ".mp4 is no name for a log"),
        ("p.txt", 2, "is a file that the command reads or writes"),
        ("./link", 2, "is a file that the command reads or writes"),
        ("video", 2, "is there already, and is no text"),
    ],
)
def test_a_log_that_cannot_be_is_refused_before_the_work(name: str, code: int, message: str, place: Path) -> None:
    Path("p.txt").write_text(PROMPT)
    Path("link").symlink_to("p.txt")
    Path("video").write_bytes(b"\0\0\0\x20ftypisom")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    done = longgen(*BATCH, "p.txt", "--frames", "5", "--steps", "1", "--json", "--log-file", name)
    assert done.exit_code == code
    assert message in json.loads(done.stdout)["error"]["given"]
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_log_is_appended_to_and_holds_what_quiet_leaves_out() -> None:
    Path("run.log").write_text("earlier\n")
    args = [*DRY, "--frames", "6", "--negative-prompt", "x", "--cfg", "1", "--log-file", "run.log", "--quiet"]
    done = longgen(*args)
    assert (done.exit_code, done.stderr) == (0, "")
    first, *lines = Path("run.log").read_text().splitlines()
    assert first == "earlier"
    assert any("WARNING note: rounded 6 frames up to 9" in line for line in lines)
    assert lines[-1].endswith("INFO exit code 0")
    longgen(*args, "--size", "3x3")
    *_, error, expected, hint, end = Path("run.log").read_text().splitlines()[len(lines) + 1 :]
    assert "ERROR longgen: " in error
    assert "ERROR   expected: " in expected
    assert "ERROR   hint: " in hint
    assert end.endswith("INFO exit code 2")


@pytest.mark.skipif(defaults.has_gpu(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there() -> None:
    done = longgen(*GENERATE, "--device", "cuda")
    check_error(done.stderr, done.stdout, ["--device cuda", "expected: cpu", "hint: "])
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["generate", "-p", "x", "--backbone", "wan2.1-1.3b", "--device", "cpu"],
         ["Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "hf download", "--backbone tiny"]),
        (["plan", "--backbone", "nobody/nothing"], ["nobody/nothing", "network"]),
    ],
)  # fmt: skip
def test_weights_that_are_not_here_and_cannot_be_fetched(args: list[str], fragments: list[str], tmp_path: Path) -> None:
    empty = f"import huggingface_hub.constants as hub; hub.HF_HUB_CACHE = {str(tmp_path / 'hub')!r}; "
    done = warm.run(tmp_path, args, empty + warm.CLI, HF_HUB_OFFLINE="1")
    check_error(done.stderr, done.stdout, ["expected: ", "hint: ", *fragments])
    assert done.returncode == 3


@pytest.mark.parametrize(
    "left",
    [
        {"checkpoint.safetensors": "kept"},
        {"latents.safetensors": "kept", "run.json": '{"status": "sampled", "settings": {}}'},
        {"latents.safetensors": "kept", "run.json": "{"},
        {"latents.safetensors": "kept"},
    ],
    ids=" ".join,
)
def test_an_unfinished_run_is_neither_taken_up_nor_overwritten_unasked(left: dict[str, str], place: Path) -> None:
    (place / "ball.run").mkdir()
    for name, content in left.items():
        (place / "ball.run" / name).write_text(content)
    done = longgen(*GENERATE, "-o", "ball.mp4")
    check_error(done.stderr, done.stdout, ["ball.run", "expected: ", "hint: ", "--overwrite"])
    assert done.exit_code in (1, 2)
    assert {path.name: path.read_text() for path in (place / "ball.run").iterdir()} == left
    allowed = longgen(*GENERATE, "-o", "ball.mp4", "--overwrite", "--device", "abacus")  # gets as far as the device
    check_error(allowed.stderr, allowed.stdout, ["--device abacus"])


def test_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGGEN_DEBUG", "1")
    assert isinstance(longgen(*PLAN, "--preset", "freespce").exception, UsageError)


def test_the_console_script_exits_as_the_errors_say() -> None:
    command = [sys.executable, "-m", "longgen.cli", "plan", "--preset", "freespce"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("longgen: no preset is called 'freespce'")


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "longgen.cli", "presets", "list", "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# ---- results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [*PLAN, "--preset", "freespec", "--frames", "320"],
        [*DRY, "--preset", "freespec", "--frames", "320"],
        ["presets", "list"],
        ["presets", "show", "freespec"],
        ["presets", "check", "freespec", "riflex"],
        ["backbones", "list"],
        ["backbones", "show", "tiny"],
        ["doctor"],
    ],
    ids=one_line,
)
def test_json_is_one_object_or_a_list_of_objects_with_names(args: list[str]) -> None:
    done = longgen(*args, "--json")
    assert done.exit_code == 0 or args == ["doctor"]  # it exits with 1 on a machine that lacks something
    result = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert all(entry["name"] for entry in (result if isinstance(result, list) else [result]))
    assert not any(line.startswith(("{", "[", "}", "]")) for line in done.stderr.splitlines())
    if args == ["doctor"]:
        found = {entry["name"]: entry.get("data") for entry in result}
        assert {"longgen", "memory", "threads", "fonts", "ffmpeg", "cache hub"} <= found.keys()
        assert [row["frames"] for row in found["wan2.1-14b"]["lengths"]] == [81, 321]


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        ([*PLAN, "--preset", "freespec", "--frames", "321"], ["321 frames", "81 latent", "technique freespec", "branch local"]),
        (["presets", "list"], ["direct", "freespec", "riflex", "sliding-window"]),
        (["presets", "show", "freespec"], ["[[technique]]", 'name = "freespec"', "kappa = "]),
        (["presets", "check", "freespec", "--backbone", "tiny"], ["freespec: fine"]),
        (["backbones", "list"], ["tiny", "wan2.1-1.3b", "wan2.1-14b"]),
        (["backbones", "show", "tiny"], ["4n+1", "bouncing"]),
    ],
    ids=one_line,
)
def test_text_results_are_on_stdout_alone(args: list[str], fragments: list[str]) -> None:
    done = longgen(*args)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [fragment for fragment in fragments if fragment not in done.stdout] == []


def test_presets_list_begins_with_six_to_try_and_has_measured_numbers_where_there_are_some() -> None:
    everything = json.loads(longgen("presets", "list", "--json").stdout)
    assert [row["try_first"] for row in everything] == [True] * 6 + [False] * (len(everything) - 6)
    assert {row["name"] for row in everything if row["quality"]} == {*measured.presets()}
    rivals = (measured.FOLDER / "rivals.md").read_text(encoding="utf-8")
    of_window = measured.presets()["sliding-window"]
    assert f"| `sliding-window` | {of_window['colour_kept']:.1%} | 100.0% | {of_window['motion']:.1%}" in rivals
    causal = json.loads(longgen("presets", "list", "--backbone", "longlive", "--json").stdout)
    assert causal[0]["name"] == "longlive"
    assert {backbone for row in causal for backbone in row["backbones"]} == {"longlive"}
    assert "freespec" not in {row["name"] for row in causal}
    assert {row["quality"]["model"] for row in causal if row["quality"]} == {"tiny-causal-unsaid"}
    assert longgen("presets", "list", "-m", "longlive").stdout.splitlines()[-1].startswith("not on longlive: ")


def test_what_presets_show_prints_is_a_preset() -> None:
    Path("own.toml").write_text(longgen("presets", "show", "freespec", "--set", "freespec.kappa=1.5").stdout)
    shown = json.loads(longgen("presets", "show", "own.toml", "--json").stdout)
    assert shown["technique"][0]["kappa"] == 1.5


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_dry_run_writes_nothing(json_flag: list[str], place: Path) -> None:
    done = longgen(*DRY, "--preset", "freespec", "--frames", "320", "-o", "sub/ball.mp4", *json_flag)
    assert done.exit_code == 0
    assert "sub/ball.mp4" in done.stdout
    assert "rounded 320 frames up to 321" in done.stderr
    assert list(place.iterdir()) == []


def test_quiet_says_nothing_besides_the_result() -> None:
    done = longgen(*DRY, "--frames", "320", "--quiet")
    assert done.exit_code == 0
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        (PROMPT, True),
        (f" {PROMPT.upper()}. ", True),
        ("a corgi in space", False),
        (PROMPT.replace("circle", "hexagon"), False),
    ],
)
def test_a_sentence_that_tiny_does_not_know_is_said_to_be_one(prompt: str, known: bool) -> None:
    done = longgen("generate", "--backbone", "tiny", "--dry-run", "--prompt", prompt)
    assert done.exit_code == 0
    assert ("a {size} {colour} {shape}" in done.stderr) != known


def test_other_backbones_have_no_grammar() -> None:
    done = longgen("generate", "--backbone", "hunyuanvideo", "--dry-run", "--prompt", "a corgi in space")
    assert (done.exit_code, done.stderr) == (0, "")


def test_a_batch_names_a_file_for_each_line() -> None:
    Path("prompts.txt").write_text(f"# two of them are the same\n{PROMPT}\n\n{PROMPT}\n../../etc/passwd\n")
    done = longgen(*BATCH, "prompts.txt", "--seed", "3", "-o", "out", "--dry-run", "--json")
    stem = "out/" + PROMPT.replace(" ", "-")
    assert json.loads(done.stdout)["outputs"] == [f"{stem}-3.mp4", f"{stem}-3-2.mp4", "out/etc-passwd-3.mp4"]


@settings(deadline=None)
@given(st.text())
@example("../../etc/passwd")
@example("/abs")
@example("\U0001f600\U0001f680")
@example("long " * 60)
@example("")
@example("...")
@example("a\x00b\nc\\d:e")
def test_a_prompt_cannot_lead_out_of_the_folder(prompt: str) -> None:
    for output, folder in ((None, Path(".")), ("out", Path("out")), ("/tmp/out/", Path("/tmp/out"))):
        path = naming.output_path(output, prompt, 7)
        assert path.parent == folder
        assert re.fullmatch(r"[^\W_][^/\\.:\x00-\x20]*-7\.mp4", path.name)
        assert len(path.name.encode()) <= 126
        assert path.name == unicodedata.normalize("NFC", path.name)
        assert naming.numbered(path, 2) != path


def videos(*args: str) -> list[dict[str, Any]]:
    """What a dry run of a batch would make."""
    done = longgen(*BATCH, *args, "--dry-run", "--json", "-q")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["videos"]


def test_rows_have_settings_of_their_own_over_the_flags() -> None:
    Path("p.csv").write_text("prompt,seed,output,frames,duration,steps,preset,negative_prompt,size,guidance_scale\n"
                             f"{PROMPT},5,a.mp4,17,,3,riflex,dark,96x64,2\n{PROMPT},,,,2s,,,,,\n{PROMPT},,,,,,,,,\n")  # fmt: skip
    first, second, third = videos("p.csv", "--seed", "1", "--frames", "33", "--steps", "9", "--cfg", "4", "-o", "out",
                                  "--fps", "8")  # fmt: skip
    assert first["output"] == "out/a.mp4"
    assert (first["seed"], first["frames"], first["preset"]) == (5, 17, "riflex")
    wanted = {"steps": 3, "negative_prompt": "dark", "size": [96, 64], "guidance_scale": 2.0, "fps": 8}
    assert {name: first["sample"][name] for name in wanted} == wanted
    assert (second["seed"], second["frames"], second["preset"], second["sample"]["steps"]) == (1, 17, "direct", 9)
    assert (third["frames"], third["sample"]["guidance_scale"], third["sample"]["size"]) == (33, 4.0, [64, 64])
    assert len({one["output"] for one in (first, second, third)}) == 3


def test_seeds_make_each_prompt_once_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGGEN_SEED", "9")
    Path("p.csv").write_text(f"prompt,preset\n{PROMPT},riflex\na red star,\n")
    made = videos("p.csv", "--seeds", "3,0,12", "-o", "out")
    stem = PROMPT.replace(" ", "-")
    assert [(one["output"], one["seed"], one["preset"]) for one in made] == [
        *((f"out/{stem}-{seed}.mp4", seed, "riflex") for seed in (3, 0, 12)),
        *((f"out/a-red-star-{seed}.mp4", seed, "direct") for seed in (3, 0, 12)),
    ]
    alone = json.loads(longgen(*GENERATE[:-2], "--seeds", "3,0", "--dry-run", "--json").stdout)
    assert alone["outputs"] == [f"{stem}-3.mp4", f"{stem}-0.mp4"]
    Path("seed.csv").write_text(f"prompt,seed\n{PROMPT},\n{PROMPT},3\n")
    Path("name.csv").write_text(f"prompt,output\n{PROMPT},a.mp4\n")
    for args, message in (
        ([*GENERATE, "--seeds", "1,2"], "--seeds cannot be combined with --seed"),
        ([*BATCH, "seed.csv", "--seeds", "1,2"], "line 3 of --prompts gives a seed of its own"),
        ([*BATCH, "name.csv", "--seeds", "1,2"], "line 2 of --prompts gives a single name for the videos of 2 seeds"),
        ([*GENERATE[:-2], "--seeds", "1,2", "-o", "a.mp4"], "--seeds makes several videos, but --output a.mp4 names a single file"),
        ([*GENERATE[:-2], "--seeds", "1,1"], "1 is given twice"),
        ([*GENERATE[:-2], "--seeds", ""], "'' is not a list of seeds"),
    ):
        done = longgen(*args, "--dry-run")
        check_error(done.stderr, done.stdout, [message, "expected: ", "hint: "])
        assert done.exit_code == 2


def test_rows_that_cannot_be_are_refused_by_their_line() -> None:
    for column, why in (
        ("backbone", "share one loaded model"),
        ("lora", "--lora"),
        ("schedule", "--schedule"),
        ("seeds", "--seeds"),
    ):
        Path("p.csv").write_text(f"prompt,{column}\n{PROMPT},x\n")
        Path("p.jsonl").write_text(json.dumps({"prompt": PROMPT, column: "x"}))
        for file in ("p.csv", "p.jsonl"):
            done = longgen(*BATCH, file, "--dry-run")
            check_error(done.stderr, done.stdout, [f"line 1: {column} is no column", why])
    Path("p.csv").write_text(f"prompt,preset,size\n{PROMPT},,\n{PROMPT},riflexx,\n")
    done = longgen(*BATCH, "p.csv", "--dry-run")
    check_error(done.stderr, done.stdout, ["line 3 of --prompts: no preset is called 'riflexx' (did you mean riflex"])
    Path("own.toml").write_text('[model]\nlora = ["style.safetensors"]\n')
    Path("p.csv").write_text(f"prompt,preset\n{PROMPT},\n{PROMPT},own.toml\n")
    done = longgen(*BATCH, "p.csv", "--dry-run")
    check_error(done.stderr, done.stdout, ["line 3 of --prompts: own", "does not have the LoRAs of direct in line 2"])
    Path("p.csv").write_text(f"prompt,size\n{PROMPT},65x64\n")
    done = longgen(*BATCH, "p.csv", "--dry-run")
    check_error(done.stderr, done.stdout, ["line 2 of --prompts: width 65", "multiples of 16"])
    for command in (["compare", "--presets", "direct"], ["probe"]):
        Path("p.csv").write_text(f"prompt,seed\n{PROMPT},3\n")
        done = longgen(*command, "--backbone", "tiny", "--prompts", "p.csv")
        check_error(done.stderr, done.stdout, ["line 2 gives seed", "--seeds"])
        assert done.exit_code == 2


@pytest.mark.parametrize(
    ("args", "note"),
    [
        (["-p", PROMPT, "--negative-prompt", "dark", "--cfg", "1"], "the negative prompt is ignored: guidance is off"),
        (["-p", PROMPT, "--clip-batch", "2"], "--clip-batch 2 has no effect"),
        (["-p", f"{PROMPT} " + " ".join(f"w{n}" for n in range(30))], "has 40 tokens, and tiny reads 24; not read: 'w14 w15"),
        (["-p", PROMPT, "--negative-prompt", "no " * 30, "--cfg", "2"], "the negative prompt has 31 tokens, and tiny reads 24"),
        (["--schedule", "shots.toml"], "shot 2 has 32 tokens, and tiny reads 24; not read: 'x22"),
        (["-p", PROMPT, "--preset", "freeloc@all", "--probe", "published"], "--probe published is ignored: the layers are all"),
        (["--prompts", "twins.txt", "--seed", "3"], "lines 1 and 2 of --prompts have the same prompt, seed"),
    ],
    ids=one_line,
)
def test_what_does_nothing_is_said_once(args: list[str], note: str) -> None:
    Path("twins.txt").write_text(f"{PROMPT}\n{PROMPT}\n")
    Path("shots.toml").write_text(
        f'[[shot]]\nprompt = "{PROMPT}"\n[[shot]]\nat = "1s"\nprompt = "{" ".join(f"x{n - 1}" for n in range(31))}"\n'
    )
    done = longgen("generate", "--backbone", "tiny", *args, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert (done.stderr + done.stdout).count(note) == 1
    assert note in done.stderr
    quiet = longgen("generate", "--backbone", "tiny", *args, "--dry-run", "-q")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_what_does_something_is_not_said_to_do_nothing() -> None:
    done = longgen(
        *DRY, "--negative-prompt", "dark", "--cfg", "2", "--clip-batch", "2", "--preset", "gen-l-video", "--frames", "161"
    )
    assert (done.exit_code, done.stderr) == (0, "")


def test_variables_that_nobody_reads_are_said_to_be_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGGEN_STEP", "9")
    monkeypatch.setenv("LONGGEN_FRAMES", "")
    said = longgen(*PLAN).stderr
    assert "longgen does not read the variable LONGGEN_STEP (did you mean LONGGEN_STEPS?)" in said
    assert "the variable LONGGEN_FRAMES is empty, which counts as unset" in said
    assert longgen(*PLAN, "-q").stderr == ""


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["--attention", "flash"], ["--attention flash cannot run here", "native"]),
        (["--attention", "flush"], ["--attention flush: diffusers has no such attention backend"]),
        (["--lora", "./nothing.safetensors"], ["--lora ./nothing.safetensors: no such file"]),
        (["--quantize", "int8"], ["torchao"]),
        (["--device", "cud"], ["--device cud"]),
        (["--device", "meta"], ["--device meta"]),
        (["--device", "cpu:1"], ["--device cpu:1", "expected: cpu"]),
        (["--device", ""], ["device = ''"]),
        (["--steps", "1001"], ["1001 steps", "1 to 1000"]),
    ],
)
def test_a_dry_run_checks_what_it_says(args: list[str], fragments: list[str]) -> None:
    if (args[1] == "int8" and importlib.util.find_spec("torchao")) or (
        args[1] == "flash" and importlib.util.find_spec("flash_attn")
    ):
        pytest.skip("it is installed here")
    done = longgen("generate", "--backbone", "tiny", "-p", PROMPT, "--dry-run", *args)
    check_error(done.stderr, done.stdout, ["expected: ", "hint: ", *fragments])


MAKE = ["generate", "--backbone", "tiny", "--frames", "5", "--steps", "1", "--seed", "1", "-q", "-p", "a corgi"]
LINE = f"-m longgen.cli {shlex.join(MAKE)}"
FULL = "could not be written to stdout: No space left on device"


@pytest.mark.parametrize(
    ("stdout", "code", "err"),
    [
        ("os.close(1); sys.stdout = None", 0, "a.mp4\n"),  # as Python finds it closed
        ("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", 1, f"{FULL}; the files were written: a.mp4"),
    ],
)
def test_a_video_is_made_where_stdout_is_closed_or_full(stdout: str, code: int, err: str, place: Path) -> None:
    done = warm.run(place, [*MAKE, "-o", "a.mp4"], f"import os, sys; {stdout}; {warm.CLI}", PYTHONIOENCODING="ascii")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert err in done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert (place / "a.mp4").is_file()


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("-m longgen.cli plan -m tiny <&- >&- 2>&-", 0, "", ""),
        ("-m longgen.cli plan 2>/dev/full", 0, "direct on", ""),
        ("-m longgen.cli presets list >/dev/full", 1, "", FULL),
        ("-m longgen.cli --help >/dev/full", 1, "", "stdout could not be written: No space left on device"),
        ("-m longgen.cli backbones show tiny 2>&-", 0, "prompts it knows", ""),
        ("-m longgen.cli plan -m nothing 2>&-", 2, "", ""),
        (f"{LINE} --dry-run -o $'\\u732b.mp4' | tail -n 1", 0, "would write: \\u732b.mp4", ""),
        (
            "-m longgen.cli generate -m tiny --dry-run -p $'\\e[31m\\u732b' 2>&1 | head -n 1",
            0,
            "'\\x1b[31m\\u732b' does not have",
            "",
        ),
        (f"mkdir gone; cd gone; rmdir ../gone; {LINE}", 1, "", "the current folder no longer exists"),
    ],
)
def test_streams_that_are_closed_full_or_of_few_letters(line: str, code: int, out: str, err: str, place: Path) -> None:
    before, _, command = line.rpartition("; ")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    script = f"{before + '; ' if before else ''}{sys.executable} {command}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert out or not done.stdout
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert not (place / "a.mp4").exists()


def test_an_export_holds_the_tables(place: Path) -> None:
    done = longgen(*PLAN, "--preset", "freespec", "--frames", "161", "--npz", "tables.npz", "--json")
    branches = json.loads(done.stdout)["branches"]
    frames_lat = json.loads(done.stdout)["latent_frames"]
    assert [branch["name"] for branch in branches] == ["global", "local"]
    with np.load(place / "tables.npz", allow_pickle=False) as tables:
        for branch in branches:
            for index in range(branch["passes"]):
                rel, visible, weight = (tables[f"{branch['name']}/{index}/{key}"] for key in ("rel", "visible", "weight"))
                assert rel.shape == visible.shape == (frames_lat, frames_lat)
                assert (rel.dtype, visible.dtype, weight.dtype) == (np.float64, bool, np.float64)
                assert weight.shape == (frames_lat,)
                assert visible.mean() == pytest.approx(branch["density"], abs=1e-6)
        assert not [
            name for name in tables.files if name.count("/") == 2 and name.split("/")[0] not in ("global", "local", "techniques")
        ]


def test_a_local_folder_is_a_backbone() -> None:
    known, found = (json.loads(longgen("backbones", "show", name, "--json").stdout) for name in ("tiny", str(TINY_FOLDER)))
    geometry = ("stride_t", "stride_hw", "patch", "layers", "heads", "head_dim", "ffn_dim", "latent_channels", "rotary_dims")
    assert {key: found[key] for key in geometry} == {key: known[key] for key in geometry}
