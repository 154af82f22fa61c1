"""What the flags ask for: a plan, its prompts, how to load the model; or the run that --resume goes on from."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longgen.cli.app import say
from longgen.errors import LonggenError, UsageError, shown
from longgen.textfile import on_one_line

if TYPE_CHECKING:
    from longgen import preset as presets
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.spec import BackboneSpec
    from longgen.plan import Plan
    from longgen.prompts import Row
    from longgen.run import Asked
    from longgen.schedule import PromptSchedule


def make_plan(
    name: str,
    overrides: list[str] | None,
    backbone: str | None,
    flags: dict[str, Any],
    duration: str | None,
    quiet: bool,
    schedule: PromptSchedule | None,
    layers: str | None,
    probe: str | None,
    lora: tuple[str, ...] = (),
) -> Plan:
    """Flags to a plan; says what a person should know."""
    from longgen import preset, resolve

    spec = backbone_asked(backbone, quiet)
    made = resolve.planned(name, spec, overrides or (), preset.Sample(**flags), duration, schedule, layers, probe, lora)
    say_notes(made.notes, quiet)
    return made


def backbone_asked(name: str | None, quiet: bool) -> BackboneSpec:
    """The backbone called `name`, or the one that serves here."""
    from longgen.backbones.defaults import default_backbone
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
    from longgen import preset, resolve
    from longgen.layers import selection

    spec = backbone_asked(backbone, quiet=True)
    return resolve.load_preset(selection.split(name)[0], overrides or (), preset.Sample(**flags), duration, spec), spec


def parse_size(size: str) -> tuple[int, int]:
    from longgen import prompts

    return prompts.parse_size(size)


def read_rows(
    prompt: str | None, prompts: Path | None, quiet: bool, columns: Collection[str] | None = None, why: str = ""
) -> list[Row]:
    """The videos asked for: one of a prompt, or those of a file. columns, why: see `longgen.prompts.read`."""
    from longgen import prompts as files

    if (prompt is None) == (prompts is None):
        raise UsageError("give --prompt or --prompts, not both" if prompt is not None else "nothing to show: no prompt is given",
                         expected="--prompt TEXT, or --prompts FILE", hint='for example --prompt "a red circle"')  # fmt: skip
    if prompt is not None:
        return [files.Row(prompt=files.checked(prompt, "--prompt"))]
    assert prompts is not None
    rows, notes = files.read(prompts, files.COLUMNS if columns is None else columns, why)
    say_notes(notes, quiet)
    return rows


def read_prompts(prompt: str | None, prompts: Path | None, quiet: bool, instead: str) -> list[str]:
    """The prompts asked for, where a file may give nothing else; `instead` names what gives the rest."""
    texts = [row.prompt for row in read_rows(prompt, prompts, quiet, ("prompt",), f"which is one for all prompts here: {instead}")]
    again = next((text for text in texts if texts.count(text) > 1), None)
    if again is not None:
        say_notes([f"'{on_one_line(again, 60)}' is there {texts.count(again)} times, and counts once"], quiet)
    return [*dict.fromkeys(texts)]


def say_notes(notes: Iterable[str], quiet: bool) -> None:
    """Each note once, on stderr."""
    for note in () if quiet else dict.fromkeys(notes):
        say(f"note: {note}")


def read_names(text: str) -> list[str]:
    """`direct, freespec` as names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_seeds(seeds: str) -> tuple[int, ...]:
    """`0,1,5` as numbers."""
    parts = [part.strip() for part in seeds.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,19}", part) and int(part) < 2**63 for part in parts):
        raise UsageError(
            f"--seeds {shown(seeds)} are no seeds", expected="different numbers from 0 on, as 0,1,2", hint="write them so"
        )
    numbers = [int(part) for part in parts]
    again = next((number for number in numbers if numbers.count(number) > 1), None)
    if again is not None:
        raise UsageError(f"--seeds {shown(seeds)} are no seeds: {again} is there twice, and a seed makes one video",
                         expected="different numbers from 0 on, as 0,1,2", hint="leave one out")  # fmt: skip
    return tuple(numbers)


def read_schedule(path: Path | None, prompt: str | None, prompts: Path | None) -> PromptSchedule | None:
    """The schedule of --schedule, which stands in place of the other sources of prompts."""
    from longgen import schedule

    if path is None:
        return None
    if prompt is not None or prompts is not None:
        raise UsageError(
            "--schedule is given beside --prompt or --prompts", expected="one of the three", hint="leave the others out"
        )
    return schedule.load(path)


def rows_of(schedule: PromptSchedule) -> list[Row]:
    """The one video of a schedule, which is named by its first shot."""
    from longgen.prompts import Row

    return [Row(prompt=schedule.shots[0].prompt)]


def plans_of_rows(
    rows: Sequence[Row],
    name: str,
    overrides: list[str] | None,
    backbone: str | None,
    flags: dict[str, Any],
    duration: str | None,
    quiet: bool,
    schedule: PromptSchedule | None,
    layers: str | None,
    probe: str | None,
    lora: tuple[str, ...],
) -> list[Plan]:
    """For each row the plan of what it gives, over the flags; says what a person should know. Rows that are alike share one."""
    from longgen import preset, resolve
    from longgen.layers import selection

    spec, taken = backbone_asked(backbone, quiet), set[str]()
    made: dict[Any, Plan] = {}
    plans: list[Plan] = []
    for row in rows:
        asked = preset.Sample(**flags)
        length = duration if row.frames is None else None
        if row.duration is not None:
            asked, length = asked.model_copy(update={"frames": None}), row.duration
        sample, own, how = row.sample.over(asked), [*(overrides or ())], (layers, probe)
        try:
            if row.preset is not None:  # as in a comparison, each preset takes what is meant for it
                own = preset.fitting(selection.split(row.preset)[0], own)
                how = how if selection.asks(preset.load(selection.split(row.preset)[0])) else (None, None)
            key = (row.preset or name, sample.model_dump_json(), length, how)
            if key not in made:
                made[key] = resolve.planned(row.preset or name, spec, own, sample, length, schedule, *how, lora)
        except LonggenError as error:
            if not row.line:
                raise
            raise type(error)(f"line {row.line} of --prompts: {error.given}", error.expected, error.hint) from None
        taken.update(own)
        plans.append(made[key])
    idle = next((override for override in overrides or () if override not in taken), None)
    if idle is not None:
        raise UsageError(f"--set {shown(idle)}: none of the rows' presets takes it", hint="correct it, or leave it out",
                         expected="technique.key=value, of a technique that one of them has")  # fmt: skip
    say_notes((note for plan in plans for note in plan.notes), quiet)
    return plans


def asked_of(rows: Sequence[Row], plans: Sequence[Plan], seed: int | None, output: str | None, quiet: bool) -> list[Asked]:
    """The videos that `rows` ask for; says which would be the same, byte for byte."""
    from longgen import run

    asked = []
    for row, plan in zip(rows, plans, strict=True):
        number = next((one for one in (row.seed, seed) if one is not None), None)
        place = output if row.output is None else str(Path(output or ".") / row.output)
        asked.append(run.Asked(plan, row.prompt, run.draw_seed() if number is None else number, place))
    first: dict[Any, int] = {}
    for row, one in zip(rows, asked, strict=True):
        line = first.setdefault((id(one.plan), one.prompt, one.seed), row.line)
        if line != row.line:
            say_notes([f"lines {line} and {row.line} of --prompts have one prompt, one seed and the same settings: they make the "
                       "same video twice"], quiet)  # fmt: skip
    return asked


def make_setup(spec: BackboneSpec, given: dict[str, Any]) -> ModelSettings:
    """How to load `spec`, from the flags that are given and defaults for device and dtype."""
    from longgen.backbones.defaults import default_device, default_dtype
    from longgen.backbones.settings import ModelSettings

    device = default_device() if given["device"] is None else given["device"]
    return ModelSettings(**given | {"device": device, "dtype": given["dtype"] or default_dtype(spec, device)})


def warn_of_grammar(spec: BackboneSpec, texts: list[str], quiet: bool) -> None:
    from longgen.backbones import tiny_grammar

    strange = [text for text in texts if spec.built_in and tiny_grammar.parse(text) is None]
    if strange:
        say_notes([f"{spec.name} knows one kind of sentence, and '{on_one_line(strange[0], 200)}' is none; expect nonsense. "
                   f"It knows:\n{tiny_grammar.describe()}"], quiet)  # fmt: skip


def plan_of_record(context: typer.Context, output: Path) -> tuple[Plan, list[Asked], dict[str, Any]]:
    """`longgen generate -o ball.mp4 --resume`: plan, job and what decides the latents come from the run's own record."""
    from longgen import resolve, run

    free = {"output", "resume", "device", "offload", "vae_tiling", "dry_run", "as_json", "quiet"}
    given = [
        name for name in context.params if name not in free and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        names = ", ".join("--" + name.strip("_").replace("_", "-") for name in given)
        raise UsageError(f"--resume without --prompt takes every setting from the run, and {names} is given",
                         expected="--output, --device, --offload, --vae-tiling, --dry-run, --json and --quiet",
                         hint=f"leave {names} out, or give the whole command again")  # fmt: skip
    kept = run.stored_record(output)["settings"]
    plan = resolve.plan_of(kept, run.run_folder(output) / "run.json")
    job = run.Asked(plan, kept["prompt"], kept["seed"], str(output))
    loading = {name: kept.get(name) for name in ("dtype", "quantize", "attention", "cache")}
    return plan, [job], loading | {
        "lora": tuple(kept.get("lora", ())), "compile": kept.get("compile", False), "clip_batch": kept.get("clip_batch", 1),
    }  # fmt: skip


def kept_seed(output: str | None) -> int:
    """The seed of the run that --resume continues, where --output names it."""
    from longgen import run

    if output is None or Path(output).suffix.lower() != ".mp4":
        raise UsageError("--resume without --seed needs the --output FILE.mp4 of the run", expected="--seed N or -o FILE.mp4",
                         hint="add one of them")  # fmt: skip
    return run.stored_record(Path(output))["settings"]["seed"]
