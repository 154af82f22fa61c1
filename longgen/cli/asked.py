"""What the flags ask for: a plan, its prompts, how to load the model; or the run that --resume goes on from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longgen.cli.root import say
from longgen.errors import MissingError, UsageError

if TYPE_CHECKING:
    from longgen import preset as presets
    from longgen.backbones import Setup
    from longgen.backbones.spec import BackboneSpec
    from longgen.plan import Plan
    from longgen.run import Asked
    from longgen.schedule import Schedule


def make_plan(
    name: str,
    overrides: list[str] | None,
    backbone: str | None,
    flags: dict[str, Any],
    duration: str | None,
    quiet: bool,
    schedule: Schedule | None,
    layers: str | None,
    probe: str | None,
    lora: tuple[str, ...] = (),
) -> Plan:
    """Flags to a plan; says what a person should know."""
    from longgen import preset, run

    spec = backbone_asked(backbone, quiet)
    made = run.planned(name, spec, overrides or (), preset.Sample(**flags), duration, schedule, layers, probe, lora)
    if not quiet:
        for note in made.notes:
            say(f"note: {note}")
    return made


def backbone_asked(name: str | None, quiet: bool) -> BackboneSpec:
    """The backbone called `name`, or the one that serves here."""
    from longgen.backbones import default_backbone
    from longgen.backbones.find import find

    spec = find(name or default_backbone())
    if name is None and spec.built_in and not quiet:
        say(
            "no GPU here: using the built-in model tiny (64x64); a real one: --backbone wan2.1-1.3b, a hub id or a diffusers folder"
        )
    return spec


def preset_asked(
    name: str, overrides: list[str] | None, backbone: str | None, flags: dict[str, Any], duration: str | None
) -> tuple[presets.Preset, BackboneSpec]:
    """The preset called `name`, however its layers are chosen, under the flags, and the backbone."""
    from longgen import preset, run
    from longgen.probe import choose

    spec = backbone_asked(backbone, quiet=True)
    return run.load_preset(choose.split(name)[0], overrides or (), preset.Sample(**flags), duration, spec), spec


def parse_size(size: str) -> tuple[int, int]:
    """`832x480`, `832*480` or `832X480` as (width, height)."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})[x*]([1-9][0-9]{0,4})", size.strip().lower())
    if match is None:
        raise UsageError(f"--size {size!r} is no picture size", accepted="WIDTHxHEIGHT in pixels, as 832x480", do="write it so")
    return int(match[1]), int(match[2])


def read_prompts(prompt: str | None, prompts: Path | None) -> list[str]:
    """The prompts asked for: one, or the lines of a file that are neither empty nor begin with #."""
    if (prompt is None) == (prompts is None):
        raise UsageError("give --prompt or --prompts, not both" if prompt is not None else "nothing to show: no prompt is given",
                         accepted="--prompt TEXT, or --prompts FILE", do='for example --prompt "a red circle"')  # fmt: skip
    if prompt is not None:
        return [prompt]
    assert prompts is not None
    try:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise MissingError(f"--prompts {prompts} is not there", accepted="a text file", do="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {prompts} cannot be read: {error}", accepted="a text file in UTF-8", do="check it") from None
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise UsageError(f"--prompts {prompts} holds no prompt", accepted="one prompt a line", do="write some")
    return texts


def read_names(text: str) -> list[str]:
    """`direct, freespec` as names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_seeds(seeds: str) -> tuple[int, ...]:
    """`0,1,5` as numbers."""
    parts = [part.strip() for part in seeds.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,19}", part) and int(part) < 2**63 for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"--seeds {seeds!r} are no seeds", accepted="different numbers from 0 on, as 0,1,2", do="write them so")
    return tuple(int(part) for part in parts)


def read_schedule(path: Path | None, prompt: str | None, prompts: Path | None) -> Schedule | None:
    """The schedule of --schedule, which stands in place of the other sources of prompts."""
    from longgen import schedule

    if path is None:
        return None
    if prompt is not None or prompts is not None:
        raise UsageError("--schedule is given beside --prompt or --prompts", accepted="one of the three", do="leave the others out")
    return schedule.load(path)


def make_setup(spec: BackboneSpec, given: dict[str, Any]) -> Setup:
    """How to load `spec`, from the flags that are given and defaults for device and dtype."""
    from longgen.backbones import Setup, default_device, default_dtype

    device = given["device"] or default_device()
    return Setup(**given | {"device": device, "dtype": given["dtype"] or default_dtype(spec, device)})


def warn_of_grammar(spec: BackboneSpec, texts: list[str], quiet: bool) -> None:
    from longgen.backbones.tiny import grammar

    strange = [text for text in texts if spec.built_in and grammar.parse(text) is None]
    if strange and not quiet:
        say(f"note: {spec.name} knows one kind of sentence, and {strange[0]!r} is none; expect nonsense. "
            f"It knows:\n{grammar.describe()}")  # fmt: skip


def plan_of_record(context: typer.Context, output: Path) -> tuple[Plan, list[Asked], dict[str, Any]]:
    """`longgen generate -o ball.mp4 --resume`: plan, job and what decides the latents come from the run's own record."""
    from longgen import run

    free = {"output", "resume", "device", "offload", "vae_tiling", "dry_run", "as_json", "quiet"}
    given = [
        name for name in context.params if name not in free and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        names = ", ".join("--" + name.strip("_").replace("_", "-") for name in given)
        raise UsageError(f"--resume without --prompt takes every setting from the run, and {names} is given",
                         accepted="--output, --device, --offload, --vae-tiling, --dry-run, --json and --quiet",
                         do=f"leave {names} out, or give the whole command again")  # fmt: skip
    kept = run.stored_record(output)["settings"]
    plan = run.plan_of(kept, run.run_folder(output) / "run.json")
    job = run.Asked(plan, kept["prompt"], kept["seed"], str(output))
    loading = {name: kept.get(name) for name in ("dtype", "quantize", "attention", "cache")}
    return plan, [job], loading | {
        "lora": tuple(kept.get("lora", ())), "compile": kept.get("compile", False), "clip_batch": kept.get("clip_batch", 1),
    }  # fmt: skip


def kept_seed(output: str | None) -> int:
    """The seed of the run that --resume continues, where --output names it."""
    from longgen import run

    if output is None or Path(output).suffix.lower() != ".mp4":
        raise UsageError("--resume without --seed needs the --output FILE.mp4 of the run", accepted="--seed N or -o FILE.mp4",
                         do="add one of them")  # fmt: skip
    return run.stored_record(Path(output))["settings"]["seed"]
