"""One generation from plan to files.

`ball.mp4` is there when it is complete, and grows as `ball.partial.mp4` until then. Beside it stands the folder `ball.run/`, see
`longgen.rundir`; `resume` continues from what is there, and the latents come out equal, byte for byte.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from longgen import __version__, arguments, disk, ffmpeg, preset, rundir
from longgen.backbones import defaults
from longgen.backbones.settings import ModelSettings
from longgen.describe import plan_dict
from longgen.disk import check_writable
from longgen.errors import LonggenError, OutOfMemoryError, UsageError
from longgen.naming import output_path, slug
from longgen.plan import Plan
from longgen.progress import Phase, Progress, memory_bytes, no_report
from longgen.resolve import PlanRequest, resolve
from longgen.rundir import IDENTITY, SCHEMA, run_folder, stored_record, unfinished
from longgen.schedule import PromptSchedule
from longgen.textfile import on_one_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from longgen.backbones.spec import BackboneSpec
    from longgen.pipelines.base import PipelineBackbone

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "imageio-ffmpeg")
__all__ = ["IDENTITY", "check_writable", "output_path", "run_folder", "slug", "stored_record", "unfinished"]  # by these names too


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


class Asked(NamedTuple):
    """A job whose place is not decided. output: a file, a folder, or None for the folder one is in."""

    plan: Plan
    prompt: str
    seed: int
    output: str | None


def jobs_of(asked: Iterable[Asked], model_settings: ModelSettings, resume: bool = False, overwrite: bool = False) -> list[Job]:
    """What is asked for with the files that it goes to; see `longgen.rundir.assigned`.

    Raises UsageError where something stands in the way, before anything is loaded.
    """
    asked = [*asked]
    wanted = [
        rundir.Wanted(settings_of(one.plan, one.prompt, one.seed, model_settings), one.plan.frames_px, one.output) for one in asked
    ]
    places = rundir.assigned(wanted, [one.prompt for one in asked], resume, overwrite)
    return [Job(one.plan, one.prompt, one.seed, place) for one, place in zip(asked, places, strict=True)]


def settings_of(plan: Plan, prompt: str, seed: int, model_settings: ModelSettings) -> dict[str, Any]:
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
        "dtype": model_settings.dtype,
        **model_settings.deciding(),
        **({"vae_tiling": True} if model_settings.vae_tiling else {}),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def generate_one(
    backbone: PipelineBackbone,
    plan: Plan,
    prompt: str,
    seed: int,
    output: Path,
    resume: bool = False,
    report: Callable[[Progress], None] = no_report,
    load_s: float = 0.0,
    log: Callable[[str], None] = no_report,
) -> Result:
    """Samples, saves and decodes one video to `output`. With `resume`, goes on from what the run folder holds, else begins anew.

    What may be replaced is the affair of `longgen.rundir.ready`; a finished video stays whole until the new one is.
    """
    with rundir.held(output):
        return _generate_one(backbone, plan, prompt, seed, output, resume, report, load_s, log)


def _generate_one(
    backbone: PipelineBackbone,
    plan: Plan,
    prompt: str,
    seed: int,
    output: Path,
    resume: bool,
    report: Callable[[Progress], None],
    load_s: float,
    log: Callable[[str], None],
) -> Result:
    import torch

    from longgen import checkpoint, interrupted, loops
    from longgen.loops import magcache
    from longgen.loops.denoiser import Denoiser
    from longgen.loops.state import State

    folder, device = run_folder(output), str(backbone.device)
    settings = settings_of(plan, prompt, seed, backbone.model_settings)
    seconds = {"load": round(load_s, 3), "sample": 0.0, "decode": 0.0}
    rundir.check_place(output)
    ffmpeg.program()  # or it would be missed when all is sampled
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    saved_latents, saved_step = folder / rundir.LATENTS, folder / rundir.STEP
    chunks = checkpoint.Chunks(folder / rundir.CHUNKS, settings)
    in_chunks = plan.chunk_lat is not None
    record = _record(plan, settings, device)

    def write_record(status: str, **more: Any) -> None:
        record.update(status=status, seconds=seconds, peak_memory_bytes=memory_bytes(device), **more)
        disk.save_record(folder / rundir.RECORD, record)

    latents, state, decoded = None, None, False
    if resume:
        if rundir.may_replace(output):
            record[rundir.REPLACES] = True
        latents, state, kept = interrupted.read(backbone, plan, settings, chunks)
        warning = kept and rundir.other_versions(kept, settings)
        if warning:
            log(f"note: {warning}")
            record["notes"] = [*record["notes"], warning]
    else:
        rundir.start_anew(output)
        chunks = checkpoint.Chunks(chunks.folder, settings)
        record[rundir.REPLACES] = os.path.lexists(output)
    write_record("running")

    def calibrating() -> Callable[[int], None]:
        return Phase("calibrate", plan.steps, device, report).at

    skipping = nullcontext() if latents is not None else magcache.skipping(backbone, plan, calibrating)
    with translate_oom("sampling", device, "then add --resume"), skipping:
        if latents is None:
            phase = Phase("sample", plan.rounds, device, report, done=state.done if state else 0)

            def on_step(state: State) -> None:
                tensors, described = checkpoint.pack(state.scheduler, "scheduler")
                tensors |= {"latents": state.latents, "generator": state.generator}
                if in_chunks:
                    chunks.append(tensors, described)
                else:
                    checkpoint.save_tensors(saved_step, tensors, settings | {"done": state.done, "scheduler": described})
                phase.at(state.done)

            generator = torch.Generator().manual_seed(seed)
            denoiser = Denoiser(backbone, plan, prompt)
            frames = loops.stream(denoiser, denoiser.initial_noise(generator), generator, on_step, state)
            on_host: list[Tensor] = []
            if not in_chunks:  # else they are in the chunks
                frames = _copied(frames, on_host)
            if loops.streams(plan, backbone.model_settings.offload):
                decode_to(output, backbone.decode, frames, plan, device, settings)  # sampling reports the progress of both
                decoded = True
            else:
                for _ in frames:
                    pass
            latents = None if in_chunks else torch.cat(on_host, dim=2)
            seconds["sample"] = round(phase.seconds, 3)
            if latents is not None:
                checkpoint.save_tensors(saved_latents, {"latents": latents}, settings)
    saved_step.unlink(missing_ok=True)
    write_record("sampled")
    if not decoded:
        with translate_oom("decoding", device, f"the latents are kept: longgen decode {folder}"):
            frames_of = chunks.frames(plan.frames_lat) if latents is None else latents
            seconds["decode"], _ = decode_to(output, backbone.decode, frames_of, plan, device, settings, report)
    record.pop(rundir.REPLACES, None)
    write_record("done", video=disk.file_hash(output))
    rundir.settle(output)
    return _result(output, settings, plan, seconds, memory_bytes(device))


def _copied(frames: Iterator[Tensor], on_host: list[Tensor]) -> Iterator[Tensor]:
    """`frames`, each copied to `on_host` as it passes."""
    for frame in frames:
        on_host.append(frame.cpu())
        yield frame


def generate_jobs(
    jobs: list[Job],
    model_settings: ModelSettings,
    resume: bool = False,
    report: Callable[[Progress], None] = no_report,
    log: Callable[[str], None] = no_report,
    overwrite: bool = False,
) -> list[Result | Failure]:
    """Makes every job's video on one loaded model, which is that of the first one's plan. Finished ones are skipped.

    With `resume` it goes on from what is left; only `overwrite` replaces what is there. Of several jobs, one that fails becomes a
    Failure and the rest goes on; a single one raises its error, and so does the first where nothing is loaded yet.
    """
    from longgen import loops
    from longgen.pipelines.token_limit import cut_notes, tokenizer_of

    results: list[Result | Failure] = []
    loaded = None
    for number, job in enumerate(jobs, start=1):
        plan = job.plan
        if len(jobs) > 1:
            log(f"[{number}/{len(jobs)}] {on_one_line(job.prompt, 200)}")
        try:
            with rundir.held(job.output):
                settings = settings_of(plan, job.prompt, job.seed, model_settings)
                if rundir.ready(job.output, settings, plan.frames_px, resume, overwrite):
                    rundir.settle(job.output)
                    nothing = {"load": 0.0, "sample": 0.0, "decode": 0.0}
                    results.append(dataclasses.replace(_result(job.output, settings, plan, nothing, 0), skipped=True))
                    log(f"{job.output} is finished, with these settings: there is nothing to do (--overwrite makes it again)")
                    continue
                load_s = 0.0
                if loaded is None:
                    loaded, load_s = load(plan.spec, model_settings, report)
                    for note in loaded.notes:
                        log(f"note: {note}")
                    if model_settings.compile:
                        log("compiling: the first step takes seconds to minutes more")
                cut = cut_notes(plan, [job.prompt], tokenizer_of(loaded))
                for note in cut:
                    log(f"note: {note}")
                plan = dataclasses.replace(plan, notes=plan.notes + cut)
                log(f"seed {job.seed}")
                if loops.streams(plan, model_settings.offload):
                    from longgen.video import partial_of

                    log(f"growing, and playable meanwhile: {partial_of(job.output)}")
                results.append(generate_one(loaded, plan, job.prompt, job.seed, job.output, resume, report, load_s, log))
        except LonggenError as error:
            if len(jobs) == 1 or loaded is None:
                raise
            log(str(error))
            results.append(Failure(job.output.stem, str(job.output), job.prompt, job.seed, error.given))
    return results


def load(
    spec: BackboneSpec, model_settings: ModelSettings, report: Callable[[Progress], None] = no_report
) -> tuple[PipelineBackbone, float]:
    """The model of `spec`, and the seconds it took. Raises OutOfMemoryError, and what `longgen.backbones.load` does."""
    from longgen.pipelines import loading

    phase = Phase("load", 1, "cpu", report)
    with translate_oom("loading the model", model_settings.device, "or a smaller --backbone"):
        loaded = loading.load(spec, model_settings)
    phase.at(1)
    return loaded, phase.seconds


def decode_to(
    output: Path,
    decode: Callable[[Any], Iterator[np.ndarray]],
    latents: Tensor | Iterator[Tensor],
    plan: Plan,
    device: str,
    settings: dict[str, Any],
    report: Callable[[Progress], None] = no_report,
) -> tuple[float, int]:
    """Decodes latents [1, C, T, h, w], or their frames as they come, into the MP4 `output`; returns its seconds and its frames."""
    from longgen.video import Writer

    phase, done = Phase("decode", plan.frames_px, device, report), 0
    with Writer(output, plan.size, plan.sample.fps or plan.spec.fps, settings) as writer:
        for frames_px in decode(latents):
            writer.add(frames_px)
            done += len(frames_px)
            phase.at(done)
    return round(phase.seconds, 3), done


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
    schedule: PromptSchedule | None = None,
    layers: str | None = None,
    probe: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    model: Mapping[str, Any] = MappingProxyType({}),
    resume: bool = False,
    overwrite: bool = False,
    allow_code: bool = False,
    report: Callable[[Progress], None] = no_report,
) -> Result:
    """Makes one video. The Python face of `longgen generate`.

    sample: `longgen.Sample(frames=321, steps=20, ...)`. schedule: of `longgen.schedule.load`, whose prompts then take the place of
    `prompt`. layers, probe: see `longgen.layers.selection`. model: how it is loaded, `{"offload": "model", "lora":
    ("style.safetensors:0.8",), ...}`, the other fields of `longgen.backbones.Setup`. A video that is there with these settings is
    not made again, one with others is not replaced, and an unfinished run needs `resume`; `overwrite` starts anew in each case.
    allow_code: whether the preset may name Python classes as techniques. Raises LonggenError and its kinds.
    """
    given = locals()  # the parameters
    from longgen.backbones.find import find
    from longgen.prompts import checked

    arguments.of_generate(given, preset.Sample, PromptSchedule)
    seed = draw_seed() if seed is None else arguments.seed(seed)
    spec = find(backbone or defaults.default_backbone())
    device = device or model.get("device", defaults.default_device())
    own = {"dtype": defaults.default_dtype(spec, device), **model, "device": device}
    model_settings = ModelSettings(**own | ({} if dtype is None else {"dtype": dtype}))
    plan = resolve(PlanRequest(preset_name, spec, (*overrides,), sample or preset.Sample(), duration, schedule, layers, probe,
                               model_settings.lora, allow_code))  # fmt: skip
    prompt = checked(schedule.shots[0].prompt if schedule else prompt, "prompt")
    if resume and overwrite:
        raise UsageError("resume and overwrite are both given", expected="one of them", hint="leave one out")
    jobs = jobs_of([Asked(plan, prompt, seed, os.fspath(output))], model_settings, resume, overwrite)
    (result,) = generate_jobs(jobs, model_settings, resume, report, overwrite=overwrite)
    assert isinstance(result, Result)  # a single job raises instead
    return result


def _record(plan: Plan, settings: dict[str, Any], device: str) -> dict[str, Any]:
    described = plan_dict(plan)
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
def translate_oom(stage: str, device: str, kept: str) -> Iterator[None]:
    """Turns the many errors of lacking memory into an OutOfMemoryError with the stage and the cheapest fix."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError, on a GPU a kind of it
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        gc.collect()
        offload = "add --offload model (or sequential), or " if device.startswith("cuda") else ""
        reason = " ".join(str(error).split())[:200] or "the host has no more"
        raise OutOfMemoryError(f"out of memory while {stage}: {reason}", expected="what longgen plan estimates fits the device",
                               hint=f"{offload}take fewer --frames or a smaller --size; {kept}") from error  # fmt: skip
