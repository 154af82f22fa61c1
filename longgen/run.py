"""One generation from plan to files.

`ball.mp4` is there when it is complete, and grows as `ball.partial.mp4` until then. Beside it stands the folder `ball.run/`:

    run.json                  settings, versions, what acted where, seconds per phase, peak memory
    checkpoint.safetensors    after every step, until sampling is done
    latents.safetensors       from the end of sampling on, before decoding begins
    latents/000000.safetensors, 000001 ...   in place of the two, where frames are made in chunks: each as soon as it is done

`resume` continues from whichever of them is there; the latents come out equal, byte for byte.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from longgen import __version__, arguments, backbones, frames, preset
from longgen.errors import LonggenError, MissingError, OutOfMemoryError, UsageError
from longgen.plan import Plan, build
from longgen.probe import choose
from longgen.schedule import Schedule

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from longgen.backbones import Backbone, Setup
    from longgen.backbones.spec import BackboneSpec

SCHEMA = 1
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "imageio-ffmpeg")
LONGEST_NAME = 240  # bytes; file systems take 255, and temporary names are longer by a few
IDENTITY = (
    "prompt", "backbone", "preset", "sample", "seed", "dtype", "lora", "quantize", "attention", "cache", "compile",
    "clip_batch", "schedule",
)  # fmt: skip  # settings that decide the latents


class Progress(NamedTuple):
    """One report: `phase` is load, calibrate (what a step cache may skip), sample or decode; `done` of `total`.

    Seconds are since the phase began and still to come.
    """

    phase: str
    done: int
    total: int
    elapsed_s: float
    eta_s: float | None
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out. `seconds` by phase; a phase that an earlier run did is 0."""

    name: str
    output: str
    run: str
    prompt: str
    preset: str
    backbone: str
    seed: int
    frames: int
    fps: int
    seconds: dict[str, float]
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()
    skipped: bool = False


@dataclasses.dataclass(frozen=True)
class Failure:
    """A video of a batch that could not be made."""

    name: str
    output: str
    prompt: str
    seed: int
    error: str


class Job(NamedTuple):
    """One video to make: each has its own plan, since prompts may come with lengths and negative prompts of their own."""

    plan: Plan
    prompt: str
    seed: int
    output: Path


def ignore(message: object) -> None:
    """For callers that want no reports."""


def slug(prompt: str) -> str:
    """A file name made of `prompt`: lower-case letters, digits and hyphens only, at most 60 of them."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:60].strip("-") or "video"


def output_path(output: str | None, prompt: str, seed: int, taken: Iterable[Path] = ()) -> Path:
    """Where the video goes: `output` if it is a file name in .mp4, else `<slug>-<seed>.mp4` in the folder `output`."""
    if output is not None and not output.endswith("/") and not os.path.isdir(output):
        suffix = ".mp4" if Path(output).name == ".mp4" else Path(output).suffix
        if output.endswith(".partial.mp4"):
            raise UsageError(f"--output {output}: so a video is called that is not complete yet", accepted="another name in .mp4",
                             do=f"take {output.removesuffix('.partial.mp4')}.mp4")  # fmt: skip
        if suffix.lower() == ".mp4" and 4 < len(os.fsencode(Path(output).name)) <= LONGEST_NAME:
            return Path(output)
        if suffix.lower() == ".mp4":
            raise UsageError(f"--output {output}: an empty or too long name", accepted=f"a name of at most {LONGEST_NAME} bytes",
                             do="give another name")  # fmt: skip
        if suffix:
            raise UsageError(f"--output {output}: longgen writes MP4 only", accepted="a name in .mp4, or a folder",
                             do=f"take {Path(output).with_suffix('.mp4')}")  # fmt: skip
    stem = Path(output or ".") / f"{slug(prompt)}-{seed}"
    path, number = stem.with_name(stem.name + ".mp4"), 2
    while path in taken:
        path, number = stem.with_name(f"{stem.name}-{number}.mp4"), number + 1
    return path


def run_folder(output: Path) -> Path:
    return output.with_suffix(".run")


def settings_of(plan: Plan, prompt: str, seed: int, setup: Setup) -> dict[str, Any]:
    """Everything needed to make the same file again; it is stored in the file itself."""
    schedule = {} if plan.schedule is None else {"schedule": plan.schedule.as_dict()}
    return {
        "longgen": __version__,
        "schema": SCHEMA,
        "prompt": prompt,
        **schedule,
        "backbone": plan.spec.name,
        "preset": {key: value for key, value in plan.preset.as_dict().items() if key != "sample"},
        "sample": plan.sample.model_dump(mode="json", exclude_none=True),  # so that runs of before flow_shift go on
        "seed": seed,
        "dtype": setup.dtype,
        **setup.deciding(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def memory_bytes(device: str) -> int:
    """Peak so far: of the GPU where there is one, else of the process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Phase:
    """Times one phase and reports its progress."""

    def __init__(self, name: str, total: int, device: str, report: Callable[[Progress], None], done: int = 0) -> None:
        self.name, self.total, self.device, self.report, self.first = name, total, device, report, done
        self.start = time.monotonic()
        self.at(done)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def at(self, done: int) -> None:
        computed = done - self.first
        eta = self.seconds / computed * (self.total - done) if computed else None
        self.report(Progress(self.name, done, self.total, self.seconds, eta, memory_bytes(self.device)))


def generate_one(
    backbone: Backbone,
    plan: Plan,
    prompt: str,
    seed: int,
    output: Path,
    resume: bool = False,
    report: Callable[[Progress], None] = ignore,
    load_s: float = 0.0,
) -> Result:
    """Samples, saves and decodes one video to `output`. With `resume`, goes on from what the run folder holds."""
    import torch

    from longgen import checkpoint
    from longgen.sampling import direct, magcache, start

    folder, device = run_folder(output), str(backbone.device)
    settings = settings_of(plan, prompt, seed, backbone.setup)
    seconds = {"load": round(load_s, 3), "sample": 0.0, "decode": 0.0}
    check_writable(output)
    folder.mkdir(parents=True, exist_ok=True)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    saved_latents, saved_step = folder / "latents.safetensors", folder / "checkpoint.safetensors"
    chunks = checkpoint.Chunks(folder / "latents", settings)
    in_chunks = plan.chunk_lat is not None
    record = _record(plan, settings, device)

    def write_record(status: str) -> None:
        record.update(status=status, seconds=seconds, peak_memory_bytes=memory_bytes(device))
        checkpoint.save_json(folder / "run.json", record)

    latents, state, decoded = None, None, False
    if not resume:
        for old in (saved_latents, saved_step):
            old.unlink(missing_ok=True)
        chunks.clear()
    elif len(chunks):
        _same_run(chunks.kept(), settings, chunks.folder)
        tensors, described = chunks.state()
        state = direct.State(len(chunks), chunks, checkpoint.unpack(tensors, described), tensors["generator"])
    elif saved_latents.is_file():
        tensors, kept = checkpoint.load_tensors(saved_latents)
        _same_run(kept, settings, saved_latents)
        latents = tensors["latents"]
    elif saved_step.is_file() and backbone.setup.cache is not None:
        raise UsageError(f"--resume in the middle of sampling with --cache {backbone.setup.cache}: what the cache held is lost, so "
                         "the latents would differ", accepted="a run without a cache, or one that has been sampled",
                         do="start again with --overwrite")  # fmt: skip
    elif saved_step.is_file():
        tensors, kept = checkpoint.load_tensors(saved_step)
        _same_run(kept, settings, saved_step)
        scheduler = checkpoint.unpack(tensors, kept["scheduler"])
        state = direct.State(kept["done"], tensors["latents"], scheduler, tensors["generator"])
    write_record("running")

    def calibrating() -> Callable[[int], None]:
        return _Phase("calibrate", plan.steps, device, report).at

    skipping = nullcontext() if latents is not None else magcache.skipping(backbone, plan, calibrating)
    with _naming_lack_of_memory("sampling", device, "then add --resume"), skipping:
        if latents is None:
            phase = _Phase("sample", plan.rounds, device, report, done=state.done if state else 0)

            def on_step(now: direct.State) -> None:
                tensors, described = checkpoint.pack(now.scheduler, "scheduler")
                tensors |= {"latents": now.latents, "generator": now.generator}
                if in_chunks:
                    chunks.append(tensors, described)
                else:
                    checkpoint.save_tensors(saved_step, tensors, settings | {"done": now.done, "scheduler": described})
                phase.at(now.done)

            generator = torch.Generator().manual_seed(seed)
            noise = start(backbone, plan, generator)
            arguments = (backbone, plan, prompt, noise, on_step, state, generator)
            at_once = backbone.setup.offload == "none"  # else weights would move to and fro for each frame
            if plan.sampling is None:
                latents = direct.sample(*arguments)
            elif plan.sampling.streams and at_once:
                frames_lat: list[Tensor] = []
                passing = plan.sampling.stream(*arguments)
                if not in_chunks:
                    passing = _kept(passing, frames_lat)
                decode_to(output, backbone.decode, passing, plan, device, settings)  # sampling reports the progress of both
                latents, decoded = None if in_chunks else torch.cat(frames_lat, dim=2), True
            elif in_chunks:
                for _ in plan.sampling.stream(*arguments):
                    pass  # its frames are in the chunks
            else:
                latents = plan.sampling.sample(*arguments)
            seconds["sample"] = round(phase.seconds, 3)
            if latents is not None:
                checkpoint.save_tensors(saved_latents, {"latents": latents}, settings)
    saved_step.unlink(missing_ok=True)
    write_record("sampled")
    if not decoded:
        with _naming_lack_of_memory("decoding", device, f"the latents are kept: longgen decode {folder}"):
            frames_of = chunks.frames(plan.frames_lat) if latents is None else latents
            seconds["decode"], _ = decode_to(output, backbone.decode, frames_of, plan, device, settings, report)
    write_record("done")
    return _result(output, settings, plan, seconds, memory_bytes(device))


def _kept(frames: Iterator[Tensor], keep: list[Tensor]) -> Iterator[Tensor]:
    """`frames`, each kept on the host as it passes."""
    for frame in frames:
        keep.append(frame.cpu())
        yield frame


def generate_jobs(
    jobs: list[Job],
    setup: Setup,
    resume: bool = False,
    report: Callable[[Progress], None] = ignore,
    tell: Callable[[str], None] = ignore,
) -> list[Result | Failure]:
    """Makes every job's video on one loaded model, which is that of the first one's plan. With `resume`, finished ones are skipped.

    Of several jobs, one that fails becomes a Failure and the rest goes on; a single one raises its error.
    """
    results: list[Result | Failure] = []
    loaded = None
    for number, job in enumerate(jobs, start=1):
        plan = job.plan
        if len(jobs) > 1:
            tell(f"[{number}/{len(jobs)}] {job.prompt}")
        try:
            if resume and job.output.is_file() and unfinished(job.output) is None:
                settings = settings_of(plan, job.prompt, job.seed, setup)
                results.append(finished_result(job.output, settings, plan))
                tell(f"{job.output} is finished: nothing to resume")
                continue
            load_s = 0.0
            if loaded is None:
                loaded, load_s = load(plan.spec, setup, report)
                if setup.compile:
                    tell("compiling: the first step takes seconds to minutes more")
            tell(f"seed {job.seed}")
            if plan.sampling is not None and plan.sampling.streams and setup.offload == "none":
                from longgen.video import partial_of

                tell(f"growing, and playable meanwhile: {partial_of(job.output)}")
            results.append(generate_one(loaded, plan, job.prompt, job.seed, job.output, resume, report, load_s))
        except LonggenError as error:
            if len(jobs) == 1 or loaded is None:
                raise
            tell(str(error))
            results.append(Failure(job.output.stem, str(job.output), job.prompt, job.seed, error.given))
    return results


def load(spec: BackboneSpec, setup: Setup, report: Callable[[Progress], None] = ignore) -> tuple[Backbone, float]:
    """The model of `spec`, and the seconds it took. Raises OutOfMemoryError, and what `longgen.backbones.load` does."""
    phase = _Phase("load", 1, "cpu", report)
    with _naming_lack_of_memory("loading the model", setup.device, "or a smaller --backbone"):
        loaded = backbones.load(spec, setup)
    phase.at(1)
    return loaded, phase.seconds


def decode_to(
    output: Path,
    decode: Callable[[Any], Iterator[np.ndarray]],
    latents: Tensor | Iterator[Tensor],
    plan: Plan,
    device: str,
    settings: dict[str, Any],
    report: Callable[[Progress], None] = ignore,
) -> tuple[float, int]:
    """Decodes latents [1, C, T, h, w], or their frames as they come, into the MP4 `output`; returns its seconds and its frames."""
    from longgen.video import Writer

    phase, done = _Phase("decode", plan.frames_px, device, report), 0
    with Writer(output, plan.size, plan.sample.fps or plan.spec.fps, settings) as writer:
        for frames_px in decode(latents):
            writer.add(frames_px)
            done += len(frames_px)
            phase.at(done)
    return round(phase.seconds, 3), done


def unfinished(output: Path) -> str | None:
    """What an earlier run left unfinished for `output`, in words, or None."""
    folder = run_folder(output)
    if (folder / "checkpoint.safetensors").is_file():
        return "a run that was stopped while sampling"
    left = "latents that were not decoded" if (folder / "latents.safetensors").is_file() else None
    if (folder / "latents").is_dir():
        from longgen.checkpoint import Chunks

        done = len(Chunks(folder / "latents", {}))
        left = f"a stream that was stopped after chunk {done}" if done else left
    try:
        return None if left and stored_record(output)["status"] == "done" else left
    except LonggenError:
        return left


def check_writable(output: Path) -> None:
    """Raises LonggenError where `output` or the run folder beside it could not be written; creates nothing."""
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise LonggenError(f"{output} cannot be written: {folder} is {'not to be written to' if folder.is_dir() else 'no folder'}",
                           accepted="a place in a folder that may be written to", do="give another --output")  # fmt: skip


def stored_record(output: Path) -> dict[str, Any]:
    """The run.json of an earlier run of `output`. Raises MissingError where there is none."""
    path = run_folder(output) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"status": record["status"], "settings": dict(record["settings"])} | record
    except FileNotFoundError:
        raise MissingError(f"--resume: {path} is not there", accepted="the --output of a run that was interrupted",
                           do="leave --resume out to start") from None  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise LonggenError(
            f"{path} is damaged", accepted="run.json as longgen writes it", do="start again with --overwrite"
        ) from None


def plan_of(settings: dict[str, Any], origin: Path) -> Plan:
    """The plan that stored `settings` describe. Raises LonggenError where they are not what longgen stores."""
    from longgen.backbones.find import find

    try:
        tables = {**settings["preset"], "sample": settings["sample"]}
        spec, _, _, _ = find(settings["backbone"]), settings["prompt"], settings["seed"], settings["dtype"]
        schedule = Schedule.from_dict(settings["schedule"]) if "schedule" in settings else None
    except (KeyError, TypeError, AttributeError) as error:
        raise LonggenError(f"the settings in {origin} are damaged: {error}", accepted="settings as longgen stores them",
                           do="start again with --overwrite") from None  # fmt: skip
    return build(preset.from_tables(tables, str(origin)), spec, schedule)


def finished_result(output: Path, settings: dict[str, Any], plan: Plan) -> Result:
    """The result of a run that is already complete. Raises UsageError where it was another run."""
    _same_run(stored_record(output)["settings"], settings, output)
    return dataclasses.replace(_result(output, settings, plan, {"load": 0.0, "sample": 0.0, "decode": 0.0}, 0), skipped=True)


def draw_seed() -> int:
    return secrets.randbelow(2**31)


def generate(
    prompt: str,
    output: str | Path,
    *,
    preset_name: str = "direct",
    overrides: Iterable[str] = (),
    backbone: str | None = None,
    sample: preset.Sample | None = None,
    duration: str | None = None,
    schedule: Schedule | None = None,
    layers: str | None = None,
    probe: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    model: Mapping[str, Any] = MappingProxyType({}),
    resume: bool = False,
    report: Callable[[Progress], None] = ignore,
) -> Result:
    """Makes one video. The Python face of `longgen generate`.

    sample: `longgen.Sample(frames=321, steps=20, ...)`. schedule: of `longgen.schedule.load`, whose prompts then take the place of
    `prompt`. layers, probe: see `longgen.probe.choose`. model: how it is loaded, `{"offload": "model", "lora":
    ("style.safetensors:0.8",), ...}`, the other fields of `longgen.backbones.Setup`. Raises LonggenError and its kinds.
    """
    given = locals()  # the parameters
    from longgen.backbones.find import find

    arguments.of_generate(given, preset.Sample, Schedule)
    seed = draw_seed() if seed is None else arguments.seed(seed)
    spec = find(backbone or backbones.default_backbone())
    device = device or model.get("device", backbones.default_device())
    own = {"dtype": backbones.default_dtype(spec, device), **model, "device": device}
    setup = backbones.Setup(**own | ({} if dtype is None else {"dtype": dtype}))
    plan = planned(preset_name, spec, overrides, sample or preset.Sample(), duration, schedule, layers, probe, setup.lora)
    prompt = schedule.shots[0].prompt if schedule else prompt
    job = Job(plan, prompt, seed, output_path(os.fspath(output), prompt, seed))
    (result,) = generate_jobs([job], setup, resume, report)
    assert isinstance(result, Result)  # a single job raises instead
    return result


def planned(
    name: str,
    spec: BackboneSpec,
    overrides: Iterable[str] = (),
    sample: preset.Sample | None = None,
    duration: str | None = None,
    schedule: Schedule | None = None,
    layers: str | None = None,
    probe: str | None = None,
    lora: tuple[str, ...] = (),
) -> Plan:
    """The plan of the preset `name`, which may end in `@all` or the like, with the layers that a probe says.

    layers, probe: see `longgen.probe.choose`. Raises UsageError.
    """
    base, how = choose.split(name)
    if how is not None and layers is not None:
        raise UsageError(f"--preset {name} and --layers {layers} both choose layers", accepted="one of them", do="leave one out")
    loaded = load_preset(base, overrides, sample or preset.Sample(), duration, spec)
    chosen, said = choose.chosen(loaded, spec, how or layers, probe, lora)
    return build(chosen, spec, schedule, said)


def load_preset(
    name: str, overrides: Iterable[str], sample: preset.Sample, duration: str | None, spec: BackboneSpec
) -> preset.Preset:
    """The preset `name` under `overrides` and `sample`; a `duration` becomes frames at the fps that then holds."""
    if duration is not None and sample.frames is not None:
        raise UsageError("--frames and --duration are both given", accepted="one of them", do="leave one out")
    chosen = preset.load(name, overrides, sample)
    if duration is None:
        return chosen
    return chosen.under(preset.Sample(frames=frames.duration_frames(duration, chosen.sample_on(spec).fps or spec.fps)))


def _same_run(kept: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    different = [key for key in IDENTITY if kept.get(key) != settings.get(key)]
    if different:
        raise UsageError(f"--resume: {path} was made with another {', '.join(different)}",
                         accepted="the settings the run began with (longgen generate -o ... --resume alone takes them)",
                         do="give the same settings, or --overwrite to start again")  # fmt: skip


def _record(plan: Plan, settings: dict[str, Any], device: str) -> dict[str, Any]:
    described = plan.as_dict()
    return {
        "schema": SCHEMA,
        "status": "running",
        "settings": settings,
        "frames": plan.frames_px,
        "latent_frames": plan.frames_lat,
        "techniques": described["techniques"],
        "branches": described["branches"],
        "cost_ratio": described["cost_ratio"],
        "notes": described["notes"],
        "device": device_name(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seconds": {},
        "peak_memory_bytes": 0,
    }


def device_name(device: str) -> str:
    """The device as people know it."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def _result(output: Path, settings: dict[str, Any], plan: Plan, seconds: dict[str, float], peak: int) -> Result:
    return Result(
        output.stem, str(output), str(run_folder(output)), settings["prompt"], plan.preset.name, plan.spec.name,
        settings["seed"], plan.frames_px, plan.sample.fps or plan.spec.fps, seconds, peak, plan.notes,
    )  # fmt: skip


@contextmanager
def _naming_lack_of_memory(stage: str, device: str, kept: str) -> Iterator[None]:
    """Turns the many errors of lacking memory into an OutOfMemoryError with the stage and the cheapest fix."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError, on a GPU a kind of it
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        gc.collect()
        offload = "add --offload model (or sequential), or " if device.startswith("cuda") else ""
        reason = " ".join(str(error).split())[:200] or "the host has no more"
        raise OutOfMemoryError(f"out of memory while {stage}: {reason}", accepted="what longgen plan estimates fits the device",
                               do=f"{offload}take fewer --frames or a smaller --size; {kept}") from error  # fmt: skip
