"""longgen doctor: checks what generating needs on this machine, changing nothing; with --gpu it measures the GPU."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from longgen import units
from longgen.cli import complete, inputs, messages
from longgen.cli import options as opt
from longgen.cli.app import answer, app, say
from longgen.errors import LonggenError, MissingError, UsageError
from longgen.terminal import hanging

if TYPE_CHECKING:
    from longgen.backbones.settings import ModelSettings
    from longgen.backbones.spec import BackboneSpec
    from longgen.machine import Memory

LIBRARIES = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "sentencepiece", "protobuf", "pydantic", "typer",
    "imageio-ffmpeg",
)  # fmt: skip
FREE_ENOUGH = 5 * 1000**3  # bytes of free disk space, below which a long run may not fit


class Finding(NamedTuple):
    """What was looked for. value: what was found, in words. data: the same for programs, where words are not enough."""

    name: str
    ok: bool
    value: str
    data: Any = None


@dataclass(frozen=True)
class GpuOptions:
    """What --gpu measures, for how long, and where it writes."""

    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="Measure the GPU: every preset at full size with random weights, and on small shapes against "
                                   "the CPU. Nothing is downloaded."),
    ] = False  # fmt: skip
    presets: Annotated[
        str | None,
        typer.Option("--presets", metavar="NAME,NAME", autocompletion=complete.list_of_presets, help="The presets (default: all)."),
    ] = None
    backbone: opt.Backbone = None
    frames: opt.Frames = None
    duration: opt.Duration = None
    size: opt.Size = None
    dtype: opt.Dtype = None
    device: opt.Device = None
    minutes: Annotated[
        float,
        typer.Option("--minutes", min=0, max=10_000, help="Start no measurement after so long; the same command goes on later."),
    ] = 10.0
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where gpu.json and gpu.html are written.")] = (
        Path("longgen-gpu")
    )


@app.command()
def doctor(context: typer.Context, gpu: GpuOptions, *, options: opt.OutputOptions) -> None:
    """Check this machine: versions, GPU, memory, ffmpeg, fonts, disk, caches, and which backbones fit.

    With --gpu, measure what longgen does on it, in ten minutes: time and memory of every preset, and whether it equals the CPU.
    """
    if gpu.gpu:
        _measure(gpu, options)
        return
    given = opt.given_options(context)  # of the command line alone: a variable may be set for other commands
    for parameter, option in given.items():
        if parameter not in ("as_json", "quiet"):
            raise UsageError(f"{option} has no effect without --gpu", expected="--gpu, or no other option than --json",
                             hint=f"add --gpu, or leave {option} out")  # fmt: skip
    _check(options.as_json)


def _measure(gpu: GpuOptions, options: opt.OutputOptions) -> None:
    """Measures the GPU, going on with what is in the output folder."""
    from longgen import disk, preset
    from longgen.backbones.registry import SPECS
    from longgen.bars import reporter
    from longgen.bench import device_report, device_run
    from longgen.pipelines.checks import check_settings

    spec, settings = _target(gpu)
    check_settings(spec, settings)
    names = preset.names() if gpu.presets is None else inputs.parse_names(gpu.presets)
    for name in names:
        if name not in preset.names():
            preset.load(name)  # an unknown name, or a file, whose error says what there is
    causal = SPECS["tiny-causal" if spec.built_in else "self-forcing"]
    frames = units.frames_asked(gpu.frames, gpu.duration, spec.fps) or device_run.default_frames(spec)
    new = device_run.new_report(spec, settings, frames, opt.parse_size(gpu.size))
    if disk.what_stands_at(gpu.output) not in (None, "a folder"):
        raise UsageError(f"--output {gpu.output} is {disk.what_stands_at(gpu.output)}", expected="a folder, or a free name",
                         hint="give another name")  # fmt: skip
    for file in device_report.FILES:
        disk.check_writable(gpu.output / file)
    disk.make_folder(gpu.output)
    with disk.held(gpu.output / ".gpu.lock", str(gpu.output)), reporter(options.quiet, say) as on_progress:
        report = new if options.overwrite else device_report.resume(gpu.output, new)
        device_run.run(report, spec, causal, settings, names, gpu.minutes, gpu.output, on_progress)
    page = gpu.output / device_report.FILES[1]
    answer(f"{report.text(messages.report_columns())}\n\n{page}", report.as_dict(), options.as_json, wrote=True)
    if report.failures:
        raise typer.Exit(1)


def _target(gpu: GpuOptions) -> tuple[BackboneSpec, ModelSettings]:
    """The backbone and how it runs. Raises MissingError where there is no GPU."""
    from longgen.backbones.defaults import has_gpu
    from longgen.backbones.find import find

    if gpu.device is None and not has_gpu():
        raise MissingError(f"--gpu: {_gpu().value.partition(':')[0]}", expected="a GPU that torch can use",
                           hint="to rehearse it on the CPU: --gpu --device cpu --backbone tiny")  # fmt: skip
    on_cpu = gpu.device is not None and gpu.device.partition(":")[0] == "cpu"
    spec = find(gpu.backbone or ("tiny" if on_cpu else "wan2.1-1.3b"))
    if on_cpu and not spec.built_in:
        raise UsageError(f"--device cpu with {spec.name}: a step at full size takes hours there", expected="--backbone tiny",
                         hint="leave --backbone out to rehearse, or --device out to measure a GPU")  # fmt: skip
    if spec.causal:
        raise UsageError(f"--backbone {spec.name} is causal: direct sampling, which others are compared with, does not run on it",
                         expected="another backbone; causal presets are measured on self-forcing in any case",
                         hint="leave --backbone out")  # fmt: skip
    return spec, inputs.model_settings(spec, {"device": gpu.device, "dtype": gpu.dtype})


def _check(as_json: bool) -> None:
    """Looks for what generating needs."""
    from importlib import metadata

    from longgen import __version__, machine

    findings = [Finding("longgen", True, __version__), Finding("python", sys.version_info >= (3, 10), sys.version.split()[0])]
    for library in LIBRARIES:
        try:
            findings.append(Finding(library, True, metadata.version(library)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(library, False, "not installed"))
    free = shutil.disk_usage(".").free
    disk = Finding("disk", free > FREE_ENOUGH, f"{free / 1e9:.0f} GB free in {Path.cwd()}", {"free_bytes": free})
    memory = machine.memory()
    findings += [_gpu(), _memory(memory), _threads(), _ffmpeg(), _fonts(), disk, _hub_cache(), *_caches(), *_backbones(memory)]
    width = max(len(finding.name) for finding in findings)
    columns = messages.stdout_columns()
    if columns is not None and 2 * (width + 6) > columns:  # too narrow for a column of names
        width = 0
    lines = [hanging(f"{_mark(finding)}{finding.name:<{width}}  ", finding.value, columns) for finding in findings]
    answer("\n".join(lines), [_as_dict(finding) for finding in findings], as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _mark(finding: Finding) -> str:
    """`no` for a backbone that fits at no length, which is no fault of the machine."""
    lengths = (finding.data or {}).get("lengths")
    if lengths is not None and all(row["offload"] is None for row in lengths):
        return "no  "
    return "ok  " if finding.ok else "BAD "


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {key: value for key, value in finding._asdict().items() if key != "data" or value is not None}


def _memory(memory: Memory) -> Finding:
    from longgen.units import human_bytes

    value = f"{human_bytes(memory.available)} free of {human_bytes(memory.total)}"
    return Finding("memory", True, value, {"total_bytes": memory.total, "available_bytes": memory.available})


def _threads() -> Finding:
    import torch

    from longgen import machine

    threads, cores = torch.get_num_threads(), machine.cores()
    variable = os.environ.get("OMP_NUM_THREADS")
    why = f" (OMP_NUM_THREADS={variable})" if variable else ""
    return Finding("threads", True, f"{threads} of torch{why}, on {cores} CPU core{'s' * (cores != 1)}",
                   {"threads": threads, "cores": cores})  # fmt: skip


def _fonts() -> Finding:
    from longgen import machine

    font = machine.fonts()
    return Finding("fonts", font is not None, font or "Pillow has no FreeType: labels of comparisons are in English letters alone")


def _caches() -> list[Finding]:
    from longgen import machine
    from longgen.units import human_bytes

    findings = []
    for cache in machine.caches():
        what = f"{human_bytes(cache['bytes'])} of {cache['holds']}"
        value = f"{what}; to clear it: {cache['clear']}" if cache["bytes"] else f"no {cache['holds']} in {cache['folder']}"
        findings.append(Finding(f"cache {cache['name']}", True, value, cache))
    return findings


def _backbones(memory: Memory) -> list[Finding]:
    """Which backbones fit this machine. One that does not is no fault of it."""
    from longgen import machine
    from longgen.units import human_bytes

    findings = []
    for name, rows in machine.all_fits(memory).items():
        parts = []
        for row in rows:
            size = "" if row["peak_bytes"] is None else human_bytes(row["peak_bytes"])
            if row["why"] is not None:
                parts.append(f"{row['frames']} frames: {row['why']}")
            elif row["offload"] is None:
                parts.append(f"{row['frames']} frames need {size}")
            else:
                how = f"--offload {row['offload']}" if memory.card else "yes"
                parts.append(f"{row['frames']} frames: {how}, {size}")
        where = "card" if memory.card else "cpu"
        findings.append(Finding(name, True, "; ".join(parts), {"kind": "backbone", "device": where, "lengths": rows}))
    return findings


def _gpu() -> Finding:
    import torch

    from longgen.backbones.defaults import gpu_driver, has_gpu

    if not has_gpu():
        driver = gpu_driver()
        but = "" if driver is None else f", although a driver is here ({driver}); a torch built for it may help"
        return Finding("gpu", True, f"none usable by torch {torch.__version__}{but}: the default backbone is tiny")
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding("gpu", True, "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards))


def _ffmpeg() -> Finding:
    from longgen import ffmpeg

    try:
        encoders = ffmpeg.run(["-encoders"])
    except LonggenError as error:
        return Finding("ffmpeg", False, error.given)
    kinds = {suffix: ffmpeg.has_encoder(encoders.stdout, suffix) for suffix in ffmpeg.ENCODERS}
    lacking = [f"{ffmpeg.ENCODERS[suffix]} ({suffix})" for suffix, here in kinds.items() if not here]
    words = f"without {', '.join(lacking)}" if lacking else f"writes {', '.join(kinds)}"
    return Finding("ffmpeg", kinds[".mp4"], f"{ffmpeg.program()}, {words}", kinds)


def _hub_cache() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    offline = " (offline)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    return Finding("hub cache", True, f"{cache}{offline}: {', '.join(models) or 'empty'}")
