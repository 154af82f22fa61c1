"""The command line: parse, call one function, print. The only file that prints or exits.

stdout carries results only (with --json one object, or a list of objects with a name); progress and notes go to stderr.
Everything heavy is imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longgen import __version__
from longgen.errors import BatchError, LonggenError, MissingError, Terminated, UsageError

if TYPE_CHECKING:
    from longgen.backbones import Setup
    from longgen.backbones.spec import BackboneSpec
    from longgen.plan import Plan
    from longgen.run import Failure, Job, Result
    from longgen.schedule import Schedule

SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}

app = typer.Typer(name="longgen", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS,
                  help="Long videos from video diffusion models trained on short clips, without training.")  # fmt: skip
presets_app = typer.Typer(no_args_is_help=True, help="List, show and check presets.")
backbones_app = typer.Typer(no_args_is_help=True, help="List and show backbones.")
app.add_typer(presets_app, name="presets")
app.add_typer(backbones_app, name="backbones")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; errors only.")]
Preset = Annotated[str, typer.Option("--preset", envvar="LONGGEN_PRESET", help="A preset's name, or a TOML file.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="TECHNIQUE.KEY=VALUE", help="Change a preset's parameter; repeatable.")
]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", "-m", envvar="LONGGEN_BACKBONE", metavar="NAME|HUB-ID|DIR",
                 help="The model (default: wan2.1-1.3b with a GPU, else tiny)."),
]  # fmt: skip
ScheduleFile = Annotated[
    Path | None,
    typer.Option("--schedule", metavar="FILE.toml", help="Prompts that change over time, in place of --prompt."),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", "-f", "--num-frames", min=1, envvar="LONGGEN_FRAMES",
                 help="Pixel frames, rounded up to what the model makes (default: its native length)."),
]  # fmt: skip
Duration = Annotated[str | None, typer.Option("--duration", help="Length as 20s or 1m30s, in place of --frames.")]
Size = Annotated[str | None, typer.Option("--size", envvar="LONGGEN_SIZE", metavar="WxH", help="Picture size, as 832x480.")]
Steps = Annotated[
    int | None, typer.Option("--steps", "--num-inference-steps", min=1, envvar="LONGGEN_STEPS", help="Denoising steps.")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", "--cfg", min=0, max=100, envvar="LONGGEN_GUIDANCE_SCALE", help="Strength of the prompt."),
]  # fmt: skip
Negative = Annotated[str | None, typer.Option("--negative-prompt", envvar="LONGGEN_NEGATIVE_PROMPT", help="What to keep out.")]
Fps = Annotated[
    int | None, typer.Option("--fps", min=1, max=240, envvar="LONGGEN_FPS", help="Of the file only; the motion stays as it is.")
]
Dtype = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", envvar="LONGGEN_DTYPE", help="Of the transformer (default: the model's own on a GPU, fp32 on a CPU)."),
]  # fmt: skip
Device = Annotated[
    str | None, typer.Option("--device", envvar="LONGGEN_DEVICE", help="cpu, cuda or cuda:1 (default: the GPU if any).")
]
Offload = Annotated[
    Literal["none", "model", "group", "sequential"],
    typer.Option("--offload", envvar="LONGGEN_OFFLOAD", help="What diffusers keeps in host memory; slower from left to right."),
]

Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH[:SCALE]", help="A LoRA with its strength; repeatable; 1= or 2= before it: one expert."),
]
Quantize = Annotated[
    Literal["fp8", "int8"] | None,
    typer.Option("--quantize", envvar="LONGGEN_QUANTIZE", help="Keep weights in 8 bits; int8 needs torchao."),
]
Attention = Annotated[
    str | None,
    typer.Option("--attention", envvar="LONGGEN_ATTENTION", metavar="BACKEND", help="Attention backend of diffusers, as flash."),
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", envvar="LONGGEN_CACHE", metavar="NAME[:X]", help="Step cache of diffusers, as first-block:0.05."),
]
ClipBatch = Annotated[
    int,
    typer.Option(
        "--clip-batch", min=1, envvar="LONGGEN_CLIP_BATCH", help="Clips denoised in one call, where sampling goes by clips."
    ),
]
Tiling = Annotated[
    bool, typer.Option("--vae-tiling", envvar="LONGGEN_VAE_TILING", help="Decode in tiles: less memory, faint seams.")
]


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the errors of longgen.errors into one message and their exit code; LONGGEN_DEBUG=1 shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except LonggenError as error:
            if os.environ.get("LONGGEN_DEBUG") == "1":
                raise
            say(f"longgen: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            say(f"longgen: stopped by {'SIGTERM' if terminated else 'Ctrl-C'}; what was computed is on disk: "
                "the same command with --resume goes on from there")  # fmt: skip
            raise typer.Exit(Terminated.exit_code if terminated else 130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; say nothing more
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("LONGGEN_DEBUG") == "1":
                raise
            say(f"longgen: {type(error).__name__}: {error}\n  do: this is a defect of longgen; LONGGEN_DEBUG=1 shows where")
            raise typer.Exit(1) from None

    return wrapped


def say(message: str) -> None:
    """To a person, on stderr."""
    print(message, file=sys.stderr, flush=True)


def answer(text: str, data: Any, as_json: bool) -> None:
    """The result, on stdout."""
    print(json.dumps(data, indent=2) if as_json else text)


@app.command()
@reports_errors
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What the video shows.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="A text file, one prompt a line.")] = None,
    schedule: ScheduleFile = None,
    negative_prompt: Negative = None,
    frames: Frames = None,
    duration: Duration = None,
    size: Size = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**63 - 1, envvar="LONGGEN_SEED", help="(default: drawn and printed)")
    ] = None,
    fps: Fps = None,
    preset: Preset = "direct",
    set_: Set = None,
    backbone: Backbone = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = "none",
    lora: Lora = None,
    quantize: Quantize = None,
    attention: Attention = None,
    cache: Cache = None,
    vae_tiling: Tiling = False,
    clip_batch: ClipBatch = 1,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.mp4|DIR", help="(default: PROMPT-SEED.mp4 here)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from where this output's run was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again over an unfinished run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would run, load nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a video, or one for each line of a file of prompts."""
    from longgen import run

    flags = dict(frames=frames, size=None if size is None else parse_size(size), steps=steps, guidance_scale=guidance_scale,
                 negative_prompt=negative_prompt, fps=fps)  # fmt: skip
    if resume and overwrite:
        raise UsageError("--resume and --overwrite are both given", accepted="one of them", do="leave one out")
    loading = dict(device=device, dtype=dtype, offload=offload, lora=tuple(lora or ()), quantize=quantize, attention=attention,
                   cache=cache, vae_tiling=vae_tiling, clip_batch=clip_batch)  # fmt: skip
    if prompt is None and prompts is None and schedule is None and resume and output:
        plan, jobs, kept = plan_of_record(context, Path(output))
        loading |= kept
    else:
        shots = read_schedule(schedule, prompt, prompts)
        texts = [shots.shots[0].prompt] if shots else read_prompts(prompt, prompts)
        if prompts is not None and resume and seed is None:
            raise UsageError("--prompts with --resume and no --seed: a drawn seed cannot be found again",
                             accepted="--seed N, as printed by the first run", do="add it")  # fmt: skip
        if prompts is not None and output is not None and Path(output).suffix.lower() == ".mp4":
            raise UsageError(f"--prompts makes several videos, and --output {output} names one file", accepted="a folder",
                             do="give --output a folder")  # fmt: skip
        plan = make_plan(preset, set_, backbone, flags, duration, quiet, shots)
        if resume and seed is None:
            seed = kept_seed(output)
        jobs = []
        for text in texts:
            own_seed = run.draw_seed() if seed is None else seed
            jobs.append(run.Job(text, own_seed, run.output_path(output, text, own_seed, [job.output for job in jobs])))
        warn_of_grammar(plan.spec, [shot.prompt for shot in shots.shots] if shots else texts, quiet)
    for job in jobs:
        left = run.unfinished(job.output)
        if left and not resume and not overwrite:
            raise UsageError(f"{run.run_folder(job.output)} holds {left}", accepted="--resume or --overwrite",
                             do="--resume to go on from there, --overwrite to start again")  # fmt: skip
        run.check_writable(job.output)
    setup = make_setup(plan.spec, loading)
    if dry_run:
        from longgen.backbones import check_setup
        from longgen.show import plan_text

        check_setup(plan.spec, setup)
        names = [str(job.output) for job in jobs]
        text = plan_text(plan, setup.dtype, offload, tables=False)
        return answer(text + "\nwould write: " + ", ".join(names), plan.as_dict() | {"outputs": names}, as_json)
    from longgen.progress import progress

    tell = (lambda text: None) if quiet else say
    with progress(quiet, say) as report:
        results = run.generate_jobs(plan, jobs, setup, resume, report, tell)
    report_results(results, as_json, single=prompts is None)


def report_results(results: list[Result | Failure], as_json: bool, single: bool) -> None:
    """Results on stdout; a BatchError where some failed."""
    import dataclasses

    data = [dataclasses.asdict(result) for result in results]
    made, asked = [entry["output"] for entry in data if "error" not in entry], len(results)
    answer("\n".join(made), data[0] if single else data, as_json)
    if len(made) < asked:
        raise BatchError(
            f"{asked - len(made)} of {asked} videos failed", do="the same command with --resume --seed N makes the rest"
        )


def make_setup(spec: BackboneSpec, given: dict[str, Any]) -> Setup:
    """How to load `spec`, from the flags that are given and defaults for device and dtype."""
    from longgen.backbones import Setup, default_device, default_dtype

    device = given["device"] or default_device()
    return Setup(**given | {"device": device, "dtype": given["dtype"] or default_dtype(spec, device)})


def plan_of_record(context: typer.Context, output: Path) -> tuple[Plan, list[Job], dict[str, Any]]:
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
    job = run.Job(kept["prompt"], kept["seed"], output)
    loading = {name: kept.get(name) for name in ("dtype", "quantize", "attention", "cache")}
    return plan, [job], loading | {"lora": tuple(kept.get("lora", ())), "clip_batch": kept.get("clip_batch", 1)}


def kept_seed(output: str | None) -> int:
    """The seed of the run that --resume continues, where --output names it."""
    from longgen import run

    if output is None or Path(output).suffix.lower() != ".mp4":
        raise UsageError("--resume without --seed needs the --output FILE.mp4 of the run", accepted="--seed N or -o FILE.mp4",
                         do="add one of them")  # fmt: skip
    return run.stored_record(Path(output))["settings"]["seed"]


@app.command()
@reports_errors
def plan(
    preset: Preset = "direct",
    set_: Set = None,
    backbone: Backbone = None,
    frames: Frames = None,
    duration: Duration = None,
    size: Size = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    fps: Fps = None,
    schedule: ScheduleFile = None,
    dtype: Dtype = None,
    offload: Offload = "none",
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE.npz", help="Write the frame-plan tables.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what would run, with its tables, its cost against direct sampling and its memory; loads no weights."""
    from longgen.show import plan_text

    flags = dict(
        frames=frames, size=None if size is None else parse_size(size), steps=steps, guidance_scale=guidance_scale, fps=fps
    )
    made = make_plan(preset, set_, backbone, flags, duration, True, read_schedule(schedule, None, None))
    if export is not None:
        import numpy as np

        if export.suffix != ".npz":
            raise UsageError(f"--export {export}: tables are written as NumPy archives", accepted="a name in .npz",
                             do=f"take {export.with_suffix('.npz')}")  # fmt: skip
        try:
            np.savez_compressed(export, allow_pickle=False, **made.arrays())
        except OSError as error:
            raise LonggenError(f"{export} cannot be written: {error.strerror}", accepted="a folder that may be written to",
                               do="give another --export") from None  # fmt: skip
        if not quiet:
            say(f"tables written to {export}")
    kind = dtype or made.spec.dtype
    answer(plan_text(made, kind, offload), made.as_dict() | {"memory_bytes": made.memory_bytes(kind, offload)}, as_json)


@app.command()
@reports_errors
def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A run's folder, or the latents in it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.mp4", help="(default: beside the run)")] = None,
    device: Device = None,
    vae_tiling: Tiling = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn saved latents into a video, without sampling again."""
    from longgen import checkpoint, run

    if latents.suffix == ".run":
        latents = latents / ("latents" if (latents / "latents").is_dir() else "latents.safetensors")
    chunks = checkpoint.Chunks(latents, {})
    tensors, kept = ({}, chunks.kept()) if len(chunks) else checkpoint.load_tensors(latents)
    if "preset" not in kept or not (len(chunks) or "latents" in tensors):
        raise LonggenError(f"{latents} holds no latents of a run", accepted="a run's folder, or latents.safetensors in it",
                           do="check the path")  # fmt: skip
    if "done" in kept and not quiet:
        say(f"note: {latents} is a checkpoint after step {kept['done']}; the video will be noisy")
    made = run.plan_of(kept, latents)
    folder = latents.absolute().parent
    if output is None and 0 < len(chunks) < made.rounds:
        raise UsageError(f"{latents} holds {len(chunks)} of {made.rounds} chunks, and the name beside it is the whole video's",
                         accepted="--output FILE.mp4 for what there is", do=f"add -o {folder.stem}-so-far.mp4")  # fmt: skip
    target = output or (folder.with_suffix(".mp4") if folder.suffix == ".run" else latents.with_suffix(".mp4"))
    target = run.output_path(str(target), kept["prompt"], kept["seed"])
    run.check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in kept.items() if key not in ("done", "scheduler")}
    from longgen.progress import progress

    start = time.monotonic()
    with progress(quiet, say) as report:
        report(run.Progress("load", 0, 1, 0.0, None, run.memory_bytes("cpu")))
        from longgen.backbones import decoder, default_device

        where = device or default_device()
        frames_of = decoder(made.spec, where, vae_tiling)
        report(run.Progress("load", 1, 1, time.monotonic() - start, 0.0, run.memory_bytes("cpu")))
        frames_lat = chunks.frames(made.frames_lat) if len(chunks) else tensors["latents"]
        seconds, frames_px = run.decode_to(target, frames_of, frames_lat, made, where, settings, report)
    if frames_px < made.frames_px and not quiet:
        say(f"note: the stream was stopped before its end; these are {frames_px} frames of {made.frames_px}")
    result = {"name": target.stem, "output": str(target), "frames": frames_px, "seconds": {"decode": seconds}}
    answer(str(target), result, as_json)


@app.command()
@reports_errors
def inspect(
    video: Annotated[Path, typer.Argument(help="An MP4 that longgen wrote.")],
    toml: Annotated[bool, typer.Option("--toml", help="Print a preset that makes it again.")] = False,
    as_json: Json = False,
) -> None:
    """Print the settings stored in a video."""
    from longgen import run
    from longgen.video import read_settings

    kept = read_settings(video)
    if toml:
        made = run.plan_of(kept, video).preset
        call = f"longgen generate --prompt {json.dumps(kept['prompt'])} --backbone {kept['backbone']} --seed {kept['seed']}"
        return answer(f"# {call} --dtype {kept['dtype']} --preset THIS.toml\n{made.as_toml()}", made.as_dict(), as_json)
    rows = [f"{key:<12}{value if isinstance(value, str | int) else json.dumps(value)}" for key, value in kept.items()]
    answer("\n".join(rows), {"name": video.stem} | kept, as_json)


@app.command()
@reports_errors
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, GPU, ffmpeg, disk, caches."""
    from longgen import doctor as checks

    findings = checks.examine()
    lines = [f"{'ok  ' if finding.ok else 'BAD '}{finding.name:<16}{finding.value}" for finding in findings]
    answer("\n".join(lines), [finding._asdict() for finding in findings], as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@presets_app.command("list")
@reports_errors
def presets_list(as_json: Json = False) -> None:
    """Every preset that longgen ships: cost, techniques, backbones, paper."""
    from longgen import preset
    from longgen.show import preset_row, presets_text

    shipped = [preset.load(name) for name in preset.names()]
    answer(
        "" if as_json else presets_text(shipped), [one.as_dict() | preset_row(one) for one in shipped] if as_json else [], as_json
    )


@presets_app.command("show")
@reports_errors
def presets_show(
    name: Annotated[str, typer.Argument(help="A name or a TOML file.")], set_: Set = None, as_json: Json = False
) -> None:
    """A preset as TOML, every parameter written out."""
    from longgen import preset

    one = preset.load(name, set_ or ())
    answer(one.as_toml().rstrip(), one.as_dict(), as_json)


@presets_app.command("check")
@reports_errors
def presets_check(
    files: Annotated[list[str], typer.Argument(help="TOML files or names.")], backbone: Backbone = None, as_json: Json = False
) -> None:
    """Check presets; with --backbone also whether that backbone can run them."""
    from longgen import preset
    from longgen.backbones.find import find
    from longgen.plan import build

    checked = [preset.load(name) for name in files]
    if backbone is not None:
        for one in checked:
            build(one, find(backbone))
    answer("\n".join(f"{name}: fine" for name in files), [{"name": name, "ok": True} for name in files], as_json)


@backbones_app.command("list")
@reports_errors
def backbones_list(as_json: Json = False) -> None:
    """Every backbone by name."""
    from longgen.backbones.spec import SPECS

    rows = [f"{spec.name:<16}{spec.native_px:>4} frames native  {spec.about}" for spec in SPECS.values()]
    answer("\n".join(rows), [spec_dict(spec) for spec in SPECS.values()], as_json)


@backbones_app.command("show")
@reports_errors
def backbones_show(name: Annotated[str, typer.Argument(help="A name, a hub id or a folder.")], as_json: Json = False) -> None:
    """What is known of a backbone; for tiny also the prompts that it knows."""
    from longgen.backbones.find import find
    from longgen.show import backbone_text

    spec = find(name)
    answer(backbone_text(spec), spec_dict(spec), as_json)


def spec_dict(spec: BackboneSpec) -> dict[str, Any]:
    import dataclasses

    from longgen.backbones.tiny import grammar

    known = {"grammar": grammar.GRAMMAR, "words": {k: list(v) for k, v in grammar.SLOTS.items()}} if spec.name == "tiny" else {}
    return dataclasses.asdict(spec) | known


def read_schedule(path: Path | None, prompt: str | None, prompts: Path | None) -> Schedule | None:
    """The schedule of --schedule, which stands in place of the other sources of prompts."""
    from longgen import schedule

    if path is None:
        return None
    if prompt is not None or prompts is not None:
        raise UsageError("--schedule is given beside --prompt or --prompts", accepted="one of the three", do="leave the others out")
    return schedule.load(path)


def make_plan(
    name: str,
    overrides: list[str] | None,
    backbone: str | None,
    flags: dict[str, Any],
    duration: str | None,
    quiet: bool,
    schedule: Schedule | None,
) -> Plan:
    """Flags to a plan; says what a person should know."""
    from longgen import preset, run
    from longgen.backbones import default_backbone
    from longgen.backbones.find import find
    from longgen.plan import build

    spec = find(backbone or default_backbone())
    if backbone is None and spec.name == "tiny" and not quiet:
        say(
            "no GPU here: using the built-in model tiny (64x64); a real one: --backbone wan2.1-1.3b, a hub id or a diffusers folder"
        )
    made = build(run.load_preset(name, overrides or (), preset.Sample(**flags), duration, spec), spec, schedule)
    if not quiet:
        for note in made.notes:
            say(f"note: {note}")
    return made


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


def warn_of_grammar(spec: BackboneSpec, texts: list[str], quiet: bool) -> None:
    from longgen.backbones.tiny import grammar

    strange = [text for text in texts if spec.built_in and grammar.parse(text) is None]
    if strange and not quiet:
        say(f"note: {spec.name} knows one kind of sentence, and {strange[0]!r} is none; expect nonsense. "
            f"It knows:\n{grammar.describe()}")  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        print(f"longgen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _on_sigterm(number: int, frame: object) -> None:
    raise Terminated


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    app()


if __name__ == "__main__":
    main()
