"""longgen bench: what presets cost in time and memory, relative to direct sampling and to their arithmetic."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longgen import units
from longgen.cli import complete, inputs
from longgen.cli import options as opt
from longgen.cli.app import answer, app, logger, progress_shown, report_stop, say, take_rank
from longgen.cli.messages import report_columns
from longgen.errors import BatchError, LonggenError, OutOfMemoryError, UsageError, conflict

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.spec import BackboneSpec
    from longgen.bench.accelerators import AcceleratorReport
    from longgen.bench.record import BenchResult, LengthsResult
    from longgen.bench.run import Plans
    from longgen.conditions import Conditions
    from longgen.pipelines.base import PipelineBackbone

COUNTED = "wan2.1-1.3b"  # the backbone that --count takes where none is named
MOST_TIMES = 1000  # the native length
PRESETS = "direct,sliding-window,freenoise,freeloc,freelong,freepca,freespec,longdiff"


@dataclass(frozen=True)
class TargetOptions:
    """What is measured."""

    presets: Annotated[
        str, typer.Option("--presets", metavar="NAME,NAME", autocompletion=complete.list_of_presets, help="Presets or TOML files.")
    ] = PRESETS
    backbone: opt.Backbone = None
    shape: Annotated[
        str | None,
        typer.Option("--shape", metavar="NAME", help="A synthetic transformer for measuring, in place of a model: cpu-attention."),
    ] = None
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build the model from its known dimensions; nothing is downloaded.")
    ] = False
    count: Annotated[
        bool,
        typer.Option(
            "--count",
            help="Count instead, without a GPU, what a layer asks of one (launches, copies, waits, "
            "operations, bytes), and estimate the time of a run.",
        ),
    ] = False
    card: opt.Card = None
    accelerate: Annotated[
        str | None,
        typer.Option("--accelerate", metavar="NAME,NAME",
                     help="Measure instead what these do to the presets' videos: first-block, mag, NAME:THRESHOLD, compile."),
    ] = None  # fmt: skip
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt for --accelerate, in place of a built-in one.")
    ] = None
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="The first frame (default: grey, where the model needs one).")
    ] = None
    frames: Annotated[int | None, opt.frames_option("321")] = None
    duration: opt.Duration = None
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", metavar="N,N", help="Measure at these multiples of the native length, as one table."),
    ] = None
    size: opt.Size = None
    flow_shift: opt.FlowShift = None
    repeats: Annotated[int, typer.Option("--repeats", min=1, metavar="K", help="How often each type of step is measured.")] = 3
    overrides: opt.Set = None
    probe: opt.Probe = None
    allow_code: opt.AllowCode = False


@dataclass(frozen=True)
class BenchModelOptions(opt.DeviceOptions):
    """The model settings that a step's time depends on."""

    attention: opt.Attention = None
    cache: opt.Cache = None
    compile: opt.Compile = False
    clip_batch: opt.ClipBatch = 1
    gpus: opt.Gpus = None
    guidance_parallel: opt.GuidanceParallel = False


@app.command()
def bench(
    context: typer.Context,
    target: TargetOptions,
    model: BenchModelOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.json", help="Write the JSON there too.")] = None,
    export: opt.Export = None,
    *,
    options: opt.LoggedOptions,
) -> None:
    """Measure what presets cost in time and memory, relative to direct sampling.

    Runs real steps of every type, and compares their time with their arithmetic too.

    With --lengths 2,3,4, at two, three and four times the native length, as one table.

    With --accelerate, whole runs: what step caches and compiling do to each preset's video, and to its time.

    With --gpus N, how a step is shared out between N ranks: operations and bytes of each, against the ideal and the plan.

    With --count, nothing runs: operators are counted at the published size, and times are estimated from a card's published rates.
    """
    from longgen import disk, run
    from longgen.backbones import tiny_grammar
    from longgen.bench import accelerators, accelerators_table, table
    from longgen.bench import run as running
    from longgen.bench.synthetic import FRAMES, SHAPES
    from longgen.loops import PROMPTS
    from longgen.planner import length_px

    given = opt.given_options(context)  # of the command line alone: a variable may be set for other commands
    _check_target(target, model, given)
    if model.gpus is not None and model.gpus > 1:
        return _on_ranks(target, model, given, output, options)
    if target.shape is not None and target.shape not in SHAPES:
        raise UsageError(f"--shape {target.shape} does not exist", expected=", ".join(SHAPES), hint="use one of them")
    formats = _formats(export, output, target.count, options.overwrite)
    if output is not None:
        disk.check_new(output, options.overwrite)
    if target.count:
        _count(target, model, given, output, options)
        return
    spec = inputs.choose_backbone(target.backbone, options.quiet) if target.shape is None else SHAPES[target.shape]
    settings = inputs.model_settings(spec, model.settings() | {"gpus": 1})
    accelerate_by = _accelerators(target.accelerate, spec) if target.accelerate is not None else ()
    by_length = {times: _planned(target, spec, length_px(spec, times)) for times in _lengths(target.lengths)}
    plans = {} if by_length else _planned(target, spec, units.frames_asked(target.frames, target.duration, spec.fps) or FRAMES)

    def load(settings: ModelSettings) -> PipelineBackbone:
        if target.shape is None and not target.random_weights:
            return run.load(spec, settings)[0]
        from longgen.pipelines.random_weights import build

        return build(spec, settings)

    prompt = target.prompt
    if prompt is None:
        prompt = tiny_grammar.HELD_OUT[0].prompt if spec.built_in else PROMPTS[0]
    elif accelerate_by:
        inputs.warn_of_grammar(spec, [prompt], options.quiet)
    result: AcceleratorReport | BenchResult | LengthsResult
    with progress_shown(options.quiet) as report:
        if accelerate_by:
            result = accelerators.measure_accelerators(plans, accelerate_by, load, settings, prompt, report)
            text = accelerators_table.text(result, report_columns())
        elif by_length:
            loaded, shape = functools.cache(load), target.shape is not None
            result = _at_lengths(by_length, lambda plans: running.bench(plans, lambda: loaded(settings), settings, target.repeats,
                                                                        shape, report))  # fmt: skip
            text = table.lengths_text(result, report_columns())
        else:
            result = running.bench(plans, lambda: load(settings), settings, target.repeats, target.shape is not None, report)
            text = table.text(result, report_columns())
    _write(result, text, output, options, formats)


FOR_RANKS = ("presets", "backbone", "frames", "duration", "dtype", "device", "gpus", "guidance_parallel", "output", "overwrite",
             "as_json", "quiet", "log_file")  # fmt: skip


def _on_ranks(
    target: TargetOptions, model: BenchModelOptions, given: dict[str, str], output: Path | None, options: opt.LoggedOptions
) -> None:
    """`--gpus N`: what each of N ranks counts in a step. Starts them, where they are not these."""
    from longgen import disk, launch, ranks
    from longgen.backbones.defaults import default_device

    if others := ", ".join(option for name, option in given.items() if name not in FOR_RANKS):
        raise UsageError(f"--gpus counts a step of presets on their backbone, and takes no {others}",
                         expected="--presets, --backbone, --frames, --dtype, --device and --guidance-parallel with it",
                         hint=f"leave out {others}")  # fmt: skip
    take_rank()
    size = model.gpus or 1
    device = model.device or default_device()
    launch.check_device(size, device)
    spec = inputs.choose_backbone(target.backbone, options.quiet or launch.started())
    settings = inputs.model_settings(spec, model.settings() | {"gpus": size})
    if ranks.from_environment().size == 1:
        launch.check(size, device, sys.argv[1:])
        if (ended := launch.run(size, sys.argv[1:])) is not None:
            raise ended.error
        return
    team = ranks.join(size, device)
    from longgen.bench import ranks as measuring

    frames = units.frames_asked(target.frames, target.duration, spec.fps)
    plans = measuring.plans_for(inputs.parse_names(target.presets), spec, frames, steps=2)
    rows = measuring.measure(plans, settings.replace(device=team.device(settings.device)))
    if team.writes:
        data = {"backbone": spec.name, "gpus": size, "presets": [row.as_dict() for row in rows]}
        if output is not None:
            disk.save_json(output, data)
        answer(measuring.text(rows, spec.name, size, report_columns()), data, options.as_json, wrote=output is not None)
    if all(row.error is not None for row in rows):
        raise UsageError(f"none of the presets can be split between {size} ranks: {rows[0].error}",
                         expected="a backbone and presets that can", hint="longgen plan --gpus says why each cannot")  # fmt: skip


def _planned(target: TargetOptions, spec: BackboneSpec, frames_px: int) -> Plans:
    """The plans of the presets at a length, or why there is none."""
    from longgen import preset
    from longgen.bench.run import plan_presets
    from longgen.resolve import PlanRequest

    sample = preset.Sample(frames=frames_px, size=opt.parse_size(target.size), flow_shift=target.flow_shift)
    probe = "published" if target.shape is not None and target.probe is None else target.probe
    request = PlanRequest("", spec, (*(target.overrides or ()),), sample, probe=probe, allow_code=target.allow_code,
                          conditions=_conditions(target.image, spec))  # fmt: skip
    return plan_presets(inputs.parse_names(target.presets), request)


def _at_lengths(by_length: dict[int, Plans], measured: Callable[[Plans], BenchResult]) -> LengthsResult:
    """`measured` at one length after the other, as far as memory and the user allow. Raises what the first length raises."""
    from longgen.bench.record import DIRECT, LengthsResult

    for plans in by_length.values():
        if isinstance(baseline := plans[DIRECT], LonggenError):
            raise baseline
    result = LengthsResult({})
    for times, plans in by_length.items():
        try:
            result.results[times] = measured(plans)
        except OutOfMemoryError as error:
            if not result.results:
                raise
            say(f"longgen: nothing is measured at {times} times the native length and more: {error.given}")
            break
        if result.stopped is not None:
            break
    return result


def _count(
    target: TargetOptions, model: BenchModelOptions, given: dict[str, str], output: Path | None, options: opt.OutputOptions
) -> None:
    """`--count`: by preset what a layer asks of a GPU."""
    from longgen import cards, disk, preset
    from longgen.bench import run as running
    from longgen.bench.count import count_plan
    from longgen.bench.count_table import Counts, count_dict, count_text
    from longgen.bench.synthetic import SHAPES
    from longgen.planner import LONG, length_px
    from longgen.progress import Phase
    from longgen.resolve import PlanRequest

    names = inputs.parse_names(target.card) if target.card is not None else []
    chosen = [cards.card_named(name) for name in names] or [cards.card_here() or cards.CARDS[cards.DEFAULT]]
    spec = SHAPES[target.shape] if target.shape else inputs.choose_backbone(target.backbone or COUNTED, options.quiet)
    sample = preset.Sample(
        frames=units.frames_asked(target.frames, target.duration, spec.fps) or length_px(spec, LONG),
        size=opt.parse_size(target.size),
        flow_shift=target.flow_shift,
    )
    probe = target.probe or ("published" if spec.verdicts else None)
    request = PlanRequest("", spec, (*(target.overrides or ()),), sample, probe=probe, allow_code=target.allow_code,
                          conditions=_conditions(None, spec))  # fmt: skip
    plans, dtype = running.plan_presets(inputs.parse_names(target.presets), request), model.dtype or spec.dtype
    yardstick, counts = plans[running.DIRECT], dict[str, Any]()
    if isinstance(yardstick, LonggenError):
        raise yardstick
    with progress_shown(options.quiet) as report:
        phase = Phase("count", len(plans), "cpu", report)
        for number, (name, plan) in enumerate(plans.items(), start=1):
            try:
                counts[name] = plan.given if isinstance(plan, LonggenError) else count_plan(plan, dtype)
            except LonggenError as error:
                counts[name] = error.given
            phase.at(number, number, len(plans) - number)
    found: Counts = counts
    data = count_dict(found, yardstick, dtype, chosen)
    if output is not None:
        disk.make_folder(output.parent)
        disk.save_json(output, data)
    text = count_text(found, yardstick, dtype, chosen, report_columns())
    answer(text, data, options.as_json, wrote=output is not None)
    failed = {name: fault for name, fault in counts.items() if isinstance(fault, str)}
    if failed:
        name, fault = next(iter(failed.items()))
        raise BatchError(f"{len(failed)} of {len(counts)} could not be counted: {name}: {fault}",
                         hint="leave them out, or correct them")  # fmt: skip


def _conditions(image: Path | None, spec: BackboneSpec) -> Conditions:
    """The pictures that a model which needs some is measured with, the first of them by `image`."""
    from dataclasses import replace

    from longgen import start
    from longgen.planner import stand_in

    return stand_in(spec) if image is None else replace(stand_in(spec), image=start.read(image).image)


def _check_target(target: TargetOptions, model: BenchModelOptions, given: dict[str, str]) -> None:
    """Raises UsageError for options that cannot be combined."""
    accelerate, alone = target.accelerate is not None, "leave the others out"
    running = (
        "accelerate",
        "random_weights",
        "prompt",
        "image",
        "repeats",
        "device",
        "offload",
        "attention",
        "cache",
        "compile",
        "clip_batch",
    )
    measured = [given[name] for name in running if name in given]
    if target.count and measured:
        raise conflict("--count", ", ".join(measured), "nothing is run, and the model is counted as it is",
                       "--count with --presets, --backbone or --shape, --frames, --size, --dtype and --card", alone)  # fmt: skip
    if "card" in given and not target.count:
        raise UsageError("--card has no effect without --count: times are measured on the device at hand",
                         expected="--card with --count", hint="leave it out, or add --count")  # fmt: skip
    if accelerate and (target.shape is not None or target.random_weights):
        raise conflict("--accelerate", "--shape or --random-weights", "it compares videos, which need trained weights",
                       "a model with its own weights: --backbone", alone)  # fmt: skip
    if accelerate and (model.cache is not None or model.compile):
        raise conflict("--accelerate", "--cache or --compile (or LONGGEN_CACHE, LONGGEN_COMPILE)", "",
                       "--accelerate alone, as --accelerate first-block:0.05,compile", "name there what to measure")  # fmt: skip
    if accelerate and "repeats" in given:
        raise conflict("--accelerate", "--repeats", "it measures whole runs", hint="leave --repeats out")
    if target.lengths is not None and (accelerate or target.count or (target.frames, target.duration) != (None, None)):
        raise conflict("--lengths", "--frames, --duration, --count or --accelerate", "it measures steps at several lengths",
                       "--lengths with --presets, and --backbone or --shape", alone)  # fmt: skip
    if target.shape is not None and ("backbone" in given or target.random_weights):
        raise conflict("--shape", "--backbone or --random-weights", "it replaces both", hint=alone)
    if target.probe == "run":
        raise conflict("--probe run", "bench", "it generates videos", "a probe's file, or published",
                       "longgen probe first, or a preset @all")  # fmt: skip
    if not accelerate and target.prompt is not None:
        raise UsageError("--prompt has no effect without --accelerate: the cost of a step does not depend on it",
                         expected="--prompt with --accelerate", hint="leave it out, or add --accelerate")  # fmt: skip
    if model.cache is not None and model.cache.partition(":")[0].startswith("mag"):
        raise UsageError(f"--cache {model.cache} calibrates on a whole video, but bench runs single steps",
                         expected="--cache first-block:THRESHOLD",
                         hint="use that, or --accelerate mag, which generates whole videos")  # fmt: skip


def _lengths(text: str | None) -> list[int]:
    """`2,3,4` as numbers, ascending. Raises UsageError."""
    names = inputs.parse_names(text) if text is not None else []
    if text is not None and not (
        names and all(name.isascii() and name.isdigit() and 1 <= int(name) <= MOST_TIMES for name in names)
    ):
        raise UsageError(f"--lengths {text} names no lengths", expected=f"whole numbers, 1 to {MOST_TIMES}, as 2,3,4",
                         hint="multiples of the native length; --frames for any other length")  # fmt: skip
    return sorted({int(name) for name in names})


def _write(
    result: AcceleratorReport | BenchResult | LengthsResult,
    text: str,
    output: Path | None,
    options: opt.OutputOptions,
    formats: tuple[str, ...],
) -> None:
    """The measurements to `output` and stdout; a BatchError where some failed, an exit code where they were interrupted."""
    from longgen import disk
    from longgen.bench.export import exports

    try:
        if output is not None:
            disk.make_folder(output.parent)
            with disk.held(output.with_name(f".{output.name}.lock"), str(output)):
                disk.check_new(output, options.overwrite)  # again: another process may have written it meanwhile
                disk.save_json(output, result.as_dict())
            written = exports(result).write(formats, output.parent, f"{output.stem}-") if formats else []
            if written:
                logger(options.quiet)(f"export: {', '.join(path.name for path in written)} in {output.parent}")
    finally:  # what was measured is printed, even where it could not be written
        answer(text, result.as_dict(), options.as_json, wrote=output is not None)
    if result.stopped is not None:
        raise SystemExit(report_stop(result.stopped, "what was measured until then is above"))
    failed = [row for row in result.rows if row.error is not None]
    if failed:
        raise BatchError(f"{len(failed)} of {len(result.rows)} could not be measured: {failed[0].preset}: {failed[0].error}",
                         hint="leave them out, or correct them")  # fmt: skip


def _formats(values: list[str] | None, output: Path | None, count: bool, overwrite: bool) -> tuple[str, ...]:
    """The formats of `--export`, whose files stand beside `output` and are named after it. Raises UsageError."""
    from longgen import disk, export
    from longgen.bench.export import NAMES

    formats = export.parse(values)
    if formats and count:
        raise conflict("--export", "--count", "it writes measurements", "--export without --count, or --count --json")
    if formats and output is None:
        raise UsageError("--export needs --output: its files are named after that and stand beside it",
                         expected="--output FILE.json with --export", hint="give --output bench.json")  # fmt: skip
    for kind, name in ((kind, name) for kind in formats if output is not None for name in NAMES):
        assert output is not None
        disk.check_new(output.with_name(f"{output.stem}-{name}.{export.SUFFIXES[kind]}"), overwrite, "--export")
    return formats


def _accelerators(text: str, spec: BackboneSpec) -> tuple[str, ...]:
    """`first-block,mag:0.1,compile` as names, each of which exists."""
    from longgen.backbones.settings import parse_cache
    from longgen.bench.accelerators import COMPILE

    names = tuple(dict.fromkeys(inputs.parse_names(text)))
    if not names:
        raise UsageError("--accelerate names nothing", expected="first-block, mag and compile, as first-block:0.05,compile",
                         hint="name one")  # fmt: skip
    for name in names:
        if name != COMPILE:
            parse_cache(name, spec)
    return names
