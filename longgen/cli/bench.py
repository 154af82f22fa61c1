"""longgen bench: what presets cost in time and memory, against direct sampling and against their arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longgen.cli.app import answer, app, reports_errors, say
from longgen.cli.inputs import backbone_asked, make_setup, parse_size, read_names, warn_of_grammar
from longgen.cli.options import (
    Attention,
    Backbone,
    Cache,
    ClipBatch,
    Compile,
    Device,
    Dtype,
    FlowShift,
    Frames,
    Json,
    Offload,
    Overwrite,
    Probe,
    Quiet,
    Set,
    Size,
)
from longgen.errors import BatchError, Terminated, UsageError

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.spec import BackboneSpec
    from longgen.pipelines.base import PipelineBackbone as Loaded

PRESETS = "direct,sliding-window,freenoise,freeloc,freelong,freepca,freespec,longdiff"


@app.command()
@reports_errors
def bench(
    context: typer.Context,
    presets: Annotated[str, typer.Option("--presets", metavar="NAME,NAME", help="Presets or TOML files.")] = PRESETS,
    backbone: Backbone = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", metavar="NAME", help="A transformer made for measuring, in place of a model: cpu-attention."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build the model by what is known of it; nothing is downloaded.")
    ] = False,
    accelerate: Annotated[
        str | None,
        typer.Option(
            "--accelerate",
            metavar="NAME,NAME",
            help="Measure instead what these do to the presets' videos: first-block, mag, NAME:THRESHOLD, compile.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Of --accelerate, in place of longgen's own.")] = None,
    frames: Frames = None,
    size: Size = None,
    flow_shift: FlowShift = None,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="K", help="How often each kind of step is measured.")] = 3,
    set_: Set = None,
    probe: Probe = None,
    dtype: Dtype = None,
    device: Device = None,
    offload: Offload = "none",
    attention: Attention = None,
    cache: Cache = None,
    compile_: Compile = False,
    clip_batch: ClipBatch = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.json", help="Write the JSON there too.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what presets cost in time and memory: real steps of every kind, against direct sampling and the arithmetic.

    With --accelerate, whole runs: what step caches and compiling do to each preset's video, and to its time.
    """
    from longgen import disk, preset, run
    from longgen.bench import accelerators, accelerators_table, table
    from longgen.bench import run as running
    from longgen.bench.synthetic import FRAMES, SHAPES
    from longgen.progress import reporter

    def given(name: str) -> bool:
        return str(context.get_parameter_source(name)).endswith("COMMANDLINE")  # a variable may stand where nobody looks

    if accelerate is not None and (shape is not None or random_weights):
        raise UsageError("--accelerate compares videos, and of --shape and --random-weights there are none worth it",
                         expected="a model with its own weights: --backbone", hint="leave them out")  # fmt: skip
    if accelerate is not None and (cache is not None or compile_):
        raise UsageError("--accelerate is given beside --cache or --compile (or LONGGEN_CACHE, LONGGEN_COMPILE)",
                         expected="--accelerate alone, as --accelerate first-block:0.05,compile",
                         hint="name there what is to be measured")  # fmt: skip
    if accelerate is not None and given("steps"):
        raise UsageError("--steps says how often a step is measured, and --accelerate measures whole runs", expected="one of them",
                         hint="leave --steps out")  # fmt: skip
    if accelerate is None and prompt is not None:
        raise UsageError("--prompt is given, and what a step costs does not depend on it", expected="--prompt beside --accelerate",
                         hint="leave it out, or add --accelerate")  # fmt: skip
    if shape is not None and (given("backbone") or random_weights):
        raise UsageError("--shape is given beside --backbone or --random-weights, and stands for both", expected="one of them",
                         hint="leave the others out")  # fmt: skip
    if shape is not None and shape not in SHAPES:
        raise UsageError(f"--shape {shape} is none that there is", expected=", ".join(SHAPES), hint="take one of them")
    if probe == "run":
        raise UsageError("--probe run makes videos, and bench measures", expected="a probe's file, or published",
                         hint="longgen probe first, or a preset @all")  # fmt: skip
    if cache is not None and cache.partition(":")[0].startswith("mag"):
        raise UsageError(f"--cache {cache} first makes a whole video to learn from, and bench runs single steps",
                         expected="--cache first-block:THRESHOLD",
                         hint="take that, or --accelerate mag, which makes whole videos")  # fmt: skip
    if output is not None:
        disk.check_new(output, overwrite)
    spec = backbone_asked(backbone, quiet) if shape is None else SHAPES[shape]
    model_settings = make_setup(spec, dict(device=device, dtype=dtype, offload=offload, attention=attention, cache=cache,
                                               compile=compile_, clip_batch=clip_batch))  # fmt: skip
    accelerate_by = _accelerators(accelerate, spec) if accelerate is not None else ()
    sample = preset.Sample(frames=frames or FRAMES, size=None if size is None else parse_size(size), flow_shift=flow_shift)
    names = read_names(presets)
    made = running.plan_presets(names, spec, set_ or (), sample, "published" if shape is not None and probe is None else probe)

    def load(model_settings: ModelSettings) -> Loaded:
        if shape is None and not random_weights:
            return run.load(spec, model_settings)[0]
        from longgen.pipelines.random_weights import build

        return build(spec, model_settings)

    found: accelerators.AcceleratorReport | running.BenchResult
    with reporter(quiet, say) as report:
        if accelerate_by:
            found = accelerators.measure_accelerators(
                made, accelerate_by, load, model_settings, _prompt(prompt, spec, quiet), report
            )
            shown = accelerators_table.text(found)
        else:
            found = running.bench(made, lambda: load(model_settings), model_settings, steps, shape is not None, report)
            shown = table.text(found)
    try:
        if output is not None:
            disk.make_folder(output.parent)
            with disk.held(output.with_name(f".{output.name}.lock"), str(output)):
                disk.check_new(output, overwrite)  # again: measuring takes long, and another may have written it
                disk.save_json(output, found.as_dict())
    finally:  # what was measured is shown, even where it could not be written
        answer(shown, found.as_dict(), as_json, made=output is not None)
    if found.stopped is not None:
        terminated = isinstance(found.stopped, Terminated)
        say(f"longgen: stopped by {'SIGTERM' if terminated else 'Ctrl-C'}; what was measured by then is above")
        raise SystemExit(Terminated.exit_code if terminated else 130)
    failed = [row for row in found.rows if row.error is not None]
    if failed:
        raise BatchError(f"{len(failed)} of {len(found.rows)} could not be measured: {failed[0].preset}: {failed[0].error}",
                         hint="leave them out, or correct them")  # fmt: skip


def _accelerators(given: str, spec: BackboneSpec) -> tuple[str, ...]:
    """`first-block,mag:0.1,compile` one by one, each known."""
    from longgen.backbones.settings import parse_cache
    from longgen.bench.accelerators import COMPILE

    names = tuple(dict.fromkeys(read_names(given)))
    if not names:
        raise UsageError("--accelerate names nothing", expected="first-block, mag and compile, as first-block:0.05,compile",
                         hint="name one")  # fmt: skip
    for name in names:
        if name != COMPILE:
            parse_cache(name, spec)
    return names


def _prompt(given: str | None, spec: BackboneSpec, quiet: bool) -> str:
    """The prompt given, or one that the model knows."""
    from longgen.backbones.tiny import grammar
    from longgen.loops import PROMPTS

    if given is None:
        return grammar.HELD_OUT[0].prompt if spec.built_in else PROMPTS[0]
    warn_of_grammar(spec, [given], quiet)
    return given
